internal import CHost

// Handlers of VEX and EVEX instructions with a memory operand, and of those without a stub.

@inline(__always) private func hasUnit(_ s: State, _ i: Insn) -> Bool {
    s.pointee.vector_units & i.wideOperand.unit != 0
}

/// #UD, or #NM by CR0.TS (SDM vol. 2 §2.4, exception types; CR0.EM has no say).
func wideUnavailable(_ s: State, _ i: Insn) -> Insn? {
    let needed =
        i.wideOperand.unit == UInt32(MARTLET_UNIT_AVX512)
        ? StateComponent.sse | StateComponent.avx | StateComponent.avx512 : StateComponent.sse | StateComponent.avx
    let isEnabled =
        s.pointee.vector_units & UInt32(MARTLET_UNIT_VEX) != 0 && i.wideOperand.unit != UInt32(MARTLET_UNIT_VEX)
        && s.pointee.cr4 & Control.extendedStateEnable != 0 && s.pointee.xcr0 & needed == needed
    return fault(s, i, isEnabled ? .deviceNotAvailable : .invalidOpcode)
}

@inline(__always) private func callStub(_ s: State, _ i: Insn, _ memory: UnsafeMutableRawPointer) -> Insn? {
    unsafeBitCast(i.pointee.link, to: VectorStub.self)(s, i, memory)
}

/// The operand's address, which must be aligned where the instruction says so, else #GP(0).
@inline(__always) private func alignedOperandAddress(_ s: State, _ i: Insn, _ size: Int, _ kind: UInt8) -> UInt64? {
    guard let address = operandAddress(s, i, size, kind) else { return nil }
    if address & UInt64(i.wideOperand.alignment &- 1) == 0 { return address }
    raise(s, .generalProtection, error: 0)
    return nil
}

// MARK: Whole operands

func wideLoad(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    guard let memory = readOperand(s, i, Int(i.pointee.size)) else { return stop(s, i) }
    return callStub(s, i, memory)
}

func wideAlignedLoad(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let address = alignedOperandAddress(s, i, size, AccessKind.read), let memory = readPointer(s, address, size)
    else { return stop(s, i) }
    return callStub(s, i, memory)
}

func wideStore(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    let next = callStub(s, i, memory)
    return commit(s, memory, size) ? next : stop(s, i)
}

func wideAlignedStore(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let address = alignedOperandAddress(s, i, size, AccessKind.write), let memory = writePointer(s, address, size)
    else { return stop(s, i) }
    let next = callStub(s, i, memory)
    return commit(s, memory, size) ? next : stop(s, i)
}

/// A store that can raise a SIMD exception (VCVTPS2PH): nothing is stored then.
func wideControlledStore(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = Int(i.pointee.size)
    let result = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    let mxcsr = s.mxcsr
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    guard let next = callStub(s, i, result) else { return nil }
    memory.copyMemory(from: result, byteCount: size)
    if commit(s, memory, size) { return next }
    s.mxcsr = mxcsr
    return stop(s, i)
}

// MARK: Masked operands

/// The elements of the memory operand that are accessed, as bits.
private func activeElements(_ s: State, _ i: Insn) -> UInt64 {
    let operand = i.wideOperand
    let mask = i.wide.mask
    if mask == 0 { return signBits(s.vectorRegister(Int(i.wide.v)), operand.element, operand.elements) }
    var bits = martlet_opmask(s)[Int(mask)]
    if operand.lanes < 64 { bits &= 1 << UInt64(operand.lanes) &- 1 }
    // Elements that are broadcast stand for several lanes each.
    var active = bits
    var shift = operand.elements
    while shift < operand.lanes {
        active |= bits >> UInt64(shift)
        shift += operand.elements
    }
    return operand.elements < 64 ? active & (1 << UInt64(operand.elements) &- 1) : active
}

/// The sign bits of a vector's elements.
private func signBits(_ vector: UnsafeRawPointer, _ element: Int, _ count: Int) -> UInt64 {
    var bits: UInt64 = 0
    for index in 0..<count where (vector + (index &* element &+ element &- 1)).load(as: UInt8.self) & 0x80 != 0 {
        bits |= 1 << UInt64(index)
    }
    return bits
}

/// The linear address of `size` bytes at `offset` inside the memory operand. Nil: fault recorded.
private func partAddress(_ s: State, _ i: Insn, at offset: UInt64, _ size: Int, _ kind: UInt8) -> UInt64? {
    if i.pointee.flags & InsnFlag.complexAddress == 0 { return simpleAddress(s, i) &+ offset }
    return segmentedAddress(
        s, segment: Int(i.pointee.segment), offset: complexOffset(s, i) &+ offset, size: size, kind: kind)
}

/// Where the whole operand is one page's plain memory: then a mask makes no difference that anyone could see.
@inline(__always) private func plainMemory(_ s: State, _ i: Insn, isWrite: Bool) -> UnsafeMutableRawPointer? {
    guard i.pointee.flags & InsnFlag.complexAddress == 0 else { return nil }
    let address = simpleAddress(s, i)
    let line = tlbLine(s, address)
    let tag = isWrite ? line.writeTag : line.readTag
    guard address &- tag <= pageSize &- UInt64(i.pointee.size),
        address & UInt64(i.wideOperand.alignment &- 1) == 0
    else { return nil }
    return hostPointer(line, address)
}

func wideMaskedLoad(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    if let memory = plainMemory(s, i, isWrite: false) { return callStub(s, i, memory) }
    return maskedLoadByElement(s, i)
}

@inline(never) private func maskedLoadByElement(_ s: State, _ i: Insn) -> Insn? {
    let operand = i.wideOperand
    let size = operand.element
    if operand.alignment > 1, alignedOperandAddress(s, i, Int(i.pointee.size), AccessKind.read) == nil {
        return stop(s, i)
    }
    let copy = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    copy.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    var active = activeElements(s, i)
    while active != 0 {
        let offset = active.trailingZeroBitCount &* size
        active &= active &- 1
        guard let address = partAddress(s, i, at: UInt64(offset), size, AccessKind.read),
            let memory = readPointer(s, address, size)
        else { return stop(s, i) }
        (copy + offset).copyMemory(from: memory, byteCount: size)
    }
    return callStub(s, i, copy)
}

func wideMaskedStore(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    // An exception of VCVTPS2PH must find the memory as it was.
    if s.mxcsr & FXImage.mxcsrMasks == FXImage.mxcsrMasks, let memory = plainMemory(s, i, isWrite: true) {
        return callStub(s, i, memory)
    }
    return maskedStoreByElement(s, i)
}

@inline(never) private func maskedStoreByElement(_ s: State, _ i: Insn) -> Insn? {
    let operand = i.wideOperand
    if operand.alignment > 1, alignedOperandAddress(s, i, Int(i.pointee.size), AccessKind.write) == nil {
        return stop(s, i)
    }
    let active = activeElements(s, i)
    let checked = operand.isUnsuppressed ? UInt64.max >> UInt64(64 &- operand.elements) : active
    guard canWrite(s, i, checked) else { return stop(s, i) }
    let result = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    let mxcsr = s.mxcsr
    guard let next = callStub(s, i, result) else { return nil }
    guard storeElements(s, i, active, result) else {
        s.mxcsr = mxcsr
        return stop(s, i)
    }
    return next
}

/// Checks all of the elements before any of them is stored.
private func canWrite(_ s: State, _ i: Insn, _ elements: UInt64) -> Bool {
    let size = i.wideOperand.element
    var rest = elements
    while rest != 0 {
        let offset = UInt64(rest.trailingZeroBitCount &* size)
        rest &= rest &- 1
        guard let address = partAddress(s, i, at: offset, size, AccessKind.write) else { return false }
        let last = linearSum(s, address, UInt64(size &- 1))
        if s.pointee.mode == CodeMode.bits64, !isCanonical(address) || !isCanonical(last) {
            raise(s, .generalProtection, error: 0)
            return false
        }
        guard resolveData(s, address, AccessKind.write) != nil, resolveData(s, last, AccessKind.write) != nil else {
            return false
        }
    }
    return true
}

private func storeElements(_ s: State, _ i: Insn, _ elements: UInt64, _ source: UnsafeRawPointer) -> Bool {
    let size = i.wideOperand.element
    var rest = elements
    while rest != 0 {
        let offset = rest.trailingZeroBitCount &* size
        rest &= rest &- 1
        guard let address = partAddress(s, i, at: UInt64(offset), size, AccessKind.write),
            let memory = writePointer(s, address, size)
        else { return false }
        memory.copyMemory(from: source + offset, byteCount: size)
        guard commit(s, memory, size) else { return false }
    }
    return true
}

// MARK: As many elements as the mask has ones

/// VPEXPAND and its like from memory.
func wideExpandingLoad(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let copy = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    copy.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    let size = activeElements(s, i).nonzeroBitCount &* i.wideOperand.element
    if size > 0 {
        guard let memory = readOperand(s, i, size) else { return stop(s, i) }
        copy.copyMemory(from: memory, byteCount: size)
    }
    return callStub(s, i, copy)
}

/// VPCOMPRESS and its like to memory.
func wideCompressingStore(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = activeElements(s, i).nonzeroBitCount &* i.wideOperand.element
    if size == 0 { return i + 1 }
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    let result = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    guard let next = callStub(s, i, result) else { return nil }
    memory.copyMemory(from: result, byteCount: size)
    return commit(s, memory, size) ? next : stop(s, i)
}

// MARK: Gathering and scattering

/// The address of element `number` of a VSIB operand: base plus displacement plus the scaled index (SDM vol. 2 §2.3.12).
private func elementAddress(_ s: State, _ i: Insn, _ number: Int, _ kind: UInt8) -> UInt64? {
    let operand = i.wideOperand
    let indexes = s.vectorRegister(Int(i.vectorIndexNumber))
    let index =
        operand.hasQuadIndex
        ? indexes.load(fromByteOffset: number &* 8, as: Int64.self)
        : Int64(indexes.load(fromByteOffset: number &* 4, as: Int32.self))
    let scaled = UInt64(bitPattern: index) &<< UInt64(i.pointee.scale)
    if i.pointee.flags & InsnFlag.complexAddress == 0 { return simpleAddress(s, i) &+ scaled }
    let offset = maskAddress(simpleAddress(s, i) &+ scaled, i.pointee.address_size)
    return segmentedAddress(s, segment: Int(i.pointee.segment), offset: offset, size: operand.element, kind: kind)
}

private func gatherMask(_ s: State, _ i: Insn) -> UInt64 {
    let operand = i.wideOperand
    if i.wide.encoding == .vex { return signBits(s.vectorRegister(Int(i.wide.v)), operand.element, operand.lanes) }
    return martlet_opmask(s)[Int(i.wide.mask)] & (1 << UInt64(operand.lanes) &- 1)
}

/// VGATHER, VPGATHER. Elements go from the lowest to the highest; a fault leaves those before it loaded and their mask
/// bits clear, so that the restarted instruction goes on behind them.
func wideGather(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let operand = i.wideOperand
    let size = operand.element
    let target = s.vectorRegister(Int(i.wideRegNumber))
    let loaded = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    loaded.copyMemory(from: target, byteCount: 64)
    var rest = gatherMask(s, i)
    while rest != 0 {
        let number = rest.trailingZeroBitCount
        guard let address = elementAddress(s, i, number, AccessKind.read), let memory = readPointer(s, address, size)
        else {
            // User space answers a device's read for the instruction as a whole: it begins anew then.
            if s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION) {
                target.copyMemory(from: loaded, byteCount: 64)
                keepMask(s, i, rest)
            }
            return stop(s, i)
        }
        (loaded + number &* size).copyMemory(from: memory, byteCount: size)
        rest &= rest &- 1
    }
    let count = operand.lanes &* size
    (loaded + count).initializeMemory(as: UInt8.self, repeating: 0, count: 64 &- count)
    target.copyMemory(from: loaded, byteCount: 64)
    keepMask(s, i, 0)
    return i + 1
}

/// Leaves only the mask bits `rest`.
private func keepMask(_ s: State, _ i: Insn, _ rest: UInt64) {
    if i.wide.encoding == .evex {
        martlet_opmask(s)[Int(i.wide.mask)] = rest
        return
    }
    let operand = i.wideOperand
    let mask = s.vectorRegister(Int(i.wide.v))
    for number in 0..<operand.lanes where rest >> UInt64(number) & 1 == 0 {
        (mask + number &* operand.element).initializeMemory(as: UInt8.self, repeating: 0, count: operand.element)
    }
    if rest == 0 { mask.initializeMemory(as: UInt8.self, repeating: 0, count: 64) }
}

/// VSCATTER, VPSCATTER, likewise.
func wideScatter(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    let size = i.wideOperand.element
    let source = s.vectorRegister(Int(i.wideRegNumber))
    var rest = gatherMask(s, i)
    while rest != 0 {
        let number = rest.trailingZeroBitCount
        guard let address = elementAddress(s, i, number, AccessKind.write),
            let memory = writePointer(s, address, size), store(s, memory, source + number &* size, size)
        else {
            if s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION) { keepMask(s, i, rest) }
            return stop(s, i)
        }
        rest &= rest &- 1
    }
    keepMask(s, i, 0)
    return i + 1
}

private func store(_ s: State, _ memory: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ size: Int) -> Bool {
    memory.copyMemory(from: source, byteCount: size)
    return commit(s, memory, size)
}

// MARK: Without a stub

private func clear(_ s: State, from offset: Int) {
    let count = s.pointee.mode == CodeMode.bits64 ? 16 : 8
    for number in 0..<count {
        (s.vectorRegister(number) + offset).initializeMemory(
            as: UInt8.self, repeating: 0, count: VectorFile.stride &- offset)
    }
}

func vzeroupper(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    clear(s, from: 16)
    return i + 1
}

func vzeroall(_ s: State, _ i: Insn) -> Insn? {
    guard hasUnit(s, i) else { return wideUnavailable(s, i) }
    clear(s, from: 0)
    return i + 1
}

func wideLoadMXCSR(_ s: State, _ i: Insn) -> Insn? { hasUnit(s, i) ? loadMXCSR(s, i) : wideUnavailable(s, i) }

func wideStoreMXCSR(_ s: State, _ i: Insn) -> Insn? { hasUnit(s, i) ? storeMXCSR(s, i) : wideUnavailable(s, i) }

/// VMASKMOVDQU.
func wideMaskedMove(_ s: State, _ i: Insn) -> Insn? { hasUnit(s, i) ? maskedMove(s, i) : wideUnavailable(s, i) }
