internal import CHost

/// What an instruction does to the six status flags: the translator keeps flags over its own address checks only where
/// a later instruction could read them.
struct FlagUse {
    /// Reads at least one of them (or passes one on that it does not write).
    var reads: Bool
    /// Writes all of them, whatever its operands are.
    var kills: Bool

    init(_ i: Insn, _ mnemonic: Mnemonic, isNative: Bool) {
        guard isNative else {
            self.init(reads: true, kills: false)
            return
        }
        if let vector = BlockTranslator.nativeVector(i) {
            self.init(
                reads: vector.readsFlags, kills: vector.writesFlags && vector.unit != .general && vector.unit != .x87)
            return
        }
        switch mnemonic {
        case .add, .or, .and, .sub, .xor, .cmp, .test, .neg, .cmpxchg, .xadd, .popcnt:
            self.init(reads: false, kills: true)
        // SF, ZF, AF and PF are undefined, which means that Intel's processors leave them as they were.
        case .imul2, .imul3, .mul, .imul1: self.init(reads: false, kills: false)
        case .adc, .sbb: self.init(reads: true, kills: true)
        case .shl, .sal, .shr, .sar:
            // By CL or by a count that masks to 0 the flags stay.
            let byCL = i.pointee.operation == Form.eCL.rawValue
            let mask: UInt64 = i.pointee.size == 8 ? 63 : 31
            let isZero = byCL || i.pointee.immediate & mask == 0
            self.init(reads: isZero, kills: !isZero)
        case .mov, .movImmediate, .movOffsetLoad, .movOffsetStore, .movzxByte, .movzxWord, .movsxByte, .movsxWord,
            .movsxd, .lea, .push, .pop,
            .pushImmediate, .leave, .not, .nop, .pause, .lfence, .mfence, .sfence, .bswap, .xchg, .cbw, .cwd, .div,
            .idiv, .movs, .stos, .cli, .cld, .swapgs, .movFromCR:
            self.init(reads: false, kills: false)
        default: self.init(reads: true, kills: false)
        }
    }

    private init(reads: Bool, kills: Bool) {
        self.reads = reads
        self.kills = kills
    }
}
