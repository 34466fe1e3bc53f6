internal import CHost
internal import Testing

@testable import SoftKVM

@Suite struct ClockTests {
    /// (ticks << shift) * multiplier >> 32 against exact arithmetic, over a day.
    @Test(
        arguments: [
            1_000_000, 33_333_333, 999_999_999, 1_000_000_000, 1_000_000_001, 1_995_312_345, 2_600_000_000,
            3_700_123_456,
            6_000_000_000,
        ] as [UInt64])
    func scale(frequency: UInt64) {
        let scale = ParavirtualClock.Scale(tscFrequency: frequency)
        #expect(scale.multiplier >> 31 == 1)
        for seconds in [0, 1, 60, 86_400] as [UInt64] {
            let nanoseconds = scale.nanoseconds(forTicks: seconds * frequency)
            let exact = seconds * 1_000_000_000
            let error = nanoseconds > exact ? nanoseconds - exact : exact - nanoseconds
            // 32 significant bits.
            #expect(error <= exact >> 31 + 1)
        }
    }

    @Test func timeInfoPage() {
        var clock = ParavirtualClock(
            startingAt: HostInstant(nanoseconds: 5, tsc: 1_000_000), tscFrequency: 2_000_000_000)
        clock.set(0x1122_3344, at: HostInstant(nanoseconds: 9, tsc: 0x0102_0304))
        let page = clock.timeInfo(version: 6, tscOffset: 0 &- 4)
        let expected: [UInt8] =
            [6, 0, 0, 0, 0, 0, 0, 0] + [0, 3, 2, 1, 0, 0, 0, 0] + [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]
            // 2 GHz: ns = (ticks >> 0) * 0x80000000 >> 32, that is 2^31 and shift 0.
            + [0, 0, 0, 0x80] + [0, 1, 0, 0]
        #expect(page == expected)
    }

    @Test func clockFollowsTheTSC() {
        let clock = ParavirtualClock(startingAt: HostInstant(nanoseconds: 0, tsc: 500), tscFrequency: 2_000_000_000)
        #expect(clock.nanoseconds(atHostTSC: 500) == 0)
        #expect(clock.nanoseconds(atHostTSC: 2_000_000_500) == 1_000_000_000)
        #expect(clock.nanoseconds(atHostTSC: 3) == 0)
    }

    @Test func wallClockPage() {
        let page = ParavirtualClock.wallClock(version: 2, realtime: 1_700_000_000_250_000_000, clock: 250_000_001)
        // 1 699 999 999 s and 999 999 999 ns.
        #expect(page == [2, 0, 0, 0, 0xff, 0xf0, 0x53, 0x65, 0xff, 0xc9, 0x9a, 0x3b])
    }

    @Test func frequencyFromSamples() {
        let first = HostInstant(nanoseconds: 1_000, tsc: 10_000)
        let last = HostInstant(nanoseconds: 20_001_000, tsc: 10_000 + 52_000_000)
        #expect(TimestampCounter.frequency(from: first, to: last) == 2_600_000_000)
        // Clocks that do not move give something harmless.
        #expect(TimestampCounter.frequency(from: first, to: first) == 1_000_000_000)
    }

    /// The measured rate predicts later readings.
    @Test func measuredFrequencyHolds() {
        let frequency = TimestampCounter.frequency
        let first = TimestampCounter.sample()
        while TimestampCounter.now.nanoseconds < first.nanoseconds + 50_000_000 {}
        let last = TimestampCounter.sample()
        let predicted = (last.tsc - first.tsc).scaled(by: 1_000_000_000, over: frequency)
        let elapsed = last.nanoseconds - first.nanoseconds
        let error = predicted > elapsed ? predicted - elapsed : elapsed - predicted
        #expect(error < elapsed / 1000)
    }

    @Test(
        arguments: [
            (10, 3, 2, 15), (UInt64.max, 1, 1, UInt64.max), (UInt64.max, 1_000_000_000, 1, UInt64.max),
            (UInt64.max, 1_193_182, 1_000_000_000, 22_010_322_987_356_910), (0, 5, 1, 0),
        ] as [(UInt64, UInt64, UInt64, UInt64)])
    func scaledArithmetic(value: UInt64, numerator: UInt64, denominator: UInt64, result: UInt64) {
        #expect(value.scaled(by: numerator, over: denominator) == result)
    }

    @Test func paravirtualLeaves() throws {
        let entries = CPUIDLeaves.complete(
            [kvm_cpuid_entry2(leaf: 0, eax: 4), kvm_cpuid_entry2(leaf: 1)], tscFrequency: 2_599_999_600)
        func leaf(_ number: UInt32) throws -> kvm_cpuid_entry2 {
            try #require(entries.first { $0.function == number })
        }
        #expect(try leaf(0).eax == 6)
        #expect(try leaf(1).ecx == 1 << 21 | 1 << 24 | 1 << 31)
        #expect(try leaf(1).edx == 1 << 9)
        #expect(try leaf(6).eax == 4)
        #expect(try leaf(0x8000_0007).edx == 1 << 8)
        let signature = try leaf(0x4000_0000)
        let text = [signature.ebx, signature.ecx, signature.edx].flatMap { word in
            (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32($0 * 8)) }
        }
        #expect(text == Array("KVMKVMKVM".utf8) + [0, 0, 0])
        #expect(try leaf(0x4000_0001).eax == 0x0100_000b)
        #expect(try leaf(0x4000_0010).eax == 2_600_000)
    }
}
