/// An Ethernet address.
public struct MACAddress: Hashable, Sendable, CustomStringConvertible {
    /// Six bytes, the first one in the highest place of the lower 48 bits.
    public let rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue & 0xFFFF_FFFF_FFFF }

    /// `02:00:5e:10:00:01`; nil for anything else, and for a group address, which no card can have.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 6 else { return nil }
        var value: UInt64 = 0
        for part in parts {
            guard part.utf8.count == 2, part.utf8.allSatisfy({ isHexDigit($0) }), let byte = UInt8(part, radix: 16)
            else { return nil }
            value = value << 8 | UInt64(byte)
        }
        rawValue = value
        guard isUsable else { return nil }
    }

    /// Whether a card can have it: neither a group's nor none at all.
    public var isUsable: Bool { rawValue != 0 && rawValue >> 40 & 1 == 0 }

    /// A locally administered address (IEEE 802 §8.2: bit 1 of the first byte) from five random bytes.
    public init(random bytes: [UInt8]) {
        var value: UInt64 = 0x02
        for index in 0..<5 { value = value << 8 | UInt64(index < bytes.count ? bytes[index] : 0) }
        rawValue = value
    }

    public var bytes: [UInt8] { (0..<6).map { UInt8(truncatingIfNeeded: rawValue >> UInt64(40 - 8 * $0)) } }

    public var description: String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }
}

private func isHexDigit(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "f"),
        UInt8(ascii: "A")...UInt8(ascii: "F"):
        true
    default: false
    }
}

/// An IPv4 or IPv6 address.
public enum IPAddress: Hashable, Sendable, CustomStringConvertible {
    case v4(UInt32)
    case v6(UInt128)

    public init?(_ text: some StringProtocol) {
        if text.contains(":") {
            guard let value = parseIPv6(Substring(text)) else { return nil }
            self = .v6(value)
        } else {
            guard let value = parseIPv4(Substring(text)) else { return nil }
            self = .v4(value)
        }
    }

    var bits: Int {
        switch self {
        case .v4: 32
        case .v6: 128
        }
    }

    public var description: String {
        switch self {
        case .v4(let value): (0..<4).map { String(value >> UInt32(24 - 8 * $0) & 0xFF) }.joined(separator: ".")
        case .v6(let value): describeIPv6(value)
        }
    }
}

/// Four decimal numbers without leading zeros, which some programs read as octal.
private func parseIPv4(_ text: Substring) -> UInt32? {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var value: UInt32 = 0
    for part in parts {
        guard !part.isEmpty, part.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), part.count == 1 || part.first != "0",
            let byte = UInt8(part)
        else { return nil }
        value = value << 8 | UInt32(byte)
    }
    return value
}

/// RFC 4291 §2.2, without the mixed form.
private func parseIPv6(_ text: Substring) -> UInt128? {
    func groups(_ text: Substring) -> [UInt16]? {
        guard !text.isEmpty else { return [] }
        var result: [UInt16] = []
        for part in text.split(separator: ":", omittingEmptySubsequences: false) {
            guard (1...4).contains(part.utf8.count), part.utf8.allSatisfy({ isHexDigit($0) }),
                let group = UInt16(part, radix: 16)
            else { return nil }
            result.append(group)
        }
        return result
    }
    var all: [UInt16]
    if let gap = firstGap(in: text) {
        guard let head = groups(text[..<gap.lowerBound]), let tail = groups(text[gap.upperBound...]),
            head.count + tail.count < 8
        else { return nil }
        all = head + [UInt16](repeating: 0, count: 8 - head.count - tail.count) + tail
    } else {
        guard let whole = groups(text), whole.count == 8 else { return nil }
        all = whole
    }
    return all.reduce(0) { $0 << 16 | UInt128($1) }
}

/// Where `::` stands.
private func firstGap(in text: Substring) -> Range<Substring.Index>? {
    var index = text.startIndex
    while index < text.endIndex {
        let next = text.index(after: index)
        if text[index] == ":", next < text.endIndex, text[next] == ":" { return index..<text.index(after: next) }
        index = next
    }
    return nil
}

/// RFC 5952: the longest run of zero groups becomes `::`.
private func describeIPv6(_ value: UInt128) -> String {
    let groups = (0..<8).map { UInt16(truncatingIfNeeded: value >> UInt128(112 - 16 * $0)) }
    var best = 0..<0
    var start = 0
    while start < 8 {
        var end = start
        while end < 8, groups[end] == 0 { end += 1 }
        if end - start > max(best.count, 1) { best = start..<end }
        start = max(end, start + 1)
    }
    func text(_ groups: ArraySlice<UInt16>) -> String {
        groups.map { String($0, radix: 16) }.joined(separator: ":")
    }
    return best.isEmpty ? text(groups[...]) : text(groups[..<best.lowerBound]) + "::" + text(groups[best.upperBound...])
}

/// Addresses that begin alike: `192.0.2.0/24`.
public struct AddressPrefix: Hashable, Sendable, CustomStringConvertible {
    public let address: IPAddress
    public let length: Int

    /// The host bits of `address` are cleared.
    public init(_ address: IPAddress, length: Int) {
        let length = min(max(length, 0), address.bits)
        self.length = length
        self.address =
            switch address {
            case .v4(let value): .v4(value & AddressPrefix.mask4(length))
            case .v6(let value): .v6(value & AddressPrefix.mask6(length))
            }
    }

    /// An address alone stands for itself.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count <= 2, let address = IPAddress(parts[0]) else { return nil }
        guard parts.count == 2 else {
            self.init(address, length: address.bits)
            return
        }
        guard let length = UInt8(parts[1]), Int(length) <= address.bits else { return nil }
        self.init(address, length: Int(length))
    }

    public func contains(_ other: IPAddress) -> Bool {
        switch (address, other) {
        case (.v4(let own), .v4(let value)): value & AddressPrefix.mask4(length) == own
        case (.v6(let own), .v6(let value)): value & AddressPrefix.mask6(length) == own
        default: false
        }
    }

    /// Whether all of `other` lies in this one.
    public func contains(_ other: AddressPrefix) -> Bool { other.length >= length && contains(other.address) }

    public var description: String { length == address.bits ? "\(address)" : "\(address)/\(length)" }

    private static func mask4(_ length: Int) -> UInt32 { length == 0 ? 0 : ~0 << UInt32(32 - length) }
    private static func mask6(_ length: Int) -> UInt128 { length == 0 ? 0 : ~0 << UInt128(128 - length) }
}
