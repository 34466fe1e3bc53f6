internal import CHost

/// What an x87 opcode is, for its handler and its stub.
struct X87Operation {
    enum Kind {
        /// Registers only; the host executes it. With `reads` and `writes` of the status flags.
        case compute, computeReadingFlags, computeWritingFlags
        /// One memory operand; the host executes it.
        case load, store
        /// Control instructions, done in Swift because the host's instruction and data pointers are not the guest's.
        case initialize, clearExceptions, nothing
        case loadControl, storeControl, storeStatus, storeStatusAX
        case loadEnvironment, storeEnvironment, restore, save
    }

    var kind: Kind
    /// Bytes of the memory operand of `load` and `store`.
    var size: UInt8 = 0
}

/// The whitelist of x87 instructions (SDM vol. 2 tables ), including the aliases that every processor has
/// (FSTP1, FCOM2, FXCH4, FFREEP …). Nil: #UD.
func x87Operation(_ opcode: UInt8, _ modrm: UInt8) -> X87Operation? {
    modrm < 0xC0 ? x87MemoryOperation(opcode, (modrm >> 3) & 7) : x87RegisterOperation(opcode, modrm)
}

private func x87MemoryOperation(_ opcode: UInt8, _ number: UInt8) -> X87Operation? {
    let truncates = VectorUnit.has(.sse3)
    switch (opcode, number) {
    case (0xD8, _), (0xDA, _): return X87Operation(kind: .load, size: 4)
    case (0xDC, _): return X87Operation(kind: .load, size: 8)
    case (0xDE, _): return X87Operation(kind: .load, size: 2)
    case (0xD9, 0): return X87Operation(kind: .load, size: 4)
    case (0xD9, 2), (0xD9, 3): return X87Operation(kind: .store, size: 4)
    case (0xD9, 4): return X87Operation(kind: .loadEnvironment)
    case (0xD9, 5): return X87Operation(kind: .loadControl)
    case (0xD9, 6): return X87Operation(kind: .storeEnvironment)
    case (0xD9, 7): return X87Operation(kind: .storeControl)
    case (0xDB, 0): return X87Operation(kind: .load, size: 4)
    case (0xDB, 1): return truncates ? X87Operation(kind: .store, size: 4) : nil
    case (0xDB, 2), (0xDB, 3): return X87Operation(kind: .store, size: 4)
    case (0xDB, 5): return X87Operation(kind: .load, size: 10)
    case (0xDB, 7): return X87Operation(kind: .store, size: 10)
    case (0xDD, 0): return X87Operation(kind: .load, size: 8)
    case (0xDD, 1): return truncates ? X87Operation(kind: .store, size: 8) : nil
    case (0xDD, 2), (0xDD, 3): return X87Operation(kind: .store, size: 8)
    case (0xDD, 4): return X87Operation(kind: .restore)
    case (0xDD, 6): return X87Operation(kind: .save)
    case (0xDD, 7): return X87Operation(kind: .storeStatus)
    case (0xDF, 0): return X87Operation(kind: .load, size: 2)
    case (0xDF, 1): return truncates ? X87Operation(kind: .store, size: 2) : nil
    case (0xDF, 2), (0xDF, 3): return X87Operation(kind: .store, size: 2)
    case (0xDF, 4): return X87Operation(kind: .load, size: 10)
    case (0xDF, 5): return X87Operation(kind: .load, size: 8)
    case (0xDF, 6): return X87Operation(kind: .store, size: 10)
    case (0xDF, 7): return X87Operation(kind: .store, size: 8)
    default: return nil
    }
}

private func x87RegisterOperation(_ opcode: UInt8, _ modrm: UInt8) -> X87Operation? {
    let compute = X87Operation(kind: .compute)
    switch (opcode, modrm) {
    case (0xD8, _), (0xDC, _): return compute
    case (0xD9, 0xC0...0xD0), (0xD9, 0xD8...0xDF), (0xD9, 0xE0), (0xD9, 0xE1), (0xD9, 0xE4), (0xD9, 0xE5),
        (0xD9, 0xE8...0xEE), (0xD9, 0xF0...0xFF):
        return compute
    case (0xDA, 0xC0...0xDF): return X87Operation(kind: .computeReadingFlags)
    case (0xDA, 0xE9): return compute
    case (0xDB, 0xC0...0xDF): return X87Operation(kind: .computeReadingFlags)
    case (0xDB, 0xE0), (0xDB, 0xE1), (0xDB, 0xE4): return X87Operation(kind: .nothing)
    case (0xDB, 0xE2): return X87Operation(kind: .clearExceptions)
    case (0xDB, 0xE3): return X87Operation(kind: .initialize)
    case (0xDB, 0xE8...0xF7): return X87Operation(kind: .computeWritingFlags)
    case (0xDD, 0xC0...0xEF): return compute
    case (0xDE, 0xC0...0xD7), (0xDE, 0xD9), (0xDE, 0xE0...0xFF): return compute
    case (0xDF, 0xC0...0xDF): return compute
    case (0xDF, 0xE0): return X87Operation(kind: .storeStatusAX)
    case (0xDF, 0xE8...0xF7): return X87Operation(kind: .computeWritingFlags)
    default: return nil
    }
}

/// Binds D8–DF. `size` becomes the memory operand's, except for environments, where it stays the operand size.
func bindX87(_ i: Insn, stubs: StubCache) -> Bool {
    let opcode = i.pointee.opcode
    guard let operation = x87Operation(opcode, i.pointee.modrm) else {
        i.setHandler(vectorUndefined)
        return true
    }
    switch operation.kind {
    case .compute, .computeReadingFlags, .computeWritingFlags: i.setHandler(x87Compute)
    case .load: i.setHandler(x87Load)
    case .store: i.setHandler(x87Store)
    case .initialize: i.setHandler(fninit)
    case .clearExceptions: i.setHandler(fnclex)
    case .nothing: i.setHandler(x87Nothing)
    case .loadControl: i.setHandler(fldcw)
    case .storeControl: i.setHandler(fnstcw)
    case .storeStatus: i.setHandler(fnstsw)
    case .storeStatusAX: i.setHandler(fnstswAX)
    case .loadEnvironment: i.setHandler(fldenv)
    case .storeEnvironment: i.setHandler(fnstenv)
    case .restore: i.setHandler(frstor)
    case .save: i.setHandler(fnsave)
    }
    switch operation.kind {
    case .compute, .computeReadingFlags, .computeWritingFlags, .load, .store: break
    default: return true
    }
    guard stubs.isAvailable else {
        i.setHandler(vectorUndefined)
        return true
    }
    // Memory forms keep only the opcode extension: [RDX].
    let modrm = i.isMemoryForm ? i.pointee.modrm & 0x38 | 2 : i.pointee.modrm
    let key = 1 << 63 | UInt64(opcode) << 8 | UInt64(modrm)
    guard let stub = stubs.stub(key, { generateX87(&$0, opcode, modrm, operation.kind) }) else { return false }
    i.pointee.link = stub
    if i.isMemoryForm { i.pointee.size = operation.size }
    return true
}

/// The guest's instruction between a load and a store of the whole image. FXSAVE and FNINIT do not wait, so an exception
/// that the instruction leaves pending never reaches the host.
private func generateX87(_ code: inout StubAssembler, _ opcode: UInt8, _ modrm: UInt8, _ kind: X87Operation.Kind) {
    code.saveHostMXCSR()
    code.loadX87()
    if kind == .computeReadingFlags || kind == .computeWritingFlags { code.restoreStatus() }
    code.emit(opcode, modrm)
    if kind == .computeWritingFlags { code.captureStatus() }
    code.storeX87()
    code.restoreHostMXCSR()
    code.finish()
}

// MARK: Handlers

/// FIP, FDP and FOP of the image. Every instruction but the control instructions sets them (SDM vol. 1 §8.1.8, §8.1.9);
/// FDP only with a memory operand. FIP and FDP are offsets, FCS and FDS are not kept.
@inline(__always) private func recordPointers(_ s: State, _ i: Insn, data: UInt64) {
    let code = UInt16(i.pointee.opcode & 7) << 8 | UInt16(i.pointee.modrm)
    s.fxImage.storeBytes(of: code, toByteOffset: FXImage.opcode, as: UInt16.self)
    s.fxImage.storeBytes(of: instructionAddress(s, i), toByteOffset: FXImage.instructionPointer, as: UInt64.self)
    s.fxImage.storeBytes(of: data, toByteOffset: FXImage.dataPointer, as: UInt64.self)
}

@inline(__always) private func operandOffset(_ s: State, _ i: Insn) -> UInt64 {
    i.pointee.flags & InsnFlag.complexAddress == 0 ? simpleAddress(s, i) : complexOffset(s, i)
}

/// #NM, or #MF for an exception that an earlier instruction left pending. With CR0.NE = 0 a PC would raise IRQ 13 instead
/// (SDM vol. 3A §2.5); here #MF is raised all the same.
@inline(never) private func x87Unavailable(_ s: State, _ i: Insn) -> Insn? {
    fault(s, i, s.hasX87 ? .x87 : .deviceNotAvailable)
}

@inline(__always) private func canWait(_ s: State) -> Bool { s.hasX87 && !s.hasX87Exception }

@inline(__always) private func callStub(_ s: State, _ i: Insn, _ memory: UnsafeMutableRawPointer?) -> Insn? {
    unsafeBitCast(i.pointee.link, to: VectorStub.self)(s, i, memory)
}

private func x87Compute(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    let data = s.fxImage.load(fromByteOffset: FXImage.dataPointer, as: UInt64.self)
    let next = callStub(s, i, nil)
    recordPointers(s, i, data: data)
    return next
}

private func x87Load(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    guard let memory = readOperand(s, i, Int(i.pointee.size)) else { return stop(s, i) }
    let next = callStub(s, i, memory)
    recordPointers(s, i, data: operandOffset(s, i))
    return next
}

/// A store whose unmasked exception (other than #P, which comes after the store) keeps it from happening leaves memory
/// alone (SDM vol. 1 §8.5). If the write must be asked of user space first, the registers go back to what they were.
private func x87Store(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    let saved = s.fxImage.load(as: martlet_x87_image.self)
    let next = callStub(s, i, memory)
    recordPointers(s, i, data: operandOffset(s, i))
    let control = s.fxImage.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)
    if s.x87StatusWord & ~control & 0x1F != 0 { return next }
    if commit(s, memory, size) { return next }
    s.fxImage.storeBytes(of: saved, as: martlet_x87_image.self)
    return stop(s, i)
}

/// FWAIT (9B), for the decoder's table.
func waitHandler(_ s: State, _ i: Insn) -> Insn? {
    let trapped = Control.monitorCoprocessor | Control.taskSwitched
    if s.pointee.cr0 & trapped == trapped { return fault(s, i, .deviceNotAvailable) }
    return s.hasX87Exception ? fault(s, i, .x87) : i + 1
}

// MARK: Control instructions that do not wait

private func fninit(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    s.resetX87()
    return i + 1
}

private func fnclex(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    s.x87StatusWord &= 0x7F00
    return i + 1
}

/// FNENI, FNDISI, FNSETPM: of the 8087 and 80287 only.
private func x87Nothing(_ s: State, _ i: Insn) -> Insn? {
    s.hasX87 ? i + 1 : fault(s, i, .deviceNotAvailable)
}

private func storeWord(_ s: State, _ i: Insn, at offset: Int) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    guard let memory = writeOperand(s, i, 2) else { return stop(s, i) }
    memory.storeBytes(of: s.fxImage.load(fromByteOffset: offset, as: UInt16.self), as: UInt16.self)
    return commit(s, memory, 2) ? i + 1 : stop(s, i)
}

private func fnstcw(_ s: State, _ i: Insn) -> Insn? { storeWord(s, i, at: FXImage.controlWord) }

private func fnstsw(_ s: State, _ i: Insn) -> Insn? { storeWord(s, i, at: FXImage.statusWord) }

private func fnstswAX(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    s.registerFile.storeBytes(of: s.x87StatusWord, as: UInt16.self)
    return i + 1
}

/// FLDCW waits; an exception that it unmasks is pending afterwards.
private func fldcw(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    guard let memory = readOperand(s, i, 2) else { return stop(s, i) }
    let value = memory.loadUnaligned(as: UInt16.self)
    s.fxImage.storeBytes(of: value & 0x1F3F | 0x40, toByteOffset: FXImage.controlWord, as: UInt16.self)
    s.summarizeX87Exceptions()
    return i + 1
}

// MARK: Environments (X87Environment.swift has the formats)

private func fnstenv(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    guard storeX87Environment(s, i, withRegisters: false) else { return stop(s, i) }
    let control = s.fxImage.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)
    s.fxImage.storeBytes(of: control | 0x3F, toByteOffset: FXImage.controlWord, as: UInt16.self)
    s.summarizeX87Exceptions()
    return i + 1
}

private func fnsave(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    guard storeX87Environment(s, i, withRegisters: true) else { return stop(s, i) }
    s.resetX87()
    return i + 1
}

private func fldenv(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    return loadX87Environment(s, i, withRegisters: false) ? i + 1 : stop(s, i)
}

private func frstor(_ s: State, _ i: Insn) -> Insn? {
    guard canWait(s) else { return x87Unavailable(s, i) }
    return loadX87Environment(s, i, withRegisters: true) ? i + 1 : stop(s, i)
}
