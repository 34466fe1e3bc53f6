/// Code by address: what names the addresses of a profile.
public struct SymbolTable: Sendable {
    /// One function. `size` 0: nobody said; it reaches to the next one.
    public struct Symbol: Equatable, Sendable {
        public var address: UInt64
        public var size: UInt64
        public var name: String

        public init(address: UInt64, size: UInt64 = 0, name: String) {
            self.address = address
            self.size = size
            self.name = name
        }
    }

    /// Longest function of unknown size: what is farther behind the last symbol belongs to nothing that is known.
    private static let longestFunction: UInt64 = 64 << 10

    /// By address; of several at one address the first one that was given.
    private let symbols: [Symbol]

    public init(_ symbols: [Symbol] = []) {
        var kept: [Symbol] = []
        let order = symbols.indices.sorted { (symbols[$0].address, $0) < (symbols[$1].address, $1) }
        kept.reserveCapacity(order.count)
        for index in order where kept.last?.address != symbols[index].address { kept.append(symbols[index]) }
        self.symbols = kept
    }

    public var isEmpty: Bool { symbols.isEmpty }
    public var count: Int { symbols.count }

    /// The function at an address, and how far in it.
    public func find(_ address: UInt64) -> (name: String, offset: UInt64)? {
        var low = 0
        var high = symbols.count
        while low < high {
            let middle = (low + high) / 2
            if symbols[middle].address <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return nil }
        let symbol = symbols[low - 1]
        let offset = address - symbol.address
        return offset < (symbol.size != 0 ? symbol.size : Self.longestFunction) ? (symbol.name, offset) : nil
    }
}

extension SymbolTable {
    /// Symbols from the text that nm(1), a kernel's System.map and Linux's /proc/kallsyms have: an address in hexadecimal,
    /// a letter for the kind, a name. Only code counts: T, t, W, w. Nil: not such a text.
    static func parse(text bytes: [UInt8], offset: UInt64 = 0) -> [Symbol]? {
        var result: [Symbol] = []
        var lines = 0
        for line in bytes.split(separator: UInt8(ascii: "\n")) {
            let fields = line.split(maxSplits: 3, omittingEmptySubsequences: true) { $0 == 0x20 || $0 == 0x09 }
            guard fields.count >= 3, fields[1].count == 1, let address = hexadecimal(fields[0]) else { return nil }
            lines += 1
            guard let kind = fields[1].first, isCode(kind), address != 0 else { continue }
            result.append(Symbol(address: address &+ offset, name: String(decoding: fields[2], as: UTF8.self)))
        }
        return lines > 0 ? result : nil
    }

    private static func isCode(_ kind: UInt8) -> Bool {
        kind | 0x20 == UInt8(ascii: "t") || kind | 0x20 == UInt8(ascii: "w")
    }

    private static func hexadecimal(_ digits: ArraySlice<UInt8>) -> UInt64? {
        guard !digits.isEmpty, digits.count <= 16 else { return nil }
        var value: UInt64 = 0
        for digit in digits {
            guard let nibble = Character(UnicodeScalar(digit)).hexDigitValue else { return nil }
            value = value << 4 | UInt64(nibble)
        }
        return value
    }
}
