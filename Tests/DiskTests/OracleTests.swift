internal import Disk
internal import Foundation
internal import Testing

/// Some content with data, zeros and what compresses well.
func sampleContent(_ size: Int, seed: UInt64) -> [UInt8] {
    var random = SeededRandom(seed)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(size + 65536)
    while bytes.count < size {
        let count = Int.random(in: 1...20, using: &random) * 4096
        switch Int.random(in: 0..<4, using: &random) {
        case 0: bytes += [UInt8](repeating: 0, count: count)
        case 1: bytes += [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: count)
        case 2: for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: index / 7)) }
        default:
            for _ in 0..<count / 8 {
                withUnsafeBytes(of: random.next()) { bytes += $0 }
            }
        }
    }
    return Array(bytes.prefix(size))
}

func readAll(_ path: String, _ format: DiskFormat = .qcow2) throws -> [UInt8] {
    let disk = try DiskImage.open(path, format, DiskImage.Options())
    defer { try? disk.close() }
    return try disk.read(count: Int(disk.size), at: 0)
}

/// Copies a disk into a new image, as `martlet image convert` does.
func convert(
    _ source: String, _ format: DiskFormat, to target: String, _ options: QCOW2Options?, compress: Bool = false
)
    throws
{
    let from = try DiskImage.open(source, format, DiskImage.Options())
    if let options {
        try DiskImage.createQCOW2(target, size: from.size, options)
    } else {
        try DiskImage.createRaw(target, size: from.size)
    }
    let to = try DiskImage.open(target, options == nil ? .raw : .qcow2, DiskImage.Options(isWritable: true))
    var conversion = Conversion()
    conversion.compresses = compress
    try conversion.run(from: from, to: to) { _, _ in true }
    try from.close()
    try to.close()
}

@Suite("qemu-img reads what we write, and we what it writes", .enabled(if: QemuImg.isInstalled, QemuImg.missing))
struct OracleTests {
    static let createOptions = [
        "cluster_size=512", "cluster_size=4k,refcount_bits=1", "cluster_size=4k,refcount_bits=2", "refcount_bits=4",
        "refcount_bits=8", "refcount_bits=32", "refcount_bits=64", "compat=0.10", "lazy_refcounts=on",
        "compression_type=zstd", "cluster_size=2M", "cluster_size=16k,compression_type=zstd", "preallocation=metadata",
    ]

    @Test("Images of qemu-img convert, plain and compressed", arguments: createOptions)
    func readTheirs(options: String) throws {
        let scratch = try Scratch()
        let content = sampleContent(3 << 20 | 512, seed: 1)
        try Data(content).write(to: scratch.file("raw"))
        for compress in [[], ["-c"]] {
            if compress == ["-c"], options.contains("preallocation") { continue }
            let result = try QemuImg.run(
                ["convert", "-f", "raw", "-O", "qcow2", "-o", options] + compress
                    + [scratch.path("raw"), scratch.path("image")])
            #expect(result.status == 0, "\(result.errors)")
            #expect(try readAll(scratch.path("image")) == content)
            // They can be written, too.
            let disk = try DiskImage.openQCOW2(scratch.path("image"), DiskImage.Options(isWritable: true))
            var changed = content
            for start in [0, 70_000, 1 << 20, content.count - 700] {
                let data = [UInt8](repeating: 0xa5, count: 700)
                try disk.write(data, at: UInt64(start))
                changed.replaceSubrange(start..<start + 700, with: data)
            }
            #expect(try disk.check().isClean)
            try disk.close()
            try QemuImg.expectClean(scratch.path("image"))
            #expect(try readAll(scratch.path("image")) == changed)
            try QemuImg.expect("convert", "-f", "qcow2", "-O", "raw", scratch.path("image"), scratch.path("back"))
            #expect(try Array(Data(contentsOf: scratch.file("back"))) == changed)
        }
    }

    static let ours: [(name: String, options: QCOW2Options)] = {
        func make(_ change: (inout QCOW2Options) -> Void) -> QCOW2Options {
            var options = QCOW2Options()
            change(&options)
            return options
        }
        var result = [512, 4096, 65536, 2 << 20].map { size in
            ("clusters of \(size)", make { $0.clusterSize = UInt64(size) })
        }
        result += [UInt32(1), 2, 4, 8, 32, 64].map { bits in
            (
                "\(bits)-bit counts",
                make {
                    $0.refcountBits = bits; $0.clusterSize = 4096
                }
            )
        }
        result.append(("version 2", make { $0.version = 2 }))
        result.append(("lazy", make { $0.hasLazyRefcounts = true }))
        result.append(("zstd", make { $0.compression = .zstd }))
        return result
    }()

    @Test("Our images, plain and compressed", arguments: ours.indices)
    func writeOurs(index: Int) throws {
        let (name, options) = Self.ours[index]
        let scratch = try Scratch()
        let content = sampleContent(3 << 20 | 1024, seed: 2)
        try Data(content).write(to: scratch.file("raw"))
        for compress in [false, true] {
            let image = "image-\(compress)"
            try convert(scratch.path("raw"), .raw, to: scratch.path(image), options, compress: compress)
            try QemuImg.expectClean(scratch.path(image))
            try QemuImg.expect("compare", "-f", "raw", "-F", "qcow2", scratch.path("raw"), scratch.path(image))
            #expect(try readAll(scratch.path(image)) == content, "\(name)")
        }
        let plain = try FileManager.default.attributesOfItem(atPath: scratch.path("image-false"))[.size] as? Int ?? 0
        let small = try FileManager.default.attributesOfItem(atPath: scratch.path("image-true"))[.size] as? Int ?? 0
        if options.clusterSize >= 4096, options.refcountBits > 1 { #expect(small < plain) }
    }

    @Test("Raw output is byte for byte qemu-img's")
    func rawOutput() throws {
        let scratch = try Scratch()
        try Data(sampleContent(5 << 20, seed: 3)).write(to: scratch.file("raw"))
        try convert(scratch.path("raw"), .raw, to: scratch.path("image"), QCOW2Options(), compress: true)
        try convert(scratch.path("image"), .qcow2, to: scratch.path("ours"), nil)
        try QemuImg.expect("convert", "-f", "qcow2", "-O", "raw", scratch.path("image"), scratch.path("theirs"))
        #expect(try Data(contentsOf: scratch.file("ours")) == Data(contentsOf: scratch.file("theirs")))
    }

    @Test("An empty image of each preallocation", arguments: Preallocation.allCases)
    func preallocation(mode: Preallocation) throws {
        let scratch = try Scratch()
        for size in [UInt64(0), 512, 3 << 20, 9 << 20] {
            var options = QCOW2Options()
            options.preallocation = mode
            options.clusterSize = 4096
            let path = scratch.path("image-\(size)")
            try DiskImage.createQCOW2(path, size: size, options)
            try QemuImg.expectClean(path)
            #expect(try readAll(path).allSatisfy { $0 == 0 })
        }
    }

    @Test("Large and empty images are small, and quick to make")
    func largeImages() throws {
        let scratch = try Scratch()
        for clusterSize in [UInt64(4096), 65536, 2 << 20] {
            var options = QCOW2Options()
            options.clusterSize = clusterSize
            let path = scratch.path("image-\(clusterSize)")
            try DiskImage.createQCOW2(path, size: 1 << 40, options)
            let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
            for index in 0..<20 { try disk.write([1, 2, 3], at: UInt64(index) * 53_687_091_200 + 5) }
            #expect(try disk.read(count: 4, at: 53_687_091_204) == [0, 1, 2, 3])
            try disk.close()
            try QemuImg.expectClean(path)
        }
    }

    @Test("Backing files: read through, copied on write, shorter than the image")
    func backing() throws {
        let scratch = try Scratch()
        let content = sampleContent(2 << 20, seed: 4)
        try Data(content).write(to: scratch.file("base.raw"))
        var options = QCOW2Options()
        options.backingFile = "base.raw"
        options.backingFormat = .raw
        try DiskImage.createQCOW2(scratch.path("middle"), size: 3 << 20, options)
        options.backingFile = "middle"
        options.backingFormat = .qcow2
        options.clusterSize = 4096
        try DiskImage.createQCOW2(scratch.path("top"), size: 4 << 20, options)
        var model = ModelDisk(size: 4 << 20, seed: 5)
        model.bytes.replaceSubrange(0..<content.count, with: content)
        for name in ["middle", "top"] {
            let disk = try DiskImage.openQCOW2(scratch.path(name), DiskImage.Options(isWritable: true))
            if name == "middle" {
                try disk.write([UInt8](repeating: 7, count: 3000), at: 100_000)
                model.bytes.replaceSubrange(100_000..<103_000, with: repeatElement(7, count: 3000))
            } else {
                for _ in 0..<100 { try model.step(disk, clusterSize: 4096) }
            }
            try disk.close()
        }
        try QemuImg.expectClean(scratch.path("top"))
        try QemuImg.expect("convert", "-f", "qcow2", "-O", "raw", scratch.path("top"), scratch.path("flat"))
        #expect(try Array(Data(contentsOf: scratch.file("flat"))) == model.bytes)
        #expect(try readAll(scratch.path("top")) == model.bytes)
    }

    @Test("Commit and rebase")
    func commitAndRebase() throws {
        let scratch = try Scratch()
        let content = sampleContent(2 << 20, seed: 6)
        try Data(content).write(to: scratch.file("base.raw"))
        try convert(scratch.path("base.raw"), .raw, to: scratch.path("base"), QCOW2Options())
        try Data(sampleContent(1 << 20, seed: 7)).write(to: scratch.file("other.raw"))
        var options = QCOW2Options()
        options.backingFile = "base"
        options.backingFormat = .qcow2
        try DiskImage.createQCOW2(scratch.path("top"), size: 2 << 20, options)
        let disk = try DiskImage.openQCOW2(scratch.path("top"), DiskImage.Options(isWritable: true))
        try disk.write([UInt8](repeating: 9, count: 5000), at: 70_000)
        try disk.writeZeroes(0..<200_000, mayUnmap: true)
        try disk.close()
        let expected = try readAll(scratch.path("top"))
        // To another file, to none, and unsafely back.
        try BackingOperations.rebase(scratch.path("top"), to: "other.raw", .raw, isUnsafe: false) { _, _ in true }
        #expect(try readAll(scratch.path("top")) == expected)
        try QemuImg.expectClean(scratch.path("top"))
        try QemuImg.expect("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base", scratch.path("top"))
        try BackingOperations.commit(scratch.path("top"), keepsContent: false) { _, _ in true }
        try QemuImg.expectClean(scratch.path("top"))
        try QemuImg.expectClean(scratch.path("base"))
        #expect(try readAll(scratch.path("base")) == expected)
        #expect(try readAll(scratch.path("top")) == expected)
        try BackingOperations.rebase(scratch.path("top"), to: nil, nil, isUnsafe: false) { _, _ in true }
        #expect(try readAll(scratch.path("top")) == expected)
        try QemuImg.expectClean(scratch.path("top"))
        let info = try QemuImg.json("info", "--output=json", "-f", "qcow2", scratch.path("top"))
        #expect(info["backing-filename"] == nil)
    }

    @Test("Snapshots, made and applied by both", arguments: [UInt32(2), 3])
    func snapshots(version: UInt32) throws {
        let scratch = try Scratch()
        let path = scratch.path("image")
        var options = QCOW2Options()
        options.version = version
        options.clusterSize = 4096
        try DiskImage.createQCOW2(path, size: 1 << 20, options)
        var model = ModelDisk(size: 1 << 20, seed: 8)
        var states: [[UInt8]] = []
        for round in 0..<4 {
            let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
            for _ in 0..<40 { try model.step(disk, clusterSize: 4096) }
            if round.isMultiple(of: 2) {
                try disk.createSnapshot("s\(round)", time: 1_700_000_000_123_456_789)
                for _ in 0..<20 { try model.step(disk, clusterSize: 4096) }
                try disk.applySnapshot("s\(round)")
                model.bytes = try disk.read(count: 1 << 20, at: 0)
            }
            try disk.close()
            states.append(model.bytes)
            if !round.isMultiple(of: 2) { try QemuImg.expect("snapshot", "-c", "s\(round)", path) }
            try QemuImg.expectClean(path)
        }
        for round in [2, 1, 3, 0] {
            let shown = try DiskImage.openQCOW2(path, DiskImage.Options())
            try shown.showSnapshot("s\(round)")
            #expect(try shown.read(count: 1 << 20, at: 0) == states[round], "shown \(round)")
            try shown.close()
            let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
            try disk.applySnapshot("s\(round)")
            #expect(try disk.read(count: 1 << 20, at: 0) == states[round], "applied \(round)")
            try disk.deleteSnapshot("s\(round)")
            #expect(try disk.check().isClean)
            try disk.close()
            try QemuImg.expectClean(path)
        }
        #expect(try DiskImage.openQCOW2(path, DiskImage.Options()).snapshots().isEmpty)
    }

    @Test("Resizing", arguments: [512, 65536])
    func resize(clusterSize: UInt64) throws {
        let scratch = try Scratch()
        let path = scratch.path("image")
        var options = QCOW2Options()
        options.clusterSize = clusterSize
        try DiskImage.createQCOW2(path, size: 1 << 20, options)
        let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
        try disk.write([UInt8](repeating: 1, count: 1 << 20), at: 0)
        try disk.resize(to: 300_032)
        try disk.resize(to: 64 << 20)
        var expected = [UInt8](repeating: 1, count: 300_032)
        expected += [UInt8](repeating: 0, count: 64 << 20 - 300_032)
        // What is left of the last cluster may still be there.
        let end = Int((300_032 + clusterSize - 1) / clusterSize * clusterSize)
        #expect(try disk.read(count: (1 << 20) - end, at: UInt64(end)).allSatisfy { $0 == 0 })
        try disk.write([5], at: 64 << 20 - 1)
        try disk.close()
        try QemuImg.expectClean(path)
        #expect(try DiskImage.openQCOW2(path, DiskImage.Options()).size == 64 << 20)
    }

    @Test("Bitmaps follow our writes, and are still believed")
    func bitmaps() throws {
        let scratch = try Scratch()
        let path = scratch.path("image")
        try QemuImg.expect("create", "-q", "-f", "qcow2", path, "64M")
        try QemuImg.expect("bitmap", "--add", "-g", "64k", path, "b0")
        try QemuImg.expect("bitmap", "--add", "--disable", "-g", "1M", path, "b1")
        let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
        try disk.write([UInt8](repeating: 3, count: 100_000), at: 1 << 20)
        #expect(try disk.check().isClean)
        try disk.close()
        try QemuImg.expectClean(path)
        let info = try QemuImg.json("info", "--output=json", path)
        let specific = (info["format-specific"] as? [String: Any])?["data"] as? [String: Any]
        let bitmaps = specific?["bitmaps"] as? [[String: Any]] ?? []
        #expect(bitmaps.map { $0["name"] as? String } == ["b0", "b1"])
        #expect(bitmaps.map { ($0["flags"] as? [String]) ?? [] } == [["auto"], []])
        // Merged into a copy, its count of set bits is visible through the dirty range of a bitmap-aware tool; here the
        // stored bits are enough: 100000 bytes at 1 MiB are bits 16 and 17.
        #expect(try storedBits(path, count: 4) == [0, 0, 3, 0])
    }

    /// The first bytes of the first bitmap's data, read by hand.
    private func storedBits(_ path: String, count: Int) throws -> [UInt8] {
        let file = Array(try Data(contentsOf: URL(filePath: path)))
        func number(_ offset: Int, _ size: Int) -> Int { file[offset..<offset + size].reduce(0) { $0 << 8 | Int($1) } }
        var offset = number(100, 4)
        while number(offset, 4) != 0x2385_2875 { offset += 8 + (number(offset + 4, 4) + 7) & ~7 }
        let directory = number(offset + 8 + 16, 8)
        let table = number(directory, 8)
        let data = number(table, 8) & 0x00ff_ffff_ffff_fe00
        return data == 0 ? [] : Array(file[data..<data + count])
    }

    @Test("Check finds and repairs what qemu-img finds")
    func checkAndRepair() throws {
        let scratch = try Scratch()
        let path = scratch.path("image")
        var random = SeededRandom(11)
        for round in 0..<40 {
            try? FileManager.default.removeItem(atPath: path)
            var options = QCOW2Options()
            options.clusterSize = 512
            try DiskImage.createQCOW2(path, size: 1 << 20, options)
            let disk = try DiskImage.openQCOW2(path, DiskImage.Options(isWritable: true))
            for index in 0..<40 { try disk.write([UInt8](repeating: 5, count: 900), at: UInt64(index) * 20_000) }
            try disk.close()
            // A byte of the tables: counts, L1 or L2.
            let handle = try FileHandle(forUpdating: URL(filePath: path))
            let size = try handle.seekToEnd()
            try handle.seek(toOffset: UInt64.random(in: 512..<size, using: &random) & ~7)
            try handle.write(contentsOf: Data([0, 0, 0, 0, 0, 0, UInt8(round), 1]))
            try handle.close()
            let theirs = try QemuImg.run("check", "-f", "qcow2", path)
            var readOnly = DiskImage.Options()
            readOnly.backing = .refused
            let ours = try DiskImage.openForCheck(path, isWritable: false).check()
            #expect(ours.isClean == (theirs.status == 0), "round \(round): \(ours.findings)\n\(theirs.output)")
            guard !ours.isClean else { continue }
            let repaired = try DiskImage.openForCheck(path, isWritable: true)
            let report = try repaired.check(repair: .all)
            try repaired.close()
            guard report.corruptions == 0 else { continue }
            try QemuImg.expectClean(path)
        }
    }
}
