internal import CHost

/// What handlers of VEX and EVEX instructions want to know, in the lower 48 bits of the instruction's `link_key`.
struct WideOperand {
    var rawValue: UInt64

    private func byte(_ number: UInt64) -> Int { Int(truncatingIfNeeded: rawValue >> (number * 8) & 0xFF) }

    /// MARTLET_UNIT_ that the instruction needs.
    var unit: UInt32 { UInt32(truncatingIfNeeded: rawValue & 0x1F) }
    /// Every element must be accessible, whatever the mask says.
    var isUnsuppressed: Bool { rawValue & 0x40 != 0 }
    /// Elements of 8 bytes in an index register.
    var hasQuadIndex: Bool { rawValue & 0x80 != 0 }
    /// Bytes of an element of the memory operand, and how many there are.
    var element: Int { byte(1) }
    var elements: Int { byte(2) }
    /// How many elements the mask knows: more than `elements` where they are broadcast.
    var lanes: Int { byte(3) }
    /// What the memory operand must be aligned to.
    var alignment: Int { max(1, byte(4)) }
    /// Bytes of a vector.
    var vector: Int { byte(5) }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    init(_ i: Insn, _ row: WideEntry, _ encoding: VectorEncoding) {
        let fields = i.wide
        let element = row.elementSize(w: i.pointee.rex & 8 != 0)
        let unit: Int32 =
            switch encoding.unit {
            case .general: Int32(MARTLET_UNIT_VEX)
            case .avx512: Int32(MARTLET_UNIT_AVX512)
            default: Int32(MARTLET_UNIT_AVX)
            }
        let count = max(1, encoding.memorySize / element)
        var lanes = count
        if fields.b { lanes = row.tuple.size(vector: encoding.vectorSize, element: element) / element }
        if row.traits.contains(.broadcasts) { lanes = encoding.vectorSize / element }
        if row.traits.contains(.gathers) {
            lanes = encoding.vectorSize / max(element, row.traits.contains(.quadIndex) ? 8 : 4)
        }
        let flags = (row.traits.contains(.unsuppressed) ? 0x40 : 0) | (row.traits.contains(.quadIndex) ? 0x80 : 0)
        let bytes = [Int(unit) | flags, element, count, lanes, encoding.alignment, encoding.vectorSize]
        rawValue = bytes.reversed().reduce(0) { $0 << 8 | UInt64(truncatingIfNeeded: $1) }
    }
}

extension Insn {
    @inline(__always) var wideOperand: WideOperand {
        get { WideOperand(rawValue: pointee.link_key) }
        nonmutating set { pointee.link_key = pointee.link_key & ~0xFFFF_FFFF_FFFF | newValue.rawValue }
    }
}

/// Sets the handler of a VEX or EVEX instruction, and its stub in `link`. False: the stub arena is full.
func bindWide(_ i: Insn, stubs: StubCache) -> Bool {
    guard let row = i.wideEntry, let encoding = VectorEncoding(i), stubs.isAvailable else {
        i.setHandler(vectorUndefined)
        return true
    }
    i.wideOperand = WideOperand(i, row, encoding)
    let traits = row.traits
    if traits.contains(.special) {
        bindSpecial(i)
        return true
    }
    if traits.contains(.gathers) {
        i.setHandler(traits.contains(.writesRM) ? wideScatter : wideGather)
        return true
    }
    let stub = stubs.stub(WideStub.key(i, row)) { WideStub(i, row, encoding).generate(&$0) }
    guard let stub else { return false }
    i.pointee.link = stub
    i.pointee.size = UInt8(truncatingIfNeeded: encoding.memorySize)
    switch encoding.access {
    case .none: i.pointee.handler = stub
    case .load: bindLoad(i, row, encoding)
    case .store: bindStore(i, row, encoding)
    }
    return true
}

private func bindLoad(_ i: Insn, _ row: WideEntry, _ encoding: VectorEncoding) {
    if encoding.isConditional {
        i.setHandler(row.traits.contains(.packs) ? wideExpandingLoad : wideMaskedLoad)
    } else {
        i.setHandler(encoding.alignment == 0 ? wideLoad : wideAlignedLoad)
    }
}

private func bindStore(_ i: Insn, _ row: WideEntry, _ encoding: VectorEncoding) {
    if encoding.isConditional {
        i.setHandler(row.traits.contains(.packs) ? wideCompressingStore : wideMaskedStore)
    } else if encoding.usesMXCSR {
        i.setHandler(wideControlledStore)
    } else {
        i.setHandler(encoding.alignment == 0 ? wideStore : wideAlignedStore)
    }
}

private func bindSpecial(_ i: Insn) {
    switch i.pointee.opcode {
    case 0x77: i.setHandler(i.wide.length == 0 ? vzeroupper : vzeroall)
    case 0xF7:
        setMaskedMoveOperand(i)
        i.setHandler(wideMaskedMove)
    default: i.setHandler((i.pointee.modrm >> 3) & 7 == 2 ? wideLoadMXCSR : wideStoreMXCSR)
    }
}

/// The stub of a VEX or EVEX instruction: its registers loaded with what the guest has in them, the instruction itself,
/// the results stored. Vector registers and opmasks keep their numbers; general registers become RAX (reg), RCX (rm) and
/// R9 (vvvv).
struct WideStub {
    private let encoding: VectorEncoding
    private let traits: WideTraits
    private let unit: UInt8
    private let isMemory: Bool

    init(_ i: Insn, _ row: WideEntry, _ encoding: VectorEncoding) {
        self.encoding = encoding
        traits = row.traits
        unit = UInt8(truncatingIfNeeded: i.wideOperand.unit)
        isMemory = encoding.access != .none
    }

    /// Equal for instructions that one stub can serve.
    static func key(_ i: Insn, _ row: WideEntry) -> UInt64 {
        let isMemory = i.isMemoryForm
        // Of a memory operand only its being one matters.
        let modrm = isMemory ? i.pointee.modrm & 0x38 : i.pointee.modrm
        let rex = isMemory ? i.pointee.rex & 0xC : i.pointee.rex & 0xF
        let prefix = VectorPrefix(byte: i.pointee.prefixes)?.rawValue ?? 0
        var key = UInt64(i.wide.rawValue) << 2 | UInt64(i.pointee.map)
        key = key << 2 | UInt64(prefix)
        key = key << 8 | UInt64(i.pointee.opcode)
        key = key << 8 | UInt64(modrm)
        key = key << 4 | UInt64(rex)
        key = key << 8 | (row.traits.contains(.immediate) ? i.pointee.immediate & 0xFF : 0)
        return 1 << 62 | key
    }

    func generate(_ code: inout StubAssembler) {
        let dependsOnMXCSR = encoding.usesMXCSR
        if dependsOnMXCSR { code.reserveLead() }
        if !isMemory { code.requireUnit(unit) }
        if dependsOnMXCSR { code.requireDefaultMXCSR() }
        loadOperands(&code)
        if dependsOnMXCSR { code.loadMXCSR() }
        emitInstruction(&code)
        if dependsOnMXCSR { code.storeMXCSR() }
        storeResults(&code)
        code.finish()
        guard dependsOnMXCSR else { return }
        code.setLead()
        // The results come after the last use of RCX as the argument, so general operands may take it.
        code.emit(0x49, 0x89, 0xCA)  // mov r10, rcx
        loadOperands(&code)
        code.saveHostMXCSR()
        code.emit(0x41, 0x0F, 0xAE, 0x12)  // ldmxcsr [r10]
        emitInstruction(&code)
        code.emit(0x41, 0x0F, 0xAE, 0x1A)  // stmxcsr [r10]
        code.restoreHostMXCSR()
        storeResults(&code)
        code.finishPlain()
    }

    /// RDX is an operand of its own.
    private var movesPointer: Bool { isMemory && !traits.isDisjoint(with: [.readsLengths, .readsRDX]) }

    private func loadOperands(_ code: inout StubAssembler) {
        if traits.contains(.readsStatus) { code.restoreStatus() }
        if encoding.maskNumber != 0 { code.loadMask(encoding.maskNumber) }
        // The destination too: what a mask leaves out, or a third source.
        load(&code, encoding.reg, encoding.regNumber, .rax)
        load(&code, encoding.v, encoding.vNumber, .r9)
        load(&code, encoding.rm, encoding.rmNumber, .rcx)
        if traits.contains(.registerImmediate) {
            code.loadVector(encoding.immediateRegister, size: encoding.vectorSize)
        }
        if movesPointer { code.emit(0x49, 0x89, 0xD0) }  // mov r8, rdx
        if traits.contains(.readsLengths) { code.loadGeneral(.rax, from: 0) }
        if !traits.isDisjoint(with: [.readsLengths, .readsRDX]) { code.loadGeneral(.rdx, from: 2) }
    }

    private func load(
        _ code: inout StubAssembler, _ file: VectorOperand, _ number: UInt8, _ general: StubAssembler.Scratch
    ) {
        switch file {
        case .xmm: code.loadVector(number, size: encoding.vectorSize)
        case .mask: code.loadMask(number)
        case .general: code.loadGeneral(general, from: number)
        case .mm, .none: break
        }
    }

    private func emitInstruction(_ code: inout StubAssembler) {
        let reg = encoding.reg == .general ? StubAssembler.Scratch.rax.rawValue : encoding.regNumber
        let register = encoding.rm == .general ? StubAssembler.Scratch.rcx.rawValue : encoding.rmNumber
        let rm: EncodedRM = isMemory ? .pointer(movesPointer ? 8 : 2) : .register(register)
        // Whether the operand is aligned the handler has seen; the host's copy of it need not be.
        encoding.emit(to: &code, reg: reg, rm: rm, v: StubAssembler.Scratch.r9.rawValue, unaligned: true)
    }

    private func storeResults(_ code: inout StubAssembler) {
        // MULX with one register for both destinations keeps the upper half, which is in reg.
        if encoding.writesV { store(&code, encoding.v, encoding.vNumber, .r9) }
        if encoding.writesReg { store(&code, encoding.reg, encoding.regNumber, .rax) }
        if encoding.writesRM { store(&code, encoding.rm, encoding.rmNumber, .rcx) }
        if traits.contains(.writesXMM0) { store(&code, .xmm, 0, .rax) }
        if traits.contains(.writesRCX) { code.storeGeneral(.rcx, to: 1) }
        // Last, because it takes RAX.
        if traits.contains(.writesStatus) { code.captureStatus() }
        if encoding.vectorSize > 0 { code.clearUpperHalves() }
    }

    /// All of a vector register: the instruction has cleared what lies above its result.
    private func store(
        _ code: inout StubAssembler, _ file: VectorOperand, _ number: UInt8, _ general: StubAssembler.Scratch
    ) {
        switch file {
        case .xmm: code.storeVector(number, size: VectorUnit.has(.avx512) ? 64 : 32)
        case .mask: code.storeMask(number)
        case .general: code.storeGeneral(general, to: number)
        case .mm, .none: break
        }
    }
}
