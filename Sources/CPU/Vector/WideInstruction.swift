internal import CHost

/// The fields of a VEX or EVEX prefix that `martlet_insn` has no other place for (SDM vol. 2 §2.3.5,
/// §2.7.1). Register bits are kept upright, not inverted as in the prefix.
struct WideFields {
    var rawValue: UInt16

    private func bits(_ position: UInt16, _ mask: UInt16) -> UInt8 {
        UInt8(truncatingIfNeeded: rawValue >> position & mask)
    }

    /// vvvv, with V' above it.
    var v: UInt8 { bits(0, 31) }
    /// L, or L'L.
    var length: UInt8 { bits(5, 3) }
    /// R'.
    var highReg: Bool { bits(7, 1) != 0 }
    var mask: UInt8 { bits(8, 7) }
    var zeroes: Bool { bits(11, 1) != 0 }
    var b: Bool { bits(12, 1) != 0 }
    /// Nil: neither VEX nor EVEX.
    var encoding: WideEncoding? { WideEncoding(rawValue: Int(bits(13, 3))) }

    init(rawValue: UInt16) { self.rawValue = rawValue }

    init(
        _ encoding: WideEncoding, v: UInt8, length: UInt8, highReg: Bool = false, mask: UInt8 = 0,
        zeroes: Bool = false, b: Bool = false
    ) {
        rawValue = UInt16(v & 31) | UInt16(length & 3) << 5 | UInt16(mask & 7) << 8
        rawValue |= (highReg ? 1 << 7 : 0) | (zeroes ? 1 << 11 : 0) | (b ? 1 << 12 : 0)
        rawValue |= UInt16(encoding.rawValue) << 13
    }
}

extension Insn {
    /// The VEX or EVEX fields of a vector instruction, in the top of its `link_key`.
    var wide: WideFields {
        get { WideFields(rawValue: UInt16(truncatingIfNeeded: pointee.link_key >> 48)) }
        nonmutating set { pointee.link_key = pointee.link_key & 0xFFFF_FFFF_FFFF | UInt64(newValue.rawValue) << 48 }
    }

    /// The row of a decoded VEX or EVEX instruction. Nil: it is none, or #UD.
    var wideEntry: WideEntry? {
        let fields = wide
        guard let encoding = fields.encoding, let prefix = VectorPrefix(byte: pointee.prefixes) else { return nil }
        return WideTable.shared.entry(
            encoding, map: pointee.map, prefix: prefix, opcode: pointee.opcode, modrm: pointee.modrm,
            w: pointee.rex & 8 != 0, length: fields.length, b: fields.b)
    }
}

extension WideEntry {
    /// Whether it is an instruction on general registers only, which no vector state concerns.
    var isGeneral: Bool { shape.usesGeneral && ![shape.reg, shape.v, shape.rm].contains { $0 == .xmm || $0 == .mask } }

    /// What the host must have for a form of this row.
    func isAvailable(_ encoding: WideEncoding, length: UInt8) -> Bool {
        if isGeneral { return VectorUnit.has(feature) }
        return VectorUnit.has(encoding == .evex ? .avx512 : .avx) && VectorUnit.has(length == 0 ? feature : longFeature)
    }

    /// The register rules that are #UD (SDM vol. 2 §2.7.11, §2.8). The decoder has found this row for the instruction.
    func allows(_ fields: WideFields, isMemory: Bool) -> Bool {
        if shape.v == .none, !traits.contains(.gathers), fields.v != 0 { return false }
        if shape.v == .none, traits.contains(.gathers), fields.v & 15 != 0 { return false }
        if fields.mask != 0 {
            if traits.contains(.unmasked) { return false }
        } else if fields.zeroes || traits.contains(.needsMask) {
            return false
        }
        guard fields.zeroes else { return true }
        let destination = traits.contains(.writesRM) ? shape.rm : shape.reg
        return !(isMemory && traits.contains(.writesRM)) && destination != .mask && !traits.contains(.needsMask)
    }
}
