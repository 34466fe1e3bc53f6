internal import Host

/// Opens disk images by path.
public enum DiskImage {
    public struct Options: Sendable {
        public var isWritable = false
        public var cache = CacheMode.writeback
        public var sharing = FileStorage.Sharing.locked
        /// What to do about backing files.
        public var backing = Backing.asNamed
        /// Memory for an image's tables, in bytes.
        public var tableCacheSize = 16 << 20
        /// Repairs need to open what other writers have to leave alone.
        var allowsCorrupt = false

        public init() {}
        public init(isWritable: Bool) { self.isWritable = isWritable }
    }

    /// Which backing file is opened, if any.
    public enum Backing: Sendable, Equatable {
        /// The one that the image names, in the format that it names. An image that names no format is refused: a guest
        /// could have written what looks like another format.
        case asNamed
        /// The one that the image names, in this format whatever the image says.
        case inFormat(DiskFormat)
        /// None: clusters that are not in the image read as zeros.
        case ignored
        /// An image that has one is refused, and one with an external data file, too. For an image whose format
        /// nobody vouches for.
        case refused
    }

    /// More backing files in a row than anybody has.
    static let longestChain = 128

    /// The format by what the file starts with; nil where it may be raw, which is never guessed.
    public static func recognize(_ path: String) throws(DiskError) -> DiskFormat? {
        let storage = try FileStorage(path: path, isWritable: false, sharing: .forced)
        let start = try storage.read(count: 512, at: 0)
        return start.load(0) == QCOW2Header.magic ? .qcow2 : nil
    }

    public static func open(_ path: String, _ format: DiskFormat, _ options: Options) throws(DiskError)
        -> any BlockDevice
    {
        var chain = Chain()
        return try open(path, format, options, &chain)
    }

    public static func openQCOW2(_ path: String, _ options: Options) throws(DiskError) -> QCOW2Disk {
        var chain = Chain()
        return try openQCOW2(path, options, &chain)
    }

    /// A qcow2 image on storage of one's own, without files beside it. For tests, and for images inside of others.
    public static func openQCOW2(
        _ storage: any ImageStorage, backing: (any BlockDevice)? = nil, _ options: Options
    ) throws(DiskError) -> QCOW2Disk {
        let header = try QCOW2Header.read(from: storage)
        guard !header.incompatible.contains(.externalData) else {
            throw DiskError(.unsupported, "\(storage.path): an image in an image has no external data file")
        }
        return try QCOW2Disk.start(storage, nil, header, backing: backing, options)
    }

    /// The files on the way, to notice one that comes again.
    struct Chain {
        private var files: Set<BlockFile.Identity> = []
        private var count = 0

        mutating func add(_ storage: any ImageStorage) throws(DiskError) {
            count += 1
            guard count <= DiskImage.longestChain else {
                throw DiskError(.invalid, "\(storage.path): more than \(DiskImage.longestChain) backing files in a row")
            }
            guard let identity = storage.identity else { return }
            guard files.insert(identity).inserted else {
                throw DiskError(
                    .invalid,
                    "\(storage.path) is its own backing file, directly or by others. Correct it with: martlet image rebase --unsafe"
                )
            }
        }
    }

    static func open(
        _ path: String, _ format: DiskFormat, _ options: Options, _ chain: inout Chain
    ) throws(DiskError) -> any BlockDevice {
        switch format {
        case .qcow2: return try openQCOW2(path, options, &chain)
        case .raw:
            let storage = try FileStorage(
                path: path, isWritable: options.isWritable, cache: options.cache, sharing: options.sharing)
            try chain.add(storage)
            return try RawDisk(storage)
        }
    }

    static func openQCOW2(_ path: String, _ options: Options, _ chain: inout Chain) throws(DiskError) -> QCOW2Disk {
        // The disk itself flushes where every write has to.
        let cache = options.cache == .none ? CacheMode.none : .writeback
        let storage = try FileStorage(
            path: path, isWritable: options.isWritable, cache: cache, sharing: options.sharing)
        try chain.add(storage)
        let header = try QCOW2Header.read(from: storage)
        if options.backing == .refused, header.backingFile != nil || header.incompatible.contains(.externalData) {
            throw DiskError(
                .invalid, "\(path) refers to other files, and its format was only guessed. Name its format: qcow2")
        }
        let backing = try openBacking(header, of: path, options, &chain)
        let data = try openDataFile(header, of: path, options, cache, &chain)
        return try QCOW2Disk.start(storage, data, header, backing: backing, options)
    }

    private static func openDataFile(
        _ header: QCOW2Header, of path: String, _ options: Options, _ cache: CacheMode, _ chain: inout Chain
    ) throws(DiskError) -> (any ImageStorage)? {
        guard header.incompatible.contains(.externalData) else { return nil }
        guard let name = header.dataFile else {
            throw DiskError(.invalid, "\(path) has an external data file and does not name it")
        }
        let storage = try FileStorage(
            path: resolve(name, besides: path), isWritable: options.isWritable, cache: cache,
            sharing: options.sharing)
        try chain.add(storage)
        return storage
    }

    private static func openBacking(
        _ header: QCOW2Header, of path: String, _ options: Options, _ chain: inout Chain
    ) throws(DiskError) -> (any BlockDevice)? {
        guard let name = header.backingFile, options.backing != .ignored else { return nil }
        let format = try backingFormat(header, of: path, options)
        var below = options
        below.isWritable = false
        below.backing = .asNamed
        below.allowsCorrupt = false
        return try open(resolve(name, besides: path), format, below, &chain)
    }

    static func backingFormat(
        _ header: QCOW2Header, of path: String, _ options: Options
    ) throws(DiskError) -> DiskFormat {
        if case .inFormat(let format) = options.backing { return format }
        guard let name = header.backingFormat else {
            throw DiskError(
                .invalid,
                "\(path) does not say what format its backing file \(header.backingFile ?? "") has. Name it with: "
                    + "martlet image rebase --unsafe --backing FILE --backing-format FORMAT")
        }
        guard let format = DiskFormat(rawValue: name) else {
            throw DiskError(
                .unsupported, "\(path): its backing file has the format \(name); raw and qcow2 are supported")
        }
        return format
    }

    /// A name in an image is relative to the image's directory.
    public static func resolve(_ name: String, besides path: String) -> String {
        let name = name.hasPrefix("file:") ? String(name.dropFirst(5)) : name
        guard !name.hasPrefix("/"), let slash = path.lastIndex(of: "/") else { return name }
        return String(path[...slash]) + name
    }
}

extension QCOW2Disk {
    /// Checks what must hold before the image is used, and repairs what an unfinished session left.
    static func start(
        _ storage: any ImageStorage, _ data: (any ImageStorage)?, _ header: QCOW2Header,
        backing: (any BlockDevice)?, _ options: DiskImage.Options
    ) throws(DiskError) -> QCOW2Disk {
        let metadata = try QCOW2Metadata(storage, dataStorage: data, header: header, cacheSize: options.tableCacheSize)
        let disk = QCOW2Disk(metadata, backing: backing, cache: options.cache, isWritable: options.isWritable)
        guard options.isWritable, !options.allowsCorrupt else {
            return disk
        }
        if header.incompatible.contains(.corrupt) {
            throw DiskError(
                .readOnly, "\(storage.path) is marked as corrupt. Repair it with: martlet image check --repair all")
        }
        if header.incompatible.contains(.dirty) { try disk.repairAfterCrash() }
        try metadata.findEndOnDevice()
        try metadata.collectMetadataClusters()
        let unknown = metadata.header.autoclear.subtracting(.known)
        if !unknown.isEmpty {
            metadata.header.autoclear.subtract(unknown)
            try storage.store(metadata.header.autoclear.rawValue, at: HeaderField.autoclear)
        }
        try metadata.loadBitmaps()
        disk.isReady = true
        return disk
    }
}

extension DiskImage {
    /// A qcow2 image to be checked or repaired: also one that is marked as corrupt, and without its backing file.
    public static func openForCheck(
        _ path: String, isWritable: Bool, sharing: FileStorage.Sharing = .locked
    ) throws(DiskError) -> QCOW2Disk {
        var options = Options(isWritable: isWritable)
        options.allowsCorrupt = true
        options.backing = .ignored
        options.sharing = sharing
        return try openQCOW2(path, options)
    }
}
