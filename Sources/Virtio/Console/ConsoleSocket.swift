internal import Host
internal import Synchronization

/// A Unix socket as the host's end of a port. Its thread lives until `close`.
///
/// A client that sends nothing more still gets what the guest writes, until it closes its side.
final class ConsoleSocket: Sendable {
    private struct State: Sendable {
        var console: VirtioConsole?
        var port = 0
        var client: StreamSocket?
        /// The client takes nothing now; the guest waits.
        var isFull = false
        /// The client takes nothing any more: what the guest writes is lost, as without a client.
        var isDeaf = false
        /// The console does not know yet whether there is a client.
        var isUntold = false
        var isOver = false
    }

    /// What only the thread knows of its client.
    private struct Input {
        /// Read, and not yet taken by the console.
        var pending: [UInt8] = []
        /// The client sends nothing more.
        var hasEnded = false
    }

    private let listener: StreamListener
    private let bell: EventNotifier
    private let state = Mutex(State())
    private let thread = Mutex<HostThread?>(nil)
    private static let readLimit = 16 << 10

    init(path: String) throws(HostError) {
        listener = try StreamListener(path: path)
        bell = try EventNotifier()
        let thread = try HostThread(name: "port") { [self] in run() }
        self.thread.withLock { $0 = thread }
    }

    func close() {
        state.withLock { $0.isOver = true }
        bell.signal()
        thread.withLock { $0 }?.join()
        listener.removeName()
    }

    func wake() { bell.signal() }

    /// The console hears at once whether there is a client: a guest that goes on where it was saved must not hear that
    /// its client has gone and come.
    func plug(into console: VirtioConsole, port: Int) {
        state.withLock { state in
            console.setConnected(state.client != nil, port: port)
            state.console = console
            state.port = port
            // A client that comes or goes now is told by the thread, which may not have known the console.
            state.isUntold = true
        }
        bell.signal()
    }

    /// From now on what the client sends waits for the next console.
    func unplug() { state.withLock { $0.console = nil } }

    // MARK: From the guest

    func write(_ bytes: [UInt8]) -> Int {
        let (count, isLost) = state.withLock { state in
            guard let client = state.client, !state.isDeaf else { return (bytes.count, false) }
            let result = client.send(bytes[...])
            if result >= 0 {
                state.isFull = result < bytes.count
                return (result, false)
            }
            state.isFull = StreamSocket.isBusy(result)
            state.isDeaf = !state.isFull
            return (state.isFull ? 0 : bytes.count, state.isDeaf)
        }
        // The thread waits for room, or looks at what is left of the client.
        if count < bytes.count || isLost { bell.signal() }
        return count
    }

    // MARK: The thread

    private func run() {
        var input = Input()
        while true {
            let now = state.withLock { state in
                defer { state.isUntold = false }
                if state.isOver { state.client = nil }
                return state
            }
            if now.isOver { return }
            // Always by this thread: in the order in which it happens.
            if now.isUntold { now.console?.setConnected(now.client != nil, port: now.port) }
            give(&input)
            var poll = DescriptorPoll()
            poll.set(bell.descriptor, .readable)
            watch(now, input, &poll)
            guard let events = try? poll.wait(timeoutNanoseconds: nil) else { return }
            _ = bell.consume()
            for event in events where event.descriptor != bell.descriptor { handle(event, &input, now) }
        }
    }

    private func watch(_ now: State, _ input: Input, _ poll: inout DescriptorPoll) {
        guard let client = now.client else { return poll.set(listener.descriptor, .readable) }
        var interest: Interest = []
        if input.pending.isEmpty, !input.hasEnded { interest.insert(.readable) }
        if now.isFull { interest.insert(.writable) }
        // Its end is told whatever one waits for: not before the guest has the last of it.
        if input.pending.isEmpty || now.isFull { poll.set(client.descriptor, interest) }
    }

    /// To the guest, as much as it takes.
    private func give(_ input: inout Input) {
        guard !input.pending.isEmpty else { return }
        // Locked, so that nothing goes to a console that is unplugged.
        let pending = input.pending
        let count = state.withLock { $0.console?.receive(pending, port: $0.port) ?? 0 }
        input.pending.removeFirst(count)
    }

    private func handle(_ event: DescriptorPoll.Ready, _ input: inout Input, _ now: State) {
        guard let client = now.client, event.descriptor == client.descriptor else {
            if let client = listener.accept() { connect(client, now) }
            return
        }
        if event.isWritable || event.isHungUp, now.isFull {
            state.withLock { state in
                state.isFull = false
                if event.isHungUp { state.isDeaf = true }
            }
            now.console?.outputSpaceAvailable(port: now.port)
        }
        guard input.pending.isEmpty else { return }
        if event.isReadable || event.isHungUp, !input.hasEnded {
            guard let bytes = client.receive(limit: Self.readLimit) else {
                if event.isHungUp { disconnect(&input, now) }
                return
            }
            input.pending = bytes
            input.hasEnded = bytes.isEmpty
            give(&input)
        }
        if event.isHungUp, input.hasEnded, input.pending.isEmpty { disconnect(&input, now) }
    }

    private func connect(_ client: StreamSocket, _ now: State) {
        state.withLock { state in
            state.client = client
            state.isFull = false
            state.isDeaf = false
        }
        now.console?.setConnected(true, port: now.port)
    }

    private func disconnect(_ input: inout Input, _ now: State) {
        input = Input()
        state.withLock { state in
            state.client = nil
            state.isFull = false
        }
        now.console?.setConnected(false, port: now.port)
        // What the guest waits to write goes nowhere now.
        now.console?.outputSpaceAvailable(port: now.port)
    }
}
