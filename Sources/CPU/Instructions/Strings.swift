internal import CHost

// MOVS CMPS STOS LODS SCAS INS OUTS, with REP (SDM vol. 2; interruptible between elements, vol. 1 §7.3.9.1). Upward
// REP MOVS, STOS, CMPS and SCAS go by pages: two checks and one host instruction for a page's worth.

private let rsiNumber = 6
private let rdiNumber = 7

private func offset(_ s: State, _ i: Insn, _ register: Int) -> UInt64 {
    maskAddress(s.register(register), i.pointee.address_size)
}

private func advance(_ s: State, _ i: Insn, _ register: Int, _ bytes: UInt64) {
    let size = i.pointee.address_size
    let value = s.register(register)
    let moved = value &+ bytes
    writeRegister(s, UInt8(register * 8), size == 2 ? moved & 0xFFFF : moved, size: size)
}

private func step(_ s: State, _ size: UInt8) -> UInt64 {
    s.pointee.rflags & RFlags.direction != 0 ? 0 &- UInt64(size) : UInt64(size)
}

/// The source of MOVS, CMPS, LODS, OUTS: DS:rSI or the overriding segment.
private func sourceAddress(_ s: State, _ i: Insn, _ size: Int) -> UInt64? {
    segmentedAddress(
        s, segment: Int(i.pointee.segment), offset: offset(s, i, rsiNumber), size: size, kind: AccessKind.read)
}

/// The destination: always ES:rDI.
private func destinationAddress(_ s: State, _ i: Insn, _ size: Int, _ kind: UInt8) -> UInt64? {
    segmentedAddress(s, segment: SegmentRegister.es, offset: offset(s, i, rdiNumber), size: size, kind: kind)
}

private func readSized(_ s: State, _ address: UInt64, _ size: Int) -> UInt64? {
    guard let pointer = readPointer(s, address, size) else { return nil }
    return loadSized(pointer, size)
}

private func writeSized(_ s: State, _ address: UInt64, _ value: UInt64, _ size: Int) -> Bool {
    guard let pointer = writePointer(s, address, size) else { return false }
    storeSized(pointer, value, size)
    return commit(s, pointer, size)
}

/// One element. False: fault or exit recorded, nothing changed.
private func element(_ s: State, _ i: Insn, _ mnemonic: Mnemonic) -> Bool {
    let size = Int(i.pointee.size)
    let stepBytes = step(s, i.pointee.size)
    switch mnemonic {
    case .movs:
        guard let source = sourceAddress(s, i, size), let value = readSized(s, source, size),
            let target = destinationAddress(s, i, size, AccessKind.write), writeSized(s, target, value, size)
        else { return false }
        advance(s, i, rsiNumber, stepBytes)
        advance(s, i, rdiNumber, stepBytes)
    case .stos:
        guard let target = destinationAddress(s, i, size, AccessKind.write),
            writeSized(s, target, s.register(0), size)
        else { return false }
        advance(s, i, rdiNumber, stepBytes)
    case .lods:
        guard let source = sourceAddress(s, i, size), let value = readSized(s, source, size) else { return false }
        writeRegister(s, 0, value, size: i.pointee.size)
        advance(s, i, rsiNumber, stepBytes)
    case .scas:
        guard let target = destinationAddress(s, i, size, AccessKind.read), let value = readSized(s, target, size)
        else { return false }
        compare(s, s.register(0), value, size)
        advance(s, i, rdiNumber, stepBytes)
    default:
        guard let source = sourceAddress(s, i, size), let left = readSized(s, source, size),
            let target = destinationAddress(s, i, size, AccessKind.read), let right = readSized(s, target, size)
        else { return false }
        compare(s, left, right, size)
        advance(s, i, rsiNumber, stepBytes)
        advance(s, i, rdiNumber, stepBytes)
    }
    return true
}

private func compare(_ s: State, _ left: UInt64, _ right: UInt64, _ size: Int) {
    switch size {
    case 1: _ = UInt8.cmp(UInt8(truncatingIfNeeded: left), UInt8(truncatingIfNeeded: right), s.statusPointer)
    case 2: _ = UInt16.cmp(UInt16(truncatingIfNeeded: left), UInt16(truncatingIfNeeded: right), s.statusPointer)
    case 4: _ = UInt32.cmp(UInt32(truncatingIfNeeded: left), UInt32(truncatingIfNeeded: right), s.statusPointer)
    default: _ = UInt64.cmp(left, right, s.statusPointer)
    }
}

/// A pointer to `bytes` of plain RAM on one page. Nil with nothing recorded: not plain RAM, go by elements.
private func pagePointer(_ s: State, _ address: UInt64, _ bytes: Int, _ kind: UInt8) -> UnsafeMutableRawPointer? {
    let line = tlbLine(s, address)
    let tag = kind == AccessKind.read ? line.readTag : line.writeTag
    if address &- tag <= pageSize &- UInt64(bytes) { return hostPointer(line, address) }
    if s.pointee.mode == CodeMode.bits64, !isCanonical(address) { return nil }
    guard let target = resolveData(s, address, kind), let host = target.host else {
        s.pointee.stop = UInt32(MARTLET_STOP_NONE)
        return nil
    }
    if kind == AccessKind.write { noteCodeWrite(s, target.guestPhysical, bytes) }
    return host
}

/// Whether the operands' linear addresses are offsets, or those and a base, without limits: in 64-bit mode, and in 32-bit
/// code with flat segments.
private func hasPlainAddresses(_ s: State, _ i: Insn) -> Bool {
    if s.pointee.mode == CodeMode.bits64 { return i.pointee.address_size == 8 }
    let segment = Int(i.pointee.segment)
    return s.pointee.is_flat32 != 0 && i.pointee.address_size == 4 && segment < SegmentRegister.fs
        && segment != SegmentRegister.cs
}

/// As many elements as fit both pages, at once. Returns the number done, 0 to go by elements.
private func pageChunk(_ s: State, _ i: Insn, _ mnemonic: Mnemonic, _ count: UInt64) -> UInt64 {
    guard hasPlainAddresses(s, i), s.pointee.rflags & RFlags.direction == 0 else { return 0 }
    let size = UInt64(i.pointee.size)
    let target = offset(s, i, rdiNumber)
    var elements = min(count, (pageSize &- (target & pageMask)) / size)
    let usesSource = mnemonic == .movs || mnemonic == .cmps
    let source = offset(s, i, rsiNumber) &+ s.segmentBases[Int(i.pointee.segment)]
    if usesSource { elements = min(elements, (pageSize &- (source & pageMask)) / size) }
    let writes = mnemonic == .movs || mnemonic == .stos
    let bytes = Int(elements &* size)
    guard elements > 1,
        let from = usesSource ? pagePointer(s, source, bytes, AccessKind.read) : s.bounceBuffer,
        let to = pagePointer(s, target, bytes, writes ? AccessKind.write : AccessKind.read)
    else { return 0 }
    let done = chunk(s, i, mnemonic, from, to, elements)
    if usesSource { advance(s, i, rsiNumber, done &* size) }
    advance(s, i, rdiNumber, done &* size)
    return done
}

/// REP MOVS in 64-bit mode as long as both ends are on pages that the TLB knows: `chunk` after `chunk`, without what goes
/// around each of them in general. Returns the number of elements done.
private func copyKnownPages(_ s: State, _ i: Insn, _ count: UInt64) -> UInt64 {
    let shift = UInt64(i.pointee.size.trailingZeroBitCount)
    var target = s.register(rdiNumber)
    let base = s.segmentBases[Int(i.pointee.segment)]
    var source = s.register(rsiNumber) &+ base
    var left = count
    while left > 1, martlet_attention(s) == 0 {
        let room = pageSize &- max(target & pageMask, source & pageMask)
        let bytes = min(left &<< shift, room & ~((1 &<< shift) &- 1))
        let (to, from) = (tlbLine(s, target), tlbLine(s, source))
        guard bytes > 0, fits(target, to.writeTag, bytes),
            fits(source, from.readTag, bytes)
        else { break }
        alu_rep_movs(hostPointer(to, target), hostPointer(from, source), bytes >> shift, i.pointee.size)
        target &+= bytes
        source &+= bytes
        left &-= bytes >> shift
    }
    s.setRegister(rdiNumber, target)
    s.setRegister(rsiNumber, source &- base)
    return count &- left
}

/// The elements of a chunk on host memory. Returns how many were done: comparisons may end before the last.
private func chunk(
    _ s: State, _ i: Insn, _ mnemonic: Mnemonic, _ from: UnsafeMutableRawPointer, _ to: UnsafeMutableRawPointer,
    _ elements: UInt64
) -> UInt64 {
    let size = i.pointee.size
    let whileEqual: Int32 = i.pointee.flags & InsnFlag.rep != 0 ? 1 : 0
    switch mnemonic {
    case .movs:
        alu_rep_movs(to, from, elements, size)
        return elements
    case .stos:
        alu_rep_stos(to, s.register(0), elements, size)
        return elements
    case .cmps: return elements &- alu_rep_cmps(from, to, elements, size, whileEqual, s.statusPointer)
    default: return elements &- alu_rep_scas(to, s.register(0), elements, size, whileEqual, s.statusPointer)
    }
}

let stringHandler: Handler = { s, i in
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .movs
    let repeats = i.pointee.flags & (InsnFlag.rep | InsnFlag.repne) != 0
    guard repeats else { return element(s, i, mnemonic) ? i + 1 : stop(s, i) }
    let compares = mnemonic == .cmps || mnemonic == .scas
    let steps = stepsThroughRepetition(s)
    let usesChunks = mnemonic != .lods && !steps
    let copiesPages =
        usesChunks && mnemonic == .movs && s.pointee.mode == CodeMode.bits64 && i.pointee.address_size == 8
        && s.pointee.rflags & RFlags.direction == 0
    var budget = 4096
    while true {
        let count = offset(s, i, 1)
        if count == 0 { return i + 1 }
        var chunk: UInt64 = 0
        if copiesPages { chunk = copyKnownPages(s, i, count) }
        if chunk == 0, usesChunks { chunk = pageChunk(s, i, mnemonic, count) }
        if chunk == 0 {
            guard element(s, i, mnemonic) else { return stop(s, i) }
        }
        advance(s, i, 1, 0 &- max(chunk, 1))
        if compares {
            let isZero = s.pointee.status & 0x4000 != 0
            if isZero != (i.pointee.flags & InsnFlag.rep != 0) { return i + 1 }
        }
        budget &-= 1
        if let interrupted = pauseRepeat(s, i, budget, steps: steps) { return interrupted.next }
    }
}

/// Whether `count` elements from an address on are on the page of a TLB line's tag.
@inline(__always) private func fits(_ address: UInt64, _ tag: UInt64, _ bytes: UInt64) -> Bool {
    address &- tag <= pageSize &- bytes
}

/// REP MOVS in 64-bit mode. Most are short: one compare for each end, and the host's own instruction.
let repMovs64Handler: Handler = { s, i in
    let size = UInt64(i.pointee.size)
    let count = s.register(1)
    guard count &- 1 < pageSize / size, s.pointee.rflags & (RFlags.trap | RFlags.direction) == 0 else {
        return stringHandler(s, i)
    }
    let bytes = count &* size
    let target = s.register(rdiNumber)
    let source = s.register(rsiNumber) &+ s.segmentBases[Int(i.pointee.segment)]
    let to = tlbLine(s, target)
    let from = tlbLine(s, source)
    guard fits(target, to.writeTag, bytes), fits(source, from.readTag, bytes) else {
        return stringHandler(s, i)
    }
    alu_rep_movs(hostPointer(to, target), hostPointer(from, source), count, i.pointee.size)
    s.setRegister(rsiNumber, s.register(rsiNumber) &+ bytes)
    s.setRegister(rdiNumber, target &+ bytes)
    s.setRegister(1, 0)
    return i + 1
}

/// REP STOS in 64-bit mode.
let repStos64Handler: Handler = { s, i in
    let size = UInt64(i.pointee.size)
    let count = s.register(1)
    guard count &- 1 < pageSize / size, s.pointee.rflags & (RFlags.trap | RFlags.direction) == 0 else {
        return stringHandler(s, i)
    }
    let target = s.register(rdiNumber)
    let line = tlbLine(s, target)
    guard fits(target, line.writeTag, count &* size) else { return stringHandler(s, i) }
    alu_rep_stos(hostPointer(line, target), s.register(0), count, i.pointee.size)
    s.setRegister(rdiNumber, target &+ count &* size)
    s.setRegister(1, 0)
    return i + 1
}

private struct Pause {
    var next: Insn?
}

/// Between elements: lets the outer loop see attention, traps and answered accesses.
@inline(__always) private func pauseRepeat(_ s: State, _ i: Insn, _ budget: Int, steps: Bool) -> Pause? {
    let answered = s.pointee.mmio_count | UInt32(s.pointee.port_answered) != 0
    let hasAttention = martlet_attention(s) != 0 && s.pointee.in_lockstep == 0
    guard answered || steps || budget <= 0 || hasAttention else { return nil }
    // The last element ends the instruction; otherwise it is restarted where it stands.
    if offset(s, i, 1) == 0 { return Pause(next: i + 1) }
    s.pointee.stop = UInt32(MARTLET_STOP_REPEAT)
    return Pause(next: stop(s, i))
}

// MARK: - INS, OUTS: one port access an element

let portStringHandler: Handler = { s, i in
    let size = i.pointee.size
    let port = UInt16(truncatingIfNeeded: s.register(2))
    guard mayAccessPort(s, port, size) else { return stop(s, i) }
    let repeats = i.pointee.flags & (InsnFlag.rep | InsnFlag.repne) != 0
    let steps = stepsThroughRepetition(s)
    var budget = 256
    while true {
        if repeats, offset(s, i, 1) == 0 { return i + 1 }
        let done = i.pointee.mnemonic == Mnemonic.ins.rawValue ? inElement(s, i, port) : outElement(s, i, port)
        guard done else { return stop(s, i) }
        guard repeats else { return i + 1 }
        advance(s, i, 1, 0 &- 1)
        budget &-= 1
        if let paused = pauseRepeat(s, i, budget, steps: steps) { return paused.next }
    }
}

/// How many elements one exit reads ahead, as KVM does: those that fit the rest of the page and 1,024 bytes, upwards.
private func inBatch(_ s: State, _ i: Insn, _ address: UInt64) -> Int {
    guard i.pointee.flags & (InsnFlag.rep | InsnFlag.repne) != 0, s.pointee.rflags & RFlags.direction == 0 else {
        return 1
    }
    let size = UInt64(i.pointee.size)
    let inPage = (pageSize - (address & pageMask)) / size
    return Int(max(1, min(inPage, UInt64(MARTLET_PORT_BATCH) / size, offset(s, i, 1))))
}

private func inElement(_ s: State, _ i: Insn, _ port: UInt16) -> Bool {
    let size = Int(i.pointee.size)
    // The destination is checked before the port is read: the read may have side effects.
    guard let address = destinationAddress(s, i, size, AccessKind.write),
        writePointer(s, address, size) != nil,
        let value = readPort(s, port, i.pointee.size, batch: inBatch(s, i, address)),
        writeSized(s, address, UInt64(value), size)
    else { return false }
    advance(s, i, rdiNumber, step(s, i.pointee.size))
    return true
}

private func outElement(_ s: State, _ i: Insn, _ port: UInt16) -> Bool {
    let size = Int(i.pointee.size)
    guard let address = sourceAddress(s, i, size), let value = readSized(s, address, size),
        writePort(s, port, i.pointee.size, UInt32(truncatingIfNeeded: value))
    else { return false }
    advance(s, i, rsiNumber, step(s, i.pointee.size))
    return true
}
