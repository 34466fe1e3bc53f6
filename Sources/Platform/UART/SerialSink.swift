internal import Synchronization

/// Where a serial port's output goes. Called on vCPU threads, under the port's lock: it must not call the port.
public protocol SerialSink: Sendable {
    /// Takes one byte. False: there is no space; the port keeps the byte and the guest sees a busy transmitter until
    /// `UART16550.outputSpaceAvailable()`.
    func write(_ byte: UInt8) -> Bool
}

/// A bounded buffer between the guest's single bytes and a host thread's large writes.
public final class SerialOutputBuffer: SerialSink {
    private let capacity: Int
    private let onData: @Sendable () -> Void
    private let buffer = Mutex<[UInt8]>([])

    /// `onData` is called when the first byte arrives in the empty buffer: wake the thread that calls `take()`.
    public init(capacity: Int = 65536, onData: @escaping @Sendable () -> Void) {
        precondition(capacity > 0)
        self.capacity = capacity
        self.onData = onData
    }

    public func write(_ byte: UInt8) -> Bool {
        let count = buffer.withLock { bytes in
            guard bytes.count < capacity else { return 0 }
            bytes.append(byte)
            return bytes.count
        }
        if count == 1 { onData() }
        return count > 0
    }

    /// Everything buffered, in order. The caller tells the port afterwards (`outputSpaceAvailable()`).
    public func take() -> [UInt8] {
        buffer.withLock { bytes in
            let taken = bytes
            bytes = []
            return taken
        }
    }
}
