public import GuestMemory
public import X86

/// What the ACPI tables say about a machine.
public struct ACPIConfiguration: Equatable, Sendable {
    /// 1–254: each CPU's APIC ID is its number, in eight bits.
    public var cpuCount: Int
    public var serialPorts: [SerialPort]
    public var hasPVPanic: Bool
    /// The device numbers on bus 0 that have interrupt pins.
    public var pciSlots: [UInt8]
    /// Where 64-bit base addresses may go above RAM.
    public var highPCIWindow: Range<UInt64>?

    public init(
        cpuCount: Int, serialPorts: [SerialPort] = [.com1], hasPVPanic: Bool = true, pciSlots: [UInt8] = [],
        highPCIWindow: Range<UInt64>? = nil
    ) {
        precondition((1...254).contains(cpuCount))
        self.pciSlots = pciSlots
        self.highPCIWindow = highPCIWindow
        self.cpuCount = cpuCount
        self.serialPorts = serialPorts
        self.hasPVPanic = hasPVPanic
    }
}

/// The board as ACPI 6.5 tables, laid out in the reserved 128 KiB below 1 MiB where a BIOS has them.
public struct ACPITables: Sendable {
    static let base: UInt64 = 0xE0000
    static let end: UInt64 = 0x100000

    /// What boot_params, hvm_start_info and a search below 1 MiB find: the same for every machine.
    public static let rootPointer = GuestPhysicalAddress(base)
    public var rsdp: GuestPhysicalAddress { Self.rootPointer }
    public private(set) var blobs: [(address: GuestPhysicalAddress, bytes: [UInt8])] = []

    public static func build(_ configuration: ACPIConfiguration) -> ACPITables {
        ACPITables(configuration)
    }

    public func write(to memory: GuestMemory) throws(GuestMemoryFault) {
        for (address, bytes) in blobs { try memory.write(bytes, at: address) }
    }

    private init(_ configuration: ACPIConfiguration) {
        // RSDP comes first and has a known size; what it points to is placed behind it.
        var next = Self.base + 64
        func place(_ bytes: [UInt8], into blobs: inout [(address: GuestPhysicalAddress, bytes: [UInt8])]) -> UInt64 {
            let address = next
            blobs.append((GuestPhysicalAddress(address), bytes))
            // FACS must be aligned to 64 bytes (ACPI 6.5 §5.2.10); so is everything.
            next = (address + UInt64(bytes.count) + 63) & ~63
            precondition(next <= Self.end)
            return address
        }
        let facs = place(Self.facs(), into: &blobs)
        let dsdt = place(Self.table("DSDT", revision: 2, body: DSDT.body(configuration)), into: &blobs)
        let fadt = place(Self.fadt(facs: facs, dsdt: dsdt), into: &blobs)
        let madt = place(Self.madt(cpuCount: configuration.cpuCount), into: &blobs)
        let mcfg = place(Self.mcfg(), into: &blobs)
        var long: [UInt8] = []
        var short: [UInt8] = []
        for address in [fadt, madt, mcfg] {
            long.append(littleEndian: address)
            short.append(littleEndian: UInt32(address))
        }
        let xsdt = place(Self.table("XSDT", revision: 1, body: long), into: &blobs)
        let rsdt = place(Self.table("RSDT", revision: 1, body: short), into: &blobs)
        blobs.append((rsdp, Self.rsdp(xsdt: xsdt, rsdt: UInt32(rsdt))))
    }

    private static let oemID = "MARTLT"

    /// A table with the header of ACPI 6.5 §5.2.6, whose checksum makes the sum of all bytes zero.
    static func table(_ signature: String, revision: UInt8, body: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(signature, width: 4)
        bytes.append(littleEndian: UInt32(36 + body.count))
        bytes += [revision, 0]
        bytes.append(oemID, width: 6)
        bytes.append("MARTLET", width: 8, padding: UInt8(ascii: " "))
        bytes.append(littleEndian: UInt32(1))
        bytes.append("MRTL", width: 4)
        bytes.append(littleEndian: UInt32(1))
        bytes += body
        bytes[9] = checksum(bytes[...])
        return bytes
    }

    static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }

    /// §5.2.5.3, with a checksum for its first 20 bytes and one for all 36.
    private static func rsdp(xsdt: UInt64, rsdt: UInt32) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append("RSD PTR ", width: 8)
        bytes.append(0)
        bytes.append(oemID, width: 6)
        bytes.append(2)
        bytes.append(littleEndian: rsdt)
        bytes.append(littleEndian: UInt32(36))
        bytes.append(littleEndian: xsdt)
        bytes += [0, 0, 0, 0]
        bytes[8] = checksum(bytes[..<20])
        bytes[32] = checksum(bytes[...])
        return bytes
    }

    /// §5.2.10: no waking vector, no global lock, and no checksum.
    private static func facs() -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append("FACS", width: 4)
        bytes.append(littleEndian: UInt32(64))
        bytes += [UInt8](repeating: 0, count: 56)
        bytes[32] = 2
        return bytes
    }

    /// §5.2.12: local APICs, one I/O APIC, and how the ISA interrupts differ from GSIs.
    private static func madt(cpuCount: Int) -> [UInt8] {
        var body: [UInt8] = []
        body.append(littleEndian: UInt32(0xFEE0_0000))
        body.append(littleEndian: UInt32(1))  // PCAT_COMPAT: there are 8259s too
        for cpu in 0..<cpuCount {
            body += [0, 8, UInt8(cpu), UInt8(cpu)]
            body.append(littleEndian: UInt32(1))  // enabled
        }
        body += [1, 12, 0, 0]  // the I/O APIC's ID register is 0 at reset
        body.append(littleEndian: UInt32(0xFEC0_0000))
        body.append(littleEndian: UInt32(0))
        body += sourceOverride(irq: 0, gsi: 2, flags: 0)  // the timer, as every PC wires it
        body += sourceOverride(irq: UInt8(PowerManagementBlock.sci), gsi: 9, flags: 0x000D)  // level, active high
        body += [4, 6, 0xFF, 0, 0, 1]  // LINT1 is NMI on every CPU
        return table("APIC", revision: 5, body: body)
    }

    /// Where configuration space is in memory (PCI Firmware 3.2 §4.1.2): segment 0 with all its buses.
    private static func mcfg() -> [UInt8] {
        var body = [UInt8](repeating: 0, count: 8)
        body.append(littleEndian: PCIMemoryLayout.configurationBase)
        body.append(littleEndian: UInt16(0))
        body += [0, PCIMemoryLayout.lastBus, 0, 0, 0, 0]
        return table("MCFG", revision: 1, body: body)
    }

    private static func sourceOverride(irq: UInt8, gsi: UInt32, flags: UInt16) -> [UInt8] {
        var bytes: [UInt8] = [2, 10, 0, irq]
        bytes.append(littleEndian: gsi)
        bytes.append(littleEndian: flags)
        return bytes
    }
}
