internal import DeviceModel

/// The clock and its CMOS as software sees them.
struct CMOSState: Sendable {
    var index: UInt8 = 0
    /// Registers and CMOS bytes as written; the time registers are computed from the clock instead.
    var bytes = [UInt8](repeating: 0, count: 128)
    /// What the guest's clock is ahead of the host's.
    var offset = Duration.zero
    /// The guest's time while it is held still, field by field: February 31 may stand there while the month is yet to
    /// be written.
    var frozenTime: CalendarTime?
    /// Interrupt flags of register C.
    var flags: UInt8 = 0
    /// The guest's time up to which events have been noticed.
    var lastCheck: Duration

    var registerB: UInt8 { bytes[Int(CMOSRegister.b)] }
    var isHalted: Bool {
        registerB & CMOSRegisterB.set != 0
            || bytes[Int(CMOSRegister.a)] & CMOSRegisterA.dividerMask != CMOSRegisterA.runningDivider
    }
    var isLineHigh: Bool { flags & registerB & CMOSRegisterC.sources != 0 }

    init(layout: PhysicalMemoryMap, now: Duration) {
        lastCheck = now
        bytes[Int(CMOSRegister.a)] = CMOSRegisterA.reset
        bytes[Int(CMOSRegister.b)] = CMOSRegisterB.hours24
        store(640, at: CMOSRegister.baseMemory, count: 2)
        let extended = min((layout.lowEnd - PhysicalMemoryMap.extendedBase) >> 10, 0xFFFF)
        store(extended, at: CMOSRegister.extendedMemory, count: 2)
        store(extended, at: CMOSRegister.extendedMemoryCopy, count: 2)
        let above16MiB: UInt64 = layout.lowEnd > 16 << 20 ? min((layout.lowEnd - (16 << 20)) >> 16, 0xFFFF) : 0
        store(above16MiB, at: CMOSRegister.memoryAbove16MiB, count: 2)
        store(min(layout.highSize >> 16, 0xFF_FFFF), at: CMOSRegister.memoryAbove4GiB, count: 3)
    }

    private mutating func store(_ value: UInt64, at register: UInt8, count: Int) {
        for index in 0..<count {
            bytes[Int(register) + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
        }
    }

    func guestTime(_ now: Duration) -> Duration { now + offset }

    private func time(_ now: Duration) -> CalendarTime {
        frozenTime ?? CalendarTime(secondsSince1970: guestTime(now).components.seconds)
    }

    // MARK: Number formats

    private func encode(_ value: Int) -> UInt8 {
        let value = max(0, min(value, 99))
        return UInt8(registerB & CMOSRegisterB.binary != 0 ? value : (value / 10) << 4 | value % 10)
    }

    private func decode(_ byte: UInt8) -> Int {
        registerB & CMOSRegisterB.binary != 0 ? Int(byte) : Int(byte >> 4) * 10 + Int(byte & 0xF)
    }

    private func encodeHour(_ hour: Int) -> UInt8 {
        guard registerB & CMOSRegisterB.hours24 == 0 else { return encode(hour) }
        return encode((hour + 11) % 12 + 1) | (hour >= 12 ? 0x80 : 0)
    }

    private func decodeHour(_ byte: UInt8) -> Int {
        guard registerB & CMOSRegisterB.hours24 == 0 else { return decode(byte) }
        return decode(byte & 0x7F) % 12 + (byte & 0x80 != 0 ? 12 : 0)
    }

    // MARK: Registers

    mutating func readSelected(_ now: Duration) -> UInt8 {
        let register = index & 0x7F
        let time = time(now)
        switch register {
        case CMOSRegister.seconds: return encode(time.second)
        case CMOSRegister.minutes: return encode(time.minute)
        case CMOSRegister.hours: return encodeHour(time.hour)
        case CMOSRegister.dayOfWeek: return encode(time.dayOfWeek)
        case CMOSRegister.dayOfMonth: return encode(time.day)
        case CMOSRegister.month: return encode(time.month)
        case CMOSRegister.year: return encode((time.year % 100 + 100) % 100)
        case CMOSRegister.century: return encode(time.year / 100)
        case CMOSRegister.a:
            return bytes[Int(register)] | (isUpdateInProgress(now) ? CMOSRegisterA.updateInProgress : 0)
        case CMOSRegister.c:
            noticeEvents(now)
            defer { flags = 0 }
            return flags | (isLineHigh ? CMOSRegisterC.interruptRequest : 0)
        case CMOSRegister.d: return CMOSRegisterD.validRAMAndTime
        default: return bytes[Int(register)]
        }
    }

    /// Register A's UIP rises 244 µs before each update (data sheet, "Update cycle").
    private func isUpdateInProgress(_ now: Duration) -> Bool {
        guard !isHalted else { return false }
        let attoseconds = guestTime(now).components.attoseconds
        return attoseconds >= 999_756_000_000_000_000
    }

    mutating func writeSelected(_ value: UInt8, _ now: Duration) {
        let register = index & 0x7F
        switch register {
        case CMOSRegister.seconds, CMOSRegister.minutes, CMOSRegister.hours, CMOSRegister.dayOfMonth,
            CMOSRegister.month, CMOSRegister.year, CMOSRegister.century:
            setTimeRegister(register, value, now)
        case CMOSRegister.dayOfWeek, CMOSRegister.c, CMOSRegister.d: break
        case CMOSRegister.a: changeControl(CMOSRegister.a, value & ~CMOSRegisterA.updateInProgress, now)
        case CMOSRegister.b: changeControl(CMOSRegister.b, value, now)
        default: bytes[Int(register)] = value
        }
    }

    /// Stopping the clock freezes its time; starting it lets it go on from what the guest wrote in the meantime.
    private mutating func changeControl(_ register: UInt8, _ value: UInt8, _ now: Duration) {
        noticeEvents(now)
        let wasHalted = isHalted
        bytes[Int(register)] = value
        if isHalted, !wasHalted {
            frozenTime = CalendarTime(secondsSince1970: guestTime(now).components.seconds)
        } else if !isHalted, let time = frozenTime {
            setTime(time.secondsSince1970, now)
            frozenTime = nil
        }
    }

    private mutating func setTime(_ seconds: Int64, _ now: Duration) {
        offset = .seconds(seconds) - now
        lastCheck = guestTime(now)
    }

    private mutating func setTimeRegister(_ register: UInt8, _ value: UInt8, _ now: Duration) {
        var time = time(now)
        switch register {
        case CMOSRegister.seconds: time.second = decode(value) % 60
        case CMOSRegister.minutes: time.minute = decode(value) % 60
        case CMOSRegister.hours: time.hour = decodeHour(value) % 24
        case CMOSRegister.dayOfMonth: time.day = max(1, min(decode(value), 31))
        case CMOSRegister.month: time.month = max(1, min(decode(value), 12))
        case CMOSRegister.year: time.year = time.year / 100 * 100 + decode(value) % 100
        default: time.year = decode(value) % 100 * 100 + time.year % 100
        }
        if frozenTime != nil { frozenTime = time } else { setTime(time.secondsSince1970, now) }
    }

    // MARK: Events

    /// Sets the flags of what happened since the last call (data sheet, "Interrupts"): flags rise enabled or not.
    mutating func noticeEvents(_ now: Duration) {
        let time = guestTime(now)
        defer { lastCheck = time }
        guard !isHalted, time > lastCheck else { return }
        let (from, to) = (lastCheck.components.seconds, time.components.seconds)
        if to > from { flags |= CMOSRegisterB.updateInterrupt }
        // A day has every alarm, so there is no need to look at more of a long sleep.
        if to > from, (max(from + 1, to - 86400)...to).contains(where: isAlarm) {
            flags |= CMOSRegisterB.alarmInterrupt
        }
        if let period = periodicInterval, Int64(lastCheck / period) != Int64(time / period) {
            flags |= CMOSRegisterB.periodicInterrupt
        }
    }

    /// Alarm bytes with both high bits set match anything.
    private func isAlarm(_ seconds: Int64) -> Bool {
        let daySeconds = Int((seconds % 86400 + 86400) % 86400)
        func matches(_ register: UInt8, _ encoded: UInt8) -> Bool {
            let alarm = bytes[Int(register)]
            return alarm & 0xC0 == 0xC0 || alarm == encoded
        }
        return matches(CMOSRegister.secondsAlarm, encode(daySeconds % 60))
            && matches(CMOSRegister.minutesAlarm, encode(daySeconds / 60 % 60))
            && matches(CMOSRegister.hoursAlarm, encodeHour(daySeconds / 3600))
    }

    /// Rates 1 and 2 repeat 8 and 9 with this divider (data sheet, table 5).
    private var periodicInterval: Duration? {
        let rate = bytes[Int(CMOSRegister.a)] & CMOSRegisterA.rateMask
        guard rate > 0 else { return nil }
        let shift = rate <= 2 ? rate + 6 : rate - 1
        // 2^shift periods of 32768 Hz: 2^(shift-15) s, in nanoseconds exact to 5^9 · 2^(shift-6).
        return .nanoseconds((1_000_000_000 << Int64(shift)) / 32768)
    }

    /// When, in the host's time, an enabled interrupt is due; nil without one.
    func nextDeadline(_ now: Duration) -> Duration? {
        guard !isHalted else { return nil }
        var deadlines: [Duration] = []
        let second = guestTime(now).components.seconds
        if registerB & CMOSRegisterB.updateInterrupt & ~flags != 0 { deadlines.append(.seconds(second + 1)) }
        if registerB & CMOSRegisterB.alarmInterrupt & ~flags != 0,
            let alarm = (second + 1...second + 86400).first(where: isAlarm)
        {
            deadlines.append(.seconds(alarm))
        }
        if registerB & CMOSRegisterB.periodicInterrupt & ~flags != 0, let period = periodicInterval {
            deadlines.append(period * (Int64(guestTime(now) / period) + 1))
        }
        return deadlines.min().map { $0 - offset }
    }
}
