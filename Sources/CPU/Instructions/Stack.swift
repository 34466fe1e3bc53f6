internal import CHost

// PUSH and POP in all their forms, ENTER, LEAVE, PUSHF, POPF (SDM vol. 2; stack addressing vol. 1 §6.2).

let rspOffset: UInt8 = 4 * 8
let rbpOffset: UInt8 = 5 * 8

/// Width of the stack pointer in bytes: 8 in 64-bit mode, else by SS.B.
@inline(__always) func stackAddressSize(_ s: State) -> UInt8 {
    if s.pointee.mode == CodeMode.bits64 { return 8 }
    return s.segment(SegmentRegister.ss).pointee.attributes & SegmentAttribute.big != 0 ? 4 : 2
}

/// Sets the stack pointer's low part, as wide as the stack is.
@inline(__always) func setStackPointer(_ s: State, _ value: UInt64) {
    switch stackAddressSize(s) {
    case 8: s.setRegister(4, value)
    case 4: s.setRegister(4, value & 0xFFFF_FFFF)
    default: s.setRegister(4, (s.register(4) & ~0xFFFF) | (value & 0xFFFF))
    }
}

/// A stack slot `offset` bytes above the stack pointer, as a linear address. Nil: #SS recorded.
@inline(__always) func stackAddress(_ s: State, _ offset: UInt64, _ size: Int, _ kind: UInt8) -> UInt64? {
    if s.pointee.mode == CodeMode.bits64 {
        let address = s.register(4) &+ offset
        if isCanonical(address) { return address }
        raise(s, .stack, error: 0)
        return nil
    }
    return segmentedAddress(
        s, segment: SegmentRegister.ss, offset: maskAddress(s.register(4) &+ offset, stackAddressSize(s)), size: size,
        kind: kind)
}

/// Pushes an operand of `size` bytes. False: fault recorded, nothing changed.
func push(_ s: State, _ value: UInt64, size: UInt8) -> Bool {
    let offset = 0 &- UInt64(size)
    guard let address = stackAddress(s, offset, Int(size), AccessKind.write),
        let pointer = writePointer(s, address, Int(size))
    else { return false }
    storeSized(pointer, value, Int(size))
    guard commit(s, pointer, Int(size)) else { return false }
    setStackPointer(s, s.register(4) &+ offset)
    return true
}

/// Reads a stack slot without moving the stack pointer. Nil: fault recorded.
func peek(_ s: State, _ offset: UInt64, size: UInt8) -> UInt64? {
    guard let address = stackAddress(s, offset, Int(size), AccessKind.read),
        let pointer = readPointer(s, address, Int(size))
    else { return nil }
    return loadSized(pointer, Int(size))
}

@inline(__always) private func push64(_ s: State, _ i: Insn, _ value: UInt64) -> Insn? {
    let address = s.register(4) &- 8
    guard let pointer = writePointer(s, address, 8) else { return stopOnStack(s, i) }
    pointer.storeBytes(of: value, as: UInt64.self)
    guard commit(s, pointer, 8) else { return stop(s, i) }
    s.setRegister(4, address)
    return i + 1
}

/// A non-canonical stack address is #SS, not #GP (SDM vol. 3A §6.15, interrupt 12).
@inline(never) func stopOnStack(_ s: State, _ i: Insn) -> Insn? {
    if s.pointee.exception_vector == UInt32(ExceptionVector.generalProtection.rawValue),
        s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION)
    {
        raise(s, .stack, error: 0)
    }
    return stop(s, i)
}

let pushRegister64Handler: Handler = { s, i in push64(s, i, readRegister(s, i.pointee.rm, UInt64.self)) }
let pushImmediate64Handler: Handler = { s, i in push64(s, i, i.pointee.immediate) }

let popRegister64Handler: Handler = { s, i in
    let address = s.register(4)
    guard let pointer = readPointer(s, address, 8) else { return stopOnStack(s, i) }
    let value = pointer.loadUnaligned(as: UInt64.self)
    s.setRegister(4, address &+ 8)
    writeRegister(s, i.pointee.rm, value)
    return i + 1
}

let pushHandler: Handler = { s, i in
    guard let value = readRM(s, i, size: i.pointee.size), push(s, value, size: i.pointee.size) else {
        return stop(s, i)
    }
    return i + 1
}

let pushImmediateHandler: Handler = { s, i in
    push(s, i.pointee.immediate, size: i.pointee.size) ? i + 1 : stop(s, i)
}

/// POP to memory computes its address with the stack pointer already moved (SDM vol. 2, POP).
let popHandler: Handler = { s, i in
    let size = i.pointee.size
    guard let value = peek(s, 0, size: size) else { return stop(s, i) }
    let old = s.register(4)
    setStackPointer(s, old &+ UInt64(size))
    if !writeRM(s, i, value, size: size) {
        s.setRegister(4, old)
        return stop(s, i)
    }
    return i + 1
}

let pushSegmentHandler: Handler = { s, i in
    let selector = UInt64(s.segment(segmentNumber(i)).pointee.selector)
    let size = i.pointee.size
    // A 32-bit push of a selector writes two bytes only and leaves the upper half of the slot.
    guard let address = stackAddress(s, 0 &- UInt64(size), Int(size), AccessKind.write),
        let pointer = writePointer(s, address, size == 8 ? 8 : 2)
    else { return stop(s, i) }
    storeSized(pointer, selector, size == 8 ? 8 : 2)
    guard commit(s, pointer, size == 8 ? 8 : 2) else { return stop(s, i) }
    setStackPointer(s, s.register(4) &- UInt64(size))
    return i + 1
}

let popSegmentHandler: Handler = { s, i in
    let number = segmentNumber(i)
    guard let value = peek(s, 0, size: i.pointee.size == 2 ? 2 : (i.pointee.size == 4 ? 4 : 8)),
        loadSegment(s, number, UInt16(truncatingIfNeeded: value))
    else { return stop(s, i) }
    setStackPointer(s, s.register(4) &+ UInt64(i.pointee.size))
    if number == SegmentRegister.ss { s.pointee.interrupt_shadow = 1 }
    return leaveBlock(s, i)
}

/// The segment register that the opcode names: bits 3–5 of one byte (06, 0E, 16, 1E), or of 0F A0 and A8.
private func segmentNumber(_ i: Insn) -> Int { Int((i.pointee.opcode >> 3) & 7) }

let pushaHandler: Handler = { s, i in
    let size = i.pointee.size
    let original = s.register(4)
    for number in 0..<8 {
        let value = number == 4 ? original : s.register(number)
        guard push(s, value, size: size) else {
            s.setRegister(4, original)
            return stop(s, i)
        }
    }
    return i + 1
}

let popaHandler: Handler = { s, i in
    let size = i.pointee.size
    var values = (UInt64(0), UInt64(0), UInt64(0), UInt64(0), UInt64(0), UInt64(0), UInt64(0), UInt64(0))
    let done = withUnsafeMutableBytes(of: &values) { bytes -> Bool in
        for slot in 0..<8 {
            guard let value = peek(s, UInt64(slot) &* UInt64(size), size: size) else { return false }
            bytes.storeBytes(of: value, toByteOffset: (7 - slot) * 8, as: UInt64.self)
        }
        for number in 0..<8 where number != 4 {
            writeRegister(s, UInt8(number * 8), bytes.load(fromByteOffset: number * 8, as: UInt64.self), size: size)
        }
        return true
    }
    guard done else { return stop(s, i) }
    setStackPointer(s, s.register(4) &+ 8 &* UInt64(size))
    return i + 1
}

let leaveHandler: Handler = { s, i in
    let old = s.register(4)
    setStackPointer(s, s.register(5))
    guard let value = peek(s, 0, size: i.pointee.size) else {
        s.setRegister(4, old)
        return stop(s, i)
    }
    setStackPointer(s, s.register(4) &+ UInt64(i.pointee.size))
    writeRegister(s, rbpOffset, value, size: i.pointee.size)
    return i + 1
}

let enterHandler: Handler = { s, i in
    let size = i.pointee.size
    let level = Int(i.pointee.displacement & 31)
    let original = s.register(4)
    guard push(s, s.register(5), size: size) else { return stop(s, i) }
    let frame = s.register(4)
    if level > 0, !enterLevels(s, level: level, size: size, frame: frame) {
        s.setRegister(4, original)
        return stop(s, i)
    }
    setStackPointer(s, s.register(4) &- i.pointee.immediate)
    writeRegister(s, rbpOffset, frame, size: size == 2 ? 2 : stackAddressSize(s) == 2 ? 2 : size)
    return i + 1
}

/// Copies the display of ENTER with a nesting level (SDM vol. 2, ENTER).
private func enterLevels(_ s: State, level: Int, size: UInt8, frame: UInt64) -> Bool {
    let original = s.register(5)
    for step in 1..<max(1, level) {
        let offset = original &- UInt64(step) &* UInt64(size)
        let address = segmentedAddress(
            s, segment: SegmentRegister.ss, offset: maskAddress(offset, stackAddressSize(s)), size: Int(size),
            kind: AccessKind.read)
        guard let address, let pointer = readPointer(s, address, Int(size)) else { return false }
        guard push(s, loadSized(pointer, Int(size)), size: size) else { return false }
    }
    return push(s, frame, size: size)
}

let pushfHandler: Handler = { s, i in
    if s.isVirtual8086, s.ioPrivilegeLevel < 3 { return fault(s, i, .generalProtection) }
    // VM and RF read as 0 on the stack.
    let value = s.flags & ~(RFlags.virtual8086 | RFlags.resume)
    return push(s, value, size: i.pointee.size) ? i + 1 : stop(s, i)
}

let popfHandler: Handler = { s, i in
    if s.isVirtual8086, s.ioPrivilegeLevel < 3 { return fault(s, i, .generalProtection) }
    guard let value = peek(s, 0, size: i.pointee.size) else { return stop(s, i) }
    setStackPointer(s, s.register(4) &+ UInt64(i.pointee.size))
    setFlagsByPrivilege(s, value, size: i.pointee.size)
    return goOn(s, i)
}

/// What POPF and IRET may change at this privilege (SDM vol. 2, POPF, table 4-16); RF is cleared.
func setFlagsByPrivilege(_ s: State, _ value: UInt64, size: UInt8) {
    var writable =
        RFlags.status | RFlags.trap | RFlags.direction | RFlags.nestedTask
    if size != 2 { writable |= RFlags.alignmentCheck | RFlags.identification }
    if s.pointee.cpl == 0 { writable |= RFlags.ioPrivilege }
    if s.pointee.cpl <= s.ioPrivilegeLevel { writable |= RFlags.interrupt }
    let old = s.flags
    s.setFlags((value & writable) | (old & ~writable & ~RFlags.resume))
    if (old ^ value) & RFlags.alignmentCheck != 0 { updateContext(s) }
}
