/// How an instruction of VEX or EVEX encoding is written down.
enum WideEncoding: Int {
    case vex = 1
    case evex = 2
}

/// What a memory operand is, by vector length VL and element size (SDM vol. 2 tables 2-34 and 2-35, EVEX tuple types; a
/// VEX form's operand is the same one).
enum MemoryTuple: UInt8 {
    case none
    /// VL, or with EVEX.b one element for all.
    case full
    /// VL/2, or with EVEX.b one element for all.
    case half
    case fullMem, halfMem, quarterMem, eighthMem
    /// One, two, four, eight elements.
    case scalar, pair, quad, oct
    /// 16 bytes whatever VL is.
    case sixteen
    /// MOVDDUP's: 8, 32, 64 bytes.
    case duplicate

    var allowsBroadcast: Bool { self == .full || self == .half }

    /// Bytes without broadcast; `vector` is VL in bytes.
    func size(vector: Int, element: Int) -> Int {
        switch self {
        case .none: 0
        case .full, .fullMem: vector
        case .half, .halfMem: vector / 2
        case .quarterMem: vector / 4
        case .eighthMem: vector / 8
        case .scalar: element
        case .pair: element * 2
        case .quad: element * 4
        case .oct: element * 8
        case .sixteen: 16
        case .duplicate: vector == 16 ? 8 : vector
        }
    }
}

/// Values of W that a row takes.
enum WideW: UInt8 {
    case w0 = 1
    case w1 = 2
    case any = 3
}

/// Vector lengths that a row takes: a bit for each value of L'L.
struct WideLengths: OptionSet {
    let rawValue: UInt8
    static let l128 = WideLengths(rawValue: 1)
    static let l256 = WideLengths(rawValue: 2)
    static let l512 = WideLengths(rawValue: 4)
    static let narrow: WideLengths = [.l128, .l256]
    static let all: WideLengths = [.l128, .l256, .l512]
    static let upper: WideLengths = [.l256, .l512]
}

struct WideTraits: OptionSet {
    let rawValue: UInt32

    /// An imm8 follows.
    static let immediate = WideTraits(rawValue: 1 << 0)
    /// Its upper half names one more source register.
    static let registerImmediate = WideTraits(rawValue: 1 << 1)
    /// Depends on MXCSR and changes it.
    static let mxcsr = WideTraits(rawValue: 1 << 2)
    static let readsStatus = WideTraits(rawValue: 1 << 3)
    static let writesStatus = WideTraits(rawValue: 1 << 4)
    /// The destination is rm, or vvvv, or none of the operands; otherwise reg.
    static let writesRM = WideTraits(rawValue: 1 << 5)
    static let writesV = WideTraits(rawValue: 1 << 6)
    static let keepsReg = WideTraits(rawValue: 1 << 7)
    /// The memory operand must be aligned to its size.
    static let aligned = WideTraits(rawValue: 1 << 8)
    static let memoryOnly = WideTraits(rawValue: 1 << 9)
    static let registerOnly = WideTraits(rawValue: 1 << 10)
    /// The memory operand's elements go to several elements of the destination each.
    static let broadcasts = WideTraits(rawValue: 1 << 11)
    /// The mask does not keep faults of the memory operand from happening (exception types with NF, SDM vol. 2 §2.8).
    static let unsuppressed = WideTraits(rawValue: 1 << 12)
    /// EVEX.b with register operands: L'L is the rounding, or says nothing (suppress all exceptions).
    static let rounding = WideTraits(rawValue: 1 << 13)
    static let suppressAll = WideTraits(rawValue: 1 << 14)
    /// EVEX.aaa must be 0, or must not be.
    static let unmasked = WideTraits(rawValue: 1 << 15)
    static let needsMask = WideTraits(rawValue: 1 << 16)
    /// The memory operand is as many elements as the mask has ones (VPCOMPRESS, VPEXPAND).
    static let packs = WideTraits(rawValue: 1 << 17)
    /// The sign bits of vvvv are the mask of the memory operand (VMASKMOV, VPMASKMOV).
    static let maskedByV = WideTraits(rawValue: 1 << 18)
    /// The memory operand is an element for each element of an index register (VSIB).
    static let gathers = WideTraits(rawValue: 1 << 19)
    /// The index elements have 8 bytes, not 4.
    static let quadIndex = WideTraits(rawValue: 1 << 20)
    /// One element: L'L is ignored.
    static let scalar = WideTraits(rawValue: 1 << 21)
    /// No stub: a Swift handler does the work.
    static let special = WideTraits(rawValue: 1 << 22)
    /// EAX and EDX are string lengths; the result is in XMM0 or in ECX.
    static let readsLengths = WideTraits(rawValue: 1 << 23)
    static let writesXMM0 = WideTraits(rawValue: 1 << 24)
    static let writesRCX = WideTraits(rawValue: 1 << 25)
    /// EDX is one more source, and vvvv one more destination (MULX).
    static let readsRDX = WideTraits(rawValue: 1 << 26)
    /// The general register's and the memory operand's size follows W, in 64-bit mode only.
    static let generalSize = WideTraits(rawValue: 1 << 27)
}

/// Register files of ModRM.reg, vvvv and ModRM.rm.
struct WideShape {
    var reg: VectorOperand
    var v: VectorOperand
    var rm: VectorOperand

    static let rvm = WideShape(reg: .xmm, v: .xmm, rm: .xmm)
    static let rm = WideShape(reg: .xmm, v: .none, rm: .xmm)
    /// An opcode extension in reg.
    static let vm = WideShape(reg: .none, v: .xmm, rm: .xmm)
    static let generalFromVector = WideShape(reg: .general, v: .none, rm: .xmm)
    static let vectorFromGeneral = WideShape(reg: .xmm, v: .none, rm: .general)
    static let insertGeneral = WideShape(reg: .xmm, v: .xmm, rm: .general)
    static let maskFromVectors = WideShape(reg: .mask, v: .xmm, rm: .xmm)
    static let maskFromVector = WideShape(reg: .mask, v: .none, rm: .xmm)
    static let vectorFromMask = WideShape(reg: .xmm, v: .none, rm: .mask)
    static let masks = WideShape(reg: .mask, v: .mask, rm: .mask)
    static let maskToMask = WideShape(reg: .mask, v: .none, rm: .mask)
    static let maskFromGeneral = WideShape(reg: .mask, v: .none, rm: .general)
    static let generalFromMask = WideShape(reg: .general, v: .none, rm: .mask)
    static let general = WideShape(reg: .general, v: .general, rm: .general)
    static let generalRM = WideShape(reg: .general, v: .none, rm: .general)
    static let generalVM = WideShape(reg: .none, v: .general, rm: .general)
    static let memory = WideShape(reg: .none, v: .none, rm: .none)

    var usesGeneral: Bool { reg == .general || v == .general || rm == .general }
}

/// One row of the whitelist.
struct WideEntry {
    /// What the host must have besides AVX or AVX-512: for L = 0, and for longer vectors.
    var feature: VectorFeature
    var longFeature: VectorFeature
    var shape: WideShape
    var tuple: MemoryTuple
    /// Bytes of an element in memory; 0: 4 or 8 by W.
    var element: UInt8
    var w: WideW
    var lengths: WideLengths
    var traits: WideTraits
    /// The values of ModRM.reg, as bits.
    var extensions: UInt8 = 0xFF
    /// The next row of the same opcode; 0: none.
    var next: UInt16 = 0
}

/// The whitelist of VEX- and EVEX-encoded instructions (SDM vol. 2, the instruction pages and appendix A.3): rows by
/// encoding, opcode map (0F, 0F 38, 0F 3A), pp and opcode.
struct WideTable {
    static let shared = WideTable()

    private var rows: [WideEntry] = []
    private var first = [UInt16](repeating: 0, count: 2 * 3 * 4 * 256)

    init() {
        // Row 0 stands for none.
        rows.append(
            WideEntry(
                feature: .avx, longFeature: .avx, shape: .memory, tuple: .none, element: 0, w: .any, lengths: [],
                traits: []))
        addVEX()
        addEVEX()
    }

    private static func index(_ encoding: WideEncoding, map: Int, _ prefix: VectorPrefix, _ opcode: Int) -> Int {
        (((encoding.rawValue - 1) * 3 + map - 1) * 4 + prefix.rawValue) * 256 + opcode
    }

    mutating func add(
        _ encoding: WideEncoding, map: Int, _ prefix: VectorPrefix, _ opcodes: [Int], _ entry: WideEntry
    ) {
        for opcode in opcodes {
            let index = Self.index(encoding, map: map, prefix, opcode)
            var entry = entry
            entry.next = first[index]
            first[index] = UInt16(rows.count)
            rows.append(entry)
        }
    }

    /// The row for a form; nil: #UD. `length` is L'L; `b` EVEX.b.
    func entry(
        _ encoding: WideEncoding, map: UInt8, prefix: VectorPrefix, opcode: UInt8, modrm: UInt8, w: Bool, length: UInt8,
        b: Bool
    ) -> WideEntry? {
        guard map >= 1, map <= 3 else { return nil }
        var number = first[Self.index(encoding, map: Int(map), prefix, Int(opcode))]
        while number != 0 {
            let entry = rows[Int(number)]
            if entry.takes(modrm: modrm, w: w, length: length, b: b) { return entry }
            number = entry.next
        }
        return nil
    }
}

extension WideEntry {
    fileprivate func takes(modrm: UInt8, w isW1: Bool, length: UInt8, b: Bool) -> Bool {
        let isMemory = modrm < 0xC0
        guard w.rawValue & (isW1 ? 2 : 1) != 0, extensions >> ((modrm >> 3) & 7) & 1 != 0,
            !traits.contains(isMemory ? .registerOnly : .memoryOnly), !isMemory || hasMemoryForm
        else { return false }
        let controls: WideTraits = [.rounding, .suppressAll]
        if b, !isMemory { return !traits.isDisjoint(with: controls) }
        if b, !tuple.allowsBroadcast { return false }
        return lengths.rawValue >> length & 1 != 0
    }

    private var hasMemoryForm: Bool { tuple != .none || traits.contains(.special) }

    /// VL in bytes for an accepted form.
    func vectorSize(length: UInt8, controlsRounding: Bool) -> Int {
        if traits.contains(.scalar) { return 16 }
        return controlsRounding ? 64 : 16 << Int(min(length, 2))
    }

    /// Bytes of the memory operand: all of it, whatever a mask says; one element where it is broadcast or gathered.
    func memorySize(_ fields: WideFields, w: Bool) -> Int {
        let element = elementSize(w: w)
        if fields.b || traits.contains(.gathers) { return element }
        return tuple.size(vector: vectorSize(length: fields.length, controlsRounding: false), element: element)
    }

    func elementSize(w: Bool) -> Int { element == 0 ? (w ? 8 : 4) : Int(element) }
}
