internal import CHost
internal import Host

/// The host's time-stamp counter: its rate, measured once per process against CLOCK_MONOTONIC.
enum TimestampCounter {
    /// Both clocks, as close to each other as the host lets us read them.
    static func sample() -> HostInstant {
        var best = HostInstant(nanoseconds: 0, tsc: 0)
        var narrowest = UInt64.max
        // An interrupt or a stolen time slice between the readings shows as a wide bracket.
        for _ in 0..<16 {
            let before = alu_rdtsc()
            let nanoseconds = HostClock.monotonicNanoseconds
            let width = alu_rdtsc() &- before
            if width < narrowest {
                narrowest = width
                best = HostInstant(nanoseconds: nanoseconds, tsc: before &+ width / 2)
            }
        }
        return best
    }

    static var now: HostInstant {
        let nanoseconds = HostClock.monotonicNanoseconds
        return HostInstant(nanoseconds: nanoseconds, tsc: alu_rdtsc())
    }

    /// The start of the measurement; touching it early makes `frequency` free later.
    static let origin = sample()

    /// Counts per second. The bracket is some 50 ns wide, so 20 ms give a few millionths.
    static let frequency: UInt64 = {
        let first = origin
        let until = first.nanoseconds &+ 20_000_000
        let start = HostClock.monotonicNanoseconds
        if start < until { HostClock.sleep(nanoseconds: until - start) }
        let last = sample()
        return frequency(from: first, to: last)
    }()

    static func frequency(from first: HostInstant, to last: HostInstant) -> UInt64 {
        let elapsed = last.nanoseconds.saturatingSubtract(first.nanoseconds)
        guard elapsed > 0, last.tsc > first.tsc else { return 1_000_000_000 }
        return max(1_000_000, (last.tsc - first.tsc).scaled(by: 1_000_000_000, over: elapsed))
    }
}
