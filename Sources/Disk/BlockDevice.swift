public import Host

/// What a disk can do, for whoever presents it to a guest.
public struct BlockCapabilities: Equatable, Sendable {
    public var isReadOnly: Bool
    /// The unit in which requests should come, in bytes; others work, and cost a read.
    public var logicalBlockSize: Int
    /// The unit in which discarding has an effect, in bytes; 0 where it has none.
    public var discardGranularity: Int
    /// Whether zeros can be written without writing them.
    public var hasFastZeroes: Bool
}

/// What is behind a range of a disk, as of now: whoever moves the bytes itself takes a `BlockLease`.
public enum BlockMapping: Sendable {
    /// Bytes of a file, from `offset` on. Valid until the range is next written, discarded or zeroed.
    case data(any ImageStorage, offset: UInt64)
    case zero
    /// To be decompressed.
    case compressed
    /// Not in this image, and there is no backing file: zeros.
    case unallocated
    /// Not in this image, but perhaps in its backing file.
    case backing(any BlockDevice)
}

/// A mapping and how much of the disk it holds for.
public struct BlockExtent: Sendable {
    public var mapping: BlockMapping
    public var count: UInt64
}

/// An open disk. All calls may come from any thread at any time; requests that overlap take effect in some order.
/// A write is acknowledged when the call returns, and lasts through a power cut once a later `flush()` has returned.
/// An error leaves the range of that request undefined and everything else as it was.
public protocol BlockDevice: AnyObject, Sendable {
    /// In bytes.
    var size: UInt64 { get }
    var capabilities: BlockCapabilities { get }

    func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError)
    func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError)
    /// The range reads as zeros afterwards; it keeps its space unless `mayUnmap`.
    func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError)
    /// The range's content is not needed any more. What it reads as afterwards is not said.
    func discard(_ range: Range<UInt64>) throws(DiskError)
    /// The range of `memory` at `offset`, for the caller to move. Never waits: nil where somebody changes the range, where
    /// it takes more than moving bytes (decompressing, allocating, reading a table), and where it is an error; then `read`
    /// or `write` does it.
    func lease(_ memory: TransferMemory, at offset: UInt64, forWriting: Bool) -> BlockLease?
    func flush() throws(DiskError)
    /// What is behind `offset`; at most `limit` bytes of it, and at least one.
    func extent(at offset: UInt64, limit: UInt64) throws(DiskError) -> BlockExtent
    /// Changes the size; new space reads as zeros.
    func resize(to size: UInt64) throws(DiskError)
    /// Flushes and gives up the files. Nothing may be called afterwards.
    func close() throws(DiskError)
}

extension BlockDevice {
    public func lease(_ memory: TransferMemory, at offset: UInt64, forWriting: Bool) -> BlockLease? { nil }

    /// Fails unless `count` bytes at `offset` are inside the disk.
    func requireInside(_ offset: UInt64, _ count: UInt64) throws(DiskError) {
        guard offset <= size, count <= size - offset else {
            throw DiskError(.outOfRange, "\(count) bytes at \(offset) go past the end of the disk, \(size)")
        }
    }

    public func read(count: Int, at offset: UInt64) throws(DiskError) -> [UInt8] {
        let buffer = PageBuffer(count: count)
        try read(into: buffer.memory, at: offset)
        return buffer.bytes
    }

    public func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
        try write(PageBuffer(bytes).memory, at: offset)
    }
}

/// How writes reach the medium, as QEMU's names have it.
public enum CacheMode: String, CaseIterable, Sendable {
    /// Past the host's page cache (O_DIRECT).
    case none
    /// Through the page cache; on the medium after a flush.
    case writeback
    /// Through the page cache; on the medium when a write returns.
    case writethrough
}
