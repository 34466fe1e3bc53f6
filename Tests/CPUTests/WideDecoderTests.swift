internal import CHost
internal import CTestHost
import Testing

@testable import CPU

/// VEX and EVEX encodings against Zydis: which of them are defined, how long they are, what their memory operand is and
/// what a processor must have for them.
@Suite(
    .enabled(if: test_zydis_available() != 0, "built without Zydis (Debian: libzydis-dev)"),
    .enabled(if: VectorUnit.has(.avx512), "the host's processor has no AVX-512"))
struct WideDecoderTests {
    /// Everything that an encoding can vary in.
    private struct Fields {
        var encoding = WideEncoding.vex
        var map: UInt8 = 1
        var pp: UInt8 = 0
        var opcode: UInt8 = 0
        var w = false
        var length: UInt8 = 0
        var v: UInt8 = 0
        var highReg = false
        var mask: UInt8 = 0
        var zeroes = false
        var b = false
        var modrm: UInt8 = 0

        /// Base RAX, index RCX by a SIB byte where there is one, displacement 1.
        var bytes: [UInt8] {
            var bytes: [UInt8] = []
            if encoding == .vex {
                bytes = [0xC4, 0xE0 | map, (w ? 0x80 : 0) | (~v & 15) << 3 | length << 2 | pp]
            } else {
                bytes = [0x62, 0xE0 | (highReg ? 0 : 0x10) | map, (w ? 0x80 : 0) | (~v & 15) << 3 | 4 | pp]
                bytes.append((zeroes ? 0x80 : 0) | length << 5 | (b ? 0x10 : 0) | (~v & 16) >> 1 | mask)
            }
            bytes += [opcode, modrm]
            if modrm < 0xC0 { bytes += [0x08, 1] }
            return bytes + [UInt8](repeating: 0x11, count: 15 - bytes.count)
        }

        func forEach(_ body: (Fields) -> Void) {
            let isEVEX = encoding == .evex
            for bits in 0..<(isEVEX ? 64 : 4) {
                var fields = self
                fields.w = bits & 1 != 0
                fields.v = bits & 2 != 0 ? 2 : 0
                fields.b = bits & 4 != 0
                fields.mask = bits & 8 != 0 ? 3 : 0
                fields.zeroes = bits & 16 != 0
                fields.highReg = bits & 32 != 0
                for length in UInt8(0)..<(isEVEX ? 4 : 2) {
                    for modrm in UInt8(0)..<16 {
                        fields.length = length
                        fields.modrm = modrm < 8 ? modrm << 3 | 0x44 : 0xC3 | (modrm & 7) << 3
                        body(fields)
                    }
                }
            }
        }
    }

    /// Sets that are on no server processor with AVX-512 as we have it, or that the engine does not offer.
    private static let absent = [
        "KNC", "AMX", "XOP", "FMA4", "AVX512ER", "AVX512PF", "AVX512_FP16", "AVX512_4", "AVX512_VP2INTERSECT",
    ]

    /// What Zydis calls a set, without the vector length.
    private static let features: [(prefix: String, feature: VectorFeature)] = [
        ("AVX512_VBMI2", .vbmi2), ("AVX512_VBMI", .vbmi), ("AVX512_VNNI", .vnni), ("AVX512_BITALG", .bitalg),
        ("AVX512_VPOPCNTDQ", .vpopcntdq), ("AVX512_IFMA", .ifma), ("AVX512_GFNI", .gfni), ("AVX512_VAES", .vaes),
        ("AVX512_VPCLMULQDQ", .vpclmulqdq), ("AVX512_BF16", .bf16), ("AVX512", .avx512), ("AVX2", .avx2),
        ("AVX_GFNI", .gfni), ("GFNI", .gfni), ("AVX_VNNI", .avxVNNI), ("AVXAES", .aes), ("AVX", .avx), ("FMA", .fma),
        ("F16C", .f16c), ("VAES", .vaes), ("VPCLMULQDQ", .vpclmulqdq), ("BMI1", .bmi1), ("BMI2", .bmi2),
    ]

    static func isAbsent(_ set: String) -> Bool { absent.contains { set.hasPrefix($0) } }

    static func feature(_ set: String) -> VectorFeature? {
        isAbsent(set) ? nil : features.first { set.hasPrefix($0.prefix) }?.feature
    }

    private struct Verdict {
        var length: Int
        var mnemonic: String
        var set: String
    }

    private func zydis(_ bytes: [UInt8], bits: Int32) -> Verdict {
        var mnemonic = UnsafePointer<CChar>(bitPattern: 1)!
        var set = mnemonic
        let length = bytes.withUnsafeBufferPointer {
            test_zydis_decode($0.baseAddress!, $0.count, bits, &mnemonic, &set)
        }
        if length <= 0 { return Verdict(length: 0, mnemonic: "", set: "") }
        return Verdict(length: Int(length), mnemonic: String(cString: mnemonic), set: String(cString: set))
    }

    private func ours(_ bytes: [UInt8], bits: Int32, _ insn: Insn) -> Int {
        let result = bytes.withUnsafeBufferPointer { buffer in
            var decoder = Decoder(
                bytes: buffer.baseAddress!, available: 15, mode: bits == 64 ? CodeMode.bits64 : CodeMode.bits32,
                tables: .shared)
            return decoder.decode(into: insn)
        }
        return result == .done ? Int(insn.pointee.length) : 0
    }

    @Test(arguments: WideHostTests.maps, [Int32(64), 32]) func everyEncoding(
        _ place: (WideEncoding, UInt8), bits: Int32
    ) {
        let insn = Insn.allocate(capacity: 1)
        insn.initialize(to: martlet_insn())
        defer { insn.deallocate() }
        var found: [String: String] = [:]
        var defined = 0
        for opcode in UInt8(0)...255 {
            for pp in UInt8(0)..<4 {
                Fields(encoding: place.0, map: place.1, pp: pp, opcode: opcode).forEach { fields in
                    let bytes = fields.bytes
                    let (mine, other) = (ours(bytes, bits: bits, insn), zydis(bytes, bits: bits))
                    if mine != 0 { defined += 1 }
                    if let difference = compare(fields, mine, other, insn, bits: bits) {
                        let number = "\(fields.encoding) \(fields.map) \(fields.pp) \(hex(UInt64(opcode)))"
                        let key = "\(number) \(other.mnemonic): \(difference)"
                        let text = bytes.prefix(10).map { String($0, radix: 16) }.joined(separator: " ")
                        if found[key] == nil { found[key] = text }
                    }
                }
            }
        }
        let lines = found.sorted { $0.key < $1.key }.map { "\n\($0.key): \($0.value)" }
        #expect(found.isEmpty, "\(lines.joined())")
        #expect(defined > 1000)
    }

    private func compare(_ fields: Fields, _ mine: Int, _ other: Verdict, _ insn: Insn, bits: Int32) -> String? {
        let expected = Self.feature(other.set)
        if mine == 0 {
            guard other.length > 0, let expected, VectorUnit.has(expected) else { return nil }
            return "only Zydis \(other.set)"
        }
        // Zydis lets W of a conversion from a general register count outside 64-bit mode; processors do not.
        let isConversion = fields.pp == 3 && fields.map == 1 && (fields.opcode == 0x2A || fields.opcode == 0x7B)
        if other.length == 0, bits == 32, fields.b, isConversion { return nil }
        guard other.length > 0, let expected else { return "only here \(other.set)" }
        if mine != other.length { return "length \(mine), \(other.length)" }
        guard let row = insn.wideEntry, let encoding = VectorEncoding(insn) else { return "no row" }
        let feature = fields.length == 0 ? row.feature : row.longFeature
        if feature != expected, !(expected == .avx && feature == .pclmulqdq) { return "\(feature), \(expected)" }
        if fields.modrm >= 0xC0 || fields.opcode == 0x77 && fields.encoding == .vex && fields.map == 1 { return nil }
        return compareMemory(fields, row, encoding, insn, bits: bits)
    }

    private func compareMemory(
        _ fields: Fields, _ row: WideEntry, _ encoding: VectorEncoding, _ insn: Insn, bits: Int32
    ) -> String? {
        var memory = test_zydis_memory()
        let bytes = fields.bytes
        _ = bytes.withUnsafeBufferPointer { test_zydis_operands($0.baseAddress!, $0.count, bits, &memory) }
        if row.traits.contains(.special) { return nil }
        if encoding.memorySize != Int(memory.size) { return "memory of \(encoding.memorySize), \(memory.size) bytes" }
        if (encoding.access == .store) != (memory.is_written != 0) { return "direction" }
        if Int64(insn.pointee.displacement) != memory.displacement {
            return "displacement \(insn.pointee.displacement), \(memory.displacement)"
        }
        guard fields.encoding == .evex else { return nil }
        let type = memory.unsuppressed.map { String(cString: $0) }
        if fields.mask != 0, (type != nil) != row.traits.contains(.unsuppressed) {
            return "type \(type ?? "with fault suppression")"
        }
        return nil
    }
}
