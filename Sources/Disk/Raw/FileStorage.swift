public import Host

/// A file or block device of the host as storage.
public final class FileStorage: ImageStorage {
    private let file: BlockFile
    private let cache: CacheMode
    private let lock: ImageLock?
    public let logicalBlockSize: Int
    public let identity: BlockFile.Identity?
    /// With O_DIRECT: held while a block that is only partly written is read, changed and written back, and the file cut
    /// off again where the block is longer; and by whoever makes the file longer, or asks how long it is, meanwhile.
    private let partialBlocks = Monitor()

    /// What others may do with the file while it is open here.
    public enum Sharing: Sendable {
        /// Nobody else may write; many may read if this one does not write.
        case locked
        /// Whatever others do: for a look at an image that is in use.
        case forced
    }

    public init(
        path: String, isWritable: Bool, cache: CacheMode = .writeback, sharing: Sharing = .locked,
        createsNew: Bool = false
    ) throws(DiskError) {
        let options = BlockFile.Options(isWritable: isWritable, isDirect: cache == .none, createsNew: createsNew)
        let file = try FileStorage.open(path, options)
        let facts = try host { () throws(HostError) in try file.facts() }
        guard facts.kind != .other else {
            throw DiskError(
                .invalid, "Cannot use \(path): it is neither a file nor a block device. Give the path of a disk image")
        }
        self.file = file
        self.cache = cache
        logicalBlockSize = max(facts.logicalBlockSize, cache == .none ? file.transferAlignment : 512)
        identity = facts.identity
        lock = sharing == .forced ? nil : try ImageLock(file)
    }

    /// A file in `directory` that nobody else can have: it has no name, and goes when it is closed.
    public init(unnamedIn directory: String) throws(DiskError) {
        file = try host { () throws(HostError) in try BlockFile(unnamedIn: directory) }
        cache = .writeback
        lock = nil
        logicalBlockSize = 512
        identity = nil
    }

    private static func open(_ path: String, _ options: BlockFile.Options) throws(DiskError) -> BlockFile {
        do throws(HostError) {
            return try BlockFile(path: path, options)
        } catch {
            // tmpfs and others have no O_DIRECT (EINVAL, open(2)).
            guard options.isDirect, error.errorNumber == HostError.Number.invalid else { throw DiskError(error) }
            throw DiskError(
                .unsupported,
                "Cannot open \(path) with cache mode none: its file system has no direct input and output. Use writeback"
            )
        }
    }

    public var path: String { file.path }
    public var isWritable: Bool { file.isWritable }
    public var descriptor: BorrowedDescriptor? { file.descriptor }

    /// Not where the transfer has to be made to fit blocks or may make the file longer (O_DIRECT), or a write has to be
    /// followed by a flush.
    public func descriptor(for memory: TransferMemory, at offset: UInt64) -> BorrowedDescriptor? {
        guard cache != .writethrough, file.isAligned(memory, at: offset) else { return nil }
        return isDirect && isBehindEnd(offset &+ UInt64(memory.count)) ? nil : file.descriptor
    }

    public var isCached: Bool { cache == .writeback }
    public var isBlockDevice: Bool { file.kind == .blockDevice }
    public var isFixed: Bool { isBlockDevice }

    private var isDirect: Bool { file.transferAlignment > 1 }

    /// Runs `body` alone among those who change the file's size, or parts of blocks, with O_DIRECT.
    private func alone<Result>(_ body: () throws(HostError) -> Result) throws(DiskError) -> Result {
        guard isDirect else { return try host(body) }
        partialBlocks.lock()
        defer { partialBlocks.unlock() }
        return try host(body)
    }

    public func currentSize() throws(DiskError) -> UInt64 {
        try alone { () throws(HostError) in try file.facts().size }
    }

    private func isBehindEnd(_ end: UInt64) -> Bool {
        !isBlockDevice && end > (try? file.facts().size) ?? 0
    }

    public func allocatedSize() throws(DiskError) -> UInt64 {
        try host { () throws(HostError) in try file.facts().allocated }
    }

    // MARK: Transfers

    public func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        guard file.isAligned(memory, at: offset) else { return try readUnaligned(into: memory, at: offset) }
        let done = try host { () throws(HostError) in try file.read(into: memory, at: offset) }
        if done < memory.count { memory.part(done..<memory.count).clear() }
    }

    public func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        if !file.isAligned(memory, at: offset) {
            try writeUnaligned(memory, at: offset)
        } else if isDirect, isBehindEnd(offset &+ UInt64(memory.count)) {
            try alone { () throws(HostError) in try file.write(memory, at: offset) }
        } else {
            try host { () throws(HostError) in try file.write(memory, at: offset) }
        }
        if cache == .writethrough { try flush() }
    }

    /// The aligned range around some bytes.
    private func block(around offset: UInt64, _ count: Int) -> (start: UInt64, count: Int) {
        let mask = UInt64(file.transferAlignment - 1)
        let start = offset & ~mask
        return (start, Int(((offset &+ UInt64(count) &+ mask) & ~mask) &- start))
    }

    private func readUnaligned(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        let block = block(around: offset, memory.count)
        let bounce = PageBuffer(count: block.count)
        _ = try host { () throws(HostError) in try file.read(into: bounce.memory, at: block.start) }
        memory.copy(from: bounce, at: Int(offset - block.start))
    }

    private func writeUnaligned(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        let block = block(around: offset, memory.count)
        let bounce = PageBuffer(count: block.count)
        try alone { () throws(HostError) in
            let size = try file.facts().size
            _ = try file.read(into: bounce.memory, at: block.start)
            memory.copy(to: bounce, at: Int(offset - block.start))
            try file.write(bounce.memory, at: block.start)
            // The block's rest must not make the file longer than what was written.
            let end = max(size, offset + UInt64(memory.count))
            if !isBlockDevice, block.start + UInt64(block.count) > end { try file.truncate(to: end) }
        }
    }

    public func flush() throws(DiskError) {
        try host { () throws(HostError) in try file.synchronize() }
    }

    // MARK: Space

    public func truncate(to size: UInt64) throws(DiskError) {
        // A device has its size, and room for less.
        if isBlockDevice, try currentSize() >= size { return }
        if isBlockDevice { throw DiskError.noRoom(path) }
        try alone { () throws(HostError) in try file.truncate(to: size) }
    }

    public func allocate(_ range: Range<UInt64>) throws(DiskError) {
        guard !isBlockDevice else { return }
        try host { () throws(HostError) in try file.allocate(range) }
    }

    public func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError) {
        guard !range.isEmpty else { return }
        let size = try currentSize()
        if !isBlockDevice, range.upperBound > size { try truncate(to: range.upperBound) }
        // A hole costs nothing and reads as zeros; where space is to be kept, the file system may know how.
        let isDone = try alone { () throws(HostError) in
            if mayUnmap, try file.punchHole(range) { return true }
            return try file.zero(range)
        }
        if !isDone { try writeRealZeroes(range) }
        if cache == .writethrough { try flush() }
    }

    private func writeRealZeroes(_ range: Range<UInt64>) throws(DiskError) {
        let zeros = PageBuffer(count: Int(min(range.upperBound - range.lowerBound, 1 << 20)))
        var offset = range.lowerBound
        while offset < range.upperBound {
            let count = Int(min(UInt64(zeros.count), range.upperBound - offset))
            let memory = zeros.memory(0..<count)
            if file.isAligned(memory, at: offset) {
                try host { () throws(HostError) in try file.write(memory, at: offset) }
            } else {
                try writeUnaligned(memory, at: offset)
            }
            offset += UInt64(count)
        }
    }

    public func discard(_ range: Range<UInt64>) throws(DiskError) {
        guard !range.isEmpty else { return }
        _ = try host { () throws(HostError) in try file.punchHole(range) }
    }

    public func extent(at offset: UInt64) -> (isData: Bool, end: UInt64) {
        isBlockDevice ? (true, .max) : file.extent(at: offset)
    }

    public func close() { lock?.release() }

    // Not left to the descriptor's end: a child process may have inherited it for a moment, and the locks with it.
    deinit { lock?.release() }
}
