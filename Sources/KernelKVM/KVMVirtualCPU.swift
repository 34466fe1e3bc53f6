internal import CHost
internal import Glibc
internal import Host
internal import Hypervisor
internal import Synchronization
internal import X86

/// A vCPU of the host kernel: its descriptor and the kvm_run area that it shares with the kernel.
final class KVMVirtualCPU: VirtualCPU {
    private let descriptor: KVMDescriptor
    /// Shared with the kernel, which writes it only inside KVM_RUN; unmapped when this object goes.
    private let area: UnsafeMutableRawPointer
    private let size: Int
    private let extendedStateSize: Int
    /// The thread inside `run()`, or 0: whom `requestExit` has to kick.
    private let runningThread = Atomic<Int32>(0)
    private let isExitRequested = Atomic<Bool>(false)

    private var shared: UnsafeMutablePointer<kvm_run> { area.assumingMemoryBound(to: kvm_run.self) }

    /// `extendedStateSize` is what KVM_CAP_XSAVE2 says: 0 where the kernel does not have it.
    init(descriptor: KVMDescriptor, runSize: Int, extendedStateSize: Int) throws(HypervisorError) {
        let minimum = MemoryLayout<kvm_run>.size
        guard runSize >= minimum else { throw HypervisorError("KVM_GET_VCPU_MMAP_SIZE", errorNumber: EINVAL) }
        let address = mmap(nil, runSize, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.rawValue, 0)
        guard let address, address != MAP_FAILED else {
            throw HypervisorError("Mapping kvm_run", errorNumber: errno)
        }
        self.descriptor = descriptor
        area = address
        size = runSize
        self.extendedStateSize = extendedStateSize
    }

    deinit { munmap(area, size) }

    // MARK: Running

    func run() throws(HypervisorError) -> VirtualCPUExit {
        let thread = ThreadID.current
        runningThread.store(thread.rawValue, ordering: .sequentiallyConsistent)
        // A request from before the store above finds no thread to kick; the flag says what it wanted. One from after
        // it kicks us: immediate_exit makes the kernel look at that before it enters the guest (KVM API §5).
        if isExitRequested.load(ordering: .sequentiallyConsistent) { setImmediateExit(1) }
        let result = host_ioctl_value(descriptor.rawValue, kvm_ioctl_run, 0)
        runningThread.store(0, ordering: .sequentiallyConsistent)
        // EAGAIN: a vCPU that waited for INIT or SIPI was woken; it wants to run again.
        if result == Int(-EAGAIN) { return .interrupted }
        if result == Int(-EINTR) {
            isExitRequested.store(false, ordering: .sequentiallyConsistent)
            setImmediateExit(0)
            return .interrupted
        }
        guard result >= 0 else {
            let error = HostError("KVM_RUN", errorNumber: Int32(truncatingIfNeeded: -result))
            throw HypervisorError("KVM_RUN", errorNumber: error.errorNumber, detail: error.reason)
        }
        return decodeExit()
    }

    func requestExit() {
        isExitRequested.store(true, ordering: .sequentiallyConsistent)
        setImmediateExit(1)
        let thread = runningThread.load(ordering: .sequentiallyConsistent)
        if thread != 0 { ThreadID(rawValue: thread).kick() }
    }

    /// One byte that any thread may set: a plain store, which the kernel reads when it enters the guest.
    private func setImmediateExit(_ value: UInt8) { shared.pointee.immediate_exit = value }

    private func decodeExit() -> VirtualCPUExit {
        switch Int32(bitPattern: shared.pointee.exit_reason) {
        case KVM_EXIT_IO:
            .io(
                port: IOPort(kvm_run_io_port(shared)), size: Int(kvm_run_io_size(shared)),
                count: Int(kvm_run_io_count(shared)), isWrite: kvm_run_io_is_write(shared) != 0)
        case KVM_EXIT_MMIO:
            .mmio(
                address: GuestPhysicalAddress(kvm_run_mmio_address(shared)), size: Int(kvm_run_mmio_length(shared)),
                isWrite: kvm_run_mmio_is_write(shared) != 0)
        case KVM_EXIT_HLT: .halt
        case KVM_EXIT_SHUTDOWN: .shutdown
        case KVM_EXIT_INTR: .interrupted
        case KVM_EXIT_IRQ_WINDOW_OPEN: .interruptWindowOpen
        case KVM_EXIT_DEBUG: .debug
        case KVM_EXIT_FAIL_ENTRY: .failEntry(reason: kvm_run_fail_entry_reason(shared))
        case KVM_EXIT_INTERNAL_ERROR: internalError()
        case KVM_EXIT_SYSTEM_EVENT: .systemEvent(type: kvm_run_system_event_type(shared))
        default: .other(reason: shared.pointee.exit_reason)
        }
    }

    private func internalError() -> VirtualCPUExit {
        var instruction = [UInt8](repeating: 0, count: 15)
        let count = kvm_run_failed_instruction(shared, &instruction)
        return .internalError(
            suberror: kvm_run_internal_suberror(shared), instruction: Array(instruction.prefix(Int(count))))
    }

    // MARK: The data of an exit

    /// Where access number `index` of the last exit has its data, and how many bytes; nil where there is no such one.
    private func dataLocation(_ index: Int) -> (address: UnsafeMutableRawPointer, size: Int)? {
        switch Int32(bitPattern: shared.pointee.exit_reason) {
        case KVM_EXIT_IO:
            let width = Int(kvm_run_io_size(shared))
            guard (0..<Int(kvm_run_io_count(shared))).contains(index) else { return nil }
            let offset = Int(clamping: kvm_run_io_data_offset(shared)) &+ index * width
            guard width <= 8, offset >= 0, offset <= size - width else { return nil }
            return (area + offset, width)
        case KVM_EXIT_MMIO where index == 0:
            return (UnsafeMutableRawPointer(kvm_run_mmio_data(shared)), min(Int(kvm_run_mmio_length(shared)), 8))
        default: return nil
        }
    }

    func exitData(_ index: Int) -> UInt64 {
        guard let (address, size) = dataLocation(index) else { return 0 }
        var value: UInt64 = 0
        memcpy(&value, address, size)
        return value
    }

    func setExitData(_ value: UInt64, at index: Int) {
        guard let (address, size) = dataLocation(index) else { return }
        var value = value
        memcpy(address, &value, size)
    }

    // MARK: State

    func registers() throws(HypervisorError) -> kvm_regs {
        try descriptor.get("KVM_GET_REGS", kvm_ioctl_get_regs, into: kvm_regs())
    }

    func setRegisters(_ registers: kvm_regs) throws(HypervisorError) {
        try descriptor.call("KVM_SET_REGS", kvm_ioctl_set_regs, with: registers)
    }

    func specialRegisters() throws(HypervisorError) -> kvm_sregs {
        try descriptor.get("KVM_GET_SREGS", kvm_ioctl_get_sregs, into: kvm_sregs())
    }

    func setSpecialRegisters(_ registers: kvm_sregs) throws(HypervisorError) {
        try descriptor.call("KVM_SET_SREGS", kvm_ioctl_set_sregs, with: registers)
    }

    func fpu() throws(HypervisorError) -> kvm_fpu {
        try descriptor.get("KVM_GET_FPU", kvm_ioctl_get_fpu, into: kvm_fpu())
    }

    func setFPU(_ fpu: kvm_fpu) throws(HypervisorError) {
        try descriptor.call("KVM_SET_FPU", kvm_ioctl_set_fpu, with: fpu)
    }

    func extendedState() throws(HypervisorError) -> [UInt8] {
        let size = max(extendedStateSize, MemoryLayout<kvm_xsave>.size)
        let area = [UInt8](repeating: 0, count: size)
        return extendedStateSize > 0
            ? try descriptor.call("KVM_GET_XSAVE2", kvm_ioctl_get_xsave2, bytes: area)
            : try descriptor.call("KVM_GET_XSAVE", kvm_ioctl_get_xsave, bytes: area)
    }

    func setExtendedState(_ area: [UInt8]) throws(HypervisorError) {
        let size = max(extendedStateSize, MemoryLayout<kvm_xsave>.size)
        guard area.count >= size else {
            throw HypervisorError(
                "KVM_SET_XSAVE", errorNumber: EINVAL, detail: "an XSAVE area of \(area.count) bytes is too short")
        }
        try descriptor.call("KVM_SET_XSAVE", kvm_ioctl_set_xsave, bytes: area)
    }

    func extendedControlRegisters() throws(HypervisorError) -> [kvm_xcr] {
        var registers = try descriptor.get("KVM_GET_XCRS", kvm_ioctl_get_xcrs, into: kvm_xcrs())
        let count = min(Int(registers.nr_xcrs), Int(KVM_MAX_XCRS))
        return (0..<count).map { kvm_xcrs_entries(&registers)[$0] }
    }

    func setExtendedControlRegisters(_ entries: [kvm_xcr]) throws(HypervisorError) {
        guard entries.count <= Int(KVM_MAX_XCRS) else {
            throw HypervisorError("KVM_SET_XCRS", errorNumber: EINVAL, detail: "at most \(KVM_MAX_XCRS) registers")
        }
        var registers = kvm_xcrs()
        registers.nr_xcrs = UInt32(entries.count)
        for (index, entry) in entries.enumerated() { kvm_xcrs_entries(&registers)[index] = entry }
        try descriptor.call("KVM_SET_XCRS", kvm_ioctl_set_xcrs, with: registers)
    }

    func modelSpecificRegisters(_ indices: [UInt32]) throws(HypervisorError) -> [kvm_msr_entry] {
        let entries = indices.map { kvm_msr_entry(index: $0, reserved: 0, data: 0) }
        let answer = try descriptor.callWithEntries(
            "KVM_GET_MSRS", kvm_ioctl_get_msrs, header: KVMEntriesHeader(count: UInt32(clamping: entries.count)),
            entries: entries)
        try checkAllDone("KVM_GET_MSRS", done: answer.result, entries)
        return answer.entries
    }

    func setModelSpecificRegisters(_ entries: [kvm_msr_entry]) throws(HypervisorError) {
        let answer = try descriptor.callWithEntries(
            "KVM_SET_MSRS", kvm_ioctl_set_msrs, header: KVMEntriesHeader(count: UInt32(clamping: entries.count)),
            entries: entries)
        try checkAllDone("KVM_SET_MSRS", done: answer.result, entries)
    }

    /// KVM stops at the first MSR that it does not take and says how many it did (KVM API §4.18).
    private func checkAllDone(_ operation: String, done: Int, _ entries: [kvm_msr_entry]) throws(HypervisorError) {
        guard done < entries.count else { return }
        let index = String(entries[max(done, 0)].index, radix: 16)
        throw HypervisorError(operation, errorNumber: EINVAL, detail: "the host's KVM does not take MSR 0x\(index)")
    }

    func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(HypervisorError) {
        _ = try descriptor.callWithEntries(
            "KVM_SET_CPUID2", kvm_ioctl_set_cpuid2, header: KVMEntriesHeader(count: UInt32(clamping: entries.count)),
            entries: entries)
    }

    func localAPIC() throws(HypervisorError) -> kvm_lapic_state {
        try descriptor.get("KVM_GET_LAPIC", kvm_ioctl_get_lapic, into: kvm_lapic_state())
    }

    func setLocalAPIC(_ state: kvm_lapic_state) throws(HypervisorError) {
        try descriptor.call("KVM_SET_LAPIC", kvm_ioctl_set_lapic, with: state)
    }

    func events() throws(HypervisorError) -> kvm_vcpu_events {
        try descriptor.get("KVM_GET_VCPU_EVENTS", kvm_ioctl_get_vcpu_events, into: kvm_vcpu_events())
    }

    func setEvents(_ events: kvm_vcpu_events) throws(HypervisorError) {
        try descriptor.call("KVM_SET_VCPU_EVENTS", kvm_ioctl_set_vcpu_events, with: events)
    }

    func debugRegisters() throws(HypervisorError) -> kvm_debugregs {
        try descriptor.get("KVM_GET_DEBUGREGS", kvm_ioctl_get_debugregs, into: kvm_debugregs())
    }

    func setDebugRegisters(_ registers: kvm_debugregs) throws(HypervisorError) {
        try descriptor.call("KVM_SET_DEBUGREGS", kvm_ioctl_set_debugregs, with: registers)
    }

    func multiprocessingState() throws(HypervisorError) -> UInt32 {
        try descriptor.get("KVM_GET_MP_STATE", kvm_ioctl_get_mp_state, into: kvm_mp_state()).mp_state
    }

    func setMultiprocessingState(_ state: UInt32) throws(HypervisorError) {
        try descriptor.call("KVM_SET_MP_STATE", kvm_ioctl_set_mp_state, with: kvm_mp_state(mp_state: state))
    }

    // MARK: Interrupts without an irqchip

    func injectInterrupt(vector: UInt8) throws(HypervisorError) {
        try descriptor.call("KVM_INTERRUPT", kvm_ioctl_interrupt, with: kvm_interrupt(irq: UInt32(vector)))
    }

    func setInterruptWindowRequested(_ requested: Bool) {
        shared.pointee.request_interrupt_window = requested ? 1 : 0
    }

    var isReadyForInterruptInjection: Bool { shared.pointee.ready_for_interrupt_injection != 0 }

    // MARK: What the kernel does not tell

    var lastException: LastException? { nil }
    var instructionCount: UInt64? { nil }
}
