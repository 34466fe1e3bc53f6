public import X86

/// A contiguous range of guest-physical addresses.
public struct GuestPhysicalRange: Equatable, Sendable {
    public var base: GuestPhysicalAddress
    public var size: UInt64

    public init(base: GuestPhysicalAddress, size: UInt64) {
        self.base = base
        self.size = size
    }
}

/// The address range types of ACPI 6.5 §15 table 15.4.
public enum E820Type: UInt32, Sendable {
    case ram = 1
    case reserved = 2
    case acpiReclaimable = 3
    case acpiNonVolatile = 4
    case unusable = 5
}

/// One line of the memory map that a guest gets.
public struct E820Entry: Equatable, Sendable {
    public var base: UInt64
    public var size: UInt64
    public var type: E820Type

    public init(base: UInt64, size: UInt64, type: E820Type) {
        self.base = base
        self.size = size
        self.type = type
    }

    public var end: UInt64 { base &+ size }
}

/// A memory size that no machine can be built with.
public struct MemoryMapError: Error, Equatable, CustomStringConvertible {
    public var memorySize: UInt64

    public var description: String {
        "Cannot give the guest \(memorySize) bytes of memory: it must be a multiple of 4096 between 2 MiB and 1 TiB; "
            + "choose another size, for example --memory 512M"
    }
}

/// Where the machine's RAM is: the one source for host mappings, e820, the PVH and multiboot maps, CMOS and fw_cfg.
///
/// 0–640 KiB is RAM; 640 KiB–1 MiB is backed by RAM but reserved (the ACPI tables and a firmware's copy live there);
/// RAM goes on from 1 MiB to at most 3 GiB, and above that from 4 GiB. Between them is room for PCI, the I/O APIC and
/// the local APICs.
public struct PhysicalMemoryMap: Equatable, Sendable {
    public static let minimumSize: UInt64 = 2 << 20
    public static let maximumSize: UInt64 = 1 << 40
    /// The end of the RAM that conventional memory is.
    public static let conventionalEnd: UInt64 = 0xA0000
    /// Where RAM goes on after the reserved range.
    public static let extendedBase: UInt64 = 0x100000
    /// RAM never reaches further below 4 GiB.
    public static let lowLimit: UInt64 = 0xC000_0000
    public static let highBase: UInt64 = 0x1_0000_0000

    public let memorySize: UInt64

    public init(memorySize: UInt64) throws(MemoryMapError) {
        guard (Self.minimumSize...Self.maximumSize).contains(memorySize), memorySize % 4096 == 0 else {
            throw MemoryMapError(memorySize: memorySize)
        }
        self.memorySize = memorySize
    }

    /// The end of the RAM below 4 GiB.
    public var lowEnd: UInt64 { min(memorySize, Self.lowLimit) }
    /// Bytes of RAM from 4 GiB on.
    public var highSize: UInt64 { memorySize - lowEnd }

    /// One host mapping and one memory slot each.
    public var ramRanges: [GuestPhysicalRange] {
        let low = GuestPhysicalRange(base: GuestPhysicalAddress(0), size: lowEnd)
        guard highSize > 0 else { return [low] }
        return [low, GuestPhysicalRange(base: GuestPhysicalAddress(Self.highBase), size: highSize)]
    }

    /// The map as the guest gets it, ascending and without overlaps.
    public var e820: [E820Entry] {
        var entries = [
            E820Entry(base: 0, size: Self.conventionalEnd, type: .ram),
            E820Entry(
                base: Self.conventionalEnd, size: Self.extendedBase - Self.conventionalEnd, type: .reserved),
            E820Entry(base: Self.extendedBase, size: lowEnd - Self.extendedBase, type: .ram),
        ]
        // A guest believes the MCFG table only where the window is reserved here (PCI Firmware 3.2 §4.1.2).
        entries.append(
            E820Entry(
                base: PCIMemoryLayout.configurationBase, size: PCIMemoryLayout.configurationSize, type: .reserved))
        if highSize > 0 { entries.append(E820Entry(base: Self.highBase, size: highSize, type: .ram)) }
        return entries
    }

    /// Whether all of a range is RAM that the guest may use.
    func isUsable(base: UInt64, size: UInt64) -> Bool {
        e820.contains { entry in
            entry.type == .ram && base >= entry.base && base < entry.end && size <= entry.end - base
        }
    }

    /// Whether all of a range is backed by RAM, usable or reserved.
    func isBacked(base: UInt64, size: UInt64) -> Bool {
        ramRanges.contains { range in
            base >= range.base.rawValue && base - range.base.rawValue < range.size
                && size <= range.size - (base - range.base.rawValue)
        }
    }
}
