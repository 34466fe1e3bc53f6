internal import CHost
internal import Testing

@testable import SoftKVM

/// The first nanosecond of tick `ticks` after a load at `start`.
private func time(_ ticks: UInt64, after start: UInt64 = 0) -> UInt64 {
    start + PITChannel.nanoseconds(forTicks: ticks)
}

private func pit(control: UInt8, count: UInt16, at now: UInt64 = 0) -> PIT8254 {
    var pit = PIT8254(hasSpeakerPort: true)
    pit.write(port: 0x43, control, at: now)
    let port = UInt16(0x40 + control >> 6)
    pit.write(port: port, UInt8(truncatingIfNeeded: count), at: now)
    pit.write(port: port, UInt8(count >> 8), at: now)
    return pit
}

extension PIT8254 {
    fileprivate mutating func readWord(_ port: UInt16, at now: UInt64) -> UInt16 {
        let low = UInt16(read(port: port, at: now))
        return low | UInt16(read(port: port, at: now)) << 8
    }
}

@Suite struct PITTests {
    struct Point: Sendable {
        var mode: UInt8
        var count: UInt16
        var ticks: UInt64
        var current: UInt16
        var output: Bool
    }

    /// Counting element and OUT after some ticks (8254, "Mode definitions").
    @Test(arguments: [
        Point(mode: 0, count: 100, ticks: 0, current: 100, output: false),
        Point(mode: 0, count: 100, ticks: 60, current: 40, output: false),
        Point(mode: 0, count: 100, ticks: 100, current: 0, output: true),
        Point(mode: 0, count: 100, ticks: 101, current: 0xffff, output: true),
        Point(mode: 0, count: 0, ticks: 65535, current: 1, output: false),
        Point(mode: 2, count: 100, ticks: 0, current: 100, output: true),
        Point(mode: 2, count: 100, ticks: 99, current: 1, output: false),
        Point(mode: 2, count: 100, ticks: 100, current: 100, output: true),
        Point(mode: 2, count: 100, ticks: 250, current: 50, output: true),
        Point(mode: 3, count: 100, ticks: 0, current: 100, output: true),
        Point(mode: 3, count: 100, ticks: 49, current: 2, output: true),
        Point(mode: 3, count: 100, ticks: 50, current: 100, output: false),
        Point(mode: 3, count: 100, ticks: 99, current: 2, output: false),
        Point(mode: 3, count: 101, ticks: 50, current: 0, output: true),
        Point(mode: 3, count: 101, ticks: 51, current: 100, output: false),
        Point(mode: 4, count: 100, ticks: 99, current: 1, output: true),
        Point(mode: 4, count: 100, ticks: 100, current: 0, output: false),
        Point(mode: 4, count: 100, ticks: 101, current: 0xffff, output: true),
    ])
    func countAndOutput(_ point: Point) {
        var pit = pit(control: 0x30 | point.mode << 1, count: point.count, at: 5_000)
        let now = time(point.ticks, after: 5_000)
        #expect(pit.channels[0].output(at: now) == point.output)
        pit.write(port: 0x43, 0x00, at: now)
        // The latch keeps the value.
        #expect(pit.readWord(0x40, at: now + 1_000_000) == point.current)
    }

    @Test(arguments: [UInt8(1), 5])
    func triggeredModesStartWithTheGate(mode: UInt8) {
        var pit = pit(control: 0xb0 | mode << 1, count: 100)
        #expect(pit.channels[2].output(at: time(1000)))
        pit.write(port: 0x61, 1, at: time(1000))
        let start = time(1000)
        #expect(pit.channels[2].output(at: start) == (mode == 5))
        #expect(pit.channels[2].currentCount(at: time(30, after: start)) == 70)
        #expect(pit.channels[2].output(at: time(100, after: start)) == (mode == 1))
        // Another trigger starts over.
        pit.write(port: 0x61, 0, at: time(50, after: start))
        pit.write(port: 0x61, 1, at: time(60, after: start))
        #expect(pit.channels[2].currentCount(at: time(70, after: start)) == 90)
    }

    @Test func gateSuspendsModeZero() {
        var pit = pit(control: 0xb0, count: 100)
        // The gate of channel 2 is low after reset.
        #expect(pit.channels[2].currentCount(at: time(5000)) == 100)
        pit.write(port: 0x61, 1, at: time(5000))
        #expect(pit.channels[2].currentCount(at: time(5040)) == 60)
        pit.write(port: 0x61, 0, at: time(5040))
        #expect(pit.channels[2].currentCount(at: time(9000)) == 60)
        pit.write(port: 0x61, 1, at: time(9000))
        #expect(pit.read(port: 0x61, at: time(9059)) & 0x21 == 0x01)
        #expect(pit.read(port: 0x61, at: time(9062)) & 0x21 == 0x21)
    }

    /// How Linux measures the TSC: about 50 ms in mode 0 on channel 2, polled through port 0x61.
    @Test func calibrationLoop() {
        var pit = PIT8254(hasSpeakerPort: true)
        pit.write(port: 0x61, 0x01, at: 0)
        pit.write(port: 0x43, 0xb0, at: 0)
        let ticks = UInt16(PITChannel.frequency / 20)
        pit.write(port: 0x42, UInt8(truncatingIfNeeded: ticks), at: 0)
        pit.write(port: 0x42, UInt8(ticks >> 8), at: 0)
        #expect(pit.read(port: 0x61, at: 49_990_000) & 0x20 == 0)
        #expect(pit.read(port: 0x61, at: 50_010_000) & 0x20 != 0)
    }

    @Test func accessModes() {
        var pit = PIT8254(hasSpeakerPort: false)
        pit.write(port: 0x43, 0x14, at: 0)  // low byte only, mode 2
        pit.write(port: 0x40, 200, at: 0)
        #expect(pit.channels[0].count == 200)
        #expect(pit.read(port: 0x40, at: time(10)) == 190)
        pit.write(port: 0x43, 0x24, at: 0)  // high byte only
        pit.write(port: 0x40, 2, at: 0)
        #expect(pit.channels[0].count == 512)
        #expect(pit.read(port: 0x40, at: time(1)) == 1)
        #expect(!pit.contains(0x61))
    }

    @Test func binaryCodedDecimal() {
        var pit = pit(control: 0x31, count: 0x1234)
        #expect(pit.channels[0].count == 1234)
        #expect(pit.readWord(0x40, at: time(235)) == 0x0999)
        pit = SoftKVMTests.pit(control: 0x31, count: 0)
        #expect(pit.channels[0].count == 10000)
        #expect(pit.readWord(0x40, at: time(1)) == 0x9999)
        // Below zero the decimal counter goes on at 9999.
        pit = SoftKVMTests.pit(control: 0x31, count: 0x10)
        #expect(pit.readWord(0x40, at: time(11)) == 0x9999)
    }

    @Test func readBack() {
        var pit = pit(control: 0x34, count: 1000)
        pit.write(port: 0x43, 0xc2, at: time(100))  // count and status of channel 0
        #expect(pit.read(port: 0x40, at: time(500)) == 0xb4)
        #expect(pit.readWord(0x40, at: time(500)) == 900)
        pit.write(port: 0x43, 0xe8, at: 0)  // status of channel 2: never loaded
        #expect(pit.read(port: 0x42, at: 0) & 0x40 != 0)
    }

    // MARK: Channel 0's interrupt

    @Test func periodicTicks() throws {
        var pit = pit(control: 0x34, count: 11932)  // 10 ms
        #expect(pit.advance(to: 9_990_000) == false)
        let deadline = try #require(pit.nextDeadline)
        #expect((9_999_000...10_002_000).contains(deadline))
        #expect(pit.advance(to: deadline) == true)
        #expect(pit.advance(to: deadline) == false)
        // Not acknowledged: nothing to wait for.
        #expect(pit.nextDeadline == nil)
        #expect(pit.acknowledge() == false)
        #expect(pit.nextDeadline.map { (19_998_000...20_003_000).contains($0) } == true)
    }

    @Test func missedTicksComeAfterTheAcknowledge() {
        var pit = pit(control: 0x34, count: 11932)
        #expect(pit.advance(to: 10_005_000) == true)
        #expect(pit.advance(to: 40_005_000) == false)
        // Four ticks in all, one of them taken.
        #expect(pit.acknowledge() == true)
        #expect(pit.acknowledge() == true)
        #expect(pit.acknowledge() == true)
        #expect(pit.acknowledge() == false)
        #expect(pit.advance(to: 50_005_000) == true)
    }

    @Test func unmaskingForgetsMissedTicks() {
        var pit = pit(control: 0x34, count: 11932)
        #expect(pit.advance(to: 40_005_000) == true)
        pit.forgetMissedTicks()
        #expect(pit.acknowledge() == false)
        #expect(pit.advance(to: 50_005_000) == true)
    }

    @Test(arguments: [UInt8(0), 4])
    func oneShotsTickOnce(mode: UInt8) {
        var pit = pit(control: 0x30 | mode << 1, count: 11932)
        #expect(pit.nextDeadline != nil)
        #expect(pit.advance(to: 10_005_000) == true)
        _ = pit.acknowledge()
        #expect(pit.nextDeadline == nil)
        #expect(pit.advance(to: 1_000_000_000) == false)
    }

    @Test func shortPeriodsAreLimited() {
        let pit = pit(control: 0x34, count: 2)
        #expect(pit.nextDeadline.map { $0 >= 200_000 } == true)
    }

    @Test func savedStateRestartsCounters() {
        var original = pit(control: 0x34, count: 11932)
        original.write(port: 0x61, 3, at: 0)
        let state = original.savedState
        #expect(state.channels.0.count == 11932)
        #expect(state.channels.0.mode == 2)
        #expect(state.channels.0.rw_mode == 3)
        #expect(state.channels.2.gate == 1)
        #expect(state.flags == UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON))
        let restored = PIT8254(hasSpeakerPort: true, restoring: state, at: 1_000_000)
        #expect(restored.channels[0].currentCount(at: time(932, after: 1_000_000)) == 11000)
        #expect(restored.channels[2].gate)
        #expect(!restored.channels[1].isRunning)
    }
}
