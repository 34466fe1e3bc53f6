import Disk
import Fuzzing
import Host
import Testing

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// Reads, writes, discards and zeros of a qcow2 image that meet in the same clusters, with snapshots that come and go,
/// against a model. Requests that are on their way together never share a sector, so that what each does is certain.
@Suite("Block device under stress")
struct BlockStressTests {
    struct Shape: CustomTestStringConvertible, Sendable {
        var path: BlockPath
        var clusterSize: UInt64
        var cache = CacheMode.writeback
        var testDescription: String { "\(path), clusters of \(clusterSize), \(cache)" }
    }

    static let shapes = BlockPath.available.filter { $0 != .immediate }.flatMap { path in
        [
            Shape(path: path, clusterSize: 512), Shape(path: path, clusterSize: 4096),
            Shape(path: path, clusterSize: 65536), Shape(path: path, clusterSize: 4096, cache: .none),
        ]
    }

    private static let size = 1 << 20

    private struct Request {
        var sectors: Range<Int>
        var expected: [UInt8]?
    }

    @Test("Requests in the same clusters at the same time", arguments: shapes)
    func sharedClusters(shape: Shape) throws {
        let name = "/var/tmp/martlet-block-stress-\(getpid())-\(shape.path)-\(shape.clusterSize)-\(shape.cache)"
        unlink(name)
        defer { unlink(name) }
        var creation = QCOW2Options()
        creation.clusterSize = shape.clusterSize
        try DiskImage.createQCOW2(name, size: UInt64(Self.size), creation)
        var how = DiskImage.Options(isWritable: true)
        how.cache = shape.cache
        let image = try DiskImage.openQCOW2(name, how)
        let bench = try BlockBench(shape.path, ImageDisk(image))
        let driver = try ModelDriver(bench.device, style: DriverStyle(usesIndirect: true, hasEventIndex: true))
        driver.attachments = [bench]
        try #require(driver.start(features: BlockFeature.flush | BlockFeature.discard, queueSize: 64))
        driver.queues[0].alignsSectors = shape.cache == .none
        var model = [UInt8](repeating: 0, count: Self.size)
        var random = SeededGenerator(seed: shape.clusterSize + 17)
        for round in 0..<150 {
            let snapshots = round % 10 == 9 ? try snapshotThread(image, round) : nil
            try self.round(driver, &model, Int(shape.clusterSize), &random)
            snapshots?.join()
            if round % 25 == 24 {
                try expect(image, model, "round \(round)")
            }
        }
        #expect(try image.check().corruptions == 0)
        driver.transport.shutDown()
        try image.close()
        let again = try DiskImage.openQCOW2(name, DiskImage.Options())
        #expect(try again.check().isClean)
        try expect(again, model, "at the end")
    }

    private func expect(_ image: QCOW2Disk, _ model: [UInt8], _ moment: String) throws {
        let found = try image.read(count: Self.size, at: 0)
        let wrong = found.indices.first { found[$0] != model[$0] }
        #expect(wrong == nil, "\(moment): at that byte")
    }

    private func snapshotThread(_ image: QCOW2Disk, _ round: Int) throws -> HostThread {
        try HostThread(name: "snapshots") {
            do {
                for number in 0..<4 {
                    try image.createSnapshot("s\(round)-\(number)", time: 0)
                    try image.deleteSnapshot("s\(round)-\(number)")
                }
            } catch {
                Issue.record("\(error)")
            }
        }
    }

    /// Up to twelve requests at once, and their answers.
    private func round(
        _ driver: ModelDriver, _ model: inout [UInt8], _ clusterSize: Int, _ random: inout SeededGenerator
    ) throws {
        var requests: [Request] = []
        var taken = Set<Int>()
        // Half of the rounds happen in a few clusters.
        let window = Bool.random(using: &random) ? min(Self.size, clusterSize * 6) : Self.size
        let base = Int.random(in: 0...(Self.size - window) / 512, using: &random)
        for _ in 0..<12 {
            let unit = Bool.random(using: &random) ? 8 : 1
            let start = (base + Int.random(in: 0..<window / 512, using: &random)) / unit * unit
            let count = (Int.random(in: 1...16, using: &random) + unit - 1) / unit * unit
            let sectors = start..<min(start + count, Self.size / 512)
            guard taken.isDisjoint(with: sectors) else { continue }
            taken.formUnion(sectors)
            let expected = try submit(sectors, driver, &model, clusterSize, &random)
            requests.append(Request(sectors: sectors, expected: expected))
            if Bool.random(using: &random) { driver.notify() }
        }
        driver.notify()
        let used = driver.waitForUsed(count: requests.count)
        try #require(used.count == requests.count)
        let first = used.map(\.token).min() ?? 0
        for answer in used {
            #expect(answer.bytes.last == 0)
            let request = requests[answer.token - first]
            if let expected = request.expected {
                let isRight = Array(answer.bytes.dropLast()) == expected
                #expect(isRight, "sectors \(request.sectors)")
            }
        }
    }

    /// What a read has to give; nil for other requests.
    private func submit(
        _ sectors: Range<Int>, _ driver: ModelDriver, _ model: inout [UInt8], _ clusterSize: Int,
        _ random: inout SeededGenerator
    ) throws -> [UInt8]? {
        let bytes = sectors.lowerBound * 512..<sectors.upperBound * 512
        var header = [UInt8](repeating: 0, count: 16)
        header.store(UInt64(sectors.lowerBound), at: 8)
        var parts: [ModelQueue.Part]
        var expected: [UInt8]?
        switch Int.random(in: 0..<10, using: &random) {
        case 0..<4:
            header.store(UInt32(1), at: 0)
            let data = bytes.map { _ in UInt8.random(in: 1...255, using: &random) }
            model.replaceSubrange(bytes, with: data)
            parts = [.readable(header), .readable(data), .writable(1)]
        case 4..<6:
            let isZero = Bool.random(using: &random)
            header = [UInt8](repeating: 0, count: 16)
            header.store(UInt32(isZero ? 13 : 11), at: 0)
            var range = [UInt8](repeating: 0, count: 16)
            range.store(UInt64(sectors.lowerBound), at: 0)
            range.store(UInt32(sectors.count), at: 8)
            range.store(UInt32(isZero && Bool.random(using: &random) ? 1 : 0), at: 12)
            // A discard concerns whole clusters only.
            let start = isZero ? bytes.lowerBound : (bytes.lowerBound + clusterSize - 1) / clusterSize * clusterSize
            let end = isZero ? bytes.upperBound : bytes.upperBound / clusterSize * clusterSize
            if start < end { model.replaceSubrange(start..<end, with: repeatElement(0, count: end - start)) }
            parts = [.readable(header), .readable(range), .writable(1)]
        default:
            expected = Array(model[bytes])
            parts = [.readable(header), .writable(bytes.count), .writable(1)]
        }
        let isSubmitted = try driver.queues[0].submit(parts)
        try #require(isSubmitted)
        return expected
    }
}
