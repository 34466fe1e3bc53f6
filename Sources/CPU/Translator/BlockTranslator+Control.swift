internal import CHost

// The stack and control transfer (SDM vol. 1 §6.4). Branches inside the page are linked directly; those that leave it go
// through a target record; returns through a stack of what calls expect.

extension BlockTranslator {
    // MARK: - Stack

    private func stackAccess(_ kind: UInt8) -> Access { Access(kind: kind, size: slotSize) }

    /// Moves the stack pointer. That of 32-bit code wraps, and the upper half of RSP goes.
    private mutating func moveStack(_ distance: Int, from base: Int = HostRegister.guestRSP) {
        host.lea(HostRegister.guestRSP, base: base, displacement: distance, size: slotSize)
    }

    private mutating func pushSlot(_ i: Insn, _ index: Int, which: Int) -> HostOperand {
        basedAccess(i, index, which: which, HostRegister.guestRSP, -slotSize, stackAccess(AccessKind.write))
    }

    private mutating func popSlot(_ i: Insn, _ index: Int) -> HostOperand {
        basedAccess(i, index, which: 0, HostRegister.guestRSP, 0, stackAccess(AccessKind.read))
    }

    /// Stores a slot below the stack pointer, then moves it.
    mutating func push(_ i: Insn, _ index: Int, which: Int = 0, _ value: (inout Self) -> Int) {
        let slot = pushSlot(i, index, which: which)
        let source = value(&self)
        host.operation(0x89, size: slotSize, reg: source, slot)
        moveStack(-slotSize)
    }

    /// The value waits in the state while the stack is looked at.
    mutating func pushMemory(_ i: Insn, _ index: Int) {
        let memory = operandAccess(i, index, Access(kind: AccessKind.read, size: slotSize))
        host.operation(0x8B, size: slotSize, reg: HostRegister.scratch, memory)
        heldAddend = nil
        host.store(HostRegister.scratch, toState: Int(MARTLET_BRANCH_TARGET))
        push(i, index, which: 1) {
            $0.host.load(HostRegister.scratch2, fromState: Int(MARTLET_BRANCH_TARGET))
            return HostRegister.scratch2
        }
    }

    mutating func pushImmediate(_ i: Insn, _ index: Int) {
        let slot = pushSlot(i, index, which: 0)
        host.operation(0xC7, size: slotSize, reg: 0, slot)
        immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: 4)
        moveStack(-slotSize)
    }

    mutating func pop(_ i: Insn, _ index: Int) {
        let slot = popSlot(i, index)
        let target = home(i.pointee.rm) ?? HostRegister.scratch
        host.operation(0x8B, size: slotSize, reg: target, slot)
        if target == HostRegister.guestRSP { return }
        moveStack(slotSize)
        keep(target, i.pointee.rm)
    }

    mutating func leaveFrame(_ i: Insn, _ index: Int) {
        let rbp = 5
        let slot = basedAccess(i, index, which: 0, rbp, 0, stackAccess(AccessKind.read))
        host.operation(0x8B, size: slotSize, reg: HostRegister.scratch, slot)
        moveStack(slotSize, from: rbp)
        host.move(rbp, HostRegister.scratch)
    }

    // MARK: - Direct branches

    /// Distance of a direct branch's target from the page's start.
    static func targetOffset(_ i: Insn) -> Int {
        Int(i.pointee.page_offset) + Int(i.pointee.length) + Int(truncatingIfNeeded: i.pointee.immediate)
    }

    private func isInPage(_ offset: Int) -> Bool { offset >= 0 && offset < Int(pageSize) }

    /// The guest address at an offset from the page's start.
    mutating func loadTarget(_ offset: Int) {
        host.load(HostRegister.scratch, fromState: Int(MARTLET_PAGE_RIP))
        host.lea(HostRegister.scratch, base: HostRegister.scratch, displacement: offset, size: slotSize)
    }

    /// Counts a pass of `done` instructions; the loop's own one was counted at the entry, so a chained block counts all
    /// of its own. Changes `scratch2`.
    mutating func countPass(_ done: Int) {
        if !options.counts { return }
        host.load(HostRegister.scratch2, fromState: Int(MARTLET_COUNT))
        host.lea(HostRegister.scratch2, base: HostRegister.scratch2, displacement: done)
        host.store(HostRegister.scratch2, toState: Int(MARTLET_COUNT))
    }

    /// Goes to a direct branch's target.
    private mutating func branch(_ i: Insn, _ index: Int) {
        countPass(Int(i.pointee.position) + 1)
        let target = Self.targetOffset(i)
        guard isInPage(target) else {
            loadTarget(target)
            goIndirect(i)
            return
        }
        let attention =
            target <= Int(i.pointee.page_offset) ? checkAttention(readsFlags: options.readsFlags(target)) : nil
        deferred.append(.link(insn: i, place: host.jump(nil), offset: target))
        if let attention { deferred.append(.attention(insn: i, place: attention, offset: target)) }
    }

    /// A branch that is taken when the attention word is set; the place of its distance.
    private mutating func checkAttention(readsFlags: Bool) -> Int {
        if !readsFlags {
            host.operation(0x83, size: 4, reg: 7, .state(Int(MARTLET_ATTENTION)))
            host.byte(0)
            return host.jump(HostCondition.notZero)
        }
        host.move(HostRegister.scratch, HostRegister.rcx)
        host.operation(0x8B, size: 4, reg: HostRegister.rcx, .state(Int(MARTLET_ATTENTION)))
        let isQuiet = host.jumpIfRCXIsZero()
        host.move(HostRegister.rcx, HostRegister.scratch)
        let place = host.jump(nil)
        host.patch8(at: isQuiet, to: host.position)
        host.move(HostRegister.rcx, HostRegister.scratch)
        return place
    }

    /// Until the target is translated: asks for it. What looks at the attention word does so always.
    mutating func emitUnlinked(_ i: Insn, _ place: Int, _ offset: Int, staysSo: Bool) {
        host.patch32(at: place, to: host.position)
        let link = arena.link(of: i, place: staysSo ? nil : host.origin &+ UInt64(place), offset: offset)
        if let link { host.leave(link, to: arena.address(of: .resolve)) } else { isOutOfRecords = true }
    }

    mutating func conditionalJump(_ i: Insn, _ index: Int) {
        let condition = Int(i.pointee.opcode & 15)
        if index % count == count - 1, index + 1 < count * copies { return leaveRow(i, unless: condition) }
        let target = Self.targetOffset(i)
        if !options.counts, target > Int(i.pointee.page_offset) || !isInPage(target) {
            let place = host.jump(condition)
            deferred.append(
                isInPage(target)
                    ? .link(insn: i, place: place, offset: target)
                    : .leavesPage(insn: i, place: place, offset: target))
            return
        }
        let skip = host.jump(condition ^ 1)
        branch(i, index)
        host.patch32(at: skip, to: host.position)
    }

    /// The end of a pass that has another copy of the block behind it: there when the loop goes on. The last copy looks at
    /// the attention word.
    private mutating func leaveRow(_ i: Insn, unless condition: Int) {
        let (end, offset) = (first + count, Int((first + count).pointee.page_offset))
        let stays = options.counts ? host.jump(condition) : nil
        countPass(count)
        let place = options.counts ? host.jump(nil) : host.jump(condition ^ 1)
        deferred.append(
            isInPage(offset)
                ? .link(insn: end, place: place, offset: offset) : .leavesPage(insn: end, place: place, offset: offset))
        if let stays {
            host.patch32(at: stays, to: host.position)
            countPass(count)
        }
    }

    mutating func directBranch(_ i: Insn, _ index: Int) { branch(i, index) }

    /// Behind the last instruction: a block that no branch ended goes on with the next.
    mutating func fallThrough() {
        let end = first + count
        let offset = Int(end.pointee.page_offset)
        countPass(Int((end - 1).pointee.position) + 1)
        if isInPage(offset) {
            deferred.append(.link(insn: end, place: host.jump(nil), offset: offset))
        } else {
            loadTarget(offset)
            goIndirect(end)
        }
    }

    // MARK: - Calls and returns

    private var returnTop: Int { Int(options.isUser ? MARTLET_USER_RETURN_TOP : MARTLET_SUPERVISOR_RETURN_TOP) }
    private var returns: Int { Int(options.isUser ? MARTLET_USER_RETURNS : MARTLET_SUPERVISOR_RETURNS) }

    /// Pushes the return address, and what is expected there on the return stack.
    private mutating func pushReturn(_ i: Insn, _ index: Int, which: Int) {
        let offset = Int(i.pointee.page_offset) + Int(i.pointee.length)
        push(i, index, which: which) {
            $0.host.load(HostRegister.scratch2, fromState: Int(MARTLET_PAGE_RIP))
            $0.host.lea(
                HostRegister.scratch2, base: HostRegister.scratch2, displacement: offset, size: $0.slotSize)
            return HostRegister.scratch2
        }
        guard isInPage(offset) else { return }
        let top = HostRegister.scratch
        // movzx top, byte [return top]; lea top, [top + 16]; mov [return top], top; movzx top, top (it wraps)
        host.operation(map: 1, 0xB6, size: 4, reg: top, .state(returnTop))
        host.lea(top, base: top, displacement: 16, size: 4)
        host.operation(0x88, size: 1, reg: top, .state(returnTop))
        host.operation(map: 1, 0xB6, size: 4, reg: top, .register(top), byteRM: true)
        // not scratch2; mov [state + top + returns], scratch2
        host.operation(0xF7, size: 8, reg: 2, .register(HostRegister.scratch2))
        host.operation(0x89, size: 8, reg: HostRegister.scratch2, .based(HostRegister.state, returns))
        // lea scratch2, [landing]
        host.bytes(0x4C, 0x8D, 0x35)
        deferred.append(.landing(insn: first + count, place: host.position, offset: offset))
        host.word32(0)
        host.operation(0x89, size: 8, reg: HostRegister.scratch2, .based(HostRegister.state, returns + 8))
    }

    /// Where a call returns to, with the guest address in `scratch`.
    mutating func emitLanding(_ i: Insn, _ place: Int, _ offset: Int) {
        host.patch32(at: place, to: host.position)
        host.lea(HostRegister.scratch2, base: HostRegister.scratch, displacement: -offset)
        host.store(HostRegister.scratch2, toState: Int(MARTLET_PAGE_RIP))
        deferred.append(.link(insn: i, place: host.jump(nil), offset: offset))
    }

    mutating func call(_ i: Insn, _ index: Int) {
        pushReturn(i, index, which: 0)
        branch(i, index)
    }

    /// Through the return stack when its newest entry says so, else like any indirect branch. The entry is taken off
    /// in both cases: RCX, in its place in the state meanwhile, takes part in the compare, since flags must stay.
    mutating func ret(_ i: Insn, _ index: Int) {
        let slot = popSlot(i, index)
        host.operation(0x8B, size: slotSize, reg: HostRegister.scratch, slot)
        // RET imm16 drops arguments behind the address; the other has no immediate.
        moveStack(slotSize + Int(i.pointee.immediate & 0xFFFF))
        countPass(Int(i.pointee.position) + 1)
        let rcx = HostRegister.rcx
        let top = HostRegister.scratch2
        host.store(rcx, toState: rcx * 8)
        host.operation(map: 1, 0xB6, size: 4, reg: top, .state(returnTop))
        host.lea(rcx, base: top, displacement: -16, size: 4)
        host.operation(0x88, size: 1, reg: rcx, .state(returnTop))
        // mov rcx, [state + top + returns]; lea rcx, [rcx + scratch + 1]: zero when it is the complement
        stackEntry(0x8B, reg: rcx, returns)
        host.lea(rcx, base: rcx, index: HostRegister.scratch, displacement: 1)
        let isExpected = host.jumpIfRCXIsZero()
        host.load(rcx, fromState: rcx * 8)
        let other = host.jump(nil)
        host.patch8(at: isExpected, to: host.position)
        host.load(rcx, fromState: rcx * 8)
        stackEntry(0xFF, reg: 4, returns + 8)
        host.patch32(at: other, to: host.position)
        goIndirect(i)
    }

    /// An instruction with [state + scratch2 + offset].
    private mutating func stackEntry(_ opcode: Int, reg: Int, _ offset: Int) {
        host.bytes(0x4B, opcode, 0x84 | (reg & 7) << 3, 0x37)
        host.word32(offset)
    }

    // MARK: - Indirect branches

    /// Ends the block at the guest address in `scratch`: at once when it is where this branch went last time and nothing
    /// asks for attention, else by look-up. Flags stay.
    mutating func goIndirect(_ i: Insn) {
        guard let place = record() else { return }
        let target = place.bindMemory(to: martlet_target.self, capacity: 1)
        target.pointee.insn = i
        let record = address(place)
        let rcx = HostRegister.rcx
        let scratch = HostRegister.scratch
        let kept = HostRegister.scratch2
        host.move(kept, rcx)
        host.operation(0x8B, size: 8, reg: rcx, .record(record + UInt64(TARGET_NEGATIVE_RIP)))
        host.lea(rcx, base: rcx, index: scratch, displacement: 0)
        let isSame = host.jumpIfRCXIsZero()
        let miss = host.position
        host.move(rcx, kept)
        host.leaRecord(kept, record)
        host.jumpThroughState(Int(MARTLET_JUMP))
        host.patch8(at: isSame, to: host.position)
        host.operation(0x8B, size: 8, reg: rcx, .record(record + UInt64(TARGET_NEGATIVE_KEY)))
        host.load(scratch, fromState: Int(MARTLET_FETCH_KEY))
        host.lea(rcx, base: rcx, index: scratch, displacement: 0)
        host.operation(0x8B, size: 4, reg: scratch, .state(Int(MARTLET_ATTENTION)))
        host.lea(rcx, base: rcx, index: scratch, displacement: 0)
        let isCurrent = host.jumpIfRCXIsZero()
        host.operation(0x8B, size: 8, reg: scratch, .record(record + UInt64(TARGET_RIP)))
        let back = host.jump(nil)
        host.patch32(at: back, to: miss)
        host.patch8(at: isCurrent, to: host.position)
        host.move(rcx, kept)
        host.operation(0x8B, size: 8, reg: kept, .record(record + UInt64(TARGET_PAGE_RIP)))
        host.store(kept, toState: Int(MARTLET_PAGE_RIP))
        host.operation(0xFF, size: 4, reg: 4, .record(record + UInt64(TARGET_HOST)))
    }

    mutating func indirectJump(_ i: Insn, _ index: Int) {
        loadIndirect(i, index)
        countPass(Int(i.pointee.position) + 1)
        goIndirect(i)
    }

    private mutating func loadIndirect(_ i: Insn, _ index: Int) {
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.read, size: slotSize))
            host.operation(0x8B, size: slotSize, reg: HostRegister.scratch, memory)
        } else {
            let source = fetch(i.pointee.rm, into: HostRegister.scratch)
            if source != HostRegister.scratch {
                host.operation(0x89, size: slotSize, reg: source, .register(HostRegister.scratch))
            }
        }
        heldAddend = nil
    }

    /// A target that is not canonical is #GP before anything is pushed (SDM vol. 2, CALL): bits 63–47 of the waiting
    /// target must be equal. Flags stay. Flat 32-bit code has no address that is no target.
    private mutating func checkTarget(_ i: Insn) {
        if isFlat32 { return }
        let rcx = HostRegister.rcx
        let low = HostRegister.scratch2
        let upper = HostOperand.state(Int(MARTLET_BRANCH_TARGET) + 4)
        host.store(rcx, toState: rcx * 8)
        // movsxd rcx, [upper]; movsx low, word [upper]; not low; lea rcx, [rcx + low + 1]: zero when they are equal
        host.operation(0x63, size: 8, reg: rcx, upper)
        host.operation(map: 1, 0xBF, size: 8, reg: low, upper)
        host.operation(0xF7, size: 8, reg: 2, .register(low))
        host.lea(rcx, base: rcx, index: low, displacement: 1)
        let isCanonical = host.jumpIfRCXIsZero()
        host.load(rcx, fromState: rcx * 8)
        callInterpreter(i)
        host.patch8(at: isCanonical, to: host.position)
        host.load(rcx, fromState: rcx * 8)
    }

    /// The target waits in the state while the return address is pushed.
    mutating func indirectCall(_ i: Insn, _ index: Int) {
        loadIndirect(i, index)
        host.store(HostRegister.scratch, toState: Int(MARTLET_BRANCH_TARGET))
        checkTarget(i)
        pushReturn(i, index, which: 1)
        countPass(Int(i.pointee.position) + 1)
        host.load(HostRegister.scratch, fromState: Int(MARTLET_BRANCH_TARGET))
        goIndirect(i)
    }
}
