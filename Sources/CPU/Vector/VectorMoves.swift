internal import CHost

// Moves, by far the most frequent SSE instructions (memcpy, string functions): no stub, one handler each.
// `reg` and, in register forms, `rm` hold 8 times the register's number, which is a general register's offset.

/// 16 bytes of an XMM register.
private typealias Lanes = SIMD2<UInt64>

extension UnsafeMutablePointer<martlet_cpu> {
    @inline(__always) fileprivate func xmm(_ offset: UInt8) -> UnsafeMutableRawPointer {
        vectorRegister(0) + Int(offset) &* (VectorFile.stride / 8)
    }

    @inline(__always) fileprivate func loadXMM(_ offset: UInt8) -> Lanes { xmm(offset).load(as: Lanes.self) }

    @inline(__always) fileprivate func storeXMM(_ offset: UInt8, _ value: Lanes) {
        xmm(offset).storeBytes(of: value, as: Lanes.self)
    }
}

/// Sets the handler of a row with `move`.
func bindMove(_ i: Insn, _ entry: VectorEntry) {
    let isMemory = i.isMemoryForm
    let isStore = entry.traits.contains(.store)
    i.pointee.reg = i.registerNumber &* 8
    if !isMemory { i.pointee.rm = i.rmNumber &* 8 }
    // A store to a register is a load with the operands exchanged.
    if !isMemory, isStore, entry.rm == .xmm { swap(&i.pointee.reg, &i.pointee.rm) }
    let isWide = i.pointee.rex & 8 != 0
    switch (entry.move, isMemory, isStore) {
    case (.full, false, _): i.setHandler(moveFull)
    case (.full, true, false): i.setHandler(entry.traits.contains(.aligned) ? loadFullAligned : loadFull)
    case (.full, true, true): i.setHandler(entry.traits.contains(.aligned) ? storeFullAligned : storeFull)
    case (.single, false, _): i.setHandler(moveSingle)
    case (.single, true, false): i.setHandler(load32)
    case (.single, true, true): i.setHandler(store32)
    case (.double, false, _): i.setHandler(moveLow)
    case (.double, true, false), (.quad, true, false): i.setHandler(load64)
    case (.double, true, true), (.quad, true, true), (.low, true, true): i.setHandler(store64)
    case (.quad, false, _): i.setHandler(moveQuad)
    case (.general, false, false): i.setHandler(isWide ? generalToXMM64 : generalToXMM32)
    case (.general, false, true): i.setHandler(isWide ? xmmToGeneral64 : xmmToGeneral32)
    case (.general, true, false): i.setHandler(isWide ? load64 : load32)
    case (.general, true, true): i.setHandler(isWide ? store64 : store32)
    case (.low, false, _): i.setHandler(moveHighToLow)
    case (.low, true, false): i.setHandler(loadLow)
    case (.high, false, _): i.setHandler(moveLowToHigh)
    case (.high, true, false): i.setHandler(loadHigh)
    case (.high, true, true): i.setHandler(storeHigh)
    case (.maskedXMM, _, _), (.maskedMM, _, _):
        setMaskedMoveOperand(i)
        i.setHandler(entry.move == .maskedXMM ? maskedMoveXMM : maskedMoveMM)
    case (.empty, _, _): i.setHandler(emms)
    case (.loadMXCSR, _, _): i.setHandler(ldmxcsr)
    case (.storeMXCSR, _, _): i.setHandler(stmxcsr)
    case (.fxsave, _, _): i.setHandler(fxsave)
    case (.fxrstor, _, _): i.setHandler(fxrstor)
    case (.none, _, _): i.setHandler(vectorUndefined)
    }
}

// MARK: 16 bytes

private func moveFull(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.storeXMM(i.pointee.reg, s.loadXMM(i.pointee.rm))
    return i + 1
}

private func loadFull(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, 16) else { return stop(s, i) }
    s.storeXMM(i.pointee.reg, memory.loadUnaligned(as: Lanes.self))
    return i + 1
}

private func loadFullAligned(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = alignedReadOperand(s, i) else { return stop(s, i) }
    s.storeXMM(i.pointee.reg, memory.loadUnaligned(as: Lanes.self))
    return i + 1
}

private func storeFull(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = writeOperand(s, i, 16) else { return stop(s, i) }
    memory.storeBytes(of: s.loadXMM(i.pointee.reg), as: Lanes.self)
    return commit(s, memory, 16) ? i + 1 : stop(s, i)
}

private func storeFullAligned(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = alignedWriteOperand(s, i) else { return stop(s, i) }
    memory.storeBytes(of: s.loadXMM(i.pointee.reg), as: Lanes.self)
    return commit(s, memory, 16) ? i + 1 : stop(s, i)
}

// MARK: 4 and 8 bytes

private func load32(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, 4) else { return stop(s, i) }
    s.storeXMM(i.pointee.reg, Lanes(UInt64(memory.loadUnaligned(as: UInt32.self)), 0))
    return i + 1
}

private func load64(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, 8) else { return stop(s, i) }
    s.storeXMM(i.pointee.reg, Lanes(memory.loadUnaligned(as: UInt64.self), 0))
    return i + 1
}

private func store32(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = writeOperand(s, i, 4) else { return stop(s, i) }
    memory.storeBytes(of: s.xmm(i.pointee.reg).load(as: UInt32.self), as: UInt32.self)
    return commit(s, memory, 4) ? i + 1 : stop(s, i)
}

private func store64(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = writeOperand(s, i, 8) else { return stop(s, i) }
    memory.storeBytes(of: s.xmm(i.pointee.reg).load(as: UInt64.self), as: UInt64.self)
    return commit(s, memory, 8) ? i + 1 : stop(s, i)
}

/// MOVSS between registers: the rest of the destination stays.
private func moveSingle(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.xmm(i.pointee.reg).storeBytes(of: s.xmm(i.pointee.rm).load(as: UInt32.self), as: UInt32.self)
    return i + 1
}

/// MOVSD between registers: the high half of the destination stays.
private func moveLow(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.xmm(i.pointee.reg).storeBytes(of: s.xmm(i.pointee.rm).load(as: UInt64.self), as: UInt64.self)
    return i + 1
}

/// MOVQ between registers: the high half of the destination is cleared.
private func moveQuad(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.storeXMM(i.pointee.reg, Lanes(s.loadXMM(i.pointee.rm).x, 0))
    return i + 1
}

private func generalToXMM32(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    let value = s.registerFile.load(fromByteOffset: Int(i.pointee.rm), as: UInt32.self)
    s.storeXMM(i.pointee.reg, Lanes(UInt64(value), 0))
    return i + 1
}

private func generalToXMM64(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.storeXMM(i.pointee.reg, Lanes(s.registerFile.load(fromByteOffset: Int(i.pointee.rm), as: UInt64.self), 0))
    return i + 1
}

private func xmmToGeneral32(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    let value = UInt64(s.xmm(i.pointee.reg).load(as: UInt32.self))
    s.registerFile.storeBytes(of: value, toByteOffset: Int(i.pointee.rm), as: UInt64.self)
    return i + 1
}

private func xmmToGeneral64(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    let value = s.xmm(i.pointee.reg).load(as: UInt64.self)
    s.registerFile.storeBytes(of: value, toByteOffset: Int(i.pointee.rm), as: UInt64.self)
    return i + 1
}

// MARK: Halves

private func loadLow(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, 8) else { return stop(s, i) }
    s.xmm(i.pointee.reg).storeBytes(of: memory.loadUnaligned(as: UInt64.self), as: UInt64.self)
    return i + 1
}

private func loadHigh(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, 8) else { return stop(s, i) }
    let value = memory.loadUnaligned(as: UInt64.self)
    s.xmm(i.pointee.reg).storeBytes(of: value, toByteOffset: 8, as: UInt64.self)
    return i + 1
}

private func storeHigh(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = writeOperand(s, i, 8) else { return stop(s, i) }
    memory.storeBytes(of: s.loadXMM(i.pointee.reg).y, as: UInt64.self)
    return commit(s, memory, 8) ? i + 1 : stop(s, i)
}

/// MOVHLPS.
private func moveHighToLow(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.xmm(i.pointee.reg).storeBytes(of: s.loadXMM(i.pointee.rm).y, as: UInt64.self)
    return i + 1
}

/// MOVLHPS.
private func moveLowToHigh(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    s.xmm(i.pointee.reg).storeBytes(of: s.loadXMM(i.pointee.rm).x, toByteOffset: 8, as: UInt64.self)
    return i + 1
}

// MARK: Masked moves

/// The destination is DS:(E/R)DI, as a memory operand without displacement.
func setMaskedMoveOperand(_ i: Insn) {
    i.pointee.base = 7 * 8
    i.pointee.index = UInt8(MARTLET_ZERO_REGISTER * 8)
    i.pointee.scale = 0
    i.pointee.displacement = 0
}

private func maskedMoveXMM(_ s: State, _ i: Insn) -> Insn? {
    s.hasSSE ? maskedMove(s, i) : sseUnavailable(s, i)
}

/// MASKMOVDQU and VMASKMOVDQU.
func maskedMove(_ s: State, _ i: Insn) -> Insn? {
    maskedMove(s, i, source: s.xmm(i.pointee.reg), mask: s.xmm(i.pointee.rm), 16)
}

private func maskedMoveMM(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasMMX else { return mmxUnavailable(s, i) }
    let registers = s.fxImage + FXImage.x87Registers
    let top = Int(s.x87StatusWord >> 11) & 7
    let source = registers + ((Int(i.pointee.reg >> 3) &- top) & 7) &* 16
    let mask = registers + ((Int(i.pointee.rm >> 3) &- top) & 7) &* 16
    guard let next = maskedMove(s, i, source: source, mask: mask, 8) else { return nil }
    s.orderForMMX()
    s.fxImage.storeBytes(of: 0xFF, toByteOffset: FXImage.tags, as: UInt8.self)
    return next
}

/// Stores the runs of bytes whose mask byte has its top bit set (SDM vol. 2, MASKMOVDQU).
private func maskedMove(
    _ s: State, _ i: Insn, source: UnsafeMutableRawPointer, mask: UnsafeMutableRawPointer, _ size: Int
) -> Insn? {
    var start = 0
    while start < size {
        var end = start
        while end < size, (mask + end).load(as: UInt8.self) & 0x80 != 0 { end &+= 1 }
        if end > start, !storeRun(s, i, source + start, at: start, end &- start) { return stop(s, i) }
        start = end &+ 1
    }
    return i + 1
}

private func storeRun(_ s: State, _ i: Insn, _ source: UnsafeRawPointer, at offset: Int, _ count: Int) -> Bool {
    var shifted = i.pointee
    shifted.displacement = Int32(truncatingIfNeeded: offset)
    return withUnsafeMutablePointer(to: &shifted) {
        guard let memory = writeOperand(s, $0, count) else { return false }
        memory.copyMemory(from: source, byteCount: count)
        return commit(s, memory, count)
    }
}
