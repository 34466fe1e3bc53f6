internal import ArgumentParser
internal import Disk

/// `martlet config`: about configuration files.
struct ConfigCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "config",
        abstract: "Describes the configuration files of martlet run --config.",
        subcommands: [SchemaCommand.self])
}

/// `martlet config schema`.
struct SchemaCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "schema",
        abstract: "Prints the JSON schema of a configuration file, for editors and checkers.")

    func run() throws {
        try reportingDiskErrors { () throws(DiskError) in try printOut(RunOptionTable.run.schema.text() + "\n") }
    }
}
