internal import ArgumentParser
internal import Disk

/// `martlet image commit`.
struct CommitCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "commit",
        abstract: "Writes what is in an image into its backing file, and empties the image.")

    @Flag(help: "Leave the image as it is.")
    var keep = false

    @Argument(help: "The image.")
    var file: String

    func run() throws {
        try ImageProgress().run { progress throws(DiskError) in
            try BackingOperations.commit(file, keepsContent: keep, progress: progress)
        }
    }
}

/// `martlet image rebase`.
struct RebaseCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rebase",
        abstract: "Gives an image another backing file, or none.",
        discussion:
            "What the disk shows stays the same, except with --unsafe. Without --backing it needs none afterwards.")

    @Flag(help: "Change only the name: the new file has the same content as the old one.")
    var unsafe = false

    @Option(help: ArgumentHelp("The new backing file.", valueName: "file"))
    var backing: String?

    @Option(help: ArgumentHelp("Its format: raw, qcow2.", valueName: "format"), transform: FormatOption.parse)
    var backingFormat: DiskFormat?

    @Argument(help: "The image.")
    var file: String

    func validate() throws {
        if backing != nil, backingFormat == nil {
            throw ValidationError("Say what format the backing file has: --backing-format raw or qcow2")
        }
    }

    func run() throws {
        try ImageProgress().run { progress throws(DiskError) in
            try BackingOperations.rebase(file, to: backing, backingFormat, isUnsafe: unsafe, progress: progress)
        }
    }
}
