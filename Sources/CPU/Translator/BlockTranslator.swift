internal import CHost

/// Translates one decoded block: most instructions become themselves with registers renamed and the memory operand
/// replaced by a checked host address; the rest are calls into the interpreter.
struct BlockTranslator {
    var host: HostAssembler
    let first: Insn
    let count: Int
    /// For each instruction: whether the flags before it can still be read.
    private var flagsLive: [Bool] = []
    private var slowAccesses: [SlowAccess] = []
    private var starts: [Int] = []

    /// Out-of-line code behind a failed TLB compare.
    private struct SlowAccess {
        var branch: Int
        var back: Int
        var insn: Insn
        var kind: UInt8
        var size: Int
    }

    /// Where a direct branch waits to be resolved.
    struct Unresolved {
        var insn: Insn
        var position: Int
    }
    private(set) var unresolved: [Unresolved] = []

    init(host: HostAssembler, first: Insn, count: Int) {
        self.host = host
        self.first = first
        self.count = count
    }

    /// Emits the block; false when it does not fit.
    mutating func translate() -> Bool {
        analyseFlags()
        for index in 0..<count {
            let i = first + index
            starts.append(host.position)
            let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
            if !(Self.isNative(i, mnemonic) && lower(i, mnemonic, index)) { callInterpreter(i) }
        }
        // A block that no branch ended goes on through its end-of-block entry, in the inner loop.
        leave(with: first + count, done: count)
        for access in slowAccesses { emitSlow(access) }
        return !host.isFull
    }

    private mutating func analyseFlags() {
        flagsLive = Array(repeating: true, count: count + 1)
        for index in stride(from: count - 1, through: 0, by: -1) {
            let i = first + index
            let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
            let use = FlagUse(i, mnemonic, isNative: Self.isNative(i, mnemonic))
            flagsLive[index] = use.reads || (flagsLive[index + 1] && !use.kills)
        }
    }

    // MARK: - Registers

    /// The host register that holds a guest register, by byte offset into the file. Nil: the guest register is in memory.
    private func home(_ offset: UInt8) -> Int? {
        switch Int(offset >> 3) {
        case 4: HostRegister.guestRSP
        case 0...11: Int(offset >> 3)
        default: nil
        }
    }

    /// A guest register for reading: its home, or `scratch` loaded with it.
    private mutating func fetch(_ offset: UInt8, into scratch: Int) -> Int {
        if let home = home(offset) { return home }
        host.load(scratch, fromState: Int(offset))
        return scratch
    }

    /// Stores a scratch register back when it stood for a guest register in memory.
    private mutating func keep(_ register: Int, _ offset: UInt8) {
        if home(offset) == nil { host.store(register, toState: Int(offset)) }
    }

    private static func isHighByte(_ offset: UInt8) -> Bool { offset & 7 != 0 }

    // MARK: - What is native

    private static func isMemory(_ i: Insn) -> Bool { i.pointee.flags & InsnFlag.memory != 0 }

    /// Only a segment base may complicate the address.
    private static func hasSimpleAddress(_ i: Insn) -> Bool {
        i.pointee.flags & InsnFlag.complexAddress == 0
            || (i.pointee.address_size == 8 && i.pointee.operation != Form.offset.rawValue)
    }

    static func isNative(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        if isHighByte(i.pointee.reg) || isHighByte(i.pointee.rm) { return false }
        let memory = isMemory(i)
        if memory, !hasSimpleAddress(i) { return false }
        switch mnemonic {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test, .mov, .movImmediate, .inc, .dec, .neg, .not,
            .movzxByte, .movzxWord, .movsxByte, .movsxWord, .lea, .rol, .ror, .rcl, .rcr, .shl, .shr, .sal, .sar,
            .imul2, .imul3, .mul, .imul1, .cmov, .set, .popcnt, .bsf, .bsr, .xchg, .xadd, .cmpxchg, .bswap, .cbw,
            .cwd, .clc, .stc, .cmc, .nop, .pause, .jcc, .jmp:
            return mnemonic != .lea || i.pointee.flags & InsnFlag.complexAddress == 0
        case .movsxd: return i.pointee.size != 2
        case .bt, .bts, .btr, .btc: return !memory
        case .push, .pop: return !memory && i.pointee.size == 8
        case .pushImmediate, .leave: return i.pointee.size == 8
        case .call, .ret: return i.pointee.size == 8
        case .jmpIndirect, .callIndirect: return i.pointee.size == 8
        default: return false
        }
    }

    // MARK: - Leaving

    /// Adds to the instruction count without touching flags. The loop itself counts one for the whole entry.
    private mutating func addCount(_ done: Int) {
        if done == 1 { return }
        host.load(HostRegister.scratch, fromState: Int(MARTLET_COUNT))
        host.lea(HostRegister.scratch, base: HostRegister.scratch, displacement: done - 1)
        host.store(HostRegister.scratch, toState: Int(MARTLET_COUNT))
    }

    private mutating func leave(with next: Insn, done: Int) {
        addCount(done)
        host.moveImmediate64(HostRegister.scratch, address(next))
        host.jumpThroughState(Int(MARTLET_LEAVE))
    }

    private func address(_ i: Insn) -> UInt64 { UInt64(UInt(bitPattern: i)) }

    private mutating func callInterpreter(_ i: Insn) {
        host.moveImmediate64(HostRegister.scratch2, address(i))
        host.callThroughState(Int(MARTLET_CALL_INTERPRETER))
    }

    // MARK: - Memory operands

    /// The guest address of the memory operand in `scratch`; flags are kept.
    private mutating func computeAddress(_ i: Insn) {
        let scratch = HostRegister.scratch
        let displacement = Int(i.pointee.displacement)
        let hasIndex = i.pointee.index != UInt8(MARTLET_ZERO_REGISTER * 8)
        let scale = Int(i.pointee.scale)
        let isComplex = i.pointee.flags & InsnFlag.complexAddress != 0
        if i.pointee.base == UInt8(MARTLET_PAGE_RIP_REGISTER * 8) {
            host.load(scratch, fromState: Int(MARTLET_PAGE_RIP))
            host.lea(scratch, base: scratch, displacement: displacement)
            if isComplex {
                host.lea(scratch, base: scratch, displacement: Int(i.pointee.page_offset) + Int(i.pointee.length))
            }
        } else if i.pointee.base == UInt8(MARTLET_ZERO_REGISTER * 8) {
            if hasIndex {
                let index = fetch(i.pointee.index, into: HostRegister.scratch2)
                host.leaScaled(scratch, index: index, scale: scale, displacement: displacement)
            } else {
                host.moveSigned32(scratch, displacement)
            }
        } else {
            let base = fetch(i.pointee.base, into: scratch)
            let index = hasIndex ? fetch(i.pointee.index, into: HostRegister.scratch2) : nil
            host.lea(scratch, base: base, index: index, scale: scale, displacement: displacement)
        }
        if isComplex {
            host.load(HostRegister.scratch2, fromState: Int(MARTLET_SEGMENT_BASE) + Int(i.pointee.segment) * 8)
            host.lea(scratch, base: scratch, index: HostRegister.scratch2, displacement: 0)
        }
    }

    /// Turns the guest address in `scratch` into a host address: the TLB compare of `readPointer`, inline. Flags that
    /// matter are kept in the state meanwhile.
    private mutating func access(_ i: Insn, _ index: Int, kind: UInt8, size: Int) {
        let scratch = HostRegister.scratch
        let line = HostRegister.scratch2
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        host.move(line, scratch)
        // shr line, 7; and line, 0x1FFE0: 32 bytes for each of 4096 lines
        host.bytes(0x49, 0xC1, 0xEE, 7)
        host.bytes(0x41, 0x81, 0xE6)
        host.word32((Int(MARTLET_TLB_ENTRIES) - 1) << 5)
        host.operation(0x03, size: 8, reg: line, .state(Int(MARTLET_TLB)))
        // sub scratch, [line + tag]; cmp scratch, 4096 - size; ja slow; add scratch, [line + host]
        let tag = kind & AccessKind.write != 0 ? 8 : 0
        host.bytes(0x4D, 0x2B, 0x6E, tag)
        host.bytes(0x49, 0x81, 0xFD)
        host.word32(4096 - size)
        let branch = host.jump(7)
        host.bytes(0x4D, 0x03, 0x6E, 16)
        slowAccesses.append(SlowAccess(branch: branch, back: host.position, insn: i, kind: kind, size: size))
        if keepsFlags { restoreFlags() }
    }

    private mutating func emitSlow(_ access: SlowAccess) {
        host.patch32(at: access.branch, to: host.position)
        let tag = access.kind & AccessKind.write != 0 ? 8 : 0
        // add scratch, [line + tag]: the guest address again
        host.bytes(0x4D, 0x03, 0x6E, tag)
        // mov dword [state + access_kind], kind << 8 | size
        host.operation(0xC7, size: 4, reg: 0, .state(Int(MARTLET_ACCESS_KIND)))
        host.word32(Int(access.kind) << 8 | access.size)
        host.moveImmediate64(HostRegister.scratch2, address(access.insn))
        host.callThroughState(Int(MARTLET_SLOW_ACCESS))
        let back = host.jump(nil)
        host.patch32(at: back, to: access.back)
    }

    /// LAHF and SETO with RAX kept in the state; the address in `scratch` stays.
    private mutating func saveFlags() {
        host.store(HostRegister.rax, toState: 0)
        host.bytes(0x9F, 0x0F, 0x90, 0xC0)
        host.operation(0x89, size: 2, reg: HostRegister.rax, .state(Int(MARTLET_STATUS)))
        host.load(HostRegister.rax, fromState: 0)
    }

    private mutating func restoreFlags() {
        host.store(HostRegister.rax, toState: 0)
        host.operation(0x8B, size: 2, reg: HostRegister.rax, .state(Int(MARTLET_STATUS)))
        host.bytes(0x04, 127, 0x9E)
        host.load(HostRegister.rax, fromState: 0)
    }

    private mutating func operandAccess(_ i: Insn, _ index: Int, kind: UInt8, size: Int) {
        computeAddress(i)
        access(i, index, kind: kind, size: size)
    }

    // MARK: - Instructions

    /// False: not after all; the interpreter takes it.
    private mutating func lower(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) -> Bool {
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
        case .imul2: intoRegister(i, index, opcode: 0xAF, map: 1)
        case .bsf: intoRegister(i, index, opcode: 0xBC, map: 1)
        case .bsr: intoRegister(i, index, opcode: 0xBD, map: 1)
        case .popcnt: intoRegister(i, index, opcode: 0xB8, map: 1, prefix: 0xF3)
        case .cmov: intoRegister(i, index, opcode: Int(i.pointee.opcode), map: 1)
        case .imul3: multiplyImmediate(i, index)
        case .mul, .imul1: multiply(i, mnemonic, index)
        case .set: setByte(i, index)
        case .bt, .bts, .btr, .btc: bitTest(i, mnemonic)
        case .xchg: exchange(i, index, opcode: i.pointee.size == 1 ? 0x86 : 0x87, map: 0)
        case .xadd: exchange(i, index, opcode: i.pointee.size == 1 ? 0xC0 : 0xC1, map: 1)
        case .cmpxchg: exchange(i, index, opcode: i.pointee.size == 1 ? 0xB0 : 0xB1, map: 1)
        case .bswap: byteSwap(i)
        default: return lowerControl(i, mnemonic, index)
        }
        return true
    }

    private mutating func lowerControl(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) -> Bool {
        switch mnemonic {
        case .cbw, .cwd:
            if i.pointee.size == 2 { host.byte(0x66) }
            if i.pointee.size == 8 { host.byte(0x48) }
            host.byte(mnemonic == .cbw ? 0x98 : 0x99)
        case .clc: host.byte(0xF8)
        case .stc: host.byte(0xF9)
        case .cmc: host.byte(0xF5)
        case .nop: break
        case .pause: host.bytes(0xF3, 0x90)
        case .push: push(i, index) { $0.fetch(i.pointee.rm, into: HostRegister.scratch2) }
        case .pushImmediate: pushImmediate(i, index)
        case .pop: pop(i, index)
        case .leave: leaveFrame(i, index)
        case .jcc: conditionalJump(i, index)
        case .jmp: directBranch(i, index)
        case .call: call(i, index)
        case .ret: ret(i, index)
        case .jmpIndirect: indirectJump(i, index)
        case .callIndirect: indirectCall(i, index)
        default: return false
        }
        return true
    }

    private mutating func arithmetic(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
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
            operandAccess(i, index, kind: kind, size: size)
            switch form {
            case .ge:
                let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(toReg, size: size, reg: target, .pointer, byteReg: isByte)
                if stores { keep(target, i.pointee.reg) }
            case .eg:
                let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(toRM, size: size, reg: source, .pointer, byteReg: isByte, lock: lock)
            default: arithmeticImmediate(i, number, isTest, .pointer, lock: lock)
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

    private mutating func arithmeticImmediate(
        _ i: Insn, _ number: Int, _ isTest: Bool, _ rm: HostOperand, lock: Bool
    ) {
        let size = Int(i.pointee.size)
        let value = Int(truncatingIfNeeded: i.pointee.immediate)
        let isSmall = !isTest && size != 1 && value >= -128 && value <= 127
        let opcode = isTest ? (size == 1 ? 0xF6 : 0xF7) : (size == 1 ? 0x80 : (isSmall ? 0x83 : 0x81))
        host.operation(opcode, size: size, reg: isTest ? 0 : number, rm, byteRM: size == 1, lock: lock)
        immediate(value, size: isSmall ? 1 : size)
    }

    private mutating func immediate(_ value: Int, size: Int) {
        for shift in 0..<min(size, 4) { host.byte(value >> (shift * 8)) }
    }

    private static func arithmeticNumber(_ mnemonic: Mnemonic) -> Int {
        Int(mnemonic.rawValue) - Int(Mnemonic.add.rawValue)
    }

    private mutating func move(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let isByte = size == 1
        let form = Form(rawValue: i.pointee.operation) ?? .none
        let hasImmediate = form != .eg && form != .ge
        if Self.isMemory(i) {
            operandAccess(i, index, kind: form == .ge ? AccessKind.read : AccessKind.write, size: size)
            if hasImmediate {
                host.operation(isByte ? 0xC6 : 0xC7, size: size, reg: 0, .pointer)
                immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: size)
            } else if form == .ge {
                // A byte or word goes into the register's low part only.
                let target =
                    size >= 4
                    ? home(i.pointee.reg) ?? HostRegister.scratch2
                    : fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(isByte ? 0x8A : 0x8B, size: size, reg: target, .pointer, byteReg: isByte)
                keep(target, i.pointee.reg)
            } else {
                let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
                host.operation(isByte ? 0x88 : 0x89, size: size, reg: source, .pointer, byteReg: isByte)
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

    private mutating func moveImmediate(_ i: Insn, _ size: Int) {
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

    private mutating func extend(_ i: Insn, _ index: Int, opcode: Int, map: Int, source: Int) {
        let size = Int(i.pointee.size)
        func target(_ translator: inout Self) -> Int {
            size >= 4
                ? translator.home(i.pointee.reg) ?? HostRegister.scratch2
                : translator.fetch(i.pointee.reg, into: HostRegister.scratch2)
        }
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.read, size: source)
            let register = target(&self)
            host.operation(map: map, opcode, size: size, reg: register, .pointer)
            keep(register, i.pointee.reg)
            return
        }
        let rm = fetch(i.pointee.rm, into: HostRegister.scratch)
        let register = target(&self)
        host.operation(map: map, opcode, size: size, reg: register, .register(rm), byteRM: source == 1)
        keep(register, i.pointee.reg)
    }

    private mutating func unary(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
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

    private mutating func shift(_ i: Insn, _ index: Int) {
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

    /// Read, change, write one operand in place.
    private mutating func modify(
        _ i: Insn, _ index: Int, _ emit: (inout HostAssembler, HostOperand, Bool) -> Void
    ) {
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.readWrite, size: Int(i.pointee.size))
            emit(&host, .pointer, i.pointee.flags & InsnFlag.lock != 0)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        emit(&host, .register(target), false)
        keep(target, i.pointee.rm)
    }

    private mutating func lea(_ i: Insn) {
        computeAddress(i)
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

    /// reg = operation(reg, rm): IMUL, BSF, CMOVcc, POPCNT.
    private mutating func intoRegister(_ i: Insn, _ index: Int, opcode: Int, map: Int, prefix: Int = 0) {
        let size = Int(i.pointee.size)
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.read, size: size)
            let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
            host.operation(map: map, opcode, size: size, reg: target, .pointer, prefix: prefix)
            keep(target, i.pointee.reg)
            return
        }
        let source = fetch(i.pointee.rm, into: HostRegister.scratch)
        let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(map: map, opcode, size: size, reg: target, .register(source), prefix: prefix)
        keep(target, i.pointee.reg)
    }

    private mutating func multiplyImmediate(_ i: Insn, _ index: Int) {
        let size = Int(i.pointee.size)
        let isSmall = i.pointee.opcode == 0x6B
        let opcode = isSmall ? 0x6B : 0x69
        var rm = HostOperand.pointer
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.read, size: size)
        } else {
            rm = .register(fetch(i.pointee.rm, into: HostRegister.scratch))
        }
        let target = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(opcode, size: size, reg: target, rm)
        immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: isSmall ? 1 : size)
        keep(target, i.pointee.reg)
    }

    /// MUL and IMUL into rDX:rAX, which are where they are.
    private mutating func multiply(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        let size = Int(i.pointee.size)
        var rm = HostOperand.pointer
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.read, size: size)
        } else {
            rm = .register(fetch(i.pointee.rm, into: HostRegister.scratch))
        }
        host.operation(
            size == 1 ? 0xF6 : 0xF7, size: size, reg: mnemonic == .mul ? 4 : 5, rm, byteRM: size == 1)
    }

    private mutating func setByte(_ i: Insn, _ index: Int) {
        let opcode = Int(i.pointee.opcode)
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.write, size: 1)
            host.operation(map: 1, opcode, size: 1, reg: 0, .pointer)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        host.operation(map: 1, opcode, size: 1, reg: 0, .register(target), byteRM: true)
        keep(target, i.pointee.rm)
    }

    private mutating func bitTest(_ i: Insn, _ mnemonic: Mnemonic) {
        let size = Int(i.pointee.size)
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        let number = 4 + Int(mnemonic.rawValue) - Int(Mnemonic.bt.rawValue)
        if i.pointee.operation == Form.eg.rawValue {
            let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
            host.operation(map: 1, 0x83 | number << 3, size: size, reg: source, .register(target))
        } else {
            host.operation(map: 1, 0xBA, size: size, reg: number, .register(target))
            host.byte(Int(i.pointee.immediate & 0xFF))
        }
        if mnemonic != .bt { keep(target, i.pointee.rm) }
    }

    /// XCHG, XADD, CMPXCHG: both operands are written.
    private mutating func exchange(_ i: Insn, _ index: Int, opcode: Int, map: Int) {
        let size = Int(i.pointee.size)
        let isByte = size == 1
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.readWrite, size: size)
            let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
            let lock = i.pointee.flags & InsnFlag.lock != 0
            host.operation(map: map, opcode, size: size, reg: source, .pointer, byteReg: isByte, lock: lock)
            keep(source, i.pointee.reg)
            return
        }
        let target = fetch(i.pointee.rm, into: HostRegister.scratch)
        let source = fetch(i.pointee.reg, into: HostRegister.scratch2)
        host.operation(
            map: map, opcode, size: size, reg: source, .register(target), byteReg: isByte, byteRM: isByte)
        keep(target, i.pointee.rm)
        keep(source, i.pointee.reg)
    }

    private mutating func byteSwap(_ i: Insn) {
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

    // MARK: - Stack

    /// Stores 8 bytes below the stack pointer, then moves it.
    private mutating func push(_ i: Insn, _ index: Int, _ value: (inout Self) -> Int) {
        pushSlot(i, index)
        let source = value(&self)
        host.operation(0x89, size: 8, reg: source, .pointer)
        host.lea(HostRegister.guestRSP, base: HostRegister.guestRSP, displacement: -8)
    }

    private mutating func pushSlot(_ i: Insn, _ index: Int) {
        host.lea(HostRegister.scratch, base: HostRegister.guestRSP, displacement: -8)
        access(i, index, kind: AccessKind.write, size: 8)
    }

    private mutating func pushImmediate(_ i: Insn, _ index: Int) {
        pushSlot(i, index)
        host.operation(0xC7, size: 8, reg: 0, .pointer)
        immediate(Int(truncatingIfNeeded: i.pointee.immediate), size: 4)
        host.lea(HostRegister.guestRSP, base: HostRegister.guestRSP, displacement: -8)
    }

    private mutating func pop(_ i: Insn, _ index: Int) {
        host.move(HostRegister.scratch, HostRegister.guestRSP)
        access(i, index, kind: AccessKind.read, size: 8)
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .pointer)
        host.lea(HostRegister.guestRSP, base: HostRegister.guestRSP, displacement: 8)
        if let target = home(i.pointee.rm) {
            host.move(target, HostRegister.scratch)
        } else {
            host.store(HostRegister.scratch, toState: Int(i.pointee.rm))
        }
    }

    private mutating func leaveFrame(_ i: Insn, _ index: Int) {
        let rbp = 5
        host.move(HostRegister.scratch, rbp)
        access(i, index, kind: AccessKind.read, size: 8)
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .pointer)
        host.lea(HostRegister.guestRSP, base: rbp, displacement: 8)
        host.move(rbp, HostRegister.scratch)
    }

    // MARK: - Control transfer

    /// Distance of a direct branch's target from the page's start.
    private func targetOffset(_ i: Insn) -> Int {
        Int(i.pointee.page_offset) + Int(i.pointee.length) + Int(truncatingIfNeeded: i.pointee.immediate)
    }

    private mutating func loadTarget(_ i: Insn) {
        host.load(HostRegister.scratch, fromState: Int(MARTLET_PAGE_RIP))
        host.lea(HostRegister.scratch, base: HostRegister.scratch, displacement: targetOffset(i))
    }

    /// Goes to a direct branch's target: inside the page through the branch's chain cell, else by look-up.
    private mutating func branch(_ i: Insn, _ index: Int) {
        addCountContinuing(index + 1)
        let target = targetOffset(i)
        if target >= 0, target < Int(pageSize) {
            var attention: Int?
            if target <= Int(i.pointee.page_offset) {
                // xchg-free attention check: mov scratch, rcx; mov ecx, [attention]; jrcxz on; mov rcx, scratch; resolve
                host.move(HostRegister.scratch, HostRegister.rcx)
                host.operation(0x8B, size: 4, reg: HostRegister.rcx, .state(Int(MARTLET_ATTENTION)))
                host.bytes(0xE3, 5)
                attention = host.jump(nil)
                host.move(HostRegister.rcx, HostRegister.scratch)
            }
            host.moveImmediate64(HostRegister.scratch2, address(i))
            // jmp [scratch2 + chain]
            host.bytes(0x41, 0xFF, 0x66, Int(MARTLET_INSN_CHAIN))
            if let attention {
                host.patch32(at: attention, to: host.position)
                host.move(HostRegister.rcx, HostRegister.scratch)
            }
            unresolved.append(Unresolved(insn: i, position: host.position))
            loadTarget(i)
            host.moveImmediate64(HostRegister.scratch2, address(i))
            host.jumpThroughState(Int(MARTLET_RESOLVE))
            return
        }
        loadTarget(i)
        host.moveImmediate64(HostRegister.scratch2, address(i))
        host.jumpThroughState(Int(MARTLET_JUMP))
    }

    /// Counts a whole pass; the loop's own one was counted at the entry, so a chained block counts all of its own.
    private mutating func addCountContinuing(_ done: Int) {
        host.load(HostRegister.scratch, fromState: Int(MARTLET_COUNT))
        host.lea(HostRegister.scratch, base: HostRegister.scratch, displacement: done)
        host.store(HostRegister.scratch, toState: Int(MARTLET_COUNT))
    }

    private mutating func conditionalJump(_ i: Insn, _ index: Int) {
        let skip = host.jump(Int(i.pointee.opcode & 15) ^ 1)
        branch(i, index)
        host.patch32(at: skip, to: host.position)
    }

    private mutating func directBranch(_ i: Insn, _ index: Int) { branch(i, index) }

    private mutating func returnAddress(_ i: Insn) {
        host.load(HostRegister.scratch2, fromState: Int(MARTLET_PAGE_RIP))
        host.lea(
            HostRegister.scratch2, base: HostRegister.scratch2,
            displacement: Int(i.pointee.page_offset) + Int(i.pointee.length))
    }

    private mutating func call(_ i: Insn, _ index: Int) {
        push(i, index) {
            $0.returnAddress(i)
            return HostRegister.scratch2
        }
        branch(i, index)
    }

    private mutating func ret(_ i: Insn, _ index: Int) {
        host.move(HostRegister.scratch, HostRegister.guestRSP)
        access(i, index, kind: AccessKind.read, size: 8)
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .pointer)
        host.lea(HostRegister.guestRSP, base: HostRegister.guestRSP, displacement: 8)
        goIndirect(i, index)
    }

    /// Ends the block at the guest address in `scratch`.
    private mutating func goIndirect(_ i: Insn, _ index: Int) {
        host.load(HostRegister.scratch2, fromState: Int(MARTLET_COUNT))
        host.lea(HostRegister.scratch2, base: HostRegister.scratch2, displacement: index + 1)
        host.store(HostRegister.scratch2, toState: Int(MARTLET_COUNT))
        host.moveImmediate64(HostRegister.scratch2, address(i))
        host.jumpThroughState(Int(MARTLET_JUMP))
    }

    private mutating func indirectJump(_ i: Insn, _ index: Int) {
        loadIndirect(i, index)
        goIndirect(i, index)
    }

    private mutating func loadIndirect(_ i: Insn, _ index: Int) {
        if Self.isMemory(i) {
            operandAccess(i, index, kind: AccessKind.read, size: 8)
            host.operation(0x8B, size: 8, reg: HostRegister.scratch, .pointer)
        } else {
            let source = fetch(i.pointee.rm, into: HostRegister.scratch)
            if source != HostRegister.scratch { host.move(HostRegister.scratch, source) }
        }
    }

    /// The target waits in the state's scratch place while the return address is pushed.
    private mutating func indirectCall(_ i: Insn, _ index: Int) {
        loadIndirect(i, index)
        host.store(HostRegister.scratch, toState: Int(MARTLET_BRANCH_TARGET))
        push(i, index) {
            $0.returnAddress(i)
            return HostRegister.scratch2
        }
        host.load(HostRegister.scratch, fromState: Int(MARTLET_BRANCH_TARGET))
        goIndirect(i, index)
    }
}
