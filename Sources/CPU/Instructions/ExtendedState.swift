internal import CHost

// XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV, XSETBV (SDM vol. 1 ch. 13). The layout of the area is fixed, whatever the
// host's own is: saved states fit every host.

/// State components and where a standard-format area has them (SDM vol. 1 §13.1, §13.4; vol. 2, CPUID leaf 0DH).
enum StateComponent {
    static let x87: UInt64 = 1 << 0
    static let sse: UInt64 = 1 << 1
    static let avx: UInt64 = 1 << 2
    static let opmask: UInt64 = 1 << 5
    static let upperZMM: UInt64 = 1 << 6
    static let highZMM: UInt64 = 1 << 7
    static let avx512: UInt64 = opmask | upperZMM | highZMM

    static let headerOffset = 512
    static let headerSize = 64
    /// Numbers of the components behind the header, in ascending order.
    static let extended = [2, 5, 6, 7]

    static func offset(_ number: Int) -> Int {
        switch number {
        case 2: 576
        case 5: 1088
        case 6: 1152
        default: 1664
        }
    }

    static func size(_ number: Int) -> Int {
        switch number {
        case 2: 256
        case 5: 64
        case 6: 512
        default: 1024
        }
    }

    /// Bytes of a standard-format area with the given components.
    static func standardSize(_ components: UInt64) -> Int {
        var size = headerOffset + headerSize
        for number in extended where components >> UInt64(number) & 1 != 0 { size = offset(number) + self.size(number) }
        return size
    }

    /// Where a compacted area has a component (SDM vol. 1 §13.4.3; none of ours is aligned).
    static func compactedOffset(_ number: Int, in components: UInt64) -> Int {
        var place = headerOffset + headerSize
        for other in extended where other < number && components >> UInt64(other) & 1 != 0 { place += size(other) }
        return place
    }

    static func compactedSize(_ components: UInt64) -> Int { compactedOffset(64, in: components) }

    /// Whether XCR0 may have this value (SDM vol. 2, XSETBV).
    static func isValid(_ xcr0: UInt64, supported: UInt64) -> Bool {
        guard xcr0 & ~supported == 0, xcr0 & x87 != 0 else { return false }
        if xcr0 & avx != 0, xcr0 & sse == 0 { return false }
        let wide = xcr0 & avx512
        return wide == 0 || (wide == avx512 && xcr0 & avx != 0)
    }

    /// XCOMP_BV's format bit.
    static let compacted: UInt64 = 1 << 63
}

extension UnsafeMutablePointer<martlet_cpu> {
    /// Room for an XSAVE area.
    private var area: UnsafeMutableRawPointer { UnsafeMutableRawPointer(martlet_extended(self)) }

    /// Vector registers that the mode lets instructions name, of the first 16 (SDM vol. 1 §13.5.2).
    private var namedRegisters: Int { pointee.mode == CodeMode.bits64 ? 16 : 8 }

    private func isZero(_ place: UnsafeRawPointer, _ count: Int) -> Bool {
        var all: UInt64 = 0
        for offset in stride(from: 0, to: count, by: 8) { all |= place.load(fromByteOffset: offset, as: UInt64.self) }
        return all == 0
    }

    private func isZero(registers: Int, at offset: Int, _ count: Int) -> Bool {
        for number in 0..<registers where !isZero(vectorRegister(number) + offset, count) { return false }
        return true
    }

    /// x87 state as FNINIT and cleared registers leave it.
    private var isX87Initial: Bool {
        let words = fxImage.load(as: (UInt64, UInt64, UInt64).self)
        return words.0 == 0x037F && words.1 == 0 && words.2 == 0
            && isZero(fxImage + FXImage.x87Registers, FXImage.xmmRegisters - FXImage.x87Registers)
    }

    /// XINUSE: the components that are not in their initial configuration. Of SSE state the registers count, MXCSR does
    /// not (SDM vol. 1 §13.6).
    var componentsInUse: UInt64 {
        let count = namedRegisters
        var result: UInt64 = 0
        if !isX87Initial { result |= StateComponent.x87 }
        if !isZero(registers: count, at: 0, 16) { result |= StateComponent.sse }
        if !isZero(registers: count, at: 16, 16) { result |= StateComponent.avx }
        if pointee.xcr0 & StateComponent.avx512 == 0 { return result }
        if !isZero(martlet_opmask(self), 64) { result |= StateComponent.opmask }
        if !isZero(registers: count, at: 32, 32) { result |= StateComponent.upperZMM }
        if pointee.mode == CodeMode.bits64, !isZero(vectorRegister(16), 1024) { result |= StateComponent.highZMM }
        return result
    }

    /// The same where MXCSR counts: XGETBV with ECX = 1, and XSAVEC (SDM vol. 1 §13.6, §13.10).
    fileprivate var componentsToCompact: UInt64 {
        componentsInUse | (mxcsr != FXImage.mxcsrDefault ? StateComponent.sse : 0)
    }

    /// Copies a component behind the header between the registers and its place in an area; nil: clears it.
    private func copyComponent(_ number: Int, _ place: UnsafeMutableRawPointer?, isLoad: Bool) {
        func copy(_ register: UnsafeMutableRawPointer, _ offset: Int, _ count: Int) {
            guard let place else {
                register.initializeMemory(as: UInt8.self, repeating: 0, count: count)
                return
            }
            if isLoad {
                register.copyMemory(from: place + offset, byteCount: count)
            } else {
                (place + offset).copyMemory(from: register, byteCount: count)
            }
        }
        switch number {
        case 2: for index in 0..<namedRegisters { copy(vectorRegister(index) + 16, index &* 16, 16) }
        case 5: copy(UnsafeMutableRawPointer(martlet_opmask(self)), 0, 64)
        case 6: for index in 0..<namedRegisters { copy(vectorRegister(index) + 32, index &* 32, 32) }
        default: if pointee.mode == CodeMode.bits64 { copy(vectorRegister(16), 0, 1024) }
        }
    }

    /// Bytes of a component that the mode lets be written.
    private func usedSize(_ number: Int) -> Int {
        switch number {
        case 2: namedRegisters &* 16
        case 5: 64
        case 6: namedRegisters &* 32
        default: pointee.mode == CodeMode.bits64 ? 1024 : 0
        }
    }

    // MARK: Saving

    /// Puts the legacy region together (SDM vol. 1 §13.4.1).
    private func fillLegacyRegion(isWide: Bool) {
        area.copyMemory(from: fxImage, byteCount: FXImage.xmmRegisters)
        // Stubs leave the host's MXCSR_MASK there.
        area.storeBytes(of: FXImage.mxcsrBits, toByteOffset: FXImage.mxcsrMask, as: UInt32.self)
        if !isWide { narrowPointers() }
        storeXMMRegisters(to: area + FXImage.xmmRegisters)
    }

    /// The pointers' form without REX.W: 32-bit offsets, and selectors, which are not kept.
    private func narrowPointers() {
        area.storeBytes(of: 0, toByteOffset: FXImage.instructionPointer + 4, as: UInt32.self)
        area.storeBytes(of: 0, toByteOffset: FXImage.dataPointer + 4, as: UInt32.self)
    }

    private func write(_ i: Insn, _ address: UInt64, _ offset: Int, _ count: Int, from place: Int) -> Bool {
        count == 0 || writeBytes(self, i, linearSum(self, address, UInt64(offset)), count, from: area + place)
    }

    /// Writes the components `saved` of an area; MXCSR with `savesMXCSR`. Nothing of the header.
    fileprivate func writeArea(
        _ i: Insn, _ address: UInt64, _ saved: UInt64, savesMXCSR: Bool, layout: UInt64?
    ) -> Bool {
        fillLegacyRegion(isWide: i.pointee.rex & 8 != 0)
        let registers = FXImage.x87Registers
        if saved & StateComponent.x87 != 0 {
            guard write(i, address, 0, FXImage.mxcsr, from: 0),
                write(i, address, registers, FXImage.xmmRegisters - registers, from: registers)
            else { return false }
        }
        if savesMXCSR, !write(i, address, FXImage.mxcsr, 8, from: FXImage.mxcsr) { return false }
        if saved & StateComponent.sse != 0,
            !write(i, address, FXImage.xmmRegisters, namedRegisters &* 16, from: FXImage.xmmRegisters)
        {
            return false
        }
        for number in StateComponent.extended where saved >> UInt64(number) & 1 != 0 {
            let place = StateComponent.offset(number)
            copyComponent(number, area + place, isLoad: false)
            let offset = layout.map { StateComponent.compactedOffset(number, in: $0) } ?? place
            guard write(i, address, offset, usedSize(number), from: place) else { return false }
        }
        return true
    }

    fileprivate func writeHeader(_ i: Insn, _ address: UInt64, _ words: (UInt64, UInt64), _ count: Int) -> Bool {
        let offset = StateComponent.headerOffset
        (area + offset).storeBytes(of: words.0, as: UInt64.self)
        (area + offset).storeBytes(of: words.1, toByteOffset: 8, as: UInt64.self)
        return write(i, address, offset, count, from: offset)
    }

    // MARK: Restoring

    fileprivate func read(_ i: Insn, _ address: UInt64, _ offset: Int, _ count: Int, into place: Int) -> Bool {
        count == 0 || readBytes(self, i, linearSum(self, address, UInt64(offset)), count, into: area + place)
    }

    fileprivate func areaWord(_ offset: Int) -> UInt64 { area.load(fromByteOffset: offset, as: UInt64.self) }

    /// Reads what the components `loaded` (and MXCSR, with `readsMXCSR`) need; the header has been read.
    fileprivate func readArea(
        _ i: Insn, _ address: UInt64, _ loaded: UInt64, readsMXCSR: Bool, layout: UInt64?
    ) -> Bool {
        let registers = FXImage.x87Registers
        if loaded & StateComponent.x87 != 0 {
            guard read(i, address, 0, FXImage.mxcsr, into: 0),
                read(i, address, registers, FXImage.xmmRegisters - registers, into: registers)
            else { return false }
        }
        if readsMXCSR, !read(i, address, FXImage.mxcsr, 8, into: FXImage.mxcsr) { return false }
        if loaded & StateComponent.sse != 0,
            !read(i, address, FXImage.xmmRegisters, namedRegisters &* 16, into: FXImage.xmmRegisters)
        {
            return false
        }
        for number in StateComponent.extended where loaded >> UInt64(number) & 1 != 0 {
            let place = StateComponent.offset(number)
            let offset = layout.map { StateComponent.compactedOffset(number, in: $0) } ?? place
            guard read(i, address, offset, usedSize(number), into: place) else { return false }
        }
        return true
    }

    /// MXCSR of the area, nil where it has bits that do not exist.
    fileprivate var areaMXCSR: UInt32? {
        let value = area.load(fromByteOffset: FXImage.mxcsr, as: UInt32.self)
        return value & ~FXImage.mxcsrBits == 0 ? value : nil
    }

    /// Takes the components `requested` from the area where `loaded` has them, and clears the others of them.
    fileprivate func takeArea(requested: UInt64, loaded: UInt64, isWide: Bool) {
        if loaded & StateComponent.x87 != 0 {
            if !isWide { narrowPointers() }
            let kept = mxcsr
            fxImage.copyMemory(from: area, byteCount: FXImage.xmmRegisters)
            mxcsr = kept
            sanitizeFXImage()
        } else if requested & StateComponent.x87 != 0 {
            resetX87()
            let registers = fxImage + FXImage.x87Registers
            registers.initializeMemory(as: UInt8.self, repeating: 0, count: 128)
        }
        if loaded & StateComponent.sse != 0 {
            loadXMMRegisters(from: area + FXImage.xmmRegisters, count: namedRegisters)
        } else if requested & StateComponent.sse != 0 {
            for number in 0..<namedRegisters {
                vectorRegister(number).initializeMemory(as: UInt8.self, repeating: 0, count: 16)
            }
        }
        for number in StateComponent.extended where requested >> UInt64(number) & 1 != 0 {
            let isLoaded = loaded >> UInt64(number) & 1 != 0
            copyComponent(number, isLoaded ? area + StateComponent.offset(number) : nil, isLoad: true)
        }
    }
}

// MARK: - Instructions

/// What all of these want: CR4.OSXSAVE, else #UD, and CR0.TS clear, else #NM. False: fault recorded.
private func allowsExtendedState(_ s: State) -> Bool {
    if s.pointee.cr4 & Control.extendedStateEnable == 0 {
        raise(s, .invalidOpcode)
        return false
    }
    if s.pointee.cr0 & Control.taskSwitched == 0 { return true }
    raise(s, .deviceNotAvailable)
    return false
}

/// RFBM: what EDX:EAX asks for of what XCR0 enables.
private func requestedComponents(_ s: State) -> UInt64 {
    s.pointee.xcr0 & (s.register(2) << 32 | s.register(0) & 0xFFFF_FFFF)
}

/// The address of an area of `size` bytes, which must be a multiple of 64.
private func areaAddress(_ s: State, _ i: Insn, _ size: Int, _ kind: UInt8) -> UInt64? {
    guard let address = operandAddress(s, i, size, kind) else { return nil }
    if address & 63 == 0 { return address }
    raise(s, .generalProtection, error: 0)
    return nil
}

/// XSAVE and XSAVEOPT, which leaves out what is in its initial configuration (SDM vol. 1 §13.7, §13.9).
let xsaveHandler: Handler = { s, i in
    guard allowsExtendedState(s) else { return stop(s, i) }
    let requested = requestedComponents(s)
    let size = StateComponent.standardSize(requested)
    guard let address = areaAddress(s, i, size, AccessKind.write),
        let old = load(s, linearSum(s, address, UInt64(StateComponent.headerOffset)), UInt64.self)
    else { return stop(s, i) }
    let inUse = s.componentsInUse
    let saved = i.pointee.mnemonic == Mnemonic.xsaveopt.rawValue ? requested & inUse : requested
    let savesMXCSR = requested & (StateComponent.sse | StateComponent.avx) != 0
    let header = old & ~requested | inUse & requested
    guard s.writeArea(i, address, saved, savesMXCSR: savesMXCSR, layout: nil),
        s.writeHeader(i, address, (header, 0), 8)
    else { return stop(s, i) }
    return i + 1
}

/// XSAVEC: the compacted form (SDM vol. 1 §13.10).
let xsavecHandler: Handler = { s, i in
    guard allowsExtendedState(s) else { return stop(s, i) }
    let requested = requestedComponents(s)
    let size = StateComponent.compactedSize(requested)
    guard let address = areaAddress(s, i, size, AccessKind.write) else { return stop(s, i) }
    let saved = requested & s.componentsToCompact
    guard s.writeArea(i, address, saved, savesMXCSR: saved & StateComponent.sse != 0, layout: requested),
        s.writeHeader(i, address, (saved, requested | StateComponent.compacted), 16)
    else { return stop(s, i) }
    return i + 1
}

/// XRSTOR (SDM vol. 1 §13.8). Nothing changes before all has been read and checked.
let xrstorHandler: Handler = { s, i in
    guard allowsExtendedState(s) else { return stop(s, i) }
    let requested = requestedComponents(s)
    let header = StateComponent.headerOffset
    guard let address = areaAddress(s, i, header + StateComponent.headerSize, AccessKind.read),
        s.read(i, address, header, StateComponent.headerSize, into: header)
    else { return stop(s, i) }
    let (stored, format) = (s.areaWord(header), s.areaWord(header + 8))
    let isCompacted = format & StateComponent.compacted != 0
    guard isHeaderValid(s, stored, format) else { return fault(s, i, .generalProtection) }
    let layout: UInt64? = isCompacted ? format & ~StateComponent.compacted : nil
    let loaded = requested & stored
    // The standard form has MXCSR for SSE and AVX state, whatever is stored of them; the compacted one has it with SSE.
    let standardMXCSR = requested & (StateComponent.sse | StateComponent.avx) != 0
    let readsMXCSR = isCompacted ? loaded & StateComponent.sse != 0 : standardMXCSR
    let size = layout.map(StateComponent.compactedSize) ?? StateComponent.standardSize(loaded)
    guard areaAddress(s, i, size, AccessKind.read) != nil,
        s.readArea(i, address, loaded, readsMXCSR: readsMXCSR, layout: layout)
    else { return stop(s, i) }
    var control: UInt32? = isCompacted && requested & StateComponent.sse != 0 ? FXImage.mxcsrDefault : nil
    if readsMXCSR {
        control = s.areaMXCSR
        if control == nil { return fault(s, i, .generalProtection) }
    }
    s.takeArea(requested: requested, loaded: loaded, isWide: i.pointee.rex & 8 != 0)
    if let control { s.mxcsr = control }
    return i + 1
}

/// The header checks of XRSTOR (SDM vol. 1 §13.8.1, §13.8.2).
private func isHeaderValid(_ s: State, _ stored: UInt64, _ format: UInt64) -> Bool {
    let header = StateComponent.headerOffset
    guard format & StateComponent.compacted != 0 else {
        return stored & ~s.pointee.xcr0 == 0 && format == 0 && s.areaWord(header + 16) == 0
    }
    let layout = format & ~StateComponent.compacted
    guard layout & ~s.pointee.xcr0 == 0, stored & ~layout == 0 else { return false }
    for offset in stride(from: 16, to: StateComponent.headerSize, by: 8) where s.areaWord(header + offset) != 0 {
        return false
    }
    return true
}

/// XGETBV: XCR0, or with ECX = 1 what of it is in use.
let xgetbvHandler: Handler = { s, i in
    guard s.pointee.cr4 & Control.extendedStateEnable != 0 else { return fault(s, i, .invalidOpcode) }
    let value: UInt64
    switch UInt32(truncatingIfNeeded: s.register(1)) {
    case 0: value = s.pointee.xcr0
    case 1: value = s.pointee.xcr0 & s.componentsToCompact
    default: return fault(s, i, .generalProtection)
    }
    s.setRegister(0, value & 0xFFFF_FFFF)
    s.setRegister(2, value >> 32)
    return i + 1
}

let xsetbvHandler: Handler = { s, i in
    guard s.pointee.cr4 & Control.extendedStateEnable != 0 else { return fault(s, i, .invalidOpcode) }
    let value = s.register(2) << 32 | s.register(0) & 0xFFFF_FFFF
    guard s.pointee.cpl == 0, UInt32(truncatingIfNeeded: s.register(1)) == 0, let owner = s.pointee.owner,
        Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef({ $0.setExtendedControl(value) })
    else { return fault(s, i, .generalProtection) }
    return leaveBlock(s, i)
}

// MARK: - KVM's forms

/// Why an XSAVE area or a set of extended control registers from outside was refused.
public enum ExtendedStateError: Error, Equatable {
    case tooShort(Int)
    case unsupportedComponents(UInt64)
    case reservedBits
}

extension Processor {
    /// Bytes of KVM's struct kvm_xsave.
    public static let extendedStateSize = 4096

    /// The components that this guest may enable: what CPUID leaf 0DH tells it of what there is.
    var supportedComponents: UInt64 {
        let leaf = cpuid(0xD, 0)
        return (UInt64(leaf.3) << 32 | UInt64(leaf.0)) & VectorUnit.supportedComponents
    }

    /// Sets XCR0. False: #GP(0).
    public func setExtendedControl(_ value: UInt64) -> Bool {
        // SSE and x87 state are always there, even if CPUID says nothing of XSAVE.
        let supported = supportedComponents | StateComponent.x87 | StateComponent.sse
        guard StateComponent.isValid(value, supported: supported) else { return false }
        state.pointee.xcr0 = value
        updateContext(state)
        return true
    }

    public var extendedControl: UInt64 { state.pointee.xcr0 }

    /// KVM_GET_XSAVE: a standard-format area, all components, as 64-bit mode sees them.
    public func extendedState() -> [UInt8] {
        let s = state
        var bytes = [UInt8](repeating: 0, count: Self.extendedStateSize)
        withAllComponents { inUse in
            bytes.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                s.copyArea(to: base)
                let header = StateComponent.x87 | StateComponent.sse | inUse
                base.storeBytes(of: header, toByteOffset: StateComponent.headerOffset, as: UInt64.self)
            }
        }
        return bytes
    }

    /// KVM_SET_XSAVE: standard format; components that the header does not name become initial.
    public func setExtendedState(_ bytes: [UInt8]) -> ExtendedStateError? {
        let s = state
        let size = StateComponent.standardSize(VectorUnit.supportedComponents)
        guard bytes.count >= size else { return .tooShort(bytes.count) }
        return bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return .tooShort(0) }
            func word(_ offset: Int) -> UInt64 {
                base.loadUnaligned(fromByteOffset: StateComponent.headerOffset + offset, as: UInt64.self)
            }
            let stored = word(0)
            let unsupported = stored & ~VectorUnit.supportedComponents
            if unsupported != 0 { return .unsupportedComponents(unsupported) }
            for offset in stride(from: 8, to: StateComponent.headerSize, by: 8) where word(offset) != 0 {
                return .reservedBits
            }
            let mxcsr = base.loadUnaligned(fromByteOffset: FXImage.mxcsr, as: UInt32.self)
            if mxcsr & ~FXImage.mxcsrBits != 0 { return .reservedBits }
            withAllComponents { _ in s.takeArea(from: base, size, stored: stored) }
            return nil
        }
    }

    /// Runs `body` as if in 64-bit mode with all components enabled; it gets XINUSE.
    private func withAllComponents(_ body: (UInt64) -> Void) {
        let (mode, xcr0) = (state.pointee.mode, state.pointee.xcr0)
        state.pointee.mode = CodeMode.bits64
        state.pointee.xcr0 = VectorUnit.supportedComponents
        body(state.componentsInUse & VectorUnit.supportedComponents)
        state.pointee.mode = mode
        state.pointee.xcr0 = xcr0
    }
}

extension UnsafeMutablePointer<martlet_cpu> {
    /// Copies all supported components to a standard-format area.
    fileprivate func copyArea(to target: UnsafeMutableRawPointer) {
        fillLegacyRegion(isWide: true)
        target.copyMemory(from: area, byteCount: 416)
        for number in StateComponent.extended where pointee.xcr0 >> UInt64(number) & 1 != 0 {
            copyComponent(number, target + StateComponent.offset(number), isLoad: false)
        }
    }

    /// Takes all supported components from a standard-format area of `size` bytes.
    fileprivate func takeArea(from source: UnsafeRawPointer, _ size: Int, stored: UInt64) {
        area.copyMemory(from: source, byteCount: size)
        takeArea(requested: pointee.xcr0, loaded: stored, isWide: true)
        let hasMXCSR = stored & (StateComponent.sse | StateComponent.avx) != 0
        mxcsr = hasMXCSR ? area.load(fromByteOffset: FXImage.mxcsr, as: UInt32.self) : FXImage.mxcsrDefault
    }
}
