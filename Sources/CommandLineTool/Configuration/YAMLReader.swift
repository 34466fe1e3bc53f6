internal import CYAML

/// Reads one YAML document, with the types of YAML 1.2's core schema (§10.3.2). Aliases are refused: they can make a
/// small file a huge one.
struct YAMLReader {
    private let reader: OpaquePointer

    static func read(_ bytes: [UInt8]) throws(ConfigurationError) -> ConfigurationNode {
        // Not closures all the way: the parser keeps the address until it is closed.
        let copy = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: max(bytes.count, 1))
        defer { copy.deallocate() }
        _ = copy.update(fromContentsOf: bytes)
        guard let base = copy.baseAddress, let reader = yaml_reader_open(base, bytes.count) else {
            throw ConfigurationError(line: 1, description: "there is not enough memory to read it")
        }
        defer { yaml_reader_close(reader) }
        return try YAMLReader(reader: reader).document()
    }

    private func document() throws(ConfigurationError) -> ConfigurationNode {
        switch try next() {
        case YAML_ITEM_END: return ConfigurationNode(line: 1, value: .mapping([]))
        default: break
        }
        let node = try node(try next(), depth: 0)
        guard try next() == YAML_ITEM_END else { throw error("there is a second document") }
        return node
    }

    private var line: Int { yaml_reader_line(reader) }

    private var text: String {
        var count = 0
        guard let start = yaml_reader_text(reader, &count) else { return "" }
        return String(decoding: UnsafeBufferPointer(start: start, count: count), as: UTF8.self)
    }

    private func error(_ text: String) -> ConfigurationError { ConfigurationError(line: line, description: text) }

    private func next() throws(ConfigurationError) -> yaml_item {
        let item = yaml_reader_next(reader)
        switch item {
        case YAML_ITEM_ERROR: throw error(text)
        case YAML_ITEM_ALIAS: throw error("anchors and aliases are not supported")
        case YAML_ITEM_TAGGED: throw error("only the tag !!str is supported")
        default: return item
        }
    }

    private func node(_ item: yaml_item, depth: Int) throws(ConfigurationError) -> ConfigurationNode {
        guard depth < ConfigurationNode.deepest else { throw error("it is nested too deeply") }
        let start = line
        switch item {
        case YAML_ITEM_PLAIN: return ConfigurationNode(line: start, value: Self.plain(text))
        case YAML_ITEM_TEXT: return ConfigurationNode(line: start, value: .string(text))
        case YAML_ITEM_SEQUENCE:
            var items: [ConfigurationNode] = []
            while case let item = try next(), item != YAML_ITEM_SEQUENCE_END {
                items.append(try node(item, depth: depth + 1))
            }
            return ConfigurationNode(line: start, value: .sequence(items))
        case YAML_ITEM_MAPPING: return ConfigurationNode(line: start, value: .mapping(try members(depth: depth)))
        default: throw error("a value is missing")
        }
    }

    private func members(depth: Int) throws(ConfigurationError) -> [ConfigurationNode.Member] {
        var members: [ConfigurationNode.Member] = []
        var names: Set<String> = []
        while case let item = try next(), item != YAML_ITEM_MAPPING_END {
            guard item == YAML_ITEM_PLAIN || item == YAML_ITEM_TEXT else { throw error("a name must be a word") }
            let name = text
            let nameLine = line
            guard names.insert(name).inserted else { throw error("'\(name)' is there twice") }
            let value = try node(try next(), depth: depth + 1)
            members.append(ConfigurationNode.Member(name: name, line: nameLine, value: value))
        }
        return members
    }

    static func plain(_ text: String) -> ConfigurationNode.Value {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case "true", "True", "TRUE": return .bool(true)
        case "false", "False", "FALSE": return .bool(false)
        default: return isNumber(text) ? .number(text) : .string(text)
        }
    }

    private static func isNumber(_ text: String) -> Bool {
        for (prefix, radix) in [("0x", 16), ("0o", 8)] where text.hasPrefix(prefix) {
            return text.count > 2 && text.dropFirst(2).allSatisfy { $0.isASCII && ($0.hexDigitValue ?? 99) < radix }
        }
        var rest = text.first == "-" || text.first == "+" ? text.dropFirst() : text[...]
        let whole = rest.prefix { $0.isASCII && $0.isNumber }
        rest = rest.dropFirst(whole.count)
        var fraction = 0
        if rest.first == "." {
            rest = rest.dropFirst()
            fraction = rest.prefix { $0.isASCII && $0.isNumber }.count
            rest = rest.dropFirst(fraction)
        }
        guard whole.count + fraction > 0 else { return false }
        if rest.first == "e" || rest.first == "E" {
            rest = rest.dropFirst()
            if rest.first == "-" || rest.first == "+" { rest = rest.dropFirst() }
            guard !rest.isEmpty else { return false }
            rest = rest.drop { $0.isASCII && $0.isNumber }
        }
        return rest.isEmpty
    }
}
