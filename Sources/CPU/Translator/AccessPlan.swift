internal import CHost

/// Which data accesses of a block go to one place by one register, so that one compare does for all of them: the stack
/// frame, the fields of a record. A register's value is a version; what it moves by known amounts is the same version.
struct AccessPlan {
    struct Group {
        /// Offsets of the first byte and behind the last, from the register's value where the version began.
        var low: Int
        var high: Int
        var writes: Bool
        /// What the address at offset `phase` must be a multiple of: some vector instructions insist (1: none does).
        var alignment = 1
        var phase = 0
        var members: Int
        /// How far the register had moved when the first one came.
        var moved: Int
        /// The leader's site, once it is emitted.
        var record: UInt64?

        /// Whether it can take an access that is aligned so; what is aligned in one way and not in the other goes alone.
        func accepts(_ offset: Int, alignment other: Int) -> Bool {
            (offset - phase) & (min(alignment, other) - 1) == 0
        }

        mutating func take(_ offset: Int, _ size: Int, alignment other: Int) {
            if other > alignment { (alignment, phase) = (other, offset) }
            low = min(low, offset)
            // An aligned unit is on one page, so that this costs nothing.
            low -= (low - phase) & (alignment - 1)
            high = max(high, offset + size)
        }
    }

    private struct Member {
        var group: Int
        var offset: Int
    }

    /// A page ends in the middle of what a register's accesses reach, as the register is now.
    struct Boundary {
        var register: Int
        /// Of the first byte on the next page, from the register's value.
        var offset: Int
    }

    /// Longer spans lie over a page boundary too often.
    private static let longestSpan = 512
    /// The group's start must be within reach of a displacement wherever its leader is.
    private static let longestDistance = 1 << 30

    var groups: [Group] = []
    /// Two for each instruction: its operand, and an indirect call's push.
    private var members: [Member?] = []
    private var open = [Int?](repeating: nil, count: 16)
    /// Where the accesses by `boundary.register` are two groups, until it gets another value: that of the second page.
    private var boundary: Boundary?
    private var openBehind: Int?
    /// How far each register is from where its version began.
    private var moved = [Int](repeating: 0, count: 16)
    /// Addresses wrap at 4 GiB.
    private var wraps = false

    init() {}

    /// `copies`: the block in a row with itself.
    init(first: Insn, count: Int, copies: Int, boundary: Boundary? = nil) {
        self.boundary = boundary
        wraps = BlockTranslator.isFlat32(first)
        members = Array(repeating: nil, count: count * copies * 2)
        for index in 0..<count * copies { note(first + index % count, index) }
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
            join(index, isMemory ? 1 : 0, 4, moved[4] - slot, slot, writes: true)
            moved[4] -= slot
        case .callIndirect: join(index, 1, 4, moved[4] - slot, slot, writes: true)
        case .pop, .ret, .retImmediate:
            join(index, 0, 4, moved[4], slot, writes: false)
            moved[4] += slot
            if mnemonic == .pop { close(Int(i.pointee.rm >> 3)) }
        case .leave:
            join(index, 0, 5, moved[5], slot, writes: false)
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
        guard abs(Int(i.pointee.displacement)) < Self.longestDistance else { return }
        let offset = Int(i.pointee.displacement) + moved[number]
        if mnemonic == .vector {
            guard let form = BlockTranslator.nativeVector(i), form.access != .none else { return }
            join(
                index, 0, number, offset, form.memorySize, writes: form.access == .store,
                alignment: max(1, form.alignment))
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
            .popcnt, .adcx, .adox, .bsf, .bsr, .tzcnt, .lzcnt, .bt, .div, .idiv, .jmpIndirect, .callIndirect, .push:
            false
        case .mov, .add, .or, .adc, .sbb, .and, .sub, .xor: i.pointee.operation != Form.ge.rawValue
        default: true
        }
    }

    private mutating func join(
        _ index: Int, _ which: Int, _ register: Int, _ offset: Int, _ size: Int, writes: Bool, alignment: Int = 1
    ) {
        let side = side(of: offset, size, register)
        if let number = side == .behind ? openBehind : open[register], side != .both,
            groups[number].accepts(offset, alignment: alignment)
        {
            var group = groups[number]
            group.take(offset, size, alignment: alignment)
            // A register that moved may have wrapped, unless it too is inside the page that is compared with.
            if wraps, moved[register] != group.moved { group.take(moved[register], 1, alignment: 1) }
            if group.high - group.low <= Self.longestSpan {
                group.writes = group.writes || writes
                group.members += 1
                groups[number] = group
                members[index * 2 + which] = Member(group: number, offset: offset)
                return
            }
        }
        switch side {
        case .before: open[register] = groups.count
        case .behind: openBehind = groups.count
        case .both: break
        }
        members[index * 2 + which] = Member(group: groups.count, offset: offset)
        groups.append(
            Group(
                low: offset, high: offset + size, writes: writes, alignment: alignment, phase: offset, members: 1,
                moved: moved[register], record: nil))
    }

    private enum Side { case before, behind, both }

    private func side(of offset: Int, _ size: Int, _ register: Int) -> Side {
        guard let boundary, boundary.register == register else { return .before }
        return offset >= boundary.offset ? .behind : offset + size <= boundary.offset ? .before : .both
    }

    private mutating func move(_ register: Int, by distance: Int) {
        moved[register] += distance
        if abs(moved[register]) >= Self.longestDistance { close(register) }
    }

    /// The register gets another value.
    private mutating func close(_ register: Int) {
        open[register] = nil
        moved[register] = 0
        if boundary?.register == register {
            boundary = nil
            openBehind = nil
        }
    }

    private mutating func closeAll() {
        for register in 0..<16 { close(register) }
    }

    private mutating func noteWrites(_ i: Insn, _ mnemonic: Mnemonic) {
        let reg = Int(i.pointee.reg >> 3) & 15
        let rm = Int(i.pointee.rm >> 3) & 15
        switch mnemonic {
        case .cmp, .test, .jcc, .jmp, .jmpIndirect, .callIndirect, .nop, .pause, .clc, .stc, .cmc, .bt, .cli, .cld,
            .swapgs:
            return
        case .movFromCR: close(rm)
        case .vector:
            guard let encoding = BlockTranslator.nativeVector(i) else { return closeAll() }
            if encoding.reg == .general, encoding.writesReg { close(Int(encoding.regNumber)) }
            if encoding.rm == .general, encoding.writesRM { close(Int(encoding.rmNumber)) }
            if encoding.v == .general, encoding.writesV { close(Int(encoding.vNumber)) }
            if encoding.usesImplicitGeneral { close(1) }
        case .add where Self.takesConstant(i): move(rm, by: Int(truncatingIfNeeded: i.pointee.immediate))
        case .sub where Self.takesConstant(i): move(rm, by: -Int(truncatingIfNeeded: i.pointee.immediate))
        case .inc where Self.isWhole(i): move(rm, by: 1)
        case .dec where Self.isWhole(i): move(rm, by: -1)
        case .lea where i.pointee.size == 8 && BlockTranslator.plainBase(i) == i.pointee.reg:
            move(reg, by: Int(i.pointee.displacement))
        case .mov, .movImmediate, .add, .or, .adc, .sbb, .and, .sub, .xor, .inc, .dec, .neg, .not, .shl, .sal, .shr,
            .sar, .rol, .ror, .rcl, .rcr, .set:
            // With a register rm it is the destination; with a memory rm the register is, in one of the forms.
            if !BlockTranslator.isMemory(i) { close(rm) } else if !Self.writes(i, mnemonic) { close(reg) }
        case .lea, .movzxByte, .movzxWord, .movsxByte, .movsxWord, .movsxd, .cmov, .imul2, .imul3, .bsf, .bsr, .popcnt,
            .tzcnt, .lzcnt, .adcx, .adox:
            close(reg)
        default:
            close(reg)
            close(rm)
            close(0)
            close(2)
        }
    }

    /// Changes a whole register in place; in 32-bit code only the stack pointer is worth it.
    private static func isWhole(_ i: Insn) -> Bool {
        if BlockTranslator.isMemory(i) { return false }
        return i.pointee.size == 8 || BlockTranslator.isFlat32(i) && i.pointee.size == 4 && i.pointee.rm == 4 * 8
    }

    /// The same by an immediate.
    private static func takesConstant(_ i: Insn) -> Bool {
        isWhole(i) && i.pointee.operation != Form.eg.rawValue && i.pointee.operation != Form.ge.rawValue
    }
}
