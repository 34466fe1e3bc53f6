internal import CHost

// The breakpoints of the debug registers (SDM vol. 3B §17.2, §17.3). While DR7 enables one, each instruction runs alone
// (`Processor.singleStep`): instruction breakpoints are compared there, and data accesses find an empty TLB, so that each
// of them comes by `slowPointer`, which notes hits. While DR7 enables none, nothing looks at any of this. Accesses to page
// tables and descriptors are no data accesses and are not watched.

/// Bits of DR6 and DR7 (SDM vol. 3B figure 17-1).
enum DebugBits {
    /// DR6.B0–B3.
    static let breakpoints: UInt64 = 0xF
    /// DR6.BD.
    static let registerAccess: UInt64 = 1 << 13
    /// DR6.BS.
    static let singleStep: UInt64 = 1 << 14
    /// DR7.GD.
    static let generalDetect: UInt64 = 1 << 13
}

/// What a breakpoint watches: DR7.R/W (SDM vol. 3B §17.2.4).
private enum BreakpointKind {
    static let instruction: UInt64 = 0
    static let write: UInt64 = 1
    static let port: UInt64 = 2
    static let readWrite: UInt64 = 3
}

private struct Breakpoint {
    var kind: UInt64
    /// The low bits that the length covers are ignored.
    var address: UInt64
    var length: UInt64

    func overlaps(_ start: UInt64, _ size: UInt64) -> Bool {
        start &- address < length || address &- start < size
    }
}

/// Breakpoint `number` where DR7.L or DR7.G enables it.
private func breakpoint(_ s: State, _ number: Int) -> Breakpoint? {
    let control = martlet_debug_registers(s)[7]
    guard (control >> UInt64(number * 2)) & 3 != 0 else { return nil }
    let kind = (control >> UInt64(16 + number * 4)) & 3
    let address = martlet_debug_registers(s)[number]
    if kind == BreakpointKind.instruction { return Breakpoint(kind: kind, address: address, length: 1) }
    // Without CR4.DE there are no breakpoints on ports; what R/W 10 does then is undefined.
    if kind == BreakpointKind.port, s.pointee.cr4 & Control.debuggingExtensions == 0 { return nil }
    let length: UInt64 =
        switch (control >> UInt64(18 + number * 4)) & 3 {
        case 0: 1
        case 1: 2
        case 2: 8
        default: 4
        }
    return Breakpoint(kind: kind, address: address & ~(length - 1), length: length)
}

/// To be called after DR7 or CR4.DE changed.
func updateBreakpoints(_ s: State) {
    var kinds: Int32 = 0
    for number in 0..<4 {
        switch breakpoint(s, number)?.kind {
        case nil: break
        case BreakpointKind.instruction: kinds |= Int32(MARTLET_DEBUG_INSTRUCTION)
        case BreakpointKind.port: kinds |= Int32(MARTLET_DEBUG_PORT)
        default: kinds |= Int32(MARTLET_DEBUG_DATA)
        }
    }
    s.pointee.debug_armed = UInt8(kinds)
    if kinds == 0 {
        s.pointee.debug_pending = 0
        s.pointee.debug_shadow = 0
    }
}

/// Records #DB. Like hardware, and unlike the other bits, B0–B3 do not add up over exceptions (SDM vol. 3B §17.2.3).
func raiseDebug(_ s: State, _ causes: UInt64) {
    let status = martlet_debug_registers(s)[6] & ~DebugBits.breakpoints
    martlet_debug_registers(s)[6] = status | causes
    raise(s, .debug)
}

/// A handler of #DB may use the debug registers (SDM vol. 3B §17.2.4, general detect).
func allowDebugRegisters(_ s: State) { martlet_debug_registers(s)[7] &= ~DebugBits.generalDetect }

// MARK: - Noting hits

private func isArmed(_ s: State, _ kind: Int) -> Bool { s.pointee.debug_armed & UInt8(kind) != 0 }

/// A data access of the guest's at a linear address. Whether it traps is seen when the instruction is complete.
@inline(__always) func noteDataAccess(_ s: State, _ address: UInt64, _ size: Int, _ kind: UInt8) {
    if isArmed(s, Int(MARTLET_DEBUG_DATA)) { noteDataHits(s, address, size, kind) }
}

@inline(never) private func noteDataHits(_ s: State, _ address: UInt64, _ size: Int, _ kind: UInt8) {
    let size = UInt64(size)
    let top: UInt64 = 1 << 32
    // Outside 64-bit mode addresses wrap at 4 GiB.
    let wrapped = s.pointee.mode != CodeMode.bits64 && address &+ size > top ? address &+ size &- top : 0
    for number in 0..<4 {
        guard let breakpoint = breakpoint(s, number),
            breakpoint.kind == BreakpointKind.readWrite
                || (breakpoint.kind == BreakpointKind.write && kind & AccessKind.write != 0),
            breakpoint.overlaps(address, size) || (wrapped > 0 && breakpoint.overlaps(0, wrapped))
        else { continue }
        s.pointee.debug_pending |= 1 << UInt8(number)
    }
}

/// An access to I/O ports.
func notePortAccess(_ s: State, _ port: UInt16, _ size: UInt8) {
    guard isArmed(s, Int(MARTLET_DEBUG_PORT)) else { return }
    for number in 0..<4 {
        guard let breakpoint = breakpoint(s, number), breakpoint.kind == BreakpointKind.port,
            breakpoint.overlaps(UInt64(port), UInt64(size))
        else { continue }
        s.pointee.debug_pending |= 1 << UInt8(number)
    }
}

/// Whether a repetition must stop behind each element, because the trap comes there (SDM vol. 3B §17.3.1.2).
func stepsThroughRepetition(_ s: State) -> Bool {
    s.pointee.rflags & RFlags.trap != 0 || s.pointee.debug_armed & UInt8(MARTLET_DEBUG_DATA | MARTLET_DEBUG_PORT) != 0
}

/// Delivery of an event while data breakpoints are enabled: its frame is data too. The trap comes before the handler's
/// first instruction.
func deliverWatched(_ s: State, _ body: () -> Bool) -> Bool {
    let held = s.pointee.debug_pending
    s.pointee.tlb = martlet_no_lines(s)
    let done = body()
    if !done { s.pointee.debug_pending = held }
    selectTable(s)
    return done
}

// MARK: - Single steps

/// What there is to do around an instruction that runs alone. Nothing where no breakpoint is enabled.
struct BreakpointStep {
    private let s: State
    let isArmed: Bool
    /// What the stack-segment load before this instruction left.
    private let held: UInt8
    private let wasShadowed: UInt8

    init(_ s: State) {
        self.s = s
        isArmed = s.pointee.debug_armed != 0
        held = s.pointee.debug_pending
        wasShadowed = s.pointee.debug_shadow
    }

    /// Whether #DB comes instead of the instruction: a trap that an event's frame hit, or an instruction breakpoint,
    /// which comes before any fault of the fetch (SDM vol. 3A table 6-2).
    func raisesBefore() -> Bool {
        guard isArmed else { return false }
        s.pointee.debug_shadow = 0
        if wasShadowed != 0 { return false }
        s.pointee.debug_pending = 0
        let causes = held != 0 ? UInt64(held) : instructionHits()
        if causes == 0 { return false }
        raiseDebug(s, causes)
        return true
    }

    private func instructionHits() -> UInt64 {
        // An instruction that goes on with its answer has begun long ago.
        let goesOn = s.pointee.mmio_count | UInt32(s.pointee.port_answered) != 0
        guard s.pointee.debug_armed & UInt8(MARTLET_DEBUG_INSTRUCTION) != 0, !goesOn,
            s.pointee.rflags & RFlags.resume == 0
        else { return 0 }
        let rip = s.pointee.rip
        let linear =
            s.pointee.mode == CodeMode.bits64
            ? rip : (s.segment(SegmentRegister.cs).pointee.base &+ rip) & 0xFFFF_FFFF
        var hits: UInt64 = 0
        for number in 0..<4 {
            guard let breakpoint = breakpoint(s, number), breakpoint.kind == BreakpointKind.instruction,
                breakpoint.address == linear
            else { continue }
            hits |= 1 << UInt64(number)
        }
        return hits
    }

    func watchAccesses() {
        if s.pointee.debug_armed & UInt8(MARTLET_DEBUG_DATA) != 0 { s.pointee.tlb = martlet_no_lines(s) }
    }

    func endWatching() {
        if isArmed { selectTable(s) }
    }

    /// The breakpoints whose trap follows the instruction.
    func causesBehind(_ mnemonic: Mnemonic?, completed: Bool) -> UInt64 {
        guard isArmed else { return 0 }
        guard completed else {
            // A fault takes what was pending along; an exit to user space leaves all as it was.
            let begins = s.pointee.stop == UInt32(MARTLET_STOP_PORT) || s.pointee.stop == UInt32(MARTLET_STOP_MMIO)
            s.pointee.debug_pending = begins ? held : 0
            s.pointee.debug_shadow = begins ? wasShadowed : 0
            return 0
        }
        // Nothing comes between a load of SS and the next instruction (SDM vol. 3A §6.8.3).
        if mnemonic == .movToSegment || mnemonic == .popSegment, s.pointee.interrupt_shadow != 0 {
            s.pointee.debug_shadow = 1
            return 0
        }
        defer { s.pointee.debug_pending = 0 }
        return UInt64(s.pointee.debug_pending)
    }
}

extension Processor {
    /// DR0–DR3, DR6 and DR7 from outside (KVM_SET_DEBUGREGS).
    public func setDebugRegisters(_ addresses: (UInt64, UInt64, UInt64, UInt64), dr6: UInt64, dr7: UInt64) {
        let (first, second, third, fourth) = addresses
        state.pointee.debug_registers = (first, second, third, fourth, 0, 0, dr6, dr7)
        updateBreakpoints(state)
    }
}
