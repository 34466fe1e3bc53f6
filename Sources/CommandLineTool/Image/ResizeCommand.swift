internal import ArgumentParser
internal import Disk

/// `martlet image resize`.
struct ResizeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resize",
        abstract: "Makes a disk larger or smaller.",
        discussion: "A size that starts with a minus goes after two more: martlet image resize --shrink -- disk.raw -1G"
    )

    @Flag(help: "Allow a smaller size: what is behind the new end is lost.")
    var shrink = false

    @Option(
        help: ArgumentHelp("The format: raw, qcow2; needed where the file has no qcow2 header.", valueName: "format"),
        transform: FormatOption.parse)
    var format: DiskFormat?

    @Argument(help: "The image.")
    var file: String

    @Argument(help: "The new size as 20G, or by how much it changes as +10G or -1G.", transform: DiskSizeChange.parse)
    var size: DiskSizeChange

    func run() throws {
        try reportingDiskErrors { () throws(DiskError) in
            let (format, _) = try FormatOption.resolve(file, self.format, option: "--format")
            var options = DiskImage.Options(isWritable: true)
            // Nothing is read of what is behind it.
            options.backing = .ignored
            let disk = try DiskImage.open(file, format, options)
            let former = disk.size
            guard let new = size.applied(to: former), new < 1 << 62 else {
                throw DiskError(.invalid, "\(file) has \(former) bytes and cannot change by \(size.bytes)")
            }
            let rounded = (new + 511) & ~511
            guard rounded >= former || shrink else {
                throw DiskError(
                    .invalid,
                    "\(file) has \(former) bytes: \(rounded) would lose what is behind. Say --shrink if that is meant")
            }
            try disk.resize(to: rounded)
            try disk.close()
        }
    }
}
