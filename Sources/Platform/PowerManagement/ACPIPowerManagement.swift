public import DeviceModel
internal import Synchronization

/// ACPI's fixed hardware: PM1 event and control registers, and the PM timer, at ports 0x600–0x60F.
///
/// The machine is in ACPI mode from the start: FADT has no SMI command port, and SCI_EN reads as 1.
public final class ACPIPowerManagement: SavableDevice {
    // Glue
    private let line: LineDriver
    private let monotonicClock: @Sendable () -> Duration
    private let onPowerOff: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<PowerManagementState>

    /// `sciLine` is IRQ 9.
    public init(
        sciLine: any InterruptLine, monotonicClock: @escaping @Sendable () -> Duration,
        onPowerOff: @escaping @Sendable () -> Void
    ) {
        line = LineDriver(sciLine)
        self.monotonicClock = monotonicClock
        self.onPowerOff = onPowerOff
        state = Mutex(PowerManagementState(timerOffset: 0 &- Self.ticks(monotonicClock())))
    }

    public init(
        restoring saved: ACPIPowerManagementSavedState, sciLine: any InterruptLine,
        monotonicClock: @escaping @Sendable () -> Duration, onPowerOff: @escaping @Sendable () -> Void
    ) throws(SavedStateError) {
        line = LineDriver(sciLine)
        self.monotonicClock = monotonicClock
        self.onPowerOff = onPowerOff
        let restored = try PowerManagementState(saved, ticks: Self.ticks(monotonicClock()))
        state = Mutex(restored)
        line.announce { restored.isLineHigh }
    }

    public var attachments: [BusAttachment] {
        [
            BusAttachment(
                name: "ACPI power management", base: PowerManagementBlock.base, size: PowerManagementBlock.size,
                device: self)
        ]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width != .quad else { return .rejected(.wrongWidth) }
        guard offset < PowerManagementBlock.size else { return .rejected(.noSuchRegister) }
        guard offset % UInt64(width.rawValue) == 0 else { return .rejected(.unaligned) }
        let word: UInt32
        switch offset & ~3 {
        case PowerManagementBlock.event: word = state.withLock { UInt32($0.status) | UInt32($0.enable) << 16 }
        case PowerManagementBlock.control: word = state.withLock { UInt32($0.control | PM1Control.sciEnable) }
        case PowerManagementBlock.timer:
            let ticks = Self.ticks(monotonicClock())
            word = state.withLock { ticks &+ $0.timerOffset }
        default: word = 0
        }
        return .value(UInt64(word >> UInt32((offset & 3) * 8)) & width.mask)
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard width != .quad else { return .rejected(.wrongWidth) }
        guard offset < PowerManagementBlock.size else { return .rejected(.noSuchRegister) }
        guard offset % UInt64(width.rawValue) == 0 else { return .rejected(.unaligned) }
        let powersOff = state.withLock { state in
            var powersOff = false
            for index in 0..<UInt64(width.rawValue) {
                let byte = UInt8(truncatingIfNeeded: value >> (index * 8))
                if state.write(byte, at: offset + index) { powersOff = true }
            }
            return powersOff
        }
        line.update { state.withLock { $0.isLineHigh } }
        if powersOff { onPowerOff() }
        return .done
    }

    /// What pressing the case's button does: a guest that listens shuts down.
    public func pressPowerButton() {
        state.withLock { $0.status |= PM1Event.powerButton }
        line.update { state.withLock { $0.isLineHigh } }
    }

    public func save() -> ACPIPowerManagementSavedState {
        let ticks = Self.ticks(monotonicClock())
        return state.withLock { ACPIPowerManagementSavedState($0, ticks: ticks) }
    }

    /// The timer's count, of which it shows 32 bits.
    private static func ticks(_ time: Duration) -> UInt32 {
        let (seconds, attoseconds) = time.components
        let fraction = attoseconds / 1_000_000_000 * PowerManagementTimer.frequency / 1_000_000_000
        return UInt32(truncatingIfNeeded: seconds &* PowerManagementTimer.frequency &+ fraction)
    }
}

struct PowerManagementState: Sendable {
    var status: UInt16 = 0
    var enable: UInt16 = 0
    var control: UInt16 = 0
    /// What the timer shows ahead of the clock's ticks.
    var timerOffset: UInt32

    init(timerOffset: UInt32) {
        self.timerOffset = timerOffset
    }

    var isLineHigh: Bool { status & enable != 0 }

    /// Each register may be written in bytes; true when the guest switches the machine off.
    mutating func write(_ byte: UInt8, at offset: UInt64) -> Bool {
        let shift = UInt16(offset & 1) * 8
        let bits = UInt16(byte) << shift
        let mask = 0xFF << shift as UInt16
        switch offset & ~1 {
        case PowerManagementBlock.event: status &= ~bits  // write one to clear
        case PowerManagementBlock.event + 2: enable = (enable & ~mask | bits) & PM1Event.enableWritable
        case PowerManagementBlock.control:
            control = (control & ~mask | bits) & PM1Control.writable
            let sleepType = control >> PM1Control.sleepTypeShift & PM1Control.sleepTypeMask
            return bits & PM1Control.sleepEnable != 0 && sleepType == UInt16(PM1Control.softOff)
        default: break
        }
        return false
    }
}
