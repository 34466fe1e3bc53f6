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

    init(port: SerialPort, line: any InterruptLine, activity: EventNotifier) {
        let output = SerialOutputBuffer { activity.signal() }
        self.output = output
        uart = UART16550(port: port, line: line, sink: output) { activity.signal() }
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

    /// `events` hears of power-off, reset and the like; `activity` is signalled when a serial port has news.
    init(
        _ configuration: MachineConfiguration, layout: PhysicalMemoryMap, memory: GuestMemory,
        commandLine: String, machine: any VirtualMachine, pci: PCIBoard, events: MachineEvents,
        activity: EventNotifier
    ) throws(BusConflict) {
        func line(_ irq: UInt32) -> EngineInterruptLine { EngineInterruptLine(machine: machine, gsi: GSI(irq)) }
        let wallClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: HostClock.realtimeNanoseconds)) }
        let monotonicClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: HostClock.monotonicNanoseconds)) }
        let reset: @Sendable () -> Void = { events.end(with: .reset) }

        var fixed = Bus()
        serial = try Self.attachSerialPorts(configuration.serial.ports, to: &fixed, line: line, activity: activity)
        try Self.attach(CMOSRTC(layout: layout, line: line(8), wallClock: wallClock), to: &fixed)
        try Self.attach(I8042(line: line(1), onReset: reset), to: &fixed)
        try Self.attach(SystemControlPortA(onReset: reset), to: &fixed)
        try Self.attach(PCIHostBridge(hierarchy: pci.hierarchy, onReset: reset), to: &fixed)
        try Self.attach(
            ACPIPowerManagement(
                sciLine: line(9), monotonicClock: monotonicClock, onPowerOff: { events.powerOff() }), to: &fixed)
        try Self.attach(PVPanic { if $0 == .panicked { events.notePanic() } }, to: &fixed)
        try Self.attach(GuestStatusPort { events.setGuestStatus($0) }, to: &fixed)
        try Self.attach(
            FirmwareConfiguration(
                memory: memory,
                contents: .init(layout: layout, cpuCount: 1, commandLine: commandLine)), to: &fixed)
        if let debugExit = configuration.debugExit {
            try Self.attach(
                ISADebugExit(base: debugExit.base, size: debugExit.size) { events.end(with: .debugExit($0)) },
                to: &fixed)
        }
        (ports, memoryMapped) = try pci.buses(withPorts: fixed)
        pci.connect(ports: ports, memory: memoryMapped)
    }

    private static func attachSerialPorts(
        _ serialPorts: [SerialPort], to bus: inout Bus, line: (UInt32) -> EngineInterruptLine, activity: EventNotifier
    ) throws(BusConflict) -> [SerialConnection] {
        var serial: [SerialConnection] = []
        var shared: [UInt32: SharedInterruptLine] = [:]
        for (index, port) in serialPorts.enumerated() {
            let sharedLine = shared[port.irq] ?? SharedInterruptLine(line(port.irq))
            shared[port.irq] = sharedLine
            let connection = SerialConnection(port: port, line: sharedLine.input(index), activity: activity)
            try attach(connection.device, to: &bus)
            serial.append(connection)
        }
        return serial
    }

    private static func attach(_ device: some BoardDevice, to bus: inout Bus) throws(BusConflict) {
        for attachment in device.attachments {
            try bus.attach(attachment)
        }
    }
}
