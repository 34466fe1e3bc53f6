internal import DeviceModel
internal import FileShare
internal import GuestMemory
internal import Host
internal import Hypervisor
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
    private let runner: any JobRunner
    private let doorbells: DoorbellThread?
    /// Of devices that work where their notifications come.
    private let ownDoorbells: [DoorbellThread]
    private let isShutDown = Mutex(false)

    /// Requests of all disks that wait for the host at once.
    private static let workerLimit = 8

    init(
        _ configurations: [DeviceConfiguration], isTransitional: Bool, memory: GuestMemory, machine: any VirtualMachine,
        highWindow: Range<UInt64>?, activity: EventNotifier, onTrouble: @escaping @Sendable (String) -> Void
    ) throws(MachineError) {
        guard configurations.count <= PCILayout.limit else {
            throw MachineError(
                "A machine has room for \(PCILayout.limit) PCI devices, not for \(configurations.count). "
                    + "Leave some of them out.")
        }
        self.machine = machine
        router = MessageRouter(machine)
        self.highWindow = highWindow
        // Where devices may act only in exits, everything happens on the vCPU's thread.
        let isImmediate = machine.writesOnlyInExits
        if isImmediate { try Self.requireImmediate(configurations) }
        self.configurations = configurations
        let console = configurations.contains(where: \.isConsole) ? VirtioConsoleConnection(activity: activity) : nil
        self.console = console
        runner = isImmediate ? ImmediateRunner() : WorkerPool(name: "disk", limit: Self.workerLimit)
        let layout = PCILayout(count: configurations.count)
        var entries: [Entry] = []
        var ownDoorbells: [DoorbellThread] = []
        do throws(HostError) {
            doorbells = isImmediate || configurations.isEmpty ? nil : try DoorbellThread()
            for (configuration, place) in zip(configurations, layout.places) {
                let device = try Self.device(
                    configuration, console: console, runner: runner, isImmediate: isImmediate)
                let log = DeviceLog(name: "\(device.kind.name) \(place.deviceAddress)", sink: onTrouble)
                var thread = doorbells
                if case .fileSystem = configuration, !isImmediate {
                    let own = try DoorbellThread()
                    ownDoorbells.append(own)
                    thread = own
                }
                let transport = try VirtioPCIDevice(
                    device, memory: memory, log: log, doorbellThread: thread,
                    port: place.bus == nil ? .integratedEndpoint : .endpoint,
                    // The ports of a legacy interface would need a window of the root port's.
                    isTransitional: isTransitional && place.bus == nil)
                let isMultifunction = layout.isMultifunction(place.address.device)
                let port = place.bus.map { bus in
                    PCIRootPort(slotNumber: Int(bus), isMultifunction: isMultifunction, child: transport.function) {
                        transport.function.reset()
                    }
                }
                entries.append(Entry(place: place, device: transport, port: port))
            }
        } catch {
            throw MachineError("\(error). Raise the limit of open files (ulimit -n) and try again.")
        }
        self.entries = entries
        self.ownDoorbells = ownDoorbells
        slots = layout.slots
        var functions: [PCIAddress: any PCIConfigurable] = [:]
        for entry in entries {
            let function = entry.device.function
            if let port = entry.port {
                functions[entry.place.address] = port
            } else {
                functions[entry.place.address] = function
            }
        }
        hierarchy = PCIHierarchy(functions)
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

    private static func device(
        _ configuration: DeviceConfiguration, console: VirtioConsoleConnection?, runner: any JobRunner,
        isImmediate: Bool
    ) throws(HostError) -> any VirtioDevice {
        switch configuration {
        case .disk(let backend, let options):
            return VirtioBlock(backend, options: options, runner: runner, parallelism: isImmediate ? 1 : 4)
        case .network(let port, let options): return VirtioNet(port, options: options)
        case .entropy: return VirtioEntropy()
        case .fileSystem(let share, let tag):
            return VirtioFileSystem(share, tag: tag, runner: runner, parallelism: isImmediate ? 1 : 4)
        case .socket(let endpoint): return try VirtioSocket(endpoint)
        case .console:
            guard let console else { preconditionFailure("made with the board") }
            return console.device
        case .ports(let endpoints):
            let device = VirtioConsole(
                ports: endpoints.map { .init(name: $0.name) }, sink: ConsoleEndpoints(endpoints))
            for (port, endpoint) in endpoints.enumerated() { endpoint.plug(into: device, port: port) }
            return device
        case .balloon(let control): return control.makeBalloon()
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
            for bar in function.description.bars where bar.kind != .io {
                nextAddress = Self.align(nextAddress, to: bar.size)
                function.assign(nextAddress, to: bar)
                nextAddress &+= bar.size
            }
            for bar in function.description.bars where bar.kind == .io {
                nextPort = Self.align(nextPort, to: bar.size)
                function.assign(nextPort, to: bar)
                nextPort &+= bar.size
            }
            function.assignInterruptLine(UInt8(truncatingIfNeeded: gsi))
            let connection = PCISlotConnection(
                owner: owner, decoder: decoder, router: router, line: shared.line.input(shared.count))
            if let port = entry.port, let bus = entry.place.bus {
                nextAddress = Self.align(nextAddress, to: PCIRootPort.windowGranularity)
                port.assign(bus: bus, memory: window..<nextAddress)
                function.connect(entry.device, to: port.connection(to: connection))
            } else {
                function.connect(entry.device, to: connection)
            }
        }
    }

    private static func align(_ address: UInt64, to size: UInt64) -> UInt64 { (address &+ size &- 1) & ~(size &- 1) }

    /// The machine has ended: no device does anything afterwards.
    func shutDown() {
        let isFirst = isShutDown.withLock { done in
            defer { done = true }
            return !done
        }
        guard isFirst else { return }
        doorbells?.stop()
        for thread in ownDoorbells { thread.stop() }
        for entry in entries {
            entry.device.shutDown()
            entry.port?.disconnect()
            (entry.device.device as? VirtioNet)?.unplug()
        }
        for configuration in configurations {
            if case .ports(let endpoints) = configuration { for endpoint in endpoints { endpoint.unplug() } }
            if case .balloon(let control) = configuration { control.unplug() }
        }
        runner.stop()
    }
}
