/// What changes while a console runs.
struct ConsoleState: Equatable, Sendable {
    struct Port: Equatable, Sendable {
        /// Bytes for the guest.
        var input: [UInt8] = []
        /// The guest's driver knows the port.
        var isReady = false
        /// Of the guest's side.
        var isOpen = false
        /// Of the host's side, as the guest was told.
        var isConnected = true
        /// The host's side is gone; the guest hears of it behind `input`.
        var endsAfterInput = false
        /// How much of the guest's next buffer the sink has.
        var outputOffset = 0
    }

    var columns: UInt16
    var rows: UInt16
    var ports: [Port]
    /// Messages that wait for buffers.
    var control: [[UInt8]] = []
    /// Ports that the guest has opened just now.
    private var opened: [Int] = []
    /// Ports whose host has more than was taken; at the beginning that is not known.
    var offered: Set<Int>

    /// A guest that asks and never listens is not answered any more.
    static let controlLimit = 256

    init(portCount: Int, columns: UInt16, rows: UInt16) {
        self.columns = columns
        self.rows = rows
        ports = Array(repeating: Port(), count: portCount)
        offered = Set(0..<portCount)
    }

    /// Bytes of the host for the guest, as many as there is room for.
    mutating func accept(_ bytes: some Collection<UInt8>, _ port: Int) -> Int {
        let accepted = bytes.prefix(max(0, VirtioConsole.inputLimit - ports[port].input.count))
        ports[port].input += accepted
        if accepted.count == bytes.count { offered.remove(port) }
        return accepted.count
    }

    mutating func open(_ port: Int, _ isOpen: Bool) {
        if isOpen, !ports[port].isOpen { opened.append(port) }
        ports[port].isOpen = isOpen
    }

    mutating func takeOpened() -> [Int] {
        defer { opened = [] }
        return opened
    }

    mutating func connect(_ port: Int) {
        ports[port].endsAfterInput = false
        guard !ports[port].isConnected else { return }
        ports[port].isConnected = true
        tellConnected(port)
    }

    mutating func disconnectIfDrained(_ port: Int) {
        guard ports[port].endsAfterInput, ports[port].input.isEmpty else { return }
        ports[port].endsAfterInput = false
        guard ports[port].isConnected else { return }
        ports[port].isConnected = false
        tellConnected(port)
    }

    /// Only the last one counts of several that the guest has not heard.
    mutating func tellConnected(_ port: Int) {
        guard ports[port].isReady else { return }
        control.removeAll { message in
            littleEndian(message, at: 0, count: 4) == UInt64(port)
                && littleEndian(message, at: 4, count: 2) == UInt64(VirtioConsole.Event.portOpen.rawValue)
        }
        post(.portOpen, port, value: ports[port].isConnected ? 1 : 0)
    }

    /// struct virtio_console_control, and what follows it for some events: columns and rows, or a name.
    mutating func post(
        _ event: VirtioConsole.Event, _ port: Int, value: UInt16 = 0, size: (columns: UInt16, rows: UInt16)? = nil,
        text: String = ""
    ) {
        guard control.count < Self.controlLimit else { return }
        var bytes = [UInt8](repeating: 0, count: 8)
        bytes.store(UInt32(truncatingIfNeeded: port), at: 0)
        bytes.store(event.rawValue, at: 4)
        bytes.store(value, at: 6)
        if let size {
            // struct virtio_console_resize: cols, rows.
            bytes += [UInt8](repeating: 0, count: 4)
            bytes.store(size.columns, at: 8)
            bytes.store(size.rows, at: 10)
        }
        control.append(bytes + Array(text.utf8))
    }
}
