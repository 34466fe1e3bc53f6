internal import Disk
internal import Foundation
internal import Testing

/// What a disk has to read as, in an array.
struct ModelDisk {
    var bytes: [UInt8]
    var random: SeededRandom

    init(size: Int, seed: UInt64) {
        bytes = [UInt8](repeating: 0, count: size)
        random = SeededRandom(seed)
    }

    /// A range that is often aligned to something and often short.
    mutating func range(clusterSize: Int, limit: Int? = nil) -> Range<Int> {
        let limit = limit ?? clusterSize * 5
        let unit = [1, 512, 4096, clusterSize].randomElement(using: &random) ?? 1
        var start = Int.random(in: 0..<bytes.count, using: &random) / unit * unit
        if Int.random(in: 0..<8, using: &random) == 0 { start = 0 }
        let count = (Int.random(in: 1...limit, using: &random) + unit - 1) / unit * unit
        return start..<min(start + count, bytes.count)
    }

    /// One random request to both, and a comparison for reads.
    mutating func step(_ disk: any BlockDevice, clusterSize: Int) throws {
        let range = range(clusterSize: clusterSize)
        let bounds = UInt64(range.lowerBound)..<UInt64(range.upperBound)
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<45:
            let seed = UInt8.random(in: 1...255, using: &random)
            let data = range.indices.map { UInt8(truncatingIfNeeded: ($0 >> 9) &* 31) ^ seed }
            if Bool.random(using: &random) {
                try disk.writeLeased(data, at: bounds.lowerBound)
            } else {
                try disk.write(data, at: bounds.lowerBound)
            }
            bytes.replaceSubrange(range, with: data)
        case 45..<60:
            try disk.writeZeroes(bounds, mayUnmap: Bool.random(using: &random))
            bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
        case 60..<70:
            // What is read after a discard is not said; afterwards it does not change.
            try disk.discard(bounds)
            bytes.replaceSubrange(range, with: try disk.read(count: range.count, at: bounds.lowerBound))
        case 70..<74: try disk.flush()
        case 74..<85:
            #expect(try disk.readLeased(count: range.count, at: bounds.lowerBound) == Array(bytes[range]), "\(range)")
        default: #expect(try disk.read(count: range.count, at: bounds.lowerBound) == Array(bytes[range]), "\(range)")
        }
    }
}

@Suite("Random operations against a model")
struct RandomOperationTests {
    struct Shape: CustomTestStringConvertible, Sendable {
        var clusterSize: UInt64
        var version: UInt32 = 3
        var refcountBits: UInt32 = 16
        var isLazy = false
        var hasDataFile = false
        var cache = CacheMode.writeback

        var testDescription: String {
            "clusters of \(clusterSize), version \(version), \(refcountBits)-bit counts"
                + "\(isLazy ? ", lazy" : "")\(hasDataFile ? ", data file" : ""), \(cache.rawValue)"
        }
    }

    static let shapes = [
        Shape(clusterSize: 512), Shape(clusterSize: 512, refcountBits: 64), Shape(clusterSize: 1024, refcountBits: 1),
        Shape(clusterSize: 4096, version: 2), Shape(clusterSize: 4096, refcountBits: 2, isLazy: true),
        Shape(clusterSize: 16384, refcountBits: 4), Shape(clusterSize: 65536),
        Shape(clusterSize: 65536, refcountBits: 8, cache: .none), Shape(clusterSize: 65536, hasDataFile: true),
        Shape(clusterSize: 65536, refcountBits: 32, cache: .writethrough), Shape(clusterSize: 2 << 20),
    ]

    @Test("An image takes random requests, and is clean afterwards", arguments: shapes)
    func requests(shape: Shape) throws {
        let scratch = try Scratch()
        let size = Int(min(shape.clusterSize * 200, 8 << 20)) + 512
        var options = QCOW2Options()
        options.clusterSize = shape.clusterSize
        options.version = shape.version
        options.refcountBits = shape.refcountBits
        options.hasLazyRefcounts = shape.isLazy
        if shape.hasDataFile { options.dataFile = scratch.path("data") }
        try DiskImage.createQCOW2(scratch.path("image"), size: UInt64(size), options)
        var model = ModelDisk(size: size, seed: shape.clusterSize &+ UInt64(shape.refcountBits))
        for _ in 0..<3 {
            var open = DiskImage.Options(isWritable: true)
            open.cache = shape.cache
            let disk = try DiskImage.openQCOW2(scratch.path("image"), open)
            for _ in 0..<(shape.cache == .writethrough ? 40 : 120) {
                try model.step(disk, clusterSize: Int(shape.clusterSize))
            }
            #expect(try disk.read(count: size, at: 0) == model.bytes)
            try disk.close()
            guard QemuImg.isInstalled else { continue }
            try QemuImg.expectClean(scratch.path("image"))
        }
        guard QemuImg.isInstalled else { return }
        try QemuImg.expect("convert", "-f", "qcow2", "-O", "raw", scratch.path("image"), scratch.path("raw"))
        #expect(try Array(Data(contentsOf: scratch.file("raw"))) == model.bytes)
    }
}
