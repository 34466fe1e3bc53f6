import DeviceModel
import Fuzzing
import Testing

@testable import Platform

@Suite struct I8042Tests {
    private let line = RecordingLine()
    private let resets = Recorder<Bool>()
    private let controller: I8042

    init() {
        let resets = resets
        controller = I8042(line: line) { resets.append(true) }
    }

    private func command(_ value: UInt64) { controller.store(value, 4) }

    @Test(
        arguments: [
            (0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01), (0xC0, 0x80), (0xD0, 0x03), (0x20, 0x30),
        ] as [(UInt64, UInt64)])
    func commandAnswersAtOnce(value: UInt64, answer: UInt64) {
        command(value)
        #expect(controller.load(4) & 0x01 == 0x01)
        #expect(controller.load(0) == answer)
        #expect(controller.load(4) & 0x01 == 0)
    }

    @Test(arguments: [(0xFE, 1), (0xF0, 1), (0xFF, 0), (0xF1, 0), (0xAA, 0)] as [(UInt64, Int)])
    func pulseResets(value: UInt64, expected: Int) {
        command(value)
        #expect(resets.count == expected)
    }

    @Test func outputPortResets() {
        command(0xD1)
        controller.store(0x03, 0)
        #expect(resets.count == 0)
        command(0xD1)
        controller.store(0x02, 0)
        #expect(resets.count == 1)
    }

    /// drivers/input/serio/i8042.c: the AUX loop and test fail at once, and a keyboard command times out at once.
    @Test func probingDriverFindsNoDevices() {
        command(0xD3)
        controller.store(0x5A, 0)
        #expect(controller.load(4) & 0x21 == 0x21)
        #expect(controller.load(0) != 0x5A)
        command(0x60)
        controller.store(0x01, 0)
        controller.store(0xF2, 0)
        #expect(line.level)
        #expect(controller.load(4) & 0x41 == 0x41)
        #expect(controller.load(0) == 0xFE)
        #expect(line.level == false)
    }

    @Test func attachesAroundPort61() throws {
        var bus = Bus()
        for attachment in controller.attachments { try bus.attach(attachment) }
        #expect(bus.write(at: 0x64, width: .byte, value: 0xAA))
        #expect(bus.read(at: 0x60, width: .byte) == 0x55)
        #expect(bus.read(at: 0x61, width: .byte) == 0xFF)
    }

    @Test func savedStateContinues() throws {
        command(0xAA)
        command(0x60)
        let restored = try I8042(
            restoring: I8042SavedState(encoded: controller.save().encoded()), line: line, onReset: {})
        #expect(restored.save() == controller.save())
        #expect(restored.load(0) == 0x55)
    }

    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) {
            #expect(controller.endureRandomAccesses(seed: seed, span: 6), "seed \(seed)")
            for _ in 0..<I8042State.outputLimit { _ = controller.load(0) }
            #expect(controller.load(4) & 0x01 == 0, "the output queue is bounded")
        }
    }
}

@Suite struct SmallDeviceTests {
    @Test func portAResetsWhenItsBitRises() throws {
        let resets = Recorder<Bool>()
        let port = SystemControlPortA { resets.append(true) }
        #expect(port.load(0) == 0x02)
        port.store(0x03, 0)
        port.store(0x03, 0)
        #expect(resets.count == 1)
        let restored = SystemControlPortA(restoring: port.save()) { resets.append(true) }
        restored.store(0x03, 0)
        #expect(resets.count == 1)
    }

    @Test(
        arguments: [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 0x01), (0xFFFF_FFFF, 0xFF)] as [(UInt64, Int32)])
    func debugExitComputesTheStatus(value: UInt64, status: Int32) {
        let statuses = Recorder<Int32>()
        let device = ISADebugExit(base: 0x501, size: 2) { statuses.append($0) }
        #expect(device.attachments[0].base == 0x501 && device.attachments[0].size == 2)
        device.store(value, 0, .double)
        #expect(statuses.values == [status])
    }

    @Test func guestStatusKeepsTheLastByte() throws {
        let statuses = Recorder<UInt8>()
        let port = GuestStatusPort { statuses.append($0) }
        #expect(port.status == nil)
        port.store(0xA5, 0)
        port.store(3, 0)
        port.store(4, 0, .word)
        #expect(port.status == 3 && port.load(0) == 3)
        #expect(statuses.values == [0xA5, 3])
        let state = try GuestStatusPortSavedState(encoded: port.save().encoded())
        #expect(GuestStatusPort(restoring: state).status == 3)
    }

    @Test func panicPortTellsItsEvents() {
        let events = Recorder<PVPanic.Event>()
        let port = PVPanic { events.append($0) }
        #expect(port.load(0) == 0x03)
        for value in [0, 1, 2, 4] as [UInt64] { port.store(value, 0) }
        #expect(events.values == [.panicked, .crashLoaded])
    }

    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) {
            #expect(SystemControlPortA {}.endureRandomAccesses(seed: seed, count: 2000, span: 3))
            #expect(ISADebugExit { _ in }.endureRandomAccesses(seed: seed, count: 2000, span: 6))
            #expect(GuestStatusPort().endureRandomAccesses(seed: seed, count: 2000, span: 3))
            #expect(PVPanic { _ in }.endureRandomAccesses(seed: seed, count: 2000, span: 3))
        }
    }
}

@Suite struct PCIHostBridgeTests {
    private let resets = Recorder<Bool>()
    private let bridge: PCIHostBridge

    init() {
        let resets = resets
        bridge = PCIHostBridge { resets.append(true) }
    }

    @Test(
        arguments: [
            (0x8000_0000, 4, .double, 0x29C0_8086), (0x8000_0000, 4, .word, 0x8086), (0x8000_0000, 6, .word, 0x29C0),
            (0x8000_0008, 7, .byte, 0x06), (0x8000_000C, 6, .byte, 0x00), (0x8000_0010, 4, .double, 0),
            (0x8000_0800, 4, .double, 0xFFFF_FFFF), (0x8000_0100, 4, .double, 0xFFFF_FFFF),
            (0x8001_0000, 4, .word, 0xFFFF), (0x0000_0000, 4, .double, 0xFFFF_FFFF),
        ] as [(UInt64, UInt64, AccessWidth, UInt64)])
    func configurationRead(address: UInt64, offset: UInt64, width: AccessWidth, expected: UInt64) {
        bridge.store(address, 0, .double)
        #expect(bridge.load(offset, width) == expected)
    }

    /// arch/x86/pci/direct.c, pci_check_type1().
    @Test func linuxFindsMechanism1() {
        bridge.store(0x01, 3)
        bridge.store(0x8000_0000, 0, .double)
        #expect(bridge.load(0, .double) == 0x8000_0000)
        bridge.store(0xFFFF_FFFF, 4, .double)
        #expect(bridge.load(4, .double) == 0x29C0_8086, "read-only")
    }

    @Test(
        arguments: [([0x06], 1), ([0x02, 0x06], 1), ([0x02], 0), ([0x04, 0x04], 1), ([0x0E, 0x00, 0x0E], 2)]
            as [([UInt64], Int)])
    func resetControl(writes: [UInt64], expected: Int) {
        for value in writes { bridge.store(value, 1) }
        #expect(resets.count == expected)
        #expect(bridge.load(0, .double) == 0, "the address register only takes 32 bits")
    }

    @Test func savedStateContinues() throws {
        bridge.store(0x8000_0008, 0, .double)
        let restored = try PCIHostBridge(
            restoring: PCIHostBridgeSavedState(encoded: bridge.save().encoded()), onReset: {})
        #expect(restored.load(4, .double) == 0x0600_0000)
    }

    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) {
            #expect(bridge.endureRandomAccesses(seed: seed), "seed \(seed)")
            #expect(bridge.load(0, .double) & 0x7F00_0003 == 0)
        }
    }
}

@Suite struct ACPIPowerManagementTests {
    private let line = RecordingLine()
    private let clock = TestClock(.seconds(1000))
    private let powerOffs = Recorder<Bool>()
    private let device: ACPIPowerManagement

    init() {
        let (clock, powerOffs) = (clock, powerOffs)
        device = ACPIPowerManagement(
            sciLine: line, monotonicClock: { clock.now }, onPowerOff: { powerOffs.append(true) })
    }

    @Test func timerCountsAtItsFrequency() {
        #expect(device.load(8, .double) == 0)
        clock.advance(by: .seconds(1))
        #expect(device.load(8, .double) == 3_579_545)
        clock.advance(by: .milliseconds(500))
        #expect(device.load(8, .double) == 5_369_317)
        clock.advance(by: .seconds(1200))
        #expect(device.load(8, .double) == (5_369_317 + 1200 * 3_579_545) % (1 << 32))
    }

    @Test(
        arguments: [
            (0x3400, 1), (0x3401, 1), (0x1400, 0), (0x2000, 0), (0x2400, 0), (0x3C00, 0),
        ] as [(UInt64, Int)])
    func sleepControl(value: UInt64, expected: Int) {
        device.store(value, 4, .word)
        #expect(powerOffs.count == expected)
        #expect(device.load(4, .word) == value & 0x1C02 | 1, "SCI_EN stays, SLP_EN reads as 0")
    }

    @Test func powerButtonRaisesSCI() {
        device.pressPowerButton()
        #expect(line.levels.isEmpty)
        device.store(0x0100, 2, .word)
        #expect(line.level)
        #expect(device.load(0, .word) == 0x0100)
        device.store(0x0100, 0, .word)
        #expect(line.level == false)
        #expect(device.load(0, .double) == 0x0100_0000)
    }

    @Test func savedStateContinues() throws {
        device.store(0x0100, 2, .word)
        clock.advance(by: .seconds(3))
        let later = TestClock(.seconds(5))
        let restored = try ACPIPowerManagement(
            restoring: ACPIPowerManagementSavedState(encoded: device.save().encoded()), sciLine: line,
            monotonicClock: { later.now }, onPowerOff: {})
        #expect(restored.load(8, .double) == 3 * 3_579_545)
        #expect(restored.load(2, .word) == 0x0100)
    }

    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) {
            #expect(device.endureRandomAccesses(seed: seed, span: 18), "seed \(seed)")
            #expect(device.load(4, .word) & 0x2001 == 1)
        }
    }
}
