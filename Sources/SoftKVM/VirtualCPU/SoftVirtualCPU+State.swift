public import CHost
internal import CPU
internal import Glibc
public import Hypervisor
internal import Synchronization

/// KVM_GET_… and KVM_SET_…, one pair each.
extension SoftVirtualCPU {
    /// The processor, out of reach of other threads.
    private func withProcessor<Result: Sendable>(_ body: (Processor) -> Result) -> Result {
        core.execution.withLock { _ in body(processor) }
    }

    /// The same, for changes: the run loop looks at everything again.
    private func change<Result: Sendable>(_ body: (Processor) -> Result) -> Result {
        mustLook = true
        return withProcessor(body)
    }

    public func registers() throws(HypervisorError) -> kvm_regs { withProcessor { $0.registers } }

    public func setRegisters(_ registers: kvm_regs) throws(HypervisorError) {
        change { processor in
            if registers.rip != state.pointee.rip { forgetOutstanding() }
            processor.registers = registers
        }
    }

    public func specialRegisters() throws(HypervisorError) -> kvm_sregs {
        withProcessor { processor in
            reflectAPIC()
            var registers = processor.specialRegisters
            registers.interrupt_bitmap = interruptBitmap
            return registers
        }
    }

    private typealias InterruptBitmap = (UInt64, UInt64, UInt64, UInt64)

    private var interruptBitmap: InterruptBitmap {
        var bitmap: InterruptBitmap = (0, 0, 0, 0)
        guard let vector = queuedInterrupt else { return bitmap }
        let bit = UInt64(1) << UInt64(vector & 63)
        switch vector >> 6 {
        case 0: bitmap.0 = bit
        case 1: bitmap.1 = bit
        case 2: bitmap.2 = bit
        default: bitmap.3 = bit
        }
        return bitmap
    }

    public func setSpecialRegisters(_ registers: kvm_sregs) throws(HypervisorError) {
        let (index, base) = (index, registers.apic_base)
        let priority = UInt8(truncatingIfNeeded: (registers.cr8 & 15) << 4)
        let bitmap = registers.interrupt_bitmap
        change { processor in
            processor.specialRegisters = registers
            machine.withFabric { fabric in
                if fabric.apics[index].base != base { fabric.apics[index].forceBase(base) }
                fabric.apics[index].setTaskPriority(priority)
                fabric.timersChanged = true
            }
            reflectAPIC()
            for (number, word) in [bitmap.0, bitmap.1, bitmap.2, bitmap.3].enumerated() where word != 0 {
                queuedInterrupt = UInt8(truncatingIfNeeded: number * 64 + word.trailingZeroBitCount)
                break
            }
        }
    }

    public func fpu() throws(HypervisorError) -> kvm_fpu { withProcessor { $0.fpu } }

    public func setFPU(_ fpu: kvm_fpu) throws(HypervisorError) { change { $0.fpu = fpu } }

    public func extendedState() throws(HypervisorError) -> [UInt8] { withProcessor { $0.extendedState() } }

    public func setExtendedState(_ area: [UInt8]) throws(HypervisorError) {
        guard let refusal = change({ $0.setExtendedState(area) }) else { return }
        let reason =
            switch refusal {
            case .tooShort(let count): "an XSAVE area of \(count) bytes is too short"
            case .unsupportedComponents(let bits):
                "the software engine does not have the state components 0x\(String(bits, radix: 16)) of this XSAVE area"
            case .reservedBits: "reserved bits of this XSAVE area are set"
            }
        throw HypervisorError("KVM_SET_XSAVE", errorNumber: EINVAL, detail: reason)
    }

    public func extendedControlRegisters() throws(HypervisorError) -> [kvm_xcr] {
        [kvm_xcr(xcr: 0, reserved: 0, value: withProcessor { $0.extendedControl })]
    }

    /// As KVM does it: registers other than XCR0 are passed over.
    public func setExtendedControlRegisters(_ registers: [kvm_xcr]) throws(HypervisorError) {
        for register in registers where register.xcr == 0 {
            guard change({ $0.setExtendedControl(register.value) }) else {
                throw HypervisorError(
                    "KVM_SET_XCRS", errorNumber: EINVAL,
                    detail: "the software engine does not take XCR0 = 0x\(String(register.value, radix: 16))")
            }
        }
    }

    // MARK: MSRs and CPUID

    public func modelSpecificRegisters(_ indices: [UInt32]) throws(HypervisorError) -> [kvm_msr_entry] {
        var entries: [kvm_msr_entry] = []
        for index in indices {
            let value = withProcessor { processor in
                EngineRegister.contains(index) ? readEngineRegister(index) : processor.readMSR(index)
            }
            guard let value else { throw refused("KVM_GET_MSRS", index) }
            entries.append(kvm_msr_entry(index: index, reserved: 0, data: value))
        }
        return entries
    }

    public func setModelSpecificRegisters(_ entries: [kvm_msr_entry]) throws(HypervisorError) {
        for entry in entries {
            let isTaken = change { processor in
                writeEngineRegister(entry.index, entry.data, fromGuest: false)
                    ?? writeTimestampRegister(entry.index, entry.data)
                    ?? processor.writeMSR(entry.index, entry.data)
            }
            guard isTaken else { throw refused("KVM_SET_MSRS", entry.index) }
        }
    }

    /// User space moves the counter and the guest's adjustment of it independently of each other, as on KVM: a guest
    /// that goes on elsewhere must find the adjustment that it made. nil: another register.
    private func writeTimestampRegister(_ index: UInt32, _ value: UInt64) -> Bool? {
        let adjustment = state.pointee.tsc_offset &- processor.tscOffsetBase
        switch index {
        case EngineRegister.tsc:
            guard processor.writeMSR(index, value) else { return false }
            processor.tscOffsetBase = state.pointee.tsc_offset &- adjustment
        case EngineRegister.tscAdjust: processor.tscOffsetBase = state.pointee.tsc_offset &- value
        default: return nil
        }
        return true
    }

    private func refused(_ operation: String, _ index: UInt32) -> HypervisorError {
        HypervisorError(
            operation, errorNumber: EINVAL,
            detail: "the software engine does not take MSR 0x\(String(index, radix: 16)) with this value")
    }

    public func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(HypervisorError) {
        change { $0.setCPUID(entries) }
    }

    // MARK: Local APIC

    public func localAPIC() throws(HypervisorError) -> kvm_lapic_state {
        guard hasIRQChip else { throw noLocalAPIC("KVM_GET_LAPIC") }
        let (index, now) = (index, TimestampCounter.now)
        return machine.withFabric { fabric in
            fabric.advance(to: now)
            return fabric.apics[index].savedState(at: now)
        }
    }

    public func setLocalAPIC(_ state: kvm_lapic_state) throws(HypervisorError) {
        guard hasIRQChip else { throw noLocalAPIC("KVM_SET_LAPIC") }
        let (index, now) = (index, TimestampCounter.now)
        machine.withFabric { fabric in
            fabric.apics[index].restore(state, at: now)
            fabric.timersChanged = true
        }
        change { _ in reflectAPIC() }
    }

    private func noLocalAPIC(_ operation: String) -> HypervisorError {
        HypervisorError(operation, errorNumber: EINVAL, detail: "there is no irqchip")
    }

    // MARK: Events

    public func events() throws(HypervisorError) -> kvm_vcpu_events {
        var events = kvm_vcpu_events()
        if let vector = queuedInterrupt {
            events.interrupt.injected = 1
            events.interrupt.nr = vector
        }
        // KVM_X86_SHADOW_INT_STI: which of the two shadows it is makes no difference to software.
        events.interrupt.shadow = state.pointee.interrupt_shadow != 0 ? 2 : 0
        let index = index
        let (hasNMI, startUp, isInitialized) = machine.withFabric { fabric in
            (
                fabric.apics[index].isNMIPending, fabric.apics[index].startUpVector,
                fabric.apics[index].isInitializationPending
            )
        }
        events.nmi.pending = hasNMI || state.pointee.nmi_pending != 0 ? 1 : 0
        events.nmi.masked = state.pointee.nmi_blocked
        events.sipi_vector = UInt32(startUp ?? 0)
        events.smi.latched_init = isInitialized ? 1 : 0
        events.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW)
        return events
    }

    public func setEvents(_ events: kvm_vcpu_events) throws(HypervisorError) {
        guard events.exception.injected == 0, events.exception.pending == 0 else {
            throw HypervisorError(
                "KVM_SET_VCPU_EVENTS", errorNumber: EINVAL,
                detail: "the software engine delivers exceptions at once and cannot take a pending one")
        }
        change { _ in
            queuedInterrupt = events.interrupt.injected != 0 ? events.interrupt.nr : nil
            if events.flags & UInt32(KVM_VCPUEVENT_VALID_SHADOW) != 0 {
                state.pointee.interrupt_shadow = events.interrupt.shadow != 0 ? 1 : 0
            }
            if events.flags & UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING) != 0 {
                state.pointee.nmi_pending = events.nmi.pending != 0 ? 1 : 0
            }
            state.pointee.nmi_blocked = events.nmi.masked != 0 ? 1 : 0
        }
        guard events.flags & UInt32(KVM_VCPUEVENT_VALID_SIPI_VECTOR) != 0 else { return }
        let (index, vector) = (index, UInt8(truncatingIfNeeded: events.sipi_vector))
        machine.withFabric { $0.apics[index].startUpVector = vector }
    }

    public func debugRegisters() throws(HypervisorError) -> kvm_debugregs {
        withProcessor { _ in
            var registers = kvm_debugregs()
            let values = state.pointee.debug_registers
            registers.db = (values.0, values.1, values.2, values.3)
            registers.dr6 = values.6
            registers.dr7 = values.7
            return registers
        }
    }

    public func setDebugRegisters(_ registers: kvm_debugregs) throws(HypervisorError) {
        // SDM vol. 3B §18.2.3, §18.2.4: the upper halves are reserved.
        guard registers.flags == 0, registers.dr6 >> 32 == 0, registers.dr7 >> 32 == 0 else {
            throw HypervisorError("KVM_SET_DEBUGREGS", errorNumber: EINVAL)
        }
        change { $0.setDebugRegisters(registers.db, dr6: registers.dr6, dr7: registers.dr7) }
    }

    public func multiprocessingState() throws(HypervisorError) -> UInt32 { multiprocessing }

    public func setMultiprocessingState(_ state: UInt32) throws(HypervisorError) {
        let known = [
            KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_HALTED,
        ]
        let isKnown = known.contains { UInt32($0) == state }
        // Without an irqchip nothing could wake it (as KVM).
        guard isKnown, hasIRQChip || state == UInt32(KVM_MP_STATE_RUNNABLE) else {
            throw HypervisorError("KVM_SET_MP_STATE", errorNumber: EINVAL, detail: "state \(state)")
        }
        multiprocessing = state
        mustLook = true
    }
}
