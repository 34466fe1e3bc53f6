internal import Synchronization

/// What a card is plugged into. The port and its back end stay while machines, and with them cards, come and go.
/// `send` may be called by any thread: one frame follows the other, as on any cable.
public final class NetworkPort: FrameReceiver {
    private struct State: Sendable {
        var card: (any FrameReceiver)?
        var hasLink: Bool
        var wasHandedOver = false
    }

    private let backend: any NetworkBackend
    private let state: Mutex<State>
    private let sending = Mutex<Void>(())

    /// Starts the back end. Without a card what comes is thrown away.
    public init(_ backend: any NetworkBackend) throws(NetworkError) {
        self.backend = backend
        state = Mutex(State(hasLink: backend.hasLink))
        try backend.start(self)
    }

    public var name: String { backend.name }
    public var mtu: UInt16 { backend.mtu }
    public var nativeOffloads: Offloads { backend.nativeOffloads }
    public var statistics: NetworkStatistics { backend.statistics }
    public var hasLink: Bool { state.withLock { $0.hasLink } }

    /// From now on the card gets what comes. A port has one card.
    public func connect(_ card: any FrameReceiver) {
        state.withLock { $0.card = card }
        backend.resumeReceiving()
    }

    /// A callback may still be under way when this returns.
    public func disconnect(_ card: any FrameReceiver) {
        state.withLock { state in
            if state.card === card { state.card = nil }
        }
        backend.resumeReceiving()
    }

    public func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome {
        sending.withLock { _ in backend.send(header, pieces) }
    }

    public func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {
        try backend.setReceiveOffloads(offloads)
    }

    public func resumeReceiving() { backend.resumeReceiving() }

    /// The end: not from a callback.
    public func close() { backend.close() }

    // MARK: The kernel's data path

    public var vhost: VhostOffer? { backend.vhost }
    /// Some frames have gone past the back end, and are in no statistics.
    public var wasHandedOver: Bool { state.withLock { $0.wasHandedOver } }

    /// As `NetworkBackend.handOver`.
    public func handOver(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool) {
        state.withLock { $0.wasHandedOver = true }
        backend.handOver(last)
        // Whoever sent before has left.
        sending.withLock { _ in }
    }

    public func takeBack() { backend.takeBack() }

    // MARK: FrameReceiver

    private var card: (any FrameReceiver)? { state.withLock { $0.card } }

    public func receive(_ header: VirtualNetworkHeader, _ frame: borrowing RawSpan) -> Bool {
        card?.receive(header, frame) ?? true
    }

    public func batchHasEnded() { card?.batchHasEnded() }
    public func canSend() { card?.canSend() }

    public func linkWasLost() {
        let card = state.withLock { state in
            state.hasLink = false
            return state.card
        }
        card?.linkWasLost()
    }
}
