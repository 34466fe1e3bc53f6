internal import DeviceModel
internal import Hypervisor
internal import Platform
internal import Synchronization

/// Where PCI functions meet the buses: takes the regions that they decode to the bus tables, and their doorbells to the
/// engine.
final class PCIDecoder: Sendable {
    private struct State: Sendable {
        var regions: [Int: [PCIRegion]] = [:]
        /// What the engine has of them.
        var events: Set<IOEvent> = []
    }

    private let ports: DynamicBus
    private let memory: DynamicBus
    private let machine: any VirtualMachine
    private let state = Mutex(State())

    init(ports: DynamicBus, memory: DynamicBus, machine: any VirtualMachine) {
        self.ports = ports
        self.memory = memory
        self.machine = machine
    }

    func decode(_ regions: [PCIRegion], owner: Int) {
        // One at a time: the engine must end with the doorbells of the tables as they are.
        state.withLock { state in
            state.regions[owner] = regions
            let inPorts = ports.setClaims(Self.claims(regions, owner, isPortIO: true), of: owner)
            let inMemory = memory.setClaims(Self.claims(regions, owner, isPortIO: false), of: owner)
            let wanted = Set(
                Self.events(state.regions, inPorts, isPort: true)
                    + Self.events(state.regions, inMemory, isPort: false))
            // Without the engine's help a doorbell is a write like any other.
            for event in state.events.subtracting(wanted) { try? machine.setIOEvent(event, isAssigned: false) }
            for event in wanted.subtracting(state.events) { try? machine.setIOEvent(event, isAssigned: true) }
            state.events = wanted
        }
    }

    private static func claims(_ regions: [PCIRegion], _ owner: Int, isPortIO: Bool) -> [DynamicBus.Claim] {
        regions.filter { $0.isPortIO == isPortIO }.map {
            DynamicBus.Claim(owner: owner, name: $0.name, base: $0.base, size: $0.size, device: $0.device)
        }
    }

    /// The doorbells of the regions that are in effect.
    private static func events(
        _ regions: [Int: [PCIRegion]], _ effective: [DynamicBus.Claim], isPort: Bool
    ) -> [IOEvent] {
        effective.flatMap { claim in
            (regions[claim.owner] ?? [])
                .filter { $0.isPortIO == isPort && $0.base == claim.base && $0.size == claim.size }
                .flatMap { region in
                    region.doorbells.map { doorbell in
                        IOEvent(
                            address: region.base &+ doorbell.offset, length: UInt32(doorbell.width.rawValue),
                            isPort: isPort, match: doorbell.match, descriptor: doorbell.notifier.eventDescriptor)
                    }
                }
        }
    }
}

/// One function's way to the board.
struct PCISlotConnection: PCIConnection {
    let owner: Int
    let decoder: PCIDecoder
    let router: MessageRouter
    let line: any InterruptLine

    func decode(_ regions: [PCIRegion]) { decoder.decode(regions, owner: owner) }

    func setInterruptPin(_ level: Bool) { line.setLevel(level) }

    func send(_ message: PCIMessage, vector: Int) {
        router.send(message, from: MessageRouter.Source(owner: owner, vector: vector))
    }
}
