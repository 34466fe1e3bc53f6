internal import CHost

// MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, PUSH, POP and their kin (SDM vol. 2).

@inline(__always) private func moveRegister<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    writeRegister(s, i.pointee.rm, readRegister(s, i.pointee.reg, T.self))
    return i + 1
}

@inline(__always) private func moveImmediate<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    writeRegister(s, i.pointee.rm, immediate(i, T.self))
    return i + 1
}

@inline(__always) private func moveLoad<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    guard let pointer = readOperand(s, i, MemoryLayout<T>.size) else { return stop(s, i) }
    writeRegister(s, i.pointee.reg, pointer.loadUnaligned(as: T.self))
    return i + 1
}

@inline(__always) private func storeOperand<T: OperandWidth>(_ s: State, _ i: Insn, _ value: T) -> Insn? {
    guard let pointer = writeOperand(s, i, MemoryLayout<T>.size) else { return stop(s, i) }
    pointer.storeBytes(of: value, as: T.self)
    guard commit(s, pointer, MemoryLayout<T>.size) else { return stop(s, i) }
    return i + 1
}

@inline(__always) private func moveStore<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    storeOperand(s, i, readRegister(s, i.pointee.reg, T.self))
}

@inline(__always) private func moveStoreImmediate<T: OperandWidth>(_ s: State, _ i: Insn, _ type: T.Type) -> Insn? {
    storeOperand(s, i, immediate(i, T.self))
}

func moveHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { moveRegister($0, $1, UInt8.self) }
    case (.registerRegister, 2): { moveRegister($0, $1, UInt16.self) }
    case (.registerRegister, 4): { moveRegister($0, $1, UInt32.self) }
    case (.registerRegister, _): { moveRegister($0, $1, UInt64.self) }
    case (.registerImmediate, 1): { moveImmediate($0, $1, UInt8.self) }
    case (.registerImmediate, 2): { moveImmediate($0, $1, UInt16.self) }
    case (.registerImmediate, 4): { moveImmediate($0, $1, UInt32.self) }
    case (.registerImmediate, _): { moveImmediate($0, $1, UInt64.self) }
    case (.registerMemory, 1): { moveLoad($0, $1, UInt8.self) }
    case (.registerMemory, 2): { moveLoad($0, $1, UInt16.self) }
    case (.registerMemory, 4): { moveLoad($0, $1, UInt32.self) }
    case (.registerMemory, _): { moveLoad($0, $1, UInt64.self) }
    case (.memoryRegister, 1): { moveStore($0, $1, UInt8.self) }
    case (.memoryRegister, 2): { moveStore($0, $1, UInt16.self) }
    case (.memoryRegister, 4): { moveStore($0, $1, UInt32.self) }
    case (.memoryRegister, _): { moveStore($0, $1, UInt64.self) }
    case (.memoryImmediate, 1): { moveStoreImmediate($0, $1, UInt8.self) }
    case (.memoryImmediate, 2): { moveStoreImmediate($0, $1, UInt16.self) }
    case (.memoryImmediate, 4): { moveStoreImmediate($0, $1, UInt32.self) }
    case (.memoryImmediate, _): { moveStoreImmediate($0, $1, UInt64.self) }
    }
}

/// Zero or sign extension from `S` to `T`.
@inline(__always) private func extend<S: OperandWidth, T: OperandWidth>(
    _ s: State, _ i: Insn, _ value: S, _ type: T.Type, signed: Bool
) -> Insn? {
    var result = T(truncatingIfNeeded: value)
    if signed {
        let shift = T(T.bitWidth - S.bitWidth)
        let moved = result &<< shift
        result = arithmeticShiftRight(moved, shift)
    }
    writeRegister(s, i.pointee.reg, result)
    return i + 1
}

@inline(__always) private func arithmeticShiftRight<T: OperandWidth>(_ value: T, _ count: T) -> T {
    let sign: T = value >> T(T.bitWidth - 1)
    let filled: T = count == 0 ? 0 : (0 &- sign) &<< (T(T.bitWidth) &- count)
    return (value &>> count) | filled
}

@inline(__always) private func extendRegister<S: OperandWidth, T: OperandWidth>(
    _ s: State, _ i: Insn, _ source: S.Type, _ type: T.Type, signed: Bool
) -> Insn? {
    extend(s, i, readRegister(s, i.pointee.rm, S.self), T.self, signed: signed)
}

@inline(__always) private func extendMemory<S: OperandWidth, T: OperandWidth>(
    _ s: State, _ i: Insn, _ source: S.Type, _ type: T.Type, signed: Bool
) -> Insn? {
    guard let pointer = readOperand(s, i, MemoryLayout<S>.size) else { return stop(s, i) }
    return extend(s, i, pointer.loadUnaligned(as: S.self), T.self, signed: signed)
}

func extensionHandler(_ mnemonic: Mnemonic, isMemory: Bool, _ size: UInt8) -> Handler? {
    switch (mnemonic, isMemory, size) {
    case (.movzxByte, false, 2): { extendRegister($0, $1, UInt8.self, UInt16.self, signed: false) }
    case (.movzxByte, false, 4): { extendRegister($0, $1, UInt8.self, UInt32.self, signed: false) }
    case (.movzxByte, false, 8): { extendRegister($0, $1, UInt8.self, UInt64.self, signed: false) }
    case (.movzxByte, true, 2): { extendMemory($0, $1, UInt8.self, UInt16.self, signed: false) }
    case (.movzxByte, true, 4): { extendMemory($0, $1, UInt8.self, UInt32.self, signed: false) }
    case (.movzxByte, true, 8): { extendMemory($0, $1, UInt8.self, UInt64.self, signed: false) }
    case (.movzxWord, false, 2): { extendRegister($0, $1, UInt16.self, UInt16.self, signed: false) }
    case (.movzxWord, false, 4): { extendRegister($0, $1, UInt16.self, UInt32.self, signed: false) }
    case (.movzxWord, false, 8): { extendRegister($0, $1, UInt16.self, UInt64.self, signed: false) }
    case (.movzxWord, true, 2): { extendMemory($0, $1, UInt16.self, UInt16.self, signed: false) }
    case (.movzxWord, true, 4): { extendMemory($0, $1, UInt16.self, UInt32.self, signed: false) }
    case (.movzxWord, true, 8): { extendMemory($0, $1, UInt16.self, UInt64.self, signed: false) }
    case (.movsxByte, false, 2): { extendRegister($0, $1, UInt8.self, UInt16.self, signed: true) }
    case (.movsxByte, false, 4): { extendRegister($0, $1, UInt8.self, UInt32.self, signed: true) }
    case (.movsxByte, false, 8): { extendRegister($0, $1, UInt8.self, UInt64.self, signed: true) }
    case (.movsxByte, true, 2): { extendMemory($0, $1, UInt8.self, UInt16.self, signed: true) }
    case (.movsxByte, true, 4): { extendMemory($0, $1, UInt8.self, UInt32.self, signed: true) }
    case (.movsxByte, true, 8): { extendMemory($0, $1, UInt8.self, UInt64.self, signed: true) }
    case (.movsxWord, false, 2): { extendRegister($0, $1, UInt16.self, UInt16.self, signed: true) }
    case (.movsxWord, false, 4): { extendRegister($0, $1, UInt16.self, UInt32.self, signed: true) }
    case (.movsxWord, false, 8): { extendRegister($0, $1, UInt16.self, UInt64.self, signed: true) }
    case (.movsxWord, true, 2): { extendMemory($0, $1, UInt16.self, UInt16.self, signed: true) }
    case (.movsxWord, true, 4): { extendMemory($0, $1, UInt16.self, UInt32.self, signed: true) }
    case (.movsxWord, true, 8): { extendMemory($0, $1, UInt16.self, UInt64.self, signed: true) }
    case (.movsxd, false, 4): { extendRegister($0, $1, UInt32.self, UInt32.self, signed: true) }
    case (.movsxd, false, 8): { extendRegister($0, $1, UInt32.self, UInt64.self, signed: true) }
    case (.movsxd, true, 4): { extendMemory($0, $1, UInt32.self, UInt32.self, signed: true) }
    case (.movsxd, true, 8): { extendMemory($0, $1, UInt32.self, UInt64.self, signed: true) }
    case (.movsxd, false, 2): { extendRegister($0, $1, UInt16.self, UInt16.self, signed: false) }
    case (.movsxd, true, 2): { extendMemory($0, $1, UInt16.self, UInt16.self, signed: false) }
    default: nil
    }
}

let leaHandler: Handler = { s, i in
    let offset = i.pointee.flags & InsnFlag.complexAddress == 0 ? simpleAddress(s, i) : complexOffset(s, i)
    writeRegister(s, i.pointee.reg, offset, size: i.pointee.size)
    return i + 1
}

let lea64Handler: Handler = { s, i in
    writeRegister(s, i.pointee.reg, simpleAddress(s, i))
    return i + 1
}

/// MOV between the accumulator and a full address.
let movOffsetLoadHandler: Handler = { s, i in
    let size = Int(i.pointee.size)
    guard let pointer = offsetPointer(s, i, size, AccessKind.read) else { return stop(s, i) }
    writeRegister(s, 0, loadSized(pointer, size), size: i.pointee.size)
    return i + 1
}

let movOffsetStoreHandler: Handler = { s, i in
    let size = Int(i.pointee.size)
    guard let pointer = offsetPointer(s, i, size, AccessKind.write) else { return stop(s, i) }
    storeSized(pointer, s.register(0), size)
    guard commit(s, pointer, size) else { return stop(s, i) }
    return i + 1
}

private func offsetPointer(_ s: State, _ i: Insn, _ size: Int, _ kind: UInt8) -> UnsafeMutableRawPointer? {
    let address = segmentedAddress(
        s, segment: Int(i.pointee.segment), offset: i.pointee.immediate, size: size, kind: kind)
    guard let address else { return nil }
    return kind == AccessKind.read ? readPointer(s, address, size) : writePointer(s, address, size)
}

@inline(__always) func loadSized(_ pointer: UnsafeMutableRawPointer, _ size: Int) -> UInt64 {
    switch size {
    case 1: UInt64(pointer.load(as: UInt8.self))
    case 2: UInt64(pointer.loadUnaligned(as: UInt16.self))
    case 4: UInt64(pointer.loadUnaligned(as: UInt32.self))
    default: pointer.loadUnaligned(as: UInt64.self)
    }
}

@inline(__always) func storeSized(_ pointer: UnsafeMutableRawPointer, _ value: UInt64, _ size: Int) {
    switch size {
    case 1: pointer.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
    case 2: pointer.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
    case 4: pointer.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
    default: pointer.storeBytes(of: value, as: UInt64.self)
    }
}

/// The rm operand of any size, from register or memory. Nil: fault recorded.
@inline(__always) func readRM(_ s: State, _ i: Insn, size: UInt8) -> UInt64? {
    if i.pointee.flags & InsnFlag.memory == 0 { return readRegister(s, i.pointee.rm, size: size) }
    guard let pointer = readOperand(s, i, Int(size)) else { return nil }
    return loadSized(pointer, Int(size))
}

/// Writes the rm operand. False: fault recorded.
@inline(__always) func writeRM(_ s: State, _ i: Insn, _ value: UInt64, size: UInt8) -> Bool {
    if i.pointee.flags & InsnFlag.memory == 0 {
        writeRegister(s, i.pointee.rm, value, size: size)
        return true
    }
    guard let pointer = writeOperand(s, i, Int(size)) else { return false }
    storeSized(pointer, value, Int(size))
    return commit(s, pointer, Int(size))
}

/// XCHG with memory is always locked (SDM vol. 3A §9.1.2.1).
let xchgHandler: Handler = { s, i in
    let size = i.pointee.size
    if i.pointee.flags & InsnFlag.memory == 0 {
        let a = readRegister(s, i.pointee.rm, size: size)
        writeRegister(s, i.pointee.rm, readRegister(s, i.pointee.reg, size: size), size: size)
        writeRegister(s, i.pointee.reg, a, size: size)
        return i + 1
    }
    guard let pointer = readWriteOperand(s, i, Int(size)) else { return stop(s, i) }
    let source = readRegister(s, i.pointee.reg, size: size)
    let old: UInt64 =
        switch size {
        case 1: UInt64(UInt8.exchange(pointer, UInt8(truncatingIfNeeded: source)))
        case 2: UInt64(UInt16.exchange(pointer, UInt16(truncatingIfNeeded: source)))
        case 4: UInt64(UInt32.exchange(pointer, UInt32(truncatingIfNeeded: source)))
        default: UInt64.exchange(pointer, source)
        }
    guard commit(s, pointer, Int(size)) else { return stop(s, i) }
    writeRegister(s, i.pointee.reg, old, size: size)
    return i + 1
}

/// Whether condition `code` (opcode bits 0–3) holds (SDM vol. 1 appendix B).
@inline(__always) func condition(_ status: UInt16, _ code: UInt8) -> Bool {
    let holds: Bool =
        switch code >> 1 {
        case 0: status & 1 != 0
        case 1: status & 0x100 != 0
        case 2: status & 0x4000 != 0
        case 3: status & 0x4100 != 0
        case 4: status & 0x8000 != 0
        case 5: status & 0x400 != 0
        case 6: ((status >> 15) ^ status) & 1 != 0
        default: status & 0x4000 != 0 || ((status >> 15) ^ status) & 1 != 0
        }
    return holds != (code & 1 != 0)
}

let cmovHandler: Handler = { s, i in
    // The source is read, and may fault, whatever the condition; a 32-bit destination is cleared above bit 31 anyway.
    let size = i.pointee.size
    guard let value = readRM(s, i, size: size) else { return stop(s, i) }
    let taken = condition(s.pointee.status, i.pointee.opcode & 15)
    writeRegister(s, i.pointee.reg, taken ? value : readRegister(s, i.pointee.reg, size: size), size: size)
    return i + 1
}

let setHandler: Handler = { s, i in
    let value: UInt64 = condition(s.pointee.status, i.pointee.opcode & 15) ? 1 : 0
    return writeRM(s, i, value, size: 1) ? i + 1 : stop(s, i)
}

let bswapHandler: Handler = { s, i in
    if i.pointee.size == 8 {
        writeRegister(s, i.pointee.rm, readRegister(s, i.pointee.rm, UInt64.self).byteSwapped)
    } else if i.pointee.size == 4 {
        writeRegister(s, i.pointee.rm, readRegister(s, i.pointee.rm, UInt32.self).byteSwapped)
    } else {
        // Undefined by the manual; processors clear the register.
        writeRegister(s, i.pointee.rm, UInt16(0))
    }
    return i + 1
}

let movbeHandler: Handler = { s, i in
    let size = Int(i.pointee.size)
    func swapped(_ value: UInt64) -> UInt64 { value.byteSwapped >> UInt64(64 - size * 8) }
    if i.pointee.opcode == 0xF0 {
        guard let value = readRM(s, i, size: i.pointee.size) else { return stop(s, i) }
        writeRegister(s, i.pointee.reg, swapped(value), size: i.pointee.size)
        return i + 1
    }
    let value = swapped(readRegister(s, i.pointee.reg, size: i.pointee.size))
    return writeRM(s, i, value, size: i.pointee.size) ? i + 1 : stop(s, i)
}

let movntiHandler: Handler = { s, i in
    writeRM(s, i, readRegister(s, i.pointee.reg, size: i.pointee.size), size: i.pointee.size) ? i + 1 : stop(s, i)
}

let xlatHandler: Handler = { s, i in
    let offset = maskAddress(s.register(3) &+ (s.register(0) & 0xFF), i.pointee.address_size)
    guard
        let address = segmentedAddress(
            s, segment: Int(i.pointee.segment), offset: offset, size: 1, kind: AccessKind.read),
        let value = load(s, address, UInt8.self)
    else { return stop(s, i) }
    writeRegister(s, 0, value)
    return i + 1
}

let lahfHandler: Handler = { s, i in
    writeRegister(s, 1, UInt8(truncatingIfNeeded: s.flags))
    return i + 1
}

let sahfHandler: Handler = { s, i in
    let value = UInt64(readRegister(s, 1, UInt8.self))
    s.setStatusFlags(value | (UInt64(s.pointee.status & 1) << 11))
    return i + 1
}

let cbwHandler: Handler = { s, i in
    switch i.pointee.size {
    case 2: writeRegister(s, 0, UInt16(bitPattern: Int16(Int8(truncatingIfNeeded: s.register(0)))))
    case 4: writeRegister(s, 0, UInt32(bitPattern: Int32(Int16(truncatingIfNeeded: s.register(0)))))
    default: writeRegister(s, 0, UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: s.register(0)))))
    }
    return i + 1
}

let cwdHandler: Handler = { s, i in
    let rdx: UInt8 = 2 * 8
    switch i.pointee.size {
    case 2: writeRegister(s, rdx, UInt16(bitPattern: Int16(truncatingIfNeeded: s.register(0)) >> 15))
    case 4: writeRegister(s, rdx, UInt32(bitPattern: Int32(truncatingIfNeeded: s.register(0)) >> 31))
    default: writeRegister(s, rdx, UInt64(bitPattern: Int64(bitPattern: s.register(0)) >> 63))
    }
    return i + 1
}
