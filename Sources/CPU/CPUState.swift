public import CHost

/// The state of one vCPU (CHost/cpu_state.h), owned by the thread that runs it.
public typealias State = UnsafeMutablePointer<martlet_cpu>

/// One decoded instruction in the decoded-code arena.
typealias Insn = UnsafeMutablePointer<martlet_insn>

/// Executes one instruction; returns the next one, or nil when the inner loop must look at the state.
typealias Handler = @convention(c) (State, Insn) -> Insn?

/// Exceptions by vector (SDM vol. 3A §6.3.1, table 6-1).
enum ExceptionVector: UInt8 {
    case divide = 0
    case debug = 1
    case nmi = 2
    case breakpoint = 3
    case overflow = 4
    case bound = 5
    case invalidOpcode = 6
    case deviceNotAvailable = 7
    case doubleFault = 8
    case invalidTSS = 10
    case notPresent = 11
    case stack = 12
    case generalProtection = 13
    case pageFault = 14
    case x87 = 16
    case alignment = 17
    case machineCheck = 18
    case simd = 19

    /// Whether delivery pushes an error code (SDM vol. 3A table 6-1).
    var hasErrorCode: Bool {
        switch self {
        case .doubleFault, .invalidTSS, .notPresent, .stack, .generalProtection, .pageFault, .alignment: true
        default: false
        }
    }
}

/// Flags of RFLAGS (SDM vol. 1 §3.4.3).
enum RFlags {
    static let carry: UInt64 = 1 << 0
    static let reserved: UInt64 = 1 << 1
    static let parity: UInt64 = 1 << 2
    static let adjust: UInt64 = 1 << 4
    static let zero: UInt64 = 1 << 6
    static let sign: UInt64 = 1 << 7
    static let trap: UInt64 = 1 << 8
    static let interrupt: UInt64 = 1 << 9
    static let direction: UInt64 = 1 << 10
    static let overflow: UInt64 = 1 << 11
    static let ioPrivilege: UInt64 = 3 << 12
    static let nestedTask: UInt64 = 1 << 14
    static let resume: UInt64 = 1 << 16
    static let virtual8086: UInt64 = 1 << 17
    static let alignmentCheck: UInt64 = 1 << 18
    static let virtualInterrupt: UInt64 = 1 << 19
    static let virtualInterruptPending: UInt64 = 1 << 20
    static let identification: UInt64 = 1 << 21
    /// CF PF AF ZF SF OF: kept in `status`, not in `rflags`.
    static let status: UInt64 = carry | parity | adjust | zero | sign | overflow
    /// Every flag that exists besides the status flags and the fixed bit 1.
    static let system: UInt64 =
        trap | interrupt | direction | ioPrivilege | nestedTask | resume | virtual8086 | alignmentCheck
        | virtualInterrupt | virtualInterruptPending | identification
}

/// Bits of the control registers (SDM vol. 3A §2.5) and of IA32_EFER (vol. 3A §2.2.1).
enum Control {
    static let protectionEnable: UInt64 = 1 << 0
    static let monitorCoprocessor: UInt64 = 1 << 1
    static let emulation: UInt64 = 1 << 2
    static let taskSwitched: UInt64 = 1 << 3
    static let extensionType: UInt64 = 1 << 4
    static let numericError: UInt64 = 1 << 5
    static let writeProtect: UInt64 = 1 << 16
    static let alignmentMask: UInt64 = 1 << 18
    static let notWriteThrough: UInt64 = 1 << 29
    static let cacheDisable: UInt64 = 1 << 30
    static let paging: UInt64 = 1 << 31

    static let timeStampDisable: UInt64 = 1 << 2
    static let debuggingExtensions: UInt64 = 1 << 3
    static let pageSizeExtensions: UInt64 = 1 << 4
    static let physicalAddressExtension: UInt64 = 1 << 5
    static let globalPages: UInt64 = 1 << 7
    static let performanceCounter: UInt64 = 1 << 8
    static let fxsaveSupport: UInt64 = 1 << 9
    static let simdExceptions: UInt64 = 1 << 10
    static let userModeInstructionPrevention: UInt64 = 1 << 11
    static let fsgsbase: UInt64 = 1 << 16
    static let processContextIdentifiers: UInt64 = 1 << 17
    static let extendedStateEnable: UInt64 = 1 << 18
    static let smep: UInt64 = 1 << 20
    static let smap: UInt64 = 1 << 21

    static let syscallEnable: UInt64 = 1 << 0
    static let longModeEnable: UInt64 = 1 << 8
    static let longModeActive: UInt64 = 1 << 10
    static let noExecute: UInt64 = 1 << 11
}

/// Segment registers by encoding.
enum SegmentRegister {
    static let es = 0
    static let cs = 1
    static let ss = 2
    static let ds = 3
    static let fs = 4
    static let gs = 5
}

/// Bits of `martlet_segment.attributes` (SDM vol. 3A §3.4.5, bits 40–55 of a descriptor).
enum SegmentAttribute {
    static let accessed: UInt16 = 1 << 0
    static let writableOrReadable: UInt16 = 1 << 1
    static let expandDownOrConforming: UInt16 = 1 << 2
    static let code: UInt16 = 1 << 3
    static let codeOrData: UInt16 = 1 << 4
    static let present: UInt16 = 1 << 7
    static let long: UInt16 = 1 << 13
    static let big: UInt16 = 1 << 14
    static let granularity: UInt16 = 1 << 15
    static let unusable: UInt16 = 1 << 8
    /// Bits that come from a descriptor (bits 8–11 of the field are limit bits and are cleared).
    static let fromDescriptor: UInt16 = 0xF0FF
}

/// Code size of the current code segment, as kept in `martlet_cpu.mode`.
enum CodeMode {
    static let bits16: UInt8 = 0
    static let bits32: UInt8 = 1
    static let bits64: UInt8 = 2
    /// In keys of code only: 32-bit code with flat segments (`is_flat32`).
    static let flat32: UInt8 = 3
}

/// Bits of `martlet_insn.flags`.
enum InsnFlag {
    static let memory: UInt8 = 1 << 0
    /// The address needs more than base + index * scale + displacement + segment base.
    static let complexAddress: UInt8 = 1 << 1
    static let lock: UInt8 = 1 << 2
    static let rep: UInt8 = 1 << 3
    static let repne: UInt8 = 1 << 4
    static let operandSizePrefix: UInt8 = 1 << 5
    static let segmentOverride: UInt8 = 1 << 6
    /// Runs once from the scratch block (page-crossing instruction).
    static let uncached: UInt8 = 1 << 7
}

extension UnsafeMutablePointer<martlet_cpu> {
    /// The general register file as bytes, for access by byte offset.
    @inline(__always) var registerFile: UnsafeMutableRawPointer { UnsafeMutableRawPointer(self) }

    @inline(__always) var statusPointer: UnsafeMutablePointer<UInt16> {
        martlet_status(self)
    }

    /// A general register by encoding (0 = RAX … 15 = R15).
    @inline(__always) func register(_ number: Int) -> UInt64 {
        registerFile.load(fromByteOffset: number &* 8, as: UInt64.self)
    }

    @inline(__always) func setRegister(_ number: Int, _ value: UInt64) {
        registerFile.storeBytes(of: value, toByteOffset: number &* 8, as: UInt64.self)
    }

    /// The segment register with encoding `number`.
    @inline(__always) func segment(_ number: Int) -> UnsafeMutablePointer<martlet_segment> {
        martlet_segments(self).advanced(by: number)
    }

    @inline(__always) var segmentBases: UnsafeMutablePointer<UInt64> {
        martlet_segment_bases(self)
    }

    var slotTable: UnsafeMutablePointer<martlet_slot> { martlet_slots(self) }
    var mmioFragments: UnsafeMutablePointer<martlet_mmio_fragment> { martlet_mmio(self) }
    @inline(__always) var bounceBuffer: UnsafeMutableRawPointer { UnsafeMutableRawPointer(martlet_bounce(self)) }
    @inline(__always) var jumpTable: UnsafeMutablePointer<martlet_jump_entry> { martlet_jumps(self) }

    /// The code size, and whether segments matter: what decoded code is found by.
    @inline(__always) var codeMode: UInt8 { pointee.is_flat32 != 0 ? CodeMode.flat32 : pointee.mode }

    var isLongMode: Bool { pointee.efer & Control.longModeActive != 0 }
    var isProtected: Bool { pointee.cr0 & Control.protectionEnable != 0 }
    var isVirtual8086: Bool { pointee.rflags & RFlags.virtual8086 != 0 }
    var ioPrivilegeLevel: UInt8 { UInt8(truncatingIfNeeded: (pointee.rflags & RFlags.ioPrivilege) >> 12) }

    /// RFLAGS as the guest sees it.
    var flags: UInt64 {
        let status = UInt64(pointee.status)
        return pointee.rflags | RFlags.reserved | ((status >> 8) & 0xD5) | ((status & 1) << 11)
    }

    /// Sets all flags, unimplemented bits dropped.
    func setFlags(_ value: UInt64) {
        setStatusFlags(value)
        pointee.rflags = value & RFlags.system
    }

    /// Sets OF SF ZF AF PF CF from their places in RFLAGS.
    @inline(__always) func setStatusFlags(_ value: UInt64) {
        pointee.status = UInt16(truncatingIfNeeded: ((value & 0xD5) << 8) | ((value >> 11) & 1))
    }
}

/// Records an exception; the handler then returns `stop(s, i)`.
@inline(never) func raise(_ s: State, _ vector: ExceptionVector) {
    s.pointee.stop = UInt32(MARTLET_STOP_EXCEPTION)
    s.pointee.exception_vector = UInt32(vector.rawValue)
    s.pointee.exception_has_error = vector.hasErrorCode ? 1 : 0
    s.pointee.exception_error = 0
}

@inline(never) func raise(_ s: State, _ vector: ExceptionVector, error: UInt32) {
    raise(s, vector)
    s.pointee.exception_error = error
}

/// Leaves the inner loop with rip at instruction `i`, which is not complete: a fault, an access that user space must
/// answer, or a repetition that goes on later. Whoever called its handler has counted it, so it is taken back here.
@inline(never) func stop(_ s: State, _ i: Insn) -> Insn? {
    s.pointee.instruction_count &-= 1
    s.pointee.rip = instructionAddress(s, i)
    if s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION), i.pointee.segment == UInt8(SegmentRegister.ss) {
        refineStackFault(s, i)
    }
    return nil
}

/// A non-canonical address by way of SS (a base of RSP or RBP) is #SS(0), not #GP(0) (SDM vol. 3A §6.15, interrupt 12).
private func refineStackFault(_ s: State, _ i: Insn) {
    guard s.pointee.exception_vector == UInt32(ExceptionVector.generalProtection.rawValue),
        s.pointee.mode == CodeMode.bits64, i.pointee.flags & InsnFlag.memory != 0
    else { return }
    let address = effectiveAddress(s, i)
    if !isCanonical(address) || !isCanonical(address &+ UInt64(i.pointee.size)) { raise(s, .stack, error: 0) }
}

/// Raises and stops in one: for handlers.
@inline(never) func fault(_ s: State, _ i: Insn, _ vector: ExceptionVector, error: UInt32 = 0) -> Insn? {
    raise(s, vector, error: error)
    return stop(s, i)
}

/// The guest rip of `i`.
@inline(__always) func instructionAddress(_ s: State, _ i: Insn) -> UInt64 {
    maskedInstructionPointer(s, s.register(Int(MARTLET_PAGE_RIP_REGISTER)) &+ UInt64(i.pointee.page_offset))
}

/// The guest rip after `i`.
@inline(__always) func nextInstructionAddress(_ s: State, _ i: Insn) -> UInt64 {
    maskedInstructionPointer(
        s,
        s.register(Int(MARTLET_PAGE_RIP_REGISTER)) &+ UInt64(i.pointee.page_offset) &+ UInt64(i.pointee.length))
}

@inline(__always) func maskedInstructionPointer(_ s: State, _ rip: UInt64) -> UInt64 {
    s.pointee.mode == CodeMode.bits64 ? rip : rip & 0xFFFF_FFFF
}
