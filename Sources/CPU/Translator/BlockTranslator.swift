internal import CHost

/// Translates one decoded block: most instructions become themselves with registers renamed and the memory operand
/// replaced by a checked host address; the rest are calls into the interpreter.
///
/// BlockTranslator+Memory.swift has the data accesses, +Integer and +Vector the instructions, +Control the branches.
struct BlockTranslator {
    var host: HostAssembler
    let arena: CodeArena
    let first: Insn
    let count: Int
    /// Accesses of it are on trial: entries are counted.
    let isOnTrial: Bool
    /// How often the block is laid out in a row.
    let copies: Int
    /// 32-bit code with flat segments; else 64-bit code.
    let isFlat32: Bool
    let options: Options
    var plan: AccessPlan
    /// For each instruction: whether the flags before it can still be read.
    var flagsLive: [Bool] = []
    /// The guest's vector registers are in the host's, at least as far as these levels say (CHost/translated.S).
    var vectorLevel = 0
    /// The record whose addend is in `scratch`.
    var heldAddend: UInt64?
    /// Code behind the block: what is seldom run.
    var deferred: [Deferred] = []
    /// No record was left.
    var isOutOfRecords = false

    struct Options {
        /// The block belongs to user mode: code is translated for one privilege.
        var isUser: Bool
        /// Keep `instruction_count` exact.
        var counts: Bool
        /// Flags count as read by every instruction.
        var exactFlags: Bool
        /// One compare for all accesses of a block to one place of the stack or by one register.
        var groupsAccesses: Bool
        /// In code for where one such compare does not do.
        var boundary: AccessPlan.Boundary?
        /// The host has BEXTR.
        var hasBMI1: Bool
        /// The host has SHRX.
        var hasBMI2: Bool
        /// The tag of a site that has no page yet.
        var noPage: UInt64
        /// Whether the code at an offset of this page can read the flags that it is entered with.
        var readsFlags: (Int) -> Bool
    }

    enum Deferred {
        /// Behind a failed compare: the site, and where the jump to here is.
        case site(UnsafeMutablePointer<martlet_site>, branch: Int)
        /// The same where it was a line of the TLB: whether the compare was one of XOR, and how far the distance was rotated.
        case hoppingSite(record: UInt64, branch: Int, isExclusive: Bool, rotation: Int, tag: HostOperand)
        /// What 32-bit code may only reach by wrapping at 4 GiB, or not at all.
        case outside(record: UInt64, branch: Int)
        /// The same for a compare that left the flags alone.
        case siteWithFlags(UnsafeMutablePointer<martlet_site>, branch: Int, source: AddressSource)
        /// A direct branch to another block of the page that is not linked yet: the branch's distance to be patched.
        case link(insn: Insn, place: Int, offset: Int)
        /// The same, because of the attention word: stays.
        case attention(insn: Insn, place: Int, offset: Int)
        /// A branch that leaves the page.
        case leavesPage(insn: Insn, place: Int, offset: Int)
        /// Where a call returns to.
        case landing(insn: Insn, place: Int, offset: Int)
        case interpret(insn: Insn, branches: [Int], back: Int, restoresFlags: Bool)
        case loadVectors(insn: Insn, level: Int, branch: Int, back: Int)
        case trialEnded(branch: Int, restoresFlags: Bool)
    }

    init(host: HostAssembler, arena: CodeArena, first: Insn, count: Int, options: Options) {
        self.host = host
        self.arena = arena
        self.first = first
        isFlat32 = Self.isFlat32(first)
        self.count = count
        self.options = options
        plan = AccessPlan()
        isOnTrial =
            first.pointee.position == 0 && (0..<count).contains { first[$0].hops == UInt8(MARTLET_HOPS_TRIAL) }
        copies = options.groupsAccesses && !isOnTrial ? Self.copies(first, count) : 1
        if options.groupsAccesses {
            plan = AccessPlan(first: first, count: count, copies: copies, boundary: options.boundary)
        }
    }

    /// A short loop that accesses memory is laid out several times in a row: compares, addends and vector registers then
    /// serve several passes.
    private static func copies(_ first: Insn, _ count: Int) -> Int {
        let last = first + (count - 1)
        guard last.pointee.mnemonic == Mnemonic.jcc.rawValue,
            targetOffset(last) == Int(first.pointee.page_offset),
            (0..<count).contains(where: { isMemory(first + $0) && first[$0].mnemonic != Mnemonic.lea.rawValue })
        else { return 1 }
        return max(1, min(4, longestRow / count))
    }

    /// In instructions.
    private static let longestRow = 36

    /// An instruction of the row of copies.
    func instruction(_ index: Int) -> Insn { first + index % count }

    /// Emits the block; false when it does not fit.
    mutating func translate() -> Bool {
        analyseFlags()
        if isOnTrial { countEntry() }
        for index in 0..<count * copies {
            let i = instruction(index)
            let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
            if !leavesScratch(i, mnemonic) { heldAddend = nil }
            if !(Self.isNative(i, mnemonic) && lower(i, mnemonic, index)) { callInterpreter(i) }
            if !leavesScratch(i, mnemonic) { heldAddend = nil }
        }
        fallThrough()
        var next = 0
        while next < deferred.count {
            emit(deferred[next])
            next += 1
        }
        return !host.isFull && !isOutOfRecords
    }

    private mutating func analyseFlags() {
        let total = count * copies
        flagsLive = Array(repeating: true, count: total + 1)
        flagsLive[total] = options.readsFlags(Int((first + count).pointee.page_offset))
        for index in stride(from: total - 1, through: 0, by: -1) {
            let i = instruction(index)
            let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .invalid
            let use = FlagUse(i, mnemonic, isNative: Self.isNative(i, mnemonic))
            flagsLive[index] = options.exactFlags || use.reads || (flagsLive[index + 1] && !use.kills)
        }
    }

    /// A record for a data access or an indirect branch; `isOutOfRecords` when there is none.
    mutating func record() -> UnsafeMutableRawPointer? {
        let record = arena.record()
        if record == nil { isOutOfRecords = true }
        return record
    }

    // MARK: - Registers

    /// The host register that holds a guest register, by byte offset into the file. Nil: the guest register is in memory.
    func home(_ offset: UInt8) -> Int? {
        switch Int(offset >> 3) {
        case 4: HostRegister.guestRSP
        case 0...11: Int(offset >> 3)
        default: nil
        }
    }

    /// A guest register for reading: its home, or `scratch` loaded with it.
    mutating func fetch(_ offset: UInt8, into scratch: Int) -> Int {
        if let home = home(offset) { return home }
        host.load(scratch, fromState: Int(offset))
        return scratch
    }

    /// Stores a scratch register back when it stood for a guest register in memory.
    mutating func keep(_ register: Int, _ offset: UInt8) {
        if home(offset) == nil { host.store(register, toState: Int(offset)) }
    }

    /// Whether `scratch` is behind an instruction what it was before it, or what the last data access put there.
    private func leavesScratch(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        guard home(i.pointee.reg) != nil, home(i.pointee.rm) != nil else { return false }
        switch mnemonic {
        case .mov, .movImmediate, .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test, .inc, .dec, .neg, .not,
            .movzxByte, .movzxWord, .movsxByte, .movsxWord, .movsxd, .shl, .sal, .shr, .sar, .imul2, .imul3, .cmov,
            .adcx, .adox, .pushImmediate, .pop, .nop:
            return true
        case .push: return !Self.isMemory(i)
        case .lea: return i.pointee.size == 8 && hasOnlyHomes(i)
        case .vector: return Self.nativeVector(i).map { $0.unit != .x87 && $0.unit != .general } ?? false
        default: return false
        }
    }

    /// AH, CH, DH or BH as an operand. What stands for a register number may also extend the opcode or mean nothing.
    static func usesHighByte(_ i: Insn, _ mnemonic: Mnemonic, isMemory: Bool) -> Bool {
        if !isMemory, i.pointee.rm & 7 != 0 { return true }
        if i.pointee.reg & 7 == 0 { return false }
        switch Form(rawValue: i.pointee.operation) ?? .none {
        case .eImmediate, .eImmediate8, .e, .eOne, .eCL, .accumulatorImmediate, .z, .zImmediate: return false
        default: return true
        }
    }

    // MARK: - What is native

    static func isMemory(_ i: Insn) -> Bool { i.pointee.flags & InsnFlag.memory != 0 }

    static func isFlat32(_ i: Insn) -> Bool { i.pointee.is_flat32 != 0 }

    /// Bytes of a stack slot, and of near branches' operands.
    static func slotSize(_ i: Insn) -> Int { isFlat32(i) ? 4 : 8 }
    var slotSize: Int { isFlat32 ? 4 : 8 }

    /// Only a segment base may complicate the address. CS cannot be written to, and is seldom read by name.
    static func hasSimpleAddress(_ i: Insn) -> Bool {
        if isFlat32(i) { return i.pointee.address_size == 4 && i.pointee.segment != UInt8(SegmentRegister.cs) }
        return i.pointee.flags & InsnFlag.complexAddress == 0
            || (i.pointee.address_size == 8 && i.pointee.operation != Form.offset.rawValue)
    }

    static func isNative(_ i: Insn, _ mnemonic: Mnemonic) -> Bool {
        let memory = isMemory(i)
        if memory, !hasSimpleAddress(i) { return false }
        if mnemonic == .vector { return nativeVector(i) != nil }
        if usesHighByte(i, mnemonic, isMemory: memory) { return isNativeHighByte(i, mnemonic) }
        switch mnemonic {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test, .mov, .movImmediate, .inc, .dec, .neg, .not,
            .movzxByte, .movzxWord, .movsxByte, .movsxWord, .lea, .rol, .ror, .rcl, .rcr, .shl, .shr, .sal, .sar,
            .imul2, .imul3, .mul, .imul1, .cmov, .set, .popcnt, .bsf, .bsr, .tzcnt, .lzcnt, .xchg, .xadd, .cmpxchg,
            .bswap, .cbw, .cwd, .clc, .stc, .cmc, .nop, .pause:
            return mnemonic != .lea || isFlat32(i) || i.pointee.flags & InsnFlag.complexAddress == 0
        case .movsxd: return i.pointee.size != 2
        // A count beyond 16 bits is the interpreter's to define.
        case .div, .idiv, .shld, .shrd: return i.pointee.size >= 4
        case .adcx, .adox: return HostProcessor.hasADX
        case .bt, .bts, .btr, .btc: return !memory || i.pointee.operation != Form.eg.rawValue
        case .cmpxchg8b: return true
        case .push: return Int(i.pointee.size) == slotSize(i)
        case .pop: return Int(i.pointee.size) == slotSize(i) && !memory
        case .jcc, .jmp, .pushImmediate, .leave, .call, .ret, .jmpIndirect, .callIndirect:
            return Int(i.pointee.size) == slotSize(i)
        // Programs of 32 bits leave arguments and results on the stack.
        case .retImmediate: return isFlat32(i) && i.pointee.size == 4
        case .movOffsetLoad, .movOffsetStore: return isFlat32(i)
        case .movs, .stos: return isPlainRepeat(i)
        case .cli, .cld: return true
        case .swapgs: return !isFlat32(i)
        case .movFromCR: return controlRegister(i) != nil
        case .lfence, .mfence, .sfence: return true
        default: return false
        }
    }

    /// REP with full addresses and without a segment base.
    private static func isPlainRepeat(_ i: Insn) -> Bool {
        i.pointee.flags & (InsnFlag.rep | InsnFlag.repne) != 0 && Int(i.pointee.address_size) == slotSize(i)
            && i.pointee.segment < UInt8(SegmentRegister.fs)
            && (!isFlat32(i) || i.pointee.segment != UInt8(SegmentRegister.cs))
    }

    // MARK: - Leaving

    func address(_ i: Insn) -> UInt64 { UInt64(UInt(bitPattern: i)) }
    func address(_ record: UnsafeMutableRawPointer) -> UInt64 { UInt64(UInt(bitPattern: record)) }

    mutating func callInterpreter(_ i: Insn) {
        host.moveImmediate64(HostRegister.scratch2, address(i))
        host.callThroughState(Int(MARTLET_CALL_INTERPRETER))
        vectorLevel = 0
        heldAddend = nil
    }

    private mutating func emit(_ code: Deferred) {
        switch code {
        case .attention(let i, let place, let offset): emitUnlinked(i, place, offset, staysSo: true)
        case .site(let site, let branch):
            host.patch32(at: branch, to: host.position)
            host.leave(arena.number(of: site), to: arena.address(of: .missed))
        case .hoppingSite(let record, let branch, let isExclusive, let rotation, let tag):
            host.patch32(at: branch, to: host.position)
            emitMiss(record, isExclusive: isExclusive, rotation: rotation, tag: tag)
        case .outside(let record, let branch):
            host.patch32(at: branch, to: host.position)
            emitOutside(record)
        case .siteWithFlags(let site, let branch, let source):
            host.patch32(at: branch, to: host.position)
            emitMissWithFlags(site, source)
        case .link(let i, let place, let offset): emitUnlinked(i, place, offset, staysSo: false)
        case .leavesPage(let i, let place, let offset):
            host.patch32(at: place, to: host.position)
            loadTarget(offset)
            goIndirect(i)
        case .landing(let i, let place, let offset): emitLanding(i, place, offset)
        case .interpret(let i, let branches, let back, let restores):
            for branch in branches { host.patch32(at: branch, to: host.position) }
            if restores { restoreFlags() }
            callInterpreter(i)
            let place = host.jump(nil)
            host.patch32(at: place, to: back)
        case .trialEnded(let branch, let restores):
            host.patch32(at: branch, to: host.position)
            if restores { restoreFlags() }
            host.jump(toAddress: arena.address(of: .trialEnded))
        case .loadVectors(let i, let level, let branch, let back):
            host.patch32(at: branch, to: host.position)
            host.moveImmediate64(HostRegister.scratch, UInt64(level))
            host.moveImmediate64(HostRegister.scratch2, address(i))
            host.callThroughState(Int(MARTLET_LOAD_VECTORS))
            let place = host.jump(nil)
            host.patch32(at: place, to: back)
        }
    }
}
