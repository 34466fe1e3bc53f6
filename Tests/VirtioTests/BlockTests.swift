import DeviceModel
import Disk
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

@Suite("Block device")
struct BlockTests {
    private static let size = 64 << 10

    private func header(_ type: UInt32, _ sector: UInt64 = 0) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes.store(type, at: 0)
        bytes.store(sector, at: 8)
        return .readable(bytes)
    }

    private func range(_ sector: UInt64, _ count: UInt32, flags: UInt32 = 0) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes.store(sector, at: 0)
        bytes.store(count, at: 8)
        bytes.store(flags, at: 12)
        return .readable(bytes)
    }

    /// What a read of sectors full of these bytes gives, with a good status.
    private static func sectors(_ fills: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        for fill in fills { bytes += [UInt8](repeating: fill, count: 512) }
        return bytes + [0]
    }

    private let data = [UInt8](repeating: 0xA5, count: 1024)

    private func makeDriver(
        _ path: BlockPath, _ disk: any BlockBackend, style: DriverStyle = DriverStyle(),
        features: UInt64 = BlockFeature.flush, options: BlockConfigurationOptions = BlockConfigurationOptions()
    ) throws -> ModelDriver {
        let bench = try BlockBench(path, disk, options: options)
        let driver = try ModelDriver(bench.device, style: style)
        driver.attachments = [bench]
        try #require(driver.start(features: features))
        return driver
    }

    private func status(_ driver: ModelDriver, _ parts: [ModelQueue.Part]) throws -> UInt8? {
        try driver.request(parts + [.writable(1)])?.bytes.last
    }

    @Test("Rate limits space the requests that threads execute")
    func rateLimits() throws {
        let options = BlockConfigurationOptions(limits: TrafficLimits(operations: 100, operationsBurst: 5))
        let driver = try makeDriver(.threads, try MemoryDisk(size: Self.size), options: options)
        let start = HostClock.monotonicNanoseconds
        for sector in 0..<UInt64(25) {
            let answer = try status(driver, [header(0, sector), .writable(512)])
            #expect(answer == 0)
        }
        // 25 take 250 ms; six may come at once, as the one that overdraws the burst passes too.
        #expect(HostClock.monotonicNanoseconds - start >= 180_000_000)
        driver.transport.shutDown()
    }

    @Test("Reads and writes", arguments: BlockPath.available, DriverStyle.all)
    func transfers(path: BlockPath, style: DriverStyle) throws {
        let disk = try MemoryDisk(size: Self.size)
        let driver = try makeDriver(path, disk, style: style)
        let read = try driver.request([header(0, 3), .writable(512), .writable(512), .writable(1)])
        #expect(read?.bytes == Self.sectors([4, 5]))
        #expect(read?.written == 1025)
        #expect(try status(driver, [header(1, 126), .readable(data)]) == 0)
        #expect(Array(disk.bytes[(126 * 512)...]) == data)
        // The header and the status anywhere: layout means nothing (§2.7.4).
        let split: [ModelQueue.Part] = [.readable([0, 0, 0, 0, 0]), .readable([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])]
        #expect(try driver.request(split + [.writable(513)])?.bytes == Self.sectors([2]))
    }

    /// (request, status)
    @Test("Requests that cannot be done", arguments: BlockPath.available)
    func refusals(path: BlockPath) throws {
        let disk = try MemoryDisk(size: Self.size)
        let driver = try makeDriver(path, disk)
        let table: [([ModelQueue.Part], UInt8)] = [
            ([header(1, 127), .readable(data)], 1), ([header(1, 128), .readable(data)], 1),
            ([header(1, .max), .readable(data)], 1), ([header(1, 1 << 55), .readable(data)], 1),
            ([header(1, 0), .readable(Array(data.dropLast()))], 1), ([header(0, 128), .writable(512)], 1),
            ([header(0, 0), .writable(100)], 1), ([header(2)], 2), ([header(14), range(0, 1)], 2),
            ([header(.max)], 2), ([header(11), range(0, 8, flags: 1)], 2), ([header(11), range(0, 8, flags: 2)], 2),
            ([header(11), range(127, 2)], 1), ([header(11), range(.max, .max)], 1), ([header(11)], 1),
            ([header(13), range(0, .max)], 1), ([header(13), .readable([1, 2, 3])], 1),
            ([header(11), .readable([UInt8](repeating: 0, count: 17 * 16))], 1), ([header(1, 128)], 0),
        ]
        for (index, (request, expected)) in table.enumerated() {
            #expect(try status(driver, request) == expected, "row \(index)")
        }
        let readOnly = try makeDriver(
            path, try MemoryDisk(size: Self.size, isReadOnly: true), features: BlockFeature.readOnly)
        #expect(try status(readOnly, [header(1), .readable(data)]) == 1)
        #expect(try status(readOnly, [header(13), range(0, 1)]) == 1)
    }

    @Test("Discard, write zeroes, flush and identify", arguments: BlockPath.available)
    func commands(path: BlockPath) throws {
        let disk = try MemoryDisk(size: Self.size)
        let options = BlockConfigurationOptions(serial: "SERIAL-0123456789-TOO-LONG")
        let driver = try makeDriver(path, disk, options: options)
        #expect(try status(driver, [header(11), range(8, 4), range(0, 0), range(100, 28)]) == 0)
        #expect(disk.state.withLock { $0.discards } == [4096..<6144, 51200..<65536])
        #expect(try status(driver, [header(13), range(1, 2, flags: 1)]) == 0)
        #expect(disk.bytes[512..<1536].allSatisfy { $0 == 0 } && disk.bytes[1536] == 4)
        #expect(disk.flushes == 0)
        #expect(try status(driver, [header(4)]) == 0)
        #expect(disk.flushes == 1)
        #expect(
            try driver.request([header(8), .writable(20), .writable(1)])?.bytes == Array("SERIAL-0123456789-TO".utf8)
                + [0])
        #expect(try driver.request([header(8), .writable(4), .writable(1)])?.bytes == Array("SERI".utf8) + [0])
    }

    @Test(
        "Cache modes: how many flushes a write and a flush make", arguments: BlockPath.available,
        [
            (.writeback, BlockFeature.flush, 1, 0, 1), (.writeback, 0, 1, 1, 2),
            (.writethrough, BlockFeature.flush, 1, 1, 2), (.unsafe, BlockFeature.flush, 1, 0, 0),
            (.writeback, BlockFeature.flush | BlockFeature.configurableCache, 0, 1, 2),
            (.writeback, BlockFeature.flush | BlockFeature.configurableCache, 1, 0, 1),
        ] as [(BlockConfigurationOptions.Cache, UInt64, UInt64, Int, Int)])
    func cacheModes(
        path: BlockPath, row: (BlockConfigurationOptions.Cache, UInt64, UInt64, Int, Int)
    ) throws {
        let (cache, features, writeback, afterWrite, afterFlush) = row
        let disk = try MemoryDisk(size: Self.size)
        let driver = try makeDriver(path, disk, features: features, options: BlockConfigurationOptions(cache: cache))
        driver.write(VirtioPCILayout.device + UInt64(BlockConfiguration.writeback), .byte, writeback)
        #expect(try status(driver, [header(1), .readable(data)]) == 0)
        #expect(disk.flushes == afterWrite)
        #expect(try status(driver, [header(4)]) == 0)
        #expect(disk.flushes == afterFlush)
    }

    @Test("Errors of the host become errors of the request, and the device goes on", arguments: BlockPath.available)
    func errorInjection(path: BlockPath) throws {
        let disk = try MemoryDisk(size: Self.size)
        let driver = try makeDriver(path, disk)
        for (error, expected) in [(BlockError("no"), UInt8(1)), (BlockError("no", isUnsupported: true), 2)] {
            disk.fail(error)
            #expect(try status(driver, [header(0), .writable(512)]) == expected)
            #expect(try status(driver, [header(1), .readable(data)]) == expected)
            #expect(try status(driver, [header(4)]) == expected)
            #expect(try status(driver, [header(11), range(0, 1)]) == expected)
            #expect(try status(driver, [header(13), range(0, 1)]) == expected)
        }
        disk.fail(nil)
        #expect(try status(driver, [header(0), .writable(512)]) == 0)
        #expect(!driver.needsReset)
    }

    /// (parts): requests whose status has no place, or that have no header.
    @Test("A request without a header or a status needs a reset", arguments: BlockPath.available, [0, 1, 2, 3])
    func malformed(path: BlockPath, number: Int) throws {
        let driver = try makeDriver(path, try MemoryDisk(size: Self.size))
        let parts: [ModelQueue.Part] =
            [[.readable([0, 0, 0, 0])], [header(1), .readable(data)], [.writable(1)], [.readable([])]][number]
        try driver.queues[0].submit(parts + (number == 0 ? [.writable(1)] : []))
        driver.notify()
        _ = driver.waitForUsed(count: 1)
        #expect(eventually { driver.needsReset ? true : nil } == true)
    }

    @Test("What a driver reads of the disk", arguments: BlockPath.available)
    func configuration(path: BlockPath) throws {
        let options = BlockConfigurationOptions(queueCount: 4)
        let driver = try makeDriver(path, try MemoryDisk(size: Self.size), options: options)
        func field(_ offset: Int, _ width: AccessWidth) -> UInt64 {
            driver.read(VirtioPCILayout.device + UInt64(offset), width)
        }
        #expect(field(BlockConfiguration.capacity, .quad) == 128)
        #expect(field(BlockConfiguration.segmentLimit, .double) == 254)
        #expect(field(BlockConfiguration.blockSize, .double) == 512)
        #expect(field(BlockConfiguration.physicalBlockExponent, .byte) == 3)
        #expect(field(BlockConfiguration.queueCount, .word) == 4)
        #expect(field(BlockConfiguration.size, .double) == 0)
        #expect(driver.read(VirtioCommonRegister.queueCount, .word) == 4)
        #expect(driver.deviceFeatures & BlockFeature.multiqueue != 0)
        for queue in 0..<4 {
            #expect(try driver.request([header(0), .writable(512), .writable(1)], queue: queue)?.bytes.last == 0)
        }
    }

    @Test("Many requests at once, and a save in the middle", arguments: BlockPath.available, [false, true])
    func concurrency(path: BlockPath, isPacked: Bool) throws {
        let name = "/tmp/martlet-block-test-\(getpid())-\(path)-\(isPacked)"
        let created = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        try #require(created >= 0 && ftruncate(created, 1 << 20) == 0)
        close(created)
        defer { unlink(name) }
        let disk = ImageDisk(try DiskImage.open(name, .raw, DiskImage.Options(isWritable: true)))
        defer { #expect(throws: Never.self) { try disk.close() } }
        #expect(throws: DiskError.self) { try DiskImage.open(name, .raw, DiskImage.Options(isWritable: true)) }
        var driver = try makeDriver(path, disk, style: DriverStyle(isPacked: isPacked, hasEventIndex: true))
        var done = 0
        for round in 0..<50 {
            var submitted = 0
            for sector in 0..<UInt64(5) {
                let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: round + Int(sector)), count: 512)
                if try driver.queues[0].submit([header(1, sector), .readable(bytes), .writable(1)]) { submitted += 1 }
            }
            driver.notify()
            if round % 10 == 5 {
                driver.transport.pause()
                let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
                let state = try VirtioBlockSavedState(encoded: saved.device)
                let bench = try BlockBench(path, disk, restoring: state)
                let former = driver
                driver = ModelDriver(
                    continuing: former,
                    with: try VirtioPCIDevice(restoring: saved, bench.device, memory: former.memory))
                driver.attachments = former.attachments + [bench]
                driver.transport.resume()
            }
            let used = driver.waitForUsed(count: submitted)
            #expect(used.count == submitted && used.allSatisfy { $0.bytes == [0] })
            done += used.count
        }
        #expect(done == 250)
        let read = try driver.request([header(0, 0), .writable(5 * 512), .writable(1)])
        #expect(read?.bytes == Self.sectors([49, 50, 51, 52, 53]))
        driver.transport.shutDown()
    }
}
