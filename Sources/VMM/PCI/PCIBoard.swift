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
    /// The guest has placed its devices already.
    private let isRestored: Bool
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
        highWindow: Range<UInt64>?, onTrouble: @escaping @Sendable (String) -> Void, saved: [[UInt8]]? = nil
    ) throws(MachineError) {
        guard configurations.count <= Self.slotCount else {
            throw MachineError(
                "A machine has room for \(Self.slotCount) PCI devices, not for \(configurations.count). "
                    + "Leave some of them out.")
        }
        if let saved, saved.count != configurations.count {
            throw MachineError(
                "The saved machine had \(saved.count) PCI devices, not \(configurations.count). Give it the same.")
        }
        isRestored = saved != nil
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
        let rings = try configurations.map { (configuration) throws(MachineError) in
            try DiskRing.make(for: configuration, isImmediate: isImmediate)
        }
        do {
            doorbells = isImmediate || configurations.isEmpty ? nil : try DoorbellThread()
            for (index, configuration) in configurations.enumerated() {
                let state = try saved.map { try VirtioPCISavedState(encoded: $0[index]) }
                let device = try Self.device(
                    configuration, runner: runner, isImmediate: isImmediate, ring: rings[index], saved: state?.device)
                let log = DeviceLog(name: "\(device.kind.name) 00:\(Self.hex(index + 1)).0", sink: onTrouble)
                var thread = doorbells
                if configuration.worksWhereNotified(ring: rings[index]), !isImmediate {
                    let own = try DoorbellThread()
                    ownDoorbells.append(own)
                    thread = own
                    if let ring = rings[index], let disk = device as? VirtioBlock {
                        try own.listen(to: ring.completions) { disk.reap() }
                    }
                }
                let function =
                    if let state {
                        try VirtioPCIDevice(
                            restoring: state, device, memory: memory, log: log, doorbellThread: thread)
                    } else {
                        try VirtioPCIDevice(device, memory: memory, log: log, doorbellThread: thread)
                    }
                devices.append((UInt8(index + 1), function))
            }
        } catch let error as SavedStateError {
            throw MachineError("\(error)")
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

    /// The device of a configuration, new or with what it remembered itself when it was saved.
    private static func device(
        _ configuration: DeviceConfiguration, runner: any JobRunner, isImmediate: Bool, ring: SubmissionRing?,
        saved: [UInt8]?
    ) throws -> any VirtioDevice {
        let parallelism = isImmediate ? 1 : 4
        switch configuration {
        case .disk(let backend, let options):
            guard let saved else {
                return VirtioBlock(backend, options: options, runner: runner, parallelism: parallelism, ring: ring)
            }
            return try VirtioBlock(
                restoring: VirtioBlockSavedState(encoded: saved), backend, options: options, runner: runner,
                parallelism: parallelism, ring: ring)
        case .network(let port, let options):
            guard let saved else { return VirtioNet(port, options: options) }
            return try VirtioNet(restoring: VirtioNetSavedState(encoded: saved), port, options: options)
        case .entropy: return VirtioEntropy()
        case .fileSystem(let share, let tag):
            guard let saved else {
                return VirtioFileSystem(share, tag: tag, runner: runner, parallelism: parallelism)
            }
            return try VirtioFileSystem(
                restoring: VirtioFileSystemSavedState(encoded: saved), share, tag: tag, runner: runner,
                parallelism: parallelism)
        case .socket(let endpoint):
            guard let saved else { return try VirtioSocket(endpoint) }
            return try VirtioSocket(restoring: VirtioSocketSavedState(encoded: saved), endpoint)
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
            for bar in device.function.description.bars where bar.kind != .io && !isRestored {
                nextAddress = (nextAddress &+ bar.size &- 1) & ~(bar.size &- 1)
                device.function.assign(nextAddress, to: bar)
                nextAddress &+= bar.size
            }
            if !isRestored { device.function.assignInterruptLine(UInt8(truncatingIfNeeded: gsi)) }
            device.function.connect(
                device,
                to: PCISlotConnection(
                    owner: Int(slot), decoder: decoder, machine: machine, line: line.input(Int(slot))))
        }
    }

    // MARK: Life

    /// Returns when no device touches the guest's memory or its interrupts any more.
    func pause() {
        for (_, device) in devices { device.pause() }
    }

    /// After `pause`, or once in a restored machine.
    func resume() {
        for (_, device) in devices { device.resume() }
    }

    /// While the devices pause.
    func save() -> [[UInt8]] { devices.map { $0.device.save().encoded() } }

    /// The machine has ended: no device does anything afterwards.
    func shutDown() {
        let isFirst = isShutDown.withLock { done in
            defer { done = true }
            return !done
        }
        guard isFirst else { return }
        doorbells?.stop()
        for (_, device) in devices {
            device.shutDown()
            (device.device as? VirtioNet)?.unplug()
        }
        // Behind the devices: a disk's thread ends what is on its way when the disk stops.
        for thread in ownDoorbells { thread.stop() }
        runner.stop()
    }
}
