internal import CHost

// Handlers for memory forms: they find the operand and let the stub do the work. And the ways out of stubs.

extension UnsafeMutablePointer<martlet_cpu> {
    /// The FXSAVE64 image, whose XMM part means nothing.
    @inline(__always) var fxImage: UnsafeMutableRawPointer { UnsafeMutableRawPointer(martlet_fx(self)) }

    /// Vector register `number`, 64 bytes.
    @inline(__always) func vectorRegister(_ number: Int) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(martlet_zmm(self)) + number &* VectorFile.stride
    }

    @inline(__always) var x87StatusWord: UInt16 {
        get { fxImage.load(fromByteOffset: FXImage.statusWord, as: UInt16.self) }
        nonmutating set { fxImage.storeBytes(of: newValue, toByteOffset: FXImage.statusWord, as: UInt16.self) }
    }

    @inline(__always) var mxcsr: UInt32 {
        get { fxImage.load(fromByteOffset: FXImage.mxcsr, as: UInt32.self) }
        nonmutating set { fxImage.storeBytes(of: newValue, toByteOffset: FXImage.mxcsr, as: UInt32.self) }
    }

    /// CR0.EM and CR0.TS clear.
    @inline(__always) var hasX87: Bool { pointee.cr0 & (Control.emulation | Control.taskSwitched) == 0 }

    /// Nothing forbids SSE instructions (SDM vol. 3A §13.1.3).
    @inline(__always) var hasSSE: Bool { hasX87 && pointee.cr4 & Control.fxsaveSupport != 0 }

    /// An unmasked x87 exception waits. FSW.ES is kept consistent by everything that writes the image.
    @inline(__always) var hasX87Exception: Bool { x87StatusWord & FXImage.exceptionSummary != 0 }

    /// TOP = 0, as every MMX instruction leaves it (SDM vol. 1 §9.5.1): MMn is then at ST(n)'s place.
    @inline(__always) func orderForMMX() {
        if x87StatusWord & FXImage.top != 0 { setX87Top(0) }
    }

    /// Nothing forbids MMX instructions (SDM vol. 3A §12.1, table 12-1).
    @inline(__always) var hasMMX: Bool { hasX87 && !hasX87Exception }
}

/// #UD for what the tables know and the host cannot do.
func vectorUndefined(_ s: State, _ i: Insn) -> Insn? { fault(s, i, .invalidOpcode) }

/// #UD or #NM for an SSE instruction (SDM vol. 3A table 13-1 and §13.1).
func sseUnavailable(_ s: State, _ i: Insn) -> Insn? {
    let undefined = s.pointee.cr0 & Control.emulation != 0 || s.pointee.cr4 & Control.fxsaveSupport == 0
    return fault(s, i, undefined ? .invalidOpcode : .deviceNotAvailable)
}

/// #UD, #NM or #MF for an MMX instruction. A register form that only found TOP other than 0 is run again with the
/// registers in their places.
func mmxUnavailable(_ s: State, _ i: Insn) -> Insn? {
    if s.pointee.cr0 & Control.emulation != 0 { return fault(s, i, .invalidOpcode) }
    if s.pointee.cr0 & Control.taskSwitched != 0 { return fault(s, i, .deviceNotAvailable) }
    if s.hasX87Exception { return fault(s, i, .x87) }
    guard let stub = i.pointee.link else { return vectorUndefined(s, i) }
    s.setX87Top(0)
    return unsafeBitCast(stub, to: VectorStub.self)(s, i, nil)
}

/// The same for an instruction that uses both register files.
func mixedUnavailable(_ s: State, _ i: Insn) -> Insn? {
    s.pointee.cr4 & Control.fxsaveSupport == 0 ? fault(s, i, .invalidOpcode) : mmxUnavailable(s, i)
}

@inline(__always) private func callStub(_ s: State, _ i: Insn, _ memory: UnsafeMutableRawPointer) -> Insn? {
    unsafeBitCast(i.pointee.link, to: VectorStub.self)(s, i, memory)
}

/// A 16-byte operand that must be aligned, else #GP(0), which comes before page faults.
@inline(__always) func alignedAddress(_ s: State, _ i: Insn, _ kind: UInt8) -> UInt64? {
    guard let address = operandAddress(s, i, 16, kind) else { return nil }
    if address & 15 == 0 { return address }
    raise(s, .generalProtection, error: 0)
    return nil
}

@inline(__always) func alignedReadOperand(_ s: State, _ i: Insn) -> UnsafeMutableRawPointer? {
    guard let address = alignedAddress(s, i, AccessKind.read) else { return nil }
    return readPointer(s, address, 16)
}

@inline(__always) func alignedWriteOperand(_ s: State, _ i: Insn) -> UnsafeMutableRawPointer? {
    guard let address = alignedAddress(s, i, AccessKind.write) else { return nil }
    return writePointer(s, address, 16)
}

/// The operand for a stub, whose instruction demands of the host what the guest's demanded of the guest. Guest pages lie
/// on host pages, so an aligned address has an aligned pointer; should a slot break that, the operand is copied.
@inline(__always) private func alignedStubOperand(_ s: State, _ i: Insn) -> UnsafeMutableRawPointer? {
    guard let pointer = alignedReadOperand(s, i) else { return nil }
    if UInt(bitPattern: pointer) & 15 == 0 { return pointer }
    let copy = UnsafeMutableRawPointer(martlet_vector_scratch(s))
    copy.copyMemory(from: pointer, byteCount: 16)
    return copy
}

func vectorLoadAligned(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = alignedStubOperand(s, i) else { return stop(s, i) }
    return callStub(s, i, memory)
}

func vectorLoad(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    guard let memory = readOperand(s, i, Int(i.pointee.size)) else { return stop(s, i) }
    return callStub(s, i, memory)
}

func mmxLoad(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasMMX else { return mmxUnavailable(s, i) }
    guard let memory = readOperand(s, i, Int(i.pointee.size)) else { return stop(s, i) }
    s.orderForMMX()
    return callStub(s, i, memory)
}

func mixedLoad(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE, s.hasMMX else { return mixedUnavailable(s, i) }
    guard let memory = readOperand(s, i, Int(i.pointee.size)) else { return stop(s, i) }
    s.orderForMMX()
    return callStub(s, i, memory)
}

func mixedLoadAligned(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE, s.hasMMX else { return mixedUnavailable(s, i) }
    guard let memory = alignedStubOperand(s, i) else { return stop(s, i) }
    s.orderForMMX()
    return callStub(s, i, memory)
}

func vectorStore(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasSSE else { return sseUnavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    let next = callStub(s, i, memory)
    return commit(s, memory, size) ? next : stop(s, i)
}

func mmxStore(_ s: State, _ i: Insn) -> Insn? {
    guard s.hasMMX else { return mmxUnavailable(s, i) }
    let size = Int(i.pointee.size)
    guard let memory = writeOperand(s, i, size) else { return stop(s, i) }
    let saved = s.fxImage.load(as: martlet_x87_image.self)
    s.orderForMMX()
    let next = callStub(s, i, memory)
    if commit(s, memory, size) { return next }
    s.fxImage.storeBytes(of: saved, as: martlet_x87_image.self)
    return stop(s, i)
}

/// An instruction under an MXCSR other than the default: another rounding, DAZ, FTZ, or unmasked exceptions. The host
/// runs it with all exceptions masked; what it raised decides whether the guest sees #XM and unchanged operands.
func controlledVector(_ s: State, _ i: Insn, _ memory: UnsafeMutableRawPointer?) -> Insn? {
    guard let stub = i.pointee.link else { return vectorUndefined(s, i) }
    let distance = (stub - 4).load(as: UInt32.self)
    let run = unsafeBitCast(stub + Int(distance), to: ControlledVectorStub.self)
    let guest = s.mxcsr
    var control = guest
    if guest & FXImage.mxcsrMasks == FXImage.mxcsrMasks {
        run(s, i, memory, &control)
        s.mxcsr = control
        return i + 1
    }
    let saved = UnsafeMutableRawPointer(martlet_extended(s))
    saved.copyMemory(from: s.vectorRegister(0), byteCount: VectorFile.size)
    return trappingVector(s, i, saved) { run(s, i, memory, &$0) }
}

/// The same with an exception unmasked. `saved` is the vector registers and opmasks as they were.
private func trappingVector(
    _ s: State, _ i: Insn, _ saved: UnsafeRawPointer, _ run: (inout UInt32) -> Void
) -> Insn? {
    let guest = s.mxcsr
    let savedImage = s.fxImage.load(as: martlet_x87_image.self)
    let savedStatus = s.pointee.status
    let savedRegister = s.register(Int(i.registerNumber))
    func restore() {
        s.fxImage.storeBytes(of: savedImage, as: martlet_x87_image.self)
        s.vectorRegister(0).copyMemory(from: saved, byteCount: VectorFile.size)
        s.pointee.status = savedStatus
        s.setRegister(Int(i.registerNumber), savedRegister)
    }
    let raised = raisedExceptions(guest) {
        restore()
        run(&$0)
    }
    let unmasked = raised & ~(guest >> 7) & FXImage.mxcsrFlags
    if unmasked == 0 {
        s.mxcsr = guest | raised
        return i + 1
    }
    restore()
    // What is found before computing (#I, #D, #Z) keeps the rest from happening (SDM vol. 1 §11.5.2, §11.5.3).
    s.mxcsr = guest | (unmasked & 7 != 0 ? raised & 7 : raised)
    let vector: ExceptionVector = s.pointee.cr4 & Control.simdExceptions != 0 ? .simd : .invalidOpcode
    return fault(s, i, vector)
}

/// The exceptions of an instruction as a processor with the guest's masks detects them. `run` computes with a given MXCSR
/// and leaves the flags in it; its last call leaves the results.
@inline(__always) private func raisedExceptions(_ guest: UInt32, _ run: (inout UInt32) -> Void) -> UInt32 {
    let underflow: UInt32 = 1 << 4
    let flushToZero: UInt32 = 1 << 15
    var control = (guest | FXImage.mxcsrMasks) & ~FXImage.mxcsrFlags
    var tiny: UInt32 = 0
    if guest & (underflow << 7) == 0 {
        // Unmasked, a tiny result underflows even if it is exact, and FTZ has no effect. Masked, FTZ alone makes the host
        // report every tiny result (SDM vol. 1 §4.9.1.5, §10.2.3.3).
        control |= flushToZero
        run(&control)
        tiny = control & underflow
        control = (guest | FXImage.mxcsrMasks) & ~(FXImage.mxcsrFlags | flushToZero)
    }
    run(&control)
    return (control & FXImage.mxcsrFlags) | tiny
}
