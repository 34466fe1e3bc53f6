internal import ArgumentParser
internal import Disk

/// `martlet image create`.
struct CreateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "create",
        abstract: "Makes an empty disk image; one with a backing file starts with that one's content.",
        discussion: """
            OPTIONS OF QCOW2 (--option)
              cluster_size=64k         512 to 2M
              compat=1.1               or 0.10, for version 2
              refcount_bits=16         1 to 64
              lazy_refcounts=off       on: faster flushes, a repair after a crash
              compression_type=zlib    or zstd
              data_file=FILE           the data in a file of its own
              data_file_raw=off        on: that file is a raw image for others
            """)

    @Option(help: ArgumentHelp("The format: raw, qcow2.", valueName: "format"), transform: FormatOption.parse)
    var format: DiskFormat = .qcow2

    @Option(
        name: [.customShort("o"), .long], help: ArgumentHelp("How a qcow2 image is made.", valueName: "key=value,…"))
    var option: [String] = []

    @Option(help: ArgumentHelp("What the new disk shows until it is written.", valueName: "file"))
    var backing: String?

    @Option(
        help: ArgumentHelp("The backing file's format: raw, qcow2.", valueName: "format"), transform: FormatOption.parse
    )
    var backingFormat: DiskFormat?

    @Option(
        help: ArgumentHelp("What is set up at once: off, metadata, falloc, full.", valueName: "mode"),
        transform: CreateCommand.preallocation)
    var preallocation: Preallocation?

    @Argument(help: "The new image.")
    var file: String

    @Argument(help: "Its size, such as 20G; not needed with a backing file.", transform: DiskSize.parse)
    var size: DiskSize?

    private static func preallocation(_ text: String) throws -> Preallocation {
        guard let mode = Preallocation(rawValue: text) else {
            throw ValidationError("The modes are: off, metadata, falloc, full.")
        }
        return mode
    }

    func validate() throws {
        let options = try CreationOptions.parse(option)
        if format == .raw, options.isForQCOW2 || backing != nil {
            throw ValidationError("A raw image has no options and no backing file: say --format qcow2")
        }
        if size == nil, backing == nil { throw ValidationError("The SIZE is missing, such as 20G") }
        if backing != nil, backingFormat == nil {
            throw ValidationError("Say what format the backing file has: --backing-format raw or qcow2")
        }
    }

    func run() throws {
        let options = try CreationOptions.parse(option)
        try reportingDiskErrors { () throws(DiskError) in
            let image = try UnfinishedImage(file)
            guard !image.isBlockDevice else {
                throw DiskError(.invalid, "\(file) is a block device; it needs no creation. Convert an image to it")
            }
            try image.complete { () throws(DiskError) in try create(image.workPath, options) }
        }
    }

    private func create(_ path: String, _ options: CreationOptions) throws(DiskError) {
        let mode = preallocation ?? options.preallocation ?? .off
        guard format == .qcow2 else { return try DiskImage.createRaw(path, size: size?.bytes ?? 0, mode) }
        var qcow2 = options.qcow2
        qcow2.preallocation = mode
        qcow2.backingFile = backing
        qcow2.backingFormat = backingFormat
        let behind = try backingSize()
        try DiskImage.createQCOW2(path, size: size?.bytes ?? behind, qcow2)
    }

    /// The backing file's size; it is opened, so that one that is missing is noticed now.
    private func backingSize() throws(DiskError) -> UInt64 {
        guard let backing, let backingFormat else { return 0 }
        let disk = try DiskImage.open(DiskImage.resolve(backing, besides: file), backingFormat, DiskImage.Options())
        defer { try? disk.close() }
        return disk.size
    }
}
