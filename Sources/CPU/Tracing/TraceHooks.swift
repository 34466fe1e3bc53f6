internal import CHost

// Events for whoever traces the processor (cpu_trace.h). What is not traced costs a test of a word on a cold path; a block
// whose entries are traced stays interpreted, with a handler that tells of each.

extension Processor {
    /// Exceptions, as they are delivered.
    @inline(never) func traceFault(_ vector: UInt8, _ error: UInt32?) {
        var event = event(UInt32(MARTLET_TRACE_FAULT))
        event.vector = UInt32(vector)
        event.error = error ?? 0
        event.has_error = error == nil ? 0 : 1
        event.address = vector == ExceptionVector.pageFault.rawValue ? state.pointee.exception_cr2 : state.pointee.cr2
        _ = tell(&event)
    }

    /// A block that was decoded: at the start of it, with `count` instructions.
    @inline(never) func traceDecoded(_ first: Insn, _ count: Int, guestPhysical: UInt64) {
        var event = event(UInt32(MARTLET_TRACE_DECODED))
        describe(&event, first, count)
        event.address = guestPhysical
        guard tell(&event), count > 0 else { return }
        first.pointee.block_length = UInt8(truncatingIfNeeded: count)
        first.pointee.handler = unsafeBitCast(tracedEntryHandler, to: UnsafeMutableRawPointer.self)
    }

    /// A block that became host code.
    func noteTranslated(_ first: Insn, _ count: Int, host: UnsafeMutableRawPointer, size: Int) {
        let pageRIP = state.register(Int(MARTLET_PAGE_RIP_REGISTER))
        profile?.noteTranslated(host, size: size, first, pageRIP: pageRIP, isUser: state.pointee.cpl == 3)
        if state.pointee.trace.kinds & UInt32(MARTLET_TRACE_BLOCKS) != 0 {
            traceTranslated(first, count, host: host, size: size)
        }
    }

    @inline(never) private func traceTranslated(_ first: Insn, _ count: Int, host: UnsafeMutableRawPointer, size: Int) {
        var event = event(UInt32(MARTLET_TRACE_TRANSLATED))
        describe(&event, first, count)
        event.host = UInt64(UInt(bitPattern: host))
        event.host_size = UInt64(size)
        _ = tell(&event)
    }

    fileprivate func traceEntry(_ first: Insn) {
        var event = event(UInt32(MARTLET_TRACE_ENTERED))
        describe(&event, first, Int(first.pointee.block_length))
        _ = tell(&event)
        // Nobody listens any more: an ordinary block from now on.
        guard state.pointee.trace.kinds & UInt32(MARTLET_TRACE_BLOCKS) == 0 else { return }
        first.pointee.handler = first.pointee.interpreted
        watchForTranslation(first, Int(first.pointee.block_length))
    }

    private func event(_ kind: UInt32) -> martlet_trace_event {
        var event = martlet_trace_event()
        event.kind = kind
        event.rip = state.pointee.rip
        event.is_user = state.pointee.cpl == 3 ? 1 : 0
        event.mode = UInt32(state.pointee.mode)
        return event
    }

    private func describe(_ event: inout martlet_trace_event, _ first: Insn, _ count: Int) {
        event.rip = instructionAddress(state, first)
        event.instructions = UInt32(count)
        // Behind the last instruction of a block there is always one more record.
        let end = first + max(0, count - 1)
        event.bytes =
            UInt32(end.pointee.page_offset) &+ UInt32(end.pointee.length) &- UInt32(first.pointee.page_offset)
    }

    /// The listener's answer.
    private func tell(_ event: inout martlet_trace_event) -> Bool {
        guard let hook = state.pointee.trace.hook else { return false }
        return hook(state.pointee.trace.context, &event) != 0
    }
}

private let tracedEntryHandler: Handler = { s, i in
    if let owner = s.pointee.owner {
        Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.traceEntry(i) }
    }
    return unsafeBitCast(i.pointee.interpreted, to: Handler.self)(s, i)
}
