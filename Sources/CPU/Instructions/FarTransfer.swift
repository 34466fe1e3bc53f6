internal import CHost

// Far jumps, calls and returns, software interrupts, SYSCALL and SYSENTER (SDM vol. 2; vol. 3A §5.8).

/// The far pointer of a direct or indirect far transfer. Nil: fault recorded.
private func farTarget(_ s: State, _ i: Insn) -> (selector: UInt16, offset: UInt64)? {
    if i.pointee.operation == Form.farPointer.rawValue {
        return (UInt16(truncatingIfNeeded: i.pointee.displacement), i.pointee.immediate)
    }
    let size = Int(i.pointee.size)
    guard let address = operandAddress(s, i, size + 2, AccessKind.read),
        let pointer = readPointer(s, address, size)
    else { return nil }
    let offset = loadSized(pointer, size)
    guard let selector = readPointer(s, linearSum(s, address, UInt64(size)), 2) else { return nil }
    return (UInt16(truncatingIfNeeded: loadSized(selector, 2)), offset)
}

private func loadRealCode(_ s: State, _ selector: UInt16) {
    var segment = s.segment(SegmentRegister.cs).pointee
    segment.selector = selector
    segment.base = UInt64(selector) << 4
    setCodeSegment(s, segment, cpl: s.pointee.cpl)
}

/// A direct code-segment target of a far jump or call (SDM vol. 3A §5.8.1). Nil: fault recorded.
private func directTarget(_ s: State, _ selector: UInt16, _ code: Descriptor, _ offset: UInt64) -> martlet_segment? {
    let error = UInt32(selector & 0xFFFC)
    let cpl = s.pointee.cpl
    let privilegeFits =
        code.isConforming ? code.privilege <= cpl : UInt8(selector & 3) <= cpl && code.privilege == cpl
    guard privilegeFits, !(s.isLongMode && code.isLong && code.isBig) else {
        raise(s, .generalProtection, error: error)
        return nil
    }
    guard code.isPresent else {
        raise(s, .notPresent, error: error)
        return nil
    }
    let isValid = s.isLongMode && code.isLong ? isCanonical(offset) : offset <= UInt64(code.limit)
    guard isValid else {
        raise(s, .generalProtection, error: 0)
        return nil
    }
    guard markAccessed(s, selector, code) else { return nil }
    return code.segment((selector & 0xFFFC) | UInt16(cpl))
}

let jumpFarHandler: Handler = { s, i in
    guard let target = farTarget(s, i) else { return stop(s, i) }
    if !s.isProtected || s.isVirtual8086 {
        loadRealCode(s, target.selector)
        s.pointee.rip = target.offset
        return continueAtRIP(s)
    }
    guard let descriptor = farDescriptor(s, target.selector) else { return stop(s, i) }
    if descriptor.isCode {
        guard let segment = directTarget(s, target.selector, descriptor, target.offset) else { return stop(s, i) }
        setCodeSegment(s, segment, cpl: s.pointee.cpl)
        s.pointee.rip = target.offset
        return continueAtRIP(s)
    }
    guard let gate = callGate(s, target.selector, descriptor) else { return stop(s, i) }
    let isAllowed = gate.code.isConforming || gate.code.privilege == s.pointee.cpl
    guard isAllowed else { return fault(s, i, .generalProtection, error: UInt32(gate.selector & 0xFFFC)) }
    setCodeSegment(s, gate.code.segment((gate.selector & 0xFFFC) | UInt16(s.pointee.cpl)), cpl: s.pointee.cpl)
    s.pointee.rip = gate.offset
    return continueAtRIP(s)
}

/// The descriptor of a far target; a null selector is #GP(0). Nil: fault recorded.
private func farDescriptor(_ s: State, _ selector: UInt16) -> Descriptor? {
    guard selector & 0xFFFC != 0 else {
        raise(s, .generalProtection, error: 0)
        return nil
    }
    return readSystemDescriptor(s, selector, .generalProtection)
}

private struct CallGate {
    var selector: UInt16
    var offset: UInt64
    var code: Descriptor
    var parameterCount: UInt8
    var size: UInt8
}

/// A call gate and its code segment (SDM vol. 3A §5.8.3). Nil: fault recorded. TSS descriptors and task gates, which
/// switch tasks, are refused with #GP (docs/quirks.md).
private func callGate(_ s: State, _ selector: UInt16, _ gate: Descriptor) -> CallGate? {
    let error = UInt32(selector & 0xFFFC)
    let isGate = !gate.isCodeOrData && (gate.type == 0xC || (gate.type == 4 && !s.isLongMode))
    guard isGate, gate.privilege >= s.pointee.cpl, gate.privilege >= UInt8(selector & 3) else {
        raise(s, .generalProtection, error: error)
        return nil
    }
    guard gate.isPresent else {
        raise(s, .notPresent, error: error)
        return nil
    }
    let target = gate.gateSelector
    guard target & 0xFFFC != 0 else {
        raise(s, .generalProtection, error: 0)
        return nil
    }
    guard let code = readDescriptor(s, target, .generalProtection) else { return nil }
    guard code.isCode, code.privilege <= s.pointee.cpl, !s.isLongMode || (code.isLong && !code.isBig) else {
        raise(s, .generalProtection, error: UInt32(target & 0xFFFC))
        return nil
    }
    guard code.isPresent else {
        raise(s, .notPresent, error: UInt32(target & 0xFFFC))
        return nil
    }
    return CallGate(
        selector: target, offset: s.isLongMode ? gate.gateOffset : gate.gateOffset & 0xFFFF_FFFF, code: code,
        parameterCount: gate.gateParameterCount, size: s.isLongMode ? 8 : (gate.type == 0xC ? 4 : 2))
}

let callFarHandler: Handler = { s, i in
    guard let target = farTarget(s, i) else { return stop(s, i) }
    let size = i.pointee.size
    let saved = s.register(4)
    let cs = UInt64(s.segment(SegmentRegister.cs).pointee.selector)
    let next = nextInstructionAddress(s, i)
    if !s.isProtected || s.isVirtual8086 {
        guard push(s, cs, size: size), push(s, next, size: size) else {
            s.setRegister(4, saved)
            return stop(s, i)
        }
        loadRealCode(s, target.selector)
        s.pointee.rip = target.offset
        return continueAtRIP(s)
    }
    guard let descriptor = farDescriptor(s, target.selector) else { return stop(s, i) }
    guard descriptor.isCode else {
        guard let gate = callGate(s, target.selector, descriptor), callThroughGate(s, gate, cs, next) else {
            return stop(s, i)
        }
        return continueAtRIP(s)
    }
    guard let segment = directTarget(s, target.selector, descriptor, target.offset) else { return stop(s, i) }
    guard push(s, cs, size: size), push(s, next, size: size) else {
        s.setRegister(4, saved)
        return stop(s, i)
    }
    setCodeSegment(s, segment, cpl: s.pointee.cpl)
    s.pointee.rip = target.offset
    return continueAtRIP(s)
}

private func callThroughGate(_ s: State, _ gate: CallGate, _ cs: UInt64, _ next: UInt64) -> Bool {
    let privilege = gate.code.isConforming ? s.pointee.cpl : gate.code.privilege
    let segment = gate.code.segment((gate.selector & 0xFFFC) | UInt16(privilege))
    if privilege == s.pointee.cpl {
        let saved = s.register(4)
        guard push(s, cs, size: gate.size), push(s, next, size: gate.size) else {
            s.setRegister(4, saved)
            return false
        }
        setCodeSegment(s, segment, cpl: privilege)
        s.pointee.rip = gate.offset
        return true
    }
    return s.isLongMode
        ? callInnerLong(s, gate, segment, privilege, cs, next) : callInner(s, gate, segment, privilege, cs, next)
}

private func callInnerLong(
    _ s: State, _ gate: CallGate, _ segment: martlet_segment, _ privilege: UInt8, _ cs: UInt64, _ next: UInt64
) -> Bool {
    guard let stack = taskStateQuad(s, 4 + UInt64(privilege) * 8) else { return false }
    let frame = [UInt64(s.segment(SegmentRegister.ss).pointee.selector), s.register(4), cs, next]
    for (index, value) in frame.enumerated() {
        guard systemWrite(s, stack &- UInt64(8 * (index + 1)), value, 8) else { return false }
    }
    noteDataAccess(s, stack &- 32, 32, AccessKind.write)
    s.segment(SegmentRegister.ss).pointee = martlet_segment(
        selector: UInt16(privilege), attributes: SegmentAttribute.unusable | UInt16(privilege) << 5, limit: 0, base: 0)
    s.setRegister(4, stack &- 32)
    setCodeSegment(s, segment, cpl: privilege)
    s.pointee.rip = gate.offset
    return true
}

private func callInner(
    _ s: State, _ gate: CallGate, _ segment: martlet_segment, _ privilege: UInt8, _ cs: UInt64, _ next: UInt64
) -> Bool {
    guard let stack = innerStack(s, privilege) else { return false }
    var values = [UInt64(s.segment(SegmentRegister.ss).pointee.selector), s.register(4)]
    for parameter in (0..<UInt64(gate.parameterCount)).reversed() {
        guard let value = peek(s, parameter * UInt64(gate.size), size: gate.size) else { return false }
        values.append(value)
    }
    values += [cs, next]
    guard let pointer = pushSystemFrame(s, stack, values, gate.size) else { return false }
    s.segment(SegmentRegister.ss).pointee = stack.segment
    setCodeSegment(s, segment, cpl: privilege)
    s.pointee.rip = gate.offset
    setStackPointer(s, pointer)
    return true
}

let retFarHandler: Handler = { s, i in
    let size = i.pointee.size
    let step = UInt64(size)
    guard let rip = peek(s, 0, size: size), let csValue = peek(s, step, size: size) else { return stop(s, i) }
    let extra = i.pointee.immediate
    let selector = UInt16(truncatingIfNeeded: csValue)
    if !s.isProtected || s.isVirtual8086 {
        setStackPointer(s, s.register(4) &+ 2 &* step &+ extra)
        loadRealCode(s, selector)
        s.pointee.rip = rip
        return continueAtRIP(s)
    }
    guard returnFar(s, selector, rip, size, extra) else { return stop(s, i) }
    return continueAtRIP(s)
}

private func returnFar(_ s: State, _ selector: UInt16, _ rip: UInt64, _ size: UInt8, _ extra: UInt64) -> Bool {
    guard let code = returnCodeSegment(s, selector) else { return false }
    let isValid = s.isLongMode && code.isLong ? isCanonical(rip) : rip <= UInt64(code.limit)
    guard isValid else {
        raise(s, .generalProtection, error: 0)
        return false
    }
    let step = UInt64(size)
    let requested = UInt8(selector & 3)
    if requested == s.pointee.cpl {
        setStackPointer(s, s.register(4) &+ 2 &* step &+ extra)
        setCodeSegment(s, code.segment(selector), cpl: requested)
        s.pointee.rip = rip
        return true
    }
    guard let newStack = peek(s, 2 &* step &+ extra, size: size),
        let ssValue = peek(s, 3 &* step &+ extra, size: size),
        let stackSegment = returnStackSegment(
            s, UInt16(truncatingIfNeeded: ssValue), privilege: requested, toLong: s.isLongMode && code.isLong)
    else { return false }
    s.segment(SegmentRegister.ss).pointee = stackSegment
    setCodeSegment(s, code.segment(selector), cpl: requested)
    s.pointee.rip = rip
    setStackPointer(s, newStack &+ extra)
    dropInnerSegments(s)
    return true
}

// MARK: - Software interrupts

private func softwareInterrupt(_ s: State, _ i: Insn, _ vector: UInt8) -> Insn? {
    if s.isVirtual8086, i.pointee.opcode == 0xCD, s.ioPrivilegeLevel < 3 { return fault(s, i, .generalProtection) }
    let event = Event(vector: vector, error: nil, isSoftware: true, rip: nextInstructionAddress(s, i))
    guard deliver(s, event) else { return stop(s, i) }
    return continueAtRIP(s)
}

let interruptHandler: Handler = { s, i in
    switch Mnemonic(rawValue: i.pointee.mnemonic) {
    case .int3: return softwareInterrupt(s, i, 3)
    case .int1: return debugInterrupt(s, i)
    case .into: return s.pointee.status & 1 != 0 ? softwareInterrupt(s, i, 4) : leaveBlock(s, i)
    default: return softwareInterrupt(s, i, UInt8(truncatingIfNeeded: i.pointee.immediate))
    }
}

/// INT1 is an event of the processor, whatever the gate's privilege (SDM vol. 2, INT1).
private func debugInterrupt(_ s: State, _ i: Insn) -> Insn? {
    s.pointee.rflags &= ~RFlags.resume
    let event = Event(vector: ExceptionVector.debug.rawValue, error: nil, rip: nextInstructionAddress(s, i))
    guard deliver(s, event) else { return stop(s, i) }
    allowDebugRegisters(s)
    return continueAtRIP(s)
}

let boundHandler: Handler = { s, i in
    let size = Int(i.pointee.size)
    guard let pointer = readOperand(s, i, size * 2) else { return stop(s, i) }
    func signed(_ value: UInt64) -> Int64 {
        size == 2 ? Int64(Int16(truncatingIfNeeded: value)) : Int64(Int32(truncatingIfNeeded: value))
    }
    let index = signed(readRegister(s, i.pointee.reg, size: i.pointee.size))
    let lower = signed(loadSized(pointer, size))
    let upper = signed(loadSized(pointer + size, size))
    return index < lower || index > upper ? fault(s, i, .bound) : i + 1
}

// MARK: - Fast system calls

private func flatSegment(_ selector: UInt16, _ attributes: UInt16) -> martlet_segment {
    martlet_segment(selector: selector, attributes: attributes, limit: .max, base: 0)
}

private let code64: UInt16 = 0xA09B
private let code32: UInt16 = 0xC09B
private let data32: UInt16 = 0xC093

let syscallHandler: Handler = { s, i in
    guard s.pointee.efer & Control.syscallEnable != 0, s.isLongMode, s.pointee.mode == CodeMode.bits64 else {
        return fault(s, i, .invalidOpcode)
    }
    let flags = s.flags
    s.setRegister(1, nextInstructionAddress(s, i))
    s.setRegister(11, flags & ~RFlags.resume)
    s.setFlags(flags & ~s.pointee.fmask & ~RFlags.resume)
    let selector = UInt16(truncatingIfNeeded: s.pointee.star >> 32) & 0xFFFC
    s.segment(SegmentRegister.ss).pointee = flatSegment(selector &+ 8, data32)
    setCodeSegment(s, flatSegment(selector, code64), cpl: 0)
    s.pointee.rip = s.pointee.lstar
    return continueAtRIP(s)
}

let sysretHandler: Handler = { s, i in
    guard s.pointee.efer & Control.syscallEnable != 0, s.isLongMode, s.pointee.mode == CodeMode.bits64 else {
        return fault(s, i, .invalidOpcode)
    }
    guard s.pointee.cpl == 0 else { return fault(s, i, .generalProtection) }
    let target = s.register(1)
    let base = UInt16(truncatingIfNeeded: s.pointee.star >> 48)
    let is64 = i.pointee.size == 8
    if is64, !isCanonical(target) { return fault(s, i, .generalProtection) }
    let flags = s.register(11) & (RFlags.status | RFlags.system) & ~(RFlags.resume | RFlags.virtual8086)
    s.setFlags(flags)
    s.segment(SegmentRegister.ss).pointee = flatSegment((base &+ 8) | 3, data32 | 0x60)
    let selector = (is64 ? base &+ 16 : base) | 3
    setCodeSegment(s, flatSegment(selector, (is64 ? code64 : code32) | 0x60), cpl: 3)
    s.pointee.rip = is64 ? target : target & 0xFFFF_FFFF
    if flags & RFlags.trap != 0 {
        // As if the SYSCALL of a single-stepped program had just completed.
        raiseDebug(s, DebugBits.singleStep)
        return nil
    }
    return continueAtRIP(s)
}

let sysenterHandler: Handler = { s, i in
    guard s.isProtected, s.pointee.sysenter_cs & 0xFFFC != 0 else { return fault(s, i, .generalProtection) }
    s.pointee.rflags &= ~(RFlags.virtual8086 | RFlags.interrupt | RFlags.resume)
    let selector = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs) & 0xFFFC
    s.segment(SegmentRegister.ss).pointee = flatSegment(selector &+ 8, data32)
    setCodeSegment(s, flatSegment(selector, s.isLongMode ? code64 : code32), cpl: 0)
    let mask: UInt64 = s.isLongMode ? .max : 0xFFFF_FFFF
    s.pointee.rip = s.pointee.sysenter_eip & mask
    s.setRegister(4, s.pointee.sysenter_esp & mask)
    return continueAtRIP(s)
}

let sysexitHandler: Handler = { s, i in
    guard s.isProtected, s.pointee.cpl == 0, s.pointee.sysenter_cs & 0xFFFC != 0 else {
        return fault(s, i, .generalProtection)
    }
    let is64 = i.pointee.size == 8
    let target = s.register(2)
    let stack = s.register(1)
    if is64, !isCanonical(target) || !isCanonical(stack) { return fault(s, i, .generalProtection) }
    let base = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs) & 0xFFFC
    let selector = (base &+ (is64 ? 32 : 16)) | 3
    s.segment(SegmentRegister.ss).pointee = flatSegment(selector &+ 8, data32 | 0x60)
    setCodeSegment(s, flatSegment(selector, (is64 ? code64 : code32) | 0x60), cpl: 3)
    s.pointee.rip = is64 ? target : target & 0xFFFF_FFFF
    s.setRegister(4, is64 ? stack : stack & 0xFFFF_FFFF)
    return continueAtRIP(s)
}
