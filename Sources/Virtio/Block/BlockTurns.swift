public import Host
internal import Synchronization

/// Who takes the requests of a queue whose notifications come in the vCPU's exits: the vCPU at once, which wakes nobody
/// and is best where one request waits for the other, or the disk's thread beside it, which is best where there are
/// several at a time. Only the thread sees which of the two it is, so it is asked from time to time
/// (docs/decisions/0012).
struct BlockTurns: Equatable, Sendable {
    /// Notifications between two tries, and passes of the thread that make one.
    private static let triesEvery = 512
    private static let passesOfATry = 16

    private(set) var isThreads = false
    private var notifications = 0
    private var passes = 0
    private var requests = 0

    /// A notification has come. True: it is the thread's.
    mutating func notified() -> Bool {
        guard !isThreads else { return true }
        notifications += 1
        isThreads = notifications == Self.triesEvery
        return isThreads
    }

    /// The thread has taken so many requests in a pass.
    mutating func passed(_ count: Int) {
        passes += 1
        requests += count
        guard passes >= Self.passesOfATry else { return }
        // Two in each pass are worth a thread's wake-up.
        if requests < 2 * passes { self = BlockTurns() } else { (passes, requests) = (0, 0) }
    }
}

extension VirtioBlock {
    /// Notifications come in exits of the vCPU from now on. A signal of `notifiers`, one for each queue, has to bring a
    /// call of `takeTurn` on the thread that also hears the ring's completions. Before the device is started.
    public func hearInExits(_ notifiers: [EventNotifier]) {
        precondition(notifiers.count == queueSizes.count)
        self.notifiers.withLock { $0 = notifiers }
    }

    /// The thread was asked to look at a queue.
    public func takeTurn(_ queue: Int) {
        guard let ring, let context = currentContext, context.gate.enter() else { return }
        defer { context.gate.leave() }
        guard context.queues[queue].isEnabled else { return }
        let (count, hasMore) = takeAvailable(queue, ring, context)
        state.withLock { $0.lanes[queue].turns.passed(count) }
        if hasMore { notifiers.withLock { $0 }?[queue].signal() }
    }

    /// Whether the disk's thread was told to take what a notification is about.
    func isTurnOfThread(_ queue: Int) -> Bool {
        guard let notifiers = notifiers.withLock({ $0 }) else { return false }
        guard state.withLock({ $0.lanes[queue].turns.notified() }) else { return false }
        notifiers[queue].signal()
        return true
    }
}
