/// A message that waited behind a mask.
struct FreedMessage: Equatable {
    var vector: Int
    var message: PCIMessage
}

/// The MSI-X table and its pending bits (PCIe 5.0 §7.7.2), 16 bytes for each vector.
struct MSIXTable: Sendable, Equatable {
    static let entrySize = 16
    /// A function has 2048 vectors at most; a device of ours never needs more than this.
    static let limit = 256

    struct Entry: Sendable, Equatable {
        var address: UInt64 = 0
        var data: UInt32 = 0
        /// Set at reset (§7.7.2.5).
        var isMasked = true
        var isPending = false
    }

    var entries: [Entry]
    var isEnabled = false
    /// The function mask of the control register.
    var isFunctionMasked = false

    init(count: Int) {
        precondition((1...Self.limit).contains(count))
        entries = Array(repeating: Entry(), count: count)
    }

    /// A vector wants to be sent: the message, or nil while it is masked and waits in its pending bit.
    mutating func signal(_ vector: Int) -> PCIMessage? {
        guard isEnabled, entries.indices.contains(vector) else { return nil }
        guard !isFunctionMasked, !entries[vector].isMasked else {
            entries[vector].isPending = true
            return nil
        }
        return PCIMessage(address: entries[vector].address, data: entries[vector].data)
    }

    /// The messages that a change of the masks has freed.
    mutating func takeFreed() -> [FreedMessage] {
        guard isEnabled, !isFunctionMasked else { return [] }
        var freed: [FreedMessage] = []
        for index in entries.indices where entries[index].isPending && !entries[index].isMasked {
            entries[index].isPending = false
            let message = PCIMessage(address: entries[index].address, data: entries[index].data)
            freed.append(FreedMessage(vector: index, message: message))
        }
        return freed
    }

    // MARK: The table's registers

    /// Four or eight bytes, aligned (§7.7.2: other accesses are undefined).
    func readTable(_ offset: UInt64) -> UInt32 {
        let index = Int(truncatingIfNeeded: offset / 16)
        guard entries.indices.contains(index) else { return 0 }
        let entry = entries[index]
        return switch offset % 16 / 4 {
        case 0: UInt32(truncatingIfNeeded: entry.address)
        case 1: UInt32(truncatingIfNeeded: entry.address >> 32)
        case 2: entry.data
        default: entry.isMasked ? 1 : 0
        }
    }

    mutating func writeTable(_ offset: UInt64, _ value: UInt32) {
        let index = Int(truncatingIfNeeded: offset / 16)
        guard entries.indices.contains(index) else { return }
        let old = entries[index].address
        switch offset % 16 / 4 {
        // The two lowest bits are reserved: a message is a write of four aligned bytes.
        case 0: entries[index].address = old & ~0xFFFF_FFFF | UInt64(value & ~3)
        case 1: entries[index].address = old & 0xFFFF_FFFF | UInt64(value) << 32
        case 2: entries[index].data = value
        default: entries[index].isMasked = value & 1 != 0
        }
    }

    /// 64 vectors in each quadword of the pending bit array.
    func readPending(_ offset: UInt64) -> UInt32 {
        var bits: UInt32 = 0
        let first = Int(truncatingIfNeeded: min(offset, 4096)) * 8
        for bit in 0..<32 where entries.indices.contains(first + bit) && entries[first + bit].isPending {
            bits |= 1 << UInt32(bit)
        }
        return bits
    }
}

/// The MSI capability with 64-bit addresses and per-vector masking (PCIe 5.0 §7.7.1), beside its registers in
/// configuration space.
struct MSIRegisters: Sendable, Equatable {
    static let size = 24
    static let control = 2
    static let address = 4
    static let data = 12
    static let mask = 16
    static let pendingBits = 20
    static let enable: UInt16 = 1

    /// The capability's offset.
    var offset: Int
    var vectorCount: Int
    var pending: UInt32 = 0

    /// Adds the capability; `vectorCount` is a power of two up to 32.
    init(_ space: inout PCIConfigurationSpace, vectorCount: Int) {
        precondition(vectorCount > 0 && vectorCount <= 32 && vectorCount & (vectorCount - 1) == 0)
        offset = space.addCapability(PCICapability.messageSignalled, size: Self.size)
        self.vectorCount = vectorCount
        let capable = UInt16(vectorCount.trailingZeroBitCount) << 1
        space.set(UInt16(1 << 7 | 1 << 8) | capable, at: offset + Self.control, writable: 0x71)
        space.set(UInt64(0), at: offset + Self.address, writable: ~3)
        space.set(UInt16(0), at: offset + Self.data, writable: .max)
        space.set(
            UInt32(0), at: offset + Self.mask, writable: vectorCount == 32 ? .max : (1 << UInt32(vectorCount)) - 1)
    }

    func isEnabled(_ space: PCIConfigurationSpace) -> Bool {
        space.value(UInt16.self, at: offset + Self.control) & Self.enable != 0
    }

    private func message(_ vector: Int, _ space: PCIConfigurationSpace) -> PCIMessage {
        // Software enables fewer vectors than the function has: the others fold onto those (§6.1.4.3).
        let control: UInt16 = space.value(at: offset + Self.control)
        let enabled = min(vectorCount, 1 << Int(min(control >> 4 & 7, 5)))
        let data: UInt16 = space.value(at: offset + Self.data)
        let number = UInt16(truncatingIfNeeded: vector & (enabled - 1))
        return PCIMessage(
            address: space.value(at: offset + Self.address), data: UInt32(data & ~UInt16(enabled - 1) | number))
    }

    mutating func signal(_ vector: Int, _ space: PCIConfigurationSpace) -> PCIMessage? {
        guard vector >= 0, vector < vectorCount else { return nil }
        let masked: UInt32 = space.value(at: offset + Self.mask)
        guard masked & 1 << UInt32(vector) == 0 else {
            pending |= 1 << UInt32(vector)
            return nil
        }
        return message(vector, space)
    }

    mutating func takeFreed(_ space: PCIConfigurationSpace) -> [FreedMessage] {
        guard isEnabled(space) else { return [] }
        let masked: UInt32 = space.value(at: offset + Self.mask)
        let freed = pending & ~masked
        pending &= masked
        return (0..<vectorCount).filter { freed & 1 << UInt32($0) != 0 }.map {
            FreedMessage(vector: $0, message: message($0, space))
        }
    }
}
