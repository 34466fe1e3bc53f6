public import DeviceModel
internal import Synchronization

/// The PC's four serial ports: where they are, and on which interrupt.
public enum SerialPort: Sendable, CaseIterable {
    case com1, com2, com3, com4

    public var base: UInt64 {
        switch self {
        case .com1: 0x3F8
        case .com2: 0x2F8
        case .com3: 0x3E8
        case .com4: 0x2E8
        }
    }

    /// The ISA interrupt, which is also its GSI.
    public var irq: UInt32 {
        switch self {
        case .com1, .com3: 4
        case .com2, .com4: 3
        }
    }
}

/// A 16550A UART whose line has no speed: a byte is sent as soon as it is written.
public final class UART16550: SavableDevice {
    // Glue
    private let port: SerialPort
    private let line: LineDriver
    private let sink: any SerialSink
    private let onInputSpace: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<UARTState>

    /// `onInputSpace` is called when the guest has read everything: the time to offer more to `receive`.
    public init(
        port: SerialPort = .com1, line: any InterruptLine, sink: any SerialSink,
        onInputSpace: @escaping @Sendable () -> Void = {}
    ) {
        self.port = port
        self.line = LineDriver(line)
        self.sink = sink
        self.onInputSpace = onInputSpace
        state = Mutex(UARTState())
    }

    public init(
        restoring saved: UART16550SavedState, port: SerialPort = .com1, line: any InterruptLine,
        sink: any SerialSink, onInputSpace: @escaping @Sendable () -> Void = {}
    ) throws(SavedStateError) {
        self.port = port
        self.line = LineDriver(line)
        self.sink = sink
        self.onInputSpace = onInputSpace
        let restored = try UARTState(saved)
        state = Mutex(restored)
        updateLine(announcing: true)
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "16550A serial port", base: port.base, size: 8, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        guard offset < 8 else { return .rejected(.noSuchRegister) }
        return .value(UInt64(changing { $0.read(offset) }))
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        guard offset < 8 else { return .rejected(.noSuchRegister) }
        changing { $0.write(offset, UInt8(truncatingIfNeeded: value), sink: sink) }
        return .done
    }

    /// Bytes from the outside; returns how many went into the FIFO. Offer the rest after `onInputSpace`.
    public func receive(_ bytes: some Collection<UInt8>) -> Int {
        changing { state in
            var accepted = 0
            for byte in bytes {
                guard state.inputSpace > 0, state.received.push(byte) else { break }
                accepted += 1
            }
            return accepted
        }
    }

    /// How many bytes `receive` would accept.
    public var inputSpace: Int { state.withLock { $0.inputSpace } }

    /// Whether the guest has read everything that it was given.
    public var isInputDrained: Bool { state.withLock { $0.received.isEmpty } }

    /// The carrier of the far end. Without one, a terminal that minds its modem lines sees a hang-up: end of file.
    public func setCarrier(_ present: Bool) {
        changing { $0.changingModemLines { $0.hasCarrier = present } }
    }

    /// The sink refused a byte before and has space again.
    public func outputSpaceAvailable() {
        changing { $0.drain(into: sink) }
    }

    public func save() -> UART16550SavedState {
        state.withLock { UART16550SavedState($0) }
    }

    /// Changes the state under its lock, and tells line and host afterwards, without it.
    @discardableResult
    private func changing<Result: Sendable>(_ body: (inout UARTState) -> Result) -> Result {
        let (result, isLineChanged, hasNewSpace) = state.withLock { state in
            let interrupted = state.interrupt != .none
            let isFull = state.inputSpace == 0 || !state.received.isEmpty
            let result = body(&state)
            let isFullNow = state.inputSpace == 0 || !state.received.isEmpty
            return (result, interrupted != (state.interrupt != .none), isFull && !isFullNow)
        }
        if isLineChanged { updateLine() }
        if hasNewSpace { onInputSpace() }
        return result
    }

    private func updateLine(announcing: Bool = false) {
        let level = { self.state.withLock { $0.interrupt != .none } }
        if announcing { line.announce(level) } else { line.update(level) }
    }
}
