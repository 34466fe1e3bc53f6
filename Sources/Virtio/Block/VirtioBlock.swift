public import DeviceModel
public import Host
internal import Synchronization

/// A block device (Virtio 1.2 §5.2) on any back end. With a ring, reads and writes are the host kernel's as soon as they
/// come, and the runner's threads do what is more than to move bytes; without one they execute all requests, several of
/// one queue at once.
public final class VirtioBlock: VirtioDevice {
    // Configuration
    let backend: any BlockBackend
    let options: BlockConfigurationOptions
    let ring: SubmissionRing?
    let runner: any JobRunner
    /// Requests of one queue that the runner executes at once.
    let parallelism: Int
    /// Does not change; the back end may have to wait to tell.
    let sectorCount: UInt64
    // Glue
    private let context = Mutex<VirtioContext?>(nil)
    let holdObserver = Mutex<HoldObserver?>(nil)
    /// For the thread beside the vCPU, where notifications come in exits.
    let notifiers = Mutex<[EventNotifier]?>(nil)
    // Volatile state
    let state: Mutex<BlockState>
    let limiter: Mutex<TrafficLimiter>
    /// Until then, in monotonic nanoseconds, writes into the page cache are expected to take long.
    let slowWritesUntil = Atomic<UInt64>(0)
    /// Reads left that are not tried from the page cache, since it did not have one.
    let coldReads = Atomic<Int>(0)

    static let sectorSize: UInt64 = 512
    private static let queueSize: UInt16 = 256
    /// What a chain of ours leaves beside header and status.
    private static let segmentLimit: UInt32 = UInt32(queueSize) - 2
    /// The most that one discard or write-zeroes request can ask for, in ranges and in sectors of each.
    static let rangeLimit: UInt32 = 16
    static let rangeSectors: UInt32 = 1 << 22

    /// With a ring somebody calls `reap` whenever its `completions` are signalled.
    public init(
        _ backend: any BlockBackend, options: BlockConfigurationOptions = BlockConfigurationOptions(),
        runner: any JobRunner, parallelism: Int = 4, ring: SubmissionRing? = nil
    ) {
        self.backend = backend
        self.options = options
        self.ring = ring
        sectorCount = backend.size / Self.sectorSize
        self.runner = runner
        self.parallelism = max(1, parallelism)
        state = Mutex(BlockState(queueCount: options.queueCount))
        limiter = Mutex(options.limits.makeLimiter())
    }

    /// With the same disk as the one that was saved.
    public convenience init(
        restoring saved: VirtioBlockSavedState, _ backend: any BlockBackend,
        options: BlockConfigurationOptions = BlockConfigurationOptions(), runner: any JobRunner, parallelism: Int = 4,
        ring: SubmissionRing? = nil
    ) throws(SavedStateError) {
        guard saved.size == backend.size else {
            throw .invalid(identifier: VirtioBlockSavedState.identifier, field: "size")
        }
        self.init(backend, options: options, runner: runner, parallelism: parallelism, ring: ring)
        guard saved.held.allSatisfy({ $0.queue < options.queueCount }) else {
            throw .invalid(identifier: VirtioBlockSavedState.identifier, field: "held")
        }
        state.withLock { state in
            state.isWriteback = saved.isWriteback
            state.held = saved.held
            state.isHeldFromBefore = true
        }
    }

    public func saveState() -> [UInt8] {
        let (isWriteback, held) = state.withLock { ($0.isWriteback, $0.held) }
        return VirtioBlockSavedState(size: backend.size, isWriteback: isWriteback, held: held).encoded()
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
        bytes.store(sectorCount, at: BlockConfiguration.capacity)
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

    var currentContext: VirtioContext? { context.withLock { $0 } }

    public func start(_ context: VirtioContext) {
        adoptHeld(context)
        self.context.withLock { $0 = context }
        state.withLock { $0.retriesHeld = !$0.held.isEmpty }
    }

    /// What is held stays so: it is saved, or tried again after the next start, or gone with a reset.
    public func stop() {
        if let context = currentContext { holdHiddenAnswers(context) }
        context.withLock { $0 = nil }
    }

    public func queueWasReset(_ queue: Int) { state.withLock { $0.held.removeAll { $0.queue == queue } } }
    public func reset() { state.withLock { $0 = BlockState(queueCount: options.queueCount) } }

    public func notify(_ queue: Int) -> Bool {
        guard let context = currentContext else { return false }
        // The transport notifies every queue behind a start.
        let isFirst = state.withLock { state in
            defer { state.retriesHeld = false }
            return state.retriesHeld
        }
        if isFirst { retryHeldRequests() }
        if let ring {
            if isTurnOfThread(queue) { return false }
            return takeOwnTurn(queue, ring, context)
        }
        state.withLock { $0.lanes[queue].hasNews = true }
        startWorker(queue, context)
        return false
    }
}
