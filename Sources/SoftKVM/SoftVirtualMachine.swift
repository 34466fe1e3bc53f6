internal import CHost
internal import CPU
internal import Glibc
internal import Host
internal import Hypervisor
internal import Synchronization
internal import X86

/// A VM of the software engine.
final class SoftVirtualMachine: VirtualMachine {
    private let core: MachineCore
    private let setup: Mutex<Setup>

    /// What few calls change.
    private struct Setup: Sendable {
        var slots = MemorySlots()
        var timerThread: TimerThread?
        var irqEvents: IRQEvents?
    }

    private let engine: SoftwareEngine
    private let observation: Observation

    init(tscFrequency: UInt64, engine: SoftwareEngine = .interpreter, observation: Observation = Observation()) {
        self.engine = engine
        self.observation = observation
        core = MachineCore(tscFrequency: tscFrequency, at: TimestampCounter.sample())
        setup = Mutex(Setup())
    }

    deinit { setup.withLock { $0.irqEvents }?.stop() }

    private func failure(_ operation: String, _ number: Int32, _ detail: String = "") -> HypervisorError {
        HypervisorError(operation, errorNumber: number, detail: detail)
    }

    // MARK: Memory

    func setUserMemoryRegion(_ region: kvm_userspace_memory_region) throws(HypervisorError) {
        // Under the lock until every vCPU has the new slots: when this returns nobody uses the old memory.
        try setup.withLock { (setup) throws(HypervisorError) in
            try setup.slots.set(region)
            for cpu in core.cpus { cpu.setSlots(setup.slots) }
        }
    }

    func dirtyLog(slot: UInt32) throws(HypervisorError) -> [UInt64] {
        let logs = setup.withLock { _ in
            core.cpus.map { $0.takeDirtyLog(slot: slot) }
        }
        var result: [UInt64]?
        for case let log? in logs {
            guard var merged = result else {
                result = log
                continue
            }
            for index in merged.indices where index < log.count { merged[index] |= log[index] }
            result = merged
        }
        guard let result else {
            throw failure("KVM_GET_DIRTY_LOG", ENOENT, "slot \(slot) does not log dirty pages or there is no vCPU")
        }
        return result
    }

    func noteMemoryWritten(at address: GuestPhysicalAddress, count: Int) {
        // A device's data is hardly ever where code was: only then is the processor worth stopping. The lock keeps the
        // slots, by which that is looked up, as they are.
        let concerned = setup.withLock { _ in
            core.cpus.filter { $0.processor.mayHoldCode(at: address.rawValue, count: UInt64(clamping: count)) }
        }
        for cpu in concerned {
            cpu.withStoppedProcessor {
                $0.noteMemoryWritten(at: address.rawValue, count: UInt64(clamping: count))
            }
        }
    }

    // Only VT-x without unrestricted guests needs these pages: nothing to do.
    func setTSSAddress(_ address: UInt32) throws(HypervisorError) {}
    func setIdentityMapAddress(_ address: UInt64) throws(HypervisorError) {}

    // MARK: Interrupt controllers

    func createIRQChip() throws(HypervisorError) {
        let operation = "KVM_CREATE_IRQCHIP"
        try setup.withLock { (setup) throws(HypervisorError) in
            guard core.withFabric({ !$0.isPresent }) else { throw failure(operation, EEXIST, "it exists already") }
            guard core.cpus.isEmpty else { throw failure(operation, EINVAL, "there are vCPUs already") }
            do throws(HostError) {
                setup.timerThread = try TimerThread(core)
            } catch {
                throw failure(operation, error.errorNumber, "\(error)")
            }
            core.withFabric { $0.isPresent = true }
        }
    }

    func createPIT(speakerDummy: Bool) throws(HypervisorError) {
        let operation = "KVM_CREATE_PIT2"
        try setup.withLock { (_) throws(HypervisorError) in
            let number: Int32 = core.withFabric { fabric in
                guard fabric.isPresent else { return ENOENT }
                guard fabric.pit == nil else { return EEXIST }
                fabric.pit = PIT8254(hasSpeakerPort: speakerDummy)
                return 0
            }
            guard number == 0 else { throw failure(operation, number) }
        }
    }

    func setIRQLine(_ gsi: GSI, level: Bool) throws(HypervisorError) {
        let isPresent = core.withFabric { fabric in
            fabric.setLine(gsi.rawValue, level: level)
            return fabric.isPresent
        }
        guard isPresent else { throw failure("KVM_IRQ_LINE", ENXIO, "there is no irqchip") }
    }

    func signalMSI(_ message: kvm_msi) throws(HypervisorError) {
        let address = UInt64(message.address_hi) << 32 | UInt64(message.address_lo)
        let isPresent = core.withFabric { fabric in
            if fabric.isPresent { fabric.deliver(InterruptMessage(msiAddress: address, data: message.data), from: nil) }
            return fabric.isPresent
        }
        guard isPresent else { throw failure("KVM_SIGNAL_MSI", ENXIO, "there is no irqchip") }
    }

    func setGSIRouting(_ routes: [GSIRoute]) throws(HypervisorError) {
        let operation = "KVM_SET_GSI_ROUTING"
        var messages: [UInt32: InterruptMessage] = [:]
        for route in routes {
            switch route.target {
            case .irqChip:
                guard GSIRoute.standard.contains(route) else {
                    throw failure(operation, ENOTSUP, "GSI \(route.gsi.rawValue) is wired as on a PC here")
                }
            case .message(let address, let data):
                guard route.gsi.rawValue >= UInt32(IOAPIC.pinCount) else {
                    throw failure(operation, ENOTSUP, "GSI \(route.gsi.rawValue) is an input of the I/O APIC here")
                }
                messages[route.gsi.rawValue] = InterruptMessage(msiAddress: address, data: data)
            }
        }
        let table = messages
        core.withFabric { $0.messageRoutes = table }
    }

    func setIRQEvent(_ descriptor: Int32, gsi: GSI, isAssigned: Bool) throws(HypervisorError) {
        let operation = "KVM_IRQFD"
        do throws(HostError) {
            let events: IRQEvents = try setup.withLock { (setup) throws(HostError) in
                if let events = setup.irqEvents { return events }
                let events = try IRQEvents(core)
                setup.irqEvents = events
                return events
            }
            guard try events.set(descriptor, gsi: gsi.rawValue, isAssigned: isAssigned) else {
                throw HostError(operation, errorNumber: isAssigned ? EBUSY : ENOENT)
            }
        } catch {
            throw failure(operation, error.errorNumber, "\(error)")
        }
    }

    var writesOnlyInExits: Bool { engine == .lockstep }

    func setIOEvent(_ event: IOEvent, isAssigned: Bool) throws(HypervisorError) {
        let operation = "KVM_IOEVENTFD"
        guard !writesOnlyInExits else {
            throw failure(operation, ENOTSUP, "in lockstep devices act only while the guest stands still")
        }
        guard [0, 1, 2, 4, 8].contains(event.length) else { throw failure(operation, EINVAL, "no such width") }
        do throws(HostError) {
            guard try core.ioEvents.set(event, isAssigned: isAssigned) else {
                throw HostError(operation, errorNumber: isAssigned ? EEXIST : ENOENT)
            }
        } catch {
            throw failure(operation, error.errorNumber, "\(error)")
        }
    }

    func irqChip(id: UInt32) throws(HypervisorError) -> kvm_irqchip {
        var chip = kvm_irqchip()
        chip.chip_id = id
        let fabric = core.withFabric { $0 }
        guard fabric.isPresent else { throw failure("KVM_GET_IRQCHIP", ENXIO, "there is no irqchip") }
        switch Int32(bitPattern: id) {
        case KVM_IRQCHIP_PIC_MASTER: kvm_irqchip_pic(&chip).pointee = fabric.pic.master.savedState
        case KVM_IRQCHIP_PIC_SLAVE: kvm_irqchip_pic(&chip).pointee = fabric.pic.slave.savedState
        case KVM_IRQCHIP_IOAPIC: kvm_irqchip_ioapic(&chip).pointee = fabric.ioapic.savedState
        default: throw failure("KVM_GET_IRQCHIP", EINVAL, "there is no chip \(id)")
        }
        return chip
    }

    func setIRQChip(_ chip: kvm_irqchip) throws(HypervisorError) {
        var chip = chip
        let pic = kvm_irqchip_pic(&chip).pointee
        let ioapic = kvm_irqchip_ioapic(&chip).pointee
        let number: Int32 = core.withFabric { fabric in
            guard fabric.isPresent else { return ENXIO }
            switch Int32(bitPattern: chip.chip_id) {
            case KVM_IRQCHIP_PIC_MASTER:
                fabric.restorePIC(master: PIC8259(isMaster: true, restoring: pic), slave: nil)
            case KVM_IRQCHIP_PIC_SLAVE:
                fabric.restorePIC(master: nil, slave: PIC8259(isMaster: false, restoring: pic))
            case KVM_IRQCHIP_IOAPIC:
                fabric.restoreIOAPIC(IOAPIC(restoring: ioapic), lines: ioapic.irr)
            default: return EINVAL
            }
            return 0
        }
        guard number == 0 else { throw failure("KVM_SET_IRQCHIP", number) }
    }

    func pitState() throws(HypervisorError) -> kvm_pit_state2 {
        guard let state = core.withFabric({ $0.pit?.savedState }) else {
            throw failure("KVM_GET_PIT2", ENXIO, "there is no PIT")
        }
        return state
    }

    func setPITState(_ state: kvm_pit_state2) throws(HypervisorError) {
        let now = TimestampCounter.now
        let isPresent = core.withFabric { fabric in
            guard let pit = fabric.pit else { return false }
            fabric.pit = PIT8254(hasSpeakerPort: pit.hasSpeakerPort, restoring: state, at: now.nanoseconds)
            fabric.timersChanged = true
            return true
        }
        guard isPresent else { throw failure("KVM_SET_PIT2", ENXIO, "there is no PIT") }
    }

    // MARK: Clock

    func clock() throws(HypervisorError) -> kvm_clock_data {
        let now = TimestampCounter.now
        var data = kvm_clock_data()
        data.clock = core.withClock { $0.nanoseconds(atHostTSC: now.tsc) }
        data.flags = UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
        data.realtime = HostClock.realtimeNanoseconds
        data.host_tsc = now.tsc
        return data
    }

    /// With KVM_CLOCK_REALTIME the clock goes on by the time that passed since it was read (KVM API §4.30).
    func setClock(_ clock: kvm_clock_data) throws(HypervisorError) {
        guard clock.flags & ~UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC) == 0 else {
            throw failure("KVM_SET_CLOCK", EINVAL, "unknown flags")
        }
        var nanoseconds = clock.clock
        if clock.flags & UInt32(KVM_CLOCK_REALTIME) != 0 {
            nanoseconds = nanoseconds &+ HostClock.realtimeNanoseconds.saturatingSubtract(clock.realtime)
        }
        core.setClock(nanoseconds)
    }

    // MARK: vCPUs

    /// As many as an xAPIC can address.
    static let virtualCPULimit = 255

    func createVirtualCPU(id: Int) throws(HypervisorError) -> any VirtualCPU {
        let operation = "KVM_CREATE_VCPU"
        guard id >= 0, id < Self.virtualCPULimit else {
            throw failure(operation, EINVAL, "vCPU \(id) is not in 0–\(Self.virtualCPULimit - 1)")
        }
        return try setup.withLock { (setup) throws(HypervisorError) in
            guard engine != .lockstep || core.cpus.isEmpty else {
                throw failure(operation, EINVAL, "lockstep is for one vCPU: others would write to its memory meanwhile")
            }
            let cpu = VirtualCPUCore(id: id, execution: engine.execution)
            cpu.setSlots(setup.slots)
            guard let index = core.add(cpu) else { throw failure(operation, EEXIST, "vCPU \(id) exists already") }
            return SoftVirtualCPU(
                core: cpu, index: index, machine: core, timerThread: setup.timerThread, observation: observation)
        }
    }
}

extension VirtualCPUCore {
    func setSlots(_ slots: MemorySlots) {
        withStoppedProcessor { $0.setSlots(slots.engineSlots) }
    }
}
