internal import CHost

/// The prefix of a VEX or EVEX instruction, taken apart.
private struct WidePrefix {
    var encoding: WideEncoding
    var map: UInt8
    var pp: UInt8
    /// W R X B, as in REX.
    var rex: UInt8
    var fields: WideFields
}

extension Decoder {
    /// Behind C4, C5 or 62 (SDM vol. 2 §2.3, §2.7).
    mutating func decodeWide(into i: Insn, _ first: UInt8) -> DecodeResult {
        if hasLegacyPrefix { return invalid() }
        guard let prefix = parseWidePrefix(first) else { return exhausted ? .invalid : invalid() }
        let opcode = next()
        let hasModRM = !(prefix.encoding == .vex && prefix.map == 1 && opcode == 0x77)
        let modrm = hasModRM ? next() : 0xC0
        if exhausted { return .invalid }
        clear(i)
        rex = prefix.rex
        i.pointee.map = prefix.map
        i.pointee.opcode = opcode
        i.pointee.prefixes = [0, 0x66, 0xF3, 0xF2][Int(prefix.pp)]
        i.pointee.modrm = modrm
        i.pointee.rex = rex
        i.wide = prefix.fields
        guard let row = i.wideEntry, row.isAvailable(prefix.encoding, length: prefix.fields.length),
            allows(i, row, prefix)
        else { return invalid() }
        // The top bit of a register in vvvv means nothing outside 64-bit mode.
        if !is64 { i.wide.rawValue &= ~8 }
        // Outside 64-bit mode there are no general registers of 64 bits, whatever W says.
        if !is64, row.traits.contains(.generalSize) { rex &= ~8 }
        i.pointee.rex = rex
        entry = OpcodeEntry(mnemonic: .vector, form: .vector, size: .variable)
        i.pointee.mnemonic = Mnemonic.vector.rawValue
        setSizes(i)
        guard parseWideOperands(i, row, modrm, hasModRM: hasModRM) else { return exhausted ? .invalid : invalid() }
        setFlags(i)
        return .done
    }

    /// Nil: #UD, or the bytes end here.
    private mutating func parseWidePrefix(_ first: UInt8) -> WidePrefix? {
        let p0 = next()
        if first == 0xC5 {
            let fields = WideFields(.vex, v: vectorNumber(p0), length: (p0 >> 2) & 1)
            return WidePrefix(encoding: .vex, map: 1, pp: p0 & 3, rex: is64 ? (~p0 & 0x80) >> 5 : 0, fields: fields)
        }
        let p1 = next()
        // W; R, X and B, which are inverted.
        let rex = (p1 & 0x80) >> 4 | (is64 ? (~p0 & 0xE0) >> 5 : 0)
        if first == 0xC4 {
            let fields = WideFields(.vex, v: vectorNumber(p1), length: (p1 >> 2) & 1)
            return WidePrefix(encoding: .vex, map: p0 & 31, pp: p1 & 3, rex: rex, fields: fields)
        }
        let p2 = next()
        guard p0 & 0x0C == 0, p1 & 4 != 0 else { return nil }
        // Outside 64-bit mode R' means nothing, V' must be 1.
        if !is64, p2 & 8 == 0 { return nil }
        let fields = WideFields(
            .evex, v: vectorNumber(p1) | (~p2 & 8) << 1, length: (p2 >> 5) & 3, highReg: is64 && p0 & 0x10 == 0,
            mask: p2 & 7, zeroes: p2 & 0x80 != 0, b: p2 & 0x10 != 0)
        return WidePrefix(encoding: .evex, map: p0 & 3, pp: p1 & 3, rex: rex, fields: fields)
    }

    /// vvvv, which is inverted.
    private func vectorNumber(_ byte: UInt8) -> UInt8 { (~byte >> 3) & 15 }

    private func allows(_ i: Insn, _ row: WideEntry, _ prefix: WidePrefix) -> Bool {
        let isMemory = i.isMemoryForm
        guard row.allows(prefix.fields, isMemory: isMemory) else { return false }
        if row.shape.v == .mask, is64, prefix.fields.v > 7 { return false }
        let reg = i.wideRegNumber
        if row.shape.reg == .mask, reg > 7 { return false }
        if row.shape.reg == .general, reg > 15 { return false }
        return true
    }

    /// False: #UD, or the bytes end here.
    private mutating func parseWideOperands(_ i: Insn, _ row: WideEntry, _ modrm: UInt8, hasModRM: Bool) -> Bool {
        let gathers = row.traits.contains(.gathers)
        if gathers {
            guard modrm & 7 == 4, i.pointee.address_size != 2 else { return false }
            vectorIndex = i.wide.encoding == .evex ? i.wide.v & 16 : 0
        }
        if hasModRM { parseModRM(i, modrm) }
        let isMemory = i.isMemoryForm
        if isMemory, modrm >> 6 == 1, i.wide.encoding == .evex {
            i.pointee.displacement &*= Int32(row.displacementUnit(i.wide, w: i.pointee.rex & 8 != 0))
        }
        if row.traits.contains(.immediate) { i.pointee.immediate = immediate(1) }
        // A register number in it has three bits outside 64-bit mode.
        if row.traits.contains(.registerImmediate), !is64 { i.pointee.immediate &= 0x7F }
        return !gathers || row.allowsGather(i)
    }
}

extension Insn {
    /// ModRM.reg with all its extensions, and ModRM.rm of a register form as a vector register.
    var wideRegNumber: UInt8 { registerNumber | (wide.highReg ? 16 : 0) }
    var wideRMNumber: UInt8 { rmNumber | (wide.encoding == .evex ? (pointee.rex & 2) << 3 : 0) }
    /// The index register of a VSIB operand.
    var vectorIndexNumber: UInt8 { pointee.rm >> 3 }
}

extension WideEntry {
    /// What an 8-bit displacement counts in (SDM vol. 2 §2.7.5).
    fileprivate func displacementUnit(_ fields: WideFields, w: Bool) -> Int {
        let element = elementSize(w: w)
        if fields.b || traits.contains(.packs) || traits.contains(.gathers) { return element }
        return tuple.size(vector: vectorSize(length: fields.length, controlsRounding: false), element: element)
    }

    /// Registers that must differ (SDM vol. 2, VGATHERDPS; VSCATTERDPS takes any).
    fileprivate func allowsGather(_ i: Insn) -> Bool {
        let (reg, index) = (i.wideRegNumber, i.vectorIndexNumber)
        if i.wide.encoding == .evex { return traits.contains(.writesRM) || reg != index }
        return reg != index && reg != i.wide.v && index != i.wide.v
    }
}
