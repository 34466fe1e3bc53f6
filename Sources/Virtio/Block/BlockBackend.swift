internal import Glibc
public import Host

/// Why a disk's bytes could not be had or kept.
public struct BlockError: Error, Equatable, CustomStringConvertible {
    public var description: String
    /// The back end cannot do this at all, to any range.
    public var isUnsupported: Bool

    public init(_ description: String, isUnsupported: Bool = false) {
        self.description = description
        self.isUnsupported = isUnsupported
    }
}

/// The bytes behind a disk. All methods wait until they are done, and may be called by several threads at once; ranges
/// are checked against `size` by the caller.
public protocol BlockBackend: AnyObject, Sendable {
    /// Bytes; what a whole number of 512-byte sectors does not cover cannot be reached.
    var size: UInt64 { get }
    var isReadOnly: Bool { get }
    func read(into segments: IOSegments, at offset: UInt64) throws(BlockError)
    func write(from segments: IOSegments, at offset: UInt64) throws(BlockError)
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
    public func close() throws(BlockError) {}
}

/// A disk whose file has its bytes one to one.
public final class RawDisk: BlockBackend {
    private let file: ImageFile

    public init(_ file: ImageFile) { self.file = file }

    public var size: UInt64 { file.size }
    public var isReadOnly: Bool { file.isReadOnly }

    public func read(into segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try translating { () throws(HostError) in try file.read(into: segments, at: offset) }
    }

    public func write(from segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try translating { () throws(HostError) in try file.write(from: segments, at: offset) }
    }

    public func flush() throws(BlockError) {
        try translating { () throws(HostError) in try file.flush() }
    }

    public func discard(at offset: UInt64, count: UInt64) throws(BlockError) {
        try translating { () throws(HostError) in try file.punchHole(at: offset, count: count) }
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError) {
        // A file system may know one of the two only; both read as zeroes afterwards.
        do throws(HostError) {
            if mayUnmap {
                try file.punchHole(at: offset, count: count)
            } else {
                try file.zeroRange(at: offset, count: count)
            }
        } catch {
            try translating { () throws(HostError) in
                if mayUnmap {
                    try file.zeroRange(at: offset, count: count)
                } else {
                    try file.punchHole(at: offset, count: count)
                }
            }
        }
    }

    private func translating(_ body: () throws(HostError) -> Void) throws(BlockError) {
        do throws(HostError) {
            try body()
        } catch {
            throw BlockError("\(error)", isUnsupported: error.isUnsupported)
        }
    }
}

extension HostError {
    /// The file system does not have the operation (fallocate(2)).
    fileprivate var isUnsupported: Bool { errorNumber == EOPNOTSUPP || errorNumber == ENOSYS }
}
