import DeviceModel
import Disk
import Fuzzing
import Host
import Synchronization
import Testing

@testable import Virtio

/// Requests that fail and are held instead of being answered.
@Suite("Block device that stops on errors")
struct BlockHeldTests {
    private static let styles = [false, true].flatMap { isPacked in
        [false, true].map { DriverStyle(isPacked: isPacked, usesIndirect: true, hasEventIndex: true, isInOrder: $0) }
    }

    private func header(_ type: UInt32, _ sector: UInt64 = 0) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes.store(type, at: 0)
        bytes.store(sector, at: 8)
        return .readable(bytes)
    }

    private func write(_ sector: UInt64, _ value: UInt8) -> [ModelQueue.Part] {
        [header(1, sector), .readable([UInt8](repeating: value, count: 512)), .writable(1)]
    }

    private func start(
        _ path: BlockPath, _ disk: any BlockBackend, _ style: DriverStyle = DriverStyle(),
        _ action: BlockConfigurationOptions.ErrorAction = .stop
    ) throws -> (ModelDriver, BlockBench) {
        let bench = try BlockBench(path, disk, options: BlockConfigurationOptions(onError: action))
        let driver = try ModelDriver(bench.device, style: style)
        driver.attachments = [bench]
        try #require(driver.start(features: BlockFeature.flush))
        return (driver, bench)
    }

    /// Waits until so many are held.
    private func waitForHeld(_ count: Int, _ device: VirtioBlock) {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while device.heldRequestCount < count, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 50_000)
        }
        #expect(device.heldRequestCount == count)
    }

    private let full = BlockError("no room", isOutOfSpace: true)

    @Test("Held, tried in vain, and done when the trouble is over", arguments: BlockPath.available, styles)
    func retry(path: BlockPath, style: DriverStyle) throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(path, disk, style, .stopWhenFull)
        let reasons = Mutex<[String]>([])
        bench.device.onHold { reason in reasons.withLock { $0.append(reason) } }
        disk.fail(full)
        for sector in 0..<UInt64(3) { try driver.queues[0].submit(write(sector, 0xA0 + UInt8(sector))) }
        try driver.queues[0].submit([header(4), .writable(1)])
        driver.notify()
        waitForHeld(4, bench.device)
        // Told behind that, by whoever executed it.
        _ = eventually { reasons.withLock { $0.count } >= 4 ? true : nil }
        #expect(reasons.withLock { $0 } == Array(repeating: "no room", count: 4))
        #expect(try driver.queues[0].collect().isEmpty)
        bench.device.retryHeldRequests()
        waitForHeld(4, bench.device)
        disk.fail(nil)
        bench.device.retryHeldRequests()
        let used = driver.waitForUsed(count: 4)
        #expect(used.count == 4 && used.allSatisfy { $0.bytes == [0] })
        #expect(bench.device.heldRequestCount == 0 && driver.transport.queues[0].outstanding == 0)
        #expect(disk.bytes[0] == 0xA0 && disk.bytes[512] == 0xA1 && disk.bytes[1024] == 0xA2)
    }

    /// (what is done about errors, the error, status; nil: held)
    @Test(
        "What is held and what is reported", arguments: BlockPath.available,
        [
            (.report, BlockError("no room", isOutOfSpace: true), 1), (.report, BlockError("no"), 1),
            (.stop, BlockError("no room", isOutOfSpace: true), nil), (.stop, BlockError("no"), nil),
            (.stop, BlockError("no", isUnsupported: true), 2), (.stopWhenFull, BlockError("no"), 1),
            (.stopWhenFull, BlockError("no room", isOutOfSpace: true), nil),
        ] as [(BlockConfigurationOptions.ErrorAction, BlockError, UInt8?)])
    func actions(path: BlockPath, row: (BlockConfigurationOptions.ErrorAction, BlockError, UInt8?)) throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(path, disk, DriverStyle(), row.0)
        disk.fail(row.1)
        try driver.queues[0].submit(write(0, 1))
        driver.notify()
        if let status = row.2 {
            #expect(driver.waitForUsed(count: 1).map(\.bytes) == [[status]])
        } else {
            waitForHeld(1, bench.device)
        }
        // What no back end could do is no reason to stop.
        disk.fail(nil)
        #expect(try driver.request([header(0, 128), .writable(512), .writable(1)])?.bytes.last == 1)
    }

    @Test("A saved device has what it holds, and a restored one does it", arguments: BlockPath.available, styles)
    func savedState(path: BlockPath, style: DriverStyle) throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(path, disk, style)
        disk.fail(BlockError("no"))
        try driver.queues[0].submit(write(1, 0xB1))
        try driver.queues[0].submit([header(0, 8), .writable(512), .writable(1)])
        driver.notify()
        waitForHeld(2, bench.device)
        disk.fail(nil)
        // Others go on meanwhile; in order they are seen only behind the first.
        var used: [ModelQueue.Used] = []
        for sector in 2..<UInt64(12) {
            try driver.queues[0].submit(write(sector + 20, UInt8(sector)))
            driver.notify()
            if !style.isInOrder { used += driver.waitForUsed(count: 1) }
        }
        driver.transport.pause()
        #expect(used.count == (style.isInOrder ? 0 : 10))
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        let state = try VirtioBlockSavedState(encoded: saved.device)
        #expect(state.held.count >= 2)
        let other = try BlockBench(path, disk, restoring: state)
        let restored = ModelDriver(
            continuing: driver, with: try VirtioPCIDevice(restoring: saved, other.device, memory: driver.memory))
        restored.attachments = [other]
        restored.transport.resume()
        used += restored.waitForUsed(count: 12 - used.count)
        #expect(used.map(\.token).sorted() == Array(0..<12))
        #expect(used.allSatisfy { $0.bytes.last == 0 })
        if style.isInOrder { #expect(used.map(\.token) == Array(0..<12)) }
        #expect(used.first { $0.token == 1 }?.bytes == [UInt8](repeating: 9, count: 512) + [0])
        #expect(disk.bytes[512] == 0xB1 && disk.bytes[31 * 512] == 11)
        #expect(other.device.heldRequestCount == 0 && restored.transport.queues[0].outstanding == 0)
        // The queue is as good as new.
        #expect(try restored.request(write(40, 1))?.bytes == [0])
    }

    @Test("A pause and its end try again; a reset forgets", arguments: BlockPath.available, styles)
    func pauseAndReset(path: BlockPath, style: DriverStyle) throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(path, disk, style)
        disk.fail(full)
        try driver.queues[0].submit(write(1, 0xC1))
        driver.notify()
        waitForHeld(1, bench.device)
        driver.transport.pause()
        bench.device.retryHeldRequests()
        #expect(bench.device.heldRequestCount == 1)
        disk.fail(nil)
        driver.transport.resume()
        #expect(driver.waitForUsed(count: 1).map(\.bytes) == [[0]])
        #expect(disk.bytes[512] == 0xC1)
        disk.fail(full)
        try driver.queues[0].submit(write(1, 0xC2))
        driver.notify()
        waitForHeld(1, bench.device)
        driver.setStatus(0)
        #expect(bench.device.heldRequestCount == 0)
        disk.fail(nil)
        try #require(driver.start(features: BlockFeature.flush))
        bench.device.retryHeldRequests()
        #expect(try driver.request(write(2, 0xC3))?.bytes == [0])
        #expect(disk.bytes[512] == 0xC1 && disk.bytes[1024] == 0xC3)
    }

    @Test("A saved state that was meddled with is refused or harmless")
    func hostileState() throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let (driver, bench) = try start(.immediate, disk)
        disk.fail(full)
        try driver.queues[0].submit(write(1, 1))
        driver.notify()
        waitForHeld(1, bench.device)
        driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        for count in 0..<saved.device.count {
            #expect(throws: SavedStateError.self) {
                try VirtioBlockSavedState(encoded: Array(saved.device.prefix(count)))
            }
        }
        disk.fail(nil)
        var random = SeededGenerator(seed: 3)
        for _ in 0..<2000 {
            var bytes = saved.device
            // Behind the version, the size and the cache mode.
            let place = Int.random(in: 13..<bytes.count, using: &random)
            bytes[place] = UInt8.random(in: 0...255, using: &random)
            guard let state = try? VirtioBlockSavedState(encoded: bytes) else { continue }
            guard let device = try? VirtioBlock(restoring: state, disk, runner: ImmediateRunner(), parallelism: 1)
            else { continue }
            let restored = try VirtioPCIDevice(restoring: saved, device, memory: driver.memory)
            restored.resume()
            #expect(device.heldRequestCount == 0)
            restored.shutDown()
        }
    }

    @Test("A full file system is told from other errors")
    func outOfSpace() throws {
        for (number, isFull) in [(Int32(28), true), (122, true), (5, false)] {
            let storage = DescriptorStorage(
                BorrowedDescriptor(-1), size: 4096, failure: DiskError(.host(number), "Cannot write"))
            let disk = ImageDisk(try RawDisk(storage))
            let error = #expect(throws: BlockError.self) {
                try disk.write(from: IOSegments([], owner: storage), at: 0)
            }
            #expect(error?.isOutOfSpace == isFull)
        }
    }
}
