internal import DeviceModel
internal import GuestMemory
internal import Host
internal import Hypervisor
internal import Platform
internal import Synchronization
internal import X86

/// One serial port with the host's side of it.
final class SerialConnection: Sendable {
    private let uart: UART16550
    private let output: SerialOutputBuffer

    init(
        port: SerialPort, line: any InterruptLine, activity: EventNotifier, saved: UART16550SavedState?
    ) throws(SavedStateError) {
        let output = SerialOutputBuffer { activity.signal() }
        self.output = output
        uart =
            if let saved {
                try UART16550(restoring: saved, port: port, line: line, sink: output) { activity.signal() }
            } else {
                UART16550(port: port, line: line, sink: output) { activity.signal() }
            }
        // What the saved port's buffer was full of has been taken: the guest need not wait any longer.
        if saved != nil { uart.outputSpaceAvailable() }
    }

    var device: UART16550 { uart }

    /// What the guest has written since the last call.
    func take() -> [UInt8] {
        let bytes = output.take()
        if !bytes.isEmpty { uart.outputSpaceAvailable() }
        return bytes
    }

    /// Offers bytes to the guest's receiver; how many it took.
    func send(_ bytes: ArraySlice<UInt8>) -> Int { uart.receive(bytes) }
}

/// The device graph: every device of the board on its bus, with its lines.
struct Board: Sendable {
    let ports: DynamicBus
    let memoryMapped: DynamicBus
    let serial: [SerialConnection]
    /// Devices with a state, by their places.
    private let savers: [@Sendable (inout BoardSavedState) -> Void]

    /// `events` hears of power-off, reset and the like; `activity` is signalled when a serial port has news.
    init(
        _ configuration: MachineConfiguration, layout: PhysicalMemoryMap, memory: GuestMemory,
        commandLine: String, machine: any VirtualMachine, pci: PCIBoard, events: MachineEvents,
        activity: EventNotifier, clock: MachineClock, saved: BoardSavedState? = nil
    ) throws {
        func line(_ irq: UInt32) -> EngineInterruptLine { EngineInterruptLine(machine: machine, gsi: GSI(irq)) }
        let wallClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: HostClock.realtimeNanoseconds)) }
        let monotonicClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: clock.nanoseconds)) }
        let reset: @Sendable () -> Void = { events.end(with: .reset) }
        let powerOff: @Sendable () -> Void = { events.powerOff() }
        let setStatus: @Sendable (UInt8) -> Void = { events.setGuestStatus($0) }
        let contents = FirmwareConfiguration.Contents(layout: layout, cpuCount: 1, commandLine: commandLine)

        var builder = BoardBuilder(saved: saved)
        try builder.add("rtc") {
            CMOSRTC(layout: layout, line: line(8), wallClock: wallClock)
        } restoring: {
            try CMOSRTC(restoring: $0, layout: layout, line: line(8), wallClock: wallClock)
        }
        try builder.add("i8042") {
            I8042(line: line(1), onReset: reset)
        } restoring: {
            try I8042(restoring: $0, line: line(1), onReset: reset)
        }
        try builder.add("system-control") {
            SystemControlPortA(onReset: reset)
        } restoring: {
            SystemControlPortA(restoring: $0, onReset: reset)
        }
        try builder.add("pci-host-bridge") {
            PCIHostBridge(hierarchy: pci.hierarchy, onReset: reset)
        } restoring: {
            try PCIHostBridge(restoring: $0, hierarchy: pci.hierarchy, onReset: reset)
        }
        try builder.add("power-management") {
            ACPIPowerManagement(sciLine: line(9), monotonicClock: monotonicClock, onPowerOff: powerOff)
        } restoring: {
            try ACPIPowerManagement(
                restoring: $0, sciLine: line(9), monotonicClock: monotonicClock, onPowerOff: powerOff)
        }
        try builder.add("guest-status") {
            GuestStatusPort(onStatus: setStatus)
        } restoring: {
            GuestStatusPort(restoring: $0, onStatus: setStatus)
        }
        try builder.add("fw_cfg") {
            FirmwareConfiguration(memory: memory, contents: contents)
        } restoring: {
            FirmwareConfiguration(restoring: $0, memory: memory, contents: contents)
        }
        try builder.attach(PVPanic { if $0 == .panicked { events.notePanic() } })
        if let debugExit = configuration.debugExit {
            try builder.attach(
                ISADebugExit(base: debugExit.base, size: debugExit.size) { events.end(with: .debugExit($0)) })
        }
        serial = try builder.addSerialPorts(configuration.serial.ports, line: line, activity: activity)
        savers = builder.savers
        (ports, memoryMapped) = try pci.buses(withPorts: builder.bus)
        pci.connect(ports: ports, memory: memoryMapped)
    }

    /// While the machine stands still.
    func save() -> BoardSavedState {
        var state = BoardSavedState()
        for saver in savers { saver(&state) }
        return state
    }
}

/// Puts devices on the bus, new or as they were saved.
private struct BoardBuilder {
    let saved: BoardSavedState?
    private(set) var bus = Bus()
    private(set) var savers: [@Sendable (inout BoardSavedState) -> Void] = []

    init(saved: BoardSavedState?) { self.saved = saved }

    mutating func add<Device: SavableDevice>(
        _ place: String, _ new: () -> Device, restoring: (Device.SavedState) throws -> Device
    ) throws {
        let device = if let saved { try restoring(try saved.state(at: place)) } else { new() }
        try attach(device)
        savers.append { $0.add(place, device.save()) }
    }

    mutating func attach(_ device: some BoardDevice) throws {
        for attachment in device.attachments { try bus.attach(attachment) }
    }

    mutating func addSerialPorts(
        _ serialPorts: [SerialPort], line: (UInt32) -> EngineInterruptLine, activity: EventNotifier
    ) throws -> [SerialConnection] {
        var serial: [SerialConnection] = []
        var shared: [UInt32: SharedInterruptLine] = [:]
        for (index, port) in serialPorts.enumerated() {
            let sharedLine = shared[port.irq] ?? SharedInterruptLine(line(port.irq))
            shared[port.irq] = sharedLine
            let place = "serial-\(index + 1)"
            let connection = try SerialConnection(
                port: port, line: sharedLine.input(index), activity: activity,
                saved: try saved.map { try $0.state(at: place) })
            let device = connection.device
            try attach(device)
            savers.append { $0.add(place, device.save()) }
            serial.append(connection)
        }
        return serial
    }
}
