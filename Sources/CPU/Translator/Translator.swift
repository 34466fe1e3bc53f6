internal import CHost
internal import Glibc

// The translator beside the interpreter: a block that was entered often enough gets host code, and its first
// instruction's handler becomes the entry into it. All rare paths go through the interpreter's own handlers.

extension Processor {
    /// Makes the first instruction of a new block count its entries.
    func watchForTranslation(_ first: Insn, _ count: Int) {
        guard let threshold = execution.threshold, count > 0, arena.isAvailable,
            state.pointee.mode == CodeMode.bits64 || state.pointee.is_flat32 != 0
        else { return }
        first.pointee.block_length = UInt8(truncatingIfNeeded: count)
        first.pointee.countdown = threshold
        first.pointee.handler = unsafeBitCast(countingHandler, to: UnsafeMutableRawPointer.self)
    }

    /// Translates the block that begins with `first`.
    @inline(never) func translate(_ first: Insn) {
        first.pointee.handler = first.pointee.interpreted
        guard let code = translate(first, count: Int(first.pointee.block_length), groupsAccesses: true) else { return }
        first.pointee.host_code = code
        first.pointee.handler = entryIntoTranslatedCode()
    }

    /// The code of `count` instructions. Nil: no room; the next look-up of undecoded code starts everything anew.
    private func translate(
        _ first: Insn, count: Int, groupsAccesses: Bool, boundary: AccessPlan.Boundary? = nil
    ) -> UnsafeMutableRawPointer? {
        guard !arenaIsFull, let host = arena.assembler else { return nil }
        let started = alu_rdtsc()
        let before = martlet_set_activity(state, UInt32(MARTLET_AT_TRANSLATOR))
        defer {
            martlet_set_activity(state, before)
            state.pointee.counters.translation_cycles &+= alu_rdtsc() &- started
        }
        let options = BlockTranslator.Options(
            isUser: state.pointee.cpl == 3, counts: state.pointee.counts_instructions != 0,
            exactFlags: execution.exactFlags,
            groupsAccesses: groupsAccesses, boundary: boundary, hasBMI1: hostHas(bit: 3), hasBMI2: hostHas(bit: 8),
            noPage: state.pointee.no_page,
            readsFlags: { [self] in readsFlags(atPageOffset: $0) })
        var block = BlockTranslator(host: host, arena: arena, first: first, count: count, options: options)
        guard block.translate() else {
            arenaIsFull = true
            return nil
        }
        state.pointee.translated_blocks &+= 1
        state.pointee.translated_instructions &+= UInt64(count)
        let code = arena.keep(block.host.position)
        noteTranslated(first, count, host: code, size: block.host.position)
        return code
    }

    /// The code from `first` to the end of its block for where the one compare of `site` does not do: with two where a
    /// page ends among the accesses, else, and where that does not do either, with a compare for each.
    fileprivate func alternative(
        _ first: Insn, _ site: UnsafeMutablePointer<martlet_site>
    ) -> UnsafeMutableRawPointer? {
        var count = 0
        while first[count].handler != endOfBlock { count += 1 }
        let boundary = boundary(first, site)
        return translate(first, count: count, groupsAccesses: boundary != nil, boundary: boundary)
    }

    private func boundary(
        _ first: Insn, _ site: UnsafeMutablePointer<martlet_site>
    ) -> AccessPlan.Boundary? {
        if site.pointee.is_split != 0 { return nil }
        let register = Int(site.pointee.group_register)
        let start = Int(site.pointee.group_start)
        let offset = Int((state.register(register) &+ UInt64(truncatingIfNeeded: start)) & pageMask)
        let span = Int(pageSize) - Int(site.pointee.limit)
        guard offset + span > Int(pageSize) else { return nil }
        return AccessPlan.Boundary(register: register, offset: start + Int(pageSize) - offset)
    }

    /// 256 more misses of a site. So many in a very short time are enough for code that looks at the TLB each time. Where
    /// they go on coming the access is tried: if it misses as often again before its block is entered so many times, it
    /// gets such code too.
    fileprivate func considerHopping(_ i: Insn, _ site: UnsafeMutablePointer<martlet_site>) {
        let first = i - Int(i.pointee.position)
        let now = UInt32(truncatingIfNeeded: alu_rdtsc())
        let time = now &- site.pointee.wrapped
        site.pointee.wrapped = now
        site.pointee.rounds &+= 1
        guard first.pointee.host_code != nil,
            let verdict = HopVerdict.next(after: i.pointee.hops, cycles: time, rounds: site.pointee.rounds)
        else { return }
        // The code of this site is on its way out.
        site.pointee.flags &= ~UInt8(MARTLET_SITE_MAY_HOP)
        i.pointee.hops = verdict
        first.pointee.countdown = HopVerdict.entriesOfTrial
        translateAnew(first)
    }

    /// The accesses of a block that were on trial do not miss often.
    fileprivate func endTrial(_ first: Insn) {
        for index in 0..<Int(first.pointee.block_length) where first[index].hops == UInt8(MARTLET_HOPS_TRIAL) {
            first[index].hops = UInt8(MARTLET_HOPS_NO)
        }
        translateAnew(first)
    }

    private func translateAnew(_ first: Insn) {
        guard let old = first.pointee.host_code else { return }
        guard let new = translate(first, count: Int(first.pointee.block_length), groupsAccesses: true) else { return }
        first.pointee.host_code = new
        arena.redirect(old, to: new)
    }

    /// The target of a direct branch inside a page; links the branch if the target is translated.
    fileprivate func resolve(_ number: UInt64) -> Insn? {
        let s = state
        let link = arena[link: Int(truncatingIfNeeded: number)]
        s.pointee.counters.unlinked_branches &+= 1
        let pageRIP = s.register(Int(MARTLET_PAGE_RIP_REGISTER))
        let flushes = s.pointee.cache_flushes
        let target = pageRIP &+ UInt64(bitPattern: Int64(link.offset))
        s.pointee.rip = BlockTranslator.isFlat32(link.insn) ? target & 0xFFFF_FFFF : target
        guard let next = nextBlock(s) else { return nil }
        if let code = next.pointee.host_code, s.register(Int(MARTLET_PAGE_RIP_REGISTER)) == pageRIP,
            flushes == s.pointee.cache_flushes
        {
            arena.resolve(link, to: code)
            s.pointee.counters.linked_branches &+= 1
        }
        return next
    }

    /// Whether the decoded code at an offset of the current page may read the flags it is entered with. It goes with the
    /// page, as does what relies on the answer.
    private func readsFlags(atPageOffset offset: Int) -> Bool {
        guard !execution.exactFlags, offset >= 0, offset < Int(pageSize),
            var i = decodedBlock(atPageOffset: offset)
        else { return true }
        for _ in 0..<16 {
            let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
            let use = FlagUse(i, mnemonic, isNative: BlockTranslator.isNative(i, mnemonic))
            if use.reads { return true }
            if use.kills { return false }
            i += 1
        }
        return true
    }
}

private func hostHas(bit: UInt32) -> Bool { hostFeatures & 1 << bit != 0 }

/// CPUID.7:EBX.
private let hostFeatures: UInt32 = {
    var registers: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    return withUnsafeMutableBytes(of: &registers) { bytes in
        guard let base = bytes.bindMemory(to: UInt32.self).baseAddress else { return 0 }
        martlet_host_cpuid(0, 0, base)
        if base[0] < 7 { return 0 }
        martlet_host_cpuid(7, 0, base)
        return base[1]
    }
}()

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

/// A data access that neither its site nor the TLB settled. Plain RAM goes on in translated code; everything else
/// (faults, page crossings, device memory, stores to pages with code) is the interpreter's whole instruction.
private let accessHelper: TranslatedHelper = { s, i, address in
    let kind = UInt8(truncatingIfNeeded: s.pointee.access_kind >> 8)
    let size = s.pointee.access_kind & 0xFF
    // Accessed bits that the walk sets may be in this very code (a page of tables is executed): what has begun is
    // executed as it was, and what follows looked up again.
    let interpreted = i.pointee.interpreted
    let invalidations = s.pointee.invalidated_pages
    if (address & pageMask) &+ size <= pageSize, isAddress(s, address), kind & 4 == 0 || address & (size &- 1) == 0,
        let target = resolveData(s, address, kind & AccessKind.readWrite), let host = target.host,
        kind & AccessKind.write == 0 || !holdsCode(s, target.guestPhysical),
        invalidations == s.pointee.invalidated_pages
    {
        return host
    }
    s.pointee.stop = UInt32(MARTLET_STOP_NONE)
    s.pointee.leave_with = unsafeBitCast(interpreted, to: Handler.self)(s, i)
    return nil
}

/// Whether an effective address is a linear one as it is: 32-bit code's that is not would have to wrap, and pass limits.
private func isAddress(_ s: State, _ address: UInt64) -> Bool {
    s.pointee.mode == CodeMode.bits64 ? isCanonical(address) : address >> 32 == 0
}

private func holdsCode(_ s: State, _ guestPhysical: UInt64) -> Bool {
    guard let slot = findSlot(s, guestPhysical), let table = s.pointee.page_code else { return false }
    return table[pageIndex(slot, guestPhysical)].granules != 0
}

/// A jump that its target record and the jump cache did not settle.
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

private let resolveHelper: @convention(c) (State, UInt64) -> UnsafeMutableRawPointer? = { s, number in
    guard let owner = s.pointee.owner else { return nil }
    let next = Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.resolve(number) }
    return next.map { UnsafeMutableRawPointer($0) }
}

private let alternativeHelper: TranslatedHelper = { s, i, record in
    guard let owner = s.pointee.owner, let site = UnsafeMutablePointer<martlet_site>(bitPattern: UInt(record)) else {
        return nil
    }
    let code = Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.alternative(i, site) }
    site.pointee.alternative = code
    return code
}

private let hopHelper: TranslatedHelper = { s, i, record in
    guard let owner = s.pointee.owner, let site = UnsafeMutablePointer<martlet_site>(bitPattern: UInt(record)) else {
        return nil
    }
    Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.considerHopping(i, site) }
    return nil
}

private let trialHelper: @convention(c) (State, Insn) -> Void = { s, first in
    guard let owner = s.pointee.owner else { return }
    Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.endTrial(first) }
}

/// What becomes of an instruction whose access has missed another 256 times.
private enum HopVerdict {
    /// A loop that misses each time.
    private static let quick: UInt32 = 256 * 160
    /// Times 256 misses that are worth two translations.
    private static let roundsBeforeTrial: UInt8 = 4
    /// Looking at the TLB costs about a twelfth of a miss.
    static let entriesOfTrial: Int32 = 256 * 12

    /// The new MARTLET_HOPS_; nil: as before.
    static func next(after hops: UInt8, cycles: UInt32, rounds: UInt8) -> UInt8? {
        if hops == UInt8(MARTLET_HOPS_YES) { return nil }
        if cycles <= quick || hops == UInt8(MARTLET_HOPS_TRIAL) { return UInt8(MARTLET_HOPS_YES) }
        return hops == UInt8(MARTLET_HOPS_UNKNOWN) && rounds >= roundsBeforeTrial ? UInt8(MARTLET_HOPS_TRIAL) : nil
    }
}

func installTranslator(_ s: State) {
    martlet_install_exits(s)
    s.pointee.helper_access = unsafeBitCast(accessHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_jump = unsafeBitCast(jumpHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_resolve = unsafeBitCast(resolveHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_alternative = unsafeBitCast(alternativeHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_trial = unsafeBitCast(trialHelper, to: UnsafeMutableRawPointer?.self)
    s.pointee.helper_hop = unsafeBitCast(hopHelper, to: UnsafeMutableRawPointer?.self)
    // Not canonical, and not to be guessed: a guest that hit it would miss a #GP.
    let random = UInt64.random(in: 0...UInt64.max)
    s.pointee.no_page = (random | 1 << 62) & ~(1 << 63) & ~pageMask
    let none = martlet_return(not_rip: ~s.pointee.no_page, host: s.pointee.lost_return)
    for user in 0..<2 {
        for index in 0..<Int(MARTLET_RETURN_ENTRIES) { martlet_return_stack(s, UInt32(user))[index] = none }
    }
}
