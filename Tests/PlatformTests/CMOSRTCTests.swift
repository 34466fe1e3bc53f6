import DeviceModel
import Fuzzing
import Testing

@testable import Platform

@Suite struct CMOSRTCTests {
    /// 2024-02-29 13:05:09 UTC, a Thursday.
    private let clock = TestClock(.seconds(1_709_211_909) + .milliseconds(100))
    private let line = RecordingLine()
    private let timer = RecordingTimer()
    private let rtc: CMOSRTC

    init() throws {
        let clock = clock
        rtc = CMOSRTC(
            layout: try PhysicalMemoryMap(memorySize: 6 << 30), line: line, wallClock: { clock.now }, timer: timer)
    }

    private func register(_ index: UInt64) -> UInt64 {
        rtc.store(index, 0)
        return rtc.load(1)
    }

    private func set(_ index: UInt64, _ value: UInt64) {
        rtc.store(index, 0)
        rtc.store(value, 1)
    }

    @Test(
        arguments: [
            // Seconds, minutes, hours, weekday, day, month, year, century; B: format
            (0x02, [0x09, 0x05, 0x13, 5, 0x29, 0x02, 0x24, 0x20]), (0x06, [9, 5, 13, 5, 29, 2, 24, 20]),
            (0x00, [0x09, 0x05, 0x81, 5, 0x29, 0x02, 0x24, 0x20]), (0x04, [9, 5, 0x81, 5, 29, 2, 24, 20]),
        ] as [(UInt64, [UInt64])])
    func timeInEveryFormat(format: UInt64, expected: [UInt64]) {
        set(0x0B, format)
        #expect([0, 2, 4, 6, 7, 8, 9, 0x32].map(register) == expected)
    }

    @Test(
        arguments: [
            (0x15, 0x80), (0x16, 0x02), (0x17, 0xFF), (0x18, 0xFF), (0x30, 0xFF), (0x31, 0xFF),
            // 3 GiB - 16 MiB = 0xBF00 units of 64 KiB; 3 GiB above 4 GiB = 0xC000
            (0x34, 0x00), (0x35, 0xBF), (0x5B, 0x00), (0x5C, 0xC0), (0x5D, 0x00), (0x0D, 0x80), (0x0A, 0x26),
        ] as [(UInt64, UInt64)])
    func cmosByte(index: UInt64, expected: UInt64) {
        #expect(register(index) == expected)
    }

    @Test func updateInProgressRisesBeforeTheSecond() {
        #expect(register(0x0A) & 0x80 == 0)
        clock.advance(by: .microseconds(899_800))
        #expect(register(0x0A) & 0x80 == 0x80)
        clock.advance(by: .microseconds(300))
        #expect(register(0x0A) & 0x80 == 0)
        #expect(register(0) == 0x10)
    }

    @Test func guestSetsTheClock() {
        set(0x0B, 0x86)
        for (index, value) in [(0, 58), (2, 59), (4, 23), (7, 31), (8, 12), (9, 99), (0x32, 19)] as [(UInt64, UInt64)] {
            set(index, value)
        }
        clock.advance(by: .seconds(10))
        #expect(register(0) == 58, "SET holds the clock")
        set(0x0B, 0x06)
        clock.advance(by: .seconds(2))
        #expect([0, 2, 4, 7, 8, 9, 0x32].map(register) == [0, 0, 0, 1, 1, 0, 20])
    }

    @Test func updateInterrupt() {
        set(0x0A, 0x20)
        _ = register(0x0C)
        set(0x0B, 0x12)
        #expect(timer.deadline == .seconds(1_709_211_910))
        clock.advance(by: .seconds(1))
        rtc.timerFired()
        #expect(line.level)
        #expect(register(0x0C) == 0x90)
        #expect(line.level == false)
        #expect(register(0x0C) == 0)
    }

    @Test func alarmInterrupt() {
        set(0x0A, 0x20)
        _ = register(0x0C)
        set(0x05, 0x13)
        set(0x03, 0x06)
        set(0x01, 0x30)
        set(0x0B, 0x22)
        #expect(timer.deadline == .seconds(1_709_211_990))
        clock.advance(by: .seconds(80))
        #expect(register(0x0C) == 0x10, "updates set their flag, but ask for nothing")
        clock.advance(by: .seconds(1))
        rtc.timerFired()
        #expect(line.level)
        #expect(register(0x0C) == 0xB0)
    }

    @Test func periodicInterrupt() {
        set(0x0A, 0x2F)  // 2 Hz
        _ = register(0x0C)
        set(0x0B, 0x42)
        #expect(timer.deadline == .seconds(1_709_211_909) + .milliseconds(500))
        clock.advance(by: .milliseconds(400))
        rtc.timerFired()
        #expect(register(0x0C) == 0xC0)
    }

    @Test func calendarIsItsOwnInverse() {
        for seconds in stride(from: Int64(-70_000_000_000), to: 260_000_000_000, by: 123_456_789) {
            #expect(CalendarTime(secondsSince1970: seconds).secondsSince1970 == seconds)
        }
    }

    @Test func savedStateContinues() throws {
        set(0x0B, 0x86)
        set(0x09, 77)
        set(0x40, 0xAB)
        let clock = clock
        let restored = try CMOSRTC(
            restoring: CMOSRTCSavedState(encoded: rtc.save().encoded()),
            layout: PhysicalMemoryMap(memorySize: 6 << 30), line: line, wallClock: { clock.now })
        #expect(restored.save() == rtc.save())
        restored.store(9, 0)
        #expect(restored.load(1) == 77)
    }

    @Test func randomAccesses() throws {
        for seed in FuzzSeeds(count: 4) {
            var random = SeededGenerator(seed: seed)
            let clock = clock
            let rtc = CMOSRTC(layout: try PhysicalMemoryMap(memorySize: 1 << 30), line: line, wallClock: { clock.now })
            for _ in 0..<2000 {
                rtc.store(random.next() % 14, 0)
                if random.next() & 1 == 0 { _ = rtc.load(1) } else { rtc.store(random.next() & 0xFF, 1) }
                clock.advance(by: .milliseconds(Int64(random.next() % 3000)))
            }
            #expect(rtc.endureRandomAccesses(seed: seed, count: 2000, span: 3), "seed \(seed)")
            rtc.store(0x0D, 0)
            #expect(rtc.load(1) == 0x80)
        }
    }
}
