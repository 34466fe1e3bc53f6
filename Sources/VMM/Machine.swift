internal import CHost
internal import DeviceModel
internal import GuestMemory
internal import Host
internal import Hypervisor
internal import Platform
internal import X86

/// One power-on of a machine, from its memory to its end.
final class Machine {
    let virtualMachine: any VirtualMachine
    /// Keeps the host memory behind the slots as long as the VM.
    let memory: GuestMemory
    let board: Board
    let pci: PCIBoard
    let clock = MachineClock()
    let commandLine: String
    /// The boot protocol that the kernel is started by.
    let bootProtocol: String
    let entryPoint: UInt64
    private let processorStart: ProcessorStart
    private let cpuid: [kvm_cpuid_entry2]
    private let events: MachineEvents
    private(set) var thread: VirtualCPUThread?
    /// Set while the machine stands still.
    var pause: MachinePause?

    /// What a machine is built from, beside its configuration.
    private enum Origin {
        case boot(BootPlan, commandLine: String)
        case saved(MachineSavedState)
    }

    /// Builds the board and loads the guest; nothing runs yet. `activity` is signalled when there is news.
    convenience init(
        _ configuration: MachineConfiguration, on system: any HypervisorSystem, activity: EventNotifier
    ) throws(MachineError) {
        let layout = try Self.layout(configuration.memorySize)
        // The files first: what is wrong with them does not depend on the engine.
        let (plan, commandLine) = try Self.plan(configuration, layout: layout)
        try self.init(
            configuration, .boot(plan, commandLine: commandLine), layout: layout, on: system, activity: activity)
    }

    /// A machine as the saved one was, of the same configuration: with the same disks, network ports and folders, which
    /// the saved machine has let go of (`waitForEnd`). It goes on with `start`.
    convenience init(
        restoring saved: MachineSavedState, _ configuration: MachineConfiguration, on system: any HypervisorSystem,
        activity: EventNotifier
    ) throws(MachineError) {
        try self.init(
            configuration, .saved(saved), layout: try Self.layout(configuration.memorySize), on: system,
            activity: activity)
    }

    private init(
        _ configuration: MachineConfiguration, _ origin: Origin, layout: PhysicalMemoryMap,
        on system: any HypervisorSystem, activity: EventNotifier
    ) throws(MachineError) {
        events = MachineEvents(activity: activity)
        let saved: MachineSavedState? = if case .saved(let state) = origin { state } else { nil }
        memory = if let saved { try Self.memory(of: saved, layout) } else { try Self.map(layout) }
        let leaves: [kvm_cpuid_entry2]
        do throws(HypervisorError) {
            virtualMachine = try Self.createVirtualMachine(on: system, memory: memory)
            leaves = GuestCPUID.singleProcessor(from: try system.supportedCPUID())
            let engine = virtualMachine
            if !engine.seesMemoryWrites {
                memory.observeWrites { engine.noteMemoryWritten(at: $0, count: $1) }
            }
            try saved?.controllers.apply(to: engine)
        } catch {
            throw MachineError("The \(system.name) engine cannot make a machine: \(error). See: martlet doctor")
        }
        cpuid = try configuration.processor.applied(to: leaves, engine: system.name)
        let window = PCIMemoryLayout.highWindow(
            above: layout, physicalAddressBits: GuestCPUID.physicalAddressBits(in: cpuid))
        pci = try PCIBoard(
            configuration.devices, isTransitional: configuration.isTransitional, memory: memory,
            machine: virtualMachine, highWindow: window, activity: activity,
            onTrouble: configuration.onDeviceTrouble, onHold: { [events] in events.noteHold($0) }, saved: saved?.pci)
        switch origin {
        case .boot(_, let line): commandLine = line
        case .saved(let state): commandLine = state.commandLine
        }
        do {
            board = try Board(
                configuration, layout: layout, memory: memory, commandLine: commandLine, machine: virtualMachine,
                pci: pci, events: events, activity: activity, clock: clock, saved: saved?.board)
            switch origin {
            case .boot(let plan, _):
                let tables = ACPITables.build(
                    ACPIConfiguration(
                        cpuCount: 1, serialPorts: configuration.serial.ports, hasPVPanic: true, pciSlots: pci.slots,
                        highPCIWindow: window))
                let boot = try Self.load(plan, tables, into: memory)
                processorStart = .boot(boot)
                bootProtocol = boot.bootProtocol.description
                entryPoint = boot.registers.rip
            case .saved(let state):
                processorStart = .saved(state.processor)
                bootProtocol = state.bootProtocol
                entryPoint = state.entryPoint
            }
        } catch {
            // It has threads, and nobody else could end it.
            pci.shutDown()
            if let error = error as? MachineError { throw error }
            if let conflict = error as? BusConflict {
                throw MachineError("The device \(conflict). Choose another address for it.")
            }
            throw MachineError("\(error)")
        }
    }

    var serial: [SerialConnection] { board.serial }
    /// The terminal, where it is a virtio console.
    var console: VirtioConsoleConnection? { pci.console }
    /// Why the machine should stand still, if a device met trouble since the last call.
    func takeHoldReason() -> String? { events.takeHoldReason() }
    var standsStill: Bool { pause != nil }
    var sawPanic: Bool { events.sawPanic }

    /// How it ended, once the processor has stopped.
    var result: (outcome: MachineOutcome, trace: ProcessorTrace?)? { events.result }

    /// Adds what was sampled, once the processor has stopped.
    func addProfile(to report: inout ProfileReport, symbols: SymbolTable) {
        guard let run = events.profile else { return }
        report.add(run.profile, symbols: symbols, kernel: run.kernelSymbols(in: memory))
    }

    /// Starts the processor.
    func start() throws(MachineError) {
        let thread: VirtualCPUThread
        do {
            thread = try VirtualCPUThread(
                machine: virtualMachine, cpuid: cpuid, start: processorStart, board: board, events: events)
        } catch {
            throw MachineError("\(error). The host has no thread to spare; close something and try again.")
        }
        self.thread = thread
        guard case .saved = processorStart else { return }
        // The devices' interrupts need a processor that has its local APIC back.
        guard thread.pause() else { return }
        pci.resume()
        thread.resume()
    }

    /// Makes the processor stop for `outcome`, unless the machine is ending for another reason already.
    func end(with outcome: MachineOutcome) {
        events.end(with: outcome)
        thread?.stop()
    }

    func waitForEnd() {
        thread?.join()
        pci.shutDown()
    }

    deinit { pci.shutDown() }

    private static func layout(_ size: UInt64) throws(MachineError) -> PhysicalMemoryMap {
        let total = HostMemory().total
        guard size <= total else {
            throw MachineError(
                "This host has \(total >> 20) MiB of memory, the guest cannot have \(size >> 20) MiB. "
                    + "Give it less with --memory.")
        }
        do {
            return try PhysicalMemoryMap(memorySize: size)
        } catch {
            throw MachineError("\(error)")
        }
    }

    private static func map(_ layout: PhysicalMemoryMap) throws(MachineError) -> GuestMemory {
        var regions: [MemoryRegion] = []
        for range in layout.ramRanges {
            do {
                let mapping = try HostMapping(size: Int(clamping: range.size))
                regions.append(MemoryRegion(base: range.base, mapping: mapping))
            } catch {
                throw MachineError("\(error). Give the guest less with --memory, or free some of the host's.")
            }
        }
        return GuestMemory(regions: regions)
    }

    private static func memory(
        of saved: MachineSavedState, _ layout: PhysicalMemoryMap
    ) throws(MachineError) -> GuestMemory {
        guard saved.memory.map(\.base) == layout.ramRanges.map(\.base),
            saved.memory.map(\.size) == layout.ramRanges.map(\.size)
        else {
            throw MachineError("The saved machine had another amount of memory. Give --memory the same size.")
        }
        do {
            return try GuestMemory(copying: saved.memory)
        } catch {
            throw MachineError("\(error). Give the guest less with --memory, or free some of the host's.")
        }
    }

    private static func createVirtualMachine(
        on system: any HypervisorSystem, memory: GuestMemory
    ) throws(HypervisorError) -> any VirtualMachine {
        let machine = try system.createVirtualMachine()
        // Four pages below the firmware area that no RAM and no device uses (KVM API §4.35, §4.49).
        try machine.setIdentityMapAddress(0xfffb_c000)
        try machine.setTSSAddress(0xfffb_d000)
        try machine.createIRQChip()
        try machine.createPIT(speakerDummy: true)
        for (slot, region) in memory.regions.enumerated() {
            var description = kvm_userspace_memory_region()
            description.slot = UInt32(slot)
            description.guest_phys_addr = region.base.rawValue
            description.memory_size = region.size
            description.userspace_addr = region.hostAddress
            try machine.setUserMemoryRegion(description)
        }
        return machine
    }

    /// What a Linux kernel gets if nobody said anything: otherwise it would be silent, and hang after a panic.
    private static let defaultCommandLine = "console=ttyS0 panic=-1"
    /// The last one named is the guest's /dev/console.
    private static let virtioCommandLine = "console=ttyS0 console=hvc0 panic=-1"

    private static func plan(
        _ configuration: MachineConfiguration, layout: PhysicalMemoryMap
    ) throws(MachineError) -> (plan: BootPlan, commandLine: String) {
        var request = BootRequest(
            kernel: configuration.kernel, modules: configuration.modules,
            commandLine: configuration.commandLine ?? "", layout: layout, rsdp: ACPITables.rootPointer)
        do {
            let plan = try BootLoader.plan(request)
            guard configuration.commandLine == nil, plan.state.bootProtocol != .multiboot else {
                return (plan, request.commandLine)
            }
            let hasConsole = configuration.devices.contains(where: \.isConsole)
            request.commandLine = hasConsole ? virtioCommandLine : defaultCommandLine
            return (try BootLoader.plan(request), request.commandLine)
        } catch {
            throw MachineError("\(error)")
        }
    }

    private static func load(
        _ plan: BootPlan, _ tables: ACPITables, into memory: GuestMemory
    ) throws(MachineError) -> BootState {
        do {
            try tables.write(to: memory)
        } catch {
            throw MachineError("The ACPI tables do not fit: \(error). Give the guest more memory with --memory.")
        }
        do {
            return try plan.write(to: memory)
        } catch {
            throw MachineError("\(error)")
        }
    }
}
