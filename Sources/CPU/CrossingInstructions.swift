internal import CHost

/// Decoded instructions whose bytes are on two pages, found by those bytes: no store to either page has to be noticed.
/// A block of one each, with its end behind it.
final class CrossingInstructions {
    struct Key: Equatable {
        /// 15 bytes of code.
        var low: UInt64
        var high: UInt64
        /// Offset of the first byte in its page.
        var offset: UInt16
        var mode: UInt8
    }

    private static let count = 256
    private let instructions: Insn
    private let keys: UnsafeMutablePointer<Key?>

    init() {
        instructions = .allocate(capacity: Self.count * 2)
        instructions.initialize(repeating: martlet_insn(), count: Self.count * 2)
        keys = .allocate(capacity: Self.count)
        keys.initialize(repeating: nil, count: Self.count)
    }

    deinit {
        instructions.deallocate()
        keys.deallocate()
    }

    private static func number(_ key: Key) -> Int {
        let mixed = (key.low ^ (key.high &<< 7) ^ UInt64(key.offset)) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: mixed >> 56)
    }

    /// Where the instruction is, or is to be decoded to; what was there is forgotten.
    func place(_ key: Key) -> (Insn, isKnown: Bool) {
        let number = Self.number(key)
        let isKnown = keys[number] == key
        if !isKnown { keys[number] = nil }
        return (instructions + number * 2, isKnown)
    }

    func keep(_ key: Key) { keys[Self.number(key)] = key }

    /// Forgets all: what they are bound to is gone.
    func reset() { keys.update(repeating: nil, count: Self.count) }
}
