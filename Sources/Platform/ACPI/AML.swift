/// ACPI machine language as bytes, as much of it as the board's DSDT needs (ACPI 6.5 §20.2).
enum AML {
    static func integer(_ value: UInt64) -> [UInt8] {
        var bytes: [UInt8] = []
        switch value {
        case 0, 1: bytes = [UInt8(value)]
        case 2...0xFF:
            bytes = [0x0A, UInt8(value)]
        case 0x100...0xFFFF:
            bytes = [0x0B]
            bytes.append(littleEndian: UInt16(value))
        case 0x1_0000...0xFFFF_FFFF:
            bytes = [0x0C]
            bytes.append(littleEndian: UInt32(value))
        default:
            bytes = [0x0E]
            bytes.append(littleEndian: value)
        }
        return bytes
    }

    static func string(_ value: String) -> [UInt8] { [0x0D] + Array(value.utf8) + [0] }

    /// "PNP0501" as the compressed number that _HID holds (§19.3.4, EISAID): three letters of five bits, four digits.
    static func eisaID(_ id: String) -> [UInt8] {
        let characters = Array(id.utf8)
        precondition(characters.count == 7)
        let letters = characters[0..<3].map { UInt16($0 & 0x1F) }
        let number = letters[0] << 10 | letters[1] << 5 | letters[2]
        let product = UInt16(String(decoding: characters[3...], as: UTF8.self), radix: 16) ?? 0
        let swapped = UInt32(number.byteSwapped) | UInt32(product.byteSwapped) << 16
        var bytes: [UInt8] = [0x0C]
        bytes.append(littleEndian: swapped)
        return bytes
    }

    /// A name of at most four characters, padded with underscores; a leading backslash is the root.
    static func path(_ path: String) -> [UInt8] {
        var bytes: [UInt8] = []
        var segment = path[...]
        if segment.first == "\\" {
            bytes.append(UInt8(ascii: "\\"))
            segment = segment.dropFirst()
        }
        guard !segment.isEmpty else { return bytes + [0] }
        precondition(segment.utf8.count <= 4)
        bytes.append(String(segment), width: 4, padding: UInt8(ascii: "_"))
        return bytes
    }

    static func name(_ path: String, _ value: [UInt8]) -> [UInt8] { [0x08] + Self.path(path) + value }

    static func package(_ elements: [[UInt8]]) -> [UInt8] {
        [0x12] + sized([UInt8(elements.count)] + elements.flatMap { $0 })
    }

    static func buffer(_ bytes: [UInt8]) -> [UInt8] { [0x11] + sized(integer(UInt64(bytes.count)) + bytes) }

    static func scope(_ path: String, _ body: [[UInt8]]) -> [UInt8] {
        [0x10] + sized(Self.path(path) + body.flatMap { $0 })
    }

    static func device(_ path: String, _ body: [[UInt8]]) -> [UInt8] {
        [0x5B, 0x82] + sized(Self.path(path) + body.flatMap { $0 })
    }

    /// Puts PkgLength before `body`; the length counts its own bytes (§20.2.4).
    static func sized(_ body: [UInt8]) -> [UInt8] {
        if body.count + 1 < 0x40 { return [UInt8(body.count + 1)] + body }
        var extra = 1
        while body.count + 1 + extra >= 1 << (4 + 8 * extra) { extra += 1 }
        let length = body.count + 1 + extra
        var bytes = [UInt8(extra << 6 | length & 0xF)]
        for index in 0..<extra { bytes.append(UInt8(truncatingIfNeeded: length >> (4 + 8 * index))) }
        return bytes + body
    }
}

/// Resource descriptors for _CRS (ACPI 6.5 §6.4).
enum AMLResource {
    static func template(_ descriptors: [[UInt8]]) -> [UInt8] {
        // End tag; a checksum of 0 counts as correct (§6.4.2.9).
        AML.buffer(descriptors.flatMap { $0 } + [0x79, 0])
    }

    /// Fixed ports with 16-bit decoding (§6.4.2.5).
    static func ports(_ base: UInt16, count: UInt8) -> [UInt8] {
        var bytes: [UInt8] = [0x47, 0x01]
        bytes.append(littleEndian: base)
        bytes.append(littleEndian: base)
        return bytes + [1, count]
    }

    /// An edge-triggered, active-high ISA interrupt (§6.4.2.1).
    static func interrupt(_ irq: UInt32) -> [UInt8] {
        var bytes: [UInt8] = [0x22]
        bytes.append(littleEndian: UInt16(1) << UInt16(irq & 15))
        return bytes
    }

    /// A fixed range of memory below 4 GiB, read-write (§6.4.3.4).
    static func memory(_ base: UInt32, size: UInt32) -> [UInt8] {
        var bytes: [UInt8] = [0x86, 0x09, 0, 1]
        bytes.append(littleEndian: base)
        bytes.append(littleEndian: size)
        return bytes
    }

    /// What a bridge passes on: minimum and maximum fixed, positive decoding (§6.4.3.5.3).
    private static let producer: UInt8 = 0x0C

    static func busNumbers(_ range: ClosedRange<UInt16>) -> [UInt8] { word(type: 2, flags: 0, range) }

    /// ISA and other ports.
    static func portWindow(_ range: ClosedRange<UInt16>) -> [UInt8] { word(type: 1, flags: 0x03, range) }

    private static func word(type: UInt8, flags: UInt8, _ range: ClosedRange<UInt16>) -> [UInt8] {
        var bytes: [UInt8] = [0x88, 0x0D, 0, type, producer, flags]
        let length = range.upperBound &- range.lowerBound &+ 1
        for value in [0, range.lowerBound, range.upperBound, 0, length] { bytes.append(littleEndian: value) }
        return bytes
    }

    /// Read-write memory, cacheable or not (§6.4.3.5.2).
    static func memoryWindow(_ range: ClosedRange<UInt32>, isCacheable: Bool) -> [UInt8] {
        var bytes: [UInt8] = [0x87, 0x17, 0, 0, producer, isCacheable ? 0x03 : 0x01]
        let length = range.upperBound &- range.lowerBound &+ 1
        for value in [0, range.lowerBound, range.upperBound, 0, length] { bytes.append(littleEndian: value) }
        return bytes
    }

    /// The same with 64-bit addresses, not cacheable (§6.4.3.5.1).
    static func highMemoryWindow(_ range: Range<UInt64>) -> [UInt8] {
        var bytes: [UInt8] = [0x8A, 0x2B, 0, 0, producer, 0x01]
        for value in [0, range.lowerBound, range.upperBound &- 1, 0, range.upperBound &- range.lowerBound] {
            bytes.append(littleEndian: value)
        }
        return bytes
    }
}
