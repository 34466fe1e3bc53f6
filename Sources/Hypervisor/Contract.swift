public import CHost
public import X86

/// What either engine can fail with, in KVM's terms: the call and the errno that KVM would return for it.
public struct HypervisorError: Error, Equatable, CustomStringConvertible {
    public var operation: String
    public var errorNumber: Int32
    public var detail: String

    public init(_ operation: String, errorNumber: Int32, detail: String = "") {
        self.operation = operation
        self.errorNumber = errorNumber
        self.detail = detail
    }

    public var description: String {
        detail.isEmpty ? "\(operation) failed (errno \(errorNumber))" : "\(operation) failed: \(detail)"
    }
}

/// `/dev/kvm` itself (KVM API §4, "System ioctls").
public protocol HypervisorSystem: Sendable {
    /// What `--verbose` calls this engine: `kvm` or `soft`.
    var name: String { get }

    /// KVM_GET_SUPPORTED_CPUID: the leaves that this engine can give a guest, KVM's paravirtual leaves included.
    func supportedCPUID() throws(HypervisorError) -> [kvm_cpuid_entry2]

    /// KVM_CREATE_VM.
    func createVirtualMachine() throws(HypervisorError) -> any VirtualMachine
}

/// A VM descriptor (KVM API §4, "VM ioctls"). All methods may be called from any thread.
public protocol VirtualMachine: AnyObject, Sendable {
    /// KVM_SET_USER_MEMORY_REGION. A size of 0 deletes the slot. The host memory must outlive the VM.
    func setUserMemoryRegion(_ region: kvm_userspace_memory_region) throws(HypervisorError)

    /// KVM_GET_DIRTY_LOG: one bit for each page of the slot, cleared by the call.
    func dirtyLog(slot: UInt32) throws(HypervisorError) -> [UInt64]

    /// KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR: three pages and one page below 4 GiB that hold no RAM.
    func setTSSAddress(_ address: UInt32) throws(HypervisorError)
    func setIdentityMapAddress(_ address: UInt64) throws(HypervisorError)

    /// The host wrote to guest memory while or after the guest ran (DMA). KVM sees that by itself.
    func noteMemoryWritten(at address: GuestPhysicalAddress, count: Int)
    /// Whether it need not be told: then others, the host's kernel among them, may write to guest memory, too.
    var seesMemoryWrites: Bool { get }

    /// KVM_CREATE_IRQCHIP: local APICs, I/O APIC (GSI 0–23) and the PIC pair (GSI 0–15), wired as on a PC.
    func createIRQChip() throws(HypervisorError)

    /// KVM_CREATE_PIT2. With `speakerDummy`, port 0x61 is handled by the engine too.
    func createPIT(speakerDummy: Bool) throws(HypervisorError)

    /// KVM_CREATE_VCPU. The initial APIC ID is `id`.
    func createVirtualCPU(id: Int) throws(HypervisorError) -> any VirtualCPU

    /// KVM_IRQ_LINE.
    func setIRQLine(_ gsi: GSI, level: Bool) throws(HypervisorError)

    /// KVM_SIGNAL_MSI.
    func signalMSI(_ message: kvm_msi) throws(HypervisorError)

    /// KVM_SET_GSI_ROUTING: the whole table, which replaces the one before it. GSIs from 24 on are free for messages; the
    /// others have to be in it too (`GSIRoute.standard`).
    func setGSIRouting(_ routes: [GSIRoute]) throws(HypervisorError)

    /// KVM_IRQFD: from now on a signal of the eventfd is an edge of the GSI, without a call; or no longer.
    func setIRQEvent(_ descriptor: Int32, gsi: GSI, isAssigned: Bool) throws(HypervisorError)

    /// Whether a signal of an IRQ event's eventfd reaches the guest in the signalling thread. Otherwise a thread of the
    /// engine waits for it, and `signalMSI` is the shorter way.
    var takesIRQEventsDirectly: Bool { get }

    /// KVM_IOEVENTFD: from now on a guest's matching write signals an eventfd and is no exit; or no longer. ENOTSUP where
    /// devices must not do anything while the guest runs (`writesOnlyInExits`).
    func setIOEvent(_ event: IOEvent, isAssigned: Bool) throws(HypervisorError)

    /// Whether devices may write to guest memory only while they answer an exit (the software engine in lockstep).
    var writesOnlyInExits: Bool { get }

    /// KVM_GET_IRQCHIP / KVM_SET_IRQCHIP, KVM_GET_PIT2 / KVM_SET_PIT2, KVM_GET_CLOCK / KVM_SET_CLOCK.
    func irqChip(id: UInt32) throws(HypervisorError) -> kvm_irqchip
    func setIRQChip(_ chip: kvm_irqchip) throws(HypervisorError)
    func pitState() throws(HypervisorError) -> kvm_pit_state2
    func setPITState(_ state: kvm_pit_state2) throws(HypervisorError)
    func clock() throws(HypervisorError) -> kvm_clock_data
    func setClock(_ clock: kvm_clock_data) throws(HypervisorError)
}

/// Why KVM_RUN returned (struct kvm_run's exit_reason). Port and memory-mapped accesses are answered before the next
/// `run()`: reads by `VirtualCPU.setExitData`, writes by `VirtualCPU.exitData`.
public enum VirtualCPUExit: Equatable, Sendable {
    /// KVM_EXIT_IO: `count` accesses of `size` (1, 2 or 4) bytes at one port.
    case io(port: IOPort, size: Int, count: Int, isWrite: Bool)
    /// KVM_EXIT_MMIO: one access of 1–8 bytes.
    case mmio(address: GuestPhysicalAddress, size: Int, isWrite: Bool)
    /// KVM_EXIT_HLT: only without an in-engine irqchip.
    case halt
    /// KVM_EXIT_SHUTDOWN: triple fault.
    case shutdown
    /// KVM_EXIT_INTR: a signal, or `requestExit()`.
    case interrupted
    /// KVM_EXIT_IRQ_WINDOW_OPEN.
    case interruptWindowOpen
    /// KVM_EXIT_DEBUG.
    case debug
    /// KVM_EXIT_FAIL_ENTRY.
    case failEntry(reason: UInt64)
    /// KVM_EXIT_INTERNAL_ERROR: suberror 1 is KVM_INTERNAL_ERROR_EMULATION; `instruction` has the bytes where known.
    case internalError(suberror: UInt32, instruction: [UInt8])
    /// KVM_EXIT_SYSTEM_EVENT.
    case systemEvent(type: UInt32)
    /// No exit of KVM's: the software engine in lockstep found that its two ways of executing differ. It cannot go on.
    case difference(report: String)
    /// Any other reason, by its number.
    case other(reason: UInt32)
}

/// A vCPU descriptor (KVM API §4, "vcpu ioctls"). Everything except `requestExit()` belongs to one thread at a time.
public protocol VirtualCPU: AnyObject {
    /// KVM_RUN.
    func run() throws(HypervisorError) -> VirtualCPUExit

    /// Makes the current or next `run()` return `.interrupted` soon; callable from any thread and signal-safe below.
    func requestExit()

    /// The data of the last `.io` exit's access number `index`, or of the last `.mmio` exit (index 0), little-endian in
    /// the low bytes.
    func exitData(_ index: Int) -> UInt64
    func setExitData(_ value: UInt64, at index: Int)

    /// KVM_GET_REGS … KVM_SET_MP_STATE, one pair each.
    func registers() throws(HypervisorError) -> kvm_regs
    func setRegisters(_ registers: kvm_regs) throws(HypervisorError)
    func specialRegisters() throws(HypervisorError) -> kvm_sregs
    func setSpecialRegisters(_ registers: kvm_sregs) throws(HypervisorError)
    func fpu() throws(HypervisorError) -> kvm_fpu
    func setFPU(_ fpu: kvm_fpu) throws(HypervisorError)
    /// KVM_GET_XSAVE2 and KVM_SET_XSAVE: a standard-format XSAVE area (SDM vol. 1 §13.4) of at least 4096 bytes, its
    /// components where the engine's CPUID leaf 0DH has them.
    func extendedState() throws(HypervisorError) -> [UInt8]
    func setExtendedState(_ area: [UInt8]) throws(HypervisorError)
    /// KVM_GET_XCRS and KVM_SET_XCRS.
    func extendedControlRegisters() throws(HypervisorError) -> [kvm_xcr]
    func setExtendedControlRegisters(_ registers: [kvm_xcr]) throws(HypervisorError)
    func modelSpecificRegisters(_ indices: [UInt32]) throws(HypervisorError) -> [kvm_msr_entry]
    func setModelSpecificRegisters(_ entries: [kvm_msr_entry]) throws(HypervisorError)
    func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(HypervisorError)
    func localAPIC() throws(HypervisorError) -> kvm_lapic_state
    func setLocalAPIC(_ state: kvm_lapic_state) throws(HypervisorError)
    func events() throws(HypervisorError) -> kvm_vcpu_events
    func setEvents(_ events: kvm_vcpu_events) throws(HypervisorError)
    func debugRegisters() throws(HypervisorError) -> kvm_debugregs
    func setDebugRegisters(_ registers: kvm_debugregs) throws(HypervisorError)
    func multiprocessingState() throws(HypervisorError) -> UInt32
    func setMultiprocessingState(_ state: UInt32) throws(HypervisorError)

    /// KVM_INTERRUPT: only without an in-engine irqchip.
    func injectInterrupt(vector: UInt8) throws(HypervisorError)
    /// kvm_run.request_interrupt_window and kvm_run.ready_for_interrupt_injection.
    func setInterruptWindowRequested(_ requested: Bool)
    var isReadyForInterruptInjection: Bool { get }

    /// Statistics and the last exception that the engine delivered, where it can know: for messages, not for logic.
    var lastException: LastException? { get }
    var instructionCount: UInt64? { get }

    /// What only the end of a run shows, and takes long to find: a report of what the engine did wrong. KVM knows of
    /// nothing; the software engine in lockstep compares all of guest memory.
    func finalReport() -> String?
}

extension VirtualMachine {
    public var writesOnlyInExits: Bool { false }
    public var takesIRQEventsDirectly: Bool { false }
    public var seesMemoryWrites: Bool { false }

    public func noteMemoryWritten(at address: GuestPhysicalAddress, count: Int) {}
}

extension VirtualCPU {
    public func finalReport() -> String? { nil }
}

/// The last exception an engine delivered to its guest.
public struct LastException: Equatable, Sendable {
    public var vector: UInt8
    public var errorCode: UInt32?
    public var rip: UInt64
    public var cr2: UInt64

    public init(vector: UInt8, errorCode: UInt32?, rip: UInt64, cr2: UInt64) {
        self.vector = vector
        self.errorCode = errorCode
        self.rip = rip
        self.cr2 = cr2
    }
}
