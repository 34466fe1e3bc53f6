internal import CHost
internal import CTestHost
internal import Fuzzing
import Testing

@testable import CPU

/// The decoder against Zydis on random bytes: the same lengths, and the same instructions defined.
@Suite struct DecoderTests {
    private static let random = 1_000_000

    private struct Verdict {
        var isDefined: Bool
        var length: Int
        var isTooLong = false
        var mnemonic = ""
    }

    private func ours(_ bytes: [UInt8], mode: UInt8, _ insn: Insn, _ stubs: StubCache) -> Verdict {
        let result = bytes.withUnsafeBufferPointer { buffer in
            var decoder = Decoder(bytes: buffer.baseAddress!, available: 15, mode: mode, tables: .shared)
            return decoder.decode(into: insn)
        }
        let length = Int(insn.pointee.length)
        guard result == .done else { return Verdict(isDefined: false, length: length, isTooLong: result == .tooLong) }
        if !bind(insn, stubs: stubs) {
            stubs.reset()
            _ = bind(insn, stubs: stubs)
        }
        let undefined = unsafeBitCast(invalidOpcodeHandler, to: UnsafeMutableRawPointer?.self)
        let mnemonic = Mnemonic(rawValue: insn.pointee.mnemonic).map { "\($0)" } ?? ""
        return Verdict(isDefined: insn.pointee.handler != undefined, length: length, mnemonic: mnemonic)
    }

    private func zydis(_ bytes: [UInt8], bits: Int32) -> (verdict: Verdict, set: String) {
        var mnemonic = UnsafePointer<CChar>(bitPattern: 1)!
        var set = mnemonic
        let length = bytes.withUnsafeBufferPointer { test_zydis_decode($0.baseAddress!, 15, bits, &mnemonic, &set) }
        return (
            Verdict(
                isDefined: length > 0, length: Int(length), isTooLong: length < 0, mnemonic: String(cString: mnemonic)),
            String(cString: set)
        )
    }

    /// Bytes in which prefixes, escapes and groups are as frequent as plain opcodes.
    private func bytes(_ dice: inout Dice) -> [UInt8] {
        var result: [UInt8] = []
        let prefixes: [UInt8] = [0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0x48, 0x41, 0x44]
        while dice.chance(3) { result.append(dice.pick(prefixes)) }
        switch dice.below(8) {
        case 0, 1: result.append(0x0F)
        case 6: result += [dice.pick([0xC4, 0xC5]), dice.byte() | (dice.chance(2) ? 0xE0 : 0)]
        case 7: result += [0x62, 0xF0 | dice.byte() & 3, dice.byte() | 4]
        case 2: result += [0x0F, dice.pick([0x38, 0x3A, 0x01, 0xAE, 0xC7, 0xBA, 0x00])]
        case 3:
            result.append(dice.pick([0xFE, 0xFF, 0xF6, 0xF7, 0x80, 0x83, 0xC0, 0xD0, 0x8F, 0xC6, 0xC7, 0x8C, 0x8E]))
        default: break
        }
        while result.count < 15 { result.append(dice.byte()) }
        return Array(result.prefix(15))
    }

    @Test(
        .enabled(if: test_zydis_available() != 0, "built without Zydis (Debian: libzydis-dev)"),
        arguments: [Int32(16), 32, 64])
    func randomBytes(bits: Int32) {
        let mode = bits == 64 ? CodeMode.bits64 : (bits == 32 ? CodeMode.bits32 : CodeMode.bits16)
        let insn = Insn.allocate(capacity: 1)
        insn.initialize(to: martlet_insn())
        defer { insn.deallocate() }
        let stubs = StubCache()
        for seed in FuzzSeeds(count: 1) { compare(bits, mode, seed, insn, stubs) }
    }

    private func compare(_ bits: Int32, _ mode: UInt8, _ seed: UInt64, _ insn: Insn, _ stubs: StubCache) {
        var dice = Dice(seed: seed &* 64 &+ UInt64(bits))
        var defined = 0
        var differences: [String: String] = [:]
        for _ in 0..<Self.random {
            let bytes = bytes(&dice)
            let mine = ours(bytes, mode: mode, insn, stubs)
            let (other, set) = zydis(bytes, bits: bits)
            if mine.isDefined, other.isDefined, mine.length == other.length {
                defined += 1
                continue
            }
            if !mine.isDefined, !other.isDefined { continue }
            let kind =
                mine.isDefined
                ? (other.isDefined ? "length of \(other.mnemonic)" : "only here: \(mine.mnemonic)")
                : "only Zydis: \(set) \(other.mnemonic)"
            if isAccepted(mine, other, set, bytes, bits: bits) { continue }
            let hex = bytes.map { String($0, radix: 16) }.joined(separator: " ")
            if differences[kind] == nil { differences[kind] = "\(hex) (\(mine.length), \(other.length))" }
        }
        #expect(
            differences.isEmpty,
            "seed \(seed)\(differences.sorted { $0.key < $1.key }.map { "\n\($0.key): \($0.value)" }.joined())"
        )
        #expect(defined > Self.random / 4)
    }

    /// Instruction sets that this processor does not have (none is in its CPUID leaves): #UD.
    private static let absent: Set<String> = [
        "3DNOW", "AMD3DNOW", "TBM", "SSE4A", "VTX", "VMFUNC", "SVM", "SMX", "CET", "XSAVES", "RTM", "TSX_LDTRK",
        "WAITPKG", "KEYLOCKER", "KEYLOCKER_WIDE", "TDX", "SGX", "SGX_ENCLV", "PKU", "MOVDIR", "MONITOR", "MONITORX",
        "ENQCMD", "AMD_INVLPGB", "UINTR", "SERIALIZE", "RDPRU", "PT", "PCONFIG", "MCOMMIT", "CLZERO", "SNP", "HRESET",
        "WBNOINVD", "MPX", "PADLOCK", "AVX512_VP2INTERSECT", "KNCJKBR", "KNCSTREAM", "KNCV", "KNCE",
    ]
    /// Sets that the host's processor must have.
    private static let optional: [(set: String, isThere: Bool)] = [
        ("AES", VectorUnit.has(.aes)), ("PCLMULQDQ", VectorUnit.has(.pclmulqdq)), ("SHA", VectorUnit.has(.sha)),
        ("GFNI", VectorUnit.has(.gfni)),
        ("LZCNT", HostProcessor.hasLZCNT), ("ADOX_ADCX", HostProcessor.hasADX),
        ("RDRAND", HostProcessor.hasRDRAND), ("RDSEED", HostProcessor.hasRDSEED),
    ]
    /// Undefined by definition, or only in system-management mode, or not documented (SALC).
    private static let undefined: Set<String> = ["ud0", "ud1", "ud2", "rsm", "salc"]
    /// Defined by the decoder; whether the register or the mode exists is found when they run: #UD then. And the hint
    /// NOPs, some of which Zydis takes for MPX.
    private static let foundLater: Set<String> = [
        "movFromCR", "movToCR", "movFromDR", "movToDR", "movFromSegment", "movToSegment", "rdfsbase", "rdgsbase",
        "wrfsbase", "wrgsbase", "swapgs", "nop",
    ]

    /// Zydis lets W of a conversion from a general register count outside 64-bit mode; processors do not (as in
    /// `WideDecoderTests`).
    private static func isNarrowConversion(_ bytes: [UInt8]) -> Bool {
        guard let start = bytes.firstIndex(of: 0x62), start + 4 < bytes.count else { return false }
        let (p0, p1, p2, opcode) = (bytes[start + 1], bytes[start + 2], bytes[start + 3], bytes[start + 4])
        return p0 & 3 == 1 && p1 & 0x83 == 0x83 && p2 & 0x10 != 0 && (opcode == 0x2A || opcode == 0x7B)
    }

    private func isAccepted(
        _ mine: Verdict, _ other: Verdict, _ set: String, _ bytes: [UInt8], bits: Int32
    ) -> Bool {
        if mine.isDefined {
            let isNarrow = bits != 64 && mine.mnemonic == "vector" && Self.isNarrowConversion(bytes)
            return !other.isDefined && (isNarrow || Self.foundLater.contains(mine.mnemonic))
        }
        if Self.absent.contains(set) || Self.undefined.contains(other.mnemonic) { return true }
        if let optional = Self.optional.first(where: { $0.set == set }) { return !optional.isThere }
        if WideDecoderTests.isAbsent(set) || set.hasPrefix("PADLOCK") { return true }
        // EVEX encodings of sets that are there as VEX encodings only.
        if set.hasPrefix("AVX512"), !VectorUnit.has(.avx512) { return true }
        return WideDecoderTests.feature(set).map { !VectorUnit.has($0) } ?? false
    }
}
