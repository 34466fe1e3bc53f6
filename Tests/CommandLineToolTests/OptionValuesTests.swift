internal import Testing
internal import VMM

@testable internal import CommandLineTool

@Suite("Option values")
struct OptionValuesTests {
    @Test(
        "Memory sizes",
        arguments: [
            ("512M", 512 << 20), ("2G", 2 << 30), ("2g", 2 << 30), ("4096K", 4 << 20), ("1GiB", 1 << 30),
            ("512MB", 512 << 20), ("2097152", 2 << 20), ("2097152B", 2 << 20), ("1T", 1 << 40),
        ] as [(String, UInt64)])
    func memory(text: String, bytes: UInt64) throws {
        #expect(try MemorySize.parse(text).bytes == bytes)
    }

    @Test(
        "Memory sizes that are none",
        arguments: [
            "", "0", "1", "M", "-1", "1.5G", "512", "2097153", "99999999999999999999", "18014398509481984K", "5X",
            " 2G",
            "٣M",
        ])
    func badMemory(text: String) {
        #expect(throws: (any Error).self) { try MemorySize.parse(text) }
    }

    @Test(
        "Time spans",
        arguments: [
            ("30s", .seconds(30)), ("30", .seconds(30)), ("5m", .seconds(300)), ("1h", .seconds(3600)),
            ("500ms", .milliseconds(500)),
        ] as [(String, Duration)])
    func timeSpan(text: String, expected: Duration) throws {
        #expect(try TimeSpan.parse(text) == expected)
    }

    @Test("Time spans that are none", arguments: ["", "0", "s", "-1s", "5d", "99999999999999999999s", "999999999h"])
    func badTimeSpan(text: String) {
        #expect(throws: (any Error).self) { try TimeSpan.parse(text) }
    }

    @Test(
        "Devices",
        arguments: [
            ("isa-debug-exit", DebugExitConfiguration()),
            ("isa-debug-exit,iobase=0x501,iosize=1", DebugExitConfiguration(base: 0x501, size: 1)),
            ("isa-debug-exit,iosize=2", DebugExitConfiguration(base: 0xf4, size: 2)),
            ("isa-debug-exit,iobase=244", DebugExitConfiguration()),
        ])
    func device(text: String, expected: DebugExitConfiguration) throws {
        #expect(try DeviceOption.parse(text) == expected)
    }

    @Test(
        "Devices that are none",
        arguments: [
            "", "virtio-blk", "isa-debug-exit,", "isa-debug-exit,iobase", "isa-debug-exit,iobase=0x10000",
            "isa-debug-exit,iosize=3", "isa-debug-exit,iobase=0xffff,iosize=4", "isa-debug-exit,x=1",
        ])
    func badDevice(text: String) {
        #expect(throws: (any Error).self) { try DeviceOption.parse(text) }
    }

    @Test(
        "Times of phases",
        arguments: [
            (Duration.milliseconds(7), "[   0.007 s]"), (.seconds(12) + .milliseconds(345), "[  12.345 s]"),
            (.seconds(12345), "[12345.000 s]"),
        ])
    func phaseTime(time: Duration, expected: String) {
        #expect(EndReport.text(of: time) == expected)
    }
}
