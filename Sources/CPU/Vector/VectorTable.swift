internal import CHost

/// The extension that an instruction belongs to, as a bit of `VectorUnit.hostFeatures`.
enum VectorFeature: UInt8, CaseIterable {
    case x87, mmx, sse, sse2, sse3, ssse3, sse41, sse42, pclmulqdq, aes, sha, fxsr
    case avx, avx2, fma, f16c, bmi1, bmi2, vaes, vpclmulqdq, gfni, avxVNNI
    /// AVX-512 F, CD, BW, DQ and VL.
    case avx512
    case ifma, vbmi, vbmi2, vnni, bitalg, vpopcntdq, bf16

    var bit: UInt32 { 1 << UInt32(rawValue) }
}

/// The register file that an operand names.
enum VectorOperand: UInt8 {
    /// An opcode extension or nothing.
    case none
    /// `xmm`: a vector register of any width. `mask`: an opmask.
    case xmm, mm, general, mask
}

/// What else the stub and the handler of an instruction must know.
struct VectorTraits: OptionSet {
    let rawValue: UInt16

    /// An imm8 follows.
    static let immediate = VectorTraits(rawValue: 1 << 0)
    /// A 16-byte memory operand must be aligned (SDM vol. 3A §6.15, interrupt 13).
    static let aligned = VectorTraits(rawValue: 1 << 1)
    /// Depends on MXCSR and changes it.
    static let mxcsr = VectorTraits(rawValue: 1 << 2)
    /// Writes the status flags.
    static let status = VectorTraits(rawValue: 1 << 3)
    /// The rm operand is the destination.
    static let writesRM = VectorTraits(rawValue: 1 << 4)
    /// The reg operand is only read.
    static let keepsReg = VectorTraits(rawValue: 1 << 5)
    /// No form with a register as rm.
    static let memoryOnly = VectorTraits(rawValue: 1 << 6)
    /// XMM0 is one more source.
    static let readsXMM0 = VectorTraits(rawValue: 1 << 7)
    /// XMM0 is the destination.
    static let writesXMM0 = VectorTraits(rawValue: 1 << 8)
    /// EAX and EDX are string lengths.
    static let readsLengths = VectorTraits(rawValue: 1 << 9)
    /// ECX is the destination.
    static let writesRCX = VectorTraits(rawValue: 1 << 10)
    /// The memory operand grows from 4 to 8 bytes with REX.W.
    static let wide = VectorTraits(rawValue: 1 << 11)
    /// The store form of a move.
    static let store = VectorTraits(rawValue: 1 << 12)
}

/// Instructions that need no stub: a Swift handler does the work.
enum VectorMove: UInt8 {
    case none
    /// 16 bytes.
    case full
    /// MOVSS, MOVSD: one element; a load clears the rest.
    case single, double
    /// MOVQ between XMM registers and memory.
    case quad
    /// MOVD and MOVQ between XMM and general registers or memory.
    case general
    /// MOVLPS and MOVHLPS, MOVHPS and MOVLHPS, and their PD forms.
    case low, high
    case maskedXMM, maskedMM
    case empty
    case loadMXCSR, storeMXCSR, fxsave, fxrstor
}

/// One row of the whitelist.
struct VectorEntry {
    var feature: VectorFeature
    var reg: VectorOperand
    var rm: VectorOperand
    /// Bytes of the memory operand; 0: no memory form.
    var memorySize: UInt8
    var traits: VectorTraits
    var move: VectorMove = .none
}

/// Mandatory prefixes.
enum VectorPrefix: Int {
    case none = 0
    case p66 = 1
    case pF3 = 2
    case pF2 = 3

    init?(byte: UInt8) {
        switch byte {
        case 0: self = .none
        case 0x66: self = .p66
        case 0xF3: self = .pF3
        case 0xF2: self = .pF2
        default: return nil
        }
    }
}

/// The whitelist of MMX, SSE … SSE4.2, AES, PCLMULQDQ, SHA and GFNI instructions (SDM vol. 2, appendix A.3 tables and
/// the instruction pages). Rows by opcode map (0F, 0F 38, 0F 3A), mandatory prefix and opcode.
struct VectorTable {
    static let shared = VectorTable()

    private var rows = [VectorEntry?](repeating: nil, count: 3 * 4 * 256)

    init() {
        addFloatingPoint()
        addConversions()
        addMoves()
        addIntegerBoth()
        addIntegerSingle()
        addShifts()
        addMap38()
        addMap3A()
    }

    func entry(map: UInt8, prefix: VectorPrefix, opcode: UInt8) -> VectorEntry? {
        guard map >= 1, map <= 3 else { return nil }
        return rows[(Int(map - 1) * 4 + prefix.rawValue) * 256 + Int(opcode)]
    }

    private mutating func add(
        _ feature: VectorFeature, map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ reg: VectorOperand,
        _ rm: VectorOperand, _ memorySize: UInt8, _ traits: VectorTraits = [], move: VectorMove = .none
    ) {
        let entry = VectorEntry(
            feature: feature, reg: reg, rm: rm, memorySize: memorySize, traits: traits, move: move)
        for opcode in opcodes { rows[((map - 1) * 4 + prefix.rawValue) * 256 + opcode] = entry }
    }

    /// PS, PD, SS and SD forms of one operation.
    private mutating func addArithmetic(_ opcodes: [Int], _ traits: VectorTraits) {
        add(.sse, .none, opcodes, .xmm, .xmm, 16, [.aligned, traits])
        add(.sse2, .p66, opcodes, .xmm, .xmm, 16, [.aligned, traits])
        add(.sse, .pF3, opcodes, .xmm, .xmm, 4, traits)
        add(.sse2, .pF2, opcodes, .xmm, .xmm, 8, traits)
    }

    private mutating func addFloatingPoint() {
        addArithmetic([0x51, 0x58, 0x59, 0x5C, 0x5D, 0x5E, 0x5F], .mxcsr)
        addArithmetic([0xC2], [.mxcsr, .immediate])
        // RSQRT and RCP neither obey nor change MXCSR.
        add(.sse, .none, [0x52, 0x53], .xmm, .xmm, 16, .aligned)
        add(.sse, .pF3, [0x52, 0x53], .xmm, .xmm, 4)
        add(.sse, .none, [0x54, 0x55, 0x56, 0x57, 0x14, 0x15], .xmm, .xmm, 16, .aligned)
        add(.sse2, .p66, [0x54, 0x55, 0x56, 0x57, 0x14, 0x15], .xmm, .xmm, 16, .aligned)
        add(.sse, .none, [0xC6], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.sse2, .p66, [0xC6], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.sse, .none, [0x2E, 0x2F], .xmm, .xmm, 4, [.mxcsr, .status, .keepsReg])
        add(.sse2, .p66, [0x2E, 0x2F], .xmm, .xmm, 8, [.mxcsr, .status, .keepsReg])
        add(.sse3, .p66, [0x7C, 0x7D, 0xD0], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse3, .pF2, [0x7C, 0x7D, 0xD0], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse3, .pF3, [0x12, 0x16], .xmm, .xmm, 16, .aligned)
        add(.sse3, .pF2, [0x12], .xmm, .xmm, 8)
    }

    private mutating func addConversions() {
        add(.sse2, .none, [0x5A], .xmm, .xmm, 8, .mxcsr)
        add(.sse2, .p66, [0x5A], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse2, .pF3, [0x5A], .xmm, .xmm, 4, .mxcsr)
        add(.sse2, .pF2, [0x5A], .xmm, .xmm, 8, .mxcsr)
        add(.sse2, .none, [0x5B], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse2, .p66, [0x5B, 0xE6], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse2, .pF3, [0x5B], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse2, .pF3, [0xE6], .xmm, .xmm, 8)
        add(.sse2, .pF2, [0xE6], .xmm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse, .none, [0x2A], .xmm, .mm, 8, .mxcsr)
        add(.sse2, .p66, [0x2A], .xmm, .mm, 8)
        add(.sse, .pF3, [0x2A], .xmm, .general, 4, [.mxcsr, .wide])
        add(.sse2, .pF2, [0x2A], .xmm, .general, 4, [.mxcsr, .wide])
        add(.sse, .none, [0x2C, 0x2D], .mm, .xmm, 8, .mxcsr)
        add(.sse2, .p66, [0x2C, 0x2D], .mm, .xmm, 16, [.aligned, .mxcsr])
        add(.sse, .pF3, [0x2C, 0x2D], .general, .xmm, 4, .mxcsr)
        add(.sse2, .pF2, [0x2C, 0x2D], .general, .xmm, 8, .mxcsr)
    }

    private mutating func addMoves() {
        add(.sse, .none, [0x10], .xmm, .xmm, 16, move: .full)
        add(.sse2, .p66, [0x10], .xmm, .xmm, 16, move: .full)
        add(.sse, .none, [0x11], .xmm, .xmm, 16, .store, move: .full)
        add(.sse2, .p66, [0x11], .xmm, .xmm, 16, .store, move: .full)
        add(.sse, .none, [0x28], .xmm, .xmm, 16, .aligned, move: .full)
        add(.sse2, .p66, [0x28, 0x6F], .xmm, .xmm, 16, .aligned, move: .full)
        add(.sse, .none, [0x29], .xmm, .xmm, 16, [.aligned, .store], move: .full)
        add(.sse2, .p66, [0x29, 0x7F], .xmm, .xmm, 16, [.aligned, .store], move: .full)
        add(.sse2, .pF3, [0x6F], .xmm, .xmm, 16, move: .full)
        add(.sse2, .pF3, [0x7F], .xmm, .xmm, 16, .store, move: .full)
        add(.sse3, .pF2, [0xF0], .xmm, .xmm, 16, .memoryOnly, move: .full)
        add(.sse, .none, [0x2B], .xmm, .xmm, 16, [.aligned, .store, .memoryOnly], move: .full)
        add(.sse2, .p66, [0x2B, 0xE7], .xmm, .xmm, 16, [.aligned, .store, .memoryOnly], move: .full)
        add(.sse41, map: 2, .p66, [0x2A], .xmm, .xmm, 16, [.aligned, .memoryOnly], move: .full)

        add(.sse, .pF3, [0x10], .xmm, .xmm, 4, move: .single)
        add(.sse, .pF3, [0x11], .xmm, .xmm, 4, .store, move: .single)
        add(.sse2, .pF2, [0x10], .xmm, .xmm, 8, move: .double)
        add(.sse2, .pF2, [0x11], .xmm, .xmm, 8, .store, move: .double)
        add(.sse2, .pF3, [0x7E], .xmm, .xmm, 8, move: .quad)
        add(.sse2, .p66, [0xD6], .xmm, .xmm, 8, .store, move: .quad)
        add(.sse2, .p66, [0x6E], .xmm, .general, 4, .wide, move: .general)
        add(.sse2, .p66, [0x7E], .xmm, .general, 4, [.wide, .store], move: .general)

        add(.sse, .none, [0x12], .xmm, .xmm, 8, move: .low)
        add(.sse, .none, [0x13], .xmm, .xmm, 8, [.store, .memoryOnly], move: .low)
        add(.sse2, .p66, [0x12], .xmm, .xmm, 8, .memoryOnly, move: .low)
        add(.sse2, .p66, [0x13], .xmm, .xmm, 8, [.store, .memoryOnly], move: .low)
        add(.sse, .none, [0x16], .xmm, .xmm, 8, move: .high)
        add(.sse, .none, [0x17], .xmm, .xmm, 8, [.store, .memoryOnly], move: .high)
        add(.sse2, .p66, [0x16], .xmm, .xmm, 8, .memoryOnly, move: .high)
        add(.sse2, .p66, [0x17], .xmm, .xmm, 8, [.store, .memoryOnly], move: .high)

        add(.sse, .none, [0x50], .general, .xmm, 0)
        add(.sse2, .p66, [0x50], .general, .xmm, 0)
        // MMX moves, and those between the register files, are rare enough for stubs.
        add(.mmx, .none, [0x6E], .mm, .general, 4, .wide)
        add(.mmx, .none, [0x7E], .mm, .general, 4, [.wide, .writesRM])
        add(.mmx, .none, [0x6F], .mm, .mm, 8)
        add(.mmx, .none, [0x7F], .mm, .mm, 8, .writesRM)
        add(.sse, .none, [0xE7], .mm, .mm, 8, [.writesRM, .memoryOnly])
        add(.sse2, .pF3, [0xD6], .xmm, .mm, 0)
        add(.sse2, .pF2, [0xD6], .mm, .xmm, 0)
        add(.sse, .none, [0xF7], .mm, .mm, 0, move: .maskedMM)
        add(.sse2, .p66, [0xF7], .xmm, .xmm, 0, move: .maskedXMM)
        add(.mmx, .none, [0x77], .none, .none, 0, move: .empty)
    }

    /// Operations on MMX registers (no prefix) and XMM registers (66).
    private mutating func addBoth(_ mmFeature: VectorFeature, _ opcodes: [Int], mmMemory: UInt8 = 8) {
        add(mmFeature, .none, opcodes, .mm, .mm, mmMemory)
        add(.sse2, .p66, opcodes, .xmm, .xmm, 16, .aligned)
    }

    private mutating func addIntegerBoth() {
        addBoth(.mmx, [0x60, 0x61, 0x62], mmMemory: 4)
        addBoth(.mmx, Array(0x63...0x6B) + [0x74, 0x75, 0x76])
        addBoth(.mmx, [0xD1, 0xD2, 0xD3, 0xD5, 0xD8, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF])
        addBoth(.mmx, [0xE1, 0xE2, 0xE5, 0xE8, 0xE9, 0xEB, 0xEC, 0xED, 0xEF])
        addBoth(.mmx, [0xF1, 0xF2, 0xF3, 0xF5, 0xF8, 0xF9, 0xFA, 0xFC, 0xFD, 0xFE])
        addBoth(.sse, [0xDA, 0xDE, 0xE0, 0xE3, 0xE4, 0xEA, 0xEE, 0xF6])
        addBoth(.sse2, [0xD4, 0xF4, 0xFB])
    }

    private mutating func addIntegerSingle() {
        add(.sse2, .p66, [0x6C, 0x6D], .xmm, .xmm, 16, .aligned)
        add(.sse, .none, [0x70], .mm, .mm, 8, .immediate)
        for prefix in [VectorPrefix.p66, .pF3, .pF2] {
            add(.sse2, prefix, [0x70], .xmm, .xmm, 16, [.aligned, .immediate])
        }
        add(.sse, .none, [0xC4], .mm, .general, 2, .immediate)
        add(.sse2, .p66, [0xC4], .xmm, .general, 2, .immediate)
        add(.sse, .none, [0xC5], .general, .mm, 0, .immediate)
        add(.sse2, .p66, [0xC5], .general, .xmm, 0, .immediate)
        add(.sse, .none, [0xD7], .general, .mm, 0)
        add(.sse2, .p66, [0xD7], .general, .xmm, 0)
    }

    /// Groups 12, 13 and 14: shifts by an immediate, register forms only.
    private mutating func addShifts() {
        add(.mmx, .none, [0x71, 0x72, 0x73], .none, .mm, 0, [.immediate, .writesRM])
        add(.sse2, .p66, [0x71, 0x72, 0x73], .none, .xmm, 0, [.immediate, .writesRM])
    }

    /// Whether ModRM.reg is a shift of group 12, 13 or 14 (SDM vol. 2 table A-6).
    static func isShift(_ opcode: UInt8, prefix: VectorPrefix, extension number: UInt8) -> Bool {
        switch opcode {
        case 0x71, 0x72: number == 2 || number == 4 || number == 6
        default: number == 2 || number == 6 || (prefix == .p66 && (number == 3 || number == 7))
        }
    }

    private mutating func addMap38() {
        let ssse3 = Array(0x00...0x0B) + [0x1C, 0x1D, 0x1E]
        add(.ssse3, map: 2, .none, ssse3, .mm, .mm, 8)
        add(.ssse3, map: 2, .p66, ssse3, .xmm, .xmm, 16, .aligned)
        add(.sse41, map: 2, .p66, [0x10, 0x14, 0x15], .xmm, .xmm, 16, [.aligned, .readsXMM0])
        add(.sse41, map: 2, .p66, [0x17], .xmm, .xmm, 16, [.aligned, .status, .keepsReg])
        for first in [0x20, 0x30] {
            add(.sse41, map: 2, .p66, [first, first + 3, first + 5], .xmm, .xmm, 8)
            add(.sse41, map: 2, .p66, [first + 1, first + 4], .xmm, .xmm, 4)
            add(.sse41, map: 2, .p66, [first + 2], .xmm, .xmm, 2)
        }
        let sse41 = [0x28, 0x29, 0x2B] + Array(0x38...0x41)
        add(.sse41, map: 2, .p66, sse41, .xmm, .xmm, 16, .aligned)
        add(.sse42, map: 2, .p66, [0x37], .xmm, .xmm, 16, .aligned)
        add(.sha, map: 2, .none, [0xC8, 0xC9, 0xCA, 0xCC, 0xCD], .xmm, .xmm, 16, .aligned)
        add(.sha, map: 2, .none, [0xCB], .xmm, .xmm, 16, [.aligned, .readsXMM0])
        add(.aes, map: 2, .p66, Array(0xDB...0xDF), .xmm, .xmm, 16, .aligned)
        add(.gfni, map: 2, .p66, [0xCF], .xmm, .xmm, 16, .aligned)
    }

    private mutating func addMap3A() {
        add(.sse41, map: 3, .p66, [0x08, 0x09], .xmm, .xmm, 16, [.aligned, .mxcsr, .immediate])
        add(.sse41, map: 3, .p66, [0x0A], .xmm, .xmm, 4, [.mxcsr, .immediate])
        add(.sse41, map: 3, .p66, [0x0B], .xmm, .xmm, 8, [.mxcsr, .immediate])
        add(.sse41, map: 3, .p66, [0x0C, 0x0D, 0x0E, 0x42], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.ssse3, map: 3, .none, [0x0F], .mm, .mm, 8, .immediate)
        add(.ssse3, map: 3, .p66, [0x0F], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.sse41, map: 3, .p66, [0x14], .xmm, .general, 1, [.writesRM, .immediate])
        add(.sse41, map: 3, .p66, [0x15], .xmm, .general, 2, [.writesRM, .immediate])
        add(.sse41, map: 3, .p66, [0x16], .xmm, .general, 4, [.writesRM, .immediate, .wide])
        add(.sse41, map: 3, .p66, [0x17], .xmm, .general, 4, [.writesRM, .immediate])
        add(.sse41, map: 3, .p66, [0x20], .xmm, .general, 1, .immediate)
        add(.sse41, map: 3, .p66, [0x21], .xmm, .xmm, 4, .immediate)
        add(.sse41, map: 3, .p66, [0x22], .xmm, .general, 4, [.immediate, .wide])
        add(.sse41, map: 3, .p66, [0x40, 0x41], .xmm, .xmm, 16, [.aligned, .mxcsr, .immediate])
        add(.pclmulqdq, map: 3, .p66, [0x44], .xmm, .xmm, 16, [.aligned, .immediate])
        let strings: VectorTraits = [.immediate, .status, .keepsReg]
        add(.sse42, map: 3, .p66, [0x60], .xmm, .xmm, 16, [strings, .readsLengths, .writesXMM0])
        add(.sse42, map: 3, .p66, [0x61], .xmm, .xmm, 16, [strings, .readsLengths, .writesRCX])
        add(.sse42, map: 3, .p66, [0x62], .xmm, .xmm, 16, [strings, .writesXMM0])
        add(.sse42, map: 3, .p66, [0x63], .xmm, .xmm, 16, [strings, .writesRCX])
        add(.sha, map: 3, .none, [0xCC], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.gfni, map: 3, .p66, [0xCE, 0xCF], .xmm, .xmm, 16, [.aligned, .immediate])
        add(.aes, map: 3, .p66, [0xDF], .xmm, .xmm, 16, [.aligned, .immediate])
    }
}
