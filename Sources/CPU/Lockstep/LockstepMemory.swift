internal import CHost
internal import Glibc

/// The shadow's guest RAM: a private copy of each slot that the guest can write. Read-only slots are shared.
final class LockstepMemory {
    private struct Copy {
        var slot: martlet_slot
        var memory: UnsafeMutablePointer<UInt8>
        var bytes: UnsafeMutableRawPointer { UnsafeMutableRawPointer(memory) }
        var size: Int { Int(slot.size) }
    }

    private var copies: [Copy] = []

    deinit { release() }

    private func release() {
        for copy in copies { EngineMemory.unmap(copy.memory, copy.size) }
        copies = []
    }

    /// The shadow's slots for the primary's, with the contents of now.
    func copySlots(of primary: Processor) -> [martlet_slot] {
        var slots: [martlet_slot] = []
        for index in 0..<Int(primary.state.pointee.slot_count) {
            var slot = primary.state.slotTable[index]
            slot.flags &= ~slotNotesWrites
            slots.append(slot)
        }
        let writable = slots.filter { $0.flags & slotReadOnly == 0 && $0.host != nil }
        let isSame =
            writable.count == copies.count
            && zip(writable, copies).allSatisfy {
                $0.guest_physical == $1.slot.guest_physical && $0.size == $1.slot.size
            }
        if !isSame {
            release()
            copies = writable.map { Copy(slot: $0, memory: EngineMemory.map(Int($0.size), of: UInt8.self)) }
        }
        for index in copies.indices {
            copies[index].slot = writable[index]
            fill(copies[index], isFresh: !isSame)
        }
        var next = 0
        return slots.map { slot in
            guard slot.flags & slotReadOnly == 0, slot.host != nil else { return slot }
            var shadow = slot
            shadow.host = copies[next].memory
            next += 1
            return shadow
        }
    }

    /// Pages of zeros are not touched in fresh memory: most of a guest's RAM is never used.
    private func fill(_ copy: Copy, isFresh: Bool) {
        guard let source = copy.slot.host else { return }
        let zeros = [UInt8](repeating: 0, count: Int(pageSize))
        for offset in stride(from: 0, to: copy.size, by: Int(pageSize)) {
            let isUnchanged = zeros.withUnsafeBytes { zero in
                let known = isFresh ? zero.baseAddress : UnsafeRawPointer(copy.bytes + offset)
                return known.map { memcmp($0, source + offset, Int(pageSize)) == 0 } ?? false
            }
            if !isUnchanged { (copy.bytes + offset).copyMemory(from: source + offset, byteCount: Int(pageSize)) }
        }
    }

    /// What the host wrote into the primary's RAM.
    func copyRange(_ address: UInt64, count: UInt64) {
        for copy in copies {
            let start = max(address, copy.slot.guest_physical)
            let end = min(address &+ count, copy.slot.guest_physical &+ copy.slot.size)
            guard start < end, let source = copy.slot.host else { continue }
            let offset = Int(start - copy.slot.guest_physical)
            (copy.bytes + offset).copyMemory(from: source + offset, byteCount: Int(end - start))
        }
    }

    func write(_ bytes: [UInt8], at address: UInt64) {
        for copy in copies {
            let offset = address &- copy.slot.guest_physical
            guard offset < copy.slot.size, UInt64(bytes.count) <= copy.slot.size - offset else { continue }
            (copy.bytes + Int(offset)).copyMemory(from: bytes, byteCount: bytes.count)
        }
    }

    func read(_ count: Int, at address: UInt64) -> [UInt8]? {
        for copy in copies {
            let offset = address &- copy.slot.guest_physical
            guard offset < copy.slot.size, UInt64(count) <= copy.slot.size - offset, let source = copy.slot.host else {
                continue
            }
            return [UInt8](UnsafeRawBufferPointer(start: source + Int(offset), count: count))
        }
        return nil
    }

    // MARK: Comparison

    /// The first guest-physical address that differs among the pages whose bits are set in either log.
    func firstDifference(_ first: [UInt64], _ second: [UInt64]) -> UInt64? {
        for (word, pair) in zip(first, second).enumerated() {
            var bits = pair.0 | pair.1
            while bits != 0 {
                let page = word * 64 + bits.trailingZeroBitCount
                bits &= bits - 1
                if let address = differenceIn(page: page) { return address }
            }
        }
        return nil
    }

    /// The same for all of RAM.
    func firstDifference() -> UInt64? {
        for copy in copies {
            for page in 0..<Int(copy.slot.size >> 12) {
                if let address = difference(in: copy, offset: page << 12) { return address }
            }
        }
        return nil
    }

    private func differenceIn(page: Int) -> UInt64? {
        for copy in copies {
            let first = Int(copy.slot.page_index)
            if page >= first, page < first + Int(copy.slot.size >> 12) {
                return difference(in: copy, offset: (page - first) << 12)
            }
        }
        return nil
    }

    private func difference(in copy: Copy, offset: Int) -> UInt64? {
        guard let host = copy.slot.host else { return nil }
        let (left, right) = (UnsafeRawPointer(host) + offset, UnsafeRawPointer(copy.bytes) + offset)
        if memcmp(left, right, Int(pageSize)) == 0 { return nil }
        for byte in 0..<Int(pageSize)
        where left.load(fromByteOffset: byte, as: UInt8.self) != right.load(fromByteOffset: byte, as: UInt8.self) {
            return copy.slot.guest_physical &+ UInt64(offset + byte)
        }
        return nil
    }

    /// `count` bytes from `address` on, of both.
    func bytes(_ count: Int, at address: UInt64) -> (primary: [UInt8], shadow: [UInt8])? {
        for copy in copies {
            let offset = address &- copy.slot.guest_physical
            guard offset < copy.slot.size, let host = copy.slot.host else { continue }
            let length = min(count, Int(copy.slot.size - offset))
            return (
                [UInt8](UnsafeRawBufferPointer(start: host + Int(offset), count: length)),
                [UInt8](UnsafeRawBufferPointer(start: copy.bytes + Int(offset), count: length))
            )
        }
        return nil
    }
}
