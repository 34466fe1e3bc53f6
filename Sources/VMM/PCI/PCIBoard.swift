internal import DeviceModel
internal import FileShare
internal import GuestMemory
internal import Host
internal import Hypervisor
internal import Platform
internal import Synchronization
internal import Virtio
internal import X86

/// The PCI devices of a machine: on bus 0 from slot 1 on, in the order of the configuration.
final class PCIBoard: Sendable {
    let hierarchy: PCIHierarchy
    /// The slots with devices.
    let slots: [UInt8]
    /// The terminal, where it is a virtio console.
    let console: VirtioConsoleConnection?
    private let configurations: [DeviceConfiguration]
    private let devices: [(slot: UInt8, device: VirtioPCIDevice)]
    private let machine: any VirtualMachine
    private let highWindow: Range<UInt64>?
    private let runner: any JobRunner
    private let doorbells: DoorbellThread?
    /// Of devices that work where their notifications come.
    private let ownDoorbells: [DoorbellThread]
    private let isShutDown = Mutex(false)

    /// Slot 0 is the host bridge.
    private static let slotCount = 31
    /// Requests of all disks that wait for the host at once.
    private static let workerLimit = 8

    init(
        _ configurations: [DeviceConfiguration], memory: GuestMemory, machine: any VirtualMachine,
        highWindow: Range<UInt64>?, activity: EventNotifier, onTrouble: @escaping @Sendable (String) -> Void
    ) throws(MachineError) {
        guard configurations.count <= Self.slotCount else {
            throw MachineError(
                "A machine has room for \(Self.slotCount) PCI devices, not for \(configurations.count). "
                    + "Leave some of them out.")
        }
        self.machine = machine
        self.highWindow = highWindow
        // Where devices may act only in exits, everything happens on the vCPU's thread.
        let isImmediate = machine.writesOnlyInExits
        if isImmediate { try Self.requireImmediate(configurations) }
        self.configurations = configurations
        let console = configurations.contains(where: \.isConsole) ? VirtioConsoleConnection(activity: activity) : nil
        self.console = console
        runner = isImmediate ? ImmediateRunner() : WorkerPool(name: "disk", limit: Self.workerLimit)
        var devices: [(slot: UInt8, device: VirtioPCIDevice)] = []
        var ownDoorbells: [DoorbellThread] = []
        do throws(HostError) {
            doorbells = isImmediate || configurations.isEmpty ? nil : try DoorbellThread()
            for (index, configuration) in configurations.enumerated() {
                let device = try Self.device(
                    configuration, console: console, runner: runner, isImmediate: isImmediate)
                let log = DeviceLog(name: "\(device.kind.name) 00:\(Self.hex(index + 1)).0", sink: onTrouble)
                var thread = doorbells
                if case .fileSystem = configuration, !isImmediate {
                    let own = try DoorbellThread()
                    ownDoorbells.append(own)
                    thread = own
                }
                devices.append(
                    (UInt8(index + 1), try VirtioPCIDevice(device, memory: memory, log: log, doorbellThread: thread)))
            }
        } catch {
            throw MachineError("\(error). Raise the limit of open files (ulimit -n) and try again.")
        }
        self.devices = devices
        self.ownDoorbells = ownDoorbells
        slots = devices.map(\.slot)
        hierarchy = PCIHierarchy(
            Dictionary(uniqueKeysWithValues: devices.map { ($0.slot, $0.device.function as any PCIConfigurable) }))
    }

    private static func hex(_ slot: Int) -> String { (slot < 16 ? "0" : "") + String(slot, radix: 16) }

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
        var lines: [UInt32: SharedInterruptLine] = [:]
        var nextAddress = PCIMemoryLayout.lowWindows[0].lowerBound
        for (slot, device) in devices {
            let gsi = PCIInterruptRouting.gsi(slot: slot, pin: 0)
            let line = lines[gsi] ?? SharedInterruptLine(EngineInterruptLine(machine: machine, gsi: GSI(gsi)))
            lines[gsi] = line
            for bar in device.function.description.bars where bar.kind != .io {
                nextAddress = (nextAddress &+ bar.size &- 1) & ~(bar.size &- 1)
                device.function.assign(nextAddress, to: bar)
                nextAddress &+= bar.size
            }
            device.function.assignInterruptLine(UInt8(truncatingIfNeeded: gsi))
            device.function.connect(
                device,
                to: PCISlotConnection(
                    owner: Int(slot), decoder: decoder, machine: machine, line: line.input(Int(slot))))
        }
    }

    /// The machine has ended: no device does anything afterwards.
    func shutDown() {
        let isFirst = isShutDown.withLock { done in
            defer { done = true }
            return !done
        }
        guard isFirst else { return }
        doorbells?.stop()
        for thread in ownDoorbells { thread.stop() }
        for (_, device) in devices {
            device.shutDown()
            (device.device as? VirtioNet)?.unplug()
        }
        for configuration in configurations {
            if case .ports(let endpoints) = configuration { for endpoint in endpoints { endpoint.unplug() } }
            if case .balloon(let control) = configuration { control.unplug() }
        }
        runner.stop()
    }
}
