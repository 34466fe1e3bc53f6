internal import CHost

/// What the decoder must know to find the end of a vector or x87 instruction.
struct VectorShape {
    /// An imm8 follows.
    var hasImmediate: Bool
}

/// What the vector unit can do on this host.
enum VectorUnit {
    /// The `VectorFeature` bits that the host's processor has (SDM vol. 2, CPUID).
    static let hostFeatures: UInt32 = {
        let leaf1 = HostProcessor.leaf(1)
        let leaf7 = HostProcessor.leaf(7)
        let places: [(VectorFeature, UInt32, Int)] = [
            (.x87, leaf1[3], 0), (.mmx, leaf1[3], 23), (.fxsr, leaf1[3], 24), (.sse, leaf1[3], 25),
            (.sse2, leaf1[3], 26), (.sse3, leaf1[2], 0), (.pclmulqdq, leaf1[2], 1), (.ssse3, leaf1[2], 9),
            (.sse41, leaf1[2], 19), (.sse42, leaf1[2], 20), (.aes, leaf1[2], 25), (.sha, leaf7[1], 29),
            (.bmi1, leaf7[1], 3), (.bmi2, leaf7[1], 8), (.gfni, leaf7[2], 8),
        ]
        let always = places.reduce(UInt32(0)) { $0 | ($1.1 >> UInt32($1.2) & 1 != 0 ? $1.0.bit : 0) }
        return always | hostWideFeatures(leaf1, leaf7)
    }()

    /// Those that need AVX or AVX-512 state.
    private static func hostWideFeatures(_ leaf1: [UInt32], _ leaf7: [UInt32]) -> UInt32 {
        let more = leaf7[0] >= 1 ? HostProcessor.leaf(7, 1) : [0, 0, 0, 0]
        let avx: [(VectorFeature, UInt32, Int)] = [
            (.avx, leaf1[2], 28), (.fma, leaf1[2], 12), (.f16c, leaf1[2], 29), (.avx2, leaf7[1], 5),
            (.vaes, leaf7[2], 9), (.vpclmulqdq, leaf7[2], 10), (.avxVNNI, more[0], 4),
        ]
        let avx512: [(VectorFeature, UInt32, Int)] = [
            (.avx512, leaf7[1], 16), (.ifma, leaf7[1], 21), (.vbmi, leaf7[2], 1), (.vbmi2, leaf7[2], 6),
            (.vnni, leaf7[2], 11), (.bitalg, leaf7[2], 12), (.vpopcntdq, leaf7[2], 14), (.bf16, more[0], 5),
        ]
        let hasAVX = supportedComponents & StateComponent.avx != 0
        let hasAVX512 = supportedComponents & StateComponent.avx512 != 0
        let places = (hasAVX ? avx : []) + (hasAVX512 ? avx512 : [])
        return places.reduce(0) { $0 | ($1.1 >> UInt32($1.2) & 1 != 0 ? $1.0.bit : 0) }
    }

    static func has(_ feature: VectorFeature) -> Bool { hostFeatures & feature.bit != 0 }

    /// The state components that instructions here can change (SDM vol. 1 §13.1): those that the host's kernel lets
    /// programs use. AVX-512 state only with the extensions that every server processor has had since the first.
    static let supportedComponents: UInt64 = {
        let always = StateComponent.x87 | StateComponent.sse
        // OSXSAVE and AVX.
        let needed: UInt32 = 1 << 27 | 1 << 28
        guard HostProcessor.leaf(1)[2] & needed == needed else { return always }
        let enabled = martlet_host_xcr0()
        guard enabled & StateComponent.avx != 0 else { return always }
        // AVX-512 F, DQ, CD, BW, VL.
        let extensions: UInt32 = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31
        let hasAVX512 =
            enabled & StateComponent.avx512 == StateComponent.avx512
            && HostProcessor.leaf(7)[1] & extensions == extensions
        return always | StateComponent.avx | (hasAVX512 ? StateComponent.avx512 : 0)
    }()

    /// Where CPUID has each feature: leaf, subleaf, register (EAX EBX ECX EDX), bit.
    private static let places: [(feature: VectorFeature, leaf: UInt32, subleaf: UInt32, register: Int, bit: UInt32)] = [
        (.sse3, 1, 0, 2, 0), (.pclmulqdq, 1, 0, 2, 1), (.ssse3, 1, 0, 2, 9), (.fma, 1, 0, 2, 12), (.sse41, 1, 0, 2, 19),
        (.sse42, 1, 0, 2, 20), (.aes, 1, 0, 2, 25), (.avx, 1, 0, 2, 28), (.f16c, 1, 0, 2, 29), (.x87, 1, 0, 3, 0),
        (.mmx, 1, 0, 3, 23), (.fxsr, 1, 0, 3, 24), (.sse, 1, 0, 3, 25), (.sse2, 1, 0, 3, 26), (.bmi1, 7, 0, 1, 3),
        (.avx2, 7, 0, 1, 5), (.bmi2, 7, 0, 1, 8), (.avx512, 7, 0, 1, 16), (.avx512, 7, 0, 1, 17),
        (.ifma, 7, 0, 1, 21), (.avx512, 7, 0, 1, 28), (.sha, 7, 0, 1, 29), (.avx512, 7, 0, 1, 30),
        (.avx512, 7, 0, 1, 31), (.vbmi, 7, 0, 2, 1), (.vbmi2, 7, 0, 2, 6), (.gfni, 7, 0, 2, 8), (.vaes, 7, 0, 2, 9),
        (.vpclmulqdq, 7, 0, 2, 10), (.vnni, 7, 0, 2, 11), (.bitalg, 7, 0, 2, 12), (.vpopcntdq, 7, 0, 2, 14),
        (.avxVNNI, 7, 1, 0, 4), (.bf16, 7, 1, 0, 5),
    ]

    /// The CPUID bits of one register for what is implemented here and present in the host. SSE4.2 promises CRC32 as well,
    /// BMI1 TZCNT.
    static func features(leaf: UInt32, subleaf: UInt32 = 0, register: Int) -> UInt32 {
        places.filter { $0.leaf == leaf && $0.subleaf == subleaf && $0.register == register && has($0.feature) }
            .reduce(0) { $0 | 1 << $1.bit }
    }
}

/// The whitelist's answer for one opcode; nil: #UD. `prefix` is the mandatory prefix (0, 66, F3 or F2).
func vectorShape(
    map: UInt8, opcode: UInt8, prefix: UInt8, modrm: UInt8, rexW: Bool, is64: Bool
) -> VectorShape? {
    if map == 0 { return x87Operation(opcode, modrm) != nil ? VectorShape(hasImmediate: false) : nil }
    guard let entry = vectorEntry(map: map, opcode: opcode, prefix: prefix, modrm: modrm) else { return nil }
    return VectorShape(hasImmediate: entry.traits.contains(.immediate))
}

/// The row for an instruction whose form exists and whose extension the host has.
func vectorEntry(map: UInt8, opcode: UInt8, prefix byte: UInt8, modrm: UInt8) -> VectorEntry? {
    guard let prefix = VectorPrefix(byte: byte) else { return nil }
    if map == 1, opcode == 0xAE { return stateEntry(prefix: prefix, modrm: modrm) }
    guard let entry = VectorTable.shared.entry(map: map, prefix: prefix, opcode: opcode),
        VectorUnit.has(entry.feature)
    else { return nil }
    let isMemory = modrm < 0xC0
    if entry.move == .empty { return entry }
    if isMemory, entry.memorySize == 0 { return nil }
    if !isMemory, entry.traits.contains(.memoryOnly) { return nil }
    if entry.reg == .none, !VectorTable.isShift(opcode, prefix: prefix, extension: (modrm >> 3) & 7) { return nil }
    return entry
}

/// Group 15's memory forms that belong to this unit (SDM vol. 2 table A-6).
private func stateEntry(prefix: VectorPrefix, modrm: UInt8) -> VectorEntry? {
    guard prefix == .none, modrm < 0xC0 else { return nil }
    switch (modrm >> 3) & 7 {
    case 0: return VectorEntry(feature: .fxsr, reg: .none, rm: .none, memorySize: 0, traits: [], move: .fxsave)
    case 1: return VectorEntry(feature: .fxsr, reg: .none, rm: .none, memorySize: 0, traits: [], move: .fxrstor)
    case 2: return VectorEntry(feature: .sse, reg: .none, rm: .none, memorySize: 4, traits: [], move: .loadMXCSR)
    case 3: return VectorEntry(feature: .sse, reg: .none, rm: .none, memorySize: 4, traits: [], move: .storeMXCSR)
    default: return nil
    }
}

extension Insn {
    var registerNumber: UInt8 { ((pointee.modrm >> 3) & 7) | ((pointee.rex & 4) << 1) }
    var rmNumber: UInt8 { (pointee.modrm & 7) | ((pointee.rex & 1) << 3) }
    var isMemoryForm: Bool { pointee.modrm < 0xC0 }

    func setHandler(_ handler: @escaping Handler) {
        pointee.handler = unsafeBitCast(handler, to: UnsafeMutableRawPointer.self)
    }
}

/// Sets the handler of an instruction that `vectorShape` knows, and its stub in `link`. `size` becomes the size of the
/// memory operand; `reg` and `rm` become what the handler wants. False: the stub arena is full; reset it (with all
/// decoded code) and try again.
func bindVector(_ i: Insn, stubs: StubCache) -> Bool {
    let insn = i.pointee
    if i.wide.encoding != nil { return bindWide(i, stubs: stubs) }
    if insn.map == 0 { return bindX87(i, stubs: stubs) }
    guard let entry = vectorEntry(map: insn.map, opcode: insn.opcode, prefix: insn.prefixes, modrm: insn.modrm) else {
        i.setHandler(vectorUndefined)
        return true
    }
    if entry.move != .none {
        bindMove(i, entry)
        return true
    }
    guard stubs.isAvailable else {
        i.setHandler(vectorUndefined)
        return true
    }
    let plan = StubPlan(i, entry)
    guard let stub = stubs.stub(plan.key, { plan.generate(&$0) }) else { return false }
    i.pointee.link = stub
    i.pointee.size = plan.memorySize
    switch (i.isMemoryForm, plan.unit, entry.traits.contains(.writesRM)) {
    case (false, _, _): i.pointee.handler = stub
    case (true, .sse, false):
        i.setHandler(entry.traits.contains(.aligned) ? vectorLoadAligned : vectorLoad)
    case (true, .sse, true): i.setHandler(vectorStore)
    case (true, .mmx, false): i.setHandler(mmxLoad)
    case (true, .mmx, true): i.setHandler(mmxStore)
    case (true, .mixed, _): i.setHandler(entry.traits.contains(.aligned) ? mixedLoadAligned : mixedLoad)
    }
    return true
}

/// An instruction taken apart for its stub.
struct StubPlan {
    /// Whose rules about CR0, CR4 and pending x87 exceptions hold.
    enum Unit { case sse, mmx, mixed }

    private let entry: VectorEntry
    private let map: UInt8
    private let prefix: UInt8
    private let opcode: UInt8
    private let isWide: Bool
    private let isMemory: Bool
    /// Register numbers, or the opcode extension.
    private let reg: UInt8
    private let rm: UInt8
    private let immediate: UInt8

    init(_ i: Insn, _ entry: VectorEntry) {
        self.entry = entry
        map = i.pointee.map
        prefix = i.pointee.prefixes
        opcode = i.pointee.opcode
        isWide = i.pointee.rex & 8 != 0
        isMemory = i.isMemoryForm
        // REX does not extend MMX register numbers (SDM vol. 2 §2.2.1.2).
        reg = entry.reg == .mm || entry.reg == .none ? i.registerNumber & 7 : i.registerNumber
        rm = isMemory ? 0 : (entry.rm == .mm ? i.rmNumber & 7 : i.rmNumber)
        immediate = entry.traits.contains(.immediate) ? UInt8(truncatingIfNeeded: i.pointee.immediate) : 0
    }

    /// Equal for instructions that one stub can serve.
    var key: UInt64 {
        var key = UInt64(map) << 8 | UInt64(prefix)
        key = key << 8 | UInt64(opcode)
        key = key << 8 | UInt64(reg) << 4 | UInt64(rm)
        key = key << 8 | UInt64(immediate)
        return key << 2 | (isWide ? 2 : 0) | (isMemory ? 1 : 0)
    }

    var memorySize: UInt8 { entry.traits.contains(.wide) && isWide ? 8 : entry.memorySize }

    private var usesMM: Bool { entry.reg == .mm || (entry.rm == .mm && !isMemory) }

    var unit: Unit {
        let usesXMM = entry.reg == .xmm || entry.rm == .xmm
        return usesMM ? (usesXMM ? .mixed : .mmx) : .sse
    }

    private var movesPointer: Bool { isMemory && entry.traits.contains(.readsLengths) }

    func generate(_ code: inout StubAssembler) {
        let dependsOnMXCSR = entry.traits.contains(.mxcsr)
        if dependsOnMXCSR { code.reserveLead() }
        if !isMemory { requireUnit(&code) }
        if dependsOnMXCSR { code.requireDefaultMXCSR() }
        loadOperands(&code)
        if dependsOnMXCSR { code.loadMXCSR() }
        emitInstruction(&code)
        if dependsOnMXCSR { code.storeMXCSR() }
        storeResults(&code)
        code.finish()
        guard dependsOnMXCSR else { return }
        code.setLead()
        loadOperands(&code)
        code.saveHostMXCSR()
        code.loadMXCSRArgument()
        emitInstruction(&code)
        code.storeMXCSRArgument()
        code.restoreHostMXCSR()
        storeResults(&code)
        code.finishPlain()
    }

    private func requireUnit(_ code: inout StubAssembler) {
        switch unit {
        case .sse:
            code.requireX87(.sseUnavailable)
            code.requireSSE(.sseUnavailable)
        case .mmx:
            code.requireX87(.mmxUnavailable)
            code.requireMMXOrder(.mmxUnavailable)
        case .mixed:
            code.requireX87(.mixedUnavailable)
            code.requireSSE(.mixedUnavailable)
            code.requireMMXOrder(.mixedUnavailable)
        }
    }

    private func loadOperands(_ code: inout StubAssembler) {
        switch entry.reg {
        case .xmm: code.loadXMM(reg)
        case .mm: code.loadMM(reg)
        case .general, .none, .mask: break
        }
        if !isMemory {
            switch entry.rm {
            case .xmm: code.loadXMM(rm)
            case .mm: code.loadMM(rm)
            case .general: code.loadGeneral(.rax, from: rm)
            case .none, .mask: break
            }
        }
        if entry.traits.contains(.readsXMM0) { code.loadXMM(0) }
        if movesPointer { code.emit(0x49, 0x89, 0xD0) }  // mov r8, rdx
        if entry.traits.contains(.readsLengths) {
            code.loadGeneral(.rax, from: 0)
            code.loadGeneral(.rdx, from: 2)
        }
    }

    /// The guest's own instruction, with RAX for general registers and [RDX] (or [R8]) for memory.
    private func emitInstruction(_ code: inout StubAssembler) {
        if prefix != 0 { code.emit(prefix) }
        let regField = entry.reg == .general ? 0 : reg
        let rmField: UInt8 = isMemory ? (movesPointer ? 8 : 2) : (entry.rm == .general ? 0 : rm)
        let rex: UInt8 = (isWide ? 8 : 0) | (regField & 8) >> 1 | (rmField & 8) >> 3
        if rex != 0 { code.emit(0x40 | rex) }
        code.emit(0x0F)
        if map == 2 { code.emit(0x38) }
        if map == 3 { code.emit(0x3A) }
        code.emit(opcode, (isMemory ? 0 : 0xC0) | (regField & 7) << 3 | (rmField & 7))
        if entry.traits.contains(.immediate) { code.emit(immediate) }
    }

    private func storeResults(_ code: inout StubAssembler) {
        let traits = entry.traits
        if traits.contains(.status) { code.captureStatus() }
        if traits.contains(.writesXMM0) { code.storeXMM(0) }
        if traits.contains(.writesRCX) { code.storeGeneral(.rcx, to: 1) }
        if traits.contains(.writesRM) {
            storeRegister(&code, isMemory ? .none : entry.rm, rm)
        } else if !traits.contains(.keepsReg) {
            storeRegister(&code, entry.reg, reg)
        }
        if usesMM {
            code.validateTags()
            code.emptyMMX()
        }
    }

    private func storeRegister(_ code: inout StubAssembler, _ file: VectorOperand, _ number: UInt8) {
        switch file {
        case .xmm: code.storeXMM(number)
        case .mm: code.storeMM(number)
        case .general: code.storeGeneral(.rax, to: number)
        case .none, .mask: break
        }
    }
}
