public import FileShare
public import Net
public import Platform
public import Virtio

/// Which engine runs the guest (`--accel`).
public enum Accelerator: String, CaseIterable, Sendable {
    case auto, kvm, soft
}

/// `--device isa-debug-exit`: how bare-metal test programs end with a status (QEMU's hw/misc/debugexit.c).
public struct DebugExitConfiguration: Equatable, Sendable {
    public var base: UInt16
    public var size: UInt16

    public init(base: UInt16 = 0xf4, size: UInt16 = 4) {
        self.base = base
        self.size = size
    }
}

/// What the serial ports of the machine are connected to.
public enum SerialLayout: Equatable, Sendable {
    /// Only COM1: the console.
    case console
    /// The default guest's four ports: console, control, standard output, standard error (scripts/guest/init).
    case defaultGuest

    var ports: [SerialPort] {
        switch self {
        case .console: [.com1]
        case .defaultGuest: [.com1, .com2, .com3, .com4]
        }
    }
}

/// A PCI device of the machine.
public enum DeviceConfiguration: Sendable {
    case disk(any BlockBackend, BlockConfigurationOptions)
    /// A card in a port that stays through all restarts of the machine.
    case network(NetworkPort, NetworkCardOptions)
    /// The host's random numbers.
    case entropy
    /// A folder of the host, which the guest mounts by its tag.
    case fileSystem(FileShare, tag: String)
    /// Stream sockets between guest and host; not where devices may act only in exits.
    case socket(SocketEndpoint)
    /// The terminal as a virtio console, beside the serial one; not where devices may act only in exits.
    case console
    /// Named byte streams between guest and host; not where devices may act only in exits.
    case ports([ConsoleEndpoint])
    /// Takes memory back from the guest.
    case balloon(BalloonControl)

    var isNetwork: Bool {
        if case .network = self { return true }
        return false
    }

    var isConsole: Bool {
        if case .console = self { return true }
        return false
    }
}

/// Everything that one power-on of a machine is made from. Restarting is building it again from the same value.
public struct MachineConfiguration: Sendable {
    /// Bytes of RAM, a multiple of 4096.
    public var memorySize: UInt64
    public var kernel: any BootFile
    public var modules: [BootModule]
    /// nil: nobody said. A Linux kernel then gets its console on COM1, another kernel nothing.
    public var commandLine: String?
    public var serial: SerialLayout
    public var debugExit: DebugExitConfiguration?
    public var processor: CPUModel
    /// PCI devices, in the order of their slots.
    public var devices: [DeviceConfiguration]
    /// Disks and network cards have the interface of drivers from before Virtio 1.0, too.
    public var isTransitional: Bool
    /// Hears, from any thread, what devices find wrong with their guest or their host; bounded.
    public var onDeviceTrouble: @Sendable (String) -> Void

    public init(
        memorySize: UInt64, kernel: any BootFile, modules: [BootModule] = [], commandLine: String? = nil,
        serial: SerialLayout = .console, debugExit: DebugExitConfiguration? = nil, processor: CPUModel = CPUModel(),
        devices: [DeviceConfiguration] = [], isTransitional: Bool = false,
        onDeviceTrouble: @escaping @Sendable (String) -> Void = { _ in }
    ) {
        self.devices = devices
        self.isTransitional = isTransitional
        self.onDeviceTrouble = onDeviceTrouble
        self.memorySize = memorySize
        self.kernel = kernel
        self.modules = modules
        self.commandLine = commandLine
        self.serial = serial
        self.debugExit = debugExit
        self.processor = processor
    }
}

/// Why a machine cannot be built or started: one line for the person who asked for it.
public struct MachineError: Error, Equatable, CustomStringConvertible {
    public var description: String

    public init(_ description: String) {
        self.description = description
    }
}
