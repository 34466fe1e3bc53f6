internal import Host

/// A machine's options in a file (`martlet run --config FILE`): the names of the command line without their dashes, in
/// YAML, or in JSON where the file's name ends in `.json`. What the command line says goes before the file.
struct ConfigurationFile {
    /// One option of the file as a word of the command line.
    struct Entry: Equatable {
        var name: String
        var line: Int
        var word: String
    }

    let path: String
    private(set) var entries: [Entry] = []
    private(set) var command: [String] = []

    /// More than any configuration has.
    private static let longest = 1 << 20

    init(path: String, table: RunOptionTable = .run) throws(ConfigurationFileError) {
        let bytes: [UInt8]
        do throws(HostError) {
            bytes = try RandomAccessFile(path: path).readAll(limit: Self.longest)
        } catch {
            throw .unreadable("Cannot read the configuration \(path): \(error.reason). Check the path.")
        }
        try self.init(bytes, path: path, table: table)
    }

    init(_ bytes: [UInt8], path: String, table: RunOptionTable = .run) throws(ConfigurationFileError) {
        self.path = path
        do throws(ConfigurationError) {
            let node = try path.hasSuffix(".json") ? JSONReader.read(bytes) : YAMLReader.read(bytes)
            guard case .mapping(let members) = node.value else {
                throw ConfigurationError(
                    line: node.line, description: "it is \(node.kind), and must be options with their values")
            }
            for member in members { try take(member, table) }
        } catch {
            throw .wrong(
                "\(path):\(error.line): \(error.description)\(error.description.hasSuffix("?") ? "" : ".")")
        }
    }

    private mutating func take(
        _ member: ConfigurationNode.Member, _ table: RunOptionTable
    ) throws(ConfigurationError) {
        guard let option = table.option(named: member.name) else { throw Self.unknown(member, table) }
        func wrong(_ node: ConfigurationNode, _ expected: String) -> ConfigurationError {
            ConfigurationError(
                line: node.line, description: "'\(member.name)' is \(node.kind), and must be \(expected)")
        }
        func text(_ node: ConfigurationNode) throws(ConfigurationError) -> String {
            switch node.value {
            case .string(let text) where !text.contains("\0"): return text
            case .number(let text) where option.takesNumber: return text
            default: throw wrong(node, option.takesNumber ? "a number or a string" : "a string (perhaps in quotes)")
            }
        }
        func add(_ node: ConfigurationNode, _ word: String) {
            entries.append(Entry(name: option.name, line: node.line, word: word))
        }
        switch option.kind {
        case .flag:
            guard case .bool(let isOn) = member.value.value else { throw wrong(member.value, "true or false") }
            if isOn { add(member.value, "--\(option.name)") }
        case .value: add(member.value, "--\(option.name)=\(try text(member.value))")
        case .image: add(member.value, try text(member.value))
        case .list:
            guard case .sequence(let items) = member.value.value else {
                return add(member.value, "--\(option.name)=\(try text(member.value))")
            }
            for item in items { add(item, "--\(option.name)=\(try text(item))") }
        case .command:
            guard case .sequence(let items) = member.value.value else { throw wrong(member.value, "a list of strings") }
            for item in items {
                guard case .string(let text) = item.value else {
                    throw wrong(item, "a list of strings (perhaps in quotes)")
                }
                command.append(text)
            }
        }
    }

    private static func unknown(_ member: ConfigurationNode.Member, _ table: RunOptionTable) -> ConfigurationError {
        let nearest = NearestName.of(member.name, among: table.options.map(\.name))
        return ConfigurationError(
            line: member.line,
            description: "there is no option '\(member.name)'"
                + (nearest.map { "; did you mean '\($0)'?" } ?? "; martlet config schema lists them all"))
    }
}

/// Trouble with a configuration file, as a whole line for a person.
enum ConfigurationFileError: Error, Equatable {
    case unreadable(String)
    case wrong(String)
}
