internal import CHost

/// What decoding came to.
enum DecodeResult {
    case done
    /// The bytes given end inside the instruction.
    case needsMore
    /// #UD.
    case invalid
    /// More than 15 bytes: #GP(0) (SDM vol. 3A §6.15, interrupt 13).
    case tooLong
}

/// Decodes one instruction (SDM vol. 2 §2.1, §2.2). Bytes come from one buffer; nothing else is read.
struct Decoder {
    static let maximumLength = 15

    let bytes: UnsafePointer<UInt8>
    let available: Int
    let mode: UInt8
    let tables: OpcodeTables

    var entry = OpcodeEntry()
    private var position = 0
    var rex: UInt8 = 0
    private var hasOperandSize = false
    private var hasAddressSize = false
    private var repeatPrefix: UInt8 = 0
    private var lock = false
    private var segmentOverride: UInt8 = 0xFF
    private(set) var exhausted = false
    /// The memory operand's index is a vector register: X of its number, V' (VSIB, SDM vol. 2 §2.3.12).
    var vectorIndex: UInt8?

    init(bytes: UnsafePointer<UInt8>, available: Int, mode: UInt8, tables: OpcodeTables) {
        self.bytes = bytes
        self.available = available
        self.mode = mode
        self.tables = tables
    }

    var is64: Bool { mode == CodeMode.bits64 }

    mutating func next() -> UInt8 {
        guard position < available else {
            exhausted = true
            return 0
        }
        let byte = bytes[position]
        position += 1
        return byte
    }

    mutating func immediate(_ count: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<count { value |= UInt64(next()) << UInt64(index * 8) }
        return value
    }

    private mutating func signedImmediate(_ count: Int) -> UInt64 {
        let value = immediate(count)
        switch count {
        case 1: return UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: value)))
        case 2: return UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: value)))
        case 4: return UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value)))
        default: return value
        }
    }

    /// Decodes into `i`, all of whose fields but `handler`, `link` and `page_offset` are set.
    mutating func decode(into i: Insn) -> DecodeResult {
        var result = decodeBody(into: i)
        if exhausted { result = position >= Self.maximumLength ? .tooLong : .needsMore }
        if position > Self.maximumLength { result = .tooLong }
        i.pointee.length = UInt8(truncatingIfNeeded: position)
        return result
    }

    private mutating func decodeBody(into i: Insn) -> DecodeResult {
        var opcode = parsePrefixes()
        var map: UInt8 = 0
        if isWidePrefix(opcode) { return decodeWide(into: i, opcode) }
        if opcode == 0x0F {
            opcode = next()
            map = 1
            if opcode == 0x38 || opcode == 0x3A {
                map = opcode == 0x38 ? 2 : 3
                opcode = next()
            }
        }
        if exhausted { return .invalid }
        clear(i)
        i.pointee.map = map
        i.pointee.opcode = opcode
        i.pointee.rex = rex
        i.pointee.prefixes = repeatPrefix != 0 ? repeatPrefix : (hasOperandSize ? 0x66 : 0)
        entry = tables.rows[Int(map) * 256 + Int(opcode)]
        // EMMS (0F 77) is the one vector instruction without ModRM.
        let isEMMS = map == 1 && opcode == 0x77
        let wantsModRM = entry.form.hasModRM || (entry.mnemonic == .invalid && map != 0 && !isEMMS)
        let modrm = wantsModRM ? next() : 0
        if exhausted { return .invalid }
        i.pointee.modrm = modrm
        guard resolve(i, map: map, opcode: opcode, modrm: modrm) else {
            // The length of an undefined instruction matters to nobody; #UD wins over a page fault on its tail.
            exhausted = false
            return .invalid
        }
        i.pointee.mnemonic = entry.mnemonic.rawValue
        setSizes(i)
        if entry.form.hasModRM { parseModRM(i, modrm) } else { setOpcodeRegister(i, opcode) }
        if entry.flags & OpcodeEntry.memoryOnly != 0, i.pointee.flags & InsnFlag.memory == 0 { return invalid() }
        parseImmediates(i)
        setFlags(i)
        let isMemory = i.pointee.flags & InsnFlag.memory != 0
        if lock, !(isMemory && entry.flags & OpcodeEntry.lockable != 0) { return invalid() }
        return .done
    }

    /// #UD wins over a page fault on the instruction's tail.
    mutating func invalid() -> DecodeResult {
        exhausted = false
        return .invalid
    }

    func clear(_ i: Insn) {
        i.pointee.flags = 0
        i.pointee.link = nil
        i.pointee.link_key = 0
        i.pointee.immediate = 0
        i.pointee.displacement = 0
        i.pointee.operation = 0
        i.pointee.modrm = 0
        i.pointee.base = UInt8(MARTLET_ZERO_REGISTER * 8)
        i.pointee.index = UInt8(MARTLET_ZERO_REGISTER * 8)
        i.pointee.scale = 0
        i.pointee.segment = UInt8(SegmentRegister.ds)
    }

    /// VEX and EVEX; outside 64-bit mode LES, LDS and BOUND without a register form (SDM vol. 2 §2.3.5, §2.7.1).
    private mutating func isWidePrefix(_ opcode: UInt8) -> Bool {
        guard opcode == 0xC4 || opcode == 0xC5 || opcode == 0x62 else { return false }
        if is64 { return true }
        guard position < available else {
            exhausted = true
            return false
        }
        return bytes[position] >= 0xC0
    }

    /// Prefixes that VEX and EVEX do not take in front of them.
    var hasLegacyPrefix: Bool { rex != 0 || hasOperandSize || repeatPrefix != 0 || lock }

    /// SDM vol. 2 §2.1.1: legacy prefixes in any order, then REX directly before the opcode.
    private mutating func parsePrefixes() -> UInt8 {
        while true {
            let byte = next()
            switch byte {
            case 0x26 where !is64: segmentOverride = UInt8(SegmentRegister.es)
            case 0x2E where !is64: segmentOverride = UInt8(SegmentRegister.cs)
            case 0x36 where !is64: segmentOverride = UInt8(SegmentRegister.ss)
            case 0x3E where !is64: segmentOverride = UInt8(SegmentRegister.ds)
            case 0x26, 0x2E, 0x36, 0x3E: break
            case 0x64: segmentOverride = UInt8(SegmentRegister.fs)
            case 0x65: segmentOverride = UInt8(SegmentRegister.gs)
            case 0x66: hasOperandSize = true
            case 0x67: hasAddressSize = true
            case 0xF0: lock = true
            case 0xF2, 0xF3: repeatPrefix = byte
            case 0x40...0x4F where is64:
                rex = byte
                let opcode = next()
                guard isPrefix(opcode), !exhausted else { return opcode }
                rex = 0
                position -= 1
                continue
            default: return byte
            }
            if exhausted || position > Self.maximumLength { return 0x90 }
        }
    }

    private func isPrefix(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3: true
        case 0x40...0x4F: is64
        default: false
        }
    }

    /// Settles the row: groups, mandatory prefixes, the vector tables. False: #UD.
    private mutating func resolve(_ i: Insn, map: UInt8, opcode: UInt8, modrm: UInt8) -> Bool {
        if map == 1, opcode == 0xB8, repeatPrefix != 0xF3 { return false }
        // MOVNTI takes no mandatory prefix.
        if map == 1, opcode == 0xC3, i.pointee.prefixes != 0 { return false }
        if map == 2, opcode == 0x82, i.pointee.prefixes != 0x66 { return false }
        // Without the extension F3 is ignored and the scan remains (SDM vol. 2, TZCNT, LZCNT).
        if map == 1, opcode == 0xBC, repeatPrefix == 0xF3, HostProcessor.hasTZCNT { entry.mnemonic = .tzcnt }
        if map == 1, opcode == 0xBD, repeatPrefix == 0xF3, HostProcessor.hasLZCNT { entry.mnemonic = .lzcnt }
        if map == 2, opcode == 0xF6 {
            guard HostProcessor.hasADX, i.pointee.prefixes == 0x66 || i.pointee.prefixes == 0xF3 else { return false }
            entry = OpcodeEntry(mnemonic: i.pointee.prefixes == 0x66 ? .adcx : .adox, form: .ge, size: .double)
            return true
        }
        if map == 2, opcode == 0xF0 || opcode == 0xF1 {
            if repeatPrefix == 0xF2 {
                entry = OpcodeEntry(
                    mnemonic: .crc32, form: .ge, size: .variable,
                    flags: opcode == 0xF0 ? OpcodeEntry.byteSource : 0)
                return true
            }
            return repeatPrefix == 0 && modrm < 0xC0
        }
        if entry.mnemonic.rawValue >= Mnemonic.group1Byte.rawValue {
            guard let row = groupEntry(entry, modrm: modrm, prefix: i.pointee.prefixes) else { return false }
            entry = row
        }
        if entry.flags & OpcodeEntry.legacyOnly != 0, is64 { return false }
        if entry.mnemonic == .invalid || entry.mnemonic == .vector {
            return resolveVector(i, map: map, opcode: opcode, modrm: modrm)
        }
        if entry.mnemonic == .movsxd, !is64 {
            entry = OpcodeEntry(mnemonic: .arpl, form: .eg, size: .word)
        }
        if entry.mnemonic == .xchg, map == 0, opcode == 0x90, rex & 1 == 0 {
            entry = OpcodeEntry(mnemonic: repeatPrefix == 0xF3 ? .pause : .nop)
        }
        return true
    }

    private mutating func resolveVector(_ i: Insn, map: UInt8, opcode: UInt8, modrm: UInt8) -> Bool {
        guard map != 0 || (0xD8...0xDF).contains(opcode) else { return false }
        let shape = vectorShape(
            map: map, opcode: opcode, prefix: i.pointee.prefixes, modrm: modrm, rexW: rex & 8 != 0, is64: is64)
        guard let shape else { return false }
        entry = OpcodeEntry(mnemonic: .vector, form: .vector, size: .variable)
        vectorHasImmediate = shape.hasImmediate
        return true
    }

    private var vectorHasImmediate = false

    func setSizes(_ i: Insn) {
        let default16 = mode == CodeMode.bits16
        let short = hasOperandSize != default16
        i.pointee.size =
            switch entry.size {
            case .byte: 1
            case .word: 2
            case .double: rex & 8 != 0 ? 8 : 4
            case .native: is64 ? 8 : 4
            case .variable: rex & 8 != 0 ? 8 : (short ? 2 : 4)
            case .variable64: is64 ? (short && rex & 8 == 0 ? 2 : 8) : (short ? 2 : 4)
            }
        // Ports have no 64-bit form: REX.W is ignored.
        switch entry.mnemonic {
        case .ins, .outs, .inDX, .outDX, .inImmediate, .outImmediate: i.pointee.size = min(i.pointee.size, 4)
        default: break
        }
        // Near branches ignore the operand-size prefix in 64-bit mode (Intel; SDM vol. 2, JMP).
        if is64 {
            switch entry.mnemonic {
            case .call, .jmp, .jcc, .callIndirect, .jmpIndirect, .ret, .retImmediate, .loop, .loope, .loopne, .jcxz:
                i.pointee.size = 8
            default: break
            }
        }
        i.pointee.address_size =
            is64 ? (hasAddressSize ? 4 : 8) : ((mode == CodeMode.bits32) != hasAddressSize ? 4 : 2)
    }

    /// The byte offset into the register file of register `number` as an operand of `size` bytes.
    private func registerOffset(_ number: UInt8, size: UInt8) -> UInt8 {
        if size == 1, rex == 0, number >= 4, number < 8 { return (number - 4) * 8 + 1 }
        return number * 8
    }

    private func setOpcodeRegister(_ i: Insn, _ opcode: UInt8) {
        switch entry.form {
        case .z, .zImmediate:
            let number = (opcode & 7) | ((rex & 1) << 3)
            i.pointee.rm = registerOffset(number, size: i.pointee.size)
            i.pointee.reg = 0
        default:
            i.pointee.rm = 0
            i.pointee.reg = 0
        }
    }

    mutating func parseModRM(_ i: Insn, _ modrm: UInt8) {
        let isByteSource = entry.flags & OpcodeEntry.byteSource != 0
        let isVector = entry.form == .vector
        let registerSize: UInt8 = isVector ? 8 : i.pointee.size
        i.pointee.reg = registerOffset(((modrm >> 3) & 7) | ((rex & 4) << 1), size: registerSize)
        guard modrm < 0xC0, !isRegisterOnly else {
            let size: UInt8 = isByteSource ? 1 : registerSize
            i.pointee.rm = registerOffset((modrm & 7) | ((rex & 1) << 3), size: size)
            return
        }
        i.pointee.flags |= InsnFlag.memory
        if i.pointee.address_size == 2 { parseAddress16(i, modrm) } else { parseAddress(i, modrm) }
    }

    /// MOV to and from control and debug registers take ModRM.mod as 3 whatever it says.
    private var isRegisterOnly: Bool {
        switch entry.mnemonic {
        case .movFromCR, .movToCR, .movFromDR, .movToDR: true
        default: false
        }
    }

    /// 32-bit and 64-bit addressing (SDM vol. 2 tables 2-2, 2-3; §2.2.1.6 for RIP-relative).
    private mutating func parseAddress(_ i: Insn, _ modrm: UInt8) {
        let mod = modrm >> 6
        var base = modrm & 7
        if base == 4 {
            let sib = next()
            let index = ((sib >> 3) & 7) | ((rex & 2) << 2)
            if let vectorIndex {
                i.pointee.rm = (index | vectorIndex) * 8
                i.pointee.scale = sib >> 6
            } else if index != 4 {
                i.pointee.index = index * 8
                i.pointee.scale = sib >> 6
            }
            base = sib & 7
            if base == 5, mod == 0 {
                i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(4))
                return
            }
        } else if base == 5, mod == 0 {
            i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(4))
            if is64 { i.pointee.base = UInt8(MARTLET_PAGE_RIP_REGISTER * 8) }
            return
        }
        i.pointee.base = (base | ((rex & 1) << 3)) * 8
        if base == 4 || base == 5, rex & 1 == 0 { i.pointee.segment = UInt8(SegmentRegister.ss) }
        if mod == 1 { i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(1)) }
        if mod == 2 { i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(4)) }
    }

    /// 16-bit addressing (SDM vol. 2 table 2-1).
    private mutating func parseAddress16(_ i: Insn, _ modrm: UInt8) {
        let mod = modrm >> 6
        let rm = modrm & 7
        if mod == 0, rm == 6 {
            i.pointee.displacement = Int32(truncatingIfNeeded: immediate(2))
            return
        }
        let bases: [UInt8] = [3, 3, 5, 5, 6, 7, 5, 3]
        i.pointee.base = bases[Int(rm)] * 8
        if rm < 4 { i.pointee.index = (rm & 1 == 0 ? 6 : 7) * 8 }
        if rm == 2 || rm == 3 || rm == 6 { i.pointee.segment = UInt8(SegmentRegister.ss) }
        if mod == 1 { i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(1)) }
        if mod == 2 { i.pointee.displacement = Int32(truncatingIfNeeded: signedImmediate(2)) }
    }

    private mutating func parseImmediates(_ i: Insn) {
        let size = Int(i.pointee.size)
        switch entry.form {
        case .accumulatorImmediate, .eImmediate, .geImmediate, .immediate:
            i.pointee.immediate = signedImmediate(min(size, 4))
        case .eImmediate8, .geImmediate8, .egImmediate8, .immediate8, .relative8:
            i.pointee.immediate = signedImmediate(1)
        case .relative:
            i.pointee.immediate = signedImmediate(size == 2 ? 2 : 4)
        case .zImmediate:
            i.pointee.immediate = signedImmediate(size)
        case .immediate16:
            i.pointee.immediate = immediate(2)
        case .immediate16And8:
            i.pointee.immediate = immediate(2)
            i.pointee.displacement = Int32(immediate(1))
        case .farPointer:
            i.pointee.immediate = immediate(size == 2 ? 2 : 4)
            i.pointee.displacement = Int32(immediate(2))
        case .offset:
            i.pointee.immediate = immediate(Int(i.pointee.address_size))
            i.pointee.flags |= InsnFlag.memory
        case .vector:
            if vectorHasImmediate { i.pointee.immediate = immediate(1) }
        case .eOne:
            i.pointee.immediate = 1
        case .none, .eg, .ge, .e, .eCL, .egCL, .z: break
        }
    }

    func setFlags(_ i: Insn) {
        if lock { i.pointee.flags |= InsnFlag.lock }
        if repeatPrefix == 0xF3 { i.pointee.flags |= InsnFlag.rep }
        if repeatPrefix == 0xF2 { i.pointee.flags |= InsnFlag.repne }
        if hasOperandSize { i.pointee.flags |= InsnFlag.operandSizePrefix }
        if segmentOverride != 0xFF {
            i.pointee.segment = segmentOverride
            i.pointee.flags |= InsnFlag.segmentOverride
        }
        let usesSegmentBase = i.pointee.segment >= UInt8(SegmentRegister.fs)
        if !is64 || usesSegmentBase || i.pointee.address_size != 8 {
            i.pointee.flags |= InsnFlag.complexAddress
        }
        i.pointee.operation = entry.form.rawValue
    }
}
