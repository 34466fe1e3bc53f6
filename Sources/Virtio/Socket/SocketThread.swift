internal import Host
internal import Synchronization

/// The thread that hears of the host's sockets, and what it shares with the device. It does not keep the device.
final class SocketThread: Sendable {
    private let endpoint: SocketEndpoint
    private let poll: EventPoll
    /// Wakes the thread: it starts, stops or ends.
    private let bell: EventNotifier
    private let life: Mutex<Life>
    private let state: Mutex<SocketState>

    private struct Life: Sendable {
        var context: VirtioContext?
        var hadDriver = false
        var isOver = false
    }

    static let listenerToken: UInt64 = 0
    private static let bellToken: UInt64 = 1

    init(_ endpoint: SocketEndpoint, owesTransportReset: Bool) throws(HostError) {
        self.endpoint = endpoint
        poll = try EventPoll()
        bell = try EventNotifier()
        life = Mutex(Life(hadDriver: owesTransportReset))
        state = Mutex(SocketState(endpoint, poll, owesTransportReset: owesTransportReset))
        try poll.add(bell.descriptor, .readable, token: Self.bellToken)
        try poll.add(endpoint.listener.descriptor, .readable, token: Self.listenerToken)
        _ = try HostThread(name: "vsock") { [self] in run() }
    }

    var hadDriver: Bool { life.withLock { $0.hadDriver } }

    func end() {
        life.withLock { $0.isOver = true }
        bell.signal()
    }

    // MARK: Life

    func start(_ context: VirtioContext) {
        life.withLock { life in
            life.context = context
            life.hadDriver = true
        }
        bell.signal()
    }

    /// With the gate closed: nothing of this is going on.
    func stop() { life.withLock { $0.context = nil } }

    /// The driver is gone, and its connections with it.
    func reset() {
        life.withLock { $0.hadDriver = false }
        state.withLock { $0.closeAll() }
    }

    // MARK: Work

    func notify(_ queue: Int) -> Bool {
        guard let context = life.withLock({ $0.context }) else { return false }
        return state.withLock { state in
            if queue == VsockLayout.Queue.event { return state.sendEvents(context) }
            return state.exchange(context)
        }
    }

    private func run() {
        while true {
            let (context, isOver) = life.withLock { ($0.context, $0.isOver) }
            if isOver { return }
            guard let context else {
                // Sockets wait as long as the guest does.
                var wait = DescriptorPoll()
                wait.set(bell.descriptor, .readable)
                guard (try? wait.wait(timeoutNanoseconds: nil)) != nil else { return }
                _ = bell.consume()
                continue
            }
            guard let events = try? poll.wait() else { return }
            _ = bell.consume()
            guard context.gate.enter() else {
                // About to start or to stop.
                HostClock.sleep(nanoseconds: 200_000)
                continue
            }
            handle(events, context)
            context.gate.leave()
        }
    }

    private func handle(_ events: [EventPoll.Event], _ context: VirtioContext) {
        state.withLock { state in
            for event in events where event.token != Self.bellToken {
                if event.token == Self.listenerToken {
                    state.accept()
                } else {
                    state.note(event)
                }
            }
            // What there is too much of for one turn comes when the guest has taken some.
            while state.exchange(context) {}
        }
    }
}
