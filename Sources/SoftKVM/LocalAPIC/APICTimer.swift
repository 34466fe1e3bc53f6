/// The local APIC's timer (SDM vol. 3A §11.5.4). Its bus clock is 1 GHz, as KVM's: one count before division is 1 ns.
struct APICTimer: Equatable, Sendable {
    enum Mode: UInt32 {
        case oneShot = 0
        case periodic = 1
        case tscDeadline = 2
        /// A reserved encoding: the timer stands still.
        case reserved = 3
    }

    /// Shorter periods of a guest would only load the host; KVM's min_timer_period_us.
    static let minimumPeriod: UInt64 = 200_000

    var mode = Mode.oneShot
    var initialCount: UInt32 = 0
    var divideConfiguration: UInt32 = 0
    /// IA32_TSC_DEADLINE, in guest TSC units.
    var tscDeadline: UInt64 = 0
    /// When to look again: the exact time in the counting modes, an estimate in TSC-deadline mode.
    var expiry: UInt64?

    /// guest TSC = host TSC + offset.
    var tscOffset: UInt64 = 0
    let tscFrequency: UInt64

    init(tscFrequency: UInt64) { self.tscFrequency = max(1, tscFrequency) }

    /// SDM vol. 3A figure 11-10: bits 0, 1 and 3; 111b divides by 1.
    var divisor: UInt64 {
        let bits = divideConfiguration & 3 | (divideConfiguration & 8) >> 1
        return 1 << UInt64((bits + 1) & 7)
    }

    private var length: UInt64 {
        let nanoseconds = UInt64(initialCount) * divisor
        return mode == .periodic ? max(nanoseconds, Self.minimumPeriod) : nanoseconds
    }

    func currentCount(at now: HostInstant) -> UInt32 {
        guard initialCount != 0, let expiry, mode == .oneShot || mode == .periodic else { return 0 }
        var left: UInt64
        if expiry > now.nanoseconds {
            left = expiry - now.nanoseconds
        } else if mode == .periodic {
            left = length - (now.nanoseconds - expiry) % length
        } else {
            return 0
        }
        left = (left + divisor - 1) / divisor
        return UInt32(truncatingIfNeeded: min(left, UInt64(initialCount)))
    }

    mutating func setInitialCount(_ count: UInt32, at now: HostInstant) {
        // SDM vol. 3A §11.5.4.1: ignored in TSC-deadline mode.
        guard mode != .tscDeadline else { return }
        initialCount = count
        expiry = count == 0 || mode == .reserved ? nil : now.nanoseconds.saturatingAdd(length)
    }

    /// A count that is running keeps its value and goes on at the new rate.
    mutating func setDivideConfiguration(_ value: UInt32, at now: HostInstant) {
        let left = currentCount(at: now)
        divideConfiguration = value & 0xb
        if expiry != nil, left != 0 { expiry = now.nanoseconds.saturatingAdd(UInt64(left) * divisor) }
    }

    /// A counter saved in the middle goes on from there.
    mutating func resume(atCount count: UInt32, now: HostInstant) {
        guard initialCount != 0, mode == .oneShot || mode == .periodic else { return }
        guard count != 0 || mode == .periodic else { return expiry = nil }
        expiry = now.nanoseconds.saturatingAdd(min(UInt64(count) * divisor, length))
    }

    /// Switching to or from TSC-deadline mode disarms (SDM vol. 3A §11.5.4.1).
    mutating func setMode(_ newMode: Mode, at now: HostInstant) {
        guard newMode != mode else { return }
        let stops = mode == .tscDeadline || newMode == .tscDeadline || newMode == .reserved
        mode = newMode
        if stops { stop() }
    }

    mutating func stop() {
        expiry = nil
        initialCount = 0
        tscDeadline = 0
    }

    mutating func setTSCDeadline(_ deadline: UInt64, at now: HostInstant) {
        guard mode == .tscDeadline else { return }
        tscDeadline = deadline
        expiry = deadline == 0 ? nil : estimatedExpiry(at: now)
    }

    private func estimatedExpiry(at now: HostInstant) -> UInt64 {
        let guestTSC = now.tsc &+ tscOffset
        let left = tscDeadline.saturatingSubtract(guestTSC).scaled(by: 1_000_000_000, over: tscFrequency)
        return now.nanoseconds.saturatingAdd(left)
    }

    mutating func setTSCOffset(_ offset: UInt64, at now: HostInstant) {
        guard offset != tscOffset else { return }
        tscOffset = offset
        if mode == .tscDeadline, tscDeadline != 0 { expiry = estimatedExpiry(at: now) }
    }

    /// True: the timer expired since the last call.
    mutating func advance(to now: HostInstant) -> Bool {
        guard let due = expiry else { return false }
        if mode == .tscDeadline {
            guard now.tsc &+ tscOffset >= tscDeadline else {
                // The estimate was early: the two clocks do not run at exactly the assumed ratio.
                if due <= now.nanoseconds { expiry = max(estimatedExpiry(at: now), now.nanoseconds.saturatingAdd(1)) }
                return false
            }
            stop()
            return true
        }
        guard due <= now.nanoseconds else { return false }
        if mode == .periodic {
            let period = length
            expiry = due.saturatingAdd(((now.nanoseconds - due) / period + 1).multipliedFullWidth(by: period).low)
        } else {
            expiry = nil
        }
        return true
    }
}
