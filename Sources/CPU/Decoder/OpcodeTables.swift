/// The opcode maps of SDM vol. 2 appendix A (tables) and the groups of table A-6, built once.
final class OpcodeTables: @unchecked Sendable {
    // SAFETY: filled in init, only read afterwards, lives as long as the process.
    static let shared = OpcodeTables()

    /// Maps 0 (one byte), 1 (0F), 2 (0F 38), 3 (0F 3A): 256 rows each.
    let rows: UnsafeMutablePointer<OpcodeEntry>

    private init() {
        rows = .allocate(capacity: 1024)
        rows.initialize(repeating: OpcodeEntry(), count: 1024)
        fillArithmetic()
        fillOneByte()
        fillControl()
        fillTwoByteSystem()
        fillTwoByteInteger()
    }

    private func set(
        _ opcode: Int, _ mnemonic: Mnemonic, _ form: Form = .none, _ size: OperandSize = .variable, flags: UInt8 = 0
    ) {
        rows[opcode] = OpcodeEntry(mnemonic: mnemonic, form: form, size: size, flags: flags)
    }

    private func fillArithmetic() {
        let operations: [Mnemonic] = [.add, .or, .adc, .sbb, .and, .sub, .xor, .cmp]
        for (index, mnemonic) in operations.enumerated() {
            let base = index * 8
            let lock: UInt8 = mnemonic == .cmp ? 0 : OpcodeEntry.lockable
            set(base, mnemonic, .eg, .byte, flags: lock)
            set(base + 1, mnemonic, .eg, flags: lock)
            set(base + 2, mnemonic, .ge, .byte)
            set(base + 3, mnemonic, .ge)
            set(base + 4, mnemonic, .accumulatorImmediate, .byte)
            set(base + 5, mnemonic, .accumulatorImmediate)
        }
        for (opcode, mnemonic) in [(0x27, Mnemonic.daa), (0x2F, .das), (0x37, .aaa), (0x3F, .aas)] {
            set(opcode, mnemonic, flags: OpcodeEntry.legacyOnly)
        }
        for register in 0..<8 {
            set(0x40 + register, .inc, .z, flags: OpcodeEntry.legacyOnly)
            set(0x48 + register, .dec, .z, flags: OpcodeEntry.legacyOnly)
        }
        set(0x80, .group1Byte, .eImmediate, .byte)
        set(0x81, .group1, .eImmediate)
        set(0x82, .group1Byte, .eImmediate, .byte, flags: OpcodeEntry.legacyOnly)
        set(0x83, .group1ByteImmediate, .eImmediate8)
        set(0x84, .test, .eg, .byte)
        set(0x85, .test, .eg)
        set(0xA8, .test, .accumulatorImmediate, .byte)
        set(0xA9, .test, .accumulatorImmediate)
        set(0x69, .imul3, .geImmediate)
        set(0x6B, .imul3, .geImmediate8)
        set(0xC0, .group2ImmediateByte, .eImmediate8, .byte)
        set(0xC1, .group2Immediate, .eImmediate8)
        set(0xD0, .group2OneByte, .eOne, .byte)
        set(0xD1, .group2One, .eOne)
        set(0xD2, .group2CLByte, .eCL, .byte)
        set(0xD3, .group2CL, .eCL)
        set(0xF6, .group3Byte, .e, .byte)
        set(0xF7, .group3, .e)
        set(0xFE, .group4, .e, .byte)
        set(0xFF, .group5, .e)
        set(0xD4, .aam, .immediate8, .byte, flags: OpcodeEntry.legacyOnly)
        set(0xD5, .aad, .immediate8, .byte, flags: OpcodeEntry.legacyOnly)
        set(0x98, .cbw)
        set(0x99, .cwd)
    }

    private func fillOneByte() {
        let legacy = OpcodeEntry.legacyOnly
        for (opcode, mnemonic) in [
            (0x06, Mnemonic.pushSegment), (0x07, .popSegment), (0x0E, .pushSegment), (0x16, .pushSegment),
            (0x17, .popSegment), (0x1E, .pushSegment), (0x1F, .popSegment),
        ] {
            // POP SS shadows the next instruction; a data segment's base is part of how a block was decoded.
            set(
                opcode, mnemonic, .none, .variable,
                flags: legacy | (mnemonic == .popSegment ? OpcodeEntry.endsBlock : 0))
        }
        for register in 0..<8 {
            set(0x50 + register, .push, .z, .variable64)
            set(0x58 + register, .pop, .z, .variable64)
            set(0xB0 + register, .movImmediate, .zImmediate, .byte)
            set(0xB8 + register, .movImmediate, .zImmediate)
        }
        for register in 0..<8 { set(0x90 + register, .xchg, .z) }
        set(0x60, .pusha, flags: legacy)
        set(0x61, .popa, flags: legacy)
        set(0x62, .bound, .ge, flags: legacy | OpcodeEntry.memoryOnly)
        set(0x63, .movsxd, .ge)
        set(0x68, .pushImmediate, .immediate, .variable64)
        set(0x6A, .pushImmediate, .immediate8, .variable64)
        set(0x6C, .ins, .none, .byte)
        set(0x6D, .ins)
        set(0x6E, .outs, .none, .byte)
        set(0x6F, .outs)
        set(0x86, .xchg, .eg, .byte, flags: OpcodeEntry.lockable)
        set(0x87, .xchg, .eg, flags: OpcodeEntry.lockable)
        set(0x88, .mov, .eg, .byte)
        set(0x89, .mov, .eg)
        set(0x8A, .mov, .ge, .byte)
        set(0x8B, .mov, .ge)
        set(0x8C, .movFromSegment, .eg)
        set(0x8D, .lea, .ge, flags: OpcodeEntry.memoryOnly)
        set(0x8E, .movToSegment, .ge, .word, flags: OpcodeEntry.endsBlock)
        set(0x8F, .group1A, .e, .variable64)
        set(0x9B, .wait)
        set(0x9C, .pushf, .none, .variable64)
        set(0x9D, .popf, .none, .variable64, flags: OpcodeEntry.endsBlock)
        set(0x9E, .sahf)
        set(0x9F, .lahf)
        set(0xA0, .movOffsetLoad, .offset, .byte)
        set(0xA1, .movOffsetLoad, .offset)
        set(0xA2, .movOffsetStore, .offset, .byte)
        set(0xA3, .movOffsetStore, .offset)
        for (opcode, mnemonic) in [(0xA4, Mnemonic.movs), (0xA6, .cmps), (0xAA, .stos), (0xAC, .lods), (0xAE, .scas)] {
            set(opcode, mnemonic, .none, .byte)
            set(opcode + 1, mnemonic)
        }
        set(0xC4, .les, .ge, flags: legacy | OpcodeEntry.endsBlock | OpcodeEntry.memoryOnly)
        set(0xC5, .lds, .ge, flags: legacy | OpcodeEntry.endsBlock | OpcodeEntry.memoryOnly)
        set(0xC6, .group11Byte, .eImmediate, .byte)
        set(0xC7, .group11, .eImmediate)
        set(0xC8, .enter, .immediate16And8, .variable64)
        set(0xC9, .leave, .none, .variable64)
        set(0xD6, .invalid)
        set(0xD7, .xlat, .none, .byte)
        for opcode in 0xD8...0xDF { set(opcode, .vector, .vector) }
        set(0xF5, .cmc)
        set(0xF8, .clc)
        set(0xF9, .stc)
        set(0xFC, .cld)
        set(0xFD, .std)
    }

    private func fillControl() {
        let ends = OpcodeEntry.endsBlock
        let legacy = OpcodeEntry.legacyOnly
        for condition in 0..<16 {
            // Falls through: the block goes on behind a conditional branch.
            set(0x70 + condition, .jcc, .relative8)
            set(0x180 + condition, .jcc, .relative)
        }
        set(0x9A, .callFar, .farPointer, flags: ends | legacy)
        set(0xC2, .retImmediate, .immediate16, .variable64, flags: ends)
        set(0xC3, .ret, .none, .variable64, flags: ends)
        set(0xCA, .retFarImmediate, .immediate16, flags: ends)
        set(0xCB, .retFar, flags: ends)
        set(0xCC, .int3, flags: ends)
        set(0xCD, .int, .immediate8, .byte, flags: ends)
        set(0xCE, .into, flags: ends | legacy)
        set(0xCF, .iret, flags: ends)
        set(0xE0, .loopne, .relative8)
        set(0xE1, .loope, .relative8)
        set(0xE2, .loop, .relative8)
        set(0xE3, .jcxz, .relative8)
        set(0xE4, .inImmediate, .immediate8, .byte, flags: ends)
        set(0xE5, .inImmediate, .immediate8, .variable, flags: ends)
        set(0xE6, .outImmediate, .immediate8, .byte, flags: ends)
        set(0xE7, .outImmediate, .immediate8, .variable, flags: ends)
        set(0xE8, .call, .relative, .variable64, flags: ends)
        set(0xE9, .jmp, .relative, flags: ends)
        set(0xEA, .jmpFar, .farPointer, flags: ends | legacy)
        set(0xEB, .jmp, .relative8, flags: ends)
        set(0xEC, .inDX, .none, .byte, flags: ends)
        set(0xED, .inDX, flags: ends)
        set(0xEE, .outDX, .none, .byte, flags: ends)
        set(0xEF, .outDX, flags: ends)
        set(0xF1, .int1, flags: ends)
        set(0xF4, .hlt, flags: ends)
        set(0xFA, .cli)
        set(0xFB, .sti)
    }

    private func fillTwoByteSystem() {
        let ends = OpcodeEntry.endsBlock
        set(0x100, .group6, .e, flags: 0)
        set(0x101, .group7, .e, flags: 0)
        set(0x102, .lar, .ge)
        set(0x103, .lsl, .ge)
        set(0x105, .syscall, flags: ends)
        set(0x106, .clts, flags: ends)
        set(0x107, .sysret, flags: ends)
        set(0x108, .invd, flags: ends)
        set(0x109, .wbinvd, flags: ends)
        set(0x10B, .ud)
        set(0x10D, .groupPrefetch, .e)
        for opcode in 0x118...0x11F { set(opcode, .nop, .e) }
        set(0x120, .movFromCR, .eg, .native)
        set(0x121, .movFromDR, .eg, .native)
        set(0x122, .movToCR, .ge, .native, flags: ends)
        set(0x123, .movToDR, .ge, .native, flags: ends)
        set(0x130, .wrmsr, flags: ends)
        set(0x131, .rdtsc)
        set(0x132, .rdmsr)
        set(0x133, .rdpmc)
        set(0x134, .sysenter, flags: ends)
        set(0x135, .sysexit, flags: ends)
        set(0x1A0, .pushSegment, .none, .variable64)
        set(0x1A1, .popSegment, .none, .variable64, flags: ends)
        set(0x1A2, .cpuid)
        set(0x1A8, .pushSegment, .none, .variable64)
        set(0x1A9, .popSegment, .none, .variable64, flags: ends)
        set(0x1AE, .group15, .vector)
        set(0x1B9, .ud, .e)
        set(0x282, .invpcid, .ge, .native, flags: ends | OpcodeEntry.memoryOnly)
        set(0x1C7, .group9, .e)
        set(0x1FF, .ud, .e)
        set(0x1B2, .lss, .ge, flags: ends | OpcodeEntry.memoryOnly)
        set(0x1B4, .lfs, .ge, flags: ends | OpcodeEntry.memoryOnly)
        set(0x1B5, .lgs, .ge, flags: ends | OpcodeEntry.memoryOnly)
    }

    private func fillTwoByteInteger() {
        let lock = OpcodeEntry.lockable
        for condition in 0..<16 {
            set(0x140 + condition, .cmov, .ge)
            set(0x190 + condition, .set, .e, .byte)
        }
        set(0x1A3, .bt, .eg)
        set(0x1A4, .shld, .egImmediate8)
        set(0x1A5, .shld, .egCL)
        set(0x1AB, .bts, .eg, flags: lock)
        set(0x1AC, .shrd, .egImmediate8)
        set(0x1AD, .shrd, .egCL)
        set(0x1AF, .imul2, .ge)
        set(0x1B0, .cmpxchg, .eg, .byte, flags: lock)
        set(0x1B1, .cmpxchg, .eg, flags: lock)
        set(0x1B3, .btr, .eg, flags: lock)
        set(0x1B6, .movzxByte, .ge, flags: OpcodeEntry.byteSource)
        set(0x1B7, .movzxWord, .ge)
        set(0x1B8, .popcnt, .ge)
        set(0x1BA, .group8, .eImmediate8)
        set(0x1BB, .btc, .eg, flags: lock)
        set(0x1BC, .bsf, .ge)
        set(0x1BD, .bsr, .ge)
        set(0x1BE, .movsxByte, .ge, flags: OpcodeEntry.byteSource)
        set(0x1BF, .movsxWord, .ge)
        set(0x1C0, .xadd, .eg, .byte, flags: lock)
        set(0x1C1, .xadd, .eg, flags: lock)
        set(0x1C3, .movnti, .eg, .double, flags: OpcodeEntry.memoryOnly)
        for register in 0..<8 { set(0x1C8 + register, .bswap, .z) }
        set(0x2F0, .movbe, .ge)
        set(0x2F1, .movbe, .eg)
    }
}

/// Rows of the groups, by ModRM.reg (SDM vol. 2 table A-6). Returns the final row; nil: #UD.
func groupEntry(_ entry: OpcodeEntry, modrm: UInt8, prefix: UInt8) -> OpcodeEntry? {
    let register = Int((modrm >> 3) & 7)
    let isMemory = modrm < 0xC0
    var result = entry
    func pick(_ mnemonics: [Mnemonic], lockable: Bool = false) -> OpcodeEntry? {
        result.mnemonic = mnemonics[register]
        if lockable { result.flags |= OpcodeEntry.lockable }
        return result.mnemonic == .invalid ? nil : result
    }
    switch entry.mnemonic {
    case .group1Byte, .group1, .group1ByteImmediate:
        return pick([.add, .or, .adc, .sbb, .and, .sub, .xor, .cmp], lockable: register != 7)
    case .group1A:
        return register == 0 ? pick([.pop, .invalid, .invalid, .invalid, .invalid, .invalid, .invalid, .invalid]) : nil
    case .group2ImmediateByte, .group2Immediate, .group2OneByte, .group2One, .group2CLByte, .group2CL:
        return pick([.rol, .ror, .rcl, .rcr, .shl, .shr, .sal, .sar])
    case .group3Byte, .group3:
        if register < 2 { result.form = .eImmediate }
        return pick([.test, .test, .not, .neg, .mul, .imul1, .div, .idiv], lockable: register == 2 || register == 3)
    case .group4:
        return pick([.inc, .dec, .invalid, .invalid, .invalid, .invalid, .invalid, .invalid], lockable: true)
    case .group5:
        return group5Entry(entry, register: register, isMemory: isMemory)
    case .group8:
        return pick([.invalid, .invalid, .invalid, .invalid, .bt, .bts, .btr, .btc], lockable: register > 4)
    case .group11Byte, .group11:
        return register == 0
            ? pick([.mov, .invalid, .invalid, .invalid, .invalid, .invalid, .invalid, .invalid]) : nil
    case .groupPrefetch:
        return pick(Array(repeating: .nop, count: 8))
    case .group6, .group7, .group9, .group15:
        return systemGroupEntry(entry, modrm: modrm, prefix: prefix)
    default:
        return entry
    }
}

private func group5Entry(_ entry: OpcodeEntry, register: Int, isMemory: Bool) -> OpcodeEntry? {
    var result = entry
    let mnemonics: [Mnemonic] = [
        .inc, .dec, .callIndirect, .callFarIndirect, .jmpIndirect, .jmpFarIndirect, .push, .invalid,
    ]
    result.mnemonic = mnemonics[register]
    switch register {
    case 0, 1: result.flags |= OpcodeEntry.lockable
    case 2, 4:
        result.size = .variable64
        result.flags |= OpcodeEntry.endsBlock
    case 3, 5:
        result.flags |= OpcodeEntry.endsBlock | OpcodeEntry.memoryOnly
    case 6: result.size = .variable64
    default: return nil
    }
    return result
}

private func systemGroupEntry(_ entry: OpcodeEntry, modrm: UInt8, prefix: UInt8) -> OpcodeEntry? {
    let register = Int((modrm >> 3) & 7)
    let isMemory = modrm < 0xC0
    func row(_ mnemonic: Mnemonic, _ size: OperandSize = .variable, _ ends: Bool = false) -> OpcodeEntry {
        OpcodeEntry(mnemonic: mnemonic, form: .e, size: size, flags: ends ? OpcodeEntry.endsBlock : 0)
    }
    switch entry.mnemonic {
    case .group6:
        switch register {
        case 0: return row(.sldt)
        case 1: return row(.str)
        case 2: return row(.lldt, .word, true)
        case 3: return row(.ltr, .word, true)
        case 4: return row(.verr, .word)
        case 5: return row(.verw, .word)
        default: return nil
        }
    case .group7:
        return isMemory ? group7Memory(register, row) : group7Register(modrm, prefix, row)
    case .group9:
        switch (register, isMemory, prefix) {
        case (1, true, _):
            var result = row(.cmpxchg8b)
            result.flags |= OpcodeEntry.lockable
            return result
        case (4, true, 0): return row(.xsavec)
        case (6, false, 0), (6, false, 0x66): return row(.rdrand)
        case (7, false, 0), (7, false, 0x66): return row(.rdseed)
        case (7, false, 0xF3): return row(.rdpid, .native)
        default: return nil
        }
    case .group15:
        return group15Entry(register, isMemory: isMemory, prefix: prefix)
    default: return nil
    }
}

private func group7Memory(
    _ register: Int, _ row: (Mnemonic, OperandSize, Bool) -> OpcodeEntry
) -> OpcodeEntry? {
    switch register {
    case 0: row(.sgdt, .variable, false)
    case 1: row(.sidt, .variable, false)
    case 2: row(.lgdt, .variable, true)
    case 3: row(.lidt, .variable, true)
    case 4: row(.smsw, .variable, false)
    case 6: row(.lmsw, .word, true)
    case 7: row(.invlpg, .byte, true)
    default: nil
    }
}

private func group7Register(
    _ modrm: UInt8, _ prefix: UInt8, _ row: (Mnemonic, OperandSize, Bool) -> OpcodeEntry
) -> OpcodeEntry? {
    switch modrm {
    case 0xC1, 0xD9: row(.vmcall, .variable, true)
    case 0xC8: row(.monitor, .variable, true)
    case 0xC9: row(.mwait, .variable, true)
    case 0xCA where prefix == 0: row(.clac, .variable, true)
    case 0xCB where prefix == 0: row(.stac, .variable, true)
    case 0xD0 where prefix == 0: row(.xgetbv, .variable, false)
    case 0xD1 where prefix == 0: row(.xsetbv, .variable, true)
    case 0xE0...0xE7: row(.smsw, .variable, false)
    case 0xF0...0xF7: row(.lmsw, .word, true)
    case 0xF8: row(.swapgs, .variable, true)
    case 0xF9: row(.rdtscp, .variable, false)
    default: nil
    }
}

private func group15Entry(_ register: Int, isMemory: Bool, prefix: UInt8) -> OpcodeEntry? {
    func row(_ mnemonic: Mnemonic, _ size: OperandSize, ends: Bool = false) -> OpcodeEntry {
        OpcodeEntry(mnemonic: mnemonic, form: .e, size: size, flags: ends ? OpcodeEntry.endsBlock : 0)
    }
    if isMemory {
        switch (register, prefix) {
        case (0...3, 0): return OpcodeEntry(mnemonic: .vector, form: .vector, size: .variable, flags: 0)
        case (4, 0): return row(.xsave, .variable)
        case (5, 0): return row(.xrstor, .variable)
        case (6, 0): return row(.xsaveopt, .variable)
        // CLFLUSH, CLFLUSHOPT, CLWB.
        case (7, 0), (7, 0x66), (6, 0x66): return row(.clflush, .byte)
        default: return nil
        }
    }
    switch (register, prefix) {
    case (0, 0xF3): return row(.rdfsbase, .double)
    case (1, 0xF3): return row(.rdgsbase, .double)
    case (2, 0xF3): return row(.wrfsbase, .double, ends: true)
    case (3, 0xF3): return row(.wrgsbase, .double, ends: true)
    case (5, 0): return row(.lfence, .variable)
    case (6, 0): return row(.mfence, .variable)
    case (7, 0): return row(.sfence, .variable)
    default: return nil
    }
}
