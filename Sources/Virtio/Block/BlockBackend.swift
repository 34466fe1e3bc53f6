public import Disk
public import Host

/// Why a disk's bytes could not be had or kept.
public struct BlockError: Error, Equatable, CustomStringConvertible {
    public var description: String
    /// The back end cannot do this at all, to any range.
    public var isUnsupported: Bool
    /// The host has no room left for it.
    public var isOutOfSpace: Bool

    public init(_ description: String, isUnsupported: Bool = false, isOutOfSpace: Bool = false) {
        self.description = description
        self.isUnsupported = isUnsupported
        self.isOutOfSpace = isOutOfSpace
    }
}

/// The bytes behind a disk. All methods but `lease` wait until they are done, and may be called by several threads at
/// once; ranges are checked against `size` by the caller.
public protocol BlockBackend: AnyObject, Sendable {
    /// Bytes; what a whole number of 512-byte sectors does not cover cannot be reached.
    var size: UInt64 { get }
    var isReadOnly: Bool { get }
    func read(into segments: IOSegments, at offset: UInt64) throws(BlockError)
    func write(from segments: IOSegments, at offset: UInt64) throws(BlockError)
    /// The range, for the caller to move as a lease says; nil, without waiting, where `read` or `write` has to do it.
    func lease(_ segments: IOSegments, at offset: UInt64, forWriting: Bool) -> BlockLease?
    /// What was written before is on the medium.
    func flush() throws(BlockError)
    /// The range may read as anything, zeroes at best, and need not be stored.
    func discard(at offset: UInt64, count: UInt64) throws(BlockError)
    /// The range reads as zeroes; with `mayUnmap` it need not be stored.
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError)
    /// Nothing is asked of it any more: what it keeps in memory gets into its file.
    func close() throws(BlockError)
}

extension BlockBackend {
    public func lease(_ segments: IOSegments, at offset: UInt64, forWriting: Bool) -> BlockLease? { nil }
    public func close() throws(BlockError) {}
}
