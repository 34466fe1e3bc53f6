internal import ArgumentParser

/// A command line with the options of its configuration file in it.
struct ExpandedArguments {
    private(set) var arguments: [String]
    private var file: ConfigurationFile?

    /// - Parameter arguments: without the program's name.
    init(_ arguments: [String], table: RunOptionTable = .run) throws {
        self.arguments = arguments
        guard arguments.first == "run" else { return }
        let given = GivenArguments(Array(arguments.dropFirst()), table: table)
        guard let path = given.configurationPaths.first else { return }
        guard given.configurationPaths.count == 1 else {
            throw ValidationError("--config is there twice; one machine has one configuration")
        }
        let file = try ConfigurationFile(path: path, table: table)
        self.file = file
        let added = file.entries.filter { !given.names.contains($0.name) }.map(\.word)
        let command = given.hasCommand || file.command.isEmpty ? [] : ["--"] + file.command
        self.arguments = ["run"] + added + arguments.dropFirst() + command
    }

    /// The place in the file that an error of the parser comes from, if it is one of the file's values.
    func place(of message: String) -> String? {
        guard let file else { return nil }
        let entry = file.entries.first { entry in
            do {
                _ = try RunCommand.parse([entry.word])
                return false
            } catch {
                return RunCommand.message(for: error) == message
            }
        }
        return entry.map { "\(file.path):\($0.line): " }
    }
}

/// What is on a command line, without a word about whether it is right.
struct GivenArguments {
    private(set) var names: Set<String> = []
    private(set) var configurationPaths: [String] = []
    private(set) var hasCommand = false

    init(_ arguments: [String], table: RunOptionTable) {
        var rest = arguments[...]
        while let word = rest.popFirst() {
            if word == "--" {
                hasCommand = !rest.isEmpty
                return
            }
            guard word.hasPrefix("-"), word != "-" else {
                if let image = table.options.first(where: { $0.kind == .image }) { names.insert(image.name) }
                continue
            }
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            if parts[0] == "--config" {
                if let path = parts.count > 1 ? parts[1] : rest.popFirst() { configurationPaths.append(path) }
                continue
            }
            guard let option = table.option(spelled: parts[0]) else { continue }
            names.insert(option.name)
            if option.kind != .flag, parts.count == 1 { _ = rest.popFirst() }
        }
    }
}
