/// Every instruction that the interpreter executes itself (the vector families have tables of their own, CPU/Vector).
enum Mnemonic: UInt16 {
    case invalid
    // Arithmetic and logic; the first eight in opcode order.
    case add, or, adc, sbb, and, sub, xor, cmp
    case test, inc, dec, not, neg, mul, imul1, imul2, imul3, div, idiv
    case rol, ror, rcl, rcr, shl, shr, sal, sar, shld, shrd
    case bt, bts, btr, btc, bsf, bsr, tzcnt, lzcnt, popcnt, bswap, crc32, movbe, adcx, adox
    case cmpxchg, cmpxchg8b, xadd
    case daa, das, aaa, aas, aam, aad
    case cbw, cwd
    // Data transfer.
    case mov, movImmediate, movzxByte, movzxWord, movsxByte, movsxWord, movsxd, lea, xchg, xlat, movnti
    case cmov, set, lahf, sahf, push, pop, pushImmediate, pusha, popa, pushf, popf, enter, leave
    case pushSegment, popSegment, movFromSegment, movToSegment, les, lds, lss, lfs, lgs
    case movOffsetLoad, movOffsetStore
    // Strings.
    case movs, cmps, stos, lods, scas, ins, outs
    // Control transfer.
    case jcc, jmp, jmpIndirect, jmpFar, jmpFarIndirect, call, callIndirect, callFar, callFarIndirect
    case ret, retImmediate, retFar, retFarImmediate, iret
    case loop, loope, loopne, jcxz
    case int3, int, into, int1, bound, syscall, sysret, sysenter, sysexit
    // Flags.
    case clc, stc, cmc, cld, std, cli, sti
    // System.
    case hlt, inImmediate, outImmediate, inDX, outDX, wait
    case lgdt, lidt, sgdt, sidt, lldt, ltr, sldt, str, smsw, lmsw, clts, invlpg, swapgs, rdtscp, monitor, mwait
    case movFromCR, movToCR, movFromDR, movToDR, wrmsr, rdmsr, rdtsc, rdpmc, cpuid, invd, wbinvd
    case lar, lsl, verr, verw, arpl, clac, stac, vmcall
    case xgetbv, xsetbv, xsave, xsaveopt, xsavec, xrstor
    case rdfsbase, rdgsbase, wrfsbase, wrgsbase, rdrand, rdseed, rdpid, invpcid
    case nop, pause, lfence, mfence, sfence, clflush, ud
    // Handled by CPU/Vector.
    case vector
    // Groups: resolved by ModRM.reg.
    case group1Byte, group1, group1ByteImmediate, group1A, group2ImmediateByte, group2Immediate, group2OneByte,
        group2One
    case group2CLByte, group2CL, group3Byte, group3, group4, group5, group6, group7, group8, group9, group11Byte,
        group11
    case group15, groupPrefetch
}

/// Where an instruction's operands are (SDM vol. 2, appendix A.2: E = ModRM.rm, G = ModRM.reg, Z = opcode bits 0–2).
enum Form: UInt8 {
    case none
    case eg, ge, accumulatorImmediate, eImmediate, eImmediate8, e, eOne, eCL
    case geImmediate8, geImmediate, egImmediate8, egCL
    case z, zImmediate
    case relative8, relative
    case immediate8, immediate16, immediate, immediate16And8
    case farPointer, offset
    /// ModRM is present; the vector tables decide about the rest.
    case vector

    var hasModRM: Bool {
        switch self {
        case .eg, .ge, .eImmediate, .eImmediate8, .e, .eOne, .eCL, .geImmediate8, .geImmediate, .egImmediate8, .egCL,
            .vector:
            true
        default: false
        }
    }
}

/// How the operand size follows from prefixes and mode.
enum OperandSize: UInt8 {
    /// One byte.
    case byte
    /// 16, 32 or 64 bits by prefix and mode.
    case variable
    /// As `variable`, but 64 bits by default in 64-bit mode (stack operations, near indirect branches).
    case variable64
    /// 32 bits, 64 with REX.W (64-bit mode); no 16-bit form.
    case double
    /// 64 bits in 64-bit mode, 32 elsewhere (control registers).
    case native
    case word
}

/// One row of an opcode table.
struct OpcodeEntry {
    var mnemonic: Mnemonic = .invalid
    var form: Form = .none
    var size: OperandSize = .variable
    var flags: UInt8 = 0

    /// Not in 64-bit mode.
    static let legacyOnly: UInt8 = 1
    /// Ends a block: control transfer, or a change that the next instruction's decoding depends on.
    static let endsBlock: UInt8 = 2
    /// May take LOCK with a memory destination.
    static let lockable: UInt8 = 4
    /// Only in 64-bit mode.
    static let longOnly: UInt8 = 8
    /// The rm operand is a byte whatever the operand size (MOVZX).
    static let byteSource: UInt8 = 16
    /// Memory operand only.
    static let memoryOnly: UInt8 = 32
}
