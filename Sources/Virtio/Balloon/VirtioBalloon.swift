internal import DeviceModel
internal import GuestMemory
internal import Host
internal import Synchronization
internal import X86

/// What the guest says about its memory (Virtio 1.2 §5.5.6.3), by tag.
public struct BalloonStatistics: Equatable, Sendable {
    public enum Tag: UInt16, CaseIterable, Sendable {
        case swappedIn = 0
        case swappedOut = 1
        case majorFaults = 2
        case minorFaults = 3
        case free = 4
        case total = 5
        case available = 6
        case caches = 7
        case hugePageAllocations = 8
        case hugePageFailures = 9
    }

    public var values: [Tag: UInt64] = [:]
}

/// A memory balloon (Virtio 1.2 §5.5): takes pages that the guest gives up and returns them to the host; with free page
/// reporting also those that the guest only does not use.
public final class VirtioBalloon: VirtioDevice {
    // Glue
    private let context = Mutex<VirtioContext?>(nil)
    // Volatile state
    private let state: Mutex<BalloonState>

    /// Feature bits (§5.5.3).
    enum Feature {
        static let statistics: UInt64 = 1 << 1
        static let deflateOnOOM: UInt64 = 1 << 2
        static let reporting: UInt64 = 1 << 5
    }

    private enum Queue {
        static let inflate = 0
        static let deflate = 1
        static let statistics = 2
        /// §5.5.2 has free page hinting before it; a queue of a feature that is not offered does not exist, and drivers
        /// number those that do.
        static let reporting = 3
    }

    /// A page of the balloon, whatever the guest's own pages are (§5.5.6).
    private static let pageSize = 4096
    /// What one buffer of page numbers may hold.
    private static let batchLimit = 4096
    private static let statisticSize = 10

    /// `targetPages` pages of 4 KiB are asked for from the start.
    public init(targetPages: UInt32 = 0, options: BalloonOptions = BalloonOptions()) {
        features =
            Feature.statistics | (options.deflatesOnOOM ? Feature.deflateOnOOM : 0)
            | (options.reportsFreePages ? Feature.reporting : 0)
        queueSizes = [128, 128, 16] + (options.reportsFreePages ? [64] : [])
        state = Mutex(BalloonState(targetPages: targetPages))
    }

    public convenience init(restoring saved: VirtioBalloonSavedState, options: BalloonOptions = BalloonOptions()) {
        self.init(targetPages: saved.targetPages, options: options)
        state.withLock { $0.actualPages = saved.actualPages }
    }

    public func saveState() -> [UInt8] {
        state.withLock { VirtioBalloonSavedState(targetPages: $0.targetPages, actualPages: $0.actualPages).encoded() }
    }

    // MARK: For the host's side

    /// How many pages of 4 KiB the guest is asked to give up.
    public func setTarget(pages: UInt32) {
        state.withLock { $0.targetPages = pages }
        context.withLock { $0 }?.noteConfigurationChange()
    }

    /// What the guest has given up, as it says.
    public var actualPages: UInt32 { state.withLock { $0.actualPages } }

    /// Bytes of free pages that were reported and went back to the host, each time that they did.
    public var reportedBytes: UInt64 { state.withLock { $0.reportedBytes } }

    /// The last statistics that the guest sent.
    public var lastStatistics: BalloonStatistics { state.withLock { $0.statistics } }

    /// The last statistics that the guest sent, and a request for newer ones.
    public func statistics() -> BalloonStatistics {
        let (result, chain) = state.withLock { state in
            defer { state.statisticsBuffer = nil }
            return (state.statistics, state.statisticsBuffer)
        }
        // The guest sends new ones when it gets its buffer back (§5.5.6.3).
        if let chain, let context = context.withLock({ $0 }), context.gate.enter() {
            context.queues[Queue.statistics].complete(chain, written: 0)
            context.gate.leave()
        }
        return result
    }

    // MARK: What the driver sees

    public let kind = VirtioKind(name: "virtio-balloon", identifier: 5, pciClass: 0x05_8000)
    public let features: UInt64
    public let queueSizes: [UInt16]

    /// struct virtio_balloon_config (§5.5.4): num_pages, actual.
    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 16)
        state.withLock { state in
            bytes.store(state.targetPages, at: 0)
            bytes.store(state.actualPages, at: 4)
        }
        return bytes
    }

    public func writeConfiguration(_ value: UInt8, at offset: Int, features: UInt64) {
        guard (4..<8).contains(offset) else { return }
        let shift = UInt32(offset - 4) * 8
        state.withLock { $0.actualPages = $0.actualPages & ~(0xFF << shift) | UInt32(value) << shift }
    }

    // MARK: Life

    public func start(_ context: VirtioContext) {
        self.context.withLock { $0 = context }
    }

    /// The statistics buffer that is kept goes back to the ring: it will be taken again.
    public func stop() {
        let context = context.withLock { context in
            defer { context = nil }
            return context
        }
        let chain = state.withLock { state in
            defer { state.statisticsBuffer = nil }
            return state.statisticsBuffer
        }
        if let chain { context?.queues[Queue.statistics].putBack(chain) }
    }

    public func queueWasReset(_ queue: Int) {
        if queue == Queue.statistics { state.withLock { $0.statisticsBuffer = nil } }
    }

    public func reset() {
        state.withLock { state in
            state.actualPages = 0
            state.statistics = BalloonStatistics()
        }
    }

    public func notify(_ queue: Int) -> Bool {
        guard let context = context.withLock({ $0 }) else { return false }
        return context.queues[queue].drain { chain in
            switch queue {
            case Queue.inflate: inflate(chain, context)
            case Queue.deflate: context.queues[queue].complete(chain, written: 0)
            case Queue.statistics: keepStatistics(chain, context)
            case Queue.reporting where context.has(Feature.reporting): release(chain, context)
            default: context.queues[queue].complete(chain, written: 0)
            }
        }
    }

    /// Page numbers of 32 bits, whose pages the guest does not use until it deflates (§5.5.6.1).
    private func inflate(_ chain: DescriptorChain, _ context: VirtioContext) {
        let limit = Self.batchLimit * 4
        let bytes = (try? chain.readable.read(from: context.memory, limit: limit)) ?? []
        let pages = stride(from: 0, to: bytes.count & ~3, by: 4).map { littleEndian(bytes, at: $0, count: 4) }.sorted()
        // Neighbours together: a call for each page would cost the most, and a huge page is only free as a whole.
        var rest = pages[...]
        while let first = rest.popFirst() {
            var end = first + 1
            while let next = rest.first, next <= end {
                end = max(end, next + 1)
                rest.removeFirst()
            }
            release(first..<end, context)
        }
        context.queues[Queue.inflate].complete(chain, written: 0)
    }

    private func release(_ pages: Range<UInt64>, _ context: VirtioContext) {
        let size = UInt64(Self.pageSize)
        do throws(GuestMemoryFault) {
            let count = Int(clamping: UInt64(pages.count) * size)
            try context.memory.release(
                GuestMemoryRange(base: GuestPhysicalAddress(pages.lowerBound * size), count: count))
        } catch {
            guard pages.count > 1 else {
                return context.log.note("the balloon was given what is no memory: \(error)")
            }
            // What of it is memory counts.
            let middle = pages.lowerBound + UInt64(pages.count / 2)
            release(pages.lowerBound..<middle, context)
            release(middle..<pages.upperBound, context)
        }
    }

    /// Free page reporting (§5.5.6.5): the buffers themselves are the pages.
    private func release(_ chain: DescriptorChain, _ context: VirtioContext) {
        do throws(GuestMemoryFault) {
            for range in chain.writable.ranges {
                try context.memory.release(range)
                state.withLock { $0.reportedBytes &+= UInt64(range.count) }
            }
        } catch {
            context.log.note("free pages are no memory: \(error)")
        }
        context.queues[Queue.reporting].complete(chain, written: 0)
    }

    /// The newest buffer is kept until somebody asks for newer statistics.
    private func keepStatistics(_ chain: DescriptorChain, _ context: VirtioContext) {
        let size = Self.statisticSize
        let limit = size * 64
        var statistics = BalloonStatistics()
        let bytes = (try? chain.readable.read(from: context.memory, limit: limit)) ?? []
        for offset in stride(from: 0, to: bytes.count - bytes.count % size, by: size) {
            let tag = UInt16(truncatingIfNeeded: littleEndian(bytes, at: offset, count: 2))
            guard let tag = BalloonStatistics.Tag(rawValue: tag) else { continue }
            statistics.values[tag] = littleEndian(bytes, at: offset + 2, count: 8)
        }
        let result = statistics
        let old = state.withLock { state in
            defer { state.statisticsBuffer = chain }
            state.statistics = result
            return state.statisticsBuffer
        }
        // A driver has one; another one shows that it does not want the first kept.
        if let old { context.queues[Queue.statistics].complete(old, written: 0) }
    }
}

/// What changes while a balloon runs.
struct BalloonState: Sendable {
    var targetPages: UInt32
    var actualPages: UInt32 = 0
    var statistics = BalloonStatistics()
    var statisticsBuffer: DescriptorChain?
    var reportedBytes: UInt64 = 0

    init(targetPages: UInt32) { self.targetPages = targetPages }
}
