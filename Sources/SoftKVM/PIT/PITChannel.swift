/// One counter of the 8254 (Intel 231164-005). Nothing ticks: count and output follow from the time since the load.
struct PITChannel: Equatable, Sendable {
    /// The PC's 14.31818 MHz crystal over 12.
    static let frequency: UInt64 = 1_193_182

    enum Access: UInt8 {
        case low = 1
        case high = 2
        case word = 3
    }

    /// Where a 16-bit access stands; the raw values are KVM's.
    enum ByteState: UInt8 {
        case low = 1
        case high = 2
        case wordLow = 3
        case wordHigh = 4

        init(starting access: Access) { self = Self(rawValue: access.rawValue) ?? .wordLow }
    }

    /// 1–65536 (or 10000 in BCD).
    var count: UInt32 = 65536
    var mode: UInt8 = 0
    var isBCD = false
    var access = Access.word
    var readState = ByteState.wordLow
    var writeState = ByteState.wordLow
    var writeLatch: UInt8 = 0
    var latchedCount: UInt16 = 0
    /// Bytes of the latched count still to be read: 0 none, else like `Access`.
    var latchedBytes: UInt8 = 0
    var latchedStatus: UInt8?
    var gate: Bool
    /// Counting since `loadTime`; false after a control word until there is a count (modes 1, 5: until a trigger).
    var isRunning = false
    var isLoaded = false
    var loadTime: UInt64 = 0
    /// When the gate fell, while it is low in a mode where that suspends counting.
    var suspendedAt: UInt64?

    init(gate: Bool) { self.gate = gate }

    static func ticks(inNanoseconds nanoseconds: UInt64) -> UInt64 {
        nanoseconds.scaled(by: frequency, over: 1_000_000_000)
    }

    /// The first nanosecond at which `ticks` have passed.
    static func nanoseconds(forTicks ticks: UInt64) -> UInt64 {
        ticks.scaled(by: 1_000_000_000, over: frequency).saturatingAdd(1)
    }

    func elapsedTicks(at now: UInt64) -> UInt64 {
        Self.ticks(inNanoseconds: (suspendedAt ?? now).saturatingSubtract(loadTime))
    }

    /// The counting element, as a number (8254, "Mode definitions").
    func currentCount(at now: UInt64) -> UInt32 {
        guard isRunning else { return count & 0xffff }
        let full = UInt64(count)
        let elapsed = elapsedTicks(at: now)
        switch mode {
        case 2: return UInt32(truncatingIfNeeded: full - elapsed % full)
        case 3: return UInt32(truncatingIfNeeded: full - (elapsed &* 2) % full) & ~1
        default:
            // Counts on through zero, in the counter's own radix.
            let modulus: UInt64 = isBCD ? 10000 : 65536
            return UInt32(truncatingIfNeeded: (full &+ modulus &- elapsed % modulus) % modulus)
        }
    }

    func output(at now: UInt64) -> Bool {
        guard isRunning else { return mode != 0 }
        let full = UInt64(count)
        let elapsed = elapsedTicks(at: now)
        switch mode {
        case 0, 1: return elapsed >= full
        case 2: return !gate || full < 2 || elapsed % full != full - 1
        case 3: return !gate || elapsed % full < (full + 1) / 2
        default: return elapsed != full
        }
    }

    private func encoded(_ value: UInt32) -> UInt16 {
        guard isBCD else { return UInt16(truncatingIfNeeded: value) }
        let digits = value % 10000
        let high = (digits / 1000) << 12 | (digits / 100 % 10) << 8
        return UInt16(truncatingIfNeeded: high | (digits / 10 % 10) << 4 | digits % 10)
    }

    private func decoded(_ value: UInt16) -> UInt32 {
        guard isBCD else { return value == 0 ? 65536 : UInt32(value) }
        let raw = UInt32(value)
        let number = (raw >> 12 & 15) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + raw & 15
        return number == 0 ? 10000 : number
    }

    // MARK: Commands

    mutating func control(access newAccess: Access, mode bits: UInt8, isBCD bcd: Bool) {
        access = newAccess
        readState = ByteState(starting: newAccess)
        writeState = ByteState(starting: newAccess)
        // Bit 2 of the mode is "don't care" for modes 2 and 3.
        mode = bits & 7 > 5 ? bits & 3 : bits & 7
        isBCD = bcd
        isRunning = false
        isLoaded = false
        suspendedAt = nil
        latchedBytes = 0
        latchedStatus = nil
    }

    mutating func latchCount(at now: UInt64) {
        guard latchedBytes == 0 else { return }
        latchedCount = encoded(currentCount(at: now))
        latchedBytes = access.rawValue
    }

    mutating func latchStatus(at now: UInt64) {
        guard latchedStatus == nil else { return }
        latchedStatus =
            (output(at: now) ? 0x80 : 0) | (isLoaded ? 0 : 0x40) | access.rawValue << 4 | mode << 1 | (isBCD ? 1 : 0)
    }

    mutating func read(at now: UInt64) -> UInt8 {
        if let status = latchedStatus {
            latchedStatus = nil
            return status
        }
        if latchedBytes != 0 { return readLatched() }
        let value = encoded(currentCount(at: now))
        let (low, high) = (UInt8(truncatingIfNeeded: value), UInt8(truncatingIfNeeded: value >> 8))
        switch readState {
        case .low: return low
        case .high: return high
        case .wordLow:
            readState = .wordHigh
            return low
        case .wordHigh:
            readState = .wordLow
            return high
        }
    }

    private mutating func readLatched() -> UInt8 {
        if latchedBytes == Access.word.rawValue {
            latchedBytes = Access.high.rawValue
            return UInt8(truncatingIfNeeded: latchedCount)
        }
        let isLow = latchedBytes == Access.low.rawValue
        latchedBytes = 0
        return UInt8(truncatingIfNeeded: isLow ? latchedCount : latchedCount >> 8)
    }

    /// A byte of the count. True: a new count is in force.
    mutating func write(_ value: UInt8, at now: UInt64) -> Bool {
        switch writeState {
        case .low: load(UInt16(value), at: now)
        case .high: load(UInt16(value) << 8, at: now)
        case .wordLow:
            writeLatch = value
            writeState = .wordHigh
            // The first byte stops mode 0 (8254, "Mode 0").
            if mode == 0 { isRunning = false }
            return mode == 0
        case .wordHigh:
            writeState = .wordLow
            load(UInt16(value) << 8 | UInt16(writeLatch), at: now)
        }
        return true
    }

    private mutating func load(_ value: UInt16, at now: UInt64) {
        count = decoded(value)
        isLoaded = true
        // Modes 1 and 5 wait for a trigger.
        if mode == 1 || mode == 5 { return }
        start(at: now)
    }

    private mutating func start(at now: UInt64) {
        isRunning = true
        loadTime = now
        suspendedAt = gate ? nil : now
    }

    mutating func setGate(_ level: Bool, at now: UInt64) {
        guard level != gate else { return }
        gate = level
        switch mode {
        case 1, 5: if level, isLoaded { start(at: now) }
        case 2, 3:
            if level, isLoaded { start(at: now) } else if isRunning { suspendedAt = now }
        default:
            guard isRunning else { return }
            if level {
                loadTime = loadTime.saturatingAdd(now.saturatingSubtract(suspendedAt ?? now))
                suspendedAt = nil
            } else {
                suspendedAt = now
            }
        }
    }
}
