internal import Synchronization

/// `none`: a card without a cable. What the guest sends is gone, and nothing ever comes.
final class NoBackend: NetworkBackend {
    let mtu: UInt16
    private let counts = Mutex(NetworkStatistics())

    init(mtu: UInt16) { self.mtu = mtu }

    var name: String { "none" }
    var hasLink: Bool { false }
    var nativeOffloads: Offloads { .transmit }
    var statistics: NetworkStatistics { counts.withLock { $0 } }

    func start(_ receiver: any FrameReceiver) throws(NetworkError) {}
    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {}
    func resumeReceiving() {}
    func close() {}

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome {
        counts.withLock { $0.undeliverableFrames &+= 1 }
        return .dropped
    }
}
