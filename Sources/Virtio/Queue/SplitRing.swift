internal import GuestMemory
internal import Synchronization
internal import X86

/// Where a driver put a queue.
struct QueueAddresses: Equatable, Sendable {
    /// Descriptor table or packed ring.
    var descriptors: UInt64 = 0
    /// Available ring or driver event suppression.
    var driver: UInt64 = 0
    /// Used ring or device event suppression.
    var device: UInt64 = 0
}

/// The device's side of a split virtqueue (Virtio 1.2 §2.7).
struct SplitRing: Equatable, Sendable {
    let size: UInt16
    let addresses: QueueAddresses
    let hasEventIndex: Bool
    /// The next entry of the available ring that the device takes.
    var nextAvailable: UInt16 = 0
    /// The next entry of the used ring that the device fills.
    var nextUsed: UInt16 = 0
    /// Where `nextUsed` was when the driver was last notified or found not to want it.
    var lastSignalled: UInt16 = 0

    /// §2.7.6, §2.7.8.
    private static let noInterrupt: UInt16 = 1

    private var availableIndex: UInt64 { addresses.driver &+ 2 }
    private var usedIndex: UInt64 { addresses.device &+ 2 }
    /// Behind the available ring: the used index at which the driver wants an interrupt (§2.7.7).
    private var usedEvent: UInt64 { addresses.driver &+ 4 &+ 2 &* UInt64(size) }
    /// Behind the used ring: the available index at which the device wants a notification (§2.7.10).
    private var availableEvent: UInt64 { addresses.device &+ 4 &+ 8 &* UInt64(size) }

    /// Takes the next buffer.
    mutating func take(_ memory: GuestMemory, sequence: UInt64, epoch: UInt64) throws(QueueFault) -> DescriptorChain? {
        let waiting = try load(availableIndex, memory) &- nextAvailable
        guard waiting > 0 else { return nil }
        guard waiting <= size else { throw .tooManyAvailable(waiting) }
        let head = try load(addresses.driver &+ 4 &+ 2 &* UInt64(nextAvailable % size), memory)
        let chain = try walk(head, memory)
        nextAvailable &+= 1
        return DescriptorChain(
            identifier: head, ringEntries: 1, sequence: sequence, epoch: epoch, readable: chain.readable,
            writable: chain.writable)
    }

    private func walk(_ head: UInt16, _ memory: GuestMemory) throws(QueueFault) -> ChainBuilder {
        var builder = ChainBuilder()
        var index = head
        for _ in 0..<size {
            let descriptor = try self.descriptor(index, of: addresses.descriptors, count: size, memory)
            let flags = descriptor.third
            if flags & Descriptor.indirect != 0 {
                // It ends the chain (§2.7.5.3.1).
                guard flags & Descriptor.next == 0 else { throw .badIndirectTable }
                try walkTable(descriptor, into: &builder, memory)
                return builder
            }
            try builder.add(descriptor, isWritable: flags & Descriptor.write != 0)
            guard flags & Descriptor.next != 0 else { return builder }
            index = descriptor.fourth
        }
        throw .chainTooLong
    }

    private func walkTable(
        _ table: Descriptor, into builder: inout ChainBuilder, _ memory: GuestMemory
    ) throws(QueueFault) {
        let count = UInt16(try ChainBuilder.indirectCount(table))
        var index: UInt16 = 0
        for _ in 0..<count {
            let descriptor = try self.descriptor(index, of: table.address, count: count, memory)
            guard descriptor.third & Descriptor.indirect == 0 else { throw .badIndirectTable }
            try builder.add(descriptor, isWritable: descriptor.third & Descriptor.write != 0)
            guard descriptor.third & Descriptor.next != 0 else { return }
            index = descriptor.fourth
        }
        throw .chainTooLong
    }

    private func descriptor(
        _ index: UInt16, of table: UInt64, count: UInt16, _ memory: GuestMemory
    ) throws(QueueFault) -> Descriptor {
        guard index < count else { throw .descriptorOutOfRange(index) }
        return try Descriptor(at: table &+ UInt64(index) &* Descriptor.size, in: memory)
    }

    /// Puts the last buffer back that was taken and not used.
    mutating func putBack() { nextAvailable &-= 1 }

    /// Gives buffers back to the driver, which sees all of them at once.
    mutating func use(_ buffers: [UsedBuffer], _ memory: GuestMemory) throws(QueueFault) {
        guard !buffers.isEmpty else { return }
        do throws(GuestMemoryFault) {
            for buffer in buffers {
                let entry = addresses.device &+ 4 &+ 8 &* UInt64(nextUsed % size)
                // One store for both fields: the driver looks only behind the index.
                try memory.store(
                    UInt64(buffer.chain.identifier) | UInt64(buffer.written) << 32, at: GuestPhysicalAddress(entry))
                nextUsed &+= 1
            }
            try memory.storeRelease(nextUsed, at: GuestPhysicalAddress(usedIndex))
        } catch {
            throw .memory(error)
        }
    }

    /// Whether the driver wants to hear of what was used since the last call.
    mutating func takeInterrupt(_ memory: GuestMemory) throws(QueueFault) -> Bool {
        // The index must be out before the driver's wish is read (§2.7.7.2).
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        let old = lastSignalled
        guard old != nextUsed else { return false }
        lastSignalled = nextUsed
        guard hasEventIndex else { return try load(addresses.driver, memory) & Self.noInterrupt == 0 }
        let event = try load(usedEvent, memory)
        return nextUsed &- event &- 1 < nextUsed &- old
    }

    // MARK: In the hands of the kernel

    /// How many bytes each part has: descriptors, available ring, used ring (§2.7).
    var sizes: (descriptors: Int, driver: Int, device: Int) {
        let entries = Int(size)
        let event = hasEventIndex ? 2 : 0
        return (16 * entries, 4 + 2 * entries + event, 4 + 8 * entries + event)
    }

    /// Goes on where the kernel has stopped, which has used and signalled all that it took.
    mutating func resume(at available: UInt16, _ memory: GuestMemory) throws(QueueFault) {
        nextAvailable = available
        nextUsed = try load(usedIndex, memory)
        lastSignalled = nextUsed
        do throws(GuestMemoryFault) {
            // It may have asked for no notifications (§2.7.10), and here is no place where that is taken back.
            try memory.storeRelease(0, at: GuestPhysicalAddress(addresses.device))
        } catch {
            throw .memory(error)
        }
    }

    /// Asks for a notification at the next buffer. True: there is one already.
    mutating func requestNotification(_ memory: GuestMemory) throws(QueueFault) -> Bool {
        if hasEventIndex {
            do throws(GuestMemoryFault) {
                try memory.storeRelease(nextAvailable, at: GuestPhysicalAddress(availableEvent))
            } catch {
                throw .memory(error)
            }
            // The wish must be out before the index is read again (§2.7.10).
            atomicMemoryFence(ordering: .sequentiallyConsistent)
        }
        return try load(availableIndex, memory) != nextAvailable
    }

    private func load(_ address: UInt64, _ memory: GuestMemory) throws(QueueFault) -> UInt16 {
        do throws(GuestMemoryFault) {
            return try memory.loadAcquire(at: GuestPhysicalAddress(address))
        } catch {
            throw .memory(error)
        }
    }
}
