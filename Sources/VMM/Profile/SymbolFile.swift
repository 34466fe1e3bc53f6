internal import Host
internal import Platform

/// `--symbols FILE[@ADDRESS]`: a System.map, a copy of the guest's /proc/kallsyms, or an ELF file with a symbol table.
public struct SymbolFile: Equatable, Sendable {
    public var path: String
    /// Added to each address: where a position-independent program was loaded.
    public var loadAddress: UInt64

    public init(path: String, loadAddress: UInt64 = 0) {
        self.path = path
        self.loadAddress = loadAddress
    }

    /// A kernel with its debugging information is several hundred megabytes, most of which is not read.
    private static let largestText = 64 << 20

    /// The code symbols in it.
    public func load() throws(MachineError) -> [SymbolTable.Symbol] {
        let file = try HostFile(path: path, role: "symbol file")
        do {
            if let symbols = try ELFSymbols.read(file) {
                return try nonempty(
                    symbols.map { symbol in
                        var symbol = symbol
                        symbol.address &+= loadAddress
                        return symbol
                    })
            }
            guard file.size <= UInt64(Self.largestText) else { throw BootFileError("it is too large") }
            if let symbols = SymbolTable.parse(text: try file.read(count: Int(file.size), at: 0), offset: loadAddress) {
                return try nonempty(symbols)
            }
        } catch let error as BootFileError {
            throw MachineError("Cannot read the symbol file \(path): \(error). \(Self.advice)")
        } catch let error as MachineError {
            throw error
        } catch {
            throw MachineError("Cannot read the symbol file \(path). \(Self.advice)")
        }
        throw MachineError(
            "The symbol file \(path) is neither an ELF file nor lines of ADDRESS KIND NAME. \(Self.advice)")
    }

    private static let advice =
        "Take a System.map, the guest's /proc/kallsyms as root reads it, or an ELF file that is not stripped."

    /// Where the reader may not see addresses, /proc/kallsyms has zeroes.
    private func nonempty(_ symbols: [SymbolTable.Symbol]) throws(MachineError) -> [SymbolTable.Symbol] {
        guard symbols.isEmpty else { return symbols }
        throw MachineError("The symbol file \(path) has no function with an address. \(Self.advice)")
    }
}

/// The function symbols of an ELF file (System V ABI, "Symbol Table"; both classes, little-endian).
enum ELFSymbols {
    private static let largestTable: UInt64 = 512 << 20

    private struct Section {
        var type: UInt32
        var offset: UInt64
        var size: UInt64
        var link: UInt32
    }

    /// Nil: not an ELF file. Symbols of a file that has none: an empty list.
    static func read(_ file: some BootFile) throws(BootFileError) -> [SymbolTable.Symbol]? {
        guard file.size >= 52 else { return nil }
        let header = LittleEndianReader(try file.read(count: Int(min(file.size, 64)), at: 0))
        guard header.bytes.starts(with: [0x7F, 0x45, 0x4C, 0x46]) else { return nil }
        guard header.bytes[5] == 1 else { throw BootFileError("it is not for a little-endian processor") }
        let is64 = header.bytes[4] == 2
        guard !is64 || header.bytes.count == 64 else { throw BootFileError("its header is cut off") }
        let sections = try sections(file, header, is64: is64)
        // SHT_SYMTAB, else SHT_DYNSYM.
        guard let table = sections.first(where: { $0.type == 2 }) ?? sections.first(where: { $0.type == 11 }) else {
            return []
        }
        guard Int(table.link) < sections.count else { throw BootFileError("its symbol table has no names") }
        let names = try contents(file, sections[Int(table.link)])
        let symbols = LittleEndianReader(try contents(file, table))
        let size = is64 ? 24 : 16
        var result: [SymbolTable.Symbol] = []
        for place in stride(from: 0, through: symbols.bytes.count - size, by: size) {
            if let symbol = symbol(symbols, place, names, is64: is64) { result.append(symbol) }
        }
        return result
    }

    private static func symbol(
        _ table: LittleEndianReader, _ place: Int, _ names: [UInt8], is64: Bool
    ) -> SymbolTable.Symbol? {
        let info = table.bytes[place + (is64 ? 4 : 12)]
        let section = table.value(at: place + (is64 ? 6 : 14), size: 2)
        let address = table.value(at: place + (is64 ? 8 : 4), size: is64 ? 8 : 4)
        let size = table.value(at: place + (is64 ? 16 : 8), size: is64 ? 8 : 4)
        // STT_FUNC, or STT_NOTYPE as assembly has it; defined in a section.
        guard info & 15 == 2 || info & 15 == 0, section != 0, section < 0xFF00 else { return nil }
        let start = Int(table.value(at: place, size: 4))
        guard start < names.count, names[start] != 0 else { return nil }
        let name = names[start...].prefix { $0 != 0 }
        return SymbolTable.Symbol(address: address, size: size, name: String(decoding: name, as: UTF8.self))
    }

    private static func sections(
        _ file: some BootFile, _ header: LittleEndianReader, is64: Bool
    ) throws(BootFileError) -> [Section] {
        let start = header.value(at: is64 ? 40 : 32, size: is64 ? 8 : 4)
        let size = header.value(at: is64 ? 58 : 46, size: 2)
        let count = header.value(at: is64 ? 60 : 48, size: 2)
        guard count > 0 else { return [] }
        guard size >= (is64 ? 64 : 40), start < file.size, count * size <= file.size - start else {
            throw BootFileError("its section headers are outside of it")
        }
        let table = LittleEndianReader(try file.read(count: Int(count * size), at: start))
        return (0..<Int(count)).map { index in
            let place = index * Int(size)
            return Section(
                type: UInt32(table.value(at: place + 4, size: 4)),
                offset: table.value(at: place + (is64 ? 24 : 16), size: is64 ? 8 : 4),
                size: table.value(at: place + (is64 ? 32 : 20), size: is64 ? 8 : 4),
                link: UInt32(table.value(at: place + (is64 ? 40 : 24), size: 4)))
        }
    }

    private static func contents(_ file: some BootFile, _ section: Section) throws(BootFileError) -> [UInt8] {
        guard section.offset <= file.size, section.size <= file.size - section.offset, section.size <= largestTable
        else { throw BootFileError("its symbol table is outside of it") }
        return try file.read(count: Int(section.size), at: section.offset)
    }
}

/// Little-endian numbers in bytes that were read; the caller keeps to their bounds.
struct LittleEndianReader {
    let bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func value(at place: Int, size: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<size { value |= UInt64(bytes[place + index]) << UInt64(8 * index) }
        return value
    }
}
