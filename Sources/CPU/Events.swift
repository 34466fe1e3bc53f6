internal import CHost

// Delivery of exceptions and interrupts (SDM vol. 3A ch. 6), and IRET.

/// What is being delivered.
struct Event {
    var vector: UInt8
    var error: UInt32?
    /// INT n, INT3, INTO: the gate's privilege counts, and EXT stays clear.
    var isSoftware = false
    /// An external interrupt or NMI.
    var isExternal = false
    /// rip to push.
    var rip: UInt64
}

extension ExceptionVector {
    /// Contributory exceptions make a double fault of a second one (SDM vol. 3A table 6-5).
    static func isContributory(_ vector: UInt8) -> Bool {
        vector == 0 || (vector >= 10 && vector <= 13)
    }
}

/// Delivers an event. False: another exception was recorded and nothing changed.
func deliver(_ s: State, _ event: Event) -> Bool {
    if s.pointee.debug_armed & UInt8(MARTLET_DEBUG_DATA) != 0 {
        return deliverWatched(s) { deliverByMode(s, event) }
    }
    return deliverByMode(s, event)
}

private func deliverByMode(_ s: State, _ event: Event) -> Bool {
    if !s.isProtected { return deliverReal(s, event) }
    return s.isLongMode ? deliverLong(s, event) : deliverProtected(s, event)
}

private func deliverReal(_ s: State, _ event: Event) -> Bool {
    let entry = s.pointee.idtr.base &+ UInt64(event.vector) * 4
    guard UInt64(event.vector) * 4 + 3 <= UInt64(s.pointee.idtr.limit) else {
        raise(s, .generalProtection, error: 0)
        return false
    }
    guard let target = systemRead(s, entry, 4) else { return false }
    let savedStack = s.register(4)
    let cs = s.segment(SegmentRegister.cs).pointee
    guard push(s, s.flags, size: 2), push(s, UInt64(cs.selector), size: 2), push(s, event.rip, size: 2) else {
        s.setRegister(4, savedStack)
        return false
    }
    s.pointee.rflags &= ~(RFlags.interrupt | RFlags.trap | RFlags.alignmentCheck | RFlags.resume)
    var segment = cs
    segment.selector = UInt16(truncatingIfNeeded: target >> 16)
    segment.base = UInt64(segment.selector) << 4
    setCodeSegment(s, segment, cpl: 0)
    s.pointee.rip = target & 0xFFFF
    return true
}

/// Error code of a fault that involves an IDT entry (SDM vol. 3A §6.13).
private func gateError(_ event: Event) -> UInt32 {
    UInt32(event.vector) * 8 + 2 + (event.isSoftware ? 0 : 1)
}

/// Checks a gate: type, privilege for software interrupts, presence. False: fault recorded.
private func checkGate(_ s: State, _ gate: Descriptor, _ event: Event) -> Bool {
    let isLegal = s.isLongMode ? gate.type == 0xE || gate.type == 0xF : [5, 6, 7, 0xE, 0xF].contains(gate.type)
    guard !gate.isCodeOrData, isLegal, !event.isSoftware || gate.privilege >= s.pointee.cpl else {
        raise(s, .generalProtection, error: gateError(event))
        return false
    }
    guard gate.isPresent else {
        raise(s, .notPresent, error: gateError(event))
        return false
    }
    return true
}

/// The code segment of a gate (SDM vol. 3A §6.12.1). Nil: fault recorded.
private func gateTarget(_ s: State, _ gate: Descriptor, _ event: Event) -> (Descriptor, UInt8)? {
    let selector = gate.gateSelector
    let external: UInt32 = event.isSoftware ? 0 : 1
    let error = UInt32(selector & 0xFFFC) | external
    guard selector & 0xFFFC != 0 else {
        raise(s, .generalProtection, error: external)
        return nil
    }
    guard let code = readDescriptor(s, selector, .generalProtection) else { return nil }
    guard code.isCode, code.privilege <= s.pointee.cpl, !s.isLongMode || (code.isLong && !code.isBig) else {
        raise(s, .generalProtection, error: error)
        return nil
    }
    guard code.isPresent else {
        raise(s, .notPresent, error: error)
        return nil
    }
    return (code, code.isConforming ? s.pointee.cpl : code.privilege)
}

// MARK: - Long mode

private func deliverLong(_ s: State, _ event: Event) -> Bool {
    let offset = UInt64(event.vector) * 16
    guard offset + 15 <= UInt64(s.pointee.idtr.limit) else {
        raise(s, .generalProtection, error: gateError(event))
        return false
    }
    guard let low = systemRead(s, s.pointee.idtr.base &+ offset, 8),
        let high = systemRead(s, s.pointee.idtr.base &+ offset &+ 8, 8)
    else { return false }
    let gate = Descriptor(low: low, high: high & 0xFFFF_FFFF)
    guard checkGate(s, gate, event), let (code, privilege) = gateTarget(s, gate, event) else { return false }
    guard let stack = interruptStack(s, gate, privilege) else { return false }
    let frameTop = stack & ~15
    let cs = s.segment(SegmentRegister.cs).pointee.selector
    let ss = s.segment(SegmentRegister.ss).pointee.selector
    let flags = pushedFlags(s, event)
    guard systemWrite(s, frameTop &- 8, UInt64(ss), 8), systemWrite(s, frameTop &- 16, s.register(4), 8),
        systemWrite(s, frameTop &- 24, flags, 8), systemWrite(s, frameTop &- 32, UInt64(cs), 8),
        systemWrite(s, frameTop &- 40, event.rip, 8)
    else { return stackFault(s, frameTop) }
    var top = frameTop &- 40
    if let error = event.error {
        top = top &- 8
        guard systemWrite(s, top, UInt64(error), 8) else { return stackFault(s, frameTop) }
    }
    noteDataAccess(s, top, Int(frameTop &- top), AccessKind.write)
    s.setRegister(4, top)
    if privilege != s.pointee.cpl {
        let null = martlet_segment(
            selector: UInt16(privilege), attributes: SegmentAttribute.unusable | UInt16(privilege) << 5, limit: 0,
            base: 0)
        s.segment(SegmentRegister.ss).pointee = null
    }
    enterGate(s, gate, code, privilege)
    return true
}

/// A non-canonical interrupt stack is #SS(0).
private func stackFault(_ s: State, _ stack: UInt64) -> Bool {
    if s.pointee.exception_vector == UInt32(ExceptionVector.generalProtection.rawValue), !isCanonical(stack) {
        raise(s, .stack, error: 0)
    }
    return false
}

/// The stack that a 64-bit gate switches to (SDM vol. 3A §6.14.4, §6.14.5). Nil: fault recorded.
private func interruptStack(_ s: State, _ gate: Descriptor, _ privilege: UInt8) -> UInt64? {
    let number = UInt64(gate.interruptStackTable & 7)
    if number != 0 { return taskStateQuad(s, 36 + (number - 1) * 8) }
    if privilege != s.pointee.cpl { return taskStateQuad(s, 4 + UInt64(privilege) * 8) }
    return s.register(4)
}

/// A field of the 64-bit TSS (SDM vol. 3A figure 7-11). Nil: fault recorded.
func taskStateQuad(_ s: State, _ offset: UInt64) -> UInt64? {
    guard offset &+ 7 <= UInt64(s.pointee.tr.limit) else {
        raise(s, .invalidTSS, error: UInt32(s.pointee.tr.selector & 0xFFFC))
        return nil
    }
    return systemRead(s, s.pointee.tr.base &+ offset, 8)
}

/// Loads CS, rip and flags from a gate whose frame is on the stack.
private func enterGate(_ s: State, _ gate: Descriptor, _ code: Descriptor, _ privilege: UInt8) {
    s.pointee.rflags &= ~(RFlags.trap | RFlags.nestedTask | RFlags.resume | RFlags.virtual8086)
    if gate.type & 1 == 0 { s.pointee.rflags &= ~RFlags.interrupt }
    let selector = (gate.gateSelector & 0xFFFC) | UInt16(privilege)
    setCodeSegment(s, code.segment(selector), cpl: privilege)
    s.pointee.rip = s.isLongMode ? gate.gateOffset : gate.gateOffset & (gate.type & 8 != 0 ? 0xFFFF_FFFF : 0xFFFF)
}

// MARK: - Protected mode

private func deliverProtected(_ s: State, _ event: Event) -> Bool {
    let offset = UInt64(event.vector) * 8
    guard offset + 7 <= UInt64(s.pointee.idtr.limit) else {
        raise(s, .generalProtection, error: gateError(event))
        return false
    }
    guard let low = systemRead(s, s.pointee.idtr.base &+ offset, 8) else { return false }
    let gate = Descriptor(low: low)
    guard checkGate(s, gate, event) else { return false }
    guard gate.type != 5, let (code, privilege) = gateTarget(s, gate, event) else {
        if gate.type == 5 { raise(s, .generalProtection, error: gateError(event)) }
        return false
    }
    let size: UInt8 = gate.type & 8 != 0 ? 4 : 2
    return privilege == s.pointee.cpl && !s.isVirtual8086
        ? deliverSamePrivilege(s, event, gate, code, size)
        : deliverInnerPrivilege(s, event, gate, code, privilege, size)
}

/// A fault pushes RF set, INT n pushes it clear; #DB, interrupts and traps push it as it is (SDM vol. 3B §17.3.1.1, whose
/// exception for instruction breakpoints is one for general detect as well).
private func pushedFlags(_ s: State, _ event: Event) -> UInt64 {
    if event.isSoftware { return s.flags & ~RFlags.resume }
    let isDebug = event.vector == ExceptionVector.debug.rawValue
    return event.isExternal || isDebug ? s.flags : s.flags | RFlags.resume
}

private func deliverSamePrivilege(
    _ s: State, _ event: Event, _ gate: Descriptor, _ code: Descriptor, _ size: UInt8
) -> Bool {
    let saved = s.register(4)
    let cs = UInt64(s.segment(SegmentRegister.cs).pointee.selector)
    var done = push(s, pushedFlags(s, event), size: size) && push(s, cs, size: size) && push(s, event.rip, size: size)
    if done, let error = event.error { done = push(s, UInt64(error), size: size) }
    guard done else {
        s.setRegister(4, saved)
        return false
    }
    enterGate(s, gate, code, s.pointee.cpl)
    return true
}

/// The stack of an inner privilege from the TSS (SDM vol. 3A §6.12.1). Nil: fault recorded.
func innerStack(_ s: State, _ privilege: UInt8) -> (segment: martlet_segment, pointer: UInt64)? {
    let is32 = s.pointee.tr.attributes & 8 != 0
    let offset = is32 ? 4 + UInt64(privilege) * 8 : 2 + UInt64(privilege) * 4
    let taskError = UInt32(s.pointee.tr.selector & 0xFFFC)
    guard offset + (is32 ? 5 : 3) <= UInt64(s.pointee.tr.limit) else {
        raise(s, .invalidTSS, error: taskError)
        return nil
    }
    guard let pointer = systemRead(s, s.pointee.tr.base &+ offset, is32 ? 4 : 2),
        let selectorValue = systemRead(s, s.pointee.tr.base &+ offset &+ (is32 ? 4 : 2), 2)
    else { return nil }
    let selector = UInt16(truncatingIfNeeded: selectorValue)
    let error = UInt32(selector & 0xFFFC)
    guard error != 0 else {
        raise(s, .invalidTSS, error: 0)
        return nil
    }
    guard let descriptor = readDescriptor(s, selector, .invalidTSS) else { return nil }
    let isWritable = descriptor.isCodeOrData && !descriptor.isCode && descriptor.isReadableOrWritable
    guard UInt8(selector & 3) == privilege, descriptor.privilege == privilege, isWritable else {
        raise(s, .invalidTSS, error: error)
        return nil
    }
    guard descriptor.isPresent else {
        raise(s, .stack, error: error)
        return nil
    }
    return (descriptor.segment(selector), pointer)
}

private func deliverInnerPrivilege(
    _ s: State, _ event: Event, _ gate: Descriptor, _ code: Descriptor, _ privilege: UInt8, _ size: UInt8
) -> Bool {
    if s.isVirtual8086, privilege != 0 {
        raise(s, .generalProtection, error: UInt32(gate.gateSelector & 0xFFFC))
        return false
    }
    guard let stack = innerStack(s, privilege) else { return false }
    let wasVirtual = s.isVirtual8086
    var values: [UInt64] = []
    if wasVirtual {
        for number in [SegmentRegister.gs, SegmentRegister.fs, SegmentRegister.ds, SegmentRegister.es] {
            values.append(UInt64(s.segment(number).pointee.selector))
        }
    }
    values += [
        UInt64(s.segment(SegmentRegister.ss).pointee.selector), s.register(4), pushedFlags(s, event),
        UInt64(s.segment(SegmentRegister.cs).pointee.selector), event.rip,
    ]
    if let error = event.error { values.append(UInt64(error)) }
    guard let pointer = pushSystemFrame(s, stack, values, size) else { return false }
    if wasVirtual {
        let null = martlet_segment(selector: 0, attributes: SegmentAttribute.unusable, limit: 0, base: 0)
        for number in [SegmentRegister.gs, SegmentRegister.fs, SegmentRegister.ds, SegmentRegister.es] {
            s.segment(number).pointee = null
        }
    }
    s.segment(SegmentRegister.ss).pointee = stack.segment
    enterGate(s, gate, code, privilege)
    setStackPointer(s, pointer)
    return true
}

/// Writes `values` below a new stack's pointer, first one highest. Returns the new pointer; nil: fault recorded.
func pushSystemFrame(
    _ s: State, _ stack: (segment: martlet_segment, pointer: UInt64), _ values: [UInt64], _ size: UInt8
) -> UInt64? {
    let mask: UInt64 = stack.segment.attributes & SegmentAttribute.big != 0 ? 0xFFFF_FFFF : 0xFFFF
    var pointer = stack.pointer & mask
    for value in values {
        pointer = (pointer &- UInt64(size)) & mask
        if pointer &+ UInt64(size) &- 1 > UInt64(stack.segment.limit),
            stack.segment.attributes & SegmentAttribute.expandDownOrConforming == 0
        {
            raise(s, .stack, error: UInt32(stack.segment.selector & 0xFFFC))
            return nil
        }
        let address = (stack.segment.base &+ pointer) & 0xFFFF_FFFF
        guard systemWrite(s, address, value, Int(size)) else { return nil }
        noteDataAccess(s, address, Int(size), AccessKind.write)
    }
    return pointer
}

// MARK: - IRET

let iretHandler: Handler = { s, i in
    let done: Bool
    if !s.isProtected {
        done = iretReal(s, i)
    } else if s.isVirtual8086 {
        if s.ioPrivilegeLevel < 3 {
            raise(s, .generalProtection, error: 0)
            done = false
        } else {
            done = iretReal(s, i)
        }
    } else {
        done = iretProtected(s, i)
    }
    guard done else { return stop(s, i) }
    s.pointee.nmi_blocked = 0
    // One that waited comes before the next instruction.
    return s.pointee.nmi_pending != 0 ? nil : continueAtRIP(s)
}

/// IRET loads RF, unlike POPF. It holds for one instruction and means nothing to one without breakpoints; nothing would
/// clear it then.
private func setReturnFlags(_ s: State, _ flags: UInt64, size: UInt8) {
    setFlagsByPrivilege(s, flags, size: size)
    if s.pointee.debug_armed != 0, size != 2 { s.pointee.rflags |= flags & RFlags.resume }
}

private func iretReal(_ s: State, _ i: Insn) -> Bool {
    let size = i.pointee.size
    guard let rip = peek(s, 0, size: size), let cs = peek(s, UInt64(size), size: size),
        let flags = peek(s, 2 &* UInt64(size), size: size)
    else { return false }
    setStackPointer(s, s.register(4) &+ 3 &* UInt64(size))
    var segment = s.segment(SegmentRegister.cs).pointee
    segment.selector = UInt16(truncatingIfNeeded: cs)
    segment.base = UInt64(segment.selector) << 4
    setCodeSegment(s, segment, cpl: s.pointee.cpl)
    s.pointee.rip = rip
    setReturnFlags(s, flags, size: size)
    return true
}

private func iretProtected(_ s: State, _ i: Insn) -> Bool {
    let size = i.pointee.size
    if s.isLongMode, s.pointee.rflags & RFlags.nestedTask != 0 {
        raise(s, .generalProtection, error: 0)
        return false
    }
    if s.pointee.rflags & RFlags.nestedTask != 0 {
        // A return through a task's back link: hardware task switching is not there (docs/quirks.md).
        raise(s, .invalidTSS, error: UInt32(s.pointee.tr.selector & 0xFFFC))
        return false
    }
    let step = UInt64(size)
    guard let rip = peek(s, 0, size: size), let csValue = peek(s, step, size: size),
        let flags = peek(s, 2 &* step, size: size)
    else { return false }
    if !s.isLongMode, size == 4, flags & RFlags.virtual8086 != 0, s.pointee.cpl == 0 {
        return iretToVirtual8086(s, rip, csValue, flags)
    }
    let selector = UInt16(truncatingIfNeeded: csValue)
    let requested = UInt8(selector & 3)
    guard let code = returnCodeSegment(s, selector) else { return false }
    let isOuter = requested > s.pointee.cpl
    guard isOuter || s.pointee.mode == CodeMode.bits64 else {
        guard checkReturnTarget(s, code, rip) else { return false }
        setStackPointer(s, s.register(4) &+ 3 &* step)
        setReturnFlags(s, flags, size: size)
        setCodeSegment(s, code.segment(selector), cpl: s.pointee.cpl)
        s.pointee.rip = rip
        return true
    }
    guard let newStack = peek(s, 3 &* step, size: size), let ssValue = peek(s, 4 &* step, size: size),
        let stackSegment = returnStackSegment(
            s, UInt16(truncatingIfNeeded: ssValue), privilege: requested, toLong: s.isLongMode && code.isLong),
        checkReturnTarget(s, code, rip)
    else { return false }
    setReturnFlags(s, flags, size: size)
    // The stack first: there is one change of segments, not one to what nobody runs with.
    s.segment(SegmentRegister.ss).pointee = stackSegment
    setCodeSegment(s, code.segment(selector), cpl: requested)
    s.pointee.rip = rip
    if size == 2, s.pointee.mode != CodeMode.bits64 {
        setStackPointer(s, newStack & 0xFFFF)
    } else {
        setStackPointer(s, newStack)
    }
    if isOuter { dropInnerSegments(s) }
    return true
}

private func checkReturnTarget(_ s: State, _ code: Descriptor, _ rip: UInt64) -> Bool {
    let isValid = s.isLongMode && code.isLong ? isCanonical(rip) : rip <= UInt64(code.limit)
    if !isValid { raise(s, .generalProtection, error: 0) }
    return isValid
}

/// The code segment that IRET or RET far returns to (SDM vol. 2, RET). Nil: fault recorded.
func returnCodeSegment(_ s: State, _ selector: UInt16) -> Descriptor? {
    let error = UInt32(selector & 0xFFFC)
    let requested = UInt8(selector & 3)
    guard error != 0 else {
        raise(s, .generalProtection, error: 0)
        return nil
    }
    guard let code = readDescriptor(s, selector, .generalProtection) else { return nil }
    let privilegeFits = code.isConforming ? code.privilege <= requested : code.privilege == requested
    guard code.isCode, requested >= s.pointee.cpl, privilegeFits,
        !(s.isLongMode && code.isLong && code.isBig)
    else {
        raise(s, .generalProtection, error: error)
        return nil
    }
    guard code.isPresent else {
        raise(s, .notPresent, error: error)
        return nil
    }
    return code
}

/// The stack segment that a far return loads. Nil: fault recorded.
func returnStackSegment(_ s: State, _ selector: UInt16, privilege: UInt8, toLong: Bool) -> martlet_segment? {
    let error = UInt32(selector & 0xFFFC)
    if error == 0 {
        guard toLong, privilege < 3 else {
            raise(s, .generalProtection, error: 0)
            return nil
        }
        return martlet_segment(
            selector: selector, attributes: SegmentAttribute.unusable | UInt16(privilege) << 5, limit: 0, base: 0)
    }
    guard let descriptor = readDescriptor(s, selector, .generalProtection) else { return nil }
    let isWritable = descriptor.isCodeOrData && !descriptor.isCode && descriptor.isReadableOrWritable
    guard UInt8(selector & 3) == privilege, descriptor.privilege == privilege, isWritable else {
        raise(s, .generalProtection, error: error)
        return nil
    }
    guard descriptor.isPresent else {
        raise(s, .stack, error: error)
        return nil
    }
    return descriptor.segment(selector)
}

/// A return to an outer privilege takes away data segments that it must not have (SDM vol. 2, RET).
func dropInnerSegments(_ s: State) {
    for number in [SegmentRegister.es, SegmentRegister.ds, SegmentRegister.fs, SegmentRegister.gs] {
        let segment = s.segment(number).pointee
        if segment.attributes & SegmentAttribute.unusable != 0 { continue }
        let isConformingCode = segment.attributes & 0x1C == 0x1C
        let privilege = UInt8((segment.attributes >> 5) & 3)
        if !isConformingCode, privilege < s.pointee.cpl {
            setSegment(
                s, number, martlet_segment(selector: 0, attributes: SegmentAttribute.unusable, limit: 0, base: 0))
        }
    }
}

private func iretToVirtual8086(_ s: State, _ rip: UInt64, _ cs: UInt64, _ flags: UInt64) -> Bool {
    var values: [UInt64] = []
    for slot in 3..<9 {
        guard let value = peek(s, UInt64(slot) * 4, size: 4) else { return false }
        values.append(value)
    }
    s.setFlags(flags & (RFlags.status | RFlags.system))
    if s.pointee.debug_armed == 0 { s.pointee.rflags &= ~RFlags.resume }
    s.pointee.cpl = 3
    let order = [SegmentRegister.ss, SegmentRegister.es, SegmentRegister.ds, SegmentRegister.fs, SegmentRegister.gs]
    for (index, number) in order.enumerated() {
        loadRealSegment(s, number, UInt16(truncatingIfNeeded: values[index + 1]))
    }
    let selector = UInt16(truncatingIfNeeded: cs)
    setCodeSegment(
        s, martlet_segment(selector: selector, attributes: 0xF3, limit: 0xFFFF, base: UInt64(selector) << 4), cpl: 3)
    s.setRegister(4, values[0] & 0xFFFF_FFFF)
    s.pointee.rip = rip & 0xFFFF
    return true
}
