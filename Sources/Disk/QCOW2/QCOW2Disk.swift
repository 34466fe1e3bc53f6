public import Host

/// A disk in a qcow2 image, with its backing file if it has one.
///
/// Tables are looked at and changed under one lock; data is moved outside of it, by as many threads as call.
public final class QCOW2Disk: BlockDevice, @unchecked Sendable {
    // SAFETY: the variables and `metadata` are only touched between `lock.lock()` and `lock.unlock()`, except in `init`;
    // `order` between `turns.lock()` and `turns.unlock()`.
    let metadata: QCOW2Metadata
    public let backing: (any BlockDevice)?
    let lock = Monitor()
    /// Held for moments only: whoever ends a transfer does not wait for a flush that holds `lock`.
    private let turns = Monitor()
    private var order = RequestOrder()
    private var lastDecompressed: (entry: L2Entry, bytes: PageBuffer)?
    let cache: CacheMode
    private(set) var isClosed = false
    /// Set once the image was found good to be written; before that, nothing may be.
    var isReady = false
    let isWritable: Bool
    let clusterSize: UInt64

    init(
        _ metadata: QCOW2Metadata, backing: (any BlockDevice)?, cache: CacheMode, isWritable: Bool
    ) {
        self.metadata = metadata
        self.backing = backing
        self.cache = cache
        self.isWritable = isWritable
        clusterSize = metadata.clusterSize
    }

    deinit { try? close() }

    public var path: String { metadata.storage.path }

    public var size: UInt64 {
        // What is only read does not change.
        guard isWritable else { return metadata.header.size }
        lock.lock()
        defer { lock.unlock() }
        return metadata.header.size
    }

    public var capabilities: BlockCapabilities {
        BlockCapabilities(
            isReadOnly: !isWritable, logicalBlockSize: metadata.dataStorage.logicalBlockSize,
            discardGranularity: Int(clusterSize), hasFastZeroes: true)
    }

    // MARK: The order of requests

    /// Waits until the clusters of the range may be used in that way.
    func enter(_ range: Range<UInt64>, exclusive: Bool) -> RequestOrder.Ticket {
        let whole = clusters(around: range)
        turns.lock()
        defer { turns.unlock() }
        if let ticket = order.tryEnter(whole, exclusive: exclusive) { return ticket }
        let ticket = order.queue(whole, exclusive: exclusive)
        while !order.tryStart(ticket) { turns.wait() }
        // Those behind it that it does not disturb may start with it.
        turns.wakeAll()
        return ticket
    }

    /// The same, if nobody has to be waited for.
    func tryEnter(_ range: Range<UInt64>, exclusive: Bool) -> RequestOrder.Ticket? {
        let whole = clusters(around: range)
        turns.lock()
        defer { turns.unlock() }
        return order.tryEnter(whole, exclusive: exclusive)
    }

    private func clusters(around range: Range<UInt64>) -> Range<UInt64> {
        let mask = clusterSize - 1
        return range.lowerBound & ~mask..<(max(range.upperBound, range.lowerBound + 1) &+ mask) & ~mask
    }

    func leave(_ ticket: RequestOrder.Ticket) {
        turns.lock()
        order.leave(ticket)
        turns.unlock()
        turns.wakeAll()
    }

    /// Runs `body` under the lock while no request runs, for what changes the image as a whole.
    func alone<Result>(_ body: (QCOW2Metadata) throws(DiskError) -> Result) throws(DiskError) -> Result {
        let ticket = enter(0..<1 << 62, exclusive: true)
        defer { leave(ticket) }
        lock.lock()
        defer { lock.unlock() }
        lastDecompressed = nil
        return try body(metadata)
    }

    func requireWritable() throws(DiskError) {
        guard isWritable else { throw DiskError(.readOnly, "Cannot write to \(path): it was opened for reading") }
    }

    // MARK: Reading

    public func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        try requireInside(offset, UInt64(memory.count))
        let ticket = enter(offset..<offset + UInt64(memory.count), exclusive: false)
        defer { leave(ticket) }
        try readMapped(into: memory, at: offset)
    }

    /// Without looking at the order of requests: the caller has the range.
    func readMapped(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        var done = 0
        while done < memory.count {
            let run = try run(at: offset + UInt64(done), limit: UInt64(memory.count - done))
            let count = Int(run.count)
            try read(run, into: memory.part(done..<done + count), at: offset + UInt64(done))
            done += count
        }
    }

    func run(at offset: UInt64, limit: UInt64) throws(DiskError) -> ClusterRun {
        lock.lock()
        defer { lock.unlock() }
        return try metadata.run(at: offset, limit: limit)
    }

    private func read(_ run: ClusterRun, into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        switch run.kind {
        case .data: try metadata.dataStorage.read(into: memory, at: run.hostOffset)
        case .zero, .zeroAllocated: memory.clear()
        case .compressed:
            let cluster = try decompressed(run.entry)
            memory.copy(from: cluster, at: Int(offset & (clusterSize - 1)))
        case .unallocated: try readBacking(into: memory, at: offset)
        }
    }

    /// What lies beyond the end of a backing file reads as zeros.
    private func readBacking(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        guard let backing, offset < backing.size else { return memory.clear() }
        let count = Int(min(UInt64(memory.count), backing.size - offset))
        try backing.read(into: memory.part(0..<count), at: offset)
        memory.part(count..<memory.count).clear()
    }

    private func decompressed(_ entry: L2Entry) throws(DiskError) -> PageBuffer {
        lock.lock()
        let last = lastDecompressed
        lock.unlock()
        if let last, last.entry == entry { return last.bytes }
        let range = CompressedRange(entry, clusterBits: metadata.header.clusterBits)
        let input = try metadata.storage.read(count: Int(range.count), at: range.offset)
        guard let bytes = metadata.header.compression.decompress(input, clusterSize: Int(clusterSize)) else {
            throw DiskError(
                .corrupt,
                "\(path): the compressed cluster at \(range.offset) cannot be decompressed. Restore it from a backup")
        }
        lock.lock()
        lastDecompressed = (entry, bytes)
        lock.unlock()
        return bytes
    }

    /// Called under the lock when compressed clusters come and go.
    func forgetDecompressed() { lastDecompressed = nil }

    public func extent(at offset: UInt64, limit: UInt64) throws(DiskError) -> BlockExtent {
        try requireInside(offset, 1)
        let run = try run(at: offset, limit: min(max(limit, 1), size - offset))
        let mapping: BlockMapping =
            switch run.kind {
            case .data: .data(metadata.dataStorage, offset: run.hostOffset)
            case .zero, .zeroAllocated: .zero
            case .compressed: .compressed
            case .unallocated: backing.map { .backing($0) } ?? .unallocated
            }
        return BlockExtent(mapping: mapping, count: run.count)
    }

    // MARK: Lasting

    public func flush() throws(DiskError) {
        guard isWritable else { return }
        lock.lock()
        let failure = metadata.flushFailure
        guard failure == nil, metadata.hasDirtyTables || !metadata.pendingFrees.isEmpty else {
            lock.unlock()
            if let failure { throw failure }
            // Nothing but data: it need not keep others waiting.
            return try flushData()
        }
        defer { lock.unlock() }
        try metadata.requireSound()
        forgetDecompressed()
        try metadata.commit(durable: true)
    }

    private func flushData() throws(DiskError) {
        do throws(DiskError) {
            if metadata.hasDataFile { try metadata.dataStorage.flush() }
            try metadata.storage.flush()
        } catch {
            lock.lock()
            defer { lock.unlock() }
            metadata.flushFailure = error
            throw error
        }
    }

    func flushIfWritethrough() throws(DiskError) {
        if cache == .writethrough { try flush() }
    }

    public func close() throws(DiskError) {
        lock.lock()
        let isFirst = !isClosed
        isClosed = true
        lock.unlock()
        guard isFirst else { return }
        defer {
            metadata.storage.close()
            metadata.dataStorage.close()
        }
        if isWritable, isReady {
            lock.lock()
            defer { lock.unlock() }
            try metadata.bitmaps?.store(in: metadata)
            if !metadata.isCorrupt { try metadata.finish() }
        }
        try backing?.close()
    }
}
