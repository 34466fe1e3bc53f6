internal import GuestMemory
internal import Host
internal import Net
internal import Synchronization
internal import X86

/// Why a card's frames do not go the kernel's way.
enum VhostRefusal: Error, Equatable, CustomStringConvertible {
    case severalPairs
    case observedMemory
    case noDoorbells
    /// What the driver chose, and the kernel has not.
    case features(UInt64)
    /// The kernel passes on large frames uncut, and the tap does not take them so.
    case segmentation
    /// Not split, or not in RAM.
    case ring(Int)
    case host(HostError)

    var description: String {
        switch self {
        case .severalPairs: "the card has several pairs of queues"
        case .observedMemory: "the engine has to see each write to the guest's memory"
        case .noDoorbells: "the engine has no doorbells"
        case .features(let features): "the driver uses features that it has not (0x\(String(features, radix: 16)))"
        case .segmentation: "the tap does not cut frames as the driver was told"
        case .ring(let index): "queue \(index) is no ring that it can use"
        case .host(let error): "\(error)"
        }
    }
}

/// A card's receive and transmit queue in the hands of the kernel (vhost-net), from `start` to `stop`. The kernel hears the
/// doorbells itself, moves frames between the guest's memory and the tap, and signals when the driver wants an interrupt.
final class VhostDataPath: Sendable {
    private struct Ring: Sendable {
        let queue: Virtqueue
        let kick: EventNotifier
        let call: EventNotifier
        let error: EventNotifier
    }

    /// What `stop` has to undo.
    private struct State: Sendable {
        var device: (any VhostNetDevice)?
        var hasTap = false
        var rings: [Ring] = []
        /// So many of the rings are, or were, on the tap.
        var attached = 0
        var isHalted = false
        /// It is not known where the kernel has stopped.
        var isLost = false
    }

    static let queueCount = 2
    /// Of rings and headers: what the kernel has to know of the driver's choice.
    private static let ringFeatures =
        VirtioFeature.version1 | VirtioFeature.indirectDescriptors | VirtioFeature.eventIndex
        | NetFeature.mergeableBuffers
    private static let foreignFeatures = VirtioFeature.packedRing | VirtioFeature.inOrder

    private let port: NetworkPort
    private let offer: VhostOffer
    private let context: VirtioContext
    private let state = Mutex(State())

    init(_ offer: VhostOffer, _ port: NetworkPort, _ context: VirtioContext) {
        self.offer = offer
        self.port = port
        self.context = context
    }

    // MARK: Start

    /// With the gate closed. `last` delivers the frame that waits in the back end. After a refusal all is as before.
    func start(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool) throws(VhostRefusal) {
        try requireDriver()
        do throws(VhostRefusal) {
            try begin(last)
        } catch {
            stop()
            throw error
        }
    }

    /// What can be told without the kernel.
    private func requireDriver() throws(VhostRefusal) {
        guard !context.memory.isObserved else { throw .observedMemory }
        let foreign = context.features & Self.foreignFeatures
        guard foreign == 0 else { throw .features(foreign) }
        guard context.has(VirtioFeature.version1) else { throw .features(VirtioFeature.version1) }
        let cuts: [(UInt64, Offloads)] = [
            (NetFeature.hostTCP4, .tcp4), (NetFeature.hostTCP6, .tcp6), (NetFeature.hostECN, .ecn),
            (NetFeature.hostUDP, .udp),
        ]
        for (feature, offload) in cuts where context.has(feature) && !port.nativeOffloads.contains(offload) {
            throw .segmentation
        }
        for index in 0..<Self.queueCount { _ = try addresses(of: index) }
    }

    private func begin(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool) throws(VhostRefusal) {
        let device = try host { () throws(HostError) in try offer.open() }
        state.withLock { $0.device = device }
        let wanted = context.features & Self.ringFeatures
        let offered = try host { () throws(HostError) in
            try device.setOwner()
            return try device.features()
        }
        guard wanted & ~offered == 0 else { throw .features(wanted & ~offered) }
        try host { () throws(HostError) in
            try device.setFeatures(wanted)
            try device.setMemory(
                context.memory.regions.filter { !$0.isReadOnly }.map {
                    VhostMemoryRegion(
                        guestAddress: $0.base.rawValue, size: $0.size, hostAddress: $0.hostAddress)
                })
        }
        for index in 0..<Self.queueCount { try claim(index) }
        state.withLock { $0.hasTap = true }
        port.handOver(last)
        let rings = state.withLock { $0.rings }
        for (index, ring) in rings.enumerated() { try set(ring, index, device) }
        for index in rings.indices {
            try host { () throws(HostError) in try device.setBackend(offer.tap, ofRing: index) }
            state.withLock { $0.attached = index + 1 }
        }
        // For what was there before anybody listened.
        for ring in rings { ring.kick.signal() }
    }

    private func host<Result>(_ body: () throws(HostError) -> Result) throws(VhostRefusal) -> Result {
        do throws(HostError) {
            return try body()
        } catch {
            throw .host(error)
        }
    }

    /// Takes a queue's doorbell from the thread that hears it, and gives that thread the kernel's signals.
    private func claim(_ index: Int) throws(VhostRefusal) {
        let queue = context.queues[index]
        let (call, error) = try host { () throws(HostError) in (try EventNotifier(), try EventNotifier()) }
        guard let kick = context.events.claimDoorbell(of: index) else { throw .noDoorbells }
        state.withLock { $0.rings.append(Ring(queue: queue, kick: kick, call: call, error: error)) }
        try host { [context] () throws(HostError) in
            try context.events.listen(to: call) {
                // `stop` interrupts for those that come too late.
                guard context.gate.enter() else { return }
                queue.interrupt()
                context.gate.leave()
            }
            try context.events.listen(to: error) { [weak self] in self?.fail(index) }
        }
    }

    private func set(_ ring: Ring, _ index: Int, _ device: any VhostNetDevice) throws(VhostRefusal) {
        // What this process has put into it.
        ring.queue.interruptIfWanted()
        guard let split = ring.queue.splitRing() else { throw .ring(index) }
        let addresses = try addresses(of: index)
        try host { () throws(HostError) in
            try device.setSize(split.size, ofRing: index)
            try device.setBase(split.nextAvailable, ofRing: index)
            try device.setAddresses(addresses, ofRing: index)
            try device.setEvent(.kick, ring.kick, ofRing: index)
            try device.setEvent(.call, ring.call, ofRing: index)
            try device.setEvent(.error, ring.error, ofRing: index)
        }
    }

    /// Where the kernel finds the parts of a ring, each whole in one region of RAM and aligned (Virtio 1.2 §2.7).
    private func addresses(of index: Int) throws(VhostRefusal) -> VhostRingAddresses {
        guard let ring = context.queues[index].splitRing() else { throw .ring(index) }
        let (parts, sizes) = (ring.addresses, ring.sizes)
        guard parts.descriptors % 16 == 0, parts.driver % 2 == 0, parts.device % 4 == 0 else { throw .ring(index) }
        do throws(GuestMemoryFault) {
            return VhostRingAddresses(
                descriptors: try place(parts.descriptors, sizes.descriptors),
                available: try place(parts.driver, sizes.driver), used: try place(parts.device, sizes.device))
        } catch {
            throw .ring(index)
        }
    }

    private func place(_ address: UInt64, _ count: Int) throws(GuestMemoryFault) -> UInt64 {
        try context.memory.hostAddress(of: GuestMemoryRange(base: GuestPhysicalAddress(address), count: count))
    }

    // MARK: Life

    /// The driver's notification came another way than by the doorbell.
    func kick(_ queue: Int) {
        let kick = state.withLock { $0.rings.indices.contains(queue) ? $0.rings[queue].kick : nil }
        kick?.signal()
    }

    /// The driver is broken: nothing is taken any more, until a reset.
    private func fail(_ queue: Int) {
        guard context.gate.enter() else { return }
        defer { context.gate.leave() }
        // Not the driver that came after it.
        guard state.withLock({ $0.attached > 0 }) else { return }
        halt()
        context.fail("queue \(queue): the kernel cannot follow the driver's ring or buffers")
    }

    private func halt() {
        let (device, attached) = state.withLock { state in
            defer { state.isHalted = true }
            return (state.isHalted ? nil : state.device, state.attached)
        }
        for index in 0..<attached {
            do { try device?.setBackend(nil, ofRing: index) } catch { state.withLock { $0.isLost = true } }
        }
    }

    /// With the gate closed: the queues are this process's again, where the kernel has left them.
    func stop() {
        halt()
        var last = state.withLock { state in
            defer { state = State() }
            return state
        }
        for (index, ring) in last.rings.enumerated().prefix(last.attached) where ring.queue.isEnabled {
            guard !last.isLost, let base = try? last.device?.base(ofRing: index) else {
                context.fail("queue \(index): the kernel does not say where it has stopped")
                continue
            }
            ring.queue.resume(at: base)
            // A signal may be on its way between two threads; one more does no harm.
            ring.queue.interrupt()
        }
        last.device = nil
        for (index, ring) in last.rings.enumerated() {
            context.events.stopListening(to: ring.call)
            context.events.stopListening(to: ring.error)
            context.events.returnDoorbell(of: index)
        }
        if last.hasTap { port.takeBack() }
    }
}
