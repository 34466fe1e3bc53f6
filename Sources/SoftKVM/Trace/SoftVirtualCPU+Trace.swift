internal import CHost
internal import CPU
internal import Hypervisor
internal import X86

// What a vCPU tells its trace.

extension SoftVirtualCPU {
    func installTrace() {
        guard let trace = observation.trace else { return }
        state.pointee.trace.kinds =
            (trace.wants(.faults) ? UInt32(MARTLET_TRACE_FAULTS) : 0)
            | (trace.wants(.blocks) ? UInt32(MARTLET_TRACE_BLOCKS) : 0)
        // SAFETY: used only inside Processor.run(), which this object calls; taken away by removeHooks().
        state.pointee.trace.context = Unmanaged.passUnretained(self).toOpaque()
        state.pointee.trace.hook = { context, event in
            guard let context else { return 0 }
            return Unmanaged<SoftVirtualCPU>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.trace(event.pointee) ? 1 : 0
            }
        }
    }

    /// Of a decoded block: whether its entries are wanted too.
    private func trace(_ event: martlet_trace_event) -> Bool {
        guard let trace = observation.trace else { return false }
        let isFault = event.kind == UInt32(MARTLET_TRACE_FAULT)
        let isPageFault = isFault && event.vector == 14
        let what = TraceEvent(
            kind: isFault ? .faults : .blocks, rip: event.rip, isUser: event.is_user != 0,
            address: isPageFault ? event.address : nil, vector: isFault ? UInt64(event.vector) : nil)
        guard trace.wants(what) else { return false }
        if !trace.add(what, isFault ? event.faultText : event.blockText) { endTrace() }
        return event.kind == UInt32(MARTLET_TRACE_DECODED) && trace.wantsEntries(what)
    }

    /// The limit is reached.
    private func endTrace() {
        state.pointee.trace.kinds = 0
        tracesExits = false
    }

    /// Nothing of a trace waits while the vCPU does.
    func sleep(until deadline: UInt64?) {
        observation.trace?.flush()
        martlet_set_activity(state, UInt32(MARTLET_AT_HALTED))
        core.sleep(untilMonotonicNanoseconds: deadline)
        martlet_set_activity(state, UInt32(MARTLET_AT_ENGINE))
    }

    func noteLeaving(_ exit: VirtualCPUExit) {
        if tracesExits, exit == .interrupted { traceExit("interrupted") }
        observation.trace?.flush()
    }

    // MARK: Exits

    /// Behind each return of the processor. A read is told of once it is answered: its value belongs to it.
    func traceExit(_ stop: Stop) {
        switch stop {
        case .portIO where state.pointee.port_is_write == 0, .attention: return
        case .mmio where currentFragment?.pointee.is_write == 0: return
        case .portIO: tracePort()
        case .mmio: traceMemoryMapped()
        case .halt: traceExit("halt")
        case .shutdown: traceExit("shutdown")
        case .window: traceExit("interrupt window")
        case .difference: traceExit("difference")
        }
    }

    func traceAnswer() {
        switch outstanding {
        case .port where state.pointee.port_is_write == 0: tracePort()
        case .memoryMapped where currentFragment?.pointee.is_write == 0: traceMemoryMapped()
        default: break
        }
    }

    private func tracePort() {
        let count = state.pointee.port_count
        let port = UInt64(state.pointee.port_number)
        let direction = state.pointee.port_is_write != 0 ? "write" : "read"
        traceExit(
            "port \(direction) \(hex(port)) size \(state.pointee.port_size)"
                + (count > 1 ? " count \(count) first" : "") + " value \(hex(exitData(0)))", port: port)
    }

    private func traceMemoryMapped() {
        guard let fragment = currentFragment?.pointee else { return }
        let direction = fragment.is_write != 0 ? "write" : "read"
        traceExit(
            "memory \(direction) \(hex(fragment.address)) size \(fragment.size) value \(hex(exitData(0)))",
            address: fragment.address)
    }

    private func traceExit(_ text: String, address: UInt64? = nil, port: UInt64? = nil) {
        guard let trace = observation.trace else { return }
        let event = TraceEvent(
            kind: .exits, rip: state.pointee.rip, isUser: state.pointee.cpl == 3, address: address, port: port)
        if trace.wants(event), !trace.add(event, text) { endTrace() }
    }
}

extension martlet_trace_event {
    /// "#PF vector 14 error 0x7 cr2 0x1000".
    fileprivate var faultText: String {
        let name = exceptionName(UInt8(truncatingIfNeeded: vector))
        return "\(name) vector \(vector)" + (has_error != 0 ? " error \(hex(UInt64(error)))" : "")
            + " cr2 \(hex(address))"
    }

    /// "decoded 23 bytes, 6 instructions, 64-bit, physical 0x1000".
    fileprivate var blockText: String {
        let code = "\(bytes) bytes, \(instructions) instructions, \(16 << mode)-bit"
        return switch kind {
        case UInt32(MARTLET_TRACE_TRANSLATED): "translated \(code), host \(hex(host)) \(host_size) bytes"
        case UInt32(MARTLET_TRACE_ENTERED): "entered \(code)"
        default: "decoded \(code), physical \(hex(address))"
        }
    }
}
