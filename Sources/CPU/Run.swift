internal import CHost

// The interpreter's loops. The inner one runs handlers until one returns nil; the outer one asks the state why.

extension Processor {
    /// Runs the guest until something that the caller must see to (`Stop`).
    public func run() -> Stop {
        let s = state
        let before = martlet_set_activity(s, UInt32(MARTLET_AT_GUEST))
        defer { martlet_set_activity(s, before) }
        if let lockstep { return lockstep.run() }
        if s.pointee.pending_event != 0 {
            s.pointee.pending_event = 0
            return .shutdown
        }
        while true {
            s.pointee.stop = UInt32(MARTLET_STOP_NONE)
            if canAcceptNMI, !deliverNMI() { return .shutdown }
            if s.pointee.window_requested != 0, canAcceptInterrupt { return .window }
            if needsSingleStep {
                if hasAttentionBetweenBreakpoints { return .attention }
                singleStep()
            } else {
                dispatch(s)
            }
            switch s.pointee.stop {
            case UInt32(MARTLET_STOP_NONE), UInt32(MARTLET_STOP_REPEAT): break
            case UInt32(MARTLET_STOP_EXCEPTION):
                if !deliverException() { return .shutdown }
            case UInt32(MARTLET_STOP_PORT): return .portIO
            case UInt32(MARTLET_STOP_MMIO): return .mmio
            case UInt32(MARTLET_STOP_HALT): return .halt
            case UInt32(MARTLET_STOP_SHUTDOWN): return .shutdown
            default: return .attention
            }
        }
    }

    /// After an answered access, behind STI or MOV SS, and with the trap flag, one instruction runs alone; all of them do
    /// while a breakpoint is enabled.
    var needsSingleStep: Bool {
        let s = state
        return s.pointee.mmio_count | UInt32(s.pointee.port_answered) | UInt32(s.pointee.interrupt_shadow)
            | UInt32(s.pointee.debug_armed) != 0 || s.pointee.rflags & RFlags.trap != 0
    }

    /// With breakpoints no instruction looks at attention. One that waits for its answer is done first.
    var hasAttentionBetweenBreakpoints: Bool {
        let s = state
        return s.pointee.debug_armed != 0 && martlet_attention(s) == 1
            && s.pointee.mmio_count | UInt32(s.pointee.port_answered) | UInt32(s.pointee.interrupt_shadow) == 0
    }

    /// Whether an external interrupt may be delivered now (SDM vol. 3A §6.8.1, §6.8.3).
    public var canAcceptInterrupt: Bool { state.pointee.rflags & RFlags.interrupt != 0 && isBetweenInstructions }

    var canAcceptNMI: Bool {
        state.pointee.nmi_pending != 0 && state.pointee.nmi_blocked == 0 && isBetweenInstructions
    }

    /// No shadow, no instruction that waits for its answered access, and no trap that comes first (SDM vol. 3A table 6-2).
    private var isBetweenInstructions: Bool {
        let s = state
        return s.pointee.interrupt_shadow == 0 && s.pointee.mmio_count == 0 && s.pointee.mmio_pending == 0
            && s.pointee.port_answered == 0 && s.pointee.debug_pending == 0
    }

    /// Executes one instruction and looks up no other: the trap behind it comes before any fault on fetching the next.
    func singleStep() {
        let s = state
        s.pointee.interrupt_shadow = 0
        s.pointee.mmio_cursor = 0
        let breakpoints = BreakpointStep(s)
        if breakpoints.raisesBefore() { return }
        // Not by the jump cache: its entry may be of a dropped block, whose place-holder is no instruction.
        guard let i = lookup() else {
            _ = breakpoints.causesBehind(nil, completed: false)
            return forgetAnswers(ports: true)
        }
        let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic)
        let traps = s.pointee.rflags & RFlags.trap != 0
        let stop = executeAlone(i, breakpoints)
        let isIteration = stop == UInt32(MARTLET_STOP_REPEAT)
        let completed = isIteration || stop == UInt32(MARTLET_STOP_NONE) || stop == UInt32(MARTLET_STOP_HALT)
        if isIteration {
            s.pointee.stop = UInt32(MARTLET_STOP_NONE)
            // What comes behind an iteration that is not the last finds RF set (SDM vol. 3B §17.3.1.1).
            if traps || breakpoints.isArmed { s.pointee.rflags |= RFlags.resume }
        } else if completed, mnemonic != .iret {
            s.pointee.rflags &= ~RFlags.resume
        }
        var causes = breakpoints.causesBehind(mnemonic, completed: completed)
        if traps, completed, trapsAfter(mnemonic) { causes |= DebugBits.singleStep }
        if causes != 0 { raiseDebug(s, causes) }
    }

    /// The instruction, and what becomes of answers from user space. Returns why it stopped: attention is no reason,
    /// REPEAT is behind an element that is not the last.
    private func executeAlone(_ i: Insn, _ breakpoints: BreakpointStep) -> UInt32 {
        let s = state
        let rip = s.pointee.rip
        let portAnswers = s.pointee.port_answered
        let handler = unsafeBitCast(i.pointee.interpreted, to: Handler.self)
        breakpoints.watchAccesses()
        martlet_begin_step(s)
        if let next = handler(s, i) { s.pointee.rip = instructionAddress(s, next) }
        martlet_end_step(s)
        breakpoints.endWatching()
        s.pointee.instruction_count &+= 1
        // The instruction itself is complete; only its successor was not looked up.
        if s.pointee.stop == UInt32(MARTLET_STOP_ATTENTION) { s.pointee.stop = UInt32(MARTLET_STOP_NONE) }
        let stop = s.pointee.stop
        if stop == UInt32(MARTLET_STOP_MMIO) {
            // INS to a device: the element is read again with the same answer.
            s.pointee.port_answered = portAnswers
        } else if stop != UInt32(MARTLET_STOP_PORT) {
            // REP INS that is not done yet keeps the answers to come.
            forgetAnswers(ports: stop == UInt32(MARTLET_STOP_EXCEPTION) || s.pointee.rip != rip)
        }
        return stop
    }

    private func forgetAnswers(ports: Bool) {
        state.pointee.mmio_count = 0
        state.pointee.mmio_cursor = 0
        if ports { state.pointee.port_answered = 0 }
    }

    /// Whether the single-step trap follows an instruction that began with TF set.
    private func trapsAfter(_ mnemonic: Mnemonic?) -> Bool {
        let s = state
        switch mnemonic {
        // INT n and its kin clear TF before the trap could come (SDM vol. 3B §17.3.1.4); so does SYSCALL by its mask.
        case .int, .int3, .int1, .into, .syscall: return s.pointee.rflags & RFlags.trap != 0
        // Nothing comes between a load of SS and the next instruction (SDM vol. 3A §6.8.3).
        case .movToSegment, .popSegment: return s.pointee.interrupt_shadow == 0
        default: return true
        }
    }

    /// False: triple fault.
    func deliverNMI() -> Bool {
        state.pointee.nmi_pending = 0
        state.pointee.nmi_blocked = 1
        return deliver(state, Event(vector: 2, error: nil, isExternal: true, rip: state.pointee.rip))
            || deliverException()
    }

    /// Delivers an external interrupt; `canAcceptInterrupt` must hold.
    public func deliverInterrupt(_ vector: UInt8) {
        if let lockstep { return lockstep.deliverInterrupt(vector) }
        injectInterrupt(vector)
    }

    func injectInterrupt(_ vector: UInt8) {
        let s = state
        s.pointee.interrupts_delivered &+= 1
        let event = Event(vector: vector, error: nil, isExternal: true, rip: s.pointee.rip)
        if !deliver(s, event), !deliverException() {
            // A triple fault: the next `run()` reports it.
            s.pointee.pending_event = 1
        }
    }

    /// Delivers the recorded exception, with the double-fault rules (SDM vol. 3A §6.15, table 6-5). False: triple fault.
    func deliverException() -> Bool {
        let s = state
        var vector = UInt8(truncatingIfNeeded: s.pointee.exception_vector)
        var attempts = 0
        while true {
            let error = s.pointee.exception_has_error != 0 ? s.pointee.exception_error : nil
            noteException(vector, error)
            if vector == ExceptionVector.pageFault.rawValue { s.pointee.cr2 = s.pointee.exception_cr2 }
            s.pointee.stop = UInt32(MARTLET_STOP_NONE)
            if s.pointee.trace.kinds & UInt32(MARTLET_TRACE_FAULTS) != 0 { traceFault(vector, error) }
            let event = Event(vector: vector, error: s.isProtected ? error : nil, rip: s.pointee.rip)
            if deliver(s, event) {
                if vector == ExceptionVector.debug.rawValue { allowDebugRegisters(s) }
                s.pointee.stop = UInt32(MARTLET_STOP_NONE)
                return true
            }
            let second = UInt8(truncatingIfNeeded: s.pointee.exception_vector)
            attempts += 1
            if vector == ExceptionVector.doubleFault.rawValue || attempts > 8 { return false }
            let isPageFault = vector == ExceptionVector.pageFault.rawValue
            let secondIsSerious =
                ExceptionVector.isContributory(second)
                || (second == ExceptionVector.pageFault.rawValue && isPageFault)
            if secondIsSerious, isPageFault || ExceptionVector.isContributory(vector) {
                raise(s, .doubleFault, error: 0)
                vector = ExceptionVector.doubleFault.rawValue
            } else {
                vector = second
            }
        }
    }

    private func noteException(_ vector: UInt8, _ error: UInt32?) {
        let s = state
        s.pointee.exceptions_delivered &+= 1
        if vector < UInt8(MARTLET_EXCEPTION_VECTORS) { martlet_exception_counts(s)[Int(vector)] &+= 1 }
        s.pointee.last_exception_valid = 1
        s.pointee.last_exception_vector = vector
        s.pointee.last_exception_has_error = error == nil ? 0 : 1
        s.pointee.last_exception_error = error ?? 0
        s.pointee.last_exception_rip = s.pointee.rip
        s.pointee.last_exception_cr2 =
            vector == ExceptionVector.pageFault.rawValue ? s.pointee.exception_cr2 : s.pointee.cr2
    }
}

/// The inner loop.
func dispatch(_ s: State) {
    guard let first = nextBlock(s) else { return }
    dispatch(s, from: first)
}

@inline(never) func dispatch(_ s: State, from first: Insn) {
    var i = first
    var count: UInt64 = 0
    while true {
        count &+= 1
        let handler = unsafeBitCast(i.pointee.handler, to: Handler.self)
        guard let next = handler(s, i) else { break }
        i = next
    }
    s.pointee.instruction_count &+= count
}
