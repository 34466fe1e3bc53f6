internal import GuestMemory
internal import Hypervisor
internal import X86

/// The symbols that a Linux kernel keeps of itself (kernel/kallsyms.c, scripts/kallsyms.c: the tables behind
/// /proc/kallsyms), found in the guest's memory. Nothing in it is trusted: every read is bounded, and what does not fit
/// together is no table.
///
/// Known are the orders of the tables of Linux from 4.20 on.
struct KernelSymbols {
    /// Where Linux maps its image on x86-64 (Documentation/arch/x86/x86_64/mm.rst).
    private static let imageStart: UInt64 = 0xFFFF_FFFF_8000_0000
    private static let pieceSize: UInt64 = 2 << 20

    private let read: (UInt64, Int) -> [UInt8]?
    private let pieces: [UInt64]

    /// Reads through the page tables at `cr3` (SDM vol. 3A §4.5).
    init(memory: GuestMemory, cr3: UInt64) {
        let tables = GuestPageTables(memory: memory, cr3: cr3)
        self.init(
            pieces: (0..<512).map { Self.imageStart + $0 * Self.pieceSize }.filter {
                tables.physical($0) != nil || tables.physical($0 + Self.pieceSize - 1) != nil
            }, read: { tables.read(count: $1, at: $0) })
    }

    /// `pieces`: addresses of 2 MiB each that may hold the tables. `read` gives as many bytes as asked for, or nothing.
    init(pieces: [UInt64], read: @escaping (UInt64, Int) -> [UInt8]?) {
        self.pieces = pieces
        self.read = read
    }

    func find() -> [SymbolTable.Symbol]? {
        for piece in pieces {
            guard let bytes = read(piece, Int(Self.pieceSize)) else { continue }
            for place in digitTokens(bytes) {
                if let symbols = symbols(digitsAt: piece + UInt64(place)) { return symbols }
            }
        }
        return nil
    }

    // MARK: The table of tokens

    /// Names are sequences of tokens. The 256 tokens are texts with a zero behind each; those of the digits are
    /// themselves, which makes the table easy to recognize.
    private static let digits: [UInt8] = (UInt8(ascii: "0")...UInt8(ascii: "9")).flatMap { [$0, 0] }

    private func digitTokens(_ bytes: [UInt8]) -> [Int] {
        var result: [Int] = []
        var place = 0
        while place + Self.digits.count <= bytes.count {
            if bytes[place] == 0x30, bytes[place + 1] == 0, bytes[place + 2] == 0x31, bytes[place + 18] == 0x39,
                bytes[place..<place + Self.digits.count].elementsEqual(Self.digits)
            {
                result.append(place)
            }
            place += 1
        }
        return result
    }

    private struct Tokens {
        var texts: [[UInt8]]
        var start: UInt64
        /// Behind the index of the tokens.
        var end: UInt64
    }

    /// The table with the digits' tokens at `digits`, proved by the index of it that follows.
    private func tokens(_ digits: UInt64) -> Tokens? {
        let before = 48 * 64
        let limit = 16 << 10
        guard let bytes = read(digits - UInt64(before), before + limit) else { return nil }
        // Backward over the 48 tokens in front of "0".
        var start = before
        for _ in 0..<48 {
            start -= 1
            while start > 0, bytes[start - 1] != 0 { start -= 1 }
            guard start > 0 else { return nil }
        }
        var texts: [[UInt8]] = []
        var offsets: [UInt64] = []
        var place = start
        for _ in 0..<256 {
            guard let end = bytes[place...].firstIndex(of: 0) else { return nil }
            offsets.append(UInt64(place - start))
            texts.append(Array(bytes[place..<end]))
            place = end + 1
        }
        let address = digits - UInt64(before) + UInt64(start)
        let indexAddress = (address + UInt64(place - start) + 7) & ~7
        guard let index = read(indexAddress, 512).map(LittleEndianReader.init),
            offsets.indices.allSatisfy({ index.value(at: $0 * 2, size: 2) == offsets[$0] })
        else { return nil }
        return Tokens(texts: texts, start: address, end: indexAddress + 512)
    }

    // MARK: Names

    /// In front of the tokens: the count of names in a word of 8 bytes, the names, a table of where every 256th of them
    /// is and, in some versions, their order by name, 3 bytes each. All begin at multiples of 8.
    private func names(_ tokens: Tokens) -> (names: [[UInt8]], start: UInt64)? {
        let reach = 8 << 20
        guard tokens.start & 7 == 0, let bytes = read(tokens.start - UInt64(reach), reach) else { return nil }
        let reader = LittleEndianReader(bytes)
        // What hostile memory can cost.
        var budget = 32 << 20
        for start in stride(from: reach - 512, through: 8, by: -8) where budget > 0 {
            // Every name takes two bytes at least.
            let count = Int(reader.value(at: start - 8, size: 4))
            guard count > 256, count <= (reach - start) / 2, reader.value(at: start - 4, size: 4) == 0 else { continue }
            budget -= count
            guard let (places, end) = walk(bytes, from: start, count: count),
                markersEnd(reader, end, start, places) == reach
            else { continue }
            let names = places.map { Array(bytes[$0]) }
            return (names, tokens.start - UInt64(reach - start))
        }
        return nil
    }

    /// The tokens of each name, and where they end.
    private func walk(_ bytes: [UInt8], from start: Int, count: Int) -> (places: [Range<Int>], end: Int)? {
        var places: [Range<Int>] = []
        places.reserveCapacity(count)
        var place = start
        for _ in 0..<count {
            guard place + 1 < bytes.count else { return nil }
            var length = Int(bytes[place])
            place += 1
            // From Linux 6.1: two bytes for long names, seven bits in the first.
            if length & 0x80 != 0 {
                length = length & 0x7F | Int(bytes[place]) << 7
                place += 1
            }
            guard length > 0, length <= bytes.count - place else { return nil }
            places.append(place..<place + length)
            place += length
        }
        return (places, place)
    }

    /// Where the tokens must begin after the markers at `end`, if all of them are right. Nil: one is not.
    private func markersEnd(_ reader: LittleEndianReader, _ end: Int, _ start: Int, _ places: [Range<Int>]) -> Int? {
        let size = reader.bytes.count
        let markers = (end + 7) & ~7
        let count = (places.count + 255) / 256
        guard markers + count * 4 <= size else { return nil }
        for number in 0..<count {
            let length = places[number * 256].count
            let place = places[number * 256].lowerBound - (length < 128 ? 1 : 2) - start
            guard reader.value(at: markers + number * 4, size: 4) == UInt64(place) else { return nil }
        }
        let plain = (markers + count * 4 + 7) & ~7
        return plain == size ? plain : (plain + places.count * 3 + 7) & ~7
    }

    // MARK: Addresses

    /// Nil: whatever is at `digits`, it is no such table.
    private func symbols(digitsAt digits: UInt64) -> [SymbolTable.Symbol]? {
        guard let tokens = tokens(digits), let (names, start) = names(tokens),
            let addresses = addressesBefore(start, names.count) ?? addressesAfter(tokens.end, names.count)
        else { return nil }
        var result: [SymbolTable.Symbol] = []
        for (name, address) in zip(names, addresses) {
            let text = name.flatMap { tokens.texts[Int($0)] }
            // The first letter is the kind, as nm(1) has it.
            guard let kind = text.first, text.count > 1, [0x74, 0x77].contains(kind | 0x20) else { continue }
            result.append(SymbolTable.Symbol(address: address, name: String(decoding: text.dropFirst(), as: UTF8.self)))
        }
        return result.isEmpty ? nil : result
    }

    /// Until 6.3: the distances, the base, the count, the names.
    private func addressesBefore(_ names: UInt64, _ count: Int) -> [UInt64]? {
        let base = names - 16
        return addresses(at: (base - UInt64(count) * 4) & ~7, base: base, count)
    }

    /// From 6.4 on: behind the tokens, the distances and the base.
    private func addressesAfter(_ place: UInt64, _ count: Int) -> [UInt64]? {
        addresses(at: place, base: (place + UInt64(count) * 4 + 7) & ~7, count)
    }

    private func addresses(at place: UInt64, base: UInt64, _ count: Int) -> [UInt64]? {
        guard let base = read(base, 8).map({ LittleEndianReader($0).value(at: 0, size: 8) }), base >= Self.imageStart,
            let bytes = read(place, count * 4).map(LittleEndianReader.init)
        else { return nil }
        let distances = (0..<count).map { Int32(truncatingIfNeeded: bytes.value(at: $0 * 4, size: 4)) }
        // With CONFIG_KALLSYMS_ABSOLUTE_PERCPU only per-CPU variables are not negative.
        let isInverted = distances.count { $0 < 0 } > count / 2
        return distances.map { distance in
            if !isInverted { return base &+ UInt64(UInt32(bitPattern: distance)) }
            return distance < 0 ? base &- 1 &- UInt64(bitPattern: Int64(distance)) : UInt64(distance)
        }
    }
}

/// A guest's memory by kernel addresses: 4-level paging, present pages only.
struct GuestPageTables {
    let memory: GuestMemory
    let cr3: UInt64
    private static let frame: UInt64 = 0x000F_FFFF_FFFF_F000

    /// Nil: not mapped, or not by 4-level paging.
    func physical(_ address: UInt64) -> UInt64? {
        var table = cr3 & Self.frame
        for level in [39, 30, 21, 12] as [UInt64] {
            let place = table + (address >> level & 511) * 8
            guard let entry = try? memory.load(UInt64.self, at: GuestPhysicalAddress(place)), entry & 1 != 0 else {
                return nil
            }
            if level == 12 || (level < 39 && entry & 0x80 != 0) {
                let mask: UInt64 = (1 << level) - 1
                return (entry & Self.frame & ~mask) | (address & mask)
            }
            table = entry & Self.frame
        }
        return nil
    }

    /// Zeroes for pages that are not there. Nil: no such addresses.
    func read(count: Int, at address: UInt64) -> [UInt8]? {
        guard count >= 0, address <= UInt64.max - UInt64(count) else { return nil }
        var result: [UInt8] = []
        result.reserveCapacity(count)
        while result.count < count {
            let place = address + UInt64(result.count)
            let size = min(count - result.count, Int(4096 - place & 4095))
            let bytes = physical(place).flatMap { try? memory.read(count: size, at: GuestPhysicalAddress($0)) }
            result += bytes ?? Array(repeating: 0, count: size)
        }
        return result
    }
}
