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
        highWindow: Range<UInt64>?, onTrouble: @escaping @Sendable (String) -> Void
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
        if isImmediate, configurations.contains(where: \.isNetwork) {
            throw MachineError(
                "--engine lockstep has no network cards: frames come while the processor runs, which it cannot compare. "
                    + "Leave out --net or choose another --engine.")
        }
        runner = isImmediate ? ImmediateRunner() : WorkerPool(name: "disk", limit: Self.workerLimit)
        var devices: [(slot: UInt8, device: VirtioPCIDevice)] = []
        var ownDoorbells: [DoorbellThread] = []
        if isImmediate, configurations.contains(where: { if case .socket = $0 { true } else { false } }) {
            throw MachineError(
                "A socket device brings data whenever the host has some, and --engine lockstep allows that only at the guest's own steps. Use another engine, or leave out --vsock."
            )
        }
        do throws(HostError) {
            doorbells = isImmediate || configurations.isEmpty ? nil : try DoorbellThread()
            for (index, configuration) in configurations.enumerated() {
                let device = try Self.device(configuration, runner: runner, isImmediate: isImmediate)
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

    private static func device(
        _ configuration: DeviceConfiguration, runner: any JobRunner, isImmediate: Bool
    ) throws(HostError) -> any VirtioDevice {
        switch configuration {
        case .disk(let backend, let options):
            VirtioBlock(backend, options: options, runner: runner, parallelism: isImmediate ? 1 : 4)
        case .network(let port, let options): VirtioNet(port, options: options)
        case .entropy: VirtioEntropy()
        case .fileSystem(let share, let tag):
            VirtioFileSystem(share, tag: tag, runner: runner, parallelism: isImmediate ? 1 : 4)
        case .socket(let endpoint): try VirtioSocket(endpoint)
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
        runner.stop()
    }
}
