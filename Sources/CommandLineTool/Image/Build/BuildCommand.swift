internal import ArgumentParser

/// `martlet image build`: images with a system in them.
struct BuildCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "build",
        abstract: "Builds a disk image with an operating system in it.",
        subcommands: [BuildDebianCommand.self])
}
