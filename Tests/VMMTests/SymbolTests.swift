internal import Platform
internal import Testing

@testable internal import VMM

@Suite("Symbols")
struct SymbolTests {
    private typealias Symbol = SymbolTable.Symbol

    @Test(
        "An address is in the last function that begins before its end",
        arguments: [
            (0, nil), (0xFFF, nil), (0x1000, "first+0"), (0x100F, "first+15"), (0x1010, nil), (0x1020, "second+0"),
            (0x1FFF, "second+4063"), (0x2000, "third+0"), (0x2000 + 0xFFFF, "third+65535"), (0x2000 + 0x1_0000, nil),
            (.max, nil),
        ] as [(UInt64, String?)])
    func find(address: UInt64, expected: String?) {
        let table = SymbolTable([
            Symbol(address: 0x2000, name: "third"), Symbol(address: 0x1000, size: 16, name: "first"),
            Symbol(address: 0x1020, name: "second"), Symbol(address: 0x2000, size: 1, name: "alias"),
        ])
        #expect(table.count == 3)
        #expect(table.find(address).map { "\($0.name)+\($0.offset)" } == expected)
    }

    // MARK: Text

    @Test("A System.map and a /proc/kallsyms: only code counts")
    func text() throws {
        let text = """
            0000000000000000 A fixed_percpu_data
            ffffffff81000000 T _stext
            ffffffff81000040 t helper.isra.0
            ffffffff81000080 W weak
            ffffffff82000000 D data
            ffffffffc0001000 t module_code\t[module]

            """
        let symbols = try #require(SymbolTable.parse(text: Array(text.utf8)))
        #expect(symbols.map(\.name) == ["_stext", "helper.isra.0", "weak", "module_code"])
        #expect(symbols[0].address == 0xFFFF_FFFF_8100_0000)
        #expect(SymbolTable.parse(text: Array(text.utf8), offset: 0x1000)?[0].address == 0xFFFF_FFFF_8100_1000)
    }

    @Test("What a reader without rights gets from /proc/kallsyms names nothing")
    func zeroes() {
        #expect(SymbolTable.parse(text: Array("0000000000000000 T _stext\n".utf8))?.isEmpty == true)
    }

    @Test(
        "Texts that are none",
        arguments: [
            "", "\n\n", "hello", "hello T world", "12345678901234567 T long", "1000 TT two", "1000 T",
            "-1 T negative", "1000 T good\nbad line here",
        ])
    func badText(text: String) {
        #expect(SymbolTable.parse(text: Array(text.utf8)) == nil)
    }

    // MARK: ELF

    /// A file in memory.
    private struct Bytes: BootFile {
        var bytes: [UInt8]
        var name: String { "test.elf" }
        var size: UInt64 { UInt64(bytes.count) }
        func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
            guard count >= 0, offset <= size, UInt64(count) <= size - offset else { throw BootFileError("it ended") }
            return Array(bytes[Int(offset)..<Int(offset) + count])
        }
    }

    private static func number(_ value: UInt64, _ size: Int) -> [UInt8] {
        (0..<size).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    /// Sections: none, symbols, names. Symbols: none, main (a function), object, undefined, label (no type).
    private static func elf(is64: Bool) -> [UInt8] {
        let names = Array("\0main\0object\0undefined\0label\0".utf8)
        let symbols: [(name: UInt64, value: UInt64, size: UInt64, info: UInt64, section: UInt64)] = [
            (0, 0, 0, 0, 0), (1, 0x401000, 32, 0x12, 1), (6, 0x402000, 8, 0x11, 2), (13, 0, 0, 0x12, 0),
            (23, 0x401800, 0, 0x00, 1),
        ]
        var table: [UInt8] = []
        for symbol in symbols {
            table += number(symbol.name, 4)
            if is64 {
                table += number(symbol.info, 1) + [0] + number(symbol.section, 2) + number(symbol.value, 8)
                table += number(symbol.size, 8)
            } else {
                table += number(symbol.value, 4) + number(symbol.size, 4) + number(symbol.info, 1) + [0]
                table += number(symbol.section, 2)
            }
        }
        let headerSize = is64 ? 64 : 52
        let sectionSize = is64 ? 64 : 40
        let width = is64 ? 8 : 4
        let tableStart = UInt64(headerSize + 3 * sectionSize)
        let namesStart = tableStart + UInt64(table.count)
        var file: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, is64 ? 2 : 1, 1, 1] + Array(repeating: 0, count: 9)
        file += number(2, 2) + number(is64 ? 62 : 3, 2) + number(1, 4) + number(0x401000, width) + number(0, width)
        file += number(UInt64(headerSize), width) + number(0, 4) + number(UInt64(headerSize), 2) + number(0, 4)
        file += number(UInt64(sectionSize), 2) + number(3, 2) + number(0, 2)
        func section(_ type: UInt64, _ start: UInt64, _ size: Int, link: UInt64) -> [UInt8] {
            number(0, 4) + number(type, 4) + number(0, 2 * width) + number(start, width)
                + number(UInt64(size), width) + number(link, 4) + number(0, 4) + number(0, 2 * width)
        }
        file += section(0, 0, 0, link: 0) + section(2, tableStart, table.count, link: 2)
        file += section(3, namesStart, names.count, link: 0)
        return file + table + names
    }

    @Test("The functions of an ELF file", arguments: [true, false])
    func elf(is64: Bool) throws {
        let symbols = try ELFSymbols.read(Bytes(bytes: Self.elf(is64: is64)))
        #expect(
            symbols == [
                Symbol(address: 0x401000, size: 32, name: "main"), Symbol(address: 0x401800, name: "label"),
            ])
    }

    @Test("Every ELF file that is cut off, and every one with a changed byte, is no trouble", arguments: [true, false])
    func brokenELF(is64: Bool) {
        let file = Self.elf(is64: is64)
        for count in 0..<file.count { _ = try? ELFSymbols.read(Bytes(bytes: Array(file.prefix(count)))) }
        for index in file.indices {
            for value in [0, 1, 0x7F, 0x80, 0xFF] as [UInt8] {
                var changed = file
                changed[index] = value
                _ = try? ELFSymbols.read(Bytes(bytes: changed))
            }
        }
        #expect(
            (try? ELFSymbols.read(Bytes(bytes: Array("no ELF file at all, but long enough to be one......".utf8))))
                == .some(nil))
    }

    // MARK: What the kernel has of itself

    /// The tables of scripts/kallsyms.c for some symbols, and an image of two pieces with them in the middle.
    private struct Image {
        static let base: UInt64 = 0xFFFF_FFFF_8100_0000
        var bytes = [UInt8](repeating: 0, count: 4 << 20)

        init(isNew: Bool, count: Int) {
            // Tokens: single letters and digits, and one of two letters.
            var tokens = (0..<256).map { [UInt8(truncatingIfNeeded: $0)] }
            for index in tokens.indices where index < 0x21 || index > 0x7A { tokens[index] = Array("Z\(index)".utf8) }
            tokens[1] = Array("fu".utf8)
            var names: [UInt8] = []
            var markers: [UInt64] = []
            for number in 0..<count {
                if number & 255 == 0 { markers.append(UInt64(names.count)) }
                var name = Array((number == 0 ? "Apercpu" : number % 5 == 4 ? "ddata\(number)" : "T").utf8)
                if name == [0x54] { name += [1] + Array("nction_\(number)".utf8) }
                if number == 3 { name += Array(String(repeating: "x", count: 140).utf8) }
                names +=
                    name.count < 128 ? [UInt8(name.count)] : [UInt8(name.count & 127 | 128), UInt8(name.count >> 7)]
                names += name
            }
            func aligned(_ part: [UInt8]) -> [UInt8] { part + Array(repeating: 0, count: (8 - part.count & 7) & 7) }
            let offsets = (0..<count).flatMap { number in
                SymbolTests.number(number == 0 ? 0x40 : UInt64(bitPattern: -1 - Int64(number) * 64), 4)
            }
            let addresses = aligned(offsets) + SymbolTests.number(Self.base, 8)
            var index: [UInt8] = []
            var table: [UInt8] = []
            for token in tokens {
                index += SymbolTests.number(UInt64(table.count), 2)
                table += token + [0]
            }
            let counted = SymbolTests.number(UInt64(count), 8) + aligned(names)
            let markerTable = aligned(markers.flatMap { SymbolTests.number($0, 4) })
            let all =
                (isNew ? [] : addresses) + counted + markerTable + aligned(table) + aligned(index)
                + (isNew ? addresses : [])
            // Over the border of the pieces.
            let place = (2 << 20) - 4096
            bytes.replaceSubrange(place..<place + all.count, with: all)
        }

        func find() -> [SymbolTable.Symbol]? {
            KernelSymbols(pieces: [Self.base, Self.base + (2 << 20)]) { address, count in
                (0..<UInt64(count)).map { offset in
                    let place = address &+ offset &- Self.base
                    return place < UInt64(bytes.count) ? bytes[Int(place)] : 0
                }
            }.find()
        }
    }

    @Test(
        "The kernel's own tables, in the orders that they had",
        arguments: [(false, 600), (true, 600), (false, 513), (true, 1024)])
    func kernel(isNew: Bool, count: Int) throws {
        let symbols = try #require(Image(isNew: isNew, count: count).find())
        #expect(symbols.count == (1..<count).count { $0 % 5 != 4 })
        #expect(symbols.first == Symbol(address: Image.base + 64, name: "function_1"))
        #expect(symbols.last.map { $0.name.hasPrefix("function_") } == true)
        let long = try #require(symbols.first { $0.name.count > 128 })
        #expect(long == Symbol(address: Image.base + 3 * 64, name: "function_3" + String(repeating: "x", count: 140)))
    }

    @Test("Tables with a changed byte are none, or have other names; nothing is out of bounds")
    func brokenKernel() {
        let image = Image(isNew: false, count: 600)
        #expect(Image(isNew: false, count: 1).find() == nil)
        let start = (2 << 20) - 4096
        for place in stride(from: start, to: start + 16 << 10, by: 97) {
            var changed = image
            changed.bytes[place] ^= 0xA5
            _ = changed.find()
        }
    }
}
