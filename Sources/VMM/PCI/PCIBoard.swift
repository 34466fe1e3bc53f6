internal import DeviceModel
internal import FileShare
internal import GuestMemory
internal import Host
internal import Hypervisor
internal import Net
internal import Platform
internal import Synchronization
internal import Virtio
internal import X86

/// The PCI devices of a machine, in the order of the configuration.
final class PCIBoard: Sendable {
    let hierarchy: PCIHierarchy
    /// The slots of bus 0 with devices or root ports.
    let slots: [UInt8]
    /// The terminal, where it is a virtio console.
    let console: VirtioConsoleConnection?
    private let configurations: [DeviceConfiguration]
    private struct Entry: Sendable {
        var place: PCILayout.Place
        var device: VirtioPCIDevice
        var port: PCIRootPort?
    }

    private let entries: [Entry]
    private let router: MessageRouter
    private let machine: any VirtualMachine
    private let highWindow: Range<UInt64>?
    /// The guest has placed its devices already.
    private let isRestored: Bool
    private let runner: any JobRunner
    private let doorbells: DoorbellThread?
    /// Of devices that work where their notifications come.
    private let ownDoorbells: [DoorbellThread]
    private let isShutDown = Mutex(false)

    /// Requests of all disks that wait for the host at once.
    private static let workerLimit = 8

    init(
        _ configurations: [DeviceConfiguration], isTransitional: Bool, memory: GuestMemory, machine: any VirtualMachine,
        highWindow: Range<UInt64>?, activity: EventNotifier, onTrouble: @escaping @Sendable (String) -> Void,
        onHold: @escaping @Sendable (String) -> Void, saved: PCIBoardSavedState? = nil
    ) throws(MachineError) {
        guard configurations.count <= PCILayout.limit else {
            throw MachineError(
                "A machine has room for \(PCILayout.limit) PCI devices, not for \(configurations.count). "
                    + "Leave some of them out.")
        }
        if let saved, saved.devices.count != configurations.count {
            throw MachineError(
                "The saved machine had \(saved.devices.count) PCI devices, not \(configurations.count). Give it the same."
            )
        }
        isRestored = saved != nil
        self.machine = machine
        router = MessageRouter(machine)
        self.highWindow = highWindow
        // Where devices may act only in exits, everything happens on the vCPU's thread.
        let isImmediate = machine.writesOnlyInExits
        if isImmediate { try Self.requireImmediate(configurations) }
        if !machine.seesMemoryWrites { try Self.requireOwnPaths(configurations) }
        self.configurations = configurations
        console = try Self.console(configurations, activity: activity, saved: saved)
        runner = isImmediate ? ImmediateRunner() : WorkerPool(name: "disk", limit: Self.workerLimit)
        let layout = PCILayout(count: configurations.count)
        var entries: [Entry] = []
        var ownDoorbells: [DoorbellThread] = []
        let rings = try configurations.map { (configuration) throws(MachineError) in
            try DiskRing.make(for: configuration, isImmediate: isImmediate)
        }
        let workshop = PCIDeviceWorkshop(
            console: console, runner: runner, isImmediate: isImmediate, allowsVhost: machine.seesMemoryWrites)
        var sharedDoorbells: DoorbellThread?
        var devices: [any VirtioDevice] = []
        do {
            if !isImmediate, !configurations.isEmpty { sharedDoorbells = try DoorbellThread() }
            for (index, (configuration, place)) in zip(configurations, layout.places).enumerated() {
                let state = try saved.map { try VirtioPCISavedState(encoded: $0.devices[index]) }
                let device = try workshop.device(configuration, ring: rings[index], saved: state?.device)
                devices.append(device)
                let name = "\(device.kind.name) \(place.deviceAddress)"
                let log = DeviceLog(name: name, sink: onTrouble)
                (device as? VirtioBlock)?.onHold { onHold("\(name): \($0)") }
                var thread = sharedDoorbells
                if configuration.worksWhereNotified(ring: rings[index]), !isImmediate {
                    let own = try DoorbellThread()
                    ownDoorbells.append(own)
                    thread = own
                    if let ring = rings[index], let disk = device as? VirtioBlock {
                        try own.listen(to: ring.completions) { disk.reap() }
                        // The vCPU itself hands lone requests over: what the page cache has is there when it goes on,
                        // and nobody has to be woken. Where an exit costs a change of worlds, the thread is better.
                        if !machine.takesIRQEventsDirectly {
                            try Self.hearInExits(disk, own)
                            thread = nil
                        }
                    }
                }
                let portKind: PCIExpressPort = place.bus == nil ? .integratedEndpoint : .endpoint
                // The ports of a legacy interface would need a window of the root port's.
                let hasLegacyInterface = isTransitional && place.bus == nil
                let transport =
                    if let state {
                        try VirtioPCIDevice(
                            restoring: state, device, memory: memory, log: log, doorbellThread: thread,
                            port: portKind, isTransitional: hasLegacyInterface)
                    } else {
                        try VirtioPCIDevice(
                            device, memory: memory, log: log, doorbellThread: thread, port: portKind,
                            isTransitional: hasLegacyInterface)
                    }
                let port = try place.bus.map { bus in
                    try workshop.rootPort(
                        bus: bus, isMultifunction: layout.isMultifunction(place.address.device),
                        function: transport.function, saved: saved?.ports[index])
                }
                entries.append(Entry(place: place, device: transport, port: port))
            }
        } catch {
            // What has been made has threads and a place at the host already.
            Self.end(entries, devices, configurations, sharedDoorbells, ownDoorbells, runner)
            if let error = error as? SavedStateError { throw MachineError("\(error)") }
            throw MachineError("\(error). Raise the limit of open files (ulimit -n) and try again.")
        }
        doorbells = sharedDoorbells
        self.entries = entries
        self.ownDoorbells = ownDoorbells
        slots = layout.slots
        var functions: [PCIAddress: any PCIConfigurable] = [:]
        for entry in entries {
            let port: (any PCIConfigurable)? = entry.port
            functions[entry.place.address] = port ?? entry.device.function
        }
        hierarchy = PCIHierarchy(functions)
    }

    private static func hearInExits(_ disk: VirtioBlock, _ thread: DoorbellThread) throws(HostError) {
        var notifiers: [EventNotifier] = []
        for queue in disk.queueSizes.indices {
            let notifier = try EventNotifier()
            try thread.listen(to: notifier) { disk.takeTurn(queue) }
            notifiers.append(notifier)
        }
        disk.hearInExits(notifiers)
    }

    private static func console(
        _ configurations: [DeviceConfiguration], activity: EventNotifier, saved: PCIBoardSavedState?
    ) throws(MachineError) -> VirtioConsoleConnection? {
        guard let index = configurations.firstIndex(where: \.isConsole) else { return nil }
        do throws(SavedStateError) {
            guard let bytes = saved?.devices[index] else { return VirtioConsoleConnection(activity: activity) }
            return try VirtioConsoleConnection(
                activity: activity,
                restoring: VirtioConsoleSavedState(encoded: VirtioPCISavedState(encoded: bytes).device))
        } catch {
            throw MachineError("\(error)")
        }
    }

    /// Lockstep: nothing may change the guest's memory but its own steps.
    private static func requireImmediate(_ configurations: [DeviceConfiguration]) throws(MachineError) {
        for configuration in configurations {
            let (devices, option): (String, String)
            switch configuration {
            case .network: (devices, option) = ("network cards: frames come", "--net")
            case .socket: (devices, option) = ("sockets: their data comes", "--vsock")
            case .console: (devices, option) = ("virtio console: what is typed comes", "--console virtio")
            case .ports: (devices, option) = ("ports: their data comes", "--port")
            case .disk, .entropy, .fileSystem, .balloon: continue
            }
            throw MachineError(
                "--engine lockstep has no \(devices) while the processor runs, which it cannot compare. "
                    + "Leave out \(option) or choose another --engine.")
        }
    }

    private static func requireOwnPaths(_ configurations: [DeviceConfiguration]) throws(MachineError) {
        for case .network(let port, _) in configurations where port.vhost?.isRequired == true {
            throw MachineError(
                "The software engine has no vhost=on (\(port.name)): it has to see each write to the guest's memory. "
                    + "Leave it out or use --accel kvm.")
        }
    }

    // MARK: Buses

    /// The machine's two buses: the board's ports, the configuration window, and room for what functions decode.
    func buses(withPorts fixedPorts: Bus) throws(BusConflict) -> (ports: DynamicBus, memory: DynamicBus) {
        var fixedMemory = Bus()
        try fixedMemory.attach(
            PCIExpressWindow(hierarchy), named: "PCI Express configuration", at: PCIMemoryLayout.configurationBase,
            size: PCIMemoryLayout.configurationSize)
        return (
            DynamicBus(fixed: fixedPorts, windows: [PCIMemoryLayout.portWindow]),
            DynamicBus(fixed: fixedMemory, windows: PCIMemoryLayout.lowWindows + (highWindow.map { [$0] } ?? []))
        )
    }

    /// Wires each function, with addresses and interrupts as a firmware leaves them.
    func connect(ports: DynamicBus, memory: DynamicBus) {
        let decoder = PCIDecoder(ports: ports, memory: memory, machine: machine)
        // At most 32 functions share a line.
        var lines: [UInt32: (line: SharedInterruptLine, count: Int)] = [:]
        var nextAddress = PCIMemoryLayout.lowWindows[0].lowerBound
        var nextPort = PCIMemoryLayout.portWindow.lowerBound
        for (owner, entry) in entries.enumerated() {
            let function = entry.device.function
            // What is behind a port has its pin at the port's slot (PCI-to-PCI Bridge 1.2 §9.1).
            let gsi = PCIInterruptRouting.gsi(slot: entry.place.address.device, pin: 0)
            let shared =
                lines[gsi] ?? (SharedInterruptLine(EngineInterruptLine(machine: machine, gsi: GSI(gsi))), 0)
            lines[gsi] = (shared.line, shared.count + 1)
            if entry.port != nil { nextAddress = Self.align(nextAddress, to: PCIRootPort.windowGranularity) }
            let window = nextAddress
            for bar in function.description.bars where bar.kind != .io && !isRestored {
                nextAddress = Self.align(nextAddress, to: bar.size)
                function.assign(nextAddress, to: bar)
                nextAddress &+= bar.size
            }
            for bar in function.description.bars where bar.kind == .io && !isRestored {
                nextPort = Self.align(nextPort, to: bar.size)
                function.assign(nextPort, to: bar)
                nextPort &+= bar.size
            }
            if !isRestored { function.assignInterruptLine(UInt8(truncatingIfNeeded: gsi)) }
            let connection = PCISlotConnection(
                owner: owner, decoder: decoder, router: router, line: shared.line.input(shared.count))
            if let port = entry.port, let bus = entry.place.bus {
                nextAddress = Self.align(nextAddress, to: PCIRootPort.windowGranularity)
                if !isRestored { port.assign(bus: bus, memory: window..<nextAddress) }
                function.connect(entry.device, to: port.connection(to: connection))
            } else {
                function.connect(entry.device, to: connection)
            }
        }
    }

    private static func align(_ address: UInt64, to size: UInt64) -> UInt64 { (address &+ size &- 1) & ~(size &- 1) }

    // MARK: Life

    /// Returns when no device touches the guest's memory or its interrupts any more.
    func pause() {
        for entry in entries { entry.device.pause() }
    }

    /// After `pause`, or once in a restored machine.
    func resume() {
        for entry in entries { entry.device.resume() }
    }

    /// While the devices pause.
    func save() -> PCIBoardSavedState {
        PCIBoardSavedState(
            devices: entries.map { $0.device.save().encoded() }, ports: entries.map { $0.port?.save().encoded() })
    }

    /// The machine has ended: no device does anything afterwards.
    func shutDown() {
        let isFirst = isShutDown.withLock { done in
            defer { done = true }
            return !done
        }
        guard isFirst else { return }
        Self.end(entries, entries.map(\.device.device), configurations, doorbells, ownDoorbells, runner)
    }

    private static func end(
        _ entries: [Entry], _ devices: [any VirtioDevice], _ configurations: [DeviceConfiguration],
        _ doorbells: DoorbellThread?, _ ownDoorbells: [DoorbellThread], _ runner: any JobRunner
    ) {
        doorbells?.stop()
        for entry in entries {
            entry.device.shutDown()
            entry.port?.disconnect()
        }
        for device in devices { (device as? VirtioNet)?.unplug() }
        for configuration in configurations {
            if case .ports(let endpoints) = configuration { for endpoint in endpoints { endpoint.unplug() } }
            if case .balloon(let control) = configuration { control.unplug() }
        }
        // Behind the devices: a disk's thread ends what is on its way when the disk stops.
        for thread in ownDoorbells { thread.stop() }
        runner.stop()
    }
}
