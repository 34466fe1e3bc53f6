internal import Disk
internal import Foundation
internal import Fuzzing
internal import Host
internal import Synchronization
internal import Testing

/// Images that somebody made to hurt: an error or an answer, never a trap, never without end.
@Suite("Hostile images")
struct HostileImageTests {
    /// A small image with something of everything.
    private static func victim(clusterSize: UInt64) throws -> [UInt8] {
        var options = QCOW2Options()
        options.clusterSize = clusterSize
        let storage = RecordedStorage(try imageInMemory(size: 1 << 20, options))
        let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        for index in 0..<10 { try disk.write([UInt8](repeating: 3, count: 1000), at: UInt64(index) * 70_000) }
        try disk.createSnapshot("one", time: 1)
        for index in 0..<10 { try disk.write([UInt8](repeating: 4, count: 700), at: UInt64(index) * 90_000) }
        let conversion = PageBuffer([UInt8](repeating: 6, count: Int(clusterSize)))
        try disk.writeCompressed(conversion, at: 524_288)
        try disk.close()
        return storage.state.withLock(\.bytes)
    }

    private static let interesting: [UInt64] = [
        0, 1, 2, 0x1ff, 0x200, 0x201, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 55, 1 << 56, 1 << 62,
        1 << 63, .max, 0x8000_0000_0000_0200, 0xc000_0000_0000_0000, 0x00ff_ffff_ffff_fe00,
    ]

    /// A number here and there becomes another, in the header twice as often as elsewhere.
    private static func mutate(_ bytes: inout [UInt8], _ random: inout SeededRandom) {
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let isInHeader = Int.random(in: 0..<3, using: &random) == 0
            let start = Int.random(in: 0..<(isInHeader ? 30 : bytes.count / 4), using: &random) * 4
            let width = [1, 2, 4, 8].randomElement(using: &random) ?? 4
            var value = interesting.randomElement(using: &random) ?? 0
            if Bool.random(using: &random) { value = UInt64.random(in: 0..<UInt64(bytes.count), using: &random) & ~511 }
            if Int.random(in: 0..<4, using: &random) == 0 { value = random.next() }
            for index in 0..<width where start + index < bytes.count {
                bytes[start + index] = UInt8(truncatingIfNeeded: value >> UInt64((width - 1 - index) * 8))
            }
        }
    }

    /// Everything that can be done to an image; only DiskError may come out of it.
    private static func exercise(_ bytes: [UInt8], _ random: inout SeededRandom) throws {
        func attempt(_ body: () throws -> Void) throws {
            do { try body() } catch is DiskError {}
        }
        try attempt {
            let disk = try DiskImage.openQCOW2(RecordedStorage(bytes), DiskImage.Options())
            for _ in 0..<4 {
                let offset = UInt64.random(in: 0...max(disk.size, 1), using: &random)
                try attempt { _ = try disk.read(count: 5000, at: offset) }
                try attempt { _ = try disk.extent(at: offset, limit: 1 << 20) }
                try attempt { _ = try disk.readLeased(count: 5000, at: offset & ~511) }
            }
            try attempt { _ = try disk.check() }
            try attempt { _ = try disk.snapshots() }
            try attempt { try disk.showSnapshot("one") }
            try attempt { _ = try disk.read(count: 5000, at: 0) }
        }
        let storage = RecordedStorage(bytes)
        storage.state.withLock { $0.largest = 64 << 20 }
        try attempt {
            let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
            for _ in 0..<4 {
                let offset = UInt64.random(in: 0..<1 << 20, using: &random)
                try attempt { try disk.write([UInt8](repeating: 9, count: 3000), at: offset) }
                try attempt { try disk.writeLeased([UInt8](repeating: 8, count: 1024), at: offset & ~511) }
                try attempt { try disk.discard(offset..<offset + 20_000) }
            }
            try attempt { try disk.flush() }
            try attempt { try disk.createSnapshot("two", time: 2) }
            try attempt { try disk.applySnapshot("one") }
            try attempt { try disk.deleteSnapshot("one") }
            try attempt { try disk.resize(to: 2 << 20) }
            try attempt { _ = try disk.check(repair: .all) }
            try attempt { try disk.close() }
        }
    }

    @Test("Headers, tables and counts with wrong numbers", arguments: [UInt64(512), 4096])
    func fuzz(clusterSize: UInt64) throws {
        let victim = try Self.victim(clusterSize: clusterSize)
        for seed in FuzzSeeds(seconds: 3) {
            var random = SeededRandom(seed &+ clusterSize << 32)
            var bytes = victim
            Self.mutate(&bytes, &random)
            if Int.random(in: 0..<10, using: &random) == 0 {
                bytes.removeLast(Int.random(in: 1..<bytes.count, using: &random))
            }
            do { try Self.exercise(bytes, &random) } catch { Issue.record("seed \(seed): \(error)") }
        }
    }

    /// Field, width and value in the header of an image of 1 MiB, and a word of the message.
    static let headers: [(offset: Int, width: Int, value: UInt64, word: String)] = [
        (0, 4, 0, "QFI"), (4, 4, 1, "version 1"), (4, 4, 4, "version 4"), (20, 4, 8, "2^8"), (20, 4, 22, "2^22"),
        (24, 8, 1 << 63, "cannot be"), (32, 4, 1, "AES"), (32, 4, 2, "LUKS"), (36, 4, 0xffff_ffff, "allowed"),
        (36, 4, 0, "too few"), (40, 8, 0x1234, "where a cluster starts"), (40, 8, 1 << 40, "past the end"),
        (48, 8, 1 << 40, "past the end"), (48, 8, 0x10001, "where a cluster starts"), (56, 4, 0, "reference counts"),
        (56, 4, 0xffff, "allowed"), (60, 4, 70_000, "snapshots"), (72, 8, 1 << 20, "bit 20"),
        (72, 8, 1 << 4, "subclusters"), (88, 8, 1, "bitmaps"), (88, 8, 2, "external data file"),
        (96, 4, 7, "2^7"), (100, 4, 96, "header of 96"), (100, 4, 0xffff_fff8, "cannot be"),
        (104, 1, 2, "compression type 2"), (104, 1, 1, "contradicts"), (8, 8, 1 << 30, "first cluster"),
    ]

    @Test("Each field that cannot be is told", arguments: headers.indices)
    func headerFields(index: Int) throws {
        let (offset, width, value, word) = Self.headers[index]
        var bytes = try imageInMemory(size: 1 << 20, QCOW2Options())
        for place in 0..<width {
            bytes[offset + place] = UInt8(truncatingIfNeeded: value >> UInt64((width - 1 - place) * 8))
        }
        let error = #expect(throws: DiskError.self) {
            try DiskImage.openQCOW2(RecordedStorage(bytes), DiskImage.Options())
        }
        #expect(error?.description.contains(word) == true, "\(error?.description ?? "no error")")
    }

    @Test("A table over a table is corrupt: the image says so and takes no more writes")
    func overlap() throws {
        var bytes = try imageInMemory(size: 1 << 20, QCOW2Options())
        // The L1 table's first entry names the header's neighbour, the table of counts.
        let l1 = 3 * 65536
        bytes.replaceSubrange(l1..<l1 + 8, with: [0x80, 0, 0, 0, 0, 1, 0, 0])
        let storage = RecordedStorage(bytes)
        let error = #expect(throws: DiskError.self) {
            try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        }
        #expect(error?.kind == .corrupt)
        #expect(storage.state.withLock { $0.bytes[79] } & 2 == 2)
        let again = #expect(throws: DiskError.self) {
            try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        }
        #expect(again?.description.contains("check --repair all") == true)
    }

    @Test("Backing files in a circle, missing, or without a format")
    func backing() throws {
        let scratch = try Scratch()
        var options = QCOW2Options()
        options.backingFormat = .qcow2
        for (name, next) in [("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")] {
            options.backingFile = next
            try DiskImage.createQCOW2(scratch.path(name), size: 1 << 20, options)
        }
        for name in ["a", "self"] {
            let error = #expect(throws: DiskError.self) {
                try DiskImage.openQCOW2(scratch.path(name), DiskImage.Options())
            }
            #expect(error?.description.contains("its own backing file") == true)
        }
        options.backingFile = "missing"
        try DiskImage.createQCOW2(scratch.path("d"), size: 1 << 20, options)
        let missing = #expect(throws: DiskError.self) {
            try DiskImage.openQCOW2(scratch.path("d"), DiskImage.Options())
        }
        #expect(missing?.kind == .host(ENOENT))
        guard QemuImg.isInstalled else { return }
        // A raw image whose guest wrote a header: it may not reach for other files of the host.
        let probed = #expect(throws: DiskError.self) {
            var options = DiskImage.Options()
            options.backing = .refused
            return try DiskImage.openQCOW2(scratch.path("d"), options)
        }
        #expect(probed?.description.contains("guessed") == true)
    }
}
