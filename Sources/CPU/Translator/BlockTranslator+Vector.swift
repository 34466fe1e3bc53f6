internal import CHost

// Vector instructions run unchanged on the host's own registers, which are the guest's from the first one of a block on.

extension BlockTranslator {
    /// What a vector instruction needs, if it can run in translated code.
    static func nativeVector(_ i: Insn) -> VectorEncoding? {
        guard let encoding = VectorEncoding(i), encoding.isPlain else { return nil }
        return level(encoding.unit) == nil ? nil : encoding
    }

    /// The vector registers that must be the guest's. Nil: not native.
    private static func level(_ unit: VectorEncoding.Unit) -> Int? {
        switch unit {
        case .general: 0
        case .sse: 1
        case .avx: 3
        case .avx512: 7
        case .x87, .mmx, .mixed: nil
        }
    }

    mutating func vector(_ i: Insn, _ index: Int) -> Bool {
        guard let encoding = Self.nativeVector(i), let level = Self.level(encoding.unit) else { return false }
        requireVectors(i, index, level)
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
        encoding.emit(to: &host, reg: reg, rm: rm)
        if let generalReg, encoding.writesReg { keep(Int(reg), generalReg) }
        if encoding.access == .none, encoding.rm == .general, encoding.writesRM {
            keep(HostRegister.scratch, encoding.rmNumber * 8)
        }
        return true
    }

    private mutating func vectorOperand(_ i: Insn, _ index: Int, _ encoding: VectorEncoding) -> EncodedRM {
        let access = Access(
            kind: encoding.access == .store ? AccessKind.write : AccessKind.read, size: encoding.memorySize,
            isAligned: encoding.alignment > 1)
        let operand = operandAccess(i, index, access)
        if case .based(let base, let displacement) = operand {
            host.lea(HostRegister.scratch, base: base, index: HostRegister.scratch, displacement: displacement)
        }
        return .pointer(UInt8(HostRegister.scratch))
    }

    /// Makes the vector registers the guest's unless an instruction before this one has.
    private mutating func requireVectors(_ i: Insn, _ index: Int, _ level: Int) {
        if vectorLevel & level == level { return }
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        // test byte [vector level], the highest bit
        host.operation(0xF6, size: 1, reg: 0, .state(Int(MARTLET_VECTOR_LEVEL)))
        host.byte((level + 1) >> 1)
        let branch = host.jump(HostCondition.zero)
        deferred.append(.loadVectors(insn: i, level: level, branch: branch, back: host.position))
        if keepsFlags { restoreFlags() }
        vectorLevel = level
    }
}
