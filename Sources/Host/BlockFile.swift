internal import CHost
internal import Glibc

/// A regular file or a block device that is read, written, allocated and locked at any offset by any thread.
public final class BlockFile: Sendable {
    public enum Kind: Sendable { case regular, blockDevice, other }

    /// How to open a path.
    public struct Options: Sendable {
        public var isWritable: Bool
        /// Past the host's page cache (O_DIRECT).
        public var isDirect: Bool
        /// A new file that must not exist yet.
        public var createsNew: Bool

        public init(isWritable: Bool, isDirect: Bool = false, createsNew: Bool = false) {
            self.isWritable = isWritable
            self.isDirect = isDirect
            self.createsNew = createsNew
        }
    }

    /// What the kernel says about it now.
    public struct Facts: Sendable {
        public var size: UInt64
        /// Bytes that the file system has allocated for it.
        public var allocated: UInt64
        public var kind: Kind
        public var logicalBlockSize: Int
        /// What identifies it among all files of this host.
        public var identity: Identity
        fileprivate var directAlignment: Int
        fileprivate var isReadOnly: Bool
    }

    public struct Identity: Hashable, Sendable {
        public var device: UInt64
        public var inode: UInt64
    }

    public let path: String
    public let kind: Kind
    public let isWritable: Bool
    /// Offsets, counts and addresses of transfers are a multiple of this; 1 without O_DIRECT.
    public let transferAlignment: Int
    private let owned: FileDescriptor

    public init(path: String, _ options: Options) throws(HostError) {
        var flags = options.isWritable ? O_RDWR : O_RDONLY
        if options.createsNew { flags |= O_CREAT | O_EXCL | O_NOFOLLOW }
        if options.isDirect { flags |= O_DIRECT_FLAG }
        let result = retryingInterrupted { host_open(path, flags, 0o644) }
        let verb = options.createsNew ? "create" : "open"
        let descriptor = FileDescriptor(
            owning: Int32(truncatingIfNeeded: try check(result, "Cannot \(verb) \(path)")))
        let facts = try BlockFile.facts(of: descriptor.rawValue, path: path)
        if options.isWritable, facts.isReadOnly { throw HostError("Cannot \(verb) \(path)", errorNumber: EROFS) }
        self.path = path
        kind = facts.kind
        isWritable = options.isWritable
        transferAlignment = options.isDirect ? facts.directAlignment : 1
        owned = descriptor
    }

    /// A new file in `directory` that has no name, and goes when it is closed.
    public init(unnamedIn directory: String) throws(HostError) {
        let result = retryingInterrupted { host_open_unnamed(directory) }
        owned = FileDescriptor(
            owning: Int32(truncatingIfNeeded: try check(result, "Cannot make a temporary file in \(directory)")))
        path = "a temporary file in \(directory)"
        kind = .regular
        isWritable = true
        transferAlignment = 1
    }

    /// For those who do their own input and output on it, such as io_uring. It stays open as long as this object.
    public var descriptor: BorrowedDescriptor { owned.borrowed }

    public func facts() throws(HostError) -> Facts { try BlockFile.facts(of: owned.rawValue, path: path) }

    private static func facts(of descriptor: Int32, path: String) throws(HostError) -> Facts {
        var raw = host_file_facts()
        try check(host_file_facts(descriptor, &raw), "Cannot use \(path)")
        let kind: Kind =
            raw.kind == HOST_FILE_REGULAR ? .regular : raw.kind == HOST_FILE_BLOCK_DEVICE ? .blockDevice : .other
        return Facts(
            size: raw.size, allocated: raw.allocated, kind: kind, logicalBlockSize: Int(raw.logical_block_size),
            identity: Identity(device: raw.device, inode: raw.inode), directAlignment: Int(raw.direct_alignment),
            isReadOnly: raw.is_read_only != 0)
    }

    // MARK: Transfers

    /// Reads into `memory`; the number of bytes is less only where the file ends.
    public func read(into memory: TransferMemory, at offset: UInt64) throws(HostError) -> Int {
        let result = memory.transfer { pieces, count, done in
            host_preadv(owned.rawValue, pieces, count, offset &+ UInt64(done))
        }
        return try check(result, "Cannot read \(path) at \(offset)")
    }

    public func write(_ memory: TransferMemory, at offset: UInt64) throws(HostError) {
        let result = memory.transfer { pieces, count, done in
            host_pwritev(owned.rawValue, pieces, count, offset &+ UInt64(done))
        }
        try check(result, "Cannot write \(path) at \(offset)")
        // A write of nothing is how some devices say that they are full.
        guard result == memory.count else { throw HostError("Cannot write \(path) at \(offset)", errorNumber: ENOSPC) }
    }

    /// Whether a transfer can go to the kernel as it is.
    public func isAligned(_ memory: TransferMemory, at offset: UInt64) -> Bool {
        transferAlignment == 1
            || (offset & UInt64(transferAlignment - 1) == 0 && memory.isAligned(to: transferAlignment))
    }

    /// Returns when everything that was written before is on the medium (fdatasync(2)).
    public func synchronize() throws(HostError) {
        try check(retryingInterrupted { host_fdatasync(owned.rawValue) }, "Cannot flush \(path)")
    }

    // MARK: Space

    public func truncate(to size: UInt64) throws(HostError) {
        try check(
            retryingInterrupted { host_ftruncate(owned.rawValue, size) }, "Cannot set the size of \(path) to \(size)")
    }

    /// Reserves space, so that later writes into the range find it.
    public func allocate(_ range: Range<UInt64>) throws(HostError) {
        let result = retryingInterrupted {
            host_allocate(owned.rawValue, range.lowerBound, range.upperBound - range.lowerBound)
        }
        try check(result, "Cannot reserve \(range.upperBound - range.lowerBound) bytes of \(path)")
    }

    /// Gives the range's space back where the file can do that: true when it reads as zeros now.
    public func punchHole(_ range: Range<UInt64>) throws(HostError) -> Bool {
        try space(range, file: host_punch_hole, device: host_device_discard) && kind == .regular
    }

    /// Makes the range zeros without writing them, where the file can do that.
    public func zero(_ range: Range<UInt64>) throws(HostError) -> Bool {
        try space(range, file: host_zero_range, device: host_device_zero)
    }

    private func space(
        _ range: Range<UInt64>, file: (Int32, UInt64, UInt64) -> Int, device: (Int32, UInt64, UInt64) -> Int
    ) throws(HostError) -> Bool {
        let call = kind == .blockDevice ? device : file
        let result = retryingInterrupted {
            call(owned.rawValue, range.lowerBound, range.upperBound - range.lowerBound)
        }
        if result == Int(-EOPNOTSUPP) || result == Int(-ENOTTY) || result == Int(-EINVAL) { return false }
        try check(result, "Cannot change the space of \(path) at \(range.lowerBound)")
        return true
    }

    /// Where the extent at `offset` ends, and whether there is data in it. Where the file does not say, all is data.
    public func extent(at offset: UInt64) -> (isData: Bool, end: UInt64) {
        let data = host_seek_data(owned.rawValue, offset)
        if data == Int(-ENXIO) { return (false, .max) }
        guard data >= 0 else { return (true, .max) }
        if UInt64(data) > offset { return (false, UInt64(data)) }
        let hole = host_seek_hole(owned.rawValue, offset)
        guard hole > 0, UInt64(hole) > offset else { return (true, .max) }
        return (true, UInt64(hole))
    }

    // MARK: Locks

    /// A lock on one byte that others may share; it goes with this object.
    public func lockShared(byte: UInt64) throws(HostError) {
        try check(host_lock_byte_shared(owned.rawValue, byte), "Cannot lock \(path)")
    }

    public func unlock(byte: UInt64) { _ = host_unlock_byte(owned.rawValue, byte) }

    /// Whether somebody else holds a lock on that byte.
    public func isLockedByOther(byte: UInt64) throws(HostError) -> Bool {
        try check(host_byte_is_locked(owned.rawValue, byte), "Cannot ask for locks on \(path)") == 1
    }
}

/// O_DIRECT, which the Glibc module does not show.
private let O_DIRECT_FLAG: Int32 = 0o40000

/// Names in directories.
public enum HostPath {
    public static func rename(_ from: String, to: String) throws(HostError) {
        try check(host_rename(from, to), "Cannot rename \(from) to \(to)")
        // The rename lasts only when the directory is on the medium; a file system that cannot do that says EINVAL.
        let slash = to.lastIndex(of: "/")
        let directory = slash.map { $0 == to.startIndex ? "/" : String(to[..<$0]) } ?? "."
        _ = host_sync_directory(directory)
    }

    public static func remove(_ path: String) throws(HostError) {
        try check(host_unlink(path), "Cannot remove \(path)")
    }

    public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }
}
