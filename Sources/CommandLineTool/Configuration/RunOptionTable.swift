internal import ArgumentParser

/// The options of `martlet run` as the parser knows them: what a configuration file may have, under the same names.
struct RunOptionTable {
    struct Option: Equatable {
        enum Kind: Equatable {
            case flag
            case value
            case list
            /// The image, without a name on the command line.
            case image
            /// What follows `--`.
            case command
        }

        var name: String
        /// With its dashes, as on the command line.
        var spellings: [String]
        var kind: Kind
        /// What the help calls its value.
        var valueName: String
        var help: String

        /// A number is as good as a string for these.
        var takesNumber: Bool { ["n", "size", "duration", "cid", "port", "number"].contains(valueName) }

        /// The words that it takes, where the help lists them all.
        var choices: [String] {
            let words = valueName.split(separator: "|", omittingEmptySubsequences: false).map(String.init)
            let isList =
                words.count > 1 && words.allSatisfy { $0.allSatisfy { $0.isLetter && $0.isASCII } && !$0.isEmpty }
            return isList ? words : []
        }
    }

    let options: [Option]

    static let run = RunOptionTable(dump: RunCommand._dumpHelp())

    /// From the parser's description of a command (ArgumentParser's ToolInfo, version 0).
    init(dump: String) {
        guard let node = try? JSONReader.read(Array(dump.utf8)), let command = node["command"],
            case .sequence(let arguments)? = command["arguments"]?.value
        else { preconditionFailure("The parser describes its options in another way than it did") }
        options = arguments.compactMap(Self.option)
    }

    private static func option(_ node: ConfigurationNode) -> Option? {
        let isRepeating = node["isRepeating"]?.value == .bool(true)
        let valueName = node["valueName"]?.text ?? ""
        let help = node["abstract"]?.text ?? ""
        guard node["kind"]?.text != "positional" else {
            return Option(
                name: valueName, spellings: [], kind: isRepeating ? .command : .image, valueName: valueName, help: help)
        }
        var spellings: [String] = []
        var longName: String?
        if case .sequence(let names)? = node["names"]?.value {
            for item in names {
                guard let name = item["name"]?.text else { continue }
                if item["kind"]?.text == "long" { longName = longName ?? name }
                spellings.append((item["kind"]?.text == "long" ? "--" : "-") + name)
            }
        }
        guard let longName, !["help", "version", "config"].contains(longName) else { return nil }
        let kind: Option.Kind = node["kind"]?.text == "flag" ? .flag : isRepeating ? .list : .value
        return Option(name: longName, spellings: spellings, kind: kind, valueName: valueName, help: help)
    }

    func option(named name: String) -> Option? { options.first { $0.name == name } }

    func option(spelled word: String) -> Option? { options.first { $0.spellings.contains(word) } }

    // MARK: The schema

    /// The JSON schema (draft 2020-12) of a configuration file.
    var schema: JSONText {
        let properties = options.map { ($0.name, Self.schema($0)) }
        return .object([
            ("$schema", .string("https://json-schema.org/draft/2020-12/schema")),
            ("title", .string("A machine of Martlet: martlet run --config FILE")), ("type", .string("object")),
            ("properties", .object(properties)), ("additionalProperties", .bool(false)),
        ])
    }

    private static func schema(_ option: Option) -> JSONText {
        let string = JSONText.object([("type", .string("string"))])
        let strings = JSONText.object([("type", .string("array")), ("items", string)])
        var members: [(String, JSONText)] = [("description", .string(option.help))]
        switch option.kind {
        case .flag: members.append(("type", .string("boolean")))
        case .image: members.append(("type", .string("string")))
        case .value:
            let types: JSONText =
                option.takesNumber ? .array([.string("string"), .string("integer")]) : .string("string")
            members.append(("type", types))
            if !option.choices.isEmpty { members.append(("enum", .array(option.choices.map { .string($0) }))) }
        case .list: members.append(("oneOf", .array([string, strings])))
        case .command: members += [("type", .string("array")), ("items", string)]
        }
        return .object(members)
    }
}

extension ConfigurationNode {
    fileprivate subscript(name: String) -> ConfigurationNode? {
        guard case .mapping(let members) = value else { return nil }
        return members.first { $0.name == name }?.value
    }

    fileprivate var text: String? {
        if case .string(let text) = value { return text }
        return nil
    }
}
