public import Host

/// Where a virtual network card's frames go to and come from. The card's own thread calls `send`; everything that
/// arrives comes from the back end's thread.
///
/// Back-pressure goes both ways. A back end that cannot take a frame says `.full` and calls `FrameReceiver.canSend` when
/// it can again. A receiver that has no room says so with `false`; the frame is kept, nothing more is delivered, and the
/// card calls `resumeReceiving` when it has room.
public protocol NetworkBackend: AnyObject, Sendable {
    /// For log lines and figures: `user`, `tap tap0`, `socket /run/a`.
    var name: String { get }
    /// The largest network-layer packet, without the Ethernet header.
    var mtu: UInt16 { get }
    /// What the back end passes on undone. Everything else a header asks for `send` does itself in software, so that a
    /// card may offer its guest all of `Offloads.transmit` on every back end.
    var nativeOffloads: Offloads { get }
    /// Whether a cable is plugged in; it may be lost later (`FrameReceiver.linkWasLost`).
    var hasLink: Bool { get }
    var statistics: NetworkStatistics { get }

    /// Starts delivering. To be called once.
    func start(_ receiver: any FrameReceiver) throws(NetworkError)
    /// Which work the guest agreed to do on frames that it receives. Nothing until this is called.
    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError)
    /// Takes one frame, whole or not at all. From one thread at a time.
    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome
    /// The receiver has room again.
    func resumeReceiving()
    /// Ends the back end's thread and closes what it has open. `send` drops frames afterwards. Not from a callback.
    func close()

    /// What the kernel's own data path needs to take over; nil: all frames come through this back end.
    var vhost: VhostOffer? { get }
    /// Frames go past this back end until `takeBack`: when this returns, nothing here reads or writes them any more, and
    /// `send` drops what it gets. The frame that waited for the card, if there is one, goes to `last`, which says whether
    /// it was taken. Not from a callback.
    func handOver(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool)
    func takeBack()
}

/// The card's side of a back end. All functions are called by the back end's thread and must not wait.
public protocol FrameReceiver: AnyObject, Sendable {
    /// One frame, valid only during the call. False: no room, keep it until `resumeReceiving`.
    func receive(_ header: VirtualNetworkHeader, _ frame: borrowing RawSpan) -> Bool
    /// The frames that came together have been delivered: the guest may be told of all of them at once.
    func batchHasEnded()
    /// `send` will take a frame after it had been `.full`.
    func canSend()
    /// The back end will neither deliver nor take anything any more.
    func linkWasLost()
}

extension FrameReceiver {
    public func batchHasEnded() {}
    public func linkWasLost() {}
}

public enum SendOutcome: Equatable, Sendable {
    case sent
    /// Not taken: try again after `canSend`.
    case full
    /// Taken and thrown away; the statistics say why.
    case dropped
}

/// What has passed and what has not, since the back end exists.
public struct NetworkStatistics: Equatable, Sendable {
    /// To the outside.
    public var sentFrames: UInt64 = 0
    public var sentBytes: UInt64 = 0
    /// To the guest.
    public var receivedFrames: UInt64 = 0
    public var receivedBytes: UInt64 = 0
    /// The guest's frames that could be no frame, or asked for an impossible offload.
    public var malformedFrames: UInt64 = 0
    /// The guest's frames that the outside did not take: no peer, no link.
    public var undeliverableFrames: UInt64 = 0
    /// Frames for the guest that found no room.
    public var overrunFrames: UInt64 = 0
    /// How often the limits made either direction wait.
    public var throttled: UInt64 = 0
    public var egress = EgressStatistics()

    public init() {}
}

/// What the egress policy refused.
public struct EgressStatistics: Equatable, Sendable {
    public var refusedTCP: UInt64 = 0
    public var refusedUDP: UInt64 = 0
    public var refusedICMP: UInt64 = 0
    /// Other protocols, and frames that are no IP.
    public var refusedOther: UInt64 = 0
    /// Multicast and broadcast, which no user-mode network carries: dropped without an answer (RFC 1122 §3.2.2).
    public var discardedMulticast: UInt64 = 0
    /// Answered here and by no server: the fixed name, and every name where the policy has no resolver.
    public var answeredNames: UInt64 = 0

    public init() {}

    public var refused: UInt64 { refusedTCP &+ refusedUDP &+ refusedICMP &+ refusedOther }
}

/// What a back end has to say while it runs; each is one line for a person.
public enum NetworkEvent: Equatable, Sendable, CustomStringConvertible {
    /// `more` others were refused since the last line.
    case egressRefused(network: String, destination: RefusedDestination, more: UInt64)
    case captureStopped(network: String, path: String, reason: String)
    case linkFailed(network: String, reason: String)

    public var description: String {
        switch self {
        case .egressRefused(let network, let destination, let more):
            "\(network): egress refused \(destination)\(more > 0 ? ", and \(more) more before it" : "")"
        case .captureStopped(let network, let path, let reason):
            "\(network): Capture into \(path) stopped: \(reason). The machine goes on; free some space and capture again"
        case .linkFailed(let network, let reason):
            "\(network): The network is gone: \(reason). The machine goes on without it"
        }
    }
}

public typealias NetworkLog = @Sendable (NetworkEvent) -> Void

/// A frame's bytes where they lie, in order. Net copies them once before it looks at them, or hands them to the kernel:
/// what the guest changes meanwhile is not looked at twice.
/// Safe to use: making one is where the caller vouches for the addresses.
@safe public struct FramePieces {
    @unsafe let buffers: [UnsafeRawBufferPointer]
    public let count: Int

    /// The buffers must stay mapped during the call that this is passed to.
    @unsafe public init(_ buffers: [UnsafeRawBufferPointer]) {
        unsafe self.buffers = buffers
        count = unsafe buffers.reduce(0) { $0 &+ $1.count }
    }

    /// A request's segments; their owner keeps them mapped as long as the caller has them.
    public init(_ segments: IOSegments) {
        // SAFETY: IOSegments vouches for the addresses.
        unsafe self.init(segments.buffers.map { UnsafeRawBufferPointer($0) })
    }

    /// The frame as one copy, made now.
    public var copied: [UInt8] { gathered() }

    func gathered() -> [UInt8] {
        // SAFETY: count is the sum of the buffers' sizes, and that is the target's capacity.
        unsafe [UInt8](unsafeUninitializedCapacity: count) { target, initialized in
            for index in unsafe buffers.indices {
                let buffer = unsafe buffers[index]
                guard let from = buffer.baseAddress, let to = target.baseAddress else { continue }
                unsafe UnsafeMutableRawPointer(to + initialized).copyMemory(from: from, byteCount: buffer.count)
                initialized += buffer.count
            }
        }
    }
}

extension NetworkBackend {
    public var hasLink: Bool { true }
    public var vhost: VhostOffer? { nil }
    public func handOver(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool) {}
    public func takeBack() {}

    /// Sends a frame that is in one array.
    public func send(_ frame: [UInt8], header: VirtualNetworkHeader = VirtualNetworkHeader()) -> SendOutcome {
        unsafe frame.withUnsafeBytes { unsafe send(header, FramePieces([$0])) }
    }
}

/// Bounds of a frame. The largest is what a guest with segmentation offload sends: a 64 KiB packet and two headers.
enum FrameSize {
    static let minimum = 14
    static let maximum = 65_535 + 14 + 4
}
