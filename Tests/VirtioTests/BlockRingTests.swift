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

/// A disk whose bytes come out of a pipe, when the test puts them in.
private final class PipeDisk: BlockBackend {
    let size: UInt64 = 1 << 20
    let isReadOnly = true
    private let reader: FileDescriptor
    private let writer: FileDescriptor
    private let storage: DescriptorStorage

    init() throws {
        let pipe = try Pipe()
        writer = FileDescriptor(owning: fcntl(pipe.writing.rawValue, F_DUPFD_CLOEXEC, 0))
        let input = pipe.keepReading()
        storage = DescriptorStorage(input.borrowed)
        reader = input
    }

    func supply(_ bytes: [UInt8]) throws { try writer.write(bytes) }

    func lease(_ segments: IOSegments, at offset: UInt64, forWriting: Bool) -> BlockLease? {
        BlockLease(parts: [.init(memory: TransferMemory(segments), storage: storage, offset: 0)])
    }

    func read(into segments: IOSegments, at offset: UInt64) throws(BlockError) { throw BlockError("not this way") }
    func write(from segments: IOSegments, at offset: UInt64) throws(BlockError) { throw BlockError("not this way") }
    func flush() throws(BlockError) {}
    func discard(at offset: UInt64, count: UInt64) throws(BlockError) {}
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError) {}
}

@Suite("Block device on io_uring", .enabled(if: BlockPath.hasRing, "this host forbids io_uring"))
struct BlockRingTests {
    private func header(_ type: UInt32, _ sector: UInt64 = 0) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes.store(type, at: 0)
        bytes.store(sector, at: 8)
        return .readable(bytes)
    }

    private func start(
        _ backend: any BlockBackend, options: BlockConfigurationOptions = BlockConfigurationOptions()
    ) throws -> (ModelDriver, BlockBench) {
        let bench = try BlockBench(.ring, backend, options: options)
        let driver = try ModelDriver(bench.device, style: DriverStyle(usesIndirect: true, hasEventIndex: true))
        driver.attachments = [bench]
        try #require(driver.start(features: BlockFeature.flush, queueSize: 64))
        return (driver, bench)
    }

    @Test("What the page cache has is read on the spot, the rest by the kernel")
    func cachedReads() throws {
        let path = "/var/tmp/martlet-cached-\(getpid())"
        unlink(path)
        let bytes = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7) }
        let storage = try FileStorage(path: path, isWritable: true, createsNew: true)
        defer { unlink(path) }
        try storage.write(PageBuffer(bytes).memory, at: 0)
        try storage.flush()
        let file = try #require(storage.descriptor)
        let isKnown = PageBuffer(count: 4096).memory.fillFromCache(of: file, at: 0)
        let (driver, bench) = try start(ImageDisk(try RawDisk(storage)))
        let ring = try #require(bench.ring)
        func readAll() throws {
            for sector in stride(from: UInt64(0), to: 2048, by: 8) {
                let used = try driver.request([header(0, sector), .writable(4096), .writable(1)])
                let expected = bytes[Int(sector) * 512..<Int(sector) * 512 + 4096] + [0]
                #expect(used?.bytes == Array(expected))
            }
        }
        try readAll()
        if isKnown { #expect(ring.submissionCount == 0) }
        // Each page by itself: a look begins to read a page, and on a busy host may find it read before it ends.
        posix_fadvise(file.rawValue, 0, 0, POSIX_FADV_RANDOM)
        // Of a file in memory only the host drops nothing, and on a busy host not everything.
        for round in 0..<3 {
            let before = ring.submissionCount
            var (wasCold, tries) = (false, 0)
            while ring.submissionCount == before, tries < 50 {
                posix_fadvise(file.rawValue, 0, 0, POSIX_FADV_DONTNEED)
                wasCold = try coldPages(file, bytes.count / 4096) > 16 || wasCold
                try readAll()
                tries += 1
            }
            if wasCold { #expect(ring.submissionCount > before, "round \(round)") }
        }
        driver.transport.shutDown()
    }

    /// How many of a file's first pages are not in the page cache; asked so that the kernel does not begin to read them.
    private func coldPages(_ file: BorrowedDescriptor, _ count: Int) throws -> Int {
        let mapping = mmap(nil, count * 4096, PROT_READ, MAP_SHARED, file.rawValue, 0)
        try #require(mapping != MAP_FAILED)
        defer { munmap(mapping, count * 4096) }
        var resident = [UInt8](repeating: 1, count: count)
        #expect(mincore(mapping, count * 4096, &resident) == 0)
        return resident.count { $0 & 1 == 0 }
    }

    @Test("32 requests are with the kernel at once, after one system call")
    func inFlight() throws {
        let disk = try PipeDisk()
        let (driver, bench) = try start(disk)
        let ring = try #require(bench.ring)
        for sector in 0..<UInt64(32) {
            let isSubmitted = try driver.queues[0].submit([header(0, sector), .writable(512), .writable(1)])
            try #require(isSubmitted)
        }
        driver.notify()
        #expect(ring.inFlight == 32 && ring.submissionCount == 1)
        #expect(try driver.queues[0].collect().isEmpty)
        try disk.supply([UInt8](repeating: 7, count: 32 * 512))
        let used = driver.waitForUsed(count: 32)
        #expect(used.count == 32)
        #expect(used.allSatisfy { $0.bytes == [UInt8](repeating: 7, count: 512) + [0] && $0.written == 513 })
        #expect(ring.inFlight == 0)
    }

    @Test("The driver hears once of all that is done at once")
    func coalescedInterrupts() throws {
        let (driver, bench) = try start(try MemoryDisk(size: 64 << 10))
        try driver.enableVectors()
        // Of every buffer, if it were for the event index.
        for sector in 0..<UInt64(32) {
            let isSubmitted = try driver.queues[0].submit([header(0, sector), .writable(512), .writable(1)])
            try #require(isSubmitted)
        }
        driver.notify()
        #expect(driver.waitForUsed(count: 32).allSatisfy { $0.bytes.last == 0 })
        #expect(driver.connection.waitForMessages(1).map(\.data) == [1])
        #expect(bench.ring?.submissionCount == 1)
    }

    enum Stop: CaseIterable, Sendable { case reset, pause, ringReset, functionReset }

    @Test("Whatever stops the device waits for what the kernel has", arguments: Stop.allCases)
    func stopWaits(stop: Stop) throws {
        let disk = try PipeDisk()
        let (driver, bench) = try start(disk)
        let ring = try #require(bench.ring)
        let isSubmitted = try driver.queues[0].submit([header(0), .writable(512), .writable(1)])
        try #require(isSubmitted)
        driver.notify()
        #expect(ring.inFlight == 1)
        let isOver = Atomic<Bool>(false)
        let transport = driver.transport
        driver.write(VirtioCommonRegister.queueSelect, .word, 0)
        try withThread {
            switch stop {
            case .reset:
                _ = transport.writeRegister(bar: 0, offset: VirtioCommonRegister.status, width: .byte, value: 0)
            case .pause: transport.pause()
            case .ringReset:
                _ = transport.writeRegister(bar: 0, offset: VirtioCommonRegister.queueReset, width: .word, value: 1)
            case .functionReset: transport.resetFunction()
            }
            isOver.store(true, ordering: .releasing)
        } meanwhile: {
            HostClock.sleep(nanoseconds: 50_000_000)
            let isEarly = isOver.load(ordering: .acquiring)
            #expect(!isEarly && ring.inFlight == 1)
            try disk.supply([UInt8](repeating: 9, count: 512))
        }
        let hasStopped = isOver.load(ordering: .acquiring)
        #expect(hasStopped && ring.inFlight == 0)
        #expect(transport.queues[0].outstanding == 0)
        if stop == .pause { #expect(try driver.queues[0].collect().map(\.written) == [513]) }
    }

    private func withThread(
        _ body: @escaping @Sendable () -> Void, meanwhile: () throws -> Void
    ) throws {
        let thread = try HostThread(name: "stops the device", body)
        try meanwhile()
        thread.join()
    }

    /// Reads of 40 sectors under limits, announced.
    private func read40(_ limits: TrafficLimits) throws -> ModelDriver {
        let (driver, _) = try start(
            try MemoryDisk(size: 64 << 10), options: BlockConfigurationOptions(limits: limits))
        for sector in 0..<UInt64(40) {
            let isSubmitted = try driver.queues[0].submit([header(0, sector), .writable(512), .writable(1)])
            try #require(isSubmitted)
        }
        driver.notify()
        return driver
    }

    @Test("Rate limits: a burst passes at once, and the rest waits in its queue")
    func burst() throws {
        let start = HostClock.monotonicNanoseconds
        let driver = try read40(TrafficLimits(operations: 1, operationsBurst: 10))
        var used = driver.waitForUsed(count: 11)
        // At the rate they take ten seconds, and all of them forty.
        #expect(used.count >= 11 && HostClock.monotonicNanoseconds - start < 10_000_000_000)
        let isWaiting: Bool? = try eventually {
            guard driver.transport.queues[0].outstanding == 0 else { return nil }
            used += try driver.queues[0].collect()
            return used.count < 40
        }
        #expect(isWaiting == true && used.allSatisfy { $0.bytes.last == 0 })
        driver.transport.shutDown()
    }

    @Test("Rate limits: none of what waits is lost, and it takes its time")
    func rateLimits() throws {
        let start = HostClock.monotonicNanoseconds
        let driver = try read40(TrafficLimits(operations: 100))
        let used = driver.waitForUsed(count: 40)
        #expect(used.count == 40 && used.allSatisfy { $0.bytes.last == 0 })
        #expect(driver.transport.queues[0].outstanding == 0)
        // 40 take 400 ms, of which 100 may come at once.
        #expect(HostClock.monotonicNanoseconds - start >= 280_000_000)
    }

    @Test("A lease whose storage has no descriptor for a transfer goes the slow way")
    func noDescriptor() throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(disk)
        disk.fail(BlockError("no"))
        #expect(try driver.request([header(0), .writable(512), .writable(1)])?.bytes.last == 1)
        #expect(disk.state.withLock { $0.leases } == 1 && bench.ring?.inFlight == 0)
        disk.fail(nil)
        #expect(try driver.request([header(0), .writable(512), .writable(1)])?.bytes.last == 0)
    }
}
