import DeviceModel
import Disk
import Fuzzing
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// Another processor of the guest: it changes everything that a device may be looking at.
final class Meddler: Sendable {
    private let isOver = Atomic<Bool>(false)
    private let thread = Mutex<HostThread?>(nil)

    init(_ memory: GuestMemory, seed: UInt64) throws {
        let thread = try HostThread(name: "meddler") { [self] in
            var generator = SeededGenerator(seed: seed)
            while !isOver.load(ordering: .relaxed) {
                // Descriptors and indexes, then the data.
                let place = 0x10000 + generator.next() % (generator.next() % 2 == 0 ? 0x8000 : 0x30000)
                try? memory.store(
                    UInt16(truncatingIfNeeded: generator.next()) & (generator.next() % 2 == 0 ? 0xF : 0xFFFF),
                    at: GuestPhysicalAddress(place & ~1))
                if generator.next() % 64 == 0 { HostClock.sleep(nanoseconds: 50_000) }
            }
        }
        self.thread.withLock { $0 = thread }
    }

    func stop() {
        isOver.store(true, ordering: .relaxed)
        thread.withLock { $0 }?.join()
    }
}

/// Real images behind hostile drivers: whatever is asked, and whoever changes the requests meanwhile, the process lives,
/// every request ends, and the image is whole.
@Suite("Hostile drivers of images")
struct DiskFuzzTests {
    static let cases = BlockPath.available.flatMap { path in [(path, DiskFormat.raw), (path, DiskFormat.qcow2)] }
    private static let size: UInt64 = 512 << 10

    private func request(_ generator: inout SeededGenerator) -> [ModelQueue.Part] {
        var header = [UInt8](repeating: 0, count: 16)
        let type = [0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 13, 2, 99][Int(generator.next() % 13)] as UInt32
        let sectors = Self.size / 512
        let sector = generator.next() % 16 == 0 ? generator.next() : generator.next() % (sectors + 4)
        header.store(type, at: 0)
        header.store(sector, at: 8)
        let count = generator.next() % 12 == 0 ? Int(generator.next() % 5000) : Int(generator.next() % 12 + 1) * 512
        switch type {
        case 0, 8: return [.readable(header), .writable(count), .writable(1)]
        case 1:
            return [.readable(header), .readable([UInt8](repeating: UInt8(sector & 0xFF), count: count)), .writable(1)]
        case 11, 13:
            var range = [UInt8](repeating: 0, count: 16)
            range.store(sector, at: 0)
            range.store(UInt32(truncatingIfNeeded: generator.next() % 8 == 0 ? generator.next() : 16), at: 8)
            range.store(UInt32(generator.next() % 2), at: 12)
            return [.readable(header), .readable(range), .writable(1)]
        default: return [.readable(header), .writable(1)]
        }
    }

    private func waitUntilIdle(_ driver: ModelDriver) {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while driver.transport.queues[0].outstanding > 0, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 50_000)
        }
        #expect(driver.transport.queues[0].outstanding == 0)
    }

    @Test("Leases, allocations and flushes amid noise", .timeLimit(.minutes(10)), arguments: cases)
    func images(path: BlockPath, format: DiskFormat) throws {
        let memory = try ModelDriver.makeMemory()
        var template = Array("/tmp/martlet-fuzz-XXXXXX".utf8CString)
        let directory = String(cString: try #require(mkdtemp(&template)))
        let name = directory + "/image"
        defer {
            unlink(name)
            rmdir(directory)
        }
        for seed in FuzzSeeds(seconds: 1) {
            var generator = SeededGenerator(seed: seed)
            unlink(name)
            var options = QCOW2Options()
            options.clusterSize = 4096
            if format == .raw {
                try DiskImage.createRaw(name, size: Self.size)
            } else {
                try DiskImage.createQCOW2(name, size: Self.size, options)
            }
            let disk = ImageDisk(try DiskImage.open(name, format, .init(isWritable: true)))
            let bench = try BlockBench(path, disk)
            let style = DriverStyle(
                isPacked: generator.next() & 1 == 0, usesIndirect: generator.next() & 1 == 0,
                hasEventIndex: generator.next() & 1 == 0, isInOrder: generator.next() & 1 == 0)
            let driver = try ModelDriver(bench.device, style: style, memory: memory)
            driver.attachments = [bench]
            let features = bench.device.features & ~BlockFeature.readOnly
            try #require(driver.start(features: features))
            let meddler = generator.next() & 1 == 0 ? try Meddler(memory, seed: seed) : nil
            for _ in 0..<60 {
                for _ in 0...generator.next() % 4 { try driver.queues[0].submit(request(&generator)) }
                driver.notify()
                // Where somebody meddles the rings are nobody's any more.
                _ = try? driver.queues[0].collect()
                if generator.next() % 16 == 0 {
                    driver.transport.pause()
                    let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
                    #expect(throws: Never.self) { try VirtioBlockSavedState(encoded: saved.device) }
                    driver.transport.resume()
                }
                if driver.needsReset || driver.queues[0].freeCount < 4 {
                    try #require(driver.start(features: features))
                }
            }
            meddler?.stop()
            driver.setStatus(0)
            waitUntilIdle(driver)
            try #require(driver.start(features: features))
            var header = [UInt8](repeating: 0, count: 16)
            header.store(UInt32(4), at: 0)
            #expect(try driver.request([.readable(header), .writable(1)])?.bytes == [0], "seed \(seed)")
            driver.transport.shutDown()
            try disk.close()
            guard format == .qcow2 else { continue }
            let image = try DiskImage.openQCOW2(name, DiskImage.Options())
            let report = try image.check()
            #expect(report.corruptions == 0 && report.leaks == 0, "seed \(seed)")
            try image.close()
        }
    }
}
