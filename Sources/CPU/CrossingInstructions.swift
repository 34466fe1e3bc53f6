internal import CHost

/// Decoded instructions whose bytes are on two pages, found by those bytes. A block of one each, with its end behind it.
/// They stay where they are until all code is dropped, as blocks do.
final class CrossingInstructions {
    struct Key: Equatable {
        /// 15 bytes of code.
        var low: UInt64
        var high: UInt64
        /// Offset of the first byte in its page.
        var offset: UInt16
        var mode: UInt8
    }

    private struct Entry {
        var key: Key
        var place: Insn
    }

    private static let entryCount = 1024
    /// A guest that writes ever new ones has all code dropped at the last.
    private static let capacity = 16_384
    private let instructions: Insn
    private let entries: UnsafeMutablePointer<Entry?>
    private var used = 0

    init() {
        instructions = EngineMemory.map(Self.capacity * 2, of: martlet_insn.self)
        entries = .allocate(capacity: Self.entryCount)
        entries.initialize(repeating: nil, count: Self.entryCount)
    }

    deinit {
        EngineMemory.unmap(instructions, Self.capacity * 2)
        entries.deallocate()
    }

    private static func number(_ key: Key) -> Int {
        let mixed = (key.low ^ (key.high &<< 7) ^ UInt64(key.offset)) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: mixed >> 54)
    }

    func find(_ key: Key) -> Insn? {
        guard let entry = entries[Self.number(key)], entry.key == key else { return nil }
        return entry.place
    }

    /// Room for an instruction and its end. Nil: none left.
    func reserve() -> Insn? { used < Self.capacity ? instructions + used * 2 : nil }

    /// Makes what was decoded at the place of the last `reserve` an instruction to be found.
    func keep(_ key: Key, at place: Insn) {
        entries[Self.number(key)] = Entry(key: key, place: place)
        used += 1
    }

    /// Forgets all: what they are bound to is gone.
    func reset() {
        entries.update(repeating: nil, count: Self.entryCount)
        used = 0
    }
}
