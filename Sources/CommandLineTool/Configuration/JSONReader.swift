internal import Foundation

/// Reads JSON (RFC 8259): Foundation says whether it is that, and the reader of YAML, of which JSON is a part (YAML 1.2.2
/// §1.2), at which line each value is. Names may come once in an object.
enum JSONReader {
    static func read(_ bytes: [UInt8]) throws(ConfigurationError) -> ConfigurationNode {
        do {
            _ = try JSONSerialization.jsonObject(with: Data(bytes), options: .fragmentsAllowed)
        } catch {
            throw refusal(error as NSError, bytes)
        }
        // Foundation lets it pass.
        if let comma = lastComma(bytes) {
            throw ConfigurationError(
                line: line(of: comma, bytes), description: "it is no JSON: a comma with nothing behind it")
        }
        return try YAMLReader.read(joiningSurrogates(bytes))
    }

    private static func refusal(_ error: NSError, _ bytes: [UInt8]) -> ConfigurationError {
        let text = error.userInfo["NSDebugDescription"] as? String ?? error.localizedDescription
        // "Invalid value around character 15."
        let parts = text.split(separator: " around character ", maxSplits: 1)
        let offset = parts.count == 2 ? Int(parts[1].prefix { $0.isNumber }) : nil
        return ConfigurationError(
            line: line(of: offset ?? bytes.count, bytes),
            description: "it is no JSON: \(parts.first.map { $0.lowercased() } ?? "unreadable")")
    }

    private static func line(of offset: Int, _ bytes: [UInt8]) -> Int {
        1 + bytes.prefix(offset).count { $0 == 0x0A }
    }

    /// Where a comma is that closes a list of values instead of separating two of them.
    private static func lastComma(_ bytes: [UInt8]) -> Int? {
        var comma: Int?
        var (isString, isEscaped) = (false, false)
        for (offset, byte) in bytes.enumerated() {
            if isString {
                isString = isEscaped || byte != UInt8(ascii: "\"")
                isEscaped = !isEscaped && byte == UInt8(ascii: "\\")
                continue
            }
            switch byte {
            case UInt8(ascii: " "), 0x09, 0x0A, 0x0D: continue
            case UInt8(ascii: ","): comma = offset
            case UInt8(ascii: "]"), UInt8(ascii: "}"):
                if let comma { return comma }
            default:
                isString = byte == UInt8(ascii: "\"")
                comma = nil
            }
        }
        return nil
    }

    /// Two escapes that are one character (RFC 8259 §7) as that character: YAML's escapes are whole ones.
    private static func joiningSurrogates(_ bytes: [UInt8]) -> [UInt8] {
        func unit(_ start: Int) -> UInt32? {
            guard start + 6 <= bytes.count, bytes[start] == UInt8(ascii: "\\"), bytes[start + 1] == UInt8(ascii: "u")
            else { return nil }
            return UInt32(String(decoding: bytes[start + 2..<start + 6], as: UTF8.self), radix: 16)
        }
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count)
        var position = 0
        while position < bytes.count {
            if let high = unit(position), (0xD800...0xDBFF).contains(high), let low = unit(position + 6),
                (0xDC00...0xDFFF).contains(low),
                let scalar = Unicode.Scalar(0x10000 + (high - 0xD800) << 10 + (low - 0xDC00))
            {
                result += Array(String(scalar).utf8)
                position += 12
                continue
            }
            // What follows a backslash is no backslash of its own.
            let count = bytes[position] == UInt8(ascii: "\\") ? min(2, bytes.count - position) : 1
            result += bytes[position..<position + count]
            position += count
        }
        return result
    }
}
