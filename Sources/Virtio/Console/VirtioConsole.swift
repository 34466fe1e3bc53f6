public import DeviceModel
internal import GuestMemory
internal import Synchronization

/// What a port of a console is connected to. Called from any thread; it must not call the console from inside.
public protocol ConsoleSink: AnyObject, Sendable {
    /// How many of the guest's bytes were taken; the rest is offered again after `VirtioConsole.outputSpaceAvailable`.
    func write(_ bytes: [UInt8], port: Int) -> Int
    /// The guest has taken bytes that waited in `VirtioConsole.receive`'s buffer, or has begun to listen.
    func inputSpaceAvailable(port: Int)
}

/// A console with several ports (Virtio 1.2 §5.3): byte streams both ways, some of them consoles with a size.
///
/// One that is nothing but a console has no control queues: its driver takes the size from the configuration, which
/// drivers of Linux read better than the control message (they have its two fields the other way round).
public final class VirtioConsole: VirtioDevice {
    // Configuration
    private let ports: [PortDescription]
    private let sink: any ConsoleSink
    private let isMultiport: Bool
    // Glue
    private let context = Mutex<VirtioContext?>(nil)
    // Volatile state
    private let state: Mutex<ConsoleState>
    /// Lock order: this one, then `state`.
    private let output = Mutex<Void>(())

    public struct PortDescription: Equatable, Sendable {
        /// What the guest finds it by under /dev/virtio-ports; empty for a console.
        public var name: String
        public var isConsole: Bool

        public init(name: String = "", isConsole: Bool = false) {
            self.name = name
            self.isConsole = isConsole
        }
    }

    /// Feature bits (§5.3.3).
    enum Feature {
        static let size: UInt64 = 1 << 0
        static let multiport: UInt64 = 1 << 1
    }

    /// Control events (§5.3.6.2).
    enum Event: UInt16 {
        case deviceReady = 0
        case deviceAdd = 1
        case deviceRemove = 2
        case portReady = 3
        case consolePort = 4
        case resize = 5
        case portOpen = 6
        case portName = 7
    }

    public static let portLimit = 15
    private static let controlSize = 8
    /// Bytes of the host for one port that wait for buffers of the guest.
    static let inputLimit = 64 << 10
    /// Bytes of the guest that are handed on at once.
    private static let outputLimit = 32 << 10

    /// Port 0 comes first.
    public init(ports: [PortDescription], sink: any ConsoleSink, columns: UInt16 = 80, rows: UInt16 = 24) {
        precondition((1...Self.portLimit).contains(ports.count))
        self.ports = ports
        self.sink = sink
        isMultiport = ports.count > 1 || !ports[0].isConsole
        state = Mutex(ConsoleState(portCount: ports.count, columns: columns, rows: rows))
    }

    public convenience init(
        restoring saved: VirtioConsoleSavedState, ports: [PortDescription], sink: any ConsoleSink
    ) throws(SavedStateError) {
        guard saved.ports.count == ports.count else {
            throw .invalid(identifier: VirtioConsoleSavedState.identifier, field: "ports")
        }
        self.init(ports: ports, sink: sink, columns: saved.columns, rows: saved.rows)
        state.withLock { state in
            state.ports = saved.ports
            state.control = saved.control
        }
    }

    public func saveState() -> [UInt8] { state.withLock { VirtioConsoleSavedState($0).encoded() } }

    // MARK: What the driver sees

    public let kind = VirtioKind(name: "virtio-console", identifier: 3, pciClass: 0x07_8000)
    public var features: UInt64 { Feature.size | (isMultiport ? Feature.multiport : 0) }

    /// Port 0's two queues, the two of control, then two for each further port (§5.3.2); a receive queue comes first.
    public var queueSizes: [UInt16] { Array(repeating: 64, count: isMultiport ? 2 * ports.count + 2 : 2) }

    static let controlReceive = 2
    static let controlTransmit = 3
    static func receiveQueue(_ port: Int) -> Int { port == 0 ? 0 : 2 * port + 2 }

    /// struct virtio_console_config (§5.3.4): cols, rows, max_nr_ports, emerg_wr.
    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 12)
        let (columns, rows) = state.withLock { ($0.columns, $0.rows) }
        bytes.store(columns, at: 0)
        bytes.store(rows, at: 2)
        bytes.store(UInt32(ports.count), at: 4)
        return bytes
    }

    // MARK: Life

    public func start(_ context: VirtioContext) {
        self.context.withLock { $0 = context }
        // Drivers without the control queue look at the size only when the configuration changes.
        if !context.has(Feature.multiport) { context.noteConfigurationChange() }
    }

    public func stop() { context.withLock { $0 = nil } }

    public func reset() {
        state.withLock { state in
            let connected = state.ports.map(\.isConnected)
            state = ConsoleState(portCount: ports.count, columns: state.columns, rows: state.rows)
            for port in ports.indices { state.ports[port].isConnected = connected[port] }
        }
    }

    public func notify(_ queue: Int) -> Bool {
        guard let context = context.withLock({ $0 }) else { return false }
        switch queue {
        case Self.controlReceive: return sendControl(context)
        case Self.controlTransmit: return receiveControl(context)
        default:
            let port = queue < 2 ? 0 : (queue - 2) / 2
            return queue % 2 == 0 ? sendInput(port, context) : takeOutput(port, context)
        }
    }

    // MARK: For the host's side

    /// Bytes for the guest; how many there was room for. None for a port that the guest has not opened: its driver throws
    /// them away, and a reset would lose them. None for a port while the device stands still: what it was saved with may
    /// be all that lives on. The sink hears when there is room again.
    public func receive(_ bytes: some Collection<UInt8>, port: Int) -> Int {
        guard ports.indices.contains(port) else { return 0 }
        guard !ports[port].isConsole else {
            let count = state.withLock { $0.accept(bytes, port) }
            withContext { _ = sendInput(port, $0) }
            return count
        }
        // Before it is tried, so that whoever makes room, or starts the device, knows of it.
        state.withLock { _ = $0.offered.insert(port) }
        var count = 0
        withContext { context in
            guard isOpen(port: port) else { return }
            count = state.withLock { $0.accept(bytes, port) }
            _ = sendInput(port, context)
        }
        return count
    }

    /// The sink refused bytes before and has space again.
    public func outputSpaceAvailable(port: Int) {
        guard ports.indices.contains(port) else { return }
        withContext { context in
            for _ in 0..<context.queues[0].size where !takeOutput(port, context) { return }
        }
    }

    /// The terminal has another size (§5.3.6.2.1).
    public func resize(columns: UInt16, rows: UInt16) {
        let hasPorts = context.withLock { $0?.has(Feature.multiport) ?? false }
        state.withLock { state in
            state.columns = columns
            state.rows = rows
            guard hasPorts else { return }
            for port in ports.indices where ports[port].isConsole { state.post(.resize, port, size: (columns, rows)) }
        }
        withContext { context in
            context.noteConfigurationChange()
            _ = sendControl(context)
        }
    }

    /// Whether the guest has the port open, as far as it says so: a console is open when it has a driver.
    public func isOpen(port: Int) -> Bool {
        guard isMultiport else { return port == 0 && context.withLock { $0 != nil } }
        return state.withLock { $0.ports.indices.contains(port) && $0.ports[port].isOpen }
    }

    /// Whether somebody is at the host's end of a port, which is so at the beginning. That nobody is any more, the guest
    /// hears behind the last byte.
    public func setConnected(_ isConnected: Bool, port: Int) {
        guard isMultiport, ports.indices.contains(port) else { return }
        state.withLock { state in
            guard !isConnected else { return state.connect(port) }
            state.ports[port].endsAfterInput = true
            state.disconnectIfDrained(port)
        }
        withContext { _ = sendControl($0) }
    }

    private func withContext(_ body: (VirtioContext) -> Void) {
        guard let context = context.withLock({ $0 }), context.gate.enter() else { return }
        body(context)
        context.gate.leave()
    }

    // MARK: Data

    /// As much of the host's bytes as the guest has buffers for.
    private func sendInput(_ port: Int, _ context: VirtioContext) -> Bool {
        // Nothing for a port that was closed meanwhile.
        guard ports[port].isConsole || isOpen(port: port) else { return false }
        let before = state.withLock { $0.ports[port].input.count }
        let hasMore = fillBuffers(port, context)
        let (left, isOffered) = state.withLock { state in
            state.disconnectIfDrained(port)
            let left = state.ports[port].input.count
            return (left, left < Self.inputLimit && state.offered.remove(port) != nil)
        }
        if left == 0 { _ = sendControl(context) }
        if left < before || isOffered { sink.inputSpaceAvailable(port: port) }
        return hasMore
    }

    private func fillBuffers(_ port: Int, _ context: VirtioContext) -> Bool {
        let queue = context.queues[Self.receiveQueue(port)]
        for _ in 0..<max(queue.size, 1) {
            // The lock is held until the buffer is back, or bytes would change places.
            let isDone = state.withLock { state in
                guard !state.ports[port].input.isEmpty else { return true }
                guard let chain = queue.next() else { return !queue.requestNotification() }
                let part = Array(state.ports[port].input.prefix(chain.writable.count))
                let written = (try? chain.writable.write(part, to: context.memory)) ?? 0
                state.ports[port].input.removeFirst(written)
                queue.complete(chain, written: written)
                return false
            }
            if isDone { return false }
        }
        return true
    }

    private func takeOutput(_ port: Int, _ context: VirtioContext) -> Bool {
        // One taker at a time: the sink gets a port's bytes in their order.
        output.withLock { _ in takeOutputInOrder(port, context) }
    }

    private func takeOutputInOrder(_ port: Int, _ context: VirtioContext) -> Bool {
        let queue = context.queues[Self.receiveQueue(port) + 1]
        for _ in 0..<max(queue.size, 1) {
            guard let chain = queue.next() else { return queue.requestNotification() }
            let done = state.withLock { $0.ports[port].outputOffset }
            let bytes = (try? chain.readable.read(from: context.memory, at: done, limit: Self.outputLimit)) ?? []
            let taken = bytes.isEmpty ? 0 : min(max(sink.write(bytes, port: port), 0), bytes.count)
            let isWhole = bytes.isEmpty || done + taken >= chain.readable.count
            state.withLock { $0.ports[port].outputOffset = isWhole ? 0 : done + taken }
            if isWhole {
                queue.complete(chain, written: 0)
            } else {
                queue.putBack(chain)
                // Full: it goes on when the sink says so.
                if taken < bytes.count { return false }
            }
        }
        return true
    }

    // MARK: Control

    private func sendControl(_ context: VirtioContext) -> Bool {
        guard context.has(Feature.multiport) else { return false }
        let queue = context.queues[Self.controlReceive]
        for _ in 0..<max(queue.size, 1) {
            let isDone = state.withLock { state in
                guard let message = state.control.first else { return true }
                guard let chain = queue.next() else { return !queue.requestNotification() }
                let written = (try? chain.writable.write(message, to: context.memory)) ?? 0
                state.control.removeFirst()
                queue.complete(chain, written: written)
                return false
            }
            if isDone { return false }
        }
        return true
    }

    private func receiveControl(_ context: VirtioContext) -> Bool {
        let hasMore = context.queues[Self.controlTransmit].drain { chain in
            let bytes = (try? chain.readable.read(from: context.memory, limit: Self.controlSize)) ?? []
            context.queues[Self.controlTransmit].complete(chain, written: 0)
            guard bytes.count == Self.controlSize else { return }
            handle(
                port: Int(littleEndian(bytes, at: 0, count: 4)),
                event: Event(rawValue: UInt16(truncatingIfNeeded: littleEndian(bytes, at: 4, count: 2))),
                value: littleEndian(bytes, at: 6, count: 2))
        }
        _ = sendControl(context)
        for port in state.withLock({ $0.takeOpened() }) {
            _ = sendInput(port, context)
            sink.inputSpaceAvailable(port: port)
        }
        return hasMore
    }

    /// §5.3.6.2: what a driver may say.
    private func handle(port: Int, event: Event?, value: UInt64) {
        state.withLock { state in
            switch event {
            case .deviceReady where value == 1:
                for port in ports.indices { state.post(.deviceAdd, port) }
            case .portReady where value == 1 && ports.indices.contains(port):
                let description = ports[port]
                if description.isConsole {
                    state.post(.consolePort, port, value: 1)
                    state.post(.resize, port, size: (state.columns, state.rows))
                }
                if !description.name.isEmpty { state.post(.portName, port, value: 1, text: description.name) }
                state.ports[port].isReady = true
                state.tellConnected(port)
            case .portOpen where ports.indices.contains(port): state.open(port, value != 0)
            default: break
            }
        }
    }
}
