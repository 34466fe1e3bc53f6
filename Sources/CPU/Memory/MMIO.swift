internal import CHost

// Memory-mapped accesses. An access that the engine's own devices (local APIC, I/O APIC) answer completes at once. Any
// other one is asked of user space: the instruction is abandoned before it has changed anything, `run()` returns, and
// on re-entry the same instruction runs again and finds the answers, in order, in `martlet_cpu.mmio`. Writes work the
// same way: the restarted instruction finds its write already done.

/// KVM's pieces: at most 8 bytes, of any size (the part of an access on one side of a page boundary can be 3).
private func pieceSize(_ size: Int) -> Int { min(size, 8) }

func mmioRead(_ s: State, _ address: UInt64, _ size: Int, into destination: UnsafeMutableRawPointer) -> Bool {
    var offset = 0
    while offset < size {
        let piece = pieceSize(size - offset)
        var value: UInt64 = 0
        guard mmioPiece(s, address &+ UInt64(offset), piece, isWrite: false, &value) else { return false }
        withUnsafeBytes(of: value) { (destination + offset).copyMemory(from: $0.baseAddress!, byteCount: piece) }
        offset += piece
    }
    return true
}

func mmioWrite(_ s: State, _ address: UInt64, _ size: Int, from source: UnsafeMutableRawPointer) -> Bool {
    var offset = 0
    while offset < size {
        let piece = pieceSize(size - offset)
        var value: UInt64 = 0
        withUnsafeMutableBytes(of: &value) { $0.baseAddress!.copyMemory(from: source + offset, byteCount: piece) }
        guard mmioPiece(s, address &+ UInt64(offset), piece, isWrite: true, &value) else { return false }
        offset += piece
    }
    return true
}

/// One access of 1–8 bytes. False: user space must answer first.
private func mmioPiece(_ s: State, _ address: UInt64, _ size: Int, isWrite: Bool, _ value: inout UInt64) -> Bool {
    if let hook = s.pointee.hooks.mmio,
        hook(s.pointee.hooks.context, address, UInt32(size), isWrite ? 1 : 0, &value) == 0
    {
        return true
    }
    let cursor = s.pointee.mmio_cursor
    if cursor < s.pointee.mmio_count {
        let answer = s.mmioFragments[Int(cursor)]
        if answer.address == address, answer.size == UInt32(size), answer.is_write == (isWrite ? 1 : 0) {
            s.pointee.mmio_cursor = cursor + 1
            if !isWrite { value = answer.value }
            return true
        }
        // The instruction or its translation changed meanwhile (another vCPU, user space): this answer is of no access.
        s.pointee.mmio_count = cursor
    }
    guard cursor < UInt32(MARTLET_MMIO_FRAGMENTS) else {
        // An instruction with more device accesses than any has: as an access that no device answers.
        value = .max
        return true
    }
    s.mmioFragments[Int(cursor)] = martlet_mmio_fragment(
        address: address, value: isWrite ? value : 0, size: UInt32(size), is_write: isWrite ? 1 : 0)
    s.pointee.mmio_pending = 1
    s.pointee.stop = UInt32(MARTLET_STOP_MMIO)
    return false
}
