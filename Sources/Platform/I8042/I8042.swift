public import DeviceModel
internal import Synchronization

/// A keyboard controller with neither keyboard nor mouse: it answers a driver's probing at once, and resets the
/// machine, at ports 0x60 and 0x64.
public final class I8042: SavableDevice {
    // Glue
    private let line: LineDriver
    private let onReset: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<I8042State>

    /// `line` is IRQ 1.
    public init(line: any InterruptLine, onReset: @escaping @Sendable () -> Void) {
        self.line = LineDriver(line)
        self.onReset = onReset
        state = Mutex(I8042State())
    }

    public init(
        restoring saved: I8042SavedState, line: any InterruptLine, onReset: @escaping @Sendable () -> Void
    ) throws(SavedStateError) {
        self.line = LineDriver(line)
        self.onReset = onReset
        let restored = try I8042State(saved)
        state = Mutex(restored)
        self.line.announce { restored.isLineHigh }
    }

    public var attachments: [BusAttachment] {
        [
            BusAttachment(name: "i8042 data port", base: 0x60, size: 1, device: self),
            BusAttachment(
                name: "i8042 command port", base: 0x64, size: 1,
                device: BusWindow(self, startingAt: I8042Port.command)),
        ]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        switch offset {
        case I8042Port.data:
            let value = state.withLock { $0.readData() }
            updateLine()
            return .value(UInt64(value))
        case I8042Port.command: return .value(UInt64(state.withLock { $0.status }))
        default: return .rejected(.noSuchRegister)
        }
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        guard offset == I8042Port.data || offset == I8042Port.command else { return .rejected(.noSuchRegister) }
        let byte = UInt8(truncatingIfNeeded: value)
        let resets = state.withLock { state in
            offset == I8042Port.data ? state.writeData(byte) : state.writeCommand(byte)
        }
        updateLine()
        if resets { onReset() }
        return .done
    }

    public func save() -> I8042SavedState {
        state.withLock { I8042SavedState($0) }
    }

    private func updateLine() {
        line.update { state.withLock { $0.isLineHigh } }
    }
}
