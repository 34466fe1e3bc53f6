import DeviceModel
import Fuzzing
import GuestMemory
import Testing
import X86

@testable import Platform

@Suite struct FirmwareConfigurationTests {
    private let memory: GuestMemory
    private let device: FirmwareConfiguration

    init() throws {
        let layout = try PhysicalMemoryMap(memorySize: 4 << 20)
        memory = try makeMemory(layout)
        device = FirmwareConfiguration(
            memory: memory,
            contents: .init(
                layout: layout, cpuCount: 3, initrd: [9, 8, 7], commandLine: "quiet",
                files: [FirmwareFile(name: "opt/test", bytes: [1, 2, 3, 4])]))
    }

    private func bytes(of key: UInt64, count: Int) -> [UInt8] {
        device.store(key, 0, .word)
        return (0..<count).map { _ in UInt8(truncatingIfNeeded: device.load(1)) }
    }

    /// Runs one descriptor at `at`, and returns its control field afterwards.
    private func dma(_ control: UInt32, _ length: UInt32, _ address: UInt64, at descriptor: UInt64 = 0x1000) throws
        -> UInt32
    {
        try memory.store(control.byteSwapped, at: GuestPhysicalAddress(descriptor))
        try memory.store(length.byteSwapped, at: GuestPhysicalAddress(descriptor + 4))
        try memory.store(address.byteSwapped, at: GuestPhysicalAddress(descriptor + 8))
        start(descriptor)
        return try memory.load(UInt32.self, at: GuestPhysicalAddress(descriptor)).byteSwapped
    }

    private func start(_ descriptor: UInt64) {
        device.store(UInt64(UInt32(truncatingIfNeeded: descriptor >> 32).byteSwapped), 4, .double)
        device.store(UInt64(UInt32(truncatingIfNeeded: descriptor).byteSwapped), 8, .double)
    }

    @Test(
        arguments: [
            (0x00, Array("QEMU".utf8)), (0x01, [3, 0, 0, 0]), (0x03, [0, 0, 0x40, 0, 0, 0, 0, 0]), (0x05, [3, 0]),
            (0x0F, [3, 0]), (0x0B, [3, 0, 0, 0]), (0x12, [9, 8, 7, 0]), (0x14, [6, 0, 0, 0]),
            (0x15, Array("quiet\0".utf8)), (0x21, [1, 2, 3, 4, 0]), (0x7777, [0, 0]), (0x4000, Array("QEMU".utf8)),
        ] as [(UInt64, [UInt8])])
    func item(key: UInt64, expected: [UInt8]) {
        #expect(bytes(of: key, count: expected.count) == expected)
    }

    @Test func directoryNamesTheFiles() {
        let directory = bytes(of: 0x19, count: 4 + 2 * 64)
        #expect(directory[0..<4] == [0, 0, 0, 2])
        #expect(directory[4..<12] == [0, 0, 0, 80, 0, 0x20, 0, 0])
        #expect(directory[12..<21].elementsEqual(Array("etc/e820\0".utf8)))
        #expect(directory[68..<76] == [0, 0, 0, 4, 0, 0x21, 0, 0])
        let e820 = bytes(of: 0x20, count: 60)
        #expect(e820.number(UInt64.self, 8) == 0xA0000 && e820.number(UInt32.self, 36) == 2)
    }

    @Test func dmaPortsShowTheirSignature() {
        #expect(device.load(4, .double) == 0x554D_4551)
        #expect(device.load(8, .double) == 0x4746_4320)
    }

    @Test func dmaReadsSelectsAndSkips() throws {
        #expect(try dma(0x0021_000A, 6, 0x2000) == 0)
        #expect(try memory.read(count: 6, at: GuestPhysicalAddress(0x2000)) == [1, 2, 3, 4, 0, 0])
        #expect(try dma(0x0021_000C, 2, 0) == 0)
        #expect(try dma(0x0000_0002, 1, 0x2000) == 0)
        #expect(try memory.load(UInt8.self, at: GuestPhysicalAddress(0x2000)) == 3)
    }

    @Test(
        arguments: [
            ("target outside RAM", 0x0000_000A, 4, 0xFFFF_FFFF_FFFF_FFFE), ("target in the hole", 0xA, 4, 0xC000_0000),
            ("length beyond RAM", 0xA, 0xFFFF_FFFF, 0x10_0000), ("write", 0x10, 4, 0x2000),
            ("end of RAM", 0xA, 2, 0x3F_FFFF),
        ] as [(String, UInt32, UInt32, UInt64)])
    func hostileDescriptorGetsTheErrorBit(name: String, control: UInt32, length: UInt32, address: UInt64) throws {
        #expect(try dma(control, length, address) == 1)
        #expect(bytes(of: 0, count: 4) == Array("QEMU".utf8), "and the device goes on")
    }

    @Test(arguments: [0xFFFF_FFFF_FFFF_FFF8, 0x3F_FFFC, 0xC000_0000] as [UInt64])
    func descriptorOutsideRAMIsDropped(address: UInt64) {
        start(address)
        #expect(bytes(of: 0, count: 4) == Array("QEMU".utf8))
    }

    @Test func savedStateContinues() throws {
        _ = bytes(of: 0, count: 2)
        let restored = FirmwareConfiguration(
            restoring: try FirmwareConfigurationSavedState(encoded: device.save().encoded()), memory: memory,
            contents: .init(layout: try PhysicalMemoryMap(memorySize: 4 << 20), cpuCount: 3))
        #expect(restored.load(1) == UInt64(UInt8(ascii: "M")))
    }

    @Test func randomDescriptors() throws {
        for seed in FuzzSeeds(count: 4) {
            var random = SeededGenerator(seed: seed)
            #expect(device.endureRandomAccesses(seed: seed, count: 2000, span: 13), "seed \(seed)")
            for _ in 0..<200 {
                let descriptor = random.next() % 0x10_0000 &+ 0x20_0000
                let control =
                    UInt32(truncatingIfNeeded: random.next() % 64) | UInt32(truncatingIfNeeded: random.next() % 64)
                    << 16
                let length = UInt32(truncatingIfNeeded: random.next() >> (random.next() % 32 + 32))
                let result = try dma(control, length, random.next() % 0x40_0000, at: descriptor)
                // The transfer may have overwritten its own descriptor.
                if length < 0x1000, control & 2 == 0 { #expect(result <= 1) }
            }
        }
    }
}
