internal import CHost

// Single-operand arithmetic, shifts, multiplication, division, bit scans and tests, CMPXCHG, XADD, decimal adjustment.

/// Reads rm, changes it, writes it back; flags only when the write succeeded.
@inline(__always) private func modify<T: OperandWidth>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: (T, UnsafeMutablePointer<UInt16>) -> T
) -> Insn? {
    if i.pointee.flags & InsnFlag.memory == 0 {
        writeRegister(s, i.pointee.rm, operation(readRegister(s, i.pointee.rm, T.self), s.statusPointer))
        return i + 1
    }
    let size = MemoryLayout<T>.size
    guard let pointer = readWriteOperand(s, i, size) else { return stop(s, i) }
    var status = s.pointee.status
    pointer.storeBytes(of: operation(pointer.loadUnaligned(as: T.self), &status), as: T.self)
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    return i + 1
}

@inline(__always) private func unary<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    switch Mnemonic(rawValue: i.pointee.mnemonic) {
    case .inc: modify(s, i, T.self) { T.inc($0, $1) }
    case .dec: modify(s, i, T.self) { T.dec($0, $1) }
    case .neg: modify(s, i, T.self) { T.neg($0, $1) }
    default: modify(s, i, T.self) { value, _ in ~value }
    }
}

func unaryHandler(_ size: UInt8) -> Handler {
    switch size {
    case 1: { unary($0, $1, UInt8.self) }
    case 2: { unary($0, $1, UInt16.self) }
    case 4: { unary($0, $1, UInt32.self) }
    default: { unary($0, $1, UInt64.self) }
    }
}

@inline(__always) private func shift<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let byCL = i.pointee.operation == Form.eCL.rawValue
    let count = byCL ? readRegister(s, 8, UInt8.self) : UInt8(truncatingIfNeeded: i.pointee.immediate)
    switch (i.pointee.modrm >> 3) & 7 {
    case 0: return modify(s, i, T.self) { T.rol($0, count, $1) }
    case 1: return modify(s, i, T.self) { T.ror($0, count, $1) }
    case 2: return modify(s, i, T.self) { T.rcl($0, count, $1) }
    case 3: return modify(s, i, T.self) { T.rcr($0, count, $1) }
    case 5: return modify(s, i, T.self) { T.shr($0, count, $1) }
    case 7: return modify(s, i, T.self) { T.sar($0, count, $1) }
    default: return modify(s, i, T.self) { T.shl($0, count, $1) }
    }
}

func shiftHandler(_ size: UInt8) -> Handler {
    switch size {
    case 1: { shift($0, $1, UInt8.self) }
    case 2: { shift($0, $1, UInt16.self) }
    case 4: { shift($0, $1, UInt32.self) }
    default: { shift($0, $1, UInt64.self) }
    }
}

@inline(__always) private func doubleShift<T: WideOperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let byCL = i.pointee.operation == Form.egCL.rawValue
    let count = byCL ? readRegister(s, 8, UInt8.self) : UInt8(truncatingIfNeeded: i.pointee.immediate)
    let source = readRegister(s, i.pointee.reg, T.self)
    if i.pointee.opcode < 0xA8 { return modify(s, i, T.self) { T.shld($0, source, count, $1) } }
    return modify(s, i, T.self) { T.shrd($0, source, count, $1) }
}

let doubleShiftHandler: Handler = { s, i in
    switch i.pointee.size {
    case 2: doubleShift(s, i, UInt16.self)
    case 4: doubleShift(s, i, UInt32.self)
    default: doubleShift(s, i, UInt64.self)
    }
}

// MARK: - Scans, counts, multiplication into a register

@inline(__always) private func scan<T: WideOperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    guard let wide = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
    let source = T(truncatingIfNeeded: wide)
    let old = readRegister(s, i.pointee.reg, T.self)
    let status = s.statusPointer
    let result: T
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic)
    switch mnemonic {
    case .tzcnt: result = T(truncatingIfNeeded: alu_tzcnt(wide, i.pointee.size, status))
    case .lzcnt: result = T(truncatingIfNeeded: alu_lzcnt(wide, i.pointee.size, status))
    case .bsf: result = T.bsf(old, source, status)
    case .bsr: result = T.bsr(old, source, status)
    case .imul2: result = T.imul(old, source, status)
    case .imul3: result = T.imul(source, immediate(i, T.self), status)
    default:
        result = T(truncatingIfNeeded: source.nonzeroBitCount)
        status.pointee = source == 0 ? 0x4000 : 0
    }
    // A scan of zero leaves a 32-bit destination alone, upper half included, as processors do.
    if source == 0, mnemonic == .bsf || mnemonic == .bsr { return i + 1 }
    writeRegister(s, i.pointee.reg, result)
    return i + 1
}

let scanHandler: Handler = { s, i in
    switch i.pointee.size {
    case 2: scan(s, i, UInt16.self)
    case 4: scan(s, i, UInt32.self)
    default: scan(s, i, UInt64.self)
    }
}

let crc32Handler: Handler = { s, i in
    let size: UInt8 = i.pointee.opcode == 0xF0 ? 1 : i.pointee.size
    guard let value = readRM(s, i, size: size) else { return stop(s, i) }
    let crc = alu_crc32(readRegister(s, i.pointee.reg, UInt64.self) & 0xFFFF_FFFF, value, size)
    writeRegister(s, i.pointee.reg, UInt64(crc & 0xFFFF_FFFF))
    return i + 1
}

/// ADCX and ADOX: an addition whose carry is CF or OF alone.
let carryHandler: Handler = { s, i in
    let size = i.pointee.size
    guard let source = readRM(s, i, size: size) else { return stop(s, i) }
    let isOverflow: UInt8 = i.pointee.mnemonic == Mnemonic.adox.rawValue ? 1 : 0
    let sum = alu_add_carry(readRegister(s, i.pointee.reg, size: size), source, size, isOverflow, s.statusPointer)
    writeRegister(s, i.pointee.reg, sum, size: size)
    return i + 1
}

// MARK: - Bit tests

/// BT with a register bit index reaches beyond the operand: the index is signed and addresses memory (SDM vol. 2, BT).
let bitTestHandler: Handler = { s, i in
    switch i.pointee.size {
    case 2: bitTest(s, i, UInt16.self)
    case 4: bitTest(s, i, UInt32.self)
    default: bitTest(s, i, UInt64.self)
    }
}

@inline(__always) private func applyBit<T: WideOperandWidth>(
    _ mnemonic: Mnemonic?, _ value: T, _ index: T, _ status: UnsafeMutablePointer<UInt16>
) -> T {
    switch mnemonic {
    case .bts: T.bts(value, index, status)
    case .btr: T.btr(value, index, status)
    case .btc: T.btc(value, index, status)
    default: T.bt(value, index, status)
    }
}

@inline(__always) private func bitTest<T: WideOperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic)
    let fromRegister = i.pointee.operation == Form.eg.rawValue
    let index = fromRegister ? readRegister(s, i.pointee.reg, T.self) : immediate(i, T.self)
    if i.pointee.flags & InsnFlag.memory == 0 {
        let result = applyBit(mnemonic, readRegister(s, i.pointee.rm, T.self), index, s.statusPointer)
        if mnemonic != .bt { writeRegister(s, i.pointee.rm, result) }
        return i + 1
    }
    var displacement: UInt64 = 0
    if fromRegister {
        let signed = (Int64(truncatingIfNeeded: index) << Int64(64 - T.bitWidth)) >> Int64(64 - T.bitWidth)
        let shift: Int64 = T.bitWidth == 16 ? 4 : (T.bitWidth == 32 ? 5 : 6)
        displacement = UInt64(bitPattern: (signed >> shift) &* Int64(T.bitWidth / 8))
    }
    return bitTestMemory(s, i, mnemonic, index & T(T.bitWidth - 1), displacement)
}

@inline(__always) private func bitTestMemory<T: WideOperandWidth>(
    _ s: State, _ i: Insn, _ mnemonic: Mnemonic?, _ index: T, _ displacement: UInt64
) -> Insn? {
    let size = MemoryLayout<T>.size
    let isComplex = i.pointee.flags & InsnFlag.complexAddress != 0
    let offset = (isComplex ? complexOffset(s, i) : simpleAddress(s, i)) &+ displacement
    let kind = mnemonic == .bt ? AccessKind.read : AccessKind.readWrite
    let address =
        !isComplex
        ? offset
        : segmentedAddress(
            s, segment: Int(i.pointee.segment), offset: maskAddress(offset, i.pointee.address_size), size: size,
            kind: kind)
    guard let address else { return stop(s, i) }
    if mnemonic == .bt {
        guard let pointer = readPointer(s, address, size) else { return stop(s, i) }
        _ = T.bt(pointer.loadUnaligned(as: T.self), index, s.statusPointer)
        return i + 1
    }
    guard let pointer = readWritePointer(s, address, size) else { return stop(s, i) }
    var status = s.pointee.status
    if i.pointee.flags & InsnFlag.lock != 0 {
        lockedBit(pointer, mnemonic, index, &status)
    } else {
        pointer.storeBytes(of: applyBit(mnemonic, pointer.loadUnaligned(as: T.self), index, &status), as: T.self)
    }
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    return i + 1
}

/// A locked bit operation as a compare-exchange loop on the operand.
@inline(__always) private func lockedBit<T: WideOperandWidth>(
    _ pointer: UnsafeMutableRawPointer, _ mnemonic: Mnemonic?, _ index: T, _ status: UnsafeMutablePointer<UInt16>
) {
    while true {
        let old = pointer.loadUnaligned(as: T.self)
        var flags = status.pointee
        let new = applyBit(mnemonic, old, index, &flags)
        var ignored: UInt16 = 0
        if T.lockedCmpxchg(pointer, old, new, &ignored) == old {
            status.pointee = flags
            return
        }
    }
}

// MARK: - CMPXCHG, XADD

@inline(__always) private func cmpxchg<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let size = MemoryLayout<T>.size
    let accumulator = readRegister(s, 0, T.self)
    let source = readRegister(s, i.pointee.reg, T.self)
    if i.pointee.flags & InsnFlag.memory == 0 {
        let old = readRegister(s, i.pointee.rm, T.self)
        _ = T.cmp(accumulator, old, s.statusPointer)
        if old == accumulator {
            writeRegister(s, i.pointee.rm, source)
        } else {
            writeRegister(s, 0, old)
        }
        return i + 1
    }
    guard let pointer = readWriteOperand(s, i, size) else { return stop(s, i) }
    var status = s.pointee.status
    let old = T.lockedCmpxchg(pointer, accumulator, source, &status)
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    if old != accumulator { writeRegister(s, 0, old) }
    return i + 1
}

let cmpxchgHandler: Handler = { s, i in
    switch i.pointee.size {
    case 1: cmpxchg(s, i, UInt8.self)
    case 2: cmpxchg(s, i, UInt16.self)
    case 4: cmpxchg(s, i, UInt32.self)
    default: cmpxchg(s, i, UInt64.self)
    }
}

@inline(__always) private func xadd<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let size = MemoryLayout<T>.size
    let source = readRegister(s, i.pointee.reg, T.self)
    if i.pointee.flags & InsnFlag.memory == 0 {
        let old = readRegister(s, i.pointee.rm, T.self)
        let sum = T.add(old, source, s.statusPointer)
        writeRegister(s, i.pointee.reg, old)
        writeRegister(s, i.pointee.rm, sum)
        return i + 1
    }
    guard let pointer = readWriteOperand(s, i, size) else { return stop(s, i) }
    var status = s.pointee.status
    let old = T.lockedXadd(pointer, source, &status)
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    writeRegister(s, i.pointee.reg, old)
    return i + 1
}

let xaddHandler: Handler = { s, i in
    switch i.pointee.size {
    case 1: xadd(s, i, UInt8.self)
    case 2: xadd(s, i, UInt16.self)
    case 4: xadd(s, i, UInt32.self)
    default: xadd(s, i, UInt64.self)
    }
}

let cmpxchg8bHandler: Handler = { s, i in
    i.pointee.size == 8 ? cmpxchg16(s, i) : cmpxchg8(s, i)
}

private func cmpxchg8(_ s: State, _ i: Insn) -> Insn? {
    guard let pointer = readWriteOperand(s, i, 8) else { return stop(s, i) }
    var expected = (s.register(2) << 32) | (s.register(0) & 0xFFFF_FFFF)
    let desired = (s.register(1) << 32) | (s.register(3) & 0xFFFF_FFFF)
    let exchanged = alu_cmpxchg8b(pointer, &expected, desired) != 0
    guard commit(s, pointer, 8) else { return stop(s, i) }
    setZero(s, exchanged)
    if !exchanged {
        s.setRegister(0, expected & 0xFFFF_FFFF)
        s.setRegister(2, expected >> 32)
    }
    return i + 1
}

private func cmpxchg16(_ s: State, _ i: Insn) -> Insn? {
    guard let address = operandAddress(s, i, 16, AccessKind.readWrite) else { return stop(s, i) }
    if address & 15 != 0 { return fault(s, i, .generalProtection) }
    guard let pointer = readWritePointer(s, address, 16) else { return stop(s, i) }
    var low = s.register(0)
    var high = s.register(2)
    let exchanged = alu_cmpxchg16b(pointer, &low, &high, s.register(3), s.register(1)) != 0
    guard commit(s, pointer, 16) else { return stop(s, i) }
    setZero(s, exchanged)
    if !exchanged {
        s.setRegister(0, low)
        s.setRegister(2, high)
    }
    return i + 1
}

func setZero(_ s: State, _ value: Bool) {
    s.pointee.status = value ? s.pointee.status | 0x4000 : s.pointee.status & ~0x4000
}

// MARK: - Multiplication and division

let multiplyHandler: Handler = { s, i in
    guard let source = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
    let signed = Mnemonic(rawValue: i.pointee.mnemonic) == .imul1
    switch i.pointee.size {
    case 1:
        let a = UInt8(truncatingIfNeeded: s.register(0))
        let b = UInt8(truncatingIfNeeded: source)
        writeRegister(s, 0, signed ? alu_imulwide8(a, b, s.statusPointer) : alu_mul8(a, b, s.statusPointer))
    case 2: multiplyWide(s, UInt16(truncatingIfNeeded: source), signed)
    case 4: multiplyWide(s, UInt32(truncatingIfNeeded: source), signed)
    default: multiplyWide(s, source, signed)
    }
    return i + 1
}

@inline(__always) private func multiplyWide<T: WideOperandWidth>(_ s: State, _ source: T, _ signed: Bool) {
    var high: T = 0
    let a = readRegister(s, 0, T.self)
    let low = signed ? T.imulWide(a, source, &high, s.statusPointer) : T.mul(a, source, &high, s.statusPointer)
    writeRegister(s, 0, low)
    writeRegister(s, 2 * 8, high)
}

let divideHandler: Handler = { s, i in
    guard let source = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
    let signed = Mnemonic(rawValue: i.pointee.mnemonic) == .idiv
    let done: Bool
    switch i.pointee.size {
    case 1: done = divide8(s, UInt8(truncatingIfNeeded: source), signed)
    case 2: done = divide(s, UInt16(truncatingIfNeeded: source), signed)
    case 4: done = divide(s, UInt32(truncatingIfNeeded: source), signed)
    default: done = divide(s, source, signed)
    }
    return done ? i + 1 : fault(s, i, .divide)
}

private func divide8(_ s: State, _ divisor: UInt8, _ signed: Bool) -> Bool {
    if divisor == 0 { return false }
    let dividend = UInt16(truncatingIfNeeded: s.register(0))
    if signed {
        let a = Int32(Int16(bitPattern: dividend))
        let b = Int32(Int8(bitPattern: divisor))
        guard let quotient = Int8(exactly: a / b) else { return false }
        let remainder = Int8(truncatingIfNeeded: a % b)
        writeRegister(s, 0, UInt16(UInt8(bitPattern: quotient)) | UInt16(UInt8(bitPattern: remainder)) << 8)
        return true
    }
    guard let quotient = UInt8(exactly: dividend / UInt16(divisor)) else { return false }
    writeRegister(s, 0, UInt16(quotient) | (dividend % UInt16(divisor)) << 8)
    return true
}

@inline(__always) private func divide<T: WideOperandWidth>(_ s: State, _ divisor: T, _ signed: Bool) -> Bool {
    if divisor == 0 { return false }
    var high = readRegister(s, 2 * 8, T.self)
    var low = readRegister(s, 0, T.self)
    let sign: T = 1 << T(T.bitWidth - 1)
    let isNegative = signed && high & sign != 0
    let divisorNegative = signed && divisor & sign != 0
    if isNegative {
        low = 0 &- low
        high = ~high &+ (low == 0 ? 1 : 0)
    }
    let magnitude = divisorNegative ? 0 &- divisor : divisor
    if high >= magnitude { return false }
    var (quotient, remainder) = wideDivide(high, low, magnitude)
    if signed {
        let limit = isNegative != divisorNegative ? sign : sign &- 1
        if quotient > limit { return false }
        if isNegative != divisorNegative { quotient = 0 &- quotient }
        if isNegative { remainder = 0 &- remainder }
    }
    writeRegister(s, 0, quotient)
    writeRegister(s, 2 * 8, remainder)
    return true
}

@inline(__always) private func wideDivide<T: WideOperandWidth>(_ high: T, _ low: T, _ divisor: T) -> (T, T) {
    if T.bitWidth == 64 {
        var remainder: UInt64 = 0
        let quotient = alu_div128(UInt64(high), UInt64(low), UInt64(divisor), &remainder)
        return (T(truncatingIfNeeded: quotient), T(truncatingIfNeeded: remainder))
    }
    let dividend = UInt64(high) << UInt64(T.bitWidth) | UInt64(low)
    return (
        T(truncatingIfNeeded: dividend / UInt64(divisor)), T(truncatingIfNeeded: dividend % UInt64(divisor))
    )
}

// MARK: - Decimal adjustment (not in 64-bit mode, so the host cannot do it for us)

private func setResultFlags(_ s: State, _ value: UInt8, carry: Bool, adjust: Bool) {
    var flags: UInt64 = 0
    if value == 0 { flags |= RFlags.zero }
    if value & 0x80 != 0 { flags |= RFlags.sign }
    if value.nonzeroBitCount & 1 == 0 { flags |= RFlags.parity }
    if carry { flags |= RFlags.carry }
    if adjust { flags |= RFlags.adjust }
    s.setStatusFlags(flags)
}

let decimalHandler: Handler = { s, i in
    let al = UInt8(truncatingIfNeeded: s.register(0))
    let flags = s.flags
    let carry = flags & RFlags.carry != 0
    let adjust = flags & RFlags.adjust != 0
    switch Mnemonic(rawValue: i.pointee.mnemonic) {
    case .daa, .das: decimalPacked(s, al, carry: carry, adjust: adjust, subtract: i.pointee.opcode == 0x2F)
    case .aaa, .aas: decimalUnpacked(s, al, adjust: adjust, subtract: i.pointee.opcode == 0x3F)
    case .aam:
        let base = UInt8(truncatingIfNeeded: i.pointee.immediate)
        if base == 0 { return fault(s, i, .divide) }
        writeRegister(s, 0, UInt16(al / base) << 8 | UInt16(al % base))
        setResultFlags(s, al % base, carry: false, adjust: false)
    default:
        let ah = UInt8(truncatingIfNeeded: s.register(0) >> 8)
        let result = al &+ ah &* UInt8(truncatingIfNeeded: i.pointee.immediate)
        writeRegister(s, 0, UInt16(result))
        setResultFlags(s, result, carry: false, adjust: false)
    }
    return i + 1
}

private func decimalPacked(_ s: State, _ al: UInt8, carry: Bool, adjust: Bool, subtract: Bool) {
    var result = al
    var newCarry = carry
    let lowAdjust = al & 15 > 9 || adjust
    let highAdjust = al > 0x99 || carry
    if lowAdjust {
        newCarry = carry || (subtract ? al < 6 : al > 0xF9)
        result = subtract ? result &- 6 : result &+ 6
    }
    if highAdjust {
        result = subtract ? result &- 0x60 : result &+ 0x60
        newCarry = true
    } else if !subtract {
        newCarry = false
    }
    writeRegister(s, 0, result)
    setResultFlags(s, result, carry: newCarry, adjust: lowAdjust)
}

private func decimalUnpacked(_ s: State, _ al: UInt8, adjust: Bool, subtract: Bool) {
    var ax = UInt16(truncatingIfNeeded: s.register(0))
    let adjusts = al & 15 > 9 || adjust
    if adjusts { ax = subtract ? (ax &- 6) &- 0x100 : ax &+ 0x106 }
    ax &= 0xFF0F
    writeRegister(s, 0, ax)
    setResultFlags(s, UInt8(truncatingIfNeeded: ax), carry: adjusts, adjust: adjusts)
}
