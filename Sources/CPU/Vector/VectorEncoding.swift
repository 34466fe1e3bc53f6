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
    /// [base + index + displacement].
    case sum(base: UInt8, index: UInt8, displacement: Int)
}

/// A vector, MMX or x87 instruction (or one of VEX encoding on general registers) for whoever emits it again: what it
/// needs from its surroundings, and its bytes with other registers and another memory operand.
struct VectorEncoding {
    /// Whose rules about control registers, XCR0 and pending x87 exceptions hold. `mixed`: those of MMX and of SSE.
    enum Unit { case x87, mmx, sse, mixed, avx, avx512, general }

    enum Access { case none, load, store }

    var unit: Unit
    /// The register files of ModRM.reg, vvvv and ModRM.rm; of a memory form, rm is none. Of vector registers and opmasks
    /// the numbers are part of the instruction; general registers may be renamed.
    var reg: VectorOperand = .none
    var v: VectorOperand = .none
    var rm: VectorOperand = .none
    /// The memory operand: its bytes, and the alignment whose lack is #GP(0) (0: none).
    var access: Access = .none
    var memorySize = 0
    var alignment = 0
    /// A mask says which of its elements are accessed; the others must not fault.
    var isConditional = false
    /// The vector length in bytes, 0 without vector registers. VEX and EVEX clear what lies above it.
    var vectorSize = 0
    /// Reads or writes the status flags.
    var readsFlags = false
    var writesFlags = false
    /// Obeys MXCSR and sets its flags.
    var usesMXCSR = false
    /// Whether ModRM.reg, vvvv, or ModRM.rm as a register, is written.
    var writesReg = false
    var writesV = false
    var writesRM = false
    /// EAX, ECX or EDX are read or written besides the named operands.
    var usesImplicitGeneral = false
    /// Emitted with its operands it does all that the guest's instruction does. Otherwise only the interpreter can.
    var isPlain = true

    private let insn: martlet_insn
    private let fields: WideFields
    private var hasModRM = true
    private var hasImmediate = false

    /// Nil: no instruction of this unit (or one that is #UD).
    init?(_ i: Insn) {
        guard i.pointee.mnemonic == Mnemonic.vector.rawValue else { return nil }
        if i.wide.encoding != nil {
            self.init(wide: i)
        } else if i.pointee.map == 0 {
            self.init(x87: i)
        } else {
            self.init(legacy: i)
        }
    }

    private init?(x87 i: Insn) {
        guard let operation = x87Operation(i.pointee.opcode, i.pointee.modrm) else { return nil }
        insn = i.pointee
        fields = WideFields(rawValue: 0)
        unit = .x87
        memorySize = Int(operation.size)
        access = operation.kind == .load ? .load : (operation.kind == .store ? .store : .none)
        readsFlags = operation.kind == .computeReadingFlags
        writesFlags = operation.kind == .computeWritingFlags
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
        fields = WideFields(rawValue: 0)
        let traits = entry.traits
        let isMemory = i.isMemoryForm && entry.move != .empty
        let isStore = traits.contains(.store) || traits.contains(.writesRM)
        let usesMM = entry.reg == .mm || (entry.rm == .mm && !isMemory) || entry.move == .empty
        let usesXMM = entry.reg == .xmm || (entry.rm == .xmm && !isMemory)
        // CVTTPS2PI and its kin have the rules of both, MXCSR too, also with a memory operand.
        unit = usesMM ? (usesXMM || entry.rm == .xmm ? .mixed : .mmx) : .sse
        vectorSize = usesXMM ? 16 : 0
        reg = entry.reg
        rm = isMemory ? .none : entry.rm
        memorySize = isMemory ? Int(traits.contains(.wide) && i.pointee.rex & 8 != 0 ? 8 : entry.memorySize) : 0
        alignment = isMemory && traits.contains(.aligned) ? 16 : 0
        access = isMemory ? (isStore ? .store : .load) : .none
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

    private init?(wide i: Insn) {
        guard let row = i.wideEntry else { return nil }
        insn = i.pointee
        fields = i.wide
        let traits = row.traits
        hasModRM = !(insn.map == 1 && insn.opcode == 0x77 && fields.encoding == .vex)
        let isMemory = hasModRM && i.isMemoryForm
        let isW1 = insn.rex & 8 != 0
        let usesMasks = row.shape.reg == .mask || row.shape.rm == .mask
        unit = row.isGeneral ? .general : (fields.encoding == .evex || usesMasks ? .avx512 : .avx)
        reg = row.shape.reg
        v = row.shape.v
        rm = isMemory ? .none : row.shape.rm
        let size = row.vectorSize(length: fields.length, controlsRounding: fields.b && !isMemory)
        vectorSize = row.isGeneral ? 0 : size
        if isMemory { setMemory(row, isW1: isW1) }
        readsFlags = traits.contains(.readsStatus)
        writesFlags = traits.contains(.writesStatus)
        usesMXCSR = traits.contains(.mxcsr)
        writesV = traits.contains(.writesV) || traits.contains(.readsRDX)
        writesRM = traits.contains(.writesRM) && !isMemory
        writesReg = traits.isDisjoint(with: [.writesRM, .writesV, .keepsReg]) && reg != .none
        usesImplicitGeneral = !traits.isDisjoint(with: [.readsLengths, .writesRCX, .readsRDX])
        hasImmediate = traits.contains(.immediate)
        isPlain = traits.isDisjoint(with: [.special, .gathers])
        if insn.opcode == 0x77, !hasModRM { isPlain = true }
    }

    private mutating func setMemory(_ row: WideEntry, isW1: Bool) {
        let traits = row.traits
        access = traits.contains(.writesRM) ? .store : .load
        memorySize = row.memorySize(fields, w: isW1)
        alignment = traits.contains(.aligned) ? memorySize : 0
        let isMasked = fields.mask != 0 && (!traits.contains(.unsuppressed) || access == .store)
        isConditional = isMasked || traits.contains(.maskedByV)
    }

    /// Numbers of the guest's registers. REX does not extend MMX registers (SDM vol. 2 §2.2.1.2).
    var regNumber: UInt8 {
        let number = ((insn.modrm >> 3) & 7) | ((insn.rex & 4) << 1) | (fields.highReg ? 16 : 0)
        return reg == .mm || reg == .none ? number & 7 : number
    }
    var rmNumber: UInt8 {
        let number = (insn.modrm & 7) | ((insn.rex & 1) << 3)
        switch rm {
        case .mm, .mask, .none: return number & 7
        case .xmm: return fields.encoding == .evex ? number | (insn.rex & 2) << 3 : number
        case .general: return number
        }
    }
    var vNumber: UInt8 { fields.v }
    /// The vector register in the immediate's upper half (VBLENDVPS).
    var immediateRegister: UInt8 { UInt8(truncatingIfNeeded: insn.immediate >> 4) & 15 }
    /// The opmask that the instruction is under; 0: none.
    var maskNumber: UInt8 { fields.mask }
    var zeroesMasked: Bool { fields.zeroes }

    // MARK: Bytes

    /// Emits the instruction with `reg` (unless it is an opcode extension), `rm` and, where vvvv is a general register,
    /// `v` for its registers. Prefixes that only concern the address are left out. `unaligned`: a move that wants an
    /// aligned operand becomes the one that does not.
    func emit<Sink: CodeSink>(
        to sink: inout Sink, reg named: UInt8, rm: EncodedRM, v other: UInt8? = nil, unaligned: Bool = false
    ) {
        let reg = self.reg == .none ? regNumber : named
        let v = self.v == .general ? other ?? vNumber : vNumber
        var code = (map: insn.map, prefix: insn.prefixes, opcode: insn.opcode)
        if unaligned, alignment != 0 { code = Self.unalignedMove(code) }
        switch fields.encoding {
        case .vex: emitVEX(to: &sink, code, reg: reg, rm: rm, v: v)
        case .evex: emitEVEX(to: &sink, code, reg: reg, rm: rm)
        case nil: emitLegacy(to: &sink, reg: reg, rm: rm)
        }
        sink.byte(Int(code.opcode))
        if hasModRM { emitModRM(to: &sink, reg: reg, rm: rm) }
        if hasImmediate { sink.byte(Int(insn.immediate & 0xFF)) }
    }

    /// MOVAPS, MOVDQA and the non-temporal moves as MOVUPS and MOVDQU. Other instructions with an aligned operand do not
    /// exist in VEX and EVEX encoding.
    private static func unalignedMove(
        _ code: (map: UInt8, prefix: UInt8, opcode: UInt8)
    ) -> (map: UInt8, prefix: UInt8, opcode: UInt8) {
        switch (code.map, code.opcode) {
        case (1, 0x28): (1, code.prefix, 0x10)
        case (1, 0x29), (1, 0x2B): (1, code.prefix, 0x11)
        case (1, 0x6F), (2, 0x2A): (1, 0xF3, 0x6F)
        case (1, 0x7F), (1, 0xE7): (1, 0xF3, 0x7F)
        default: code
        }
    }

    private func number(_ rm: EncodedRM) -> UInt8 {
        switch rm {
        case .register(let number), .pointer(let number): number
        case .sum(let base, _, _): base
        }
    }

    private func index(_ rm: EncodedRM) -> UInt8 {
        if case .sum(_, let index, _) = rm { index } else { 0 }
    }

    private func emitLegacy<Sink: CodeSink>(to sink: inout Sink, reg: UInt8, rm: EncodedRM) {
        if insn.map != 0, insn.prefixes != 0 { sink.byte(Int(insn.prefixes)) }
        let wide = insn.map == 0 ? 0 : insn.rex & 8
        let rex = wide | (reg & 8) >> 1 | (index(rm) & 8) >> 2 | (number(rm) & 8) >> 3
        if rex != 0 { sink.byte(0x40 | Int(rex)) }
        if insn.map >= 1 { sink.byte(0x0F) }
        if insn.map == 2 { sink.byte(0x38) }
        if insn.map == 3 { sink.byte(0x3A) }
    }

    private static func pp(_ prefix: UInt8) -> Int { VectorPrefix(byte: prefix)?.rawValue ?? 0 }

    private func emitVEX<Sink: CodeSink>(
        to sink: inout Sink, _ code: (map: UInt8, prefix: UInt8, opcode: UInt8), reg: UInt8, rm: EncodedRM, v: UInt8
    ) {
        let tail = (~Int(v) & 15) << 3 | Int(fields.length) << 2 | Self.pp(code.prefix)
        let (r, x, b) = (Int(~reg & 8), Int(~index(rm) & 8), Int(~number(rm) & 8))
        if code.map == 1, insn.rex & 8 == 0, x != 0, b != 0 {
            sink.byte(0xC5)
            sink.byte(r << 4 | tail)
            return
        }
        sink.byte(0xC4)
        sink.byte(r << 4 | x << 3 | b << 2 | Int(code.map))
        sink.byte(Int(insn.rex & 8) << 4 | tail)
    }

    private func emitEVEX<Sink: CodeSink>(
        to sink: inout Sink, _ code: (map: UInt8, prefix: UInt8, opcode: UInt8), reg: UInt8, rm: EncodedRM
    ) {
        let (inverted, other) = (Int(~reg), Int(~number(rm)))
        // X extends a vector register in rm, or the index.
        var x = Int(~index(rm) & 8) << 3
        if case .register = rm, self.rm == .xmm { x = (other & 16) << 2 }
        sink.byte(0x62)
        sink.byte((inverted & 8) << 4 | x | (other & 8) << 2 | (inverted & 16) | Int(code.map))
        sink.byte(Int(insn.rex & 8) << 4 | (~Int(vNumber) & 15) << 3 | 4 | Self.pp(code.prefix))
        let high = (~Int(vNumber) & 16) >> 1
        let flags = (fields.zeroes ? 0x80 : 0) | (fields.b ? 0x10 : 0) | Int(fields.length) << 5
        sink.byte(flags | high | Int(fields.mask))
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
        case .sum(let base, let index, let displacement):
            emitSum(to: &sink, middle, base: Int(base & 7), index: Int(index & 7), displacement)
        }
    }

    /// A displacement of 8 bits counts in units of the operand's size in EVEX encoding (SDM vol. 2 §2.7.5): there it is 0.
    private func emitSum<Sink: CodeSink>(
        to sink: inout Sink, _ middle: Int, base: Int, index: Int, _ displacement: Int
    ) {
        let fitsByte = fields.encoding == .evex ? displacement == 0 : displacement >= -128 && displacement <= 127
        let isNone = displacement == 0 && base != 5
        sink.byte((isNone ? 0 : fitsByte ? 0x40 : 0x80) | middle | 4)
        sink.byte(index << 3 | base)
        if isNone { return }
        for shift in 0..<(fitsByte ? 1 : 4) { sink.byte(displacement >> (shift * 8)) }
    }
}
