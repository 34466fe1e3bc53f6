public import DeviceModel
internal import GuestMemory
public import Host
internal import Synchronization

/// How a disk is presented and kept.
public struct BlockConfigurationOptions: Equatable, Sendable {
    /// When a completed write is on the medium.
    public enum Cache: String, CaseIterable, Sendable {
        /// After the driver's next flush.
        case writeback
        /// The same, and the image is opened past the host's page cache.
        case none
        /// When it completes, whatever the driver says.
        case writethrough
        /// Perhaps never: flushes do nothing. For disks that are thrown away.
        case unsafe
    }

    /// What GET_ID says; 20 bytes at most (Virtio 1.2 §5.2.6).
    public var serial: String
    public var queueCount: Int
    public var cache: Cache
    public var limits: BlockRateLimits
    /// The exponent of a physical block's size in logical ones: 3 for 4 KiB.
    public var physicalBlockExponent: UInt8

    public static let serialLimit = 20

    public init(
        serial: String = "", queueCount: Int = 1, cache: Cache = .writeback,
        limits: BlockRateLimits = BlockRateLimits(), physicalBlockExponent: UInt8 = 3
    ) {
        precondition((1...16).contains(queueCount) && physicalBlockExponent < 8)
        self.serial = serial
        self.queueCount = queueCount
        self.cache = cache
        self.limits = limits
        self.physicalBlockExponent = physicalBlockExponent
    }
}

/// A block device (Virtio 1.2 §5.2) on any back end. Requests are executed by the runner's threads, several of one queue
/// at once.
public final class VirtioBlock: VirtioDevice {
    // Configuration
    private let backend: any BlockBackend
    private let options: BlockConfigurationOptions
    private let runner: any JobRunner
    /// Requests of one queue that are executed at once.
    private let parallelism: Int
    // Glue
    private let context = Mutex<VirtioContext?>(nil)
    // Volatile state
    private let state: Mutex<BlockState>
    private let limiter: Mutex<BlockRateLimiter>

    static let sectorSize: UInt64 = 512
    private static let queueSize: UInt16 = 256
    /// What a chain of ours leaves beside header and status.
    private static let segmentLimit: UInt32 = UInt32(queueSize) - 2
    /// The most that one discard or write-zeroes request can ask for, in ranges and in sectors of each.
    private static let rangeLimit: UInt32 = 16
    private static let rangeSectors: UInt32 = 1 << 22

    public init(
        _ backend: any BlockBackend, options: BlockConfigurationOptions = BlockConfigurationOptions(),
        runner: any JobRunner, parallelism: Int = 4
    ) {
        self.backend = backend
        self.options = options
        self.runner = runner
        self.parallelism = max(1, parallelism)
        state = Mutex(BlockState(queueCount: options.queueCount))
        limiter = Mutex(BlockRateLimiter(options.limits))
    }

    /// With the same disk as the one that was saved.
    public convenience init(
        restoring saved: VirtioBlockSavedState, _ backend: any BlockBackend,
        options: BlockConfigurationOptions = BlockConfigurationOptions(), runner: any JobRunner, parallelism: Int = 4
    ) throws(SavedStateError) {
        guard saved.size == backend.size else {
            throw .invalid(identifier: VirtioBlockSavedState.identifier, field: "size")
        }
        self.init(backend, options: options, runner: runner, parallelism: parallelism)
        state.withLock { $0.isWriteback = saved.isWriteback }
    }

    public func saveState() -> [UInt8] {
        VirtioBlockSavedState(size: backend.size, isWriteback: state.withLock { $0.isWriteback }).encoded()
    }

    // MARK: What the driver sees

    public let kind = VirtioKind(name: "virtio-blk", identifier: 2, pciClass: 0x01_8000)

    public var queueSizes: [UInt16] { Array(repeating: Self.queueSize, count: options.queueCount) }

    public var features: UInt64 {
        var features = BlockFeature.segmentLimit | BlockFeature.blockSize | BlockFeature.topology
        features |= BlockFeature.flush
        if options.cache != .writethrough { features |= BlockFeature.configurableCache }
        if options.queueCount > 1 { features |= BlockFeature.multiqueue }
        return features
            | (backend.isReadOnly ? BlockFeature.readOnly : BlockFeature.discard | BlockFeature.writeZeroes)
    }

    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: BlockConfiguration.size)
        bytes.store(backend.size / Self.sectorSize, at: BlockConfiguration.capacity)
        bytes.store(Self.segmentLimit, at: BlockConfiguration.segmentLimit)
        bytes.store(UInt32(Self.sectorSize), at: BlockConfiguration.blockSize)
        bytes.store(options.physicalBlockExponent, at: BlockConfiguration.physicalBlockExponent)
        bytes.store(UInt16(1) << UInt16(options.physicalBlockExponent), at: BlockConfiguration.minimumTransfer)
        bytes.store(UInt8(state.withLock { $0.isWriteback } ? 1 : 0), at: BlockConfiguration.writeback)
        bytes.store(UInt16(options.queueCount), at: BlockConfiguration.queueCount)
        guard !backend.isReadOnly else { return bytes }
        bytes.store(Self.rangeSectors, at: BlockConfiguration.discardSectors)
        bytes.store(Self.rangeLimit, at: BlockConfiguration.discardSegments)
        bytes.store(UInt32(1) << UInt32(options.physicalBlockExponent), at: BlockConfiguration.discardAlignment)
        bytes.store(Self.rangeSectors, at: BlockConfiguration.zeroSectors)
        bytes.store(Self.rangeLimit, at: BlockConfiguration.zeroSegments)
        bytes.store(UInt8(1), at: BlockConfiguration.zeroMayUnmap)
        return bytes
    }

    /// The cache mode is the driver's if it has agreed on that (§5.2.5.2).
    public func writeConfiguration(_ value: UInt8, at offset: Int, features: UInt64) {
        guard offset == BlockConfiguration.writeback, features & BlockFeature.configurableCache != 0 else { return }
        state.withLock { $0.isWriteback = value & 1 != 0 }
    }

    // MARK: Life

    public func start(_ context: VirtioContext) { self.context.withLock { $0 = context } }
    public func stop() { context.withLock { $0 = nil } }
    public func reset() { state.withLock { $0 = BlockState(queueCount: options.queueCount) } }

    public func notify(_ queue: Int) -> Bool {
        guard let context = context.withLock({ $0 }) else { return false }
        state.withLock { $0.lanes[queue].hasNews = true }
        startWorker(queue, context)
        return false
    }

    /// One more worker for a queue, unless there are enough.
    private func startWorker(_ queue: Int, _ context: VirtioContext) {
        let isNeeded = state.withLock { state in
            guard state.lanes[queue].workers < parallelism else { return false }
            state.lanes[queue].workers += 1
            return true
        }
        guard isNeeded else { return }
        guard context.gate.enter() else { return state.withLock { $0.lanes[queue].workers -= 1 } }
        runner.run { [self] in
            work(queue, context)
            context.gate.leave()
        }
    }

    private func work(_ index: Int, _ context: VirtioContext) {
        let queue = context.queues[index]
        while true {
            while let chain = queue.next() {
                if parallelism > 1, queue.requestNotification() { startWorker(index, context) }
                execute(chain, queue, context)
            }
            if queue.requestNotification() { continue }
            // A notification that came since would find enough workers: it must not be lost.
            let isOver = state.withLock { state in
                guard !state.lanes[index].hasNews else {
                    state.lanes[index].hasNews = false
                    return false
                }
                state.lanes[index].workers -= 1
                return true
            }
            if isOver { return }
        }
    }

    // MARK: Requests

    private func execute(_ chain: DescriptorChain, _ queue: Virtqueue, _ context: VirtioContext) {
        let statusOffset = chain.writable.count - 1
        do throws(GuestMemoryFault) {
            let head = try chain.readable.read(from: context.memory, limit: BlockRequestHeader.size)
            guard statusOffset >= 0, let header = BlockRequestHeader(head) else {
                queue.complete(chain, written: 0)
                return context.fail("queue \(queue.index): a request has no header or no place for its status")
            }
            let status = perform(header, chain, context)
            try chain.writable.write([status.rawValue], to: context.memory, at: statusOffset)
            // The status byte comes last: it counts only where all before it does (§2.7.8.2).
            queue.complete(chain, written: status == .ok ? chain.writable.count : 1)
        } catch {
            queue.complete(chain, written: 0)
            context.fail("queue \(queue.index): \(error)")
        }
    }

    private func perform(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) -> BlockStatus {
        do throws(BlockError) {
            switch BlockRequestType(rawValue: header.type) {
            case .read: return try read(header, chain, context)
            case .write: return try write(header, chain, context)
            case .flush:
                try flush()
                return .ok
            case .identify: return identify(chain, context)
            case .discard, .writeZeroes: return try changeRanges(header, chain, context)
            case nil: return .unsupported
            }
        } catch {
            context.log.note(error.description)
            return error.isUnsupported ? .unsupported : .error
        }
    }

    /// The place on the disk; nil where it does not lie within it or is not made of sectors.
    private func place(_ sector: UInt64, count: UInt64) -> UInt64? {
        let sectors = backend.size / Self.sectorSize
        guard count % Self.sectorSize == 0, sector <= sectors, count / Self.sectorSize <= sectors - sector else {
            return nil
        }
        return sector * Self.sectorSize
    }

    private func read(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        let data = chain.writable.slice(from: 0, limit: chain.writable.count - 1)
        guard let offset = place(header.sector, count: UInt64(data.count)),
            let segments = try? context.memory.segments(data.ranges, forWriting: true)
        else { return .error }
        wait(bytes: data.count)
        // Told even after a failure: some of it may have been filled.
        defer { context.memory.noteTransfer(into: data.ranges) }
        try backend.read(into: segments, at: offset)
        return .ok
    }

    private func write(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        let data = chain.readable.slice(from: BlockRequestHeader.size)
        guard !backend.isReadOnly, let offset = place(header.sector, count: UInt64(data.count)),
            let segments = try? context.memory.segments(data.ranges, forWriting: false)
        else { return .error }
        wait(bytes: data.count)
        try backend.write(from: segments, at: offset)
        if writesThrough(context) { try backend.flush() }
        return .ok
    }

    /// A driver that cannot flush needs no flush (§5.2.6.2).
    private func writesThrough(_ context: VirtioContext) -> Bool {
        switch options.cache {
        case .unsafe: false
        case .writethrough: true
        case .writeback, .none: !context.has(BlockFeature.flush) || !state.withLock { $0.isWriteback }
        }
    }

    private func flush() throws(BlockError) {
        wait(bytes: 0)
        if options.cache != .unsafe { try backend.flush() }
    }

    private func identify(_ chain: DescriptorChain, _ context: VirtioContext) -> BlockStatus {
        let serial = Array(options.serial.utf8.prefix(BlockConfigurationOptions.serialLimit))
        let room = min(chain.writable.count - 1, BlockConfigurationOptions.serialLimit)
        let bytes = serial + [UInt8](repeating: 0, count: BlockConfigurationOptions.serialLimit - serial.count)
        return (try? chain.writable.write(Array(bytes.prefix(room)), to: context.memory)) == nil ? .error : .ok
    }

    private func changeRanges(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ context: VirtioContext
    ) throws(BlockError) -> BlockStatus {
        let data = chain.readable.slice(from: BlockRequestHeader.size)
        let zeroes = header.type == BlockRequestType.writeZeroes.rawValue
        guard !backend.isReadOnly, data.count > 0, data.count % BlockRangeSegment.size == 0,
            data.count / BlockRangeSegment.size <= Int(Self.rangeLimit),
            let bytes = try? data.read(from: context.memory, limit: data.count)
        else { return .error }
        for position in stride(from: 0, to: bytes.count, by: BlockRangeSegment.size) {
            let segment = BlockRangeSegment(bytes, at: position)
            // §5.2.6.2: reserved bits, and unmap in a discard, are not supported.
            guard segment.flags & ~(zeroes ? BlockRangeSegment.unmap : 0) == 0 else { return .unsupported }
            let count = UInt64(segment.sectorCount) * Self.sectorSize
            guard segment.sectorCount <= Self.rangeSectors, let offset = place(segment.sector, count: count) else {
                return .error
            }
            guard count > 0 else { continue }
            wait(bytes: 0)
            if zeroes {
                try backend.writeZeroes(
                    at: offset, count: count, mayUnmap: segment.flags & BlockRangeSegment.unmap != 0)
            } else {
                try backend.discard(at: offset, count: count)
            }
        }
        if zeroes, writesThrough(context) { try backend.flush() }
        return .ok
    }

    /// Waits as long as the rate limits say.
    private func wait(bytes: Int) {
        guard options.limits != BlockRateLimits() else { return }
        let delay = limiter.withLock { $0.delay(bytes: bytes, now: HostClock.monotonicNanoseconds) }
        if delay > 0 { HostClock.sleep(nanoseconds: delay) }
    }
}

/// What changes while a block device runs.
struct BlockState: Sendable {
    /// One queue's workers.
    struct Lane: Sendable {
        var workers = 0
        /// Notified since a worker last found the queue empty.
        var hasNews = false
    }

    var isWriteback = true
    var lanes: [Lane]

    init(queueCount: Int) { lanes = Array(repeating: Lane(), count: queueCount) }
}
