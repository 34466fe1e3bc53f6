/// Where PCI is in a machine's address space: between the RAM below 4 GiB and the I/O APIC, and above all RAM.
public enum PCIMemoryLayout {
    /// The enhanced configuration access mechanism: a megabyte for each bus (PCIe 5.0 §7.2.2).
    public static let configurationBase: UInt64 = 0xE000_0000
    public static let lastBus: UInt8 = 0xFF
    public static let configurationSize: UInt64 = (UInt64(lastBus) + 1) << 20

    /// For base addresses of 32 bits, and for all that a firmware would have placed.
    public static let lowWindows: [Range<UInt64>] = [
        PhysicalMemoryMap.lowLimit..<configurationBase, configurationBase + configurationSize..<0xFEC0_0000,
    ]
    /// Ports of PCI functions; below them are the board's own.
    public static let portWindow: Range<UInt64> = 0x1000..<0x1_0000

    private static let highWindowSize: UInt64 = 32 << 30

    /// For base addresses of 64 bits: above the RAM, if the processor's physical addresses reach so far.
    public static func highWindow(above layout: PhysicalMemoryMap, physicalAddressBits: Int) -> Range<UInt64>? {
        let end = PhysicalMemoryMap.highBase &+ layout.highSize
        guard let base = end.roundedUp(to: highWindowSize) else { return nil }
        guard physicalAddressBits > 32, base &+ highWindowSize <= 1 << UInt64(min(physicalAddressBits, 52)) else {
            return nil
        }
        return base..<base &+ highWindowSize
    }
}

/// How interrupt pins reach the I/O APIC: its eight inputs beyond the ISA ones, in turn.
public enum PCIInterruptRouting {
    public static let firstGSI: UInt32 = 16
    public static let lineCount: UInt32 = 8

    /// `pin` 0 is INTA#.
    public static func gsi(slot: UInt8, pin: Int) -> UInt32 {
        firstGSI + (UInt32(slot) &+ UInt32(truncatingIfNeeded: pin & 3)) % lineCount
    }
}
