internal import CHost
internal import CPU
internal import Glibc
public import Hypervisor
internal import Synchronization
internal import X86

/// A vCPU of the software engine: the run loop around a `Processor`.
public final class SoftVirtualCPU: VirtualCPU, @unchecked Sendable {
    // SAFETY: `requestExit` touches only the core's atomics; everything else belongs to one thread at a time (the
    // contract), and the processor in it is used under the core's `execution` lock.
    let core: VirtualCPUCore
    let index: Int
    let machine: MachineCore
    /// It cannot come once there are vCPUs.
    let hasIRQChip: Bool
    /// Kept running for as long as there is a vCPU, also when the VM's own descriptor is gone (as KVM's file).
    private let timerThread: TimerThread?

    /// KVM_MP_STATE_*.
    var multiprocessing: UInt32
    /// The exit that user space has to answer before the next entry.
    var outstanding = Outstanding.nothing
    /// KVM_INTERRUPT, or one that was being delivered when the state was saved.
    var queuedInterrupt: UInt8?
    var wantsWindow = false
    /// Look at the interrupt controllers before the next entry even without attention.
    var mustLook = true
    /// The local APIC's MMIO page; an address that nothing has where there is none.
    var apicPage = noPage
    var guestClock = GuestClock()
    var ioEvents = IOEventTable.View()
    var counters = VirtualCPUStatistics()
    let observation: Observation
    /// Cleared at the trace's end.
    var tracesExits: Bool

    static let noPage = UInt64.max - 0xfff

    enum Outstanding: Equatable {
        case nothing
        case port
        case memoryMapped
    }

    private enum Step: Sendable {
        case exit(VirtualCPUExit)
        case sleep(until: UInt64?)
        case yield
        case again
    }

    var processor: Processor { core.processor }
    var state: UnsafeMutablePointer<martlet_cpu> { core.state }

    init(
        core: VirtualCPUCore, index: Int, machine: MachineCore, timerThread: TimerThread?, observation: Observation
    ) {
        self.observation = observation
        tracesExits = observation.trace?.wants(.exits) ?? false
        self.timerThread = timerThread
        self.core = core
        self.index = index
        self.machine = machine
        hasIRQChip = machine.withFabric { $0.isPresent }
        // Application processors wait for INIT and SIPI (SDM vol. 3A §9.4); without an irqchip nobody could send them.
        multiprocessing =
            hasIRQChip && core.id != 0 ? UInt32(KVM_MP_STATE_UNINITIALIZED) : UInt32(KVM_MP_STATE_RUNNABLE)
        state.pointee.tsc_offset = 0 &- machine.firstTSC
        // What IA32_TSC_ADJUST counts from.
        processor.tscOffsetBase = state.pointee.tsc_offset
        _ = guestClock.noteTSCOffset(state.pointee.tsc_offset)
        installHooks()
        installTrace()
        reflectAPIC()
    }

    deinit { core.removeHooks() }

    // MARK: The run loop

    public func run() throws(HypervisorError) -> VirtualCPUExit {
        try startProfile()
        martlet_set_activity(state, UInt32(MARTLET_AT_ENGINE))
        defer { martlet_set_activity(state, UInt32(MARTLET_AT_OUTSIDE)) }
        answerOutstanding()
        while true {
            switch core.execution.withLock({ _ in advance() }) {
            case .exit(let exit):
                count(exit)
                noteLeaving(exit)
                return exit
            case .sleep(let deadline): sleep(until: deadline)
            case .yield: core.yieldToVisitors()
            case .again: break
            }
        }
    }

    public func requestExit() { core.requestExit() }

    private func advance() -> Step {
        if mustLook || martlet_attention(state) != 0, let step = lookAround() { return step }
        return enterGuest()
    }

    /// Attention is cleared first, then every source of requests is looked at: what comes later sets it again.
    private func lookAround() -> Step? {
        martlet_clear_attention(state)
        counters.attentions &+= 1
        mustLook = true
        if core.hasVisitors { return .yield }
        if core.hasExitRequest { return stopForRequest() }
        mustLook = false
        let tscMoved = guestClock.noteTSCOffset(state.pointee.tsc_offset)
        if core.clockIsStale.exchange(false, ordering: .sequentiallyConsistent) || tscMoved { writeGuestClock() }

        let now = TimestampCounter.now
        let (index, tscOffset) = (index, state.pointee.tsc_offset)
        let events = machine.withFabric { fabric in
            fabric.advance(to: now)
            fabric.apics[index].timer.setTSCOffset(tscOffset, at: now)
            return fabric.takeEvents(for: index)
        }
        take(events)
        if let deadline = idleDeadline(events) {
            mustLook = true
            return .sleep(until: deadline == .max ? nil : deadline)
        }
        multiprocessing = UInt32(KVM_MP_STATE_RUNNABLE)
        offerInterrupt(isPending: events.hasInterrupt)
        return nil
    }

    /// KVM completes an access that user space has answered before it returns for a request, so that the registers
    /// seen then are between instructions. The processor runs an answered instruction alone; attention ends it there.
    private func stopForRequest() -> Step {
        if state.pointee.port_answered != 0 || state.pointee.mmio_count != 0 {
            martlet_request_attention(state)
            state.pointee.window_requested = 0
            let nmi = state.pointee.nmi_pending
            state.pointee.nmi_pending = 0
            let step = enterGuest()
            if nmi != 0 { state.pointee.nmi_pending = 1 }
            guard case .again = step else { return step }
        }
        _ = core.takeExitRequest()
        return .exit(.interrupted)
    }

    /// INIT, SIPI and NMI.
    private func take(_ events: InterruptFabric.Events) {
        if events.isInitialized { initializeProcessor() }
        if let vector = events.startUpVector, multiprocessing == UInt32(KVM_MP_STATE_INIT_RECEIVED) {
            startProcessor(vector)
        }
        if events.hasNMI { state.pointee.nmi_pending = 1 }
    }

    /// How long there is nothing to do: nil for a vCPU that runs.
    private func idleDeadline(_ events: InterruptFabric.Events) -> UInt64? {
        switch Int32(bitPattern: multiprocessing) {
        case KVM_MP_STATE_RUNNABLE: return nil
        case KVM_MP_STATE_HALTED:
            let hasNMI = state.pointee.nmi_pending != 0 && state.pointee.nmi_blocked == 0
            let hasInterrupt = (events.hasInterrupt || queuedInterrupt != nil) && processor.canAcceptInterrupt
            return hasNMI || hasInterrupt ? nil : events.nextDeadline
        default: return .max
        }
    }

    /// Gives the processor an interrupt, or asks it to say when it can take one.
    private func offerInterrupt(isPending: Bool) {
        let hasNMI = state.pointee.nmi_pending != 0 && state.pointee.nmi_blocked == 0
        var isWaiting = queuedInterrupt != nil || isPending
        if isWaiting, !hasNMI, processor.canAcceptInterrupt {
            let index = index
            if let vector = queuedInterrupt {
                queuedInterrupt = nil
                isWaiting = isPending
                inject(vector)
            } else {
                let (vector, hasMore) = machine.withFabric { fabric in
                    (fabric.acknowledgeInterrupt(for: index), fabric.hasInterrupt(for: index))
                }
                isWaiting = hasMore
                if let vector { inject(vector) }
            }
        }
        state.pointee.window_requested = isWaiting || (wantsWindow && !hasIRQChip) ? 1 : 0
    }

    private func inject(_ vector: UInt8) {
        counters.interruptsInjected &+= 1
        processor.deliverInterrupt(vector)
    }

    private func enterGuest() -> Step {
        let stop = processor.run()
        let step = step(after: stop)
        if tracesExits { traceExit(stop) }
        return step
    }

    private func step(after stop: Stop) -> Step {
        switch stop {
        case .attention: return .again
        case .portIO:
            outstanding = .port
            return .exit(
                .io(
                    port: IOPort(state.pointee.port_number), size: Int(state.pointee.port_size),
                    count: Int(state.pointee.port_count),
                    isWrite: state.pointee.port_is_write != 0))
        case .mmio:
            guard let fragment = currentFragment?.pointee else { return .again }
            outstanding = .memoryMapped
            return .exit(
                .mmio(
                    address: GuestPhysicalAddress(fragment.address), size: Int(fragment.size),
                    isWrite: fragment.is_write != 0))
        case .halt:
            guard hasIRQChip else { return .exit(.halt) }
            counters.halts &+= 1
            multiprocessing = UInt32(KVM_MP_STATE_HALTED)
            mustLook = true
            return .again
        case .shutdown: return .exit(.shutdown)
        case .difference: return .exit(.difference(report: processor.lockstepReport ?? ""))
        case .window:
            state.pointee.window_requested = 0
            mustLook = true
            return wantsWindow && !hasIRQChip && queuedInterrupt == nil ? .exit(.interruptWindowOpen) : .again
        }
    }

    private func count(_ exit: VirtualCPUExit) {
        switch exit {
        case .io: counters.portExits &+= 1
        case .mmio: counters.memoryMappedExits &+= 1
        case .halt: counters.haltExits &+= 1
        case .interrupted: counters.interruptedExits &+= 1
        case .interruptWindowOpen: counters.windowExits &+= 1
        case .shutdown: counters.shutdownExits &+= 1
        default: break
        }
    }

    // MARK: INIT and SIPI

    /// INIT (SDM vol. 3A table 9-1): the TSC goes on, the processor that booted the system starts over, others wait.
    private func initializeProcessor() {
        let tscOffset = state.pointee.tsc_offset
        processor.reset()
        state.pointee.tsc_offset = tscOffset
        forgetOutstanding()
        queuedInterrupt = nil
        reflectAPIC()
        let isBootstrap = state.pointee.apic_base & LocalAPIC.BaseBits.bootstrap != 0
        multiprocessing = UInt32(isBootstrap ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED)
    }

    /// SIPI: real mode at the page that the vector names (SDM vol. 3A §9.4.3).
    private func startProcessor(_ vector: UInt8) {
        var special = processor.specialRegisters
        special.cs.selector = UInt16(vector) << 8
        special.cs.base = UInt64(vector) << 12
        processor.specialRegisters = special
        var general = processor.registers
        general.rip = 0
        processor.registers = general
        multiprocessing = UInt32(KVM_MP_STATE_RUNNABLE)
    }

    // MARK: Exits that user space answers

    var currentFragment: UnsafeMutablePointer<martlet_mmio_fragment>? {
        let number = Int(state.pointee.mmio_count)
        return number < Int(MARTLET_MMIO_FRAGMENTS) ? martlet_mmio(state) + number : nil
    }

    /// The data of element `index` of a port exit.
    private func portData(_ index: Int) -> UnsafeMutablePointer<UInt32>? {
        index >= 0 && index < min(Int(state.pointee.port_count), Int(MARTLET_PORT_BATCH))
            ? martlet_port_data(state) + index : nil
    }

    private func answerOutstanding() {
        if tracesExits { traceAnswer() }
        switch outstanding {
        case .nothing: return
        case .port: state.pointee.port_answered = state.pointee.port_count
        case .memoryMapped:
            state.pointee.mmio_count &+= 1
            state.pointee.mmio_pending = 0
        }
        outstanding = .nothing
    }

    /// The instruction that waits for an answer will not be executed: user space moved rip.
    func forgetOutstanding() {
        outstanding = .nothing
        state.pointee.port_answered = 0
        state.pointee.mmio_count = 0
        state.pointee.mmio_cursor = 0
        state.pointee.mmio_pending = 0
    }

    public func exitData(_ index: Int) -> UInt64 {
        switch outstanding {
        case .nothing: return 0
        case .port:
            guard let data = portData(index) else { return 0 }
            return UInt64(data.pointee) & Self.mask(Int(state.pointee.port_size))
        case .memoryMapped:
            guard index == 0, let fragment = currentFragment?.pointee else { return 0 }
            return fragment.value & Self.mask(Int(fragment.size))
        }
    }

    public func setExitData(_ value: UInt64, at index: Int) {
        switch outstanding {
        case .nothing: break
        case .port:
            let mask = Self.mask(Int(state.pointee.port_size))
            portData(index)?.pointee = UInt32(truncatingIfNeeded: value & mask)
        case .memoryMapped:
            guard index == 0, let fragment = currentFragment else { break }
            fragment.pointee.value = value & Self.mask(Int(fragment.pointee.size))
        }
    }

    static func mask(_ size: Int) -> UInt64 { size >= 8 ? .max : (1 << UInt64(size * 8)) - 1 }

    // MARK: Interrupts from user space

    public func injectInterrupt(vector: UInt8) throws(HypervisorError) {
        guard !hasIRQChip else {
            throw HypervisorError("KVM_INTERRUPT", errorNumber: ENXIO, detail: "the engine has an irqchip")
        }
        guard queuedInterrupt == nil else {
            throw HypervisorError("KVM_INTERRUPT", errorNumber: EEXIST, detail: "an interrupt is queued already")
        }
        queuedInterrupt = vector
        mustLook = true
    }

    /// KVM_NMI.
    public func injectNMI() {
        core.execution.withLock { _ in state.pointee.nmi_pending = 1 }
        mustLook = true
    }

    public func setInterruptWindowRequested(_ requested: Bool) {
        wantsWindow = requested
        mustLook = true
    }

    /// As kvm_run says after an exit: IF is set, no shadow, nothing queued.
    public var isReadyForInterruptInjection: Bool {
        guard !hasIRQChip else { return true }
        return state.pointee.rflags & (1 << 9) != 0 && state.pointee.interrupt_shadow == 0 && queuedInterrupt == nil
    }

    // MARK: Facts

    public var lastException: LastException? {
        guard state.pointee.last_exception_valid != 0 else { return nil }
        return LastException(
            vector: state.pointee.last_exception_vector,
            errorCode: state.pointee.last_exception_has_error != 0 ? state.pointee.last_exception_error : nil,
            rip: state.pointee.last_exception_rip, cr2: state.pointee.last_exception_cr2)
    }

    /// nil where translated code does not count.
    public var instructionCount: UInt64? {
        if case .translator = processor.execution, state.pointee.counts_instructions == 0 { return nil }
        return state.pointee.instruction_count
    }

    public func finalReport() -> String? {
        core.execution.withLock { _ in processor.checkLockstep() ? nil : processor.lockstepReport }
    }
}
