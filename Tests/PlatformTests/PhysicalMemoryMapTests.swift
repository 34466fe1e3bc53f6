import Testing

@testable import Platform

@Suite struct PhysicalMemoryMapTests {
    @Test(
        arguments: [
            (0x20_0000, 0x20_0000, 0), (0x2000_0000, 0x2000_0000, 0), (0xC000_0000, 0xC000_0000, 0),
            (0xC000_1000, 0xC000_0000, 0x1000), (0x2_0000_0000, 0xC000_0000, 0x1_4000_0000),
        ] as [(UInt64, UInt64, UInt64)])
    func splitsAtThreeGiB(size: UInt64, low: UInt64, high: UInt64) throws {
        let map = try PhysicalMemoryMap(memorySize: size)
        #expect(map.lowEnd == low && map.highSize == high)
        #expect(map.ramRanges.reduce(0) { $0 + $1.size } == size)
        #expect(map.ramRanges.count == (high > 0 ? 2 : 1))
    }

    @Test(arguments: [0, 1, 4096, (2 << 20) - 4096, (2 << 20) + 1, (1 << 40) + 4096, UInt64.max] as [UInt64])
    func impossibleSizeIsAnError(size: UInt64) {
        #expect(throws: MemoryMapError(memorySize: size)) { try PhysicalMemoryMap(memorySize: size) }
    }

    @Test func e820AscendsAndReservesTheFirmwareRange() throws {
        let entries = try PhysicalMemoryMap(memorySize: 8 << 30).e820
        for (entry, next) in zip(entries, entries.dropFirst()) { #expect(entry.end <= next.base) }
        #expect(entries.map(\.type) == [.ram, .reserved, .ram, .reserved, .ram])
        #expect(entries[3].base == 0xE000_0000 && entries[3].size == 256 << 20, "PCI Express configuration")
        #expect(entries.last?.end == 9 << 30)
    }
}
