internal import CHost

/// Which data accesses of a block go to one place by one register, so that one compare does for all of them: the stack
/// frame, the fields of a record. A register's value is a version; the stack pointer's moves by known amounts.
struct AccessPlan {
    struct Group {
        /// Offsets of the first byte and behind the last, from the register's value where the version began.
        var low: Int
        var high: Int
        var writes: Bool
        var members: Int
        /// How far the stack pointer had moved when the first one came.
        var stackOffset: Int
        /// The leader's site, once it is emitted.
        var record: UInt64?
    }

    private struct Member {
        var group: Int
        var offset: Int
    }

    /// Longer spans lie over a page boundary too often.
    private static let longestSpan = 512

    var groups: [Group] = []
    /// Two for each instruction: its operand, and an indirect call's push.
    private var members: [Member?] = []
    private var open = [Int?](repeating: nil, count: 16)
    private var stackOffset = 0

    init() {}

    init(first: Insn, count: Int) {
        members = Array(repeating: nil, count: count * 2)
        for index in 0..<count { note(first + index, index) }
    }

    /// The group of an access, if it shares one.
    func group(_ index: Int, _ which: Int) -> Int? {
        guard index * 2 + which < members.count, let member = members[index * 2 + which],
            groups[member.group].members > 1
        else { return nil }
        return member.group
    }

    /// The offset of an access from the register's value where the version began.
    func offset(_ index: Int, _ which: Int) -> Int { members[index * 2 + which]?.offset ?? 0 }

    private mutating func note(_ i: Insn, _ index: Int) {
        let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
        // A string operation may go to the interpreter all the same.
        guard BlockTranslator.isNative(i, mnemonic), mnemonic != .movs, mnemonic != .stos else {
            closeAll()
            return
        }
        let slot = BlockTranslator.slotSize(i)
        noteOperand(i, mnemonic, index)
        switch mnemonic {
        case .push, .pushImmediate, .call:
            let isMemory = mnemonic == .push && BlockTranslator.isMemory(i)
            join(index, isMemory ? 1 : 0, 4, stackOffset - slot, slot, writes: true)
            stackOffset -= slot
        case .callIndirect: join(index, 1, 4, stackOffset - slot, slot, writes: true)
        case .pop, .ret, .retImmediate:
            join(index, 0, 4, stackOffset, slot, writes: false)
            stackOffset += slot
            if mnemonic == .pop { close(Int(i.pointee.rm >> 3)) }
        case .leave:
            join(index, 0, 5, 0, slot, writes: false)
            close(4)
            close(5)
        default: noteWrites(i, mnemonic)
        }
    }

    private mutating func noteOperand(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) {
        guard BlockTranslator.isMemory(i), mnemonic != .lea, mnemonic != .nop,
            mnemonic != .cmpxchg8b, let base = BlockTranslator.plainBase(i)
        else { return }
        let number = Int(base >> 3)
        guard number < 12 else { return }
        let offset = Int(i.pointee.displacement) + (number == 4 ? stackOffset : 0)
        if mnemonic == .vector {
            guard let form = BlockTranslator.nativeVector(i), form.access != .none, form.alignment <= 1 else { return }
            join(index, 0, number, offset, form.memorySize, writes: form.access == .store)
            return
        }
        join(index, 0, number, offset, Self.size(i, mnemonic), writes: Self.writes(i, mnemonic))
    }

    private static func size(_ i: Insn, _ mnemonic: Mnemonic) -> Int {
        switch mnemonic {
        case .movzxByte, .movsxByte, .set: 1
        case .movzxWord, .movsxWord: 2
        case .movsxd: 4
        default: Int(i.pointee.size)
        }
    }

    private static func writes(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        switch mnemonic {
        case .cmp, .test, .movzxByte, .movzxWord, .movsxByte, .movsxWord, .movsxd, .imul2, .imul3, .mul, .imul1, .cmov,
            .popcnt, .bsf, .bsr, .tzcnt, .lzcnt, .bt, .div, .idiv, .jmpIndirect, .callIndirect, .push:
            false
        case .mov, .add, .or, .adc, .sbb, .and, .sub, .xor: i.pointee.operation != Form.ge.rawValue
        default: true
        }
    }

    private mutating func join(_ index: Int, _ which: Int, _ register: Int, _ offset: Int, _ size: Int, writes: Bool) {
        if let number = open[register] {
            var low = min(groups[number].low, offset)
            var high = max(groups[number].high, offset + size)
            // A stack pointer that moved may have wrapped at 4 GiB, unless it too is inside the page that is compared with.
            if register == 4, stackOffset != groups[number].stackOffset {
                low = min(low, stackOffset)
                high = max(high, stackOffset + 1)
            }
            if high - low <= Self.longestSpan {
                groups[number].low = low
                groups[number].high = high
                groups[number].writes = groups[number].writes || writes
                groups[number].members += 1
                members[index * 2 + which] = Member(group: number, offset: offset)
                return
            }
        }
        open[register] = groups.count
        members[index * 2 + which] = Member(group: groups.count, offset: offset)
        groups.append(
            Group(
                low: offset, high: offset + size, writes: writes, members: 1,
                stackOffset: register == 4 ? stackOffset : 0, record: nil))
    }

    /// The register gets another value.
    private mutating func close(_ register: Int) {
        open[register] = nil
        if register == 4 { stackOffset = 0 }
    }

    private mutating func closeAll() {
        for register in 0..<16 { close(register) }
    }

    private mutating func noteWrites(_ i: Insn, _ mnemonic: Mnemonic) {
        let reg = Int(i.pointee.reg >> 3) & 15
        let rm = Int(i.pointee.rm >> 3) & 15
        switch mnemonic {
        case .cmp, .test, .jcc, .jmp, .jmpIndirect, .callIndirect, .nop, .pause, .clc, .stc, .cmc, .bt: return
        case .vector:
            guard let encoding = BlockTranslator.nativeVector(i) else { return closeAll() }
            if encoding.reg == .general, encoding.writesReg { close(Int(encoding.regNumber)) }
            if encoding.rm == .general, encoding.writesRM { close(Int(encoding.rmNumber)) }
            if encoding.usesImplicitGeneral { close(1) }
        case .add where Self.movesStack(i): stackOffset += Int(truncatingIfNeeded: i.pointee.immediate)
        case .sub where Self.movesStack(i): stackOffset -= Int(truncatingIfNeeded: i.pointee.immediate)
        case .mov, .movImmediate, .add, .or, .adc, .sbb, .and, .sub, .xor, .inc, .dec, .neg, .not, .shl, .sal, .shr,
            .sar, .rol, .ror, .rcl, .rcr, .set:
            // With a register rm it is the destination; with a memory rm the register is, in one of the forms.
            if !BlockTranslator.isMemory(i) { close(rm) } else if !Self.writes(i, mnemonic) { close(reg) }
        case .lea, .movzxByte, .movzxWord, .movsxByte, .movsxWord, .movsxd, .cmov, .imul2, .imul3, .bsf, .bsr, .popcnt,
            .tzcnt, .lzcnt:
            close(reg)
        default:
            close(reg)
            close(rm)
            close(0)
            close(2)
        }
    }

    /// Adds an immediate to RSP or subtracts one.
    private static func movesStack(_ i: Insn) -> Bool {
        i.pointee.rm == 4 * 8 && !BlockTranslator.isMemory(i) && Int(i.pointee.size) == BlockTranslator.slotSize(i)
            && i.pointee.operation != Form.eg.rawValue && i.pointee.operation != Form.ge.rawValue
    }
}
