internal import DeviceModel
internal import Host

/// The doorbells of a transport's queues.
struct QueueDoorbells: VirtioEvents {
    /// One for each queue; none where there is no thread to hear them.
    let notifiers: [EventNotifier]
    private let thread: DoorbellThread?
    private let onRing: @Sendable (_ queue: Int) -> Void

    init(
        count: Int, thread: DoorbellThread?, onRing: @escaping @Sendable (_ queue: Int) -> Void
    ) throws(HostError) {
        var notifiers: [EventNotifier] = []
        for _ in 0..<(thread == nil ? 0 : count) { notifiers.append(try EventNotifier()) }
        self.notifiers = notifiers
        self.thread = thread
        self.onRing = onRing
    }

    func listen() throws(HostError) {
        for queue in notifiers.indices { try listen(of: queue) }
    }

    private func listen(of queue: Int) throws(HostError) {
        try thread?.listen(to: notifiers[queue]) { [onRing] in onRing(queue) }
    }

    /// False: there are no doorbells.
    func ring(_ queue: Int) -> Bool {
        guard notifiers.indices.contains(queue) else { return false }
        notifiers[queue].signal()
        return true
    }

    // MARK: VirtioEvents

    func claimDoorbell(of queue: Int) -> EventNotifier? {
        guard notifiers.indices.contains(queue) else { return nil }
        thread?.stopListening(to: notifiers[queue])
        return notifiers[queue]
    }

    func returnDoorbell(of queue: Int) {
        // The thread runs since the first one: nothing can fail.
        try? listen(of: queue)
    }

    func listen(to notifier: EventNotifier, _ handler: @escaping @Sendable () -> Void) throws(HostError) {
        try thread?.listen(to: notifier, handler)
    }

    func stopListening(to notifier: EventNotifier) { thread?.stopListening(to: notifier) }
}
