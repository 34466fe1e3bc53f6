import DeviceModel
import Disk
import Fuzzing
import GuestMemory
import Host
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// A disk without a guest: random requests of 4 KiB, as fio would make them, through doorbells and messages. With
/// MARTLET_BLOCK_BENCH=DIRECTORY it prints throughput and processor time of each way; the files there are its own.
@Suite("Block device benchmark", .serialized, .enabled(if: getenv("MARTLET_BLOCK_BENCH") != nil, "not asked for"))
struct BlockBenchmark {
    private static let directory = getenv("MARTLET_BLOCK_BENCH").map { String(cString: $0) } ?? "/tmp"
    private static let fileSize: UInt64 = 256 << 20

    private struct Load {
        var format: DiskFormat
        var cache: CacheMode
        var isWrite: Bool
        var depth: Int
        var blockSize = 4096
    }

    @Test func compare() throws {
        for format in [DiskFormat.raw, .qcow2] { try prepare(format) }
        defer { for format in [DiskFormat.raw, .qcow2] { unlink(path(format)) } }
        print("format cache     request depth    size | way      kIOPS  CPU us/request  requests/submission")
        for cache in [CacheMode.writeback, .none] {
            for format in [DiskFormat.raw, .qcow2] {
                for (isWrite, depth, size) in [
                    (false, 1, 4096), (false, 32, 4096), (true, 1, 4096), (true, 32, 4096), (false, 2, 1 << 20),
                    (true, 2, 1 << 20),
                ] {
                    let load = Load(format: format, cache: cache, isWrite: isWrite, depth: depth, blockSize: size)
                    // In turns, so that a busy host is busy for all.
                    for _ in 0..<2 {
                        for way in BlockPath.available where way != .immediate { try measure(load, way) }
                    }
                }
            }
        }
    }

    private func path(_ format: DiskFormat) -> String { "\(Self.directory)/martlet-block-bench.\(format.rawValue)" }

    /// All written, so that everything is there and in the page cache.
    private func prepare(_ format: DiskFormat) throws {
        unlink(path(format))
        switch format {
        case .qcow2: try DiskImage.createQCOW2(path(format), size: Self.fileSize, QCOW2Options())
        case .raw:
            let created = open(path(format), O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            try #require(created >= 0 && ftruncate(created, off_t(Self.fileSize)) == 0)
            close(created)
        }
        let disk = try DiskImage.open(path(format), format, DiskImage.Options(isWritable: true))
        let block = [UInt8](repeating: 0x5A, count: 1 << 20)
        for offset in stride(from: UInt64(0), to: Self.fileSize, by: 1 << 20) { try disk.write(block, at: offset) }
        try disk.flush()
        try disk.close()
    }

    private static var processorSeconds: Double {
        var usage = rusage()
        getrusage(Int32(RUSAGE_SELF.rawValue), &usage)
        return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
            + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6
    }

    private func measure(_ load: Load, _ way: BlockPath) throws {
        var options = DiskImage.Options(isWritable: true)
        options.cache = load.cache
        let disk = ImageDisk(try DiskImage.open(path(load.format), load.format, options))
        let bench = try BlockBench(way, disk)
        let memory = GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: 64 << 20))
        ])
        let driver = try ModelDriver(
            bench.device, style: DriverStyle(hasEventIndex: true), memory: memory, doorbellThread: bench.loop)
        driver.attachments = [bench]
        try #require(driver.start(features: BlockFeature.flush, queueSize: 256))
        try driver.enableVectors()
        var fio = try FioDriver(driver, depth: load.depth, blockSize: load.blockSize, isWrite: load.isWrite)
        _ = try fio.run(nanoseconds: 200_000_000, blocks: Self.fileSize / UInt64(load.blockSize))
        let start = (HostClock.monotonicNanoseconds, Self.processorSeconds, bench.ring?.submissionCount ?? 0)
        let count = try fio.run(nanoseconds: 1_500_000_000, blocks: Self.fileSize / UInt64(load.blockSize))
        let seconds = Double(HostClock.monotonicNanoseconds - start.0) / 1e9
        let processor = (Self.processorSeconds - start.1) / Double(count) * 1e6
        let submissions = Double(count) / Double(max(1, (bench.ring?.submissionCount ?? 0) - start.2))
        func pad(_ text: String, _ width: Int) -> String {
            String(repeating: " ", count: max(0, width - text.count)) + text
        }
        func number(_ value: Double) -> String { "\((value * 100).rounded() / 100)" }
        print(
            pad("\(load.format)", 6), pad("\(load.cache)", 9), pad(load.isWrite ? "write" : "read", 7),
            pad("\(load.depth)", 5), pad("\(load.blockSize)", 8), "|", pad("\(way)", 7),
            pad(number(Double(count) / seconds / 1000), 8), pad(number(processor), 8), pad(number(submissions), 8))
        driver.transport.shutDown()
        try disk.close()
    }
}

/// A driver with fixed buffers that keeps so many requests on their way.
private struct FioDriver {
    private let driver: ModelDriver
    private let queue: ModelQueue
    private let doorbell: EventNotifier
    private let depth: Int
    private var available: UInt16 = 0
    private var used: UInt16 = 0
    private var random = SeededGenerator(seed: 42)

    init(_ driver: ModelDriver, depth: Int, blockSize: Int, isWrite: Bool) throws {
        self.driver = driver
        self.depth = depth
        queue = driver.queues[0]
        let notifiers = driver.transport.function.description.doorbells[VirtioPCILayout.bar] ?? []
        doorbell = try #require(notifiers.first?.notifier as? EventNotifier)
        let buffers = UInt64(0x100000)
        for slot in 0..<UInt64(depth) {
            let header = buffers + slot * 32
            try driver.memory.store(UInt32(isWrite ? 1 : 0), at: GuestPhysicalAddress(header))
            let parts: [(UInt64, Int, UInt16)] = [
                (header, 16, 1), (0x200000 + slot * UInt64(blockSize), blockSize, isWrite ? 1 : 3), (header + 16, 1, 2),
            ]
            for (index, (address, count, flags)) in parts.enumerated() {
                let place = queue.descriptors + (slot * 3 + UInt64(index)) * 16
                try driver.memory.store(address, at: GuestPhysicalAddress(place))
                try driver.memory.store(UInt32(count), at: GuestPhysicalAddress(place + 8))
                try driver.memory.store(flags, at: GuestPhysicalAddress(place + 12))
                try driver.memory.store(UInt16(slot * 3 + UInt64(index) + 1), at: GuestPhysicalAddress(place + 14))
            }
        }
    }

    private func load(_ address: UInt64) throws -> UInt16 {
        try driver.memory.loadAcquire(at: GuestPhysicalAddress(address))
    }

    /// How many requests were done.
    mutating func run(nanoseconds: UInt64, blocks: UInt64) throws -> Int {
        let end = HostClock.monotonicNanoseconds + nanoseconds
        var done = 0
        var isOver = false
        var idle = Array(0..<UInt64(depth))
        while true {
            if !isOver { try submit(&idle, blocks) }
            if idle.count == depth { return done }
            let heard = driver.connection.bell.value
            let count = try collect(&idle)
            done += count
            if count == 0 { driver.connection.bell.wait(while: heard) }
            _ = driver.connection.takeMessages()
            isOver = HostClock.monotonicNanoseconds > end
        }
    }

    private mutating func submit(_ idle: inout [UInt64], _ blocks: UInt64) throws {
        guard !idle.isEmpty else { return }
        let old = available
        let sectors = UInt64(Self.fileSectors) / blocks
        for slot in idle {
            let sector = GuestPhysicalAddress(0x100000 + slot * 32 + 8)
            try driver.memory.store(random.next() % blocks * sectors, at: sector)
            let place = queue.driverArea + 4 + 2 * UInt64(available % queue.size)
            try driver.memory.store(UInt16(slot * 3), at: GuestPhysicalAddress(place))
            available &+= 1
        }
        idle = []
        try driver.memory.storeRelease(available, at: GuestPhysicalAddress(queue.driverArea + 2))
        let event = try load(queue.deviceArea + 4 + 8 * UInt64(queue.size))
        if available &- event &- 1 < available &- old { doorbell.signal() }
    }

    private static let fileSectors = (256 << 20) / 512

    private mutating func collect(_ idle: inout [UInt64]) throws -> Int {
        var count = 0
        while true {
            while try load(queue.deviceArea + 2) != used {
                let entry = queue.deviceArea + 4 + 8 * UInt64(used % queue.size)
                let head = try driver.memory.load(UInt32.self, at: GuestPhysicalAddress(entry))
                let slot = UInt64(head / 3)
                let status = try driver.memory.load(UInt8.self, at: GuestPhysicalAddress(0x100000 + slot * 32 + 16))
                try #require(status == 0)
                idle.append(slot)
                used &+= 1
                count += 1
            }
            // An interrupt at the next one, unless it is there already.
            try driver.memory.storeRelease(
                used, at: GuestPhysicalAddress(queue.driverArea + 4 + 2 * UInt64(queue.size)))
            if try load(queue.deviceArea + 2) == used { return count }
        }
    }
}
