/// Reads JSON (RFC 8259). Names may come once in an object.
struct JSONReader {
    private let bytes: [UInt8]
    private var position = 0
    private var line = 1

    private init(_ bytes: [UInt8]) { self.bytes = bytes }

    static func read(_ bytes: [UInt8]) throws(ConfigurationError) -> ConfigurationNode {
        var reader = JSONReader(bytes)
        let node = try reader.value(depth: 0)
        reader.skipSpace()
        guard reader.position == bytes.count else { throw reader.error("there is something behind its end") }
        return node
    }

    private func error(_ text: String) -> ConfigurationError { ConfigurationError(line: line, description: text) }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D {
            if byte == 0x0A { line += 1 }
            position += 1
        }
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard let byte = next, UInt32(byte) == character.value else { return false }
        position += 1
        return true
    }

    private mutating func takeWord(_ word: String) -> Bool {
        let utf8 = Array(word.utf8)
        guard bytes.count - position >= utf8.count, Array(bytes[position..<position + utf8.count]) == utf8 else {
            return false
        }
        position += utf8.count
        return true
    }

    private mutating func value(depth: Int) throws(ConfigurationError) -> ConfigurationNode {
        guard depth < ConfigurationNode.deepest else { throw error("it is nested too deeply") }
        skipSpace()
        let start = line
        func node(_ value: ConfigurationNode.Value) -> ConfigurationNode {
            ConfigurationNode(line: start, value: value)
        }
        switch next.map({ Unicode.Scalar($0) }) {
        case "{": return node(.mapping(try object(depth: depth)))
        case "[": return node(.sequence(try array(depth: depth)))
        case "\"": return node(.string(try string()))
        case "t" where takeWord("true"): return node(.bool(true))
        case "f" where takeWord("false"): return node(.bool(false))
        case "n" where takeWord("null"): return node(.null)
        case nil: throw error("it ends too early")
        default: return node(.number(try number()))
        }
    }

    private mutating func object(depth: Int) throws(ConfigurationError) -> [ConfigurationNode.Member] {
        position += 1
        var members: [ConfigurationNode.Member] = []
        var names: Set<String> = []
        skipSpace()
        if take("}") { return [] }
        while true {
            skipSpace()
            guard next == 0x22 else { throw error("a name in double quotes is missing") }
            let nameLine = line
            let name = try string()
            guard names.insert(name).inserted else { throw error("'\(name)' is there twice") }
            skipSpace()
            guard take(":") else { throw error("a colon is missing behind '\(name)'") }
            let value = try value(depth: depth + 1)
            members.append(ConfigurationNode.Member(name: name, line: nameLine, value: value))
            skipSpace()
            if take("}") { return members }
            guard take(",") else { throw error("a comma or a closing brace is missing") }
        }
    }

    private mutating func array(depth: Int) throws(ConfigurationError) -> [ConfigurationNode] {
        position += 1
        var items: [ConfigurationNode] = []
        skipSpace()
        if take("]") { return [] }
        while true {
            items.append(try value(depth: depth + 1))
            skipSpace()
            if take("]") { return items }
            guard take(",") else { throw error("a comma or a closing bracket is missing") }
        }
    }

    private mutating func string() throws(ConfigurationError) -> String {
        position += 1
        var result: [UInt8] = []
        while let byte = next {
            position += 1
            switch byte {
            case 0x22:
                guard let text = String(validating: result, as: UTF8.self) else { throw error("it is not UTF-8") }
                return text
            case 0x5C: result += Array(String(try escape()).utf8)
            case 0..<0x20: throw error("a string does not end in its line")
            default: result.append(byte)
            }
        }
        throw error("a string does not end")
    }

    private mutating func escape() throws(ConfigurationError) -> Unicode.Scalar {
        guard let byte = next else { throw error("a string does not end") }
        position += 1
        switch Unicode.Scalar(byte) {
        case "\"": return "\""
        case "\\": return "\\"
        case "/": return "/"
        case "b": return "\u{8}"
        case "f": return "\u{C}"
        case "n": return "\n"
        case "r": return "\r"
        case "t": return "\t"
        case "u":
            let first = try codeUnit()
            if let scalar = Unicode.Scalar(first) { return scalar }
            // A surrogate pair (RFC 8259 §7).
            guard (0xD800...0xDBFF).contains(first), take("\\"), take("u") else { throw error("half a surrogate pair") }
            let second = try codeUnit()
            guard (0xDC00...0xDFFF).contains(second),
                let scalar = Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))
            else { throw error("half a surrogate pair") }
            return scalar
        default: throw error("an unknown escape in a string")
        }
    }

    private mutating func codeUnit() throws(ConfigurationError) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = next, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw error("\\u needs four hexadecimal digits")
            }
            position += 1
            value = value << 4 | UInt32(digit)
        }
        return value
    }

    private mutating func number() throws(ConfigurationError) -> String {
        let start = position
        func isDigit(_ byte: UInt8?) -> Bool { byte.map { (0x30...0x39).contains($0) } ?? false }
        _ = take("-")
        guard isDigit(next) else { throw error("a value is missing or has a typing error") }
        if !take("0") { while isDigit(next) { position += 1 } }
        if take(".") {
            guard isDigit(next) else { throw error("a number ends too early") }
            while isDigit(next) { position += 1 }
        }
        if take("e") || take("E") {
            if !take("+") { _ = take("-") }
            guard isDigit(next) else { throw error("a number ends too early") }
            while isDigit(next) { position += 1 }
        }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }
}
