internal import DeviceModel
internal import GuestMemory
public import Net
internal import Synchronization

/// How a network card is presented.
public struct NetworkCardOptions: Equatable, Sendable {
    public var mac: MACAddress
    public var queuePairs: Int
    /// Mbit/s, as the guest is told (Virtio 1.2 §5.1.4).
    public var speed: UInt32
    /// Whether the host's kernel may read and write the guest's memory without the engine.
    public var allowsVhost = true

    public init(mac: MACAddress, queuePairs: Int = 1, speed: UInt32 = 10_000) {
        precondition(NetworkConfiguration.queuePairRange.contains(queuePairs))
        self.mac = mac
        self.queuePairs = queuePairs
        self.speed = speed
    }
}

/// A network device (Virtio 1.2 §5.1) in a port of any back end.
///
/// Frames from the guest are sent in `notify`, frames for it are written to its memory by the back end's thread. The
/// device keeps no buffer of the guest between two calls.
///
/// Locks: `transmission` is held while a frame is sent, and `state` for a moment inside it; no lock is held while the
/// transport is called.
public final class VirtioNet: VirtioDevice, FrameReceiver {
    // Configuration
    let port: NetworkPort
    let options: NetworkCardOptions
    // Glue
    let link: Mutex<Link>
    // Volatile state
    let state: Mutex<NetState>
    let steering = Mutex(FlowSteering())
    /// One sender at a time, so that the frames of a queue keep their order.
    let transmission = Mutex<Void>(())
    /// A frame was refused, and `canSend` has not come since.
    let isBlocked = Atomic<Bool>(false)
    /// A frame waits in the back end for buffers of the guest.
    let isStarved = Atomic<Bool>(false)
    /// Receive queues with frames of which the guest was not told, a bit each.
    let unsignalled = Atomic<UInt64>(0)
    /// It was told why the kernel's data path is not used.
    let hasToldVhost = Atomic<Bool>(false)

    /// What becomes of frames for the guest.
    enum Link: Sendable {
        /// Power-on state: nobody is there, they are thrown away.
        case down
        /// Between `stop` and what follows: they wait in the back end.
        case paused
        case running(VirtioContext)
        /// As that, and the queues of frames are the kernel's.
        case inKernel(VirtioContext, VhostDataPath)
    }

    static let dataQueueSize: UInt16 = 256
    static let controlQueueSize: UInt16 = 64
    /// Frames that one call of `notify` sends at most; other devices have their turn between two.
    static let batchLimit = 64

    /// `port` gets this card; the frames of an earlier one go nowhere else.
    public convenience init(_ port: NetworkPort, options: NetworkCardOptions) {
        self.init(port, options: options, state: NetState(mac: options.mac), link: .down)
    }

    init(_ port: NetworkPort, options: NetworkCardOptions, state: NetState, link: Link) {
        self.port = port
        self.options = options
        self.state = Mutex(state)
        self.link = Mutex(link)
        port.connect(self)
    }

    /// The card is unplugged: its port may get another one. After `stop`.
    public func unplug() { port.disconnect(self) }

    // MARK: What the driver sees

    public let kind = VirtioKind(name: "virtio-net", identifier: 1, pciClass: 0x02_0000)

    /// Everything whatever the back end can: it does in software what it does not pass on, and never sends undone what it
    /// cannot. A guest can so move from one back end to another.
    public var features: UInt64 {
        var features = NetFeature.checksum | NetFeature.mtu | NetFeature.mac | NetFeature.mergeableBuffers
        features |= NetFeature.status | NetFeature.speedDuplex | NetFeature.guestOffloads
        features |= NetFeature.hostTCP4 | NetFeature.hostTCP6 | NetFeature.hostECN | NetFeature.hostUDP
        features |= NetFeature.controlQueue | NetFeature.controlReceive | NetFeature.controlReceiveExtra
        features |= NetFeature.controlVLAN | NetFeature.controlMAC | NetFeature.controlGuestOffloads
        features |= NetFeature.guestAnnounce
        return options.queuePairs > 1 ? features | NetFeature.multiqueue : features
    }

    public func accepts(features: UInt64) -> Bool {
        NetFeature.requirements.allSatisfy { features & $0.feature == 0 || features & $0.anyOf != 0 }
    }

    /// Receive and transmit queue of each pair, then the control queue (§5.1.2).
    public var queueSizes: [UInt16] {
        Array(repeating: Self.dataQueueSize, count: 2 * options.queuePairs) + [Self.controlQueueSize]
    }

    /// Without VIRTIO_NET_F_MQ the control queue has the place of the second pair (§5.1.2).
    func controlQueue(_ features: UInt64) -> Int {
        features & NetFeature.multiqueue != 0 ? 2 * options.queuePairs : 2
    }

    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: NetConfigurationField.size)
        let (mac, mustAnnounce) = state.withLock { ($0.mac, $0.mustAnnounce) }
        for (index, byte) in mac.bytes.enumerated() { bytes[NetConfigurationField.mac + index] = byte }
        let status = (port.hasLink ? NetStatus.linkUp : 0) | (mustAnnounce ? NetStatus.announce : 0)
        bytes.store(status, at: NetConfigurationField.status)
        bytes.store(UInt16(options.queuePairs), at: NetConfigurationField.maximumQueuePairs)
        bytes.store(port.mtu, at: NetConfigurationField.mtu)
        bytes.store(options.speed, at: NetConfigurationField.speed)
        // 1: full duplex.
        bytes.store(UInt8(1), at: NetConfigurationField.duplex)
        return bytes
    }

    /// The legacy header ends before num_buffers if the driver does not merge (§5.1.6.1).
    static func headerSize(_ features: UInt64) -> Int {
        features & (VirtioFeature.version1 | NetFeature.mergeableBuffers) != 0
            ? VirtualNetworkHeader.size : VirtualNetworkHeader.size - 2
    }

    /// Legacy drivers without the control queue's command set the address here (§5.1.4.1).
    public func writeConfiguration(_ value: UInt8, at offset: Int, features: UInt64) {
        guard features & (VirtioFeature.version1 | NetFeature.controlMAC) == 0, (0..<6).contains(offset) else { return }
        let shift = UInt64(5 - offset) * 8
        state.withLock { state in
            state.mac = MACAddress(rawValue: state.mac.rawValue & ~(0xFF << shift) | UInt64(value) << shift)
        }
    }

    // MARK: Life

    /// The driver's first start, or the next one after `stop`: the state says which offloads it had chosen by then.
    public func start(_ context: VirtioContext) {
        let wasPaused = link.withLock { link in
            defer { link = .running(context) }
            if case .paused = link { return true }
            return false
        }
        let (offloads, mustAnnounce) = state.withLock { state in
            if !wasPaused { state.guestOffloads = context.features & NetFeature.guestOffloads }
            if !wasPaused, context.has(NetFeature.controlVLAN) { state.filter.vlans = ReceiveFilter.noVLANs }
            if !context.has(NetFeature.guestAnnounce) { state.mustAnnounce = false }
            return (state.guestOffloads, state.mustAnnounce)
        }
        setReceiveOffloads(offloads, context.log)
        isBlocked.store(false, ordering: .sequentiallyConsistent)
        // What was delivered when it stopped, and not told.
        for index in stride(from: 0, to: controlQueue(context.features), by: 2) {
            context.queues[index].interruptIfWanted()
        }
        // Whatever waits in the back end is asked for when the gate is open, by the first notification.
        isStarved.store(true, ordering: .sequentiallyConsistent)
        if let path = startVhost(context) { link.withLock { $0 = .inKernel(context, path) } }
        if mustAnnounce { context.noteConfigurationChange() }
    }

    public func stop() {
        let path: VhostDataPath? = link.withLock { link in
            switch link {
            case .down, .paused: return nil
            case .running:
                link = .paused
                return nil
            case .inKernel(_, let path):
                link = .paused
                return path
            }
        }
        path?.stop()
    }

    public func reset() {
        link.withLock { $0 = .down }
        state.withLock { $0 = NetState(mac: options.mac) }
        steering.withLock { $0 = FlowSteering() }
        setReceiveOffloads(0, nil)
        // What waited for the guest's buffers is thrown away.
        port.resumeReceiving()
    }

    func setReceiveOffloads(_ features: UInt64, _ log: DeviceLog?) {
        do throws(NetworkError) {
            try port.setReceiveOffloads(NetFeature.receiveOffloads(features))
        } catch {
            // Frames that the guest cannot take are dropped (`receive`).
            log?.note("\(error)")
        }
    }

    public func notify(_ queue: Int) -> Bool {
        let context: VirtioContext
        switch link.withLock({ $0 }) {
        case .down, .paused: return false
        case .running(let running): context = running
        case .inKernel(let running, let path):
            guard queue >= VhostDataPath.queueCount else {
                path.kick(queue)
                return false
            }
            context = running
        }
        if queue == controlQueue(context.features) { return handleCommands(context) }
        if queue % 2 == 1 { return transmit(queue, context) }
        if isStarved.exchange(false, ordering: .sequentiallyConsistent) { port.resumeReceiving() }
        return false
    }

    /// The context with the gate entered: `leave` follows. Nil: the device does not run.
    func enter() -> VirtioContext? {
        switch link.withLock({ $0 }) {
        case .down, .paused: return nil
        case .running(let context), .inKernel(let context, _): return context.gate.enter() ? context : nil
        }
    }

    public func linkWasLost() {
        guard let context = enter() else { return }
        context.noteConfigurationChange()
        context.gate.leave()
    }
}
