internal import CHost

// ADD OR ADC SBB AND SUB XOR CMP TEST (SDM vol. 2). Flags go to `status` only after the last access that can fail.

/// One two-operand operation.
protocol ALUOperation {
    static var storesResult: Bool { get }
    static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T
}

enum AddOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.add(a, b, status)
    }
}
enum OrOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.or(a, b, status)
    }
}
enum AdcOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.adc(a, b, status)
    }
}
enum SbbOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.sbb(a, b, status)
    }
}
enum AndOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.and(a, b, status)
    }
}
enum SubOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.sub(a, b, status)
    }
}
enum XorOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { true }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.xor(a, b, status)
    }
}
enum CmpOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { false }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.cmp(a, b, status)
    }
}
enum TestOperation: ALUOperation {
    @inline(__always) static var storesResult: Bool { false }
    @inline(__always) static func apply<T: OperandWidth>(_ a: T, _ b: T, _ status: UnsafeMutablePointer<UInt16>) -> T {
        T.test(a, b, status)
    }
}

/// A register operand by its byte offset.
@inline(__always) func readRegister<T: BitwiseCopyable>(_ s: State, _ offset: UInt8, _ type: T.Type) -> T {
    s.registerFile.load(fromByteOffset: Int(offset), as: T.self)
}

/// Writes a register operand; a 32-bit write clears the upper half (SDM vol. 1 §3.4.1.1).
@inline(__always) func writeRegister<T: OperandWidth>(_ s: State, _ offset: UInt8, _ value: T) {
    if T.bitWidth == 32 {
        s.registerFile.storeBytes(of: UInt64(value), toByteOffset: Int(offset), as: UInt64.self)
    } else {
        s.registerFile.storeBytes(of: value, toByteOffset: Int(offset), as: T.self)
    }
}

/// Writes a register of a size known only now.
@inline(__always) func writeRegister(_ s: State, _ offset: UInt8, _ value: UInt64, size: UInt8) {
    switch size {
    case 1: writeRegister(s, offset, UInt8(truncatingIfNeeded: value))
    case 2: writeRegister(s, offset, UInt16(truncatingIfNeeded: value))
    case 4: writeRegister(s, offset, UInt32(truncatingIfNeeded: value))
    default: writeRegister(s, offset, value)
    }
}

@inline(__always) func readRegister(_ s: State, _ offset: UInt8, size: UInt8) -> UInt64 {
    switch size {
    case 1: UInt64(readRegister(s, offset, UInt8.self))
    case 2: UInt64(readRegister(s, offset, UInt16.self))
    case 4: UInt64(readRegister(s, offset, UInt32.self))
    default: readRegister(s, offset, UInt64.self)
    }
}

@inline(__always) func immediate<T: OperandWidth>(_ i: Insn, _ type: T.Type) -> T {
    T(truncatingIfNeeded: i.pointee.immediate)
}

@inline(__always) func aluRegisterRegister<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: O.Type
) -> Insn? {
    let result = O.apply(readRegister(s, i.pointee.rm, T.self), readRegister(s, i.pointee.reg, T.self), s.statusPointer)
    if O.storesResult { writeRegister(s, i.pointee.rm, result) }
    return i + 1
}

@inline(__always) func aluRegisterImmediate<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: O.Type
) -> Insn? {
    let result = O.apply(readRegister(s, i.pointee.rm, T.self), immediate(i, T.self), s.statusPointer)
    if O.storesResult { writeRegister(s, i.pointee.rm, result) }
    return i + 1
}

@inline(__always) func aluRegisterMemory<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: O.Type
) -> Insn? {
    guard let source = readOperand(s, i, MemoryLayout<T>.size) else { return stop(s, i) }
    let value = source.loadUnaligned(as: T.self)
    let result = O.apply(readRegister(s, i.pointee.reg, T.self), value, s.statusPointer)
    if O.storesResult { writeRegister(s, i.pointee.reg, result) }
    return i + 1
}

@inline(__always) func aluMemoryRegister<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: O.Type
) -> Insn? {
    aluMemory(s, i, readRegister(s, i.pointee.reg, T.self), O.self)
}

@inline(__always) func aluMemoryImmediate<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ type: T.Type, _ operation: O.Type
) -> Insn? {
    aluMemory(s, i, immediate(i, T.self), O.self)
}

@inline(__always) private func aluMemory<T: OperandWidth, O: ALUOperation>(
    _ s: State, _ i: Insn, _ source: T, _ operation: O.Type
) -> Insn? {
    let size = MemoryLayout<T>.size
    guard O.storesResult else {
        guard let pointer = readOperand(s, i, size) else { return stop(s, i) }
        _ = O.apply(pointer.loadUnaligned(as: T.self), source, s.statusPointer)
        return i + 1
    }
    guard let pointer = readWriteOperand(s, i, size) else { return stop(s, i) }
    var status = s.pointee.status
    let result = O.apply(pointer.loadUnaligned(as: T.self), source, &status)
    pointer.storeBytes(of: result, as: T.self)
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    return i + 1
}

// MARK: - LOCK prefix: the host's own locked instruction on the host address

let lockedArithmeticHandler: Handler = { s, i in
    switch i.pointee.size {
    case 1: lockedArithmetic(s, i, UInt8.self)
    case 2: lockedArithmetic(s, i, UInt16.self)
    case 4: lockedArithmetic(s, i, UInt32.self)
    default: lockedArithmetic(s, i, UInt64.self)
    }
}

@inline(__always) private func lockedArithmetic<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    let size = MemoryLayout<T>.size
    guard let pointer = readWriteOperand(s, i, size) else { return stop(s, i) }
    let fromRegister = i.pointee.operation == Form.eg.rawValue
    let source = fromRegister ? readRegister(s, i.pointee.reg, T.self) : immediate(i, T.self)
    var status = s.pointee.status
    applyLocked(Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid, pointer, source, &status)
    guard commit(s, pointer, size) else { return stop(s, i) }
    s.pointee.status = status
    return i + 1
}

@inline(__always) private func applyLocked<T: OperandWidth>(
    _ mnemonic: Mnemonic, _ pointer: UnsafeMutableRawPointer, _ source: T, _ status: UnsafeMutablePointer<UInt16>
) {
    switch mnemonic {
    case .add: T.lockedAdd(pointer, source, status)
    case .or: T.lockedOr(pointer, source, status)
    case .adc: T.lockedAdc(pointer, source, status)
    case .sbb: T.lockedSbb(pointer, source, status)
    case .and: T.lockedAnd(pointer, source, status)
    case .sub: T.lockedSub(pointer, source, status)
    case .xor: T.lockedXor(pointer, source, status)
    case .inc: T.lockedInc(pointer, status)
    case .dec: T.lockedDec(pointer, status)
    case .neg: T.lockedNeg(pointer, status)
    case .not:
        var unchanged = status.pointee
        T.lockedXor(pointer, .max, &unchanged)
    default: break
    }
}
