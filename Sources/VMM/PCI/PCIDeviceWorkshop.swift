internal import DeviceModel
internal import Host
internal import Platform
internal import Virtio

/// What a PCI board's functions remembered: each device and, where it has one, its root port, as their
/// `DeviceSavedState`s encode them. In the order of the configuration.
struct PCIBoardSavedState: Equatable, Sendable {
    var devices: [[UInt8]]
    var ports: [[UInt8]?]
}

/// Makes a board's devices, new or with what they remembered themselves when they were saved.
struct PCIDeviceWorkshop {
    /// The terminal's device, which is made with its connection.
    let console: VirtioConsoleConnection?
    let runner: any JobRunner
    let isImmediate: Bool
    /// The engine sees what others write to guest memory.
    let allowsVhost: Bool

    /// Requests of one queue that are executed at once.
    private var parallelism: Int { isImmediate ? 1 : 4 }

    func device(
        _ configuration: DeviceConfiguration, ring: SubmissionRing?, saved: [UInt8]?
    ) throws -> any VirtioDevice {
        switch configuration {
        case .disk(let backend, let options):
            guard let saved else {
                return VirtioBlock(backend, options: options, runner: runner, parallelism: parallelism, ring: ring)
            }
            return try VirtioBlock(
                restoring: VirtioBlockSavedState(encoded: saved), backend, options: options, runner: runner,
                parallelism: parallelism, ring: ring)
        case .network(let port, var options):
            options.allowsVhost = allowsVhost
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
        case .console:
            guard let console else { preconditionFailure("made with the board") }
            return console.device
        case .ports(let endpoints): return try ports(endpoints, saved: saved)
        case .balloon(let control): return try control.makeBalloon(restoring: saved)
        }
    }

    private func ports(_ endpoints: [ConsoleEndpoint], saved: [UInt8]?) throws -> any VirtioDevice {
        let descriptions = endpoints.map { VirtioConsole.PortDescription(name: $0.name) }
        let device =
            if let saved {
                try VirtioConsole(
                    restoring: VirtioConsoleSavedState(encoded: saved), ports: descriptions,
                    sink: ConsoleEndpoints(endpoints))
            } else {
                VirtioConsole(ports: descriptions, sink: ConsoleEndpoints(endpoints))
            }
        for (port, endpoint) in endpoints.enumerated() { endpoint.plug(into: device, port: port) }
        return device
    }

    func rootPort(
        bus: UInt8, isMultifunction: Bool, function: PCIFunction, saved: [UInt8]??
    ) throws -> PCIRootPort {
        guard let saved = saved ?? nil else {
            return PCIRootPort(slotNumber: Int(bus), isMultifunction: isMultifunction, child: function) {
                function.reset()
            }
        }
        return try PCIRootPort(
            restoring: PCIRootPortSavedState(encoded: saved), slotNumber: Int(bus), isMultifunction: isMultifunction,
            child: function
        ) { function.reset() }
    }
}
