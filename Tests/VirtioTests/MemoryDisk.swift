import DeviceModel
import Disk
import Host
import Synchronization
import Testing

@testable import Virtio

/// A disk in a file without a name that fails when it is told to.
final class MemoryDisk: BlockBackend {
    struct State: Sendable {
        var failure: BlockError?
        var flushes = 0
        var discards: [Range<UInt64>] = []
        var leases = 0
    }

    let isReadOnly: Bool
    let size: UInt64
    let state = Mutex(State())
    private let storage: FileStorage

    init(size: Int, isReadOnly: Bool = false) throws {
        self.size = UInt64(size)
        self.isReadOnly = isReadOnly
        storage = try FileStorage(unnamedIn: "/tmp")
        bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
    }

    func fail(_ error: BlockError?) { state.withLock { $0.failure = error } }
    var flushes: Int { state.withLock { $0.flushes } }

    var bytes: [UInt8] {
        get {
            let buffer = PageBuffer(count: Int(size))
            #expect(throws: Never.self) { try storage.read(into: buffer.memory, at: 0) }
            return buffer.bytes
        }
        set { #expect(throws: Never.self) { try storage.write(PageBuffer(newValue).memory, at: 0) } }
    }

    private func change(_ body: (inout State) -> Void) throws(BlockError) {
        let failure = state.withLock { state in
            if state.failure == nil { body(&state) }
            return state.failure
        }
        if let failure { throw failure }
    }

    private func change(_ body: () throws(DiskError) -> Void) throws(BlockError) {
        try change { (_: inout State) in }
        do throws(DiskError) { try body() } catch { throw BlockError("\(error)") }
    }

    func read(into segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try change { () throws(DiskError) in try storage.read(into: TransferMemory(segments), at: offset) }
    }

    func write(from segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try change { () throws(DiskError) in try storage.write(TransferMemory(segments), at: offset) }
    }

    /// What is to fail fails for whoever has the lease, too.
    func lease(_ segments: IOSegments, at offset: UInt64, forWriting: Bool) -> BlockLease? {
        let fails = state.withLock { state in
            state.leases += 1
            return state.failure != nil
        }
        // Not known to be cached: also writes are the ring's.
        let storage = DescriptorStorage(fails ? BorrowedDescriptor(-1) : storage.descriptor ?? BorrowedDescriptor(-1))
        return BlockLease(parts: [.init(memory: TransferMemory(segments), storage: storage, offset: offset)])
    }

    func flush() throws(BlockError) { try change { $0.flushes += 1 } }

    func discard(at offset: UInt64, count: UInt64) throws(BlockError) {
        try change { $0.discards.append(offset..<offset + count) }
    }

    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError) {
        try change { () throws(DiskError) in
            try storage.writeZeroes(offset..<offset + count, mayUnmap: mayUnmap)
        }
    }
}

/// Storage for leases alone: somebody's descriptor.
final class DescriptorStorage: ImageStorage {
    let descriptor: BorrowedDescriptor?
    let path = "a descriptor"
    let isWritable = true
    let identity: BlockFile.Identity? = nil
    let logicalBlockSize = 512

    private let size: UInt64?
    private let failure: DiskError

    /// With a size it can be a disk whose transfers end in `failure`.
    init(
        _ descriptor: BorrowedDescriptor, size: UInt64? = nil,
        failure: DiskError = DiskError(.unsupported, "a descriptor is for leases")
    ) {
        self.descriptor = descriptor
        self.size = size
        self.failure = failure
    }

    func descriptor(for memory: TransferMemory, at offset: UInt64) -> BorrowedDescriptor? { descriptor }

    func currentSize() throws(DiskError) -> UInt64 {
        guard let size else { throw failure }
        return size
    }
    func allocatedSize() throws(DiskError) -> UInt64 { throw failure }
    func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError) { throw failure }
    func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) { throw failure }
    func flush() throws(DiskError) { throw failure }
    func truncate(to size: UInt64) throws(DiskError) { throw failure }
    func allocate(_ range: Range<UInt64>) throws(DiskError) { throw failure }
    func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError) { throw failure }
    func discard(_ range: Range<UInt64>) throws(DiskError) { throw failure }
    func extent(at offset: UInt64) -> (isData: Bool, end: UInt64) { (true, .max) }
    func close() {}
}

/// Who executes the requests of a disk under test.
enum BlockPath: String, CaseIterable, Sendable {
    /// In the notification.
    case immediate
    case threads
    case ring

    static let available = (try? SubmissionRing()) == nil ? [immediate, threads] : allCases
    static let hasRing = available.contains(ring)
}

/// A disk with the threads that it works on, which end with it.
final class BlockBench {
    let device: VirtioBlock
    let ring: SubmissionRing?
    let loop: DoorbellThread
    private let runner: any JobRunner

    init(
        _ path: BlockPath, _ backend: any BlockBackend,
        options: BlockConfigurationOptions = BlockConfigurationOptions(), restoring saved: VirtioBlockSavedState? = nil
    ) throws {
        let runner: any JobRunner = path == .immediate ? ImmediateRunner() : WorkerPool(name: "test disk", limit: 4)
        let ring = path == .ring ? try SubmissionRing() : nil
        let parallelism = path == .immediate ? 1 : 4
        if let saved {
            device = try VirtioBlock(
                restoring: saved, backend, options: options, runner: runner, parallelism: parallelism, ring: ring)
        } else {
            device = VirtioBlock(backend, options: options, runner: runner, parallelism: parallelism, ring: ring)
        }
        self.ring = ring
        self.runner = runner
        loop = try DoorbellThread()
        if let ring { try loop.listen(to: ring.completions) { [device] in device.reap() } }
    }

    deinit {
        loop.stop()
        runner.stop()
    }
}
