internal import CHost
internal import Glibc

/// Parts of this process's memory that one transfer fills or sends, with whatever keeps them mapped.
public struct IOSegments: @unchecked Sendable {
    // SAFETY: the memory behind the pointers is shared memory, which its users treat so, and `owner` keeps it mapped.
    public let buffers: [UnsafeMutableRawBufferPointer]
    let owner: AnyObject

    public init(_ buffers: [UnsafeMutableRawBufferPointer], owner: AnyObject) {
        self.buffers = buffers
        self.owner = owner
    }

    /// Bytes.
    public var count: Int { buffers.reduce(0) { $0 + $1.count } }
}

/// A file or block device that holds a disk's bytes: locked while it is open, and used by any thread.
public final class ImageFile: Sendable {
    public let path: String
    public let isReadOnly: Bool
    /// The size when it was opened.
    public let size: UInt64
    private let descriptor: FileDescriptor

    /// Fails with EISDIR for a directory, EINVAL for anything else that has no fixed size, and EAGAIN where another
    /// process has it open for writing, or at all if this one wants to write.
    public init(path: String, isReadOnly: Bool) throws(HostError) {
        descriptor = try FileDescriptor.open(path, isReadOnly ? .readOnly : .readWrite)
        size = UInt64(try check(host_image_size(descriptor.rawValue), "Cannot use \(path)"))
        try check(host_lock_image(descriptor.rawValue, isReadOnly ? 0 : 1), "Cannot lock \(path)")
        self.path = path
        self.isReadOnly = isReadOnly
    }

    /// Fills the segments; zeroes where the file has ended.
    public func read(into segments: IOSegments, at offset: UInt64) throws(HostError) {
        var left = Self.vectors(segments)
        var position = offset
        while !left.isEmpty {
            let count = try transfer(left, at: position, host_preadv, "Cannot read \(path)")
            guard count > 0 else {
                for vector in left { memset(vector.iov_base, 0, vector.iov_len) }
                return
            }
            position &+= UInt64(count)
            Self.drop(count, from: &left)
        }
    }

    public func write(from segments: IOSegments, at offset: UInt64) throws(HostError) {
        var left = Self.vectors(segments)
        var position = offset
        while !left.isEmpty {
            let count = try transfer(left, at: position, host_pwritev, "Cannot write \(path)")
            guard count > 0 else { throw HostError("Cannot write \(path)", errorNumber: EIO) }
            position &+= UInt64(count)
            Self.drop(count, from: &left)
        }
    }

    /// Everything that was written is on the medium (fdatasync(2)).
    public func flush() throws(HostError) {
        try check(retryingInterrupted { host_fdatasync(descriptor.rawValue) }, "Cannot flush \(path)")
    }

    /// The range reads as zeroes and its storage is free. Fails with EOPNOTSUPP where the file system cannot.
    public func punchHole(at offset: UInt64, count: UInt64) throws(HostError) {
        try check(
            retryingInterrupted { host_punch_hole(descriptor.rawValue, offset, count) }, "Cannot discard in \(path)")
    }

    /// The range reads as zeroes. Fails with EOPNOTSUPP where the file system cannot.
    public func zeroRange(at offset: UInt64, count: UInt64) throws(HostError) {
        try check(
            retryingInterrupted { host_zero_range(descriptor.rawValue, offset, count) }, "Cannot clear in \(path)")
    }

    // MARK: Transfers

    /// The kernel takes no more segments at once (UIO_MAXIOV).
    private static let vectorLimit = 1024

    private typealias Transfer = (Int32, UnsafePointer<iovec>, Int, UInt64) -> Int

    private func transfer(
        _ vectors: ArraySlice<iovec>, at offset: UInt64, _ call: Transfer, _ operation: @autoclosure () -> String
    ) throws(HostError) -> Int {
        let batch = vectors.prefix(Self.vectorLimit)
        let result = batch.withUnsafeBufferPointer { buffer in
            guard let base = buffer.baseAddress else { return 0 }
            return retryingInterrupted { call(descriptor.rawValue, base, buffer.count, offset) }
        }
        return try check(result, operation())
    }

    private static func vectors(_ segments: IOSegments) -> ArraySlice<iovec> {
        segments.buffers.filter { !$0.isEmpty }.map { iovec(iov_base: $0.baseAddress, iov_len: $0.count) }[...]
    }

    private static func drop(_ count: Int, from vectors: inout ArraySlice<iovec>) {
        var count = count
        while count > 0, let first = vectors.first {
            guard count < first.iov_len else {
                count -= first.iov_len
                vectors.removeFirst()
                continue
            }
            vectors[vectors.startIndex].iov_base = first.iov_base.map { $0 + count }
            vectors[vectors.startIndex].iov_len -= count
            count = 0
        }
    }
}
