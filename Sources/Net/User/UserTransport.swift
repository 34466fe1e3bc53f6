internal import Glibc
internal import Host
internal import Synchronization

/// `user`: the guest's frames through the egress filter into libslirp, on the back end's thread.
final class UserTransport: Transport, @unchecked Sendable {
    // SAFETY: `queue`, `published` and `hasFrames` are shared; all else belongs to the thread that makes this, and then
    // to the back end's thread, which starts after that and is joined before `close`.
    private static let queueLimit = 256
    /// So many frames for the guest may wait before libslirp's sockets are left alone: the senders then see full windows.
    private static let congestion = 256
    /// What libslirp sends in answer to the guest's own frames comes anyway; beyond this it is lost, as in a switch.
    private static let outputLimit = 1024

    private struct Queue {
        var frames: [(header: VirtualNetworkHeader, bytes: [UInt8])] = []
        var receiveHeader = VirtualNetworkHeader()
        /// The guest takes large segments.
        var joinsSegments = false
    }

    let name: String
    private let queue = Mutex(Queue())
    private let hasFrames: EventNotifier
    private let published = Mutex(NetworkStatistics())
    private var filter: EgressFilter
    private let output = OutputQueue()
    private var stack: SlirpStack?
    private var hasPolledSockets = false
    private var malformed: UInt64 = 0

    init(_ configuration: UserConfiguration, name: String, mtu: UInt16, log: @escaping NetworkLog) throws(NetworkError)
    {
        self.name = name
        do { hasFrames = try EventNotifier() } catch { throw .host(error) }
        let ports = configuration.publishedPorts.filter(\.isUDP).map(\.guestPort)
        filter = EgressFilter(
            configuration.egress, hasIPv6: configuration.hasIPv6, publishedUDPPorts: Set(ports),
            log: { log(.egressRefused(network: name, destination: $0, more: $1)) })
        stack = try SlirpStack(configuration, mtu: mtu) { [output] in output.append($0, isFromStack: true) }
    }

    /// Frames that libslirp emitted and the card has not taken. One thread's own.
    private final class OutputQueue {
        private var frames: [(bytes: [UInt8], isFromStack: Bool)] = []
        private var first = 0
        var lost: UInt64 = 0

        var count: Int { frames.count - first }

        func append(_ frame: [UInt8], isFromStack: Bool) {
            if count >= UserTransport.outputLimit { lost &+= 1 } else { frames.append((frame, isFromStack)) }
        }

        var next: (bytes: [UInt8], isFromStack: Bool)? { first < frames.count ? frames[first] : nil }

        /// The frame `index` behind the next one.
        func frame(_ index: Int) -> [UInt8]? { index < count ? frames[first + index].bytes : nil }

        func removeFirst() {
            first += 1
            if first == frames.count {
                frames.removeAll(keepingCapacity: true)
                first = 0
            } else if first >= UserTransport.congestion {
                frames.removeFirst(first)
                first = 0
            }
        }
    }

    var nativeOffloads: Offloads { [] }

    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {
        // libslirp computes all checksums: who agreed to it need not check them.
        queue.withLock {
            $0.receiveHeader.flags = offloads.contains(.checksum) ? VirtualNetworkHeader.Flag.dataValid : 0
            $0.joinsSegments = offloads.isSuperset(of: [.checksum, .tcp4])
        }
    }

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome {
        let (isTaken, isFirst) = queue.withLock { queue in
            guard queue.frames.count < UserTransport.queueLimit else { return (false, false) }
            queue.frames.append((header, pieces.gathered()))
            return (true, queue.frames.count == 1)
        }
        guard isTaken else { return .full }
        // All that are there are taken at once.
        if isFirst { hasFrames.signal() }
        return .sent
    }

    func canSend(_ poll: PollSet) -> Bool { queue.withLock { $0.frames.count <= UserTransport.queueLimit / 2 } }

    func prepare(_ poll: inout PollSet, sink: ReceiveSink, isBlocked: Bool) -> UInt64? {
        _ = poll.add(hasFrames.descriptor.rawValue, Int16(POLLIN))
        if output.count > 0, sink.isOpen { return 0 }
        hasPolledSockets = output.count < UserTransport.congestion
        guard hasPolledSockets, let timeout = stack?.prepare(&poll), timeout != .max else { return nil }
        return UInt64(timeout) * 1_000_000
    }

    func advance(_ poll: PollSet, sink: ReceiveSink) {
        if hasPolledSockets { stack?.advance(poll) }
        hasPolledSockets = false
        _ = hasFrames.consume()
        let frames = queue.withLock { queue in
            defer { queue.frames = [] }
            return queue.frames
        }
        for (header, bytes) in frames { process(header, bytes) }
        // Before the guest can have the answers: whoever has one finds it counted.
        publishStatistics()
        drain(into: sink)
    }

    private func process(_ header: VirtualNetworkHeader, _ bytes: [UInt8]) {
        guard header.asksForWork else { return examine(bytes) }
        // libslirp takes a packet of any size: cut, it would be a system call for each piece.
        if let whole = SoftwareOffload.whole(bytes, header) { return examine(whole) }
        do {
            for frame in try SoftwareOffload.frames(of: bytes, header) { examine(frame) }
        } catch { malformed &+= 1 }
    }

    private func examine(_ frame: [UInt8]) {
        switch filter.examine(frame) {
        case .forward: stack?.input(frame)
        case .forwardWhole(let whole): stack?.input(whole)
        case .reply(let answer): output.append(answer, isFromStack: false)
        case .drop: break
        }
    }

    private func drain(into sink: ReceiveSink) {
        guard output.count > 0, sink.isOpen else { return }
        let (header, joinsSegments) = queue.withLock { ($0.receiveHeader, $0.joinsSegments) }
        while let frame = output.next {
            // Only libslirp has connections from outside; an answer of the filter opens nothing.
            if frame.isFromStack { filter.noteInbound(frame.bytes) }
            guard joinsSegments else {
                guard unsafe sink.deliver(header, frame.bytes.span.bytes) else { return }
                output.removeFirst()
                continue
            }
            var segment = SegmentCoalescer(frame.bytes, header: header)
            var count = 1
            while let next = output.frame(count), segment.append(next) { count += 1 }
            segment.finish()
            guard unsafe sink.deliver(segment.header, segment.frame.span.bytes) else { return }
            for _ in 0..<count { output.removeFirst() }
        }
    }

    private func publishStatistics() {
        var current = NetworkStatistics()
        current.egress = filter.statistics
        current.malformedFrames = malformed &+ filter.malformed
        current.overrunFrames = output.lost
        published.withLock { $0 = current }
    }

    func add(to statistics: inout NetworkStatistics) {
        let own = published.withLock { $0 }
        statistics.egress = own.egress
        statistics.malformedFrames &+= own.malformedFrames
        statistics.overrunFrames &+= own.overrunFrames
    }

    func close() {
        stack?.close()
        stack = nil
    }
}
