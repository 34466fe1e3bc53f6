internal import CHost

@inline(__always) func jumpIndex(_ s: State, _ rip: UInt64) -> Int {
    let hash = rip ^ (rip >> 12) ^ UInt64(s.pointee.jump_salt)
    return Int(truncatingIfNeeded: hash & UInt64(MARTLET_JUMP_ENTRIES - 1))
}

/// Where code begins that was run lately, by its address: the state's jump entries, which hold for one fetch generation,
/// and what they lead to in guest-physical memory, which holds for longer. A new generation, such as each new or flushed
/// address space has, mostly maps the same code to the same addresses again.
final class JumpCache {
    private static let count = Int(MARTLET_JUMP_ENTRIES)
    /// A block's key in the code cache; all ones where there is none.
    private let keys: UnsafeMutablePointer<UInt64>

    init() {
        keys = .allocate(capacity: Self.count)
        keys.initialize(repeating: .max, count: Self.count)
    }

    deinit { keys.deallocate() }

    /// The block with `key`, if that is what was last found at the address.
    func target(_ s: State, _ rip: UInt64, _ key: UInt64) -> Insn? {
        let index = jumpIndex(s, rip)
        guard keys[index] == key else { return nil }
        let target = s.jumpTable[index].target
        // What was dropped since leads here.
        return target?.pointee.handler == unsafeBitCast(staleHandler, to: UnsafeMutableRawPointer?.self) ? nil : target
    }

    /// `key` all ones: only for this fetch generation.
    func remember(_ s: State, _ rip: UInt64, _ target: Insn, _ key: UInt64) {
        let index = jumpIndex(s, rip)
        keys[index] = key
        s.jumpTable[index] = martlet_jump_entry(
            rip: rip, key: s.pointee.fetch_key, target: target,
            page_rip: s.register(Int(MARTLET_PAGE_RIP_REGISTER)))
    }

    /// All blocks are gone.
    func forgetKeys() { keys.update(repeating: .max, count: Self.count) }
}
