public import Host

/// A disk whose bytes are those of a file or block device.
public final class RawDisk: BlockDevice, @unchecked Sendable {
    // SAFETY: `knownSize` is only touched under `lock`.
    private let storage: any ImageStorage
    private let lock = Monitor()
    private var knownSize: UInt64

    /// On storage that the caller opened.
    public init(_ storage: any ImageStorage) throws(DiskError) {
        self.storage = storage
        // A last sector that is not whole reads as if zeros followed.
        knownSize = (try storage.currentSize() &+ 511) & ~511
    }

    public var size: UInt64 {
        lock.lock()
        defer { lock.unlock() }
        return knownSize
    }

    /// For input and output of one's own, with io_uring for instance: the disk's byte n is the file's byte n.
    public var descriptor: BorrowedDescriptor? { storage.descriptor }

    public var capabilities: BlockCapabilities {
        BlockCapabilities(
            isReadOnly: !storage.isWritable, logicalBlockSize: storage.logicalBlockSize, discardGranularity: 4096,
            hasFastZeroes: true)
    }

    public func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        try requireInside(offset, UInt64(memory.count))
        try storage.read(into: memory, at: offset)
    }

    public func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        try requireWritable(offset, UInt64(memory.count))
        try storage.write(memory, at: offset)
    }

    public func lease(_ memory: TransferMemory, at offset: UInt64, forWriting: Bool) -> BlockLease? {
        let size = size
        guard offset <= size, UInt64(memory.count) <= size - offset, !forWriting || storage.isWritable else {
            return nil
        }
        return BlockLease(parts: [BlockLease.Part(memory: memory, storage: storage, offset: offset)])
    }

    public func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError) {
        try requireWritable(range.lowerBound, range.upperBound - range.lowerBound)
        try storage.writeZeroes(range, mayUnmap: mayUnmap)
    }

    public func discard(_ range: Range<UInt64>) throws(DiskError) {
        try requireWritable(range.lowerBound, range.upperBound - range.lowerBound)
        try storage.discard(range)
    }

    public func flush() throws(DiskError) {
        if storage.isWritable { try storage.flush() }
    }

    public func extent(at offset: UInt64, limit: UInt64) throws(DiskError) -> BlockExtent {
        try requireInside(offset, 1)
        let (isData, end) = storage.extent(at: offset)
        let count = max(1, min(limit, min(end, size) - offset))
        return BlockExtent(mapping: isData ? .data(storage, offset: offset) : .zero, count: count)
    }

    public func resize(to size: UInt64) throws(DiskError) {
        try requireWritable(0, 0)
        try storage.truncate(to: size)
        lock.lock()
        knownSize = size
        lock.unlock()
    }

    public func close() throws(DiskError) {
        defer { storage.close() }
        try flush()
    }

    private func requireWritable(_ offset: UInt64, _ count: UInt64) throws(DiskError) {
        guard storage.isWritable else {
            throw DiskError(.readOnly, "Cannot write to \(storage.path): it was opened for reading")
        }
        try requireInside(offset, count)
    }
}
