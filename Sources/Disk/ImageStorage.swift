public import Host

/// A file that an image, or a part of one, is in. Tests put one that fails or records in its place.
public protocol ImageStorage: AnyObject, Sendable {
    /// What messages call it.
    var path: String { get }
    var isWritable: Bool { get }
    /// In bytes, as of now.
    func currentSize() throws(DiskError) -> UInt64
    /// It has all the size that it will ever have, as a block device has.
    var isFixed: Bool { get }
    /// What lies beyond the end reads as zeros.
    func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError)
    /// Makes the file longer where needed.
    func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError)
    /// Everything written before lasts through a power cut when this returns.
    func flush() throws(DiskError)
    func truncate(to size: UInt64) throws(DiskError)
    /// Reserves space for the range.
    func allocate(_ range: Range<UInt64>) throws(DiskError)
    /// The range reads as zeros afterwards.
    func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError)
    /// The range is not needed any more.
    func discard(_ range: Range<UInt64>) throws(DiskError)
    /// Where the extent at `offset` ends and whether it may hold anything but zeros.
    func extent(at offset: UInt64) -> (isData: Bool, end: UInt64)
    /// Bytes of the host's file system behind it.
    func allocatedSize() throws(DiskError) -> UInt64
    /// For input and output of one's own; nil where there is no file.
    var descriptor: BorrowedDescriptor? { get }
    /// The same for one transfer: nil also where that has to go through `read` or `write`.
    func descriptor(for memory: TransferMemory, at offset: UInt64) -> BorrowedDescriptor?
    /// Whether what is written goes into the host's page cache, which seldom takes long.
    var isCached: Bool { get }
    /// Which file of the host this is; nil where it is none.
    var identity: BlockFile.Identity? { get }
    var logicalBlockSize: Int { get }
    /// Others may have the file from now on. Nothing else is called afterwards.
    func close()
}

extension ImageStorage {
    public func descriptor(for memory: TransferMemory, at offset: UInt64) -> BorrowedDescriptor? { nil }
    public var isCached: Bool { false }
    public var isFixed: Bool { false }

    func read(count: Int, at offset: UInt64) throws(DiskError) -> PageBuffer {
        let buffer = PageBuffer(count: count)
        try read(into: buffer.memory, at: offset)
        return buffer
    }

    /// One big-endian number, such as a table's entry.
    func store<Number: FixedWidthInteger>(_ value: Number, at offset: UInt64) throws(DiskError) {
        let buffer = PageBuffer(count: Number.bitWidth / 8)
        buffer.store(value, at: 0)
        try write(buffer.memory, at: offset)
    }
}
