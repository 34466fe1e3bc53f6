internal import CHost

// Vector instructions run unchanged on the host's own registers, which are the guest's from the first one of a block on.

extension BlockTranslator {
    /// What a vector instruction needs, if it can run in translated code.
    static func nativeVector(_ i: Insn) -> VectorEncoding? {
        guard let encoding = VectorEncoding(i), encoding.isPlain else { return nil }
        return level(encoding.unit) == nil ? nil : encoding
    }

    /// The VEX instructions on general registers (BMI1 and BMI2): two destinations at most (MULX), and reg is one that only
    /// is written, so that two scratch registers do. They need nothing but protected mode.
    private mutating func generalVector(_ i: Insn, _ index: Int, _ encoding: VectorEncoding) {
        let rm =
            encoding.access != .none
            ? vectorOperand(i, index, encoding)
            : .register(UInt8(fetch(encoding.rmNumber * 8, into: HostRegister.scratch)))
        let (regOffset, vOffset) = (encoding.regNumber * 8, encoding.vNumber * 8)
        let hasReg = encoding.reg == .general
        var v = UInt8(0)
        if encoding.v == .general {
            // A destination takes the other one's scratch register only if it is the same.
            let isSecond = encoding.writesV && hasReg && regOffset != vOffset
            let scratch = isSecond ? HostRegister.scratch : HostRegister.scratch2
            v = UInt8(encoding.writesV ? home(vOffset) ?? scratch : fetch(vOffset, into: scratch))
        }
        let reg = UInt8(hasReg ? home(regOffset) ?? HostRegister.scratch2 : 0)
        encoding.emit(to: &host, reg: reg, rm: rm, v: v)
        if encoding.v == .general, encoding.writesV { keep(Int(v), vOffset) }
        if hasReg { keep(Int(reg), regOffset) }
    }

    /// The vector registers that must be the guest's. Nil: not native.
    private static func level(_ unit: VectorEncoding.Unit) -> Int? {
        switch unit {
        case .sse: 1
        case .avx: 3
        case .avx512: 7
        case .x87, .mmx: hostHasXSAVE ? 8 : nil
        case .mixed: hostHasXSAVE ? 9 : nil
        case .general: 0
        }
    }

    mutating func vector(_ i: Insn, _ index: Int) -> Bool {
        guard let encoding = Self.nativeVector(i), let level = Self.level(encoding.unit) else { return false }
        if encoding.unit == .general {
            generalVector(i, index, encoding)
            return true
        }
        if level & 8 != 0 { requireVectors(i, index, 8) }
        if level & 7 != 0 { requireVectors(i, index, level & 7) }
        let hasData = encoding.unit == .x87 && encoding.access != .none
        if hasData { computeNextData(i) }
        var rm = EncodedRM.register(encoding.rmNumber)
        if encoding.access != .none {
            rm = vectorOperand(i, index, encoding)
        } else if encoding.rm == .general {
            let offset = encoding.rmNumber * 8
            rm = .register(UInt8(fetch(offset, into: HostRegister.scratch)))
        }
        var reg = encoding.regNumber
        let generalReg = encoding.reg == .general ? reg * 8 : nil
        if let generalReg { reg = UInt8(fetch(generalReg, into: HostRegister.scratch2)) }
        if encoding.unit == .x87 { recordPointers(i, hasData: hasData) }
        encoding.emit(to: &host, reg: reg, rm: rm)
        if let generalReg, encoding.writesReg { keep(Int(reg), generalReg) }
        if encoding.access == .none, encoding.rm == .general, encoding.writesRM {
            keep(HostRegister.scratch, encoding.rmNumber * 8)
        }
        return true
    }

    /// FDP is the operand's offset in its segment; it changes when the access is sure to succeed.
    private mutating func computeNextData(_ i: Insn) {
        computeAddress(i, into: HostRegister.scratch2, withSegment: false)
        host.store(HostRegister.scratch2, toState: Int(MARTLET_X87_NEXT_DATA))
    }

    /// FOP, FIP and FDP (SDM vol. 1 §8.1.8, §8.1.9).
    private mutating func recordPointers(_ i: Insn, hasData: Bool) {
        let value = HostRegister.scratch2
        host.operation(0xC7, size: 8, reg: 0, .state(Int(MARTLET_X87_OPCODE)))
        host.word32(Int(i.pointee.opcode & 7) << 8 | Int(i.pointee.modrm))
        host.load(value, fromState: Int(MARTLET_PAGE_RIP))
        host.lea(value, base: value, displacement: Int(i.pointee.page_offset))
        host.store(value, toState: Int(MARTLET_X87_INSTRUCTION))
        if !hasData { return }
        host.load(value, fromState: Int(MARTLET_X87_NEXT_DATA))
        host.store(value, toState: Int(MARTLET_X87_DATA))
    }

    private mutating func vectorOperand(_ i: Insn, _ index: Int, _ encoding: VectorEncoding) -> EncodedRM {
        let access = Access(
            kind: encoding.access == .store ? AccessKind.write : AccessKind.read, size: encoding.memorySize,
            isAligned: encoding.alignment > 1)
        let operand = operandAccess(i, index, access)
        if case .based(let base, let displacement) = operand {
            return .sum(base: UInt8(base), index: UInt8(HostRegister.scratch), displacement: displacement)
        }
        return .pointer(UInt8(HostRegister.scratch))
    }

    /// Makes the vector registers the guest's unless an instruction before this one has.
    private mutating func requireVectors(_ i: Insn, _ index: Int, _ level: Int) {
        if vectorLevel & level == level { return }
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        // test byte [vector level], the highest bit that it needs
        host.operation(0xF6, size: 1, reg: 0, .state(Int(MARTLET_VECTOR_LEVEL)))
        host.byte(level == 8 ? 8 : (level + 1) >> 1)
        let branch = host.jump(HostCondition.zero)
        heldAddend = nil
        deferred.append(.loadVectors(insn: i, level: level, branch: branch, back: host.position))
        if keepsFlags { restoreFlags() }
        vectorLevel |= level
    }
}

/// CPUID.1:ECX bits 26 and 27: XSAVE, and the host's kernel lets it be used.
private let hostHasXSAVE: Bool = {
    var registers: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    return withUnsafeMutableBytes(of: &registers) { bytes in
        guard let base = bytes.bindMemory(to: UInt32.self).baseAddress else { return false }
        martlet_host_cpuid(1, 0, base)
        return base[2] >> 26 & 3 == 3
    }
}()
