internal import CHost

// Integer instructions (SDM vol. 1 §5.1, vol. 2): themselves, with registers renamed.

extension BlockTranslator {
    /// False: not after all; the interpreter takes it.
    mutating func lower(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) -> Bool {
        if mnemonic != .vector, Self.usesHighByte(i, mnemonic, isMemory: Self.isMemory(i)) {
            return highByte(i, mnemonic)
        }
        switch mnemonic {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test: arithmetic(i, mnemonic, index)
        case .mov, .movImmediate: move(i, index)
        case .movzxByte: extend(i, index, opcode: 0xB6, map: 1, source: 1)
        case .movzxWord: extend(i, index, opcode: 0xB7, map: 1, source: 2)
        case .movsxByte: extend(i, index, opcode: 0xBE, map: 1, source: 1)
        case .movsxWord: extend(i, index, opcode: 0xBF, map: 1, source: 2)
        case .movsxd: extend(i, index, opcode: 0x63, map: 0, source: 4)
        case .inc, .dec, .neg, .not: unary(i, mnemonic, index)
        case .rol, .ror, .rcl, .rcr, .shl, .shr, .sal, .sar: shift(i, index)
        case .lea: lea(i)
        case .shld, .shrd: doubleShift(i, index)
        case .imul2: intoRegister(i, index, opcode: 0xAF, map: 1)
        case .bsf: intoRegister(i, index, opcode: 0xBC, map: 1)
        case .bsr: intoRegister(i, index, opcode: 0xBD, map: 1)
        case .tzcnt: intoRegister(i, index, opcode: 0xBC, map: 1, prefix: 0xF3)
        case .lzcnt: intoRegister(i, index, opcode: 0xBD, map: 1, prefix: 0xF3)
        case .popcnt: intoRegister(i, index, opcode: 0xB8, map: 1, prefix: 0xF3)
        case .adcx: intoRegister(i, index, opcode: 0xF6, map: 2, prefix: 0x66)
        case .adox: intoRegister(i, index, opcode: 0xF6, map: 2, prefix: 0xF3)
        case .cmov: intoRegister(i, index, opcode: Int(i.pointee.opcode), map: 1)
        case .imul3: multiplyImmediate(i, index)
        case .mul, .imul1: multiply(i, mnemonic, index)
        case .div, .idiv: divide(i, mnemonic, index)
        case .vector: return vector(i, index)
        case .set: setByte(i, index)
        case .bt, .bts, .btr, .btc: bitTest(i, index, mnemonic)
        case .cmpxchg8b: compareExchangePair(i, index)
        case .xchg: exchange(i, index, opcode: i.pointee.size == 1 ? 0x86 : 0x87, map: 0)
        case .xadd: exchange(i, index, opcode: i.pointee.size == 1 ? 0xC0 : 0xC1, map: 1)
        case .cmpxchg: exchange(i, index, opcode: i.pointee.size == 1 ? 0xB0 : 0xB1, map: 1)
        case .bswap: byteSwap(i)
        default: return lowerControl(i, mnemonic, index)
        }
        return true
    }

    /// REP MOVS, REP STOS: by CHost/translated.S, which has the interpreter do what it cannot.
    private mutating func stringOperation(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let number = (isFlat32 ? 8 : 0) + (mnemonic == .movs ? 0 : 4) + i.pointee.size.trailingZeroBitCount
        host.moveImmediate64(HostRegister.scratch2, address(i))
        host.callThroughState(Int(MARTLET_STRING_OPERATIONS) + number * 16 + (flagsLive[index] ? 8 : 0))
        vectorLevel = 0
    }

    mutating func lowerControl(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) -> Bool {
        switch mnemonic {
        case .cbw, .cwd:
            if i.pointee.size == 2 { host.byte(0x66) }
            if i.pointee.size == 8 { host.byte(0x48) }
            host.byte(mnemonic == .cbw ? 0x98 : 0x99)
        case .movs, .stos: stringOperation(i, mnemonic, index)
        case .cli, .cld, .swapgs, .movFromCR: return privileged(i, mnemonic, index)
        case .lfence: host.bytes(0x0F, 0xAE, 0xE8)
        case .mfence: host.bytes(0x0F, 0xAE, 0xF0)
        case .sfence: host.bytes(0x0F, 0xAE, 0xF8)
        case .clc: host.byte(0xF8)
        case .stc: host.byte(0xF9)
        case .cmc: host.byte(0xF5)
        case .nop: break
        case .pause: host.bytes(0xF3, 0x90)
        case .push where Self.isMemory(i): pushMemory(i, index)
        case .push: push(i, index) { $0.fetch(i.pointee.rm, into: HostRegister.scratch2) }
        case .pushImmediate: pushImmediate(i, index)
        case .pop: pop(i, index)
        case .leave: leaveFrame(i, index)
        case .jcc: conditionalJump(i, index)
        case .jmp: directBranch(i, index)
        case .call: call(i, index)
        case .ret, .retImmediate: ret(i, index)
        case .movOffsetLoad, .movOffsetStore: moveOffset(i, mnemonic, index)
        case .jmpIndirect: indirectJump(i, index)
        case .callIndirect: indirectCall(i, index)
        default: return false
        }
        return true
    }

    mutating func arithmetic(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        let isByte = size == 1
        let form = Form(rawValue: i.pointee.operation) ?? .none
        let number = Self.arithmeticNumber(mnemonic)
        let isTest = mnemonic == .test
        let stores = mnemonic != .cmp && !isTest
        let lock = i.pointee.flags & InsnFlag.lock != 0
        // Opcodes of the form `op rm, reg` and `op reg, rm`.
        let toRM = isTest ? (isByte ? 0x84 : 0x85) : number << 3 | (isByte ? 0 : 1)
        let toReg = isTest ? toRM : toRM | 2
        if Self.isMemory(i) {
            let kind = form == .ge || !stores ? AccessKind.read : AccessKind.readWrite
            let memory = operandAccess(i, index, Access(kind: kind, size: size))
            switch form {
            case .ge:
                let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(toReg, size: size, reg: target, memory, byteReg: isByte)
                if stores { keep(target, i.pointee.reg) }
            case .eg:
                let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(toRM, size: size, reg: source, memory, byteReg: isByte, lock: lock)
            default: arithmeticImmediate(i, number, isTest, memory, lock: lock)
            }
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        if form == .eg || form == .ge {
            // `bind` has put destination into rm and source into reg for both forms.
            let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
            host.operation(toRM, size: size, reg: source, .register(target), byteReg: isByte, byteRM: isByte)
        } else {
            arithmeticImmediate(i, number, isTest, .register(target), lock: false)
        }
        if stores { keep(target, i.pointee.rm) }
    }

    mutating func arithmeticImmediate(
        _ i: Insn, _ number: Int, _ isTest: Bool, _ rm: HostOperand, lock: Bool
    ) {
        let size = Int(i.pointee.size)
        let value = Int(truncatingIfNeeded: i.pointee.immediate)
        let isSmall = !isTest && size != 1 && value >= -128 && value <= 127
        let opcode = isTest ? (size == 1 ? 0xF6 : 0xF7) : (size == 1 ? 0x80 : (isSmall ? 0x83 : 0x81))
        host.operation(opcode, size: size, reg: isTest ? 0 : number, rm, byteRM: size == 1, lock: lock)
        immediate(value, size: isSmall ? 1 : size)
    }

    mutating func immediate(_ value: Int, size: Int) {
        for shift in 0..<min(size, 4) { host.byte(value >> (shift * 8)) }
    }

    static func arithmeticNumber(_ mnemonic: Mnemonic) -> Int {
        Int(mnemonic.rawValue) - Int(Mnemonic.add.rawValue)
    }

    mutating func move(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let isByte = size == 1
        let form = Form(rawValue: i.pointee.operation) ?? .none
        let hasImmediate = form != .eg && form != .ge
        if Self.isMemory(i) {
            let memory = operandAccess(
                i, index, Access(kind: form == .ge ? AccessKind.read : AccessKind.write, size: size))
            if hasImmediate {
                host.operation(isByte ? 0xC6 : 0xC7, size: size, reg: 0, memory)
                immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: size)
            } else if form == .ge {
                // A byte or word goes into the register's low part only.
                let target =
                    size >= 4
                    ? home(i.pointee.reg) ?? HostRegister.scratch2
                    : fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(isByte ? 0x8A : 0x8B, size: size, reg: target, memory, byteReg: isByte)
                keep(target, i.pointee.reg)
            } else {
                let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(isByte ? 0x88 : 0x89, size: size, reg: source, memory, byteReg: isByte)
            }
            return
        }
        if hasImmediate {
            moveImmediate(i, size)
            return
        }
        let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
        let target =
            size >= 4 ? home(i.pointee.rm) ?? HostRegister.scratch : fetch(i.pointee.rm, into: HostRegister.scratch)
        host.operation(
            isByte ? 0x88 : 0x89, size: size, reg: source, .register(target), byteReg: isByte, byteRM: isByte)
        keep(target, i.pointee.rm)
    }

    /// MOV between rAX and an address in the instruction.
    mutating func moveOffset(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        let isLoad = mnemonic == .movOffsetLoad
        let memory = operandAccess(
            i, index, Access(kind: isLoad ? AccessKind.read : AccessKind.write, size: size))
        host.operation((isLoad ? 0x8A : 0x88) | (size == 1 ? 0 : 1), size: size, reg: HostRegister.rax, memory)
    }

    mutating func moveImmediate(_ i: Insn, _ size: Int) {
        if size >= 4 {
            let target = home(i.pointee.rm) ?? HostRegister.scratch
            host.moveImmediate64(
                target, size == 8 ? i.pointee.immediate : i.pointee.immediate & 0xFFFF_FFFF)
            keep(target, i.pointee.rm)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        host.operation(size == 1 ? 0xC6 : 0xC7, size: size, reg: 0, .register(target), byteRM: size == 1)
        immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: size)
        keep(target, i.pointee.rm)
    }

    mutating func extend(_ i: Insn, _ index: Int, opcode: Int, map: Int, source: Int) {
        let size = Int(i.pointee.size)
        func target(_ translator: inout Self) -> Int {
            size >= 4
                ? translator.home(i.pointee.reg) ?? HostRegister.scratch2
                : translator.fetch(i.pointee.reg, into: HostRegister.scratch2)
        }
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.read, size: source))
            let register = target(&self)
            host.operation(map: map, opcode, size: size, reg: register, memory)
            keep(register, i.pointee.reg)
            return
        }
        let rm = fetch(i.pointee.rm, into: HostRegister.scratch)
        let register = target(&self)
        host.operation(map: map, opcode, size: size, reg: register, .register(rm), byteRM: source == 1)
        keep(register, i.pointee.reg)
    }

    mutating func unary(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        let (opcode, number): (Int, Int) =
            switch mnemonic {
            case .inc: (0xFE, 0)
            case .dec: (0xFE, 1)
            case .not: (0xF6, 2)
            default: (0xF6, 3)
            }
        modify(i, index) { host, rm, lock in
            host.operation(
                opcode | (size == 1 ? 0 : 1), size: size, reg: number, rm, byteRM: size == 1, lock: lock)
        }
    }

    mutating func shift(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let number = Int((i.pointee.modrm >> 3) & 7)
        let byCL = i.pointee.operation == Form.eCL.rawValue
        let count = Int(i.pointee.immediate & 0xFF)
        modify(i, index) { host, rm, _ in
            let opcode = (byCL ? 0xD2 : 0xC0) | (size == 1 ? 0 : 1)
            host.operation(opcode, size: size, reg: number, rm, byteRM: size == 1)
            if !byCL { host.byte(count) }
        }
    }

    /// SHLD and SHRD by an immediate or by CL.
    mutating func doubleShift(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let opcode = Int(i.pointee.opcode)
        let byCL = i.pointee.operation == Form.egCL.rawValue
        let count = Int(i.pointee.immediate & 0xFF)
        var rm = HostOperand.pointer
        if Self.isMemory(i) {
            rm = operandAccess(i, index, Access(kind: AccessKind.readWrite, size: size))
        } else {
            rm = .register(fetch(i.pointee.rm, into: HostRegister.scratch))
        }
        let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(map: 1, opcode, size: size, reg: source, rm)
        if !byCL { host.byte(count) }
        if !Self.isMemory(i) { keep(HostRegister.scratch, i.pointee.rm) }
    }

    /// Read, change, write one operand in place.
    mutating func modify(
        _ i: Insn, _ index: Int, _ emit: (inout HostAssembler, HostOperand, Bool) -> Void
    ) {
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.readWrite, size: Int(i.pointee.size)))
            emit(&host, memory, i.pointee.flags & InsnFlag.lock != 0)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        emit(&host, .register(target), false)
        keep(target, i.pointee.rm)
    }

    mutating func lea(_ i: Insn) {
        if i.pointee.size == 8, let target = home(i.pointee.reg), hasOnlyHomes(i) {
            computeAddress(i, into: target)
            return
        }
        computeAddress(i, into: HostRegister.scratch)
        let scratch = HostRegister.scratch
        if let target = home(i.pointee.reg) {
            host.operation(0x89, size: Int(i.pointee.size), reg: scratch, .register(target))
        } else if i.pointee.size == 2 {
            host.operation(0x89, size: 2, reg: scratch, .state(Int(i.pointee.reg)))
        } else {
            if i.pointee.size == 4 { host.operation(0x89, size: 4, reg: scratch, .register(scratch)) }
            host.store(scratch, toState: Int(i.pointee.reg))
        }
    }

    /// Whether each register of the address is one of the host's (or the page's address, or none).
    func hasOnlyHomes(_ i: Insn) -> Bool {
        func isHome(_ register: UInt8) -> Bool { register >= UInt8(MARTLET_ZERO_REGISTER * 8) || home(register) != nil }
        return isHome(i.pointee.base) && isHome(i.pointee.index)
    }

    /// reg = operation(reg, rm): IMUL, BSF, CMOVcc, POPCNT.
    mutating func intoRegister(_ i: Insn, _ index: Int, opcode: Int, map: Int, prefix: Int = 0) {
        let size = Int(i.pointee.size)
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.read, size: size))
            let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
            host.operation(map: map, opcode, size: size, reg: target, memory, prefix: prefix)
            keep(target, i.pointee.reg)
            return
        }
        let source = fetch(i.pointee.rm, into: HostRegister.scratch)
        let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(map: map, opcode, size: size, reg: target, .register(source), prefix: prefix)
        keep(target, i.pointee.reg)
    }

    mutating func multiplyImmediate(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let isSmall = i.pointee.opcode == 0x6B
        let opcode = isSmall ? 0x6B : 0x69
        var rm = HostOperand.pointer
        if Self.isMemory(i) {
            rm = operandAccess(i, index, Access(kind: AccessKind.read, size: size))
        } else {
            rm = .register(fetch(i.pointee.rm, into: HostRegister.scratch))
        }
        let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(opcode, size: size, reg: target, rm)
        immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: isSmall ? 1 : size)
        keep(target, i.pointee.reg)
    }

    /// MUL and IMUL into rDX:rAX, which are where they are.
    mutating func multiply(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        var rm = HostOperand.pointer
        if Self.isMemory(i) {
            rm = operandAccess(i, index, Access(kind: AccessKind.read, size: size))
        } else {
            rm = .register(fetch(i.pointee.rm, into: HostRegister.scratch))
        }
        host.operation(
            size == 1 ? 0xF6 : 0xF7, size: size, reg: mnemonic == .mul ? 4 : 5, rm, byteRM: size == 1)
    }

    /// DIV and IDIV of 32 and 64 bits when they cannot fault for certain: the upper half below the divisor, or the sign
    /// of the lower half and a divisor that is neither 0 nor -1. All else is the interpreter's.
    mutating func divide(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        let divisor = HostRegister.scratch
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.read, size: size))
            host.operation(0x8B, size: size, reg: divisor, memory)
        } else {
            let source = fetch(i.pointee.rm, into: divisor)
            if source != divisor { host.operation(0x89, size: size, reg: source, .register(divisor)) }
        }
        let keepsFlags = flagsLive[index + 1]
        if keepsFlags { saveFlags() }
        var branches: [Int] = []
        if mnemonic == .div {
            host.operation(0x39, size: size, reg: divisor, .register(HostRegister.rdx))
            branches.append(host.jump(HostCondition.aboveOrEqual))
        } else {
            let sign = HostRegister.scratch2
            host.operation(0x89, size: size, reg: HostRegister.rax, .register(sign))
            host.operation(0xC1, size: size, reg: 7, .register(sign))
            host.byte(size * 8 - 1)
            host.operation(0x39, size: size, reg: HostRegister.rdx, .register(sign))
            branches.append(host.jump(HostCondition.notZero))
            host.lea(sign, base: divisor, displacement: 1, size: size)
            host.operation(0x83, size: size, reg: 7, .register(sign))
            host.byte(1)
            branches.append(host.jump(HostCondition.belowOrEqual))
        }
        host.operation(0xF7, size: size, reg: mnemonic == .div ? 6 : 7, .register(divisor))
        if keepsFlags { restoreFlags() }
        deferredDivision(i, branches, keepsFlags: keepsFlags)
        vectorLevel = 0
    }

    private mutating func deferredDivision(_ i: Insn, _ branches: [Int], keepsFlags: Bool) {
        deferred.append(.interpret(insn: i, branches: branches, back: host.position, restoresFlags: keepsFlags))
    }

    mutating func setByte(_ i: Insn, _ index: Int) {
        let opcode = Int(i.pointee.opcode)
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.write, size: 1))
            host.operation(map: 1, opcode, size: 1, reg: 0, memory)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        host.operation(map: 1, opcode, size: 1, reg: 0, .register(target), byteRM: true)
        keep(target, i.pointee.rm)
    }

    mutating func bitTest(_ i: Insn, _ index: Int, _ mnemonic: Mnemonic) {
        let size = Int(i.pointee.size)
        let number = 4 + Int(mnemonic.rawValue) - Int(Mnemonic.bt.rawValue)
        if Self.isMemory(i) {
            let kind = mnemonic == .bt ? AccessKind.read : AccessKind.readWrite
            let memory = operandAccess(i, index, Access(kind: kind, size: size))
            let lock = i.pointee.flags & InsnFlag.lock != 0
            host.operation(map: 1, 0xBA, size: size, reg: number, memory, lock: lock)
            host.byte(Int(i.pointee.immediate & 0xFF))
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        if i.pointee.operation == Form.eg.rawValue {
            let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
            host.operation(map: 1, 0x83 | number << 3, size: size, reg: source, .register(target))
        } else {
            host.operation(map: 1, 0xBA, size: size, reg: number, .register(target))
            host.byte(Int(i.pointee.immediate & 0xFF))
        }
        if mnemonic != .bt { keep(target, i.pointee.rm) }
    }

    /// CMPXCHG8B, and CMPXCHG16B, whose operand must be aligned; the registers are where they are.
    mutating func compareExchangePair(_ i: Insn, _ index: Int) {
        let size = i.pointee.size == 8 ? 8 : 4
        let access = Access(kind: AccessKind.readWrite, size: size * 2, isAligned: size == 8)
        let memory = operandAccess(i, index, access)
        host.operation(map: 1, 0xC7, size: size, reg: 1, memory, lock: i.pointee.flags & InsnFlag.lock != 0)
    }

    /// XCHG, XADD, CMPXCHG: both operands are written.
    mutating func exchange(_ i: Insn, _ index: Int, opcode: Int, map: Int) {
        let size = Int(i.pointee.size)
        let isByte = size == 1
        if Self.isMemory(i) {
            let memory = operandAccess(i, index, Access(kind: AccessKind.readWrite, size: size))
            let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
            let lock = i.pointee.flags & InsnFlag.lock != 0
            host.operation(map: map, opcode, size: size, reg: source, memory, byteReg: isByte, lock: lock)
            keep(source, i.pointee.reg)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(
            map: map, opcode, size: size, reg: source, .register(target), byteReg: isByte, byteRM: isByte)
        // The destination last: XADD of a register with itself doubles it (SDM vol. 2).
        keep(source, i.pointee.reg)
        keep(target, i.pointee.rm)
    }

    mutating func byteSwap(_ i: Insn) {
        let size = Int(i.pointee.size)
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        if size == 2 {
            host.operation(0xC7, size: 2, reg: 0, .register(target))
            immediate(0, size: 2)
        } else {
            let rex = (size == 8 ? 0x48 : 0x40) | (target >= 8 ? 1 : 0)
            host.bytes(rex, 0x0F, 0xC8 | target & 7)
        }
        keep(target, i.pointee.rm)
    }
}

// AH, CH, DH and BH exist where no REX prefix is (SDM vol. 2 §2.2.1.2), so only without R8 to R15, among which are the
// scratch registers and the guest's RSP: between registers alone. Code of 32 bits uses them often.

extension BlockTranslator {
    static func isNativeHighByte(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        if isMemory(i) { return false }
        switch mnemonic {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test, .mov, .movImmediate, .inc, .dec, .neg, .not, .rol,
            .ror,
            .rcl, .rcr, .shl, .shr, .sal, .sar, .set:
            return true
        case .movzxByte, .movsxByte:
            let number = i.pointee.reg >> 3
            return number < 8 && number != 4
        default: return false
        }
    }

    /// The number of a byte register in an instruction without REX.
    private static func byteNumber(_ offset: UInt8) -> Int { Int(offset >> 3) + (offset & 7 != 0 ? 4 : 0) }

    mutating func highByte(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        guard Self.isNativeHighByte(i, mnemonic) else { return false }
        let rm = HostOperand.register(Self.byteNumber(i.pointee.rm))
        let reg = Self.byteNumber(i.pointee.reg)
        let extensionNumber = Int(i.pointee.modrm >> 3 & 7)
        let form = Form(rawValue: i.pointee.operation) ?? .none
        // `bind` has put destination into rm and source into reg for both forms of two registers.
        let hasImmediate = form != .eg && form != .ge
        switch mnemonic {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test:
            let number = mnemonic == .test ? 0 : Self.arithmeticNumber(mnemonic)
            if hasImmediate {
                host.operation(mnemonic == .test ? 0xF6 : 0x80, size: 1, reg: number, rm)
                host.byte(Int(i.pointee.immediate & 0xFF))
            } else {
                host.operation(mnemonic == .test ? 0x84 : number << 3, size: 1, reg: reg, rm)
            }
        case .mov, .movImmediate:
            host.operation(hasImmediate ? 0xC6 : 0x88, size: 1, reg: hasImmediate ? 0 : reg, rm)
            if hasImmediate { host.byte(Int(i.pointee.immediate & 0xFF)) }
        case .inc: host.operation(0xFE, size: 1, reg: 0, rm)
        case .dec: host.operation(0xFE, size: 1, reg: 1, rm)
        case .not: host.operation(0xF6, size: 1, reg: 2, rm)
        case .neg: host.operation(0xF6, size: 1, reg: 3, rm)
        case .set: host.operation(map: 1, Int(i.pointee.opcode), size: 1, reg: 0, rm)
        case .movzxByte, .movsxByte:
            let opcode = mnemonic == .movzxByte ? 0xB6 : 0xBE
            host.operation(map: 1, opcode, size: Int(i.pointee.size), reg: Int(i.pointee.reg >> 3), rm)
        default:
            let byCL = form == .eCL
            host.operation(byCL ? 0xD2 : 0xC0, size: 1, reg: extensionNumber, rm)
            if !byCL { host.byte(Int(i.pointee.immediate & 0xFF)) }
        }
        return true
    }
}
