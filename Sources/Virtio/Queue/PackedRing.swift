internal import GuestMemory
internal import Synchronization
internal import X86

/// The device's side of a packed virtqueue (Virtio 1.2 §2.8).
struct PackedRing: Equatable, Sendable {
    /// A place in the ring and how often it was passed, modulo two (§2.8.1).
    struct Position: Equatable, Sendable {
        var index: UInt16 = 0
        var wrap = true

        mutating func advance(by count: UInt16, size: UInt16) {
            let (sum, overflow) = index.addingReportingOverflow(count)
            if overflow || sum >= size {
                index = sum &- size
                wrap.toggle()
            } else {
                index = sum
            }
        }

        mutating func retreat(by count: UInt16, size: UInt16) {
            if index < count {
                index = index &+ size &- count
                wrap.toggle()
            } else {
                index &-= count
            }
        }

        /// As the event suppression structures have it (§2.8.14).
        var bits: UInt16 { index | (wrap ? 1 << 15 : 0) }
    }

    let size: UInt16
    let addresses: QueueAddresses
    let hasEventIndex: Bool
    var nextAvailable = Position()
    var nextUsed = Position()
    /// Ring entries that were used since the driver was last notified or found not to want it.
    var unsignalled: UInt16 = 0

    /// §2.8.5.
    private static let available: UInt16 = 1 << 7
    private static let used: UInt16 = 1 << 15

    /// RING_EVENT_FLAGS (§2.8.14).
    private enum EventFlags {
        static let enable: UInt16 = 0
        static let disable: UInt16 = 1
        static let descriptor: UInt16 = 2
        static let mask: UInt16 = 3
    }

    private func entry(_ index: UInt16) -> UInt64 { addresses.descriptors &+ UInt64(index) &* Descriptor.size }

    /// Whether the driver has made the entry at `position` available.
    private func isAvailable(_ position: Position, _ memory: GuestMemory) throws(QueueFault) -> Bool {
        let flags = try load(entry(position.index) &+ 14, memory)
        return (flags & Self.available != 0) == position.wrap && (flags & Self.used != 0) != position.wrap
    }

    /// Takes the next buffer.
    mutating func take(_ memory: GuestMemory, sequence: UInt64, epoch: UInt64) throws(QueueFault) -> DescriptorChain? {
        guard try isAvailable(nextAvailable, memory) else { return nil }
        var builder = ChainBuilder()
        var position = nextAvailable
        var count: UInt16 = 0
        var descriptor: Descriptor
        repeat {
            // A chain is complete when its first entry is available; more entries than the ring has are none.
            guard count < size else { throw .chainTooLong }
            descriptor = try Descriptor(at: entry(position.index), in: memory)
            count += 1
            position.advance(by: 1, size: size)
            if descriptor.fourth & Descriptor.indirect != 0 {
                // §2.8.8: alone in its buffer.
                guard count == 1, descriptor.fourth & Descriptor.next == 0 else { throw .badIndirectTable }
                try walkTable(descriptor, into: &builder, memory)
            } else {
                try builder.add(descriptor, isWritable: descriptor.fourth & Descriptor.write != 0)
            }
        } while descriptor.fourth & Descriptor.next != 0
        nextAvailable = position
        // The identifier is the last descriptor's (§2.8.6).
        return DescriptorChain(
            identifier: descriptor.third, ringEntries: count, sequence: sequence, epoch: epoch,
            readable: builder.readable, writable: builder.writable)
    }

    /// In a table only the write flag means anything (§2.8.7).
    private func walkTable(
        _ table: Descriptor, into builder: inout ChainBuilder, _ memory: GuestMemory
    ) throws(QueueFault) {
        for index in 0..<UInt64(try ChainBuilder.indirectCount(table)) {
            let descriptor = try Descriptor(at: table.address &+ index &* Descriptor.size, in: memory)
            try builder.add(descriptor, isWritable: descriptor.fourth & Descriptor.write != 0)
        }
    }

    /// Puts the last buffer back that was taken and not used.
    mutating func putBack(_ chain: DescriptorChain) { nextAvailable.retreat(by: chain.ringEntries, size: size) }

    /// Gives buffers back to the driver, which sees all of them at once: each in the next used place, which then stands
    /// for all its entries (§2.8.6).
    mutating func use(_ buffers: [UsedBuffer], _ memory: GuestMemory) throws(QueueFault) {
        var first: (address: GuestPhysicalAddress, flags: UInt16)?
        do throws(GuestMemoryFault) {
            for buffer in buffers {
                let address = entry(nextUsed.index)
                try memory.store(buffer.written, at: GuestPhysicalAddress(address &+ 8))
                try memory.store(buffer.chain.identifier, at: GuestPhysicalAddress(address &+ 12))
                let wrap = nextUsed.wrap ? Self.available | Self.used : 0
                let flags = wrap | (buffer.written > 0 ? Descriptor.write : 0)
                if first == nil {
                    first = (GuestPhysicalAddress(address &+ 14), flags)
                } else {
                    try memory.storeRelease(flags, at: GuestPhysicalAddress(address &+ 14))
                }
                nextUsed.advance(by: buffer.chain.ringEntries, size: size)
                unsignalled = unsignalled > size ? unsignalled : unsignalled &+ buffer.chain.ringEntries
            }
            // The flags hand an entry over, behind its data: the first ones last, and with them all.
            if let first { try memory.storeRelease(first.flags, at: first.address) }
        } catch {
            throw .memory(error)
        }
    }

    /// Whether the driver wants to hear of what was used since the last call.
    mutating func takeInterrupt(_ memory: GuestMemory) throws(QueueFault) -> Bool {
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        guard unsignalled > 0 else { return false }
        let count = unsignalled
        unsignalled = 0
        let flags = try load(addresses.driver &+ 2, memory) & EventFlags.mask
        guard flags == EventFlags.descriptor, hasEventIndex else { return flags != EventFlags.disable }
        let bits = try load(addresses.driver, memory)
        // How far back the wish lies, in entries from the next one that will be used.
        let index = bits & 0x7FFF
        guard index < size else { return true }
        let isThisRound = (bits & 0x8000 != 0) == nextUsed.wrap
        let distance = Int(nextUsed.index) - Int(index) + (isThisRound ? 0 : Int(size))
        return distance > 0 && distance <= Int(count)
    }

    /// Asks for a notification at the next buffer. True: there is one already.
    mutating func requestNotification(_ memory: GuestMemory) throws(QueueFault) -> Bool {
        do throws(GuestMemoryFault) {
            if hasEventIndex {
                try memory.storeRelease(nextAvailable.bits, at: GuestPhysicalAddress(addresses.device))
            }
            try memory.storeRelease(
                hasEventIndex ? EventFlags.descriptor : EventFlags.enable,
                at: GuestPhysicalAddress(addresses.device &+ 2))
        } catch {
            throw .memory(error)
        }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return try isAvailable(nextAvailable, memory)
    }

    private func load(_ address: UInt64, _ memory: GuestMemory) throws(QueueFault) -> UInt16 {
        do throws(GuestMemoryFault) {
            return try memory.loadAcquire(at: GuestPhysicalAddress(address))
        } catch {
            throw .memory(error)
        }
    }
}
