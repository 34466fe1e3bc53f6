internal import CHost

// Near jumps, calls and returns (SDM vol. 1 §6.4, vol. 2). Direct branches remember the instruction they lead to: for
// ever inside the page (both ends go when the page is written), and for the current fetch generation across pages.

/// Ends the block behind `i` after a change that interrupts or single-stepping may depend on.
func leaveBlock(_ s: State, _ i: Insn) -> Insn? {
    s.pointee.rip = nextInstructionAddress(s, i)
    return continueAtRIP(s)
}

/// The same where the next instruction is fetched as before: it may follow in place. Attention is seen there.
@inline(__always) func goOn(_ s: State, _ i: Insn) -> Insn? {
    if s.pointee.interrupt_shadow | s.pointee.window_requested != 0 || s.pointee.rflags & RFlags.trap != 0 {
        s.pointee.rip = nextInstructionAddress(s, i)
        return nil
    }
    return i + 1
}

/// Goes on at rip, unless the outer loop must look first (shadow, trap flag, an interrupt window that just opened).
func continueAtRIP(_ s: State) -> Insn? {
    if s.pointee.interrupt_shadow | s.pointee.window_requested != 0 || s.pointee.rflags & RFlags.trap != 0 {
        return nil
    }
    return nextBlock(s)
}

/// Takes a direct branch to `target`.
@inline(__always) private func branch(_ s: State, _ i: Insn, _ target: UInt64) -> Insn? {
    if let link = i.pointee.link, martlet_attention(s) == 0 {
        let next = link.assumingMemoryBound(to: martlet_insn.self)
        if i.pointee.link_key == 0 { return next }
        if i.pointee.link_key == s.pointee.fetch_key {
            s.setRegister(Int(MARTLET_PAGE_RIP_REGISTER), target &- UInt64(next.pointee.page_offset))
            return next
        }
    }
    return branchSlow(s, i, target)
}

@inline(never) private func branchSlow(_ s: State, _ i: Insn, _ target: UInt64) -> Insn? {
    // The branch itself faults (SDM vol. 2, JMP).
    if s.pointee.mode == CodeMode.bits64, !isCanonical(target) { return fault(s, i, .generalProtection) }
    let pageRIP = s.register(Int(MARTLET_PAGE_RIP_REGISTER))
    s.pointee.rip = target
    let flushes = s.pointee.cache_flushes
    guard let next = nextBlock(s) else { return nil }
    // After a flush of all code another instruction may stand where `i` was.
    if flushes == s.pointee.cache_flushes, (i.pointee.flags | next.pointee.flags) & InsnFlag.uncached == 0 {
        // A target cut to 16 bits is on the same page only where this page is mapped now.
        let isSamePage = s.register(Int(MARTLET_PAGE_RIP_REGISTER)) == pageRIP && i.pointee.size != 2
        i.pointee.link = UnsafeMutableRawPointer(next)
        i.pointee.link_key = isSamePage ? 0 : s.pointee.fetch_key
    }
    return next
}

/// The target of a relative branch, cut to the operand size (SDM vol. 2, Jcc, JMP).
@inline(__always) private func relativeTarget(_ s: State, _ i: Insn) -> UInt64 {
    let target =
        s.register(Int(MARTLET_PAGE_RIP_REGISTER)) &+ UInt64(i.pointee.page_offset) &+ UInt64(i.pointee.length)
        &+ i.pointee.immediate
    switch i.pointee.size {
    case 8: return target
    case 4: return target & 0xFFFF_FFFF
    default: return target & 0xFFFF
    }
}

@inline(__always) private func jumpIf(_ s: State, _ i: Insn, _ code: UInt8) -> Insn? {
    if condition(s.pointee.status, code) { return branch(s, i, relativeTarget(s, i)) }
    return i + 1
}

/// Behind each conditional branch stands an end-of-block entry or the fall-through code.
func conditionalJumpHandler(_ code: UInt8) -> Handler {
    switch code {
    case 0: { jumpIf($0, $1, 0) }
    case 1: { jumpIf($0, $1, 1) }
    case 2: { jumpIf($0, $1, 2) }
    case 3: { jumpIf($0, $1, 3) }
    case 4: { jumpIf($0, $1, 4) }
    case 5: { jumpIf($0, $1, 5) }
    case 6: { jumpIf($0, $1, 6) }
    case 7: { jumpIf($0, $1, 7) }
    case 8: { jumpIf($0, $1, 8) }
    case 9: { jumpIf($0, $1, 9) }
    case 10: { jumpIf($0, $1, 10) }
    case 11: { jumpIf($0, $1, 11) }
    case 12: { jumpIf($0, $1, 12) }
    case 13: { jumpIf($0, $1, 13) }
    case 14: { jumpIf($0, $1, 14) }
    default: { jumpIf($0, $1, 15) }
    }
}

let jumpHandler: Handler = { s, i in branch(s, i, relativeTarget(s, i)) }

let callHandler: Handler = { s, i in
    let target = relativeTarget(s, i)
    guard pushReturnAddress(s, i) else { return stop(s, i) }
    return branch(s, i, target)
}

let call64Handler: Handler = { s, i in
    let next =
        s.register(Int(MARTLET_PAGE_RIP_REGISTER)) &+ UInt64(i.pointee.page_offset) &+ UInt64(i.pointee.length)
    let target = next &+ i.pointee.immediate
    // Before anything is pushed (SDM vol. 2, CALL).
    guard isCanonical(target) else { return fault(s, i, .generalProtection) }
    let address = s.register(4) &- 8
    guard let pointer = writePointer(s, address, 8) else { return stopOnStack(s, i) }
    pointer.storeBytes(of: next, as: UInt64.self)
    guard commit(s, pointer, 8) else { return stop(s, i) }
    s.setRegister(4, address)
    return branch(s, i, target)
}

private func pushReturnAddress(_ s: State, _ i: Insn) -> Bool {
    push(s, nextInstructionAddress(s, i), size: i.pointee.size)
}

/// A branch to an address that is only known now.
@inline(__always) private func branchIndirect(_ s: State, _ target: UInt64) -> Insn? {
    s.pointee.rip = target
    return nextBlock(s)
}

/// A canonical or in-limit target must be checked before the stack or rip changes (SDM vol. 2, CALL).
@inline(__always) private func isValidTarget(_ s: State, _ target: UInt64) -> Bool {
    if s.pointee.mode == CodeMode.bits64 { return isCanonical(target) }
    return target <= UInt64(s.segment(SegmentRegister.cs).pointee.limit)
}

let jumpIndirectHandler: Handler = { s, i in
    guard let target = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
    guard isValidTarget(s, target) else { return fault(s, i, .generalProtection) }
    return branchIndirect(s, target)
}

let callIndirectHandler: Handler = { s, i in
    guard let target = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
    guard isValidTarget(s, target) else { return fault(s, i, .generalProtection) }
    guard pushReturnAddress(s, i) else { return stop(s, i) }
    return branchIndirect(s, target)
}

let ret64Handler: Handler = { s, i in
    let address = s.register(4)
    guard let pointer = readPointer(s, address, 8) else { return stopOnStack(s, i) }
    let target = pointer.loadUnaligned(as: UInt64.self)
    guard isCanonical(target) else { return fault(s, i, .generalProtection) }
    s.setRegister(4, address &+ 8)
    return branchIndirect(s, target)
}

let retHandler: Handler = { s, i in
    let size = i.pointee.size
    guard let target = peek(s, 0, size: size) else { return stop(s, i) }
    guard isValidTarget(s, target) else { return fault(s, i, .generalProtection) }
    setStackPointer(s, s.register(4) &+ UInt64(size) &+ i.pointee.immediate)
    return branchIndirect(s, target)
}

/// LOOP, LOOPE, LOOPNE, JCXZ: the counter is as wide as addresses are.
let loopHandler: Handler = { s, i in
    let size = i.pointee.address_size
    let count = maskAddress(readRegister(s, 8, UInt64.self) &- 1, size)
    writeRegister(s, 8, count, size: size)
    let isZero = s.pointee.status & 0x4000 != 0
    let taken: Bool =
        switch i.pointee.opcode {
        case 0xE0: count != 0 && !isZero
        case 0xE1: count != 0 && isZero
        default: count != 0
        }
    return taken ? branch(s, i, relativeTarget(s, i)) : i + 1
}

let jcxzHandler: Handler = { s, i in
    maskAddress(s.register(1), i.pointee.address_size) == 0 ? branch(s, i, relativeTarget(s, i)) : i + 1
}
