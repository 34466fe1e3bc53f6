public import DeviceModel

/// The CMOS clock's saved state, version 1. A guest that runs again later finds the clock at the later time, as after
/// a night's sleep, except while the guest holds it still.
public struct CMOSRTCSavedState: DeviceSavedState {
    public static let identifier = "cmos-rtc"
    public static let version: UInt32 = 1

    var index: UInt8
    var bytes: [UInt8]
    var offsetSeconds: Int64
    var offsetAttoseconds: Int64
    /// Year (two bytes), month, day, hour, minute, second; empty while the clock runs.
    var frozenTime: [UInt8]
    var flags: UInt8

    init(_ state: CMOSState) {
        // `lastCheck` is not saved: the time between save and restore raises no interrupts.
        index = state.index
        bytes = state.bytes
        (offsetSeconds, offsetAttoseconds) = state.offset.components
        frozenTime =
            state.frozenTime.map { time in
                let year = UInt16(clamping: time.year)
                let fields = [
                    Int(year & 0xFF), Int(year >> 8), time.month, time.day, time.hour, time.minute, time.second,
                ]
                return fields.map { UInt8(clamping: $0) }
            } ?? []
        flags = state.flags
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(index)
        encoder.write(bytes)
        encoder.write(offsetSeconds)
        encoder.write(offsetAttoseconds)
        encoder.write(frozenTime)
        encoder.write(flags)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        index = try decoder.read()
        bytes = try decoder.readBytes("bytes", limit: 128)
        offsetSeconds = try decoder.read()
        offsetAttoseconds = try decoder.read()
        frozenTime = try decoder.readBytes("frozenTime", limit: 7)
        flags = try decoder.read()
    }
}

extension CMOSState {
    /// Times beyond this (some 30 000 years) come from no clock, and would overflow the calendar.
    private static let timeLimit: Int64 = 1 << 40

    init(_ saved: CMOSRTCSavedState, layout: PhysicalMemoryMap, now: Duration) throws(SavedStateError) {
        func check(_ field: String, _ isValid: Bool) throws(SavedStateError) {
            guard isValid else { throw .invalid(identifier: CMOSRTCSavedState.identifier, field: field) }
        }
        let limits = -Self.timeLimit...Self.timeLimit
        let attosecondLimit: Int64 = 1_000_000_000_000_000_000
        try check("index", saved.index < 128)
        try check("bytes", saved.bytes.count == 128)
        try check("offsetSeconds", limits.contains(saved.offsetSeconds))
        try check("offsetAttoseconds", (-attosecondLimit...attosecondLimit).contains(saved.offsetAttoseconds))
        try check("frozenTime", saved.frozenTime.isEmpty || saved.frozenTime.count == 7)
        try check("flags", saved.flags & ~CMOSRegisterC.sources == 0)
        self.init(layout: layout, now: now)
        index = saved.index
        bytes = saved.bytes
        offset = Duration(secondsComponent: saved.offsetSeconds, attosecondsComponent: saved.offsetAttoseconds)
        let fields = saved.frozenTime.map(Int.init)
        frozenTime =
            fields.isEmpty
            ? nil
            : CalendarTime(
                year: fields[0] | fields[1] << 8, month: max(1, min(fields[2], 12)), day: fields[3], hour: fields[4],
                minute: fields[5], second: fields[6])
        flags = saved.flags
        try check("frozenTime", isHalted == (frozenTime != nil))
        lastCheck = guestTime(now)
    }
}
