internal import Disk
internal import Foundation
internal import Synchronization
internal import Testing

/// The machine loses power at any moment: of what was written since the last flush, any part is on the medium, in any
/// order, torn at any sector.
@Suite("Power cuts")
struct CrashTests {
    /// One thing that the guest did, and when.
    private struct Request {
        var range: Range<Int>
        var value: UInt8
        /// How many actions the file had seen when it began.
        var start: Int
    }

    private struct Flush {
        /// How many actions the file had seen when it returned.
        var end: Int
        var content: [UInt8]
    }

    struct Shape: CustomTestStringConvertible, Sendable {
        var clusterSize: UInt64
        var version: UInt32 = 3
        var isLazy = false
        var hasSnapshots = false
        var seed: UInt64

        var testDescription: String {
            "clusters of \(clusterSize), version \(version)\(isLazy ? ", lazy" : "")\(hasSnapshots ? ", snapshots" : "")"
        }
    }

    static let shapes = [
        Shape(clusterSize: 512, seed: 1), Shape(clusterSize: 512, version: 2, seed: 2),
        Shape(clusterSize: 512, isLazy: true, seed: 3), Shape(clusterSize: 4096, seed: 4),
        Shape(clusterSize: 512, hasSnapshots: true, seed: 5),
    ]
    private static let diskSize = 128 << 10

    @Test("What a flush acknowledged is there, and tables contradict nothing", arguments: shapes)
    func powerCuts(shape: Shape) throws {
        var options = QCOW2Options()
        options.clusterSize = shape.clusterSize
        options.version = shape.version
        options.hasLazyRefcounts = shape.isLazy
        let initial = try imageInMemory(size: UInt64(Self.diskSize), options)
        let storage = RecordedStorage(initial)
        var random = SeededRandom(shape.seed)
        let (requests, flushes) = try work(storage, shape, &random)
        let actions = storage.state.withLock(\.actions)
        for _ in 0..<400 {
            let moment = Int.random(in: 0...actions.count, using: &random)
            let bytes = afterPowerCut(initial, actions, at: moment, &random)
            try expectSound(bytes, shape, moment, requests, flushes)
        }
    }

    /// Random requests; what was asked and what was acknowledged.
    private func work(
        _ storage: RecordedStorage, _ shape: Shape, _ random: inout SeededRandom
    ) throws -> ([Request], [Flush]) {
        let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        var content = [UInt8](repeating: 0, count: Self.diskSize)
        var requests: [Request] = []
        var leased = 0
        var flushes = [Flush(end: 0, content: content)]
        func count() -> Int { storage.state.withLock(\.actions.count) }
        for step in 0..<160 {
            let start = Int.random(in: 0..<Self.diskSize / 512, using: &random) * 512
            let range = start..<min(start + Int.random(in: 1...12, using: &random) * 512, Self.diskSize)
            let value = Bool.random(using: &random) ? UInt8.random(in: 1...255, using: &random) : 0
            let bounds = UInt64(range.lowerBound)..<UInt64(range.upperBound)
            requests.append(Request(range: range, value: value, start: count()))
            if value == 0 {
                try disk.writeZeroes(bounds, mayUnmap: true)
            } else {
                // Half of them as io_uring does it, past the image, where that is allowed.
                let data = [UInt8](repeating: value, count: range.count)
                if Bool.random(using: &random) {
                    leased += try disk.writeLeased(data, at: bounds.lowerBound) ? 1 : 0
                } else {
                    try disk.write(data, at: bounds.lowerBound)
                }
            }
            content.replaceSubrange(range, with: repeatElement(value, count: range.count))
            if Int.random(in: 0..<6, using: &random) == 0 {
                try disk.flush()
                flushes.append(Flush(end: count(), content: content))
            }
            guard shape.hasSnapshots, step.isMultiple(of: 30), step > 0 else { continue }
            try disk.createSnapshot("s\(step)", time: 0)
            if step == 90 { try disk.deleteSnapshot("s60") }
        }
        #expect(leased > 0)
        return (requests, flushes)
    }

    private func afterPowerCut(
        _ initial: [UInt8], _ actions: [RecordedStorage.Action], at moment: Int, _ random: inout SeededRandom
    ) -> [UInt8] {
        var bytes = initial
        var lastFlush = 0
        for index in 0..<moment {
            if case .flush = actions[index] { lastFlush = index }
        }
        for index in 0..<lastFlush { RecordedStorage.apply(actions[index], to: &bytes) }
        var loose = Array(actions[lastFlush..<moment])
        if Bool.random(using: &random) { loose.shuffle(using: &random) }
        for action in loose where Int.random(in: 0..<3, using: &random) != 0 {
            guard case .write(let offset, let data) = action, data.count > 512, Bool.random(using: &random) else {
                RecordedStorage.apply(action, to: &bytes)
                continue
            }
            let kept = Int.random(in: 0...data.count / 512, using: &random) * 512
            RecordedStorage.apply(.write(offset: offset, bytes: Array(data.prefix(kept))), to: &bytes)
        }
        return bytes
    }

    private func expectSound(
        _ bytes: [UInt8], _ shape: Shape, _ moment: Int, _ requests: [Request], _ flushes: [Flush]
    ) throws {
        let isDirty = shape.version == 3 && bytes[79] & 1 == 1
        if !isDirty {
            let report = try DiskImage.openQCOW2(RecordedStorage(bytes), DiskImage.Options()).check()
            #expect(report.corruptions == 0, "after \(moment) actions: \(report.findings.first ?? "")")
        }
        let disk = try DiskImage.openQCOW2(RecordedStorage(bytes), DiskImage.Options(isWritable: true))
        let found = try disk.read(count: Self.diskSize, at: 0)
        guard let flush = flushes.last(where: { $0.end <= moment }) else { return }
        let later = requests.filter { $0.start >= flush.end && $0.start <= moment }
        for sector in stride(from: 0, to: Self.diskSize, by: 512) {
            let value = found[sector]
            var allowed: Set<UInt8> = [flush.content[sector]]
            for request in later where request.range.contains(sector) { allowed.insert(request.value) }
            guard !allowed.contains(value) || !found[sector..<sector + 512].allSatisfy({ $0 == value }) else {
                continue
            }
            // A place that was being written may have its former bytes, or none yet.
            if allowed.count > 1, value == 0 { continue }
            Issue.record("after \(moment) actions the sector at \(sector) is \(value), and not of \(allowed)")
            return
        }
        // Whoever goes on with it leaves a sound image.
        try disk.write([UInt8](repeating: 1, count: 3000), at: 5000)
        try disk.flush()
        #expect(try disk.check().corruptions == 0)
    }
}

@Suite("A back end that fails")
struct FailingStorageTests {
    private func options() -> QCOW2Options {
        var options = QCOW2Options()
        options.clusterSize = 512
        return options
    }

    @Test("A full host disk: an error, nothing acknowledged is lost, and it goes on when there is room")
    func diskFull() throws {
        let storage = RecordedStorage(try imageInMemory(size: 1 << 20, options()))
        let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        var content = [UInt8](repeating: 0, count: 1 << 20)
        func write(_ index: Int) throws {
            let value = UInt8(index % 255 + 1)
            try disk.write([UInt8](repeating: value, count: 1500), at: UInt64(index) * 2000)
            content.replaceSubrange(index * 2000..<index * 2000 + 1500, with: repeatElement(value, count: 1500))
        }
        for index in 0..<50 { try write(index) }
        try disk.flush()
        storage.state.withLock { $0.largest = $0.bytes.count + 5000 }
        var failures = 0
        for index in 50..<80 {
            do { try write(index) } catch let error as DiskError {
                #expect(error.kind == .host(ENOSPC))
                failures += 1
            }
        }
        #expect(failures > 0)
        // Reading and writing in place still work.
        #expect(try disk.read(count: 100_000, at: 0) == Array(content[0..<100_000]))
        try write(3)
        storage.state.withLock { $0.largest = .max }
        for index in 50..<80 { try write(index) }
        #expect(try disk.read(count: 1 << 20, at: 0) == content)
        try disk.flush()
        #expect(try disk.check().corruptions == 0)
        try disk.close()
        #expect(try DiskImage.openQCOW2(storage, DiskImage.Options()).check().isClean)
    }

    @Test("Writes that fail at any moment leave an image without contradictions", arguments: 0..<60)
    func writeErrors(moment: Int) throws {
        let storage = RecordedStorage(try imageInMemory(size: 1 << 20, options()))
        let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        for index in 0..<10 { try disk.write([UInt8](repeating: 7, count: 1500), at: UInt64(index) * 9000) }
        try disk.flush()
        storage.state.withLock { $0.actionsUntilFailure = moment }
        for index in 0..<20 {
            try? disk.write([UInt8](repeating: 8, count: 1500), at: 200_000 + UInt64(index) * 9000)
            if index.isMultiple(of: 4) { try? disk.flush() }
            if index.isMultiple(of: 5) { try? disk.discard(0..<4096) }
        }
        #expect(throws: DiskError.self) { try disk.flush() }
        let bytes = storage.state.withLock(\.bytes)
        let after = try DiskImage.openQCOW2(RecordedStorage(bytes), DiskImage.Options())
        #expect(try after.check().corruptions == 0)
        for index in 1..<10 {
            #expect(try after.read(count: 1500, at: UInt64(index) * 9000) == [UInt8](repeating: 7, count: 1500))
        }
    }

    @Test("Read errors and an image that becomes shorter are errors of the request")
    func readErrors() throws {
        let storage = RecordedStorage(try imageInMemory(size: 1 << 20, options()))
        let disk = try DiskImage.openQCOW2(storage, DiskImage.Options(isWritable: true))
        try disk.write([UInt8](repeating: 7, count: 5000), at: 0)
        try disk.flush()
        storage.state.withLock { $0.readsFail = true }
        #expect(throws: DiskError.self) { try disk.read(count: 5000, at: 0) }
        storage.state.withLock { $0.readsFail = false }
        #expect(try disk.read(count: 5000, at: 0) == [UInt8](repeating: 7, count: 5000))
        storage.state.withLock { state in state.bytes.removeLast(state.bytes.count - 600) }
        _ = try? disk.read(count: 5000, at: 0)
        _ = try? disk.write([1], at: 900_000)
        _ = try? disk.flush()
        _ = try? disk.close()
    }
}
