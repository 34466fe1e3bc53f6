import GuestMemory
import Testing
import X86

@testable import Platform

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct ACPITests {
    private let tables = ACPITables.build(
        ACPIConfiguration(
            cpuCount: 3, serialPorts: [.com1, .com2], pciSlots: [1, 2, 31],
            highPCIWindow: 0x8_0000_0000..<0x10_0000_0000))

    private func table(_ signature: String) throws -> (address: GuestPhysicalAddress, bytes: [UInt8]) {
        try #require(tables.blobs.first { $0.bytes.starts(with: Array(signature.utf8)) })
    }

    @Test(arguments: ["DSDT", "FACP", "APIC", "MCFG", "XSDT", "RSDT"])
    func tableSumsToZero(signature: String) throws {
        let bytes = try table(signature).bytes
        #expect(bytes.reduce(0, &+) == 0)
        #expect(bytes.number(UInt32.self, 4) == UInt32(bytes.count))
    }

    @Test func rootPointerLeadsToEveryTable() throws {
        let root = try table("RSD PTR ")
        #expect(root.address == tables.rsdp && root.address.rawValue % 16 == 0)
        #expect(root.bytes[..<20].reduce(0, &+) == 0 && root.bytes.reduce(0, &+) == 0)
        let xsdt = try table("XSDT")
        let rsdt = try table("RSDT")
        #expect(root.bytes.number(UInt64.self, 24) == xsdt.address.rawValue)
        #expect(UInt64(root.bytes.number(UInt32.self, 16)) == rsdt.address.rawValue)
        let expected = try ["FACP", "APIC", "MCFG"].map { try table($0).address.rawValue }
        #expect([36, 44, 52].map { xsdt.bytes.number(UInt64.self, $0) } == expected)
        #expect([36, 40, 44].map { UInt64(rsdt.bytes.number(UInt32.self, $0)) } == expected)
    }

    @Test func fadtPointsToTheFixedHardware() throws {
        let fadt = try table("FACP").bytes
        #expect(fadt.count == 276 && fadt[8] == 6)
        #expect(UInt64(fadt.number(UInt32.self, 36)) == (try table("FACS").address.rawValue))
        #expect(fadt.number(UInt64.self, 140) == (try table("DSDT").address.rawValue))
        #expect([56, 64, 76].map { fadt.number(UInt32.self, $0) } == [0x600, 0x604, 0x608])
        #expect(fadt.number(UInt16.self, 46) == 9)
        #expect(fadt[116..<120] == [1, 8, 0, 1] && fadt.number(UInt64.self, 120) == 0xCF9 && fadt[128] == 6)
        #expect(fadt.number(UInt32.self, 48) == 0, "no SMI command port: ACPI mode from the start")
        #expect(fadt.number(UInt32.self, 112) & (1 << 20) == 0, "not hardware-reduced")
    }

    @Test func madtListsTheInterruptControllers() throws {
        let madt = try table("APIC").bytes
        var entries: [[UInt8]] = []
        var offset = 44
        while offset < madt.count {
            entries.append(Array(madt[offset..<offset + Int(madt[offset + 1])]))
            offset += Int(madt[offset + 1])
        }
        #expect(
            entries == [
                [0, 8, 0, 0, 1, 0, 0, 0], [0, 8, 1, 1, 1, 0, 0, 0], [0, 8, 2, 2, 1, 0, 0, 0],
                [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
                [2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0], [4, 6, 0xFF, 0, 0, 1],
            ])
    }

    /// PCI Firmware 3.2 §4.1.2.
    @Test func mcfgSaysWhereConfigurationSpaceIs() throws {
        let mcfg = try table("MCFG").bytes
        #expect(mcfg.count == 60 && mcfg.number(UInt64.self, 44) == 0xE000_0000)
        #expect(mcfg.number(UInt16.self, 52) == 0 && mcfg[54] == 0 && mcfg[55] == 0xFF)
    }

    @Test(
        arguments: [(0, 0, 16), (1, 0, 17), (1, 3, 20), (7, 0, 23), (8, 0, 16), (31, 3, 18)] as [(UInt8, Int, UInt32)])
    func interruptPinsTakeTurns(slot: UInt8, pin: Int, gsi: UInt32) {
        #expect(PCIInterruptRouting.gsi(slot: slot, pin: pin) == gsi)
    }

    @Test(
        arguments: [
            (1 << 30, 46, 32 << 30), (64 << 30, 46, 96 << 30), (1 << 30, 32, nil), (1 << 30, 35, nil),
            (1 << 30, 36, 32 << 30), (1 << 40, 52, 1056 << 30),
        ] as [(UInt64, Int, UInt64?)])
    func highWindowIsAboveRAM(memory: UInt64, bits: Int, base: UInt64?) throws {
        let window = PCIMemoryLayout.highWindow(
            above: try PhysicalMemoryMap(memorySize: memory), physicalAddressBits: bits)
        #expect(window?.lowerBound == base)
    }

    @Test func tablesFitWhereABIOSHasThem() throws {
        let large = ACPITables.build(
            ACPIConfiguration(cpuCount: 254, serialPorts: SerialPort.allCases, pciSlots: Array(1...31)))
        let sorted = large.blobs.sorted { $0.address < $1.address }
        for (blob, next) in zip(sorted, sorted.dropFirst()) {
            #expect(blob.address.rawValue + UInt64(blob.bytes.count) <= next.address.rawValue)
        }
        let memory = try makeMemory(PhysicalMemoryMap(memorySize: 2 << 20))
        try large.write(to: memory)
        #expect(try memory.read(count: 8, at: large.rsdp) == Array("RSD PTR ".utf8))
    }

    @Test(
        arguments: [
            (AML.integer(0), [0]), (AML.integer(1), [1]), (AML.integer(0x80), [0x0A, 0x80]),
            (AML.integer(0x1234), [0x0B, 0x34, 0x12]), (AML.integer(0x1_0000), [0x0C, 0, 0, 1, 0]),
            (AML.eisaID("PNP0501"), [0x0C, 0x41, 0xD0, 0x05, 0x01]), (AML.path("\\_S5"), Array("\\_S5_".utf8)),
            (AML.sized([1, 2]), [3, 1, 2]),
            (Array(AML.sized([UInt8](repeating: 0, count: 63)).prefix(2)), [0x41, 0x04]),
            (Array(AML.sized([UInt8](repeating: 0, count: 4093)).prefix(3)), [0x4F, 0xFF, 0]),
            (Array(AML.sized([UInt8](repeating: 0, count: 4094)).prefix(3)), [0x81, 0x00, 0x01]),
        ] as [([UInt8], [UInt8])])
    func amlEncoding(bytes: [UInt8], expected: [UInt8]) {
        #expect(bytes == expected)
    }

    private static let disassembler = "/usr/bin/iasl"

    @Test(.enabled(if: access(ACPITests.disassembler, X_OK) == 0, "needs iasl (package acpica-tools)"))
    func iaslUnderstandsEveryTable() throws {
        var template = Array("/tmp/martlet-acpi-XXXXXX".utf8CString)
        _ = try #require(template.withUnsafeMutableBufferPointer { mkdtemp($0.baseAddress!) })
        let directory = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
        defer { _ = run(["/bin/rm", "-r", directory]) }
        for signature in ["DSDT", "FACP", "APIC", "MCFG"] {
            let path = "\(directory)/\(signature).aml"
            let file = try #require(fopen(path, "w"))
            let bytes = try table(signature).bytes
            #expect(fwrite(bytes, 1, bytes.count, file) == bytes.count)
            fclose(file)
            #expect(run([Self.disassembler, "-d", path]) == 0)
        }
        // What was disassembled must also compile again, without errors.
        #expect(run([Self.disassembler, "\(directory)/DSDT.dsl"]) == 0)
    }

    private func run(_ arguments: [String]) -> Int32 {
        var process: pid_t = 0
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        guard posix_spawn(&process, arguments[0], &actions, nil, &pointers, environ) == 0 else { return -1 }
        var status: Int32 = 0
        return waitpid(process, &status, 0) == process ? status : -1
    }
}
