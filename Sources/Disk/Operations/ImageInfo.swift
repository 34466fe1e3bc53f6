/// What there is to know about an image without reading what is in it.
public struct ImageInfo: Sendable {
    /// What only qcow2 images have.
    public struct QCOW2: Sendable {
        public var version: UInt32
        public var clusterSize: UInt64
        public var refcountBits: UInt32
        public var compression: CompressionKind
        public var hasLazyRefcounts: Bool
        public var isDirty: Bool
        public var isCorrupt: Bool
        public var backingFile: String?
        public var backingFormat: String?
        public var dataFile: String?
        public var isDataFileRaw: Bool
        public var snapshots: [SnapshotInfo]
        public var bitmaps: [Bitmap]
    }

    public struct Bitmap: Equatable, Sendable {
        public var name: String
        public var granularity: UInt64
        public var isInUse: Bool
        public var isAutomatic: Bool
    }

    public var path: String
    public var format: DiskFormat
    public var virtualSize: UInt64
    /// What the host's file system has allocated.
    public var actualSize: UInt64
    public var qcow2: QCOW2?

    /// Looks at the image at `path`; with `.forced` sharing also while somebody uses it.
    public init(_ path: String, _ format: DiskFormat, sharing: FileStorage.Sharing) throws(DiskError) {
        self.path = path
        self.format = format
        let storage = try FileStorage(path: path, isWritable: false, sharing: sharing)
        defer { storage.close() }
        actualSize = try storage.allocatedSize()
        guard format == .qcow2 else {
            virtualSize = (try storage.currentSize() &+ 511) & ~511
            return
        }
        let header = try QCOW2Header.read(from: storage)
        virtualSize = header.size
        // Tables are not looked at, so their trouble does not matter here.
        let metadata = try QCOW2Metadata(storage, dataStorage: nil, header: header, cacheSize: 1 << 16)
        let disk = QCOW2Disk(metadata, backing: nil, cache: .writeback, isWritable: false)
        let bitmaps = (try BitmapDirectory.read(metadata)?.entries ?? []).map { entry in
            Bitmap(
                name: entry.name, granularity: 1 << UInt64(entry.granularityBits & 63),
                isInUse: entry.flags & BitmapEntry.inUse != 0, isAutomatic: entry.flags & BitmapEntry.automatic != 0)
        }
        qcow2 = QCOW2(
            version: header.version, clusterSize: header.clusterSize, refcountBits: header.refcountBits,
            compression: header.compression, hasLazyRefcounts: header.compatible.contains(.lazyRefcounts),
            isDirty: header.incompatible.contains(.dirty), isCorrupt: header.incompatible.contains(.corrupt),
            backingFile: header.backingFile, backingFormat: header.backingFormat, dataFile: header.dataFile,
            isDataFileRaw: header.autoclear.contains(.rawExternalData), snapshots: try disk.snapshots(),
            bitmaps: bitmaps)
    }

    /// The image and its backing files, the image first.
    public static func chain(
        _ path: String, _ format: DiskFormat, sharing: FileStorage.Sharing
    ) throws(DiskError) -> [ImageInfo] {
        var chain = DiskImage.Chain()
        var result: [ImageInfo] = []
        var next: (path: String, format: DiskFormat)? = (path, format)
        while let (path, format) = next {
            let storage = try FileStorage(path: path, isWritable: false, sharing: .forced)
            try chain.add(storage)
            let info = try ImageInfo(path, format, sharing: sharing)
            result.append(info)
            next = nil
            guard let qcow2 = info.qcow2, let name = qcow2.backingFile else { continue }
            let header = try QCOW2Header.read(from: storage)
            next = (
                DiskImage.resolve(name, besides: path),
                try DiskImage.backingFormat(header, of: path, DiskImage.Options())
            )
        }
        return result
    }
}
