internal import Glibc
internal import Host
internal import Synchronization

/// What differs between the kinds of back end; `BackendLoop` does the rest.
protocol Transport: AnyObject, Sendable {
    var name: String { get }
    var nativeOffloads: Offloads { get }

    /// Takes a frame for the outside, without waiting. From the card's thread.
    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome
    /// Which work the kernel may leave to the guest.
    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError)

    // MARK: From the back end's thread

    /// Adds what to wait for and returns for how many nanoseconds at most. `sink.isOpen` says whether there is room for
    /// frames, `isBlocked` whether the card waits for `canSend`.
    func prepare(_ poll: inout PollSet, sink: ReceiveSink, isBlocked: Bool) -> UInt64?
    /// After the wait: moves frames to the sink while it is open.
    func advance(_ poll: PollSet, sink: ReceiveSink)
    /// Whether `send` would take a frame again.
    func canSend(_ poll: PollSet) -> Bool
    /// Adds the counts that only the transport knows.
    func add(to statistics: inout NetworkStatistics)
    /// The thread has ended.
    func close()

    // MARK: The kernel's data path

    var vhost: VhostOffer? { get }
    /// Header and frame that the card had no room for, which the transport forgets.
    func takePending() -> [UInt8]?
}

extension Transport {
    var vhost: VhostOffer? { nil }
    func takePending() -> [UInt8]? { nil }
}

enum TransportOutcome: Equatable, Sendable {
    case sent
    case full
    /// Nobody is there to take it.
    case undeliverable
    case malformed
}

/// The thread of a back end, and what all kinds have in common: back-pressure, limits, capture, statistics.
///
/// Lock order: `turn`, which the thread holds whenever it uses the transport, also during callbacks; of the others none is
/// held while another is taken, and none during a callback.
final class BackendLoop: NetworkBackend {
    private struct Flow {
        var receiver: (any FrameReceiver)?
        var isClosed = false
        /// The kernel's data path has the transport.
        var isHandedOver = false
        /// The card waits for `canSend`: until this time, or, at 0, until the transport can.
        var blockedUntil: UInt64?
    }

    private struct Outgoing {
        var limiter: TrafficLimiter
        var statistics = NetworkStatistics()
    }

    private let transport: any Transport
    let mtu: UInt16
    private let capture: PacketCapture?
    private let wake: EventNotifier
    private let flow = Mutex(Flow())
    private let turn = Mutex<Void>(())
    private let outgoing: Mutex<Outgoing>
    private let sink: ReceiveSink
    private let thread = Mutex<HostThread?>(nil)

    init(
        _ transport: any Transport, mtu: UInt16, limits: TrafficLimits, capture: PacketCapture?
    ) throws(NetworkError) {
        self.transport = transport
        self.mtu = mtu
        self.capture = capture
        outgoing = Mutex(Outgoing(limiter: limits.makeLimiter()))
        do { wake = try EventNotifier() } catch { throw .host(error) }
        sink = ReceiveSink(limiter: limits.makeLimiter(), capture: capture)
    }

    var name: String { transport.name }
    var nativeOffloads: Offloads { transport.nativeOffloads }

    var statistics: NetworkStatistics {
        var result = outgoing.withLock { $0.statistics }
        sink.add(to: &result)
        transport.add(to: &result)
        return result
    }

    func start(_ receiver: any FrameReceiver) throws(NetworkError) {
        let isFirst = flow.withLock { flow in
            guard flow.receiver == nil, !flow.isClosed else { return false }
            flow.receiver = receiver
            return true
        }
        guard isFirst else { throw .alreadyStarted(network: name) }
        sink.setReceiver(receiver)
        do {
            let started = try HostThread(name: "net") { [self] in run() }
            thread.withLock { $0 = started }
        } catch { throw .host(error) }
    }

    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) { try transport.setReceiveOffloads(offloads) }

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome {
        guard pieces.count >= FrameSize.minimum, pieces.count <= FrameSize.maximum else {
            outgoing.withLock { $0.statistics.malformedFrames &+= 1 }
            return .dropped
        }
        let (isClosed, isHandedOver) = flow.withLock { ($0.isClosed, $0.isHandedOver) }
        if isHandedOver { outgoing.withLock { $0.statistics.undeliverableFrames &+= 1 } }
        guard !isClosed, !isHandedOver else { return .dropped }
        let now = HostClock.monotonicNanoseconds
        let wait = outgoing.withLock { outgoing in
            let wait = outgoing.limiter.take(bytes: pieces.count, nowNanoseconds: now)
            if wait > 0 { outgoing.statistics.throttled &+= 1 }
            return wait
        }
        if wait > 0 { return block(until: now &+ wait) }
        // Before the answer to it can come.
        let time = capture == nil ? 0 : HostClock.realtimeNanoseconds
        return finish(transport.send(header, pieces), pieces, time)
    }

    private func finish(_ outcome: TransportOutcome, _ pieces: FramePieces, _ time: UInt64) -> SendOutcome {
        if outcome == .sent { capture?.write(pieces.gathered(), .outbound, nanoseconds: time) }
        outgoing.withLock { outgoing in
            switch outcome {
            case .sent:
                outgoing.statistics.sentFrames &+= 1
                outgoing.statistics.sentBytes &+= UInt64(pieces.count)
            case .full: outgoing.limiter.giveBack(bytes: pieces.count)
            case .undeliverable: outgoing.statistics.undeliverableFrames &+= 1
            case .malformed: outgoing.statistics.malformedFrames &+= 1
            }
        }
        return switch outcome {
        case .sent: .sent
        case .full: block(until: 0)
        case .undeliverable, .malformed: .dropped
        }
    }

    /// The loop calls `canSend` when the time has come and the transport can.
    private func block(until time: UInt64) -> SendOutcome {
        flow.withLock { $0.blockedUntil = time }
        wake.signal()
        return .full
    }

    func resumeReceiving() {
        sink.reopen()
        wake.signal()
    }

    func close() {
        let wasOpen = flow.withLock { flow in
            defer { flow.isClosed = true }
            return !flow.isClosed
        }
        guard wasOpen else { return }
        wake.signal()
        let running = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        running?.join()
        transport.close()
        sink.setReceiver(nil)
        flow.withLock { $0.receiver = nil }
    }

    // MARK: The kernel's data path

    var vhost: VhostOffer? { transport.vhost }

    func handOver(_ last: (VirtualNetworkHeader, borrowing RawSpan) -> Bool) {
        flow.withLock { $0.isHandedOver = true }
        wake.signal()
        // Its turn is over, and it will not take another.
        let pending = turn.withLock { _ in transport.takePending() }
        guard let pending, let header = VirtualNetworkHeader(pending) else { return }
        let frame = unsafe pending.span.bytes.extracting(VirtualNetworkHeader.size..<pending.count)
        sink.count(isTaken: last(header, frame), bytes: frame.byteCount)
    }

    func takeBack() {
        flow.withLock { $0.isHandedOver = false }
        wake.signal()
    }

    // MARK: The thread

    private func run() {
        var poll = PollSet()
        while true {
            let (isClosed, blockedUntil) = flow.withLock { ($0.isClosed, $0.blockedUntil) }
            if isClosed { return }
            wait(&poll, blockedUntil)
            // In this order: what is signalled from here on wakes the next wait.
            _ = wake.consume()
            takeTurn {
                transport.advance(poll, sink: sink)
                sink.endBatch()
                unblock(poll)
            }
        }
    }

    /// Uses the transport, unless it is handed over.
    private func takeTurn(_ body: () -> Void) {
        turn.withLock { _ in
            if !flow.withLock({ $0.isHandedOver }) { body() }
        }
    }

    private func wait(_ poll: inout PollSet, _ blockedUntil: UInt64?) {
        poll.removeAll()
        // Transports read events by the indices that they got, so that the wake-up's place is free.
        _ = poll.add(wake.descriptor.rawValue, Int16(POLLIN))
        var timeout: UInt64?
        takeTurn { timeout = transport.prepare(&poll, sink: sink, isBlocked: blockedUntil == 0) }
        let now = HostClock.monotonicNanoseconds
        let deadlines = [blockedUntil.flatMap { $0 > 0 ? $0 : nil }, sink.throttledUntil]
        for case .some(let deadline) in deadlines {
            timeout = min(timeout ?? .max, deadline > now ? deadline - now : 0)
        }
        poll.wait(nanoseconds: timeout)
    }

    private func unblock(_ poll: PollSet) {
        let now = HostClock.monotonicNanoseconds
        let receiver: (any FrameReceiver)? = flow.withLock { flow in
            guard let time = flow.blockedUntil, time > 0 ? time <= now : transport.canSend(poll) else { return nil }
            flow.blockedUntil = nil
            return flow.receiver
        }
        receiver?.canSend()
    }
}

/// Where a transport's frames for the guest go: limits, capture, the card. `isOpen` and `deliver` belong to the back
/// end's thread, `reopen` to any.
final class ReceiveSink: Sendable {
    private struct State {
        var receiver: (any FrameReceiver)?
        var limiter: TrafficLimiter
        var isFull = false
        var hasDelivered = false
        var throttledUntil: UInt64?
        var statistics = NetworkStatistics()
    }

    private let state: Mutex<State>
    private let capture: PacketCapture?

    init(limiter: TrafficLimiter, capture: PacketCapture?) {
        state = Mutex(State(limiter: limiter))
        self.capture = capture
    }

    func setReceiver(_ receiver: (any FrameReceiver)?) { state.withLock { $0.receiver = receiver } }

    /// Whether a frame would go through now.
    var isOpen: Bool {
        let now = HostClock.monotonicNanoseconds
        return state.withLock { state in
            if let time = state.throttledUntil {
                guard time <= now else { return false }
                state.throttledUntil = nil
            }
            return !state.isFull && state.receiver != nil
        }
    }

    var throttledUntil: UInt64? { state.withLock { $0.throttledUntil } }

    func reopen() { state.withLock { $0.isFull = false } }

    func countOverrun() { state.withLock { $0.statistics.overrunFrames &+= 1 } }

    /// A frame that did not come through `deliver`.
    func count(isTaken: Bool, bytes: Int) {
        guard isTaken else { return countOverrun() }
        state.withLock { state in
            state.statistics.receivedFrames &+= 1
            state.statistics.receivedBytes &+= UInt64(bytes)
        }
    }

    /// False: keep the frame, and ask `isOpen` before the next attempt.
    func deliver(_ header: VirtualNetworkHeader, _ frame: borrowing RawSpan) -> Bool {
        let count = frame.byteCount
        let now = HostClock.monotonicNanoseconds
        let receiver: (any FrameReceiver)? = state.withLock { state in
            guard !state.isFull, let receiver = state.receiver else { return nil }
            let wait = state.limiter.take(bytes: count, nowNanoseconds: now)
            guard wait == 0 else {
                state.throttledUntil = now &+ wait
                state.statistics.throttled &+= 1
                return nil
            }
            // Until the card says otherwise: a `resumeReceiving` from its own thread must not be lost in between.
            state.isFull = true
            return receiver
        }
        guard let receiver else { return false }
        return finish(receiver.receive(header, frame), frame)
    }

    private func finish(_ isTaken: Bool, _ frame: borrowing RawSpan) -> Bool {
        let count = frame.byteCount
        if isTaken, let capture {
            capture.write([UInt8](unsafe frame.withUnsafeBytes { unsafe Array($0) }), .inbound)
        }
        state.withLock { state in
            guard isTaken else {
                state.limiter.giveBack(bytes: count)
                return
            }
            state.isFull = false
            state.hasDelivered = true
            state.statistics.receivedFrames &+= 1
            state.statistics.receivedBytes &+= UInt64(count)
        }
        return isTaken
    }

    /// Tells the card, if it got anything since the last time.
    func endBatch() {
        let receiver: (any FrameReceiver)? = state.withLock { state in
            defer { state.hasDelivered = false }
            return state.hasDelivered ? state.receiver : nil
        }
        receiver?.batchHasEnded()
    }

    func loseLink() { state.withLock { $0.receiver }?.linkWasLost() }

    func add(to statistics: inout NetworkStatistics) {
        let own = state.withLock { $0.statistics }
        statistics.receivedFrames = own.receivedFrames
        statistics.receivedBytes = own.receivedBytes
        statistics.overrunFrames &+= own.overrunFrames
        statistics.throttled &+= own.throttled
    }
}
