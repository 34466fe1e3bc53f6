internal import ArgumentParser
internal import Disk

/// `martlet image convert`.
struct ConvertCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "convert",
        abstract: "Copies a disk into a new image of another format; what is zero takes no space.",
        discussion: "OUT is replaced when the copy is whole. A block device is written in place (--to raw).")

    @Option(
        help: ArgumentHelp("The format of IN: raw, qcow2; needed where IN has no qcow2 header.", valueName: "format"),
        transform: FormatOption.parse)
    var from: DiskFormat?

    @Option(help: ArgumentHelp("The format of OUT: raw, qcow2.", valueName: "format"), transform: FormatOption.parse)
    var to: DiskFormat

    @Option(
        help: ArgumentHelp("Compress the clusters: zlib, zstd. Needs --to qcow2.", valueName: "kind"),
        transform: ConvertCommand.compression)
    var compress: CompressionKind?

    @Option(help: ArgumentHelp("Copy this snapshot inside of IN instead of its disk.", valueName: "name"))
    var snapshot: String?

    @Option(
        name: [.customShort("o"), .long],
        help: ArgumentHelp("How a qcow2 image is made, as for create.", valueName: "key=value,…"))
    var option: [String] = []

    @Argument(help: "The image to copy.")
    var input: String

    @Argument(help: "The new image.")
    var output: String

    private static func compression(_ text: String) throws -> CompressionKind {
        guard let kind = CompressionKind.allCases.first(where: { $0.name == text }) else {
            throw ValidationError("The kinds of compression are: zlib, zstd.")
        }
        return kind
    }

    func validate() throws {
        let options = try CreationOptions.parse(option)
        if to == .raw, options.isForQCOW2 || compress != nil {
            throw ValidationError("Only qcow2 has compression and these options: say --to qcow2")
        }
    }

    func run() throws {
        let options = try CreationOptions.parse(option)
        try ImageProgress().run { progress throws(DiskError) in
            let source = try openSource()
            let image = try UnfinishedImage(output)
            guard !image.isBlockDevice || to == .raw else {
                throw DiskError(.unsupported, "\(output) is a block device, which takes --to raw only")
            }
            try image.complete { () throws(DiskError) in try copy(source, to: image, options, progress) }
            try source.close()
        }
    }

    private func openSource() throws(DiskError) -> any BlockDevice {
        let (format, backing) = try FormatOption.resolve(input, from, option: "--from")
        var options = DiskImage.Options()
        options.backing = backing
        guard let snapshot else { return try DiskImage.open(input, format, options) }
        guard format == .qcow2 else {
            throw DiskError(.invalid, "\(input) is raw, and has no snapshot \(snapshot). Leave --snapshot out")
        }
        let disk = try DiskImage.openQCOW2(input, options)
        try disk.showSnapshot(snapshot)
        return disk
    }

    private func copy(
        _ source: any BlockDevice, to image: UnfinishedImage, _ options: CreationOptions, _ progress: DiskProgress
    ) throws(DiskError) {
        let mode = options.preallocation ?? .off
        if to == .qcow2 {
            var qcow2 = options.qcow2
            qcow2.preallocation = mode
            if let compress { qcow2.compression = compress }
            try DiskImage.createQCOW2(image.workPath, size: source.size, qcow2)
        } else if !image.isBlockDevice {
            try DiskImage.createRaw(image.workPath, size: source.size, mode)
        }
        let target = try DiskImage.open(image.workPath, to, DiskImage.Options(isWritable: true))
        guard target.size >= source.size else {
            throw DiskError(
                .invalid, "\(output) has \(target.size) bytes, too few for the \(source.size) of \(input)")
        }
        // What was on a device does not read as zeros.
        if image.isBlockDevice { try target.writeZeroes(0..<source.size, mayUnmap: true) }
        var conversion = Conversion()
        conversion.compresses = compress != nil
        try conversion.run(from: source, to: target, progress: progress)
        try target.close()
    }
}
