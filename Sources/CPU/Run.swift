internal import CHost

// The interpreter's loops. The inner one runs handlers until one returns nil; the outer one asks the state why.

extension Processor {
    /// Runs the guest until something that the caller must see to (`Stop`).
    public func run() -> Stop {
        let s = state
        if s.pointee.pending_event != 0 {
            s.pointee.pending_event = 0
            return .shutdown
        }
        while true {
            s.pointee.stop = UInt32(MARTLET_STOP_NONE)
            if needsSingleStep {
                singleStep()
            } else {
                if s.pointee.nmi_pending != 0, s.pointee.nmi_blocked == 0 { deliverNMI() }
                if s.pointee.window_requested != 0, canAcceptInterrupt { return .window }
                dispatch(s)
            }
            switch s.pointee.stop {
            case UInt32(MARTLET_STOP_NONE): break
            case UInt32(MARTLET_STOP_EXCEPTION):
                if !deliverException() { return .shutdown }
            case UInt32(MARTLET_STOP_PORT): return .portIO
            case UInt32(MARTLET_STOP_MMIO): return .mmio
            case UInt32(MARTLET_STOP_HALT): return .halt
            case UInt32(MARTLET_STOP_WINDOW): return .window
            case UInt32(MARTLET_STOP_SHUTDOWN): return .shutdown
            default: return .attention
            }
        }
    }

    /// After an answered access, behind STI or MOV SS, and with the trap flag, one instruction runs alone.
    private var needsSingleStep: Bool {
        let s = state
        return s.pointee.mmio_count | UInt32(s.pointee.port_answered) | UInt32(s.pointee.interrupt_shadow) != 0
            || s.pointee.rflags & RFlags.trap != 0
    }

    /// Whether an external interrupt may be delivered now (SDM vol. 3A §6.8.1, §6.8.3).
    public var canAcceptInterrupt: Bool {
        let s = state
        return s.pointee.rflags & RFlags.interrupt != 0 && s.pointee.interrupt_shadow == 0
            && s.pointee.mmio_count == 0 && s.pointee.mmio_pending == 0 && s.pointee.port_answered == 0
    }

    private func singleStep() {
        let s = state
        let traps = s.pointee.rflags & RFlags.trap != 0
        s.pointee.interrupt_shadow = 0
        s.pointee.mmio_cursor = 0
        let answered = s.pointee.mmio_count
        guard let i = findBlock(s) else { return }
        let handler = i.pointee.handler
        let interruptHandlerAddress = unsafeBitCast(interruptHandler, to: UnsafeMutableRawPointer?.self)
        if let next = unsafeBitCast(handler, to: Handler.self)(s, i) { s.pointee.rip = instructionAddress(s, next) }
        s.pointee.instruction_count &+= 1
        let stop = s.pointee.stop
        if stop == UInt32(MARTLET_STOP_ATTENTION) {
            // The instruction itself is complete; only its successor was not looked up.
            s.pointee.stop = UInt32(MARTLET_STOP_NONE)
        }
        if stop != UInt32(MARTLET_STOP_MMIO), answered != 0 || s.pointee.mmio_count != 0 {
            s.pointee.mmio_count = 0
            s.pointee.mmio_cursor = 0
        }
        let completed = stop == UInt32(MARTLET_STOP_NONE) || stop == UInt32(MARTLET_STOP_ATTENTION)
        // INT n and its kin clear TF before the trap could come (SDM vol. 3B §17.3.1.4).
        if completed, traps, handler != interruptHandlerAddress {
            // DR6.BS (SDM vol. 3B §17.2.3); the trap comes after the instruction.
            martlet_debug_registers(s)[6] |= 1 << 14
            raise(s, .debug)
        }
    }

    private func deliverNMI() {
        state.pointee.nmi_pending = 0
        state.pointee.nmi_blocked = 1
        if !deliver(state, Event(vector: 2, error: nil, isExternal: true, rip: state.pointee.rip)) {
            if !deliverException() { state.pointee.stop = UInt32(MARTLET_STOP_SHUTDOWN) }
        }
    }

    /// Delivers an external interrupt; `canAcceptInterrupt` must hold.
    public func deliverInterrupt(_ vector: UInt8) {
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
            let event = Event(vector: vector, error: s.isProtected ? error : nil, rip: s.pointee.rip)
            if deliver(s, event) {
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
@inline(never) func dispatch(_ s: State) {
    guard var i = nextBlock(s) else { return }
    var count: UInt64 = 0
    while true {
        count &+= 1
        let handler = unsafeBitCast(i.pointee.handler, to: Handler.self)
        guard let next = handler(s, i) else { break }
        i = next
    }
    s.pointee.instruction_count &+= count
}
