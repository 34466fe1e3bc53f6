internal import CHost

// The state as a whole: EMMS, MXCSR, FXSAVE and FXRSTOR, and the forms that the rest of the world knows it in.

extension UnsafeMutablePointer<martlet_cpu> {
    /// Changes TOP and lets every physical register keep its contents: the image has them in stack order.
    @inline(never) func setX87Top(_ top: Int) {
        let old = Int(x87StatusWord >> 11) & 7
        x87StatusWord = x87StatusWord & ~FXImage.top | UInt16(top & 7) << 11
        let registers = fxImage + FXImage.x87Registers
        let saved = fxImage.load(as: martlet_x87_image.self)
        withUnsafeBytes(of: saved) {
            guard let base = $0.baseAddress else { return }
            for stack in 0..<8 {
                let source = base + (FXImage.x87Registers &+ ((stack &+ top &- old) & 7) &* 16)
                (registers + stack &* 16).copyMemory(from: source, byteCount: 16)
            }
        }
    }

    /// FNINIT (SDM vol. 2, FINIT). Registers keep their contents.
    func resetX87() {
        setX87Top(0)
        fxImage.storeBytes(of: 0x037F, toByteOffset: FXImage.controlWord, as: UInt16.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.statusWord, as: UInt16.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.tags, as: UInt16.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.opcode, as: UInt16.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.instructionPointer, as: UInt64.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.dataPointer, as: UInt64.self)
    }

    /// Sets FSW.ES and FSW.B from the exception flags and masks, as the processor does whenever either is loaded.
    func summarizeX87Exceptions() {
        let control = fxImage.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)
        let summary = FXImage.exceptionSummary | FXImage.busy
        if x87StatusWord & ~control & 0x3F != 0 { x87StatusWord |= summary } else { x87StatusWord &= ~summary }
    }

    /// Makes an image that came from outside one that the host can load: no reserved bits, no wrong summary.
    func sanitizeFXImage() {
        let control = fxImage.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)
        fxImage.storeBytes(of: control & 0x1F3F | 0x40, toByteOffset: FXImage.controlWord, as: UInt16.self)
        let opcode = fxImage.load(fromByteOffset: FXImage.opcode, as: UInt16.self)
        fxImage.storeBytes(of: opcode & 0x07FF, toByteOffset: FXImage.opcode, as: UInt16.self)
        fxImage.storeBytes(of: 0, toByteOffset: FXImage.tags + 1, as: UInt8.self)
        mxcsr &= FXImage.mxcsrBits
        fxImage.storeBytes(of: FXImage.mxcsrBits, toByteOffset: FXImage.mxcsrMask, as: UInt32.self)
        for register in 0..<8 {
            let padding = fxImage + (FXImage.x87Registers + register * 16 + 10)
            padding.storeBytes(of: 0, as: UInt16.self)
            padding.storeBytes(of: 0, toByteOffset: 2, as: UInt32.self)
        }
        summarizeX87Exceptions()
    }

    /// Copies the first `count` XMM registers to where a FXSAVE image has them.
    func storeXMMRegisters(to target: UnsafeMutableRawPointer, count: Int = 16) {
        for number in 0..<count { (target + number &* 16).copyMemory(from: vectorRegister(number), byteCount: 16) }
    }

    /// Takes the first `count` XMM registers from a FXSAVE image; what lies above them stays.
    func loadXMMRegisters(from source: UnsafeRawPointer, count: Int = 16) {
        for number in 0..<count { vectorRegister(number).copyMemory(from: source + number &* 16, byteCount: 16) }
    }

    /// x87 and SSE state of a new processor. As KVM has it: the state after FNINIT, and not FCW = 0040h with valid tags
    /// (SDM vol. 3A table 9-1), which no guest looks at before its own FNINIT.
    func powerOnVectorState() {
        fxImage.initializeMemory(as: UInt8.self, repeating: 0, count: FXImage.size)
        vectorRegister(0).initializeMemory(as: UInt8.self, repeating: 0, count: VectorFile.size)
        resetX87()
        mxcsr = FXImage.mxcsrDefault
        fxImage.storeBytes(of: FXImage.mxcsrBits, toByteOffset: FXImage.mxcsrMask, as: UInt32.self)
    }

    /// The state as KVM_GET_FPU gives it.
    var kvmFPU: kvm_fpu {
        var fpu = kvm_fpu()
        let image = fxImage
        let registers = UnsafeRawBufferPointer(start: image + FXImage.x87Registers, count: 128)
        withUnsafeMutableBytes(of: &fpu.fpr) { $0.copyMemory(from: registers) }
        withUnsafeMutableBytes(of: &fpu.xmm) { storeXMMRegisters(to: $0.baseAddress!) }
        fpu.fcw = image.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)
        fpu.fsw = x87StatusWord
        fpu.ftwx = image.load(fromByteOffset: FXImage.tags, as: UInt8.self)
        fpu.last_opcode = image.load(fromByteOffset: FXImage.opcode, as: UInt16.self)
        fpu.last_ip = image.load(fromByteOffset: FXImage.instructionPointer, as: UInt64.self)
        fpu.last_dp = image.load(fromByteOffset: FXImage.dataPointer, as: UInt64.self)
        fpu.mxcsr = mxcsr
        return fpu
    }

    /// Takes the state as KVM_SET_FPU gives it. Bits that do not exist are dropped.
    func setKVMFPU(_ fpu: kvm_fpu) {
        let image = fxImage
        withUnsafeBytes(of: fpu.fpr) {
            (image + FXImage.x87Registers).copyMemory(from: $0.baseAddress!, byteCount: 128)
        }
        withUnsafeBytes(of: fpu.xmm) { loadXMMRegisters(from: $0.baseAddress!) }
        image.storeBytes(of: fpu.fcw, toByteOffset: FXImage.controlWord, as: UInt16.self)
        x87StatusWord = fpu.fsw
        image.storeBytes(of: fpu.ftwx, toByteOffset: FXImage.tags, as: UInt8.self)
        image.storeBytes(of: fpu.last_opcode, toByteOffset: FXImage.opcode, as: UInt16.self)
        image.storeBytes(of: fpu.last_ip, toByteOffset: FXImage.instructionPointer, as: UInt64.self)
        image.storeBytes(of: fpu.last_dp, toByteOffset: FXImage.dataPointer, as: UInt64.self)
        mxcsr = fpu.mxcsr
        sanitizeFXImage()
    }
}

/// EMMS: all registers empty, TOP = 0.
func emms(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasMMX else { return mmxUnavailable(s, i) }
    s.setX87Top(0)
    s.fxImage.storeBytes(of: 0, toByteOffset: FXImage.tags, as: UInt8.self)
    return i + 1
}

/// LDMXCSR: reserved bits are #GP(0).
func ldmxcsr(_ s: State, _ i: Insn) -> Insn? {
    s.hasSSE ? loadMXCSR(s, i) : sseUnavailable(s, i)
}

func stmxcsr(_ s: State, _ i: Insn) -> Insn? {
    s.hasSSE ? storeMXCSR(s, i) : sseUnavailable(s, i)
}

/// LDMXCSR and VLDMXCSR.
func loadMXCSR(_ s: State, _ i: Insn) -> Insn? {
    guard let memory = readOperand(s, i, 4) else { return stop(s, i) }
    let value = memory.loadUnaligned(as: UInt32.self)
    guard value & ~FXImage.mxcsrBits == 0 else { return fault(s, i, .generalProtection) }
    s.mxcsr = value
    return i + 1
}

func storeMXCSR(_ s: State, _ i: Insn) -> Insn? {
    guard let memory = writeOperand(s, i, 4) else { return stop(s, i) }
    memory.storeBytes(of: s.mxcsr, as: UInt32.self)
    return commit(s, memory, 4) ? i + 1 : stop(s, i)
}

/// XMM registers of the image that FXSAVE writes and FXRSTOR looks at: XMM8–15 only in 64-bit mode, no SSE state at all
/// unless CR4.OSFXSR is set.
@inline(__always) private func imageRegisters(_ s: State) -> Int {
    guard s.pointee.cr4 & Control.fxsaveSupport != 0 else { return 0 }
    return s.pointee.mode == CodeMode.bits64 ? 16 : 8
}

/// The pointers' form for an image without REX.W: 32-bit offsets, and selectors, which are not kept.
@inline(__always) private func narrowPointers(_ image: inout martlet_fx_image) {
    image.words.1 &= 0xFFFF_FFFF
    image.words.2 &= 0xFFFF_FFFF
}

/// FXSAVE and FXSAVE64 (SDM vol. 2, FXSAVE).
func fxsave(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    guard let address = imageAddress(s, i, AccessKind.write) else { return stop(s, i) }
    var image = s.fxImage.load(as: martlet_fx_image.self)
    if i.pointee.rex & 8 == 0 { narrowPointers(&image) }
    // Stubs leave the host's MXCSR_MASK here.
    image.words.3 = UInt64(s.mxcsr) | UInt64(FXImage.mxcsrBits) << 32
    let count = imageRegisters(s)
    let done = withUnsafeMutableBytes(of: &image) {
        s.storeXMMRegisters(to: $0.baseAddress! + FXImage.xmmRegisters, count: count)
        return writeBytes(s, i, address, FXImage.xmmRegisters + count * 16, from: $0.baseAddress!)
    }
    return done ? i + 1 : stop(s, i)
}

/// FXRSTOR and FXRSTOR64: reserved bits of MXCSR are #GP(0).
func fxrstor(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasX87 else { return fault(s, i, .deviceNotAvailable) }
    guard let address = imageAddress(s, i, AccessKind.read) else { return stop(s, i) }
    var image = martlet_fx_image()
    let count = imageRegisters(s)
    let size = FXImage.xmmRegisters + count * 16
    let done = withUnsafeMutableBytes(of: &image) {
        readBytes(s, i, address, size, into: $0.baseAddress!)
    }
    guard done else { return stop(s, i) }
    let mxcsr = UInt32(truncatingIfNeeded: image.words.3)
    let hasSSE = count > 0
    if hasSSE, mxcsr & ~FXImage.mxcsrBits != 0 { return fault(s, i, .generalProtection) }
    if i.pointee.rex & 8 == 0 { narrowPointers(&image) }
    if !hasSSE { image.words.3 = UInt64(s.mxcsr) }
    withUnsafeBytes(of: &image) {
        s.fxImage.copyMemory(from: $0.baseAddress!, byteCount: FXImage.xmmRegisters)
        s.loadXMMRegisters(from: $0.baseAddress! + FXImage.xmmRegisters, count: count)
    }
    s.sanitizeFXImage()
    return i + 1
}

/// The image's address, which must be a multiple of 16.
private func imageAddress(_ s: State, _ i: Insn, _ kind: UInt8) -> UInt64? {
    guard let address = operandAddress(s, i, FXImage.size, kind) else { return nil }
    if address & 15 == 0 { return address }
    raise(s, .generalProtection, error: 0)
    return nil
}
