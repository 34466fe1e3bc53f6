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
    private(set) var ports = Bus()
    private(set) var memoryMapped = Bus()
    private(set) var serial: [SerialConnection] = []

    /// `events` hears of power-off, reset and the like; `activity` is signalled when a serial port has news.
    init(
        _ configuration: MachineConfiguration, layout: PhysicalMemoryMap, memory: GuestMemory,
        commandLine: String, machine: any VirtualMachine, events: MachineEvents, activity: EventNotifier
    ) throws(BusConflict) {
        func line(_ irq: UInt32) -> EngineInterruptLine { EngineInterruptLine(machine: machine, gsi: GSI(irq)) }
        let wallClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: HostClock.realtimeNanoseconds)) }
        let monotonicClock: @Sendable () -> Duration = { .nanoseconds(Int64(clamping: HostClock.monotonicNanoseconds)) }
        let reset: @Sendable () -> Void = { events.end(with: .reset) }

        try attachSerialPorts(configuration.serial.ports, line: line, activity: activity)
        try attach(CMOSRTC(layout: layout, line: line(8), wallClock: wallClock))
        try attach(I8042(line: line(1), onReset: reset))
        try attach(SystemControlPortA(onReset: reset))
        try attach(PCIHostBridge(onReset: reset))
        try attach(
            ACPIPowerManagement(
                sciLine: line(9), monotonicClock: monotonicClock, onPowerOff: { events.powerOff() }))
        try attach(PVPanic { if $0 == .panicked { events.notePanic() } })
        try attach(GuestStatusPort { events.setGuestStatus($0) })
        try attach(
            FirmwareConfiguration(
                memory: memory,
                contents: .init(layout: layout, cpuCount: 1, commandLine: commandLine)))
        if let debugExit = configuration.debugExit {
            try attach(
                ISADebugExit(base: debugExit.base, size: debugExit.size) { events.end(with: .debugExit($0)) })
        }
    }

    private mutating func attachSerialPorts(
        _ serialPorts: [SerialPort], line: (UInt32) -> EngineInterruptLine, activity: EventNotifier
    ) throws(BusConflict) {
        var shared: [UInt32: SharedInterruptLine] = [:]
        for (index, port) in serialPorts.enumerated() {
            let sharedLine = shared[port.irq] ?? SharedInterruptLine(line(port.irq))
            shared[port.irq] = sharedLine
            let connection = SerialConnection(port: port, line: sharedLine.input(index), activity: activity)
            try attach(connection.device)
            serial.append(connection)
        }
    }

    private mutating func attach(_ device: some BoardDevice) throws(BusConflict) {
        for attachment in device.attachments {
            try ports.attach(attachment)
        }
    }
}
