internal import CHost
internal import Glibc
internal import Host
internal import Synchronization

/// `--net socket`: two machines and a cable.
public struct SocketConfiguration: Equatable, Sendable {
    /// Where this end listens; made here, removed at the end.
    public var path: String
    /// Where the other end listens. It may come later, go and come back.
    public var peer: String

    public init(path: String, peer: String) {
        self.path = path
        self.peer = peer
    }
}

/// `socket`: one frame in one datagram of a unix socket, without any header, in both directions. What arrives from
/// anybody but the peer the kernel refuses, once there is a peer.
final class SocketTransport: Transport, Sendable {
    private static let reconnectInterval: UInt64 = 100_000_000
    private static let framesPerTurn = 64

    private struct State {
        var isConnected = false
        var nextAttempt: UInt64 = 0
    }

    let name: String
    private let configuration: SocketConfiguration
    private let socket: FileDescriptor
    private let state = Mutex(State())
    private let pending = Mutex<[UInt8]?>(nil)
    private let pollIndex = Mutex(-1)
    private let removal = Mutex(false)

    init(_ configuration: SocketConfiguration, name: String) throws(NetworkError) {
        self.name = name
        self.configuration = configuration
        let result = unsafe host_datagram_bind(configuration.path)
        guard result >= 0 else {
            let error = HostError("", errorNumber: Int32(truncatingIfNeeded: -result))
            throw .socketUnusable(path: configuration.path, reason: error.reason)
        }
        socket = FileDescriptor(owning: Int32(truncatingIfNeeded: result))
    }

    var nativeOffloads: Offloads { [] }
    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {}

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome {
        guard connectIfNeeded() else { return .undeliverable }
        let frames: [[UInt8]]
        do {
            let frame = pieces.gathered()
            frames = header.asksForWork ? try SoftwareOffload.frames(of: frame, header) : [frame]
        } catch { return .malformed }
        for (index, frame) in frames.enumerated() {
            let result = Int32(truncatingIfNeeded: transmit(frame))
            switch result {
            case 0...: continue
            // Nothing has gone yet: all of it can wait. Of a half-sent one TCP repeats the rest.
            case -EAGAIN, -ENOBUFS: return index == 0 ? .full : .sent
            case -EMSGSIZE: return .undeliverable
            default:
                state.withLock { $0.isConnected = false }
                return .undeliverable
            }
        }
        return .sent
    }

    private func transmit(_ frame: [UInt8]) -> Int {
        unsafe frame.withUnsafeBytes { bytes in
            // SAFETY: the array's bytes, during the call.
            unsafe bytes.baseAddress.map { unsafe host_datagram_send(socket.rawValue, $0, bytes.count) } ?? 0
        }
    }

    private func connectIfNeeded() -> Bool {
        let now = HostClock.monotonicNanoseconds
        return state.withLock { state in
            if state.isConnected { return true }
            guard now >= state.nextAttempt else { return false }
            state.nextAttempt = now &+ SocketTransport.reconnectInterval
            state.isConnected = unsafe host_datagram_connect(socket.rawValue, configuration.peer) >= 0
            return state.isConnected
        }
    }

    func prepare(_ poll: inout PollSet, sink: ReceiveSink, isBlocked: Bool) -> UInt64? {
        let isOpen = sink.isOpen
        if isOpen, pending.withLock({ $0 != nil }) { return 0 }
        let events = (isOpen ? Int16(POLLIN) : 0) | (isBlocked ? Int16(POLLOUT) : 0)
        let index = events == 0 ? -1 : poll.add(socket.rawValue, events)
        pollIndex.withLock { $0 = index }
        return nil
    }

    func advance(_ poll: PollSet, sink: ReceiveSink) {
        for _ in 0..<SocketTransport.framesPerTurn {
            guard sink.isOpen, let frame = pending.withLock({ $0 }) ?? receive() else { return }
            let isDelivered = unsafe sink.deliver(VirtualNetworkHeader(), frame.span.bytes)
            pending.withLock { $0 = isDelivered ? nil : frame }
            guard isDelivered else { return }
        }
    }

    /// The next datagram that can be a frame.
    private func receive() -> [UInt8]? {
        while true {
            var result = 0
            let frame = unsafe [UInt8](unsafeUninitializedCapacity: FrameSize.maximum) { buffer, initialized in
                // SAFETY: as many bytes as the buffer has, and those that were written are counted.
                result =
                    unsafe buffer.baseAddress.map {
                        unsafe host_datagram_receive(socket.rawValue, $0, FrameSize.maximum)
                    } ?? 0
                initialized = min(max(result, 0), FrameSize.maximum)
            }
            // A peer that has gone shows here once.
            if result == Int(-ECONNREFUSED) || result == Int(-ECONNRESET) {
                state.withLock { $0.isConnected = false }
                continue
            }
            guard result >= 0 else { return nil }
            if result >= FrameSize.minimum, result <= FrameSize.maximum { return frame }
        }
    }

    func canSend(_ poll: PollSet) -> Bool {
        let index = pollIndex.withLock { $0 }
        return poll.events(at: index) & Int16(POLLOUT | POLLERR | POLLHUP) != 0
    }

    func add(to statistics: inout NetworkStatistics) {}

    func close() {
        let isFirst = removal.withLock { isRemoved in
            defer { isRemoved = true }
            return !isRemoved
        }
        if isFirst { _ = unsafe host_unlink(configuration.path) }
    }
}
