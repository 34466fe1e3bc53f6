import Host
import Testing

@Suite struct TokenBucketTests {
    private static let second: UInt64 = 1_000_000_000

    /// A burst at once, then the rate.
    @Test func burstThenRate() {
        var bucket = TokenBucket(rate: 100, burst: 10)
        var now = 5 * Self.second
        var taken = 0
        let end = now + 3 * Self.second
        while now < end {
            let wait = bucket.take(1, nowNanoseconds: now)
            if wait == 0 { taken += 1 } else { now += wait }
        }
        // 3 seconds at 100, the burst, and the one that may go into debt.
        #expect((310...312).contains(taken))
    }

    @Test func oneLargeRequestPassesAndThoseAfterItWait() {
        var bucket = TokenBucket(rate: 1000, burst: 10)
        #expect(bucket.take(5000, nowNanoseconds: 0) == 0)
        #expect(bucket.take(1, nowNanoseconds: 0) == 5 * Self.second - Self.second / 100)
        #expect(bucket.take(1, nowNanoseconds: 5 * Self.second) == 0)
    }

    @Test func smallAmountsAtHighRatesAreNotFree() {
        // 3 bytes a nanosecond: each byte alone costs no whole nanosecond.
        var bucket = TokenBucket(rate: 3 * Self.second, burst: 0)
        var taken = 0
        while bucket.take(1, nowNanoseconds: 1) == 0, taken < 100 { taken += 1 }
        #expect(taken == 3)
    }

    @Test func whatIsGivenBackCanBeTakenAgain() {
        var bucket = TokenBucket(rate: 10, burst: 0)
        #expect(bucket.take(10, nowNanoseconds: 1) == 0)
        #expect(bucket.take(1, nowNanoseconds: 1) > 0)
        bucket.giveBack(10)
        #expect(bucket.take(1, nowNanoseconds: 1) == 0)
    }

    @Test(arguments: [(UInt64.max, UInt64.max), (1, .max), (.max, 0), (1, 0)])
    func extremes(rate: UInt64, burst: UInt64) {
        var bucket = TokenBucket(rate: rate, burst: burst)
        for now: UInt64 in [0, 1, .max] {
            _ = bucket.take(.max, nowNanoseconds: now)
            _ = bucket.take(1, nowNanoseconds: now)
            bucket.giveBack(.max)
        }
    }

    @Test func bothLimitsHold() {
        var limiter = TrafficLimits(bandwidth: 1000, operations: 10, burst: 1000, operationsBurst: 1).makeLimiter()
        #expect(limiter.take(bytes: 1, nowNanoseconds: 1) == 0)
        #expect(limiter.take(bytes: 1, nowNanoseconds: 1) == 0)
        #expect(limiter.take(bytes: 1, nowNanoseconds: 1) == Self.second / 10)
        var bytes = TrafficLimits(bandwidth: 1000, burst: 0).makeLimiter()
        #expect(bytes.take(bytes: 500, nowNanoseconds: 1) == 0)
        #expect(bytes.take(bytes: 1, nowNanoseconds: 1) == Self.second / 2)
        #expect(TrafficLimits().makeLimiter().isUnlimited)
    }

    @Test func limitsAsWritten() throws {
        var limits = TrafficLimits()
        #expect(try limits.set("bandwidth", to: "10M"))
        #expect(try limits.set("operations", to: "1000"))
        #expect(try limits.set("burst", to: "1G"))
        #expect(try limits.set("operations-burst", to: "2k"))
        #expect(try !limits.set("colour", to: "2k"))
        #expect(limits == TrafficLimits(bandwidth: 10 << 20, operations: 1000, burst: 1 << 30, operationsBurst: 2048))
        for text in ["", "0", "M", "-1", "1T", "99999999999999999999", "99999999999999G", "1.5M"] {
            #expect(throws: TrafficLimitError(key: "burst", value: text)) { try limits.set("burst", to: text[...]) }
        }
    }
}
