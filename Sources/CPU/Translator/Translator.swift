internal import CHost

// The translator beside the interpreter: a block that was entered often enough gets host code, and its first
// instruction's handler becomes the entry into it. All rare paths go through the interpreter's own handlers.

extension Processor {
    /// Makes the first instruction of a new block count its entries.
    func watchForTranslation(_ first: Insn, _ count: Int) {
        guard case .translator(let threshold) = execution, count > 0, state.pointee.mode == CodeMode.bits64,
            arena.isAvailable
        else { return }
        first.pointee.block_length = UInt8(truncatingIfNeeded: count)
        first.pointee.countdown = threshold
        first.pointee.handler = unsafeBitCast(countingHandler, to: UnsafeMutableRawPointer.self)
    }

    /// Translates the block that begins with `first`.
    @inline(never) func translate(_ first: Insn) {
        first.pointee.handler = first.pointee.interpreted
        guard let room = arena.room else { return }
        let count = Int(first.pointee.block_length)
        var block = BlockTranslator(
            host: HostAssembler(base: room.base, capacity: room.capacity), first: first, count: count)
        guard block.translate() else {
            // No room: the next look-up of undecoded code starts everything anew.
            arenaIsFull = true
            return
        }
        for place in block.unresolved {
            place.insn.pointee.chain = UnsafeMutableRawPointer(
                bitPattern: UInt(arena.address(ofRoom: place.position)))
        }
        first.pointee.host_code = arena.keep(block.host.position)
        first.pointee.handler = entryIntoTranslatedCode()
    }
}

/// The address of the assembly entry, as a handler.
private func entryIntoTranslatedCode() -> UnsafeMutableRawPointer? {
    unsafeBitCast(martlet_enter_translated as Handler, to: UnsafeMutableRawPointer?.self)
}

private let countingHandler: Handler = { s, i in
    i.pointee.countdown &-= 1
    if i.pointee.countdown <= 0, let owner = s.pointee.owner {
        Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.translate(i) }
        return unsafeBitCast(i.pointee.handler, to: Handler.self)(s, i)
    }
    return unsafeBitCast(i.pointee.interpreted, to: Handler.self)(s, i)
}

private typealias TranslatedHelper = @convention(c) (State, Insn, UInt64) -> UnsafeMutableRawPointer?

/// A data access that the inline TLB compare left over. Plain RAM goes on in translated code; everything else (faults,
/// page crossings, device memory, stores to pages with code) is the interpreter's whole instruction.
private let accessHelper: TranslatedHelper = { s, i, address in
    let kind = UInt8(truncatingIfNeeded: s.pointee.access_kind >> 8)
    let size = s.pointee.access_kind & 0xFF
    if (address & pageMask) &+ size <= pageSize, isCanonical(address),
        let target = resolveData(s, address, kind), let host = target.host,
        kind & AccessKind.write == 0 || !holdsCode(s, target.guestPhysical)
    {
        return host
    }
    s.pointee.stop = UInt32(MARTLET_STOP_NONE)
    s.pointee.leave_with = unsafeBitCast(i.pointee.interpreted, to: Handler.self)(s, i)
    return nil
}

private func holdsCode(_ s: State, _ guestPhysical: UInt64) -> Bool {
    guard let slot = findSlot(s, guestPhysical), let table = s.pointee.page_code else { return false }
    return table[pageIndex(slot, guestPhysical)].granules != 0
}

/// A jump that the jump cache did not settle.
private let jumpHelper: TranslatedHelper = { s, i, target in
    if !isCanonical(target) {
        // The branch itself faults, with the stack as it was (SDM vol. 2, RET, CALL).
        switch Mnemonic(rawValue: i.pointee.mnemonic) {
        case .ret: s.setRegister(4, s.register(4) &- 8)
        case .callIndirect, .call: s.setRegister(4, s.register(4) &+ 8)
        default: break
        }
        return fault(s, i, .generalProtection).map { UnsafeMutableRawPointer($0) }
    }
    s.pointee.rip = target
    return nextBlock(s).map { UnsafeMutableRawPointer($0) }
}

/// A direct branch inside a page whose target was not translated when the branch was: remembers it once it is.
private let resolveHelper: TranslatedHelper = { s, i, target in
    let pageRIP = s.register(Int(MARTLET_PAGE_RIP_REGISTER))
    s.pointee.rip = target
    guard let next = nextBlock(s) else { return nil }
    if let code = next.pointee.host_code, s.register(Int(MARTLET_PAGE_RIP_REGISTER)) == pageRIP {
        i.pointee.chain = code
    }
    return UnsafeMutableRawPointer(next)
}

func installTranslator(_ s: State) {
    martlet_install_exits(s)
    s.pointee.helper_access = unsafeBitCast(accessHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_jump = unsafeBitCast(jumpHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_resolve = unsafeBitCast(resolveHelper, to: UnsafeMutableRawPointer?.self)
}
