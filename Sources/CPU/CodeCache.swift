internal import CHost

/// Decoded instructions: blocks of straight-line code, found by guest-physical address and code size, listed by page so
/// that a store can drop them. Bounded by a share of the guest's memory: when that is used up everything is dropped.
final class CodeCache {
    /// 80 bytes each: 122 MiB of addresses, of which a guest may use what `setLimit` says.
    private static let instructionCapacity = 1_600_000
    /// 31 MiB, enough for the start of a small guest; a whole distribution's start runs through millions.
    private static let smallestLimit = 400_000
    /// A thirty-second of the guest's memory (docs/decisions/0006).
    private static let shareOfMemory: UInt64 = 32
    private static let blockCapacity = instructionCapacity / 4
    private static let hashSize = 524_288

    struct Block {
        /// Guest-physical address of the first instruction << 3 | privilege << 2 | code size (`CodeMode`); all ones when dropped.
        var key: UInt64
        var first: UInt32
        var count: UInt32
        var nextInHash: UInt32
        var nextInPage: UInt32
    }

    /// Poisoned as far as it is free (AddressSanitizer): what still leads there after a `reset` is found.
    private let instructions: Insn
    private let blocks: UnsafeMutablePointer<Block>
    private let hash: UnsafeMutablePointer<UInt32>
    private(set) var instructionCount = 0
    private(set) var instructionLimit = CodeCache.smallestLimit
    var blockLimit: Int { instructionLimit / 4 }
    /// The end of the last `reserve`.
    private var reservedCount = 0
    /// Block 0 means none.
    private(set) var blockCount = 1

    init() {
        instructions = EngineMemory.map(Self.instructionCapacity, of: martlet_insn.self)
        blocks = EngineMemory.map(Self.blockCapacity, of: Block.self)
        hash = EngineMemory.map(Self.hashSize, of: UInt32.self)
        poisonFreeInstructions()
    }

    deinit {
        EngineMemory.unmap(instructions, Self.instructionCapacity)
        EngineMemory.unmap(blocks, Self.blockCapacity)
        EngineMemory.unmap(hash, Self.hashSize)
    }

    /// For a guest with so many bytes of memory.
    func setLimit(guestMemory: UInt64) {
        let share = guestMemory / Self.shareOfMemory / UInt64(MemoryLayout<martlet_insn>.stride)
        instructionLimit = min(max(Int(clamping: share), Self.smallestLimit), Self.instructionCapacity)
    }

    static func key(_ guestPhysical: UInt64, mode: UInt8, isUser: Bool) -> UInt64 {
        guestPhysical << 3 | (isUser ? 4 : 0) | UInt64(mode)
    }

    static func guestPhysical(_ key: UInt64) -> UInt64 { key >> 3 }

    /// Where decoded instructions are.
    var instructionRange: martlet_range {
        martlet_range(
            start: UInt64(UInt(bitPattern: instructions)),
            size: UInt64(Self.instructionCapacity * MemoryLayout<martlet_insn>.stride))
    }

    private func bucket(_ key: UInt64) -> Int {
        Int(truncatingIfNeeded: (key ^ (key >> 15)) & UInt64(Self.hashSize - 1))
    }

    func find(_ key: UInt64) -> Insn? {
        var number = hash[bucket(key)]
        while number != 0 {
            let block = blocks + Int(number)
            if block.pointee.key == key { return instructions + Int(block.pointee.first) }
            number = block.pointee.nextInHash
        }
        return nil
    }

    /// Room for a block of up to `count` instructions, or nil when the arena is full.
    func reserve(_ count: Int) -> Insn? {
        guard instructionCount + count <= instructionLimit, blockCount < blockLimit else { return nil }
        host_unpoison(instructions + instructionCount, count * MemoryLayout<martlet_insn>.stride)
        reservedCount = instructionCount + count
        return instructions + instructionCount
    }

    /// Makes the `count` instructions at the place of the last `reserve` a block.
    func add(key: UInt64, count: Int, to page: UnsafeMutablePointer<martlet_page_code>) {
        let place = bucket(key)
        blocks[blockCount] = Block(
            key: key, first: UInt32(instructionCount), count: UInt32(count), nextInHash: hash[place],
            nextInPage: page.pointee.first_block)
        hash[place] = UInt32(blockCount)
        page.pointee.first_block = UInt32(blockCount)
        blockCount += 1
        instructionCount += count
        host_poison(
            instructions + instructionCount, (reservedCount - instructionCount) * MemoryLayout<martlet_insn>.stride)
    }

    private func poisonFreeInstructions() {
        host_poison(
            instructions + instructionCount,
            (Self.instructionCapacity - instructionCount) * MemoryLayout<martlet_insn>.stride)
    }

    /// Drops the blocks of one page. Their instructions stay, each turned into `stale`, since links to them and the
    /// block being executed may still lead there.
    func drop(page: UnsafeMutablePointer<martlet_page_code>, stale: UnsafeMutableRawPointer) {
        var number = page.pointee.first_block
        while number != 0 {
            let block = blocks + Int(number)
            for index in 0..<Int(block.pointee.count) {
                let i = instructions + Int(block.pointee.first) + index
                i.pointee.handler = stale
                i.pointee.interpreted = stale
                i.pointee.host_code = nil
            }
            unlink(number)
            block.pointee.key = .max
            number = block.pointee.nextInPage
        }
        page.pointee.first_block = 0
        page.pointee.granules = 0
    }

    private func unlink(_ number: UInt32) {
        let place = bucket(blocks[Int(number)].key)
        if hash[place] == number {
            hash[place] = blocks[Int(number)].nextInHash
            return
        }
        var previous = hash[place]
        while previous != 0 {
            if blocks[Int(previous)].nextInHash == number {
                blocks[Int(previous)].nextInHash = blocks[Int(number)].nextInHash
                return
            }
            previous = blocks[Int(previous)].nextInHash
        }
    }

    /// The guest-physical addresses of all blocks.
    func forEachBlock(_ body: (UInt64) -> Void) {
        for number in 1..<blockCount where blocks[number].key != .max { body(blocks[number].key >> 3) }
    }

    /// Bytes of memory that it takes now.
    var residentSize: Int {
        host_resident_size(instructions, Self.instructionCapacity * MemoryLayout<martlet_insn>.stride)
            + host_resident_size(blocks, Self.blockCapacity * MemoryLayout<Block>.stride)
            + host_resident_size(hash, Self.hashSize * MemoryLayout<UInt32>.stride)
    }

    /// Drops everything. The caller clears the pages' lists and makes links and jump entries stale.
    func reset() {
        hash.update(repeating: 0, count: Self.hashSize)
        instructionCount = 0
        blockCount = 1
        poisonFreeInstructions()
    }
}
