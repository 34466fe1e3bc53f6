import GuestMemory
import Host
import Synchronization
import Testing
import X86

/// RAM from 0 to 64 KiB, ROM from 64 to 80 KiB, RAM of 16 KiB at 4 GiB.
@Suite("Guest memory")
struct GuestMemoryTests {
    private func memory() throws -> GuestMemory {
        GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(1 << 32), mapping: try HostMapping(size: 0x4000)),
            MemoryRegion(
                base: GuestPhysicalAddress(0x1_0000), isReadOnly: true, mapping: try HostMapping(size: 0x4000)),
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: 0x1_0000)),
        ])
    }

    @Test("Size and end count writable memory only")
    func shape() throws {
        let memory = try memory()
        #expect(memory.size == 0x1_4000)
        #expect(memory.end == GuestPhysicalAddress((1 << 32) + 0x4000))
        #expect(memory.regions.map(\.base.rawValue) == [0, 0x1_0000, 1 << 32])
    }

    struct Range: Sendable {
        var address: UInt64
        var count: Int
        var reads: Bool
        var writes: Bool

        init(_ address: UInt64, _ count: Int, reads: Bool = true, writes: Bool = true) {
            self.address = address
            self.count = count
            self.reads = reads
            self.writes = writes
        }

        static func outside(_ address: UInt64, _ count: Int) -> Range {
            Range(address, count, reads: false, writes: false)
        }
    }

    private static let high: UInt64 = 1 << 32

    private static let ranges: [Range] = [
        Range(0, 1), Range(0xFFFF, 1), Range(0xFFFC, 4), Range(0, 0x1_0000), Range(high, 8), Range(high + 0x3FFC, 4),
        // ROM.
        Range(0x1_0000, 8, writes: false),
        // Over the end of a region, even where another one begins.
        .outside(0xFFFD, 4), .outside(0, 0x1_0001), .outside(0x1_3FFF, 2), .outside(high + 0x3FFD, 4),
        .outside(0x1_4000, 1), .outside(high - 1, 1), .outside(.max, 1), .outside(.max - 3, 8),
        .outside(0, -1), .outside(0, .max), .outside(0, .min),
    ]

    /// The fault that `body` throws, or nil.
    private func fault(_ body: () throws -> Void) -> GuestMemoryFault? {
        do {
            try body()
            return nil
        } catch {
            return error as? GuestMemoryFault
        }
    }

    @Test("Which ranges can be read and written", arguments: ranges)
    func bounds(range: Range) throws {
        let memory = try memory()
        let place = GuestPhysicalAddress(range.address)
        let readFault = fault {
            let bytes = try memory.read(count: range.count, at: place)
            #expect(bytes.count == range.count)
        }
        #expect((readFault == nil) == range.reads)
        if let readFault { #expect(readFault.address == place && readFault.length == range.count) }
        guard (0...0x2_0000).contains(range.count) else { return }
        let bytes = [UInt8](repeating: 0xA5, count: range.count)
        let writeFault = fault { try memory.write(bytes, at: place) }
        #expect((writeFault == nil) == range.writes)
        if range.writes { #expect(try memory.read(count: range.count, at: place) == bytes) }
    }

    @Test("Integers are little-endian at any alignment")
    func integers() throws {
        let memory = try memory()
        let place = GuestPhysicalAddress(0x123)
        try memory.store(UInt64(0x0807_0605_0403_0201), at: place)
        #expect(try memory.read(count: 8, at: place) == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(try memory.load(UInt32.self, at: place + 1) == 0x0504_0302)
        #expect(try memory.load(UInt16.self, at: place + 7) == 0x0008)
        #expect(throws: GuestMemoryFault.self) {
            try memory.store(UInt16(1), at: GuestPhysicalAddress(0x1_0000))
        }
        #expect(throws: GuestMemoryFault.self) {
            try memory.load(UInt64.self, at: GuestPhysicalAddress(0xFFF9))
        }
    }

    @Test("Addresses wrap instead of trapping")
    func wrapping() {
        #expect(GuestPhysicalAddress(.max) + 2 == GuestPhysicalAddress(1))
        #expect(GuestPhysicalAddress(0xFEE0_0000).description == "0xfee00000")
    }

    /// Each write used to wrap the observer once more, until calling it took more stack than a thread has.
    @Test("An observer of writes is called as directly after a million of them")
    func manyObservedWrites() throws {
        let memory = try memory()
        let counter = Counter()
        memory.observeWrites { _, count in counter.add(count) }
        for _ in 0..<1_000_000 { try memory.store(UInt16(1), at: GuestPhysicalAddress(16)) }
        #expect(counter.value == 2_000_000)
    }

    @Test("Whether somebody observes writes")
    func observers() throws {
        let memory = try memory()
        #expect(!memory.isObserved)
        memory.observeWrites { _, _ in }
        #expect(memory.isObserved)
    }

    /// (address, bytes, offset in the region, nil where the kernel is given no address)
    @Test(
        "Addresses for the kernel are of ranges that lie whole in one region of RAM",
        arguments: [
            (0x0, 0x1000, 0x0), (0x1FF0, 16, 0xFF0), (0x1FF0, 17, nil), (0xFF0, 32, nil),
            (0x2000, 1, nil), (0x8000, 4096, nil),
            (.max, 1, nil), (.max - 7, 16, nil), (0x1000, 0, 0),
        ] as [(UInt64, Int, Int?)])
    func hostAddresses(address: UInt64, count: Int, offset: Int?) throws {
        let mappings = try (0..<3).map { _ in try HostMapping(size: 0x1000) }
        let memory = GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: mappings[0]),
            MemoryRegion(base: GuestPhysicalAddress(0x1000), mapping: mappings[1]),
            MemoryRegion(base: GuestPhysicalAddress(0x8000), isReadOnly: true, mapping: mappings[2]),
        ])
        let found = try? memory.hostAddress(of: GuestMemoryRange(base: GuestPhysicalAddress(address), count: count))
        let mapping = mappings[address < 0x1000 ? 0 : 1]
        #expect(found == offset.map { UInt64(UInt(bitPattern: mapping.address + $0)) })
    }

    private final class Counter: Sendable {
        private let count = Atomic<Int>(0)
        func add(_ number: Int) { count.add(number, ordering: .relaxed) }
        var value: Int { count.load(ordering: .relaxed) }
    }
}
