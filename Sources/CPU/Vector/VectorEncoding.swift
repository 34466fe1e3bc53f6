internal import CHost

/// Takes the bytes of host instructions.
protocol CodeSink {
    mutating func byte(_ value: Int)
}

extension HostAssembler: CodeSink {}

extension StubAssembler: CodeSink {
    mutating func byte(_ value: Int) { emit(UInt8(truncatingIfNeeded: value)) }
}

/// What the rm operand of an instruction is when it is emitted for the host.
enum EncodedRM {
    /// A register of the file that the instruction's rm names.
    case register(UInt8)
    /// [register], without displacement.
    case pointer(UInt8)
}

/// A vector, MMX or x87 instruction for whoever emits it again: what it needs from its surroundings, and its bytes with
/// other registers and another memory operand.
struct VectorEncoding {
    /// Whose rules about control registers, XCR0 and pending x87 exceptions hold. `mixed`: those of MMX and of SSE.
    enum Unit { case x87, mmx, sse, mixed, avx, avx512, general }

    enum Access { case none, load, store }

    var unit: Unit
    /// The register files of ModRM.reg and ModRM.rm; that of rm says nothing about a memory form.
    var reg: VectorOperand
    var rm: VectorOperand
    /// The memory operand: its bytes, and the alignment whose lack is #GP(0) (0: none).
    var access: Access
    var memorySize: Int
    var alignment: Int
    /// Reads or writes the status flags.
    var readsFlags: Bool
    var writesFlags: Bool
    /// Obeys MXCSR and sets its flags.
    var usesMXCSR: Bool
    /// Whether ModRM.reg, or ModRM.rm as a register, is written.
    var writesReg: Bool
    var writesRM: Bool
    /// EAX and EDX are read, or ECX is written, besides the named operands.
    var usesImplicitGeneral: Bool
    /// Emitted with its operands it does all that the guest's instruction does. Otherwise only the interpreter can.
    var isPlain: Bool

    private var insn: martlet_insn
    private var hasModRM: Bool
    private var hasImmediate: Bool

    /// Nil: no instruction of this unit (or one that is #UD).
    init?(_ i: Insn) {
        guard i.pointee.mnemonic == Mnemonic.vector.rawValue else { return nil }
        if i.pointee.map == 0 { self.init(x87: i) } else { self.init(legacy: i) }
    }

    private init?(x87 i: Insn) {
        guard let operation = x87Operation(i.pointee.opcode, i.pointee.modrm) else { return nil }
        insn = i.pointee
        unit = .x87
        reg = .none
        rm = .none
        memorySize = Int(operation.size)
        alignment = 0
        access = operation.kind == .load ? .load : (operation.kind == .store ? .store : .none)
        readsFlags = operation.kind == .computeReadingFlags
        writesFlags = operation.kind == .computeWritingFlags
        usesMXCSR = false
        writesReg = false
        writesRM = false
        usesImplicitGeneral = false
        hasModRM = true
        hasImmediate = false
        switch operation.kind {
        case .compute, .computeReadingFlags, .computeWritingFlags, .load, .store: isPlain = true
        default: isPlain = false
        }
    }

    private init?(legacy i: Insn) {
        let entry = vectorEntry(
            map: i.pointee.map, opcode: i.pointee.opcode, prefix: i.pointee.prefixes, modrm: i.pointee.modrm)
        guard let entry else { return nil }
        insn = i.pointee
        let traits = entry.traits
        let isMemory = i.isMemoryForm && entry.move != .empty
        let isStore = traits.contains(.store) || traits.contains(.writesRM)
        let usesMM = entry.reg == .mm || (entry.rm == .mm && !isMemory) || entry.move == .empty
        let usesXMM = entry.reg == .xmm || (entry.rm == .xmm && !isMemory)
        unit = usesMM ? (usesXMM ? .mixed : .mmx) : .sse
        reg = entry.reg
        rm = isMemory ? .none : entry.rm
        memorySize = isMemory ? Int(traits.contains(.wide) && i.pointee.rex & 8 != 0 ? 8 : entry.memorySize) : 0
        alignment = isMemory && traits.contains(.aligned) ? 16 : 0
        access = isMemory ? (isStore ? .store : .load) : .none
        readsFlags = false
        writesFlags = traits.contains(.status)
        usesMXCSR = traits.contains(.mxcsr)
        writesReg = !isStore && !traits.contains(.keepsReg) && entry.reg != .none
        writesRM = isStore && !isMemory
        usesImplicitGeneral = traits.contains(.readsLengths) || traits.contains(.writesRCX)
        hasModRM = entry.move != .empty
        hasImmediate = traits.contains(.immediate)
        switch entry.move {
        case .maskedXMM, .maskedMM, .loadMXCSR, .storeMXCSR, .fxsave, .fxrstor: isPlain = false
        default: isPlain = true
        }
    }

    /// Numbers of the guest's registers. REX does not extend MMX registers (SDM vol. 2 §2.2.1.2).
    var regNumber: UInt8 { number(((insn.modrm >> 3) & 7) | ((insn.rex & 4) << 1), reg) }
    var rmNumber: UInt8 { number((insn.modrm & 7) | ((insn.rex & 1) << 3), rm) }

    private func number(_ number: UInt8, _ file: VectorOperand) -> UInt8 {
        file == .mm || file == .none ? number & 7 : number
    }

    /// Emits the instruction with `reg` (unless it is an opcode extension) and `rm` for its registers. Prefixes that only
    /// concern the address are left out.
    func emit<Sink: CodeSink>(to sink: inout Sink, reg named: UInt8, rm: EncodedRM) {
        let reg = self.reg == .none ? regNumber : named
        let rmField: UInt8
        switch rm {
        case .register(let number), .pointer(let number): rmField = number
        }
        if insn.map != 0, insn.prefixes != 0 { sink.byte(Int(insn.prefixes)) }
        let wide = insn.map == 0 ? 0 : insn.rex & 8
        let rex = wide | (reg & 8) >> 1 | (rmField & 8) >> 3
        if rex != 0 { sink.byte(0x40 | Int(rex)) }
        if insn.map >= 1 { sink.byte(0x0F) }
        if insn.map == 2 { sink.byte(0x38) }
        if insn.map == 3 { sink.byte(0x3A) }
        sink.byte(Int(insn.opcode))
        if hasModRM { emitModRM(to: &sink, reg: reg, rm: rm) }
        if hasImmediate { sink.byte(Int(insn.immediate & 0xFF)) }
    }

    private func emitModRM<Sink: CodeSink>(to sink: inout Sink, reg: UInt8, rm: EncodedRM) {
        let middle = Int(reg & 7) << 3
        switch rm {
        case .register(let number): sink.byte(0xC0 | middle | Int(number & 7))
        case .pointer(let base):
            // RBP and R13 need a displacement, RSP and R12 a SIB byte (SDM vol. 2 table 2-2).
            let low = Int(base & 7)
            sink.byte((low == 5 ? 0x40 : 0) | middle | low)
            if low == 4 { sink.byte(0x24) }
            if low == 5 { sink.byte(0) }
        }
    }
}
