public import DeviceModel
internal import Synchronization

/// The MC146818 clock with the PC's CMOS memory, at ports 0x70 (index) and 0x71 (data).
///
/// Its time is the host's plus what the guest set. Interrupts (IRQ 8) need a `DeviceTimer`; without one their flags
/// are still right whenever register C is read.
public final class CMOSRTC: SavableDevice {
    // Glue
    private let line: LineDriver
    private let wallClock: @Sendable () -> Duration
    private let timer: (any DeviceTimer)?
    // Volatile state
    private let state: Mutex<CMOSState>

    /// `wallClock` is the time since 1970-01-01 UTC; the timer's deadlines are in its terms.
    public init(
        layout: PhysicalMemoryMap, line: any InterruptLine, wallClock: @escaping @Sendable () -> Duration,
        timer: (any DeviceTimer)? = nil
    ) {
        self.line = LineDriver(line)
        self.wallClock = wallClock
        self.timer = timer
        state = Mutex(CMOSState(layout: layout, now: wallClock()))
    }

    public init(
        restoring saved: CMOSRTCSavedState, layout: PhysicalMemoryMap, line: any InterruptLine,
        wallClock: @escaping @Sendable () -> Duration, timer: (any DeviceTimer)? = nil
    ) throws(SavedStateError) {
        self.line = LineDriver(line)
        self.wallClock = wallClock
        self.timer = timer
        let now = wallClock()
        let restored = try CMOSState(saved, layout: layout, now: now)
        state = Mutex(restored)
        self.line.announce { restored.isLineHigh }
        timer?.arm(at: restored.nextDeadline(now))
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "CMOS clock", base: 0x70, size: 2, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        guard offset < 2 else { return .rejected(.noSuchRegister) }
        // The index register cannot be read back on a PC.
        guard offset == 1 else { return .value(0xFF) }
        return .value(UInt64(changing { $0.readSelected($1) }))
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard width == .byte else { return .rejected(.wrongWidth) }
        guard offset < 2 else { return .rejected(.noSuchRegister) }
        let byte = UInt8(truncatingIfNeeded: value)
        if offset == 0 {
            // Bit 7 is the PC's NMI mask, which nothing here would raise.
            state.withLock { $0.index = byte & 0x7F }
        } else {
            changing { $0.writeSelected(byte, $1) }
        }
        return .done
    }

    /// The deadline that `timer` was armed with has come.
    public func timerFired() {
        changing { $0.noticeEvents($1) }
    }

    public func save() -> CMOSRTCSavedState {
        state.withLock { CMOSRTCSavedState($0) }
    }

    @discardableResult
    private func changing<Result: Sendable>(_ body: (inout CMOSState, Duration) -> Result) -> Result {
        let now = wallClock()
        let (result, deadline) = state.withLock { state in
            let result = body(&state, now)
            return (result, timer == nil ? nil : state.nextDeadline(now))
        }
        line.update { state.withLock { $0.isLineHigh } }
        timer?.arm(at: deadline)
        return result
    }
}
