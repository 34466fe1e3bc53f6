internal import DeviceModel
internal import Host
internal import Synchronization
internal import Virtio

/// A virtio console with the host's side of it.
final class VirtioConsoleConnection: Sendable {
    /// A bounded buffer between the guest and the session's thread.
    private final class Output: ConsoleSink {
        private static let capacity = 64 << 10
        private let buffer = Mutex<[UInt8]>([])
        private let activity: EventNotifier

        init(_ activity: EventNotifier) { self.activity = activity }

        func write(_ bytes: [UInt8], port: Int) -> Int {
            let (count, isNew) = buffer.withLock { buffer in
                let taken = bytes.prefix(Self.capacity - buffer.count)
                defer { buffer += taken }
                return (taken.count, buffer.isEmpty)
            }
            if isNew { activity.signal() }
            return count
        }

        func inputSpaceAvailable(port: Int) { activity.signal() }

        func take() -> [UInt8] {
            buffer.withLock { buffer in
                defer { buffer = [] }
                return buffer
            }
        }
    }

    let device: VirtioConsole
    private let output: Output

    /// `activity` is signalled when there is news.
    init(activity: EventNotifier) {
        output = Output(activity)
        device = VirtioConsole(ports: [.init(isConsole: true)], sink: output)
    }

    /// With the driver that the saved machine's guest has for it.
    init(activity: EventNotifier, restoring saved: VirtioConsoleSavedState) throws(SavedStateError) {
        output = Output(activity)
        device = try VirtioConsole(restoring: saved, ports: [.init(isConsole: true)], sink: output)
        // What the saved buffer was full of has been taken.
        device.outputSpaceAvailable(port: 0)
    }

    /// The guest has a driver for it.
    var isOpen: Bool { device.isOpen(port: 0) }

    /// What the guest has written since the last call.
    func take() -> [UInt8] {
        let bytes = output.take()
        if !bytes.isEmpty { device.outputSpaceAvailable(port: 0) }
        return bytes
    }

    /// Offers bytes to the guest; how many there was room for.
    func send(_ bytes: ArraySlice<UInt8>) -> Int { device.receive(bytes, port: 0) }

    func resize(_ size: TerminalSize) {
        device.resize(columns: UInt16(clamping: size.columns), rows: UInt16(clamping: size.rows))
    }
}
