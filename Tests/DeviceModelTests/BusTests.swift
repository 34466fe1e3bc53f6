import Synchronization
import Testing

@testable import DeviceModel

private final class Echo: BusDevice {
    let last = Mutex<(UInt64, UInt64)>((0, 0))

    func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        offset < 4 ? .value(0x1122_3344_5566_7700 | offset) : .rejected(.noSuchRegister)
    }

    func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        last.withLock { $0 = (offset, value) }
        return .done
    }
}

@Suite struct BusTests {
    @Test func attachedDeviceGetsOffsets() throws {
        var bus = Bus()
        let device = Echo()
        try bus.attach(BusAttachment(name: "echo", base: 0x10, size: 8, device: device))
        #expect(bus.read(at: 0x12, width: .word) == 0x7702)
        #expect(bus.read(at: 0x14, width: .word) == 0xFFFF, "rejected")
        #expect(bus.read(at: 0x18, width: .byte) == 0xFF, "nobody there")
        #expect(bus.write(at: 0x17, width: .byte, value: 0x1FF))
        #expect(device.last.withLock { $0 } == (7, 0xFF))
        #expect(!bus.write(at: 0x0F, width: .byte, value: 0))
    }

    @Test(arguments: [(0x0F, 2), (0x10, 1), (0x17, 1), (0x08, 0x100), (0x20, 0)] as [(UInt64, UInt64)])
    func overlapIsAConflict(base: UInt64, size: UInt64) throws {
        var bus = Bus()
        try bus.attach(Echo(), named: "first", at: 0x10, size: 8)
        #expect(throws: BusConflict(name: "second", base: base, size: size)) {
            try bus.attach(Echo(), named: "second", at: base, size: size)
        }
    }

    @Test func windowShiftsOffsets() {
        let device = Echo()
        let window = BusWindow(device, startingAt: 3)
        #expect(window.read(offset: 0, width: .byte) == .value(0x1122_3344_5566_7703))
        #expect(window.read(offset: .max, width: .byte) == .value(0x1122_3344_5566_7702))
        _ = window.write(offset: 1, width: .byte, value: 5)
        #expect(device.last.withLock { $0 } == (4, 5))
    }
}

private final class Levels: InterruptLine {
    let history = Mutex<[Bool]>([])
    func setLevel(_ level: Bool) { history.withLock { $0.append(level) } }
}

@Suite struct LineDriverTests {
    @Test func onlyChangesReachTheLine() {
        let levels = Levels()
        let driver = LineDriver(levels)
        for level in [false, true, true, false, false, true] { driver.update { level } }
        driver.announce { true }
        #expect(levels.history.withLock { $0 } == [true, false, true, true])
    }
}

@Suite struct RateLimiterTests {
    @Test func burstThenOnePerInterval() {
        var limiter = RateLimiter(burst: 2, interval: .seconds(1))
        func ask(_ milliseconds: Int) -> Bool { limiter.allows(now: .milliseconds(milliseconds)) }
        #expect([0, 0, 0, 999].map(ask) == [true, true, false, false])
        #expect(limiter.suppressed == 2)
        #expect([1000, 1000, 2500, 2500, 3000].map(ask) == [true, false, true, false, true])
        #expect([100_000, 100_000, 100_000].map(ask) == [true, true, false])
    }
}
