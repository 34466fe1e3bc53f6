public import Host
internal import Synchronization

/// Who takes the requests of a queue whose notifications come in the vCPU's exits: the vCPU at once, which wakes nobody
/// and is best where one request waits for the other; the disk's thread beside it, which is best where there are several
/// at a time; or the thread after a pause in which more of them gather, which is best where the guest has many on their way
/// and each notification and interrupt costs it more than the request. Only trying tells which of these it is, so each is
/// tried from time to time (docs/decisions/0012).
struct BlockTurns: Equatable, Sendable {
    enum Turn: Equatable, Sendable { case processor, thread, gatheringThread }

    /// How long requests gather, in nanoseconds.
    static let gatheringTime: UInt64 = 500_000
    /// Notifications between two tries; twice as many after each that was in vain.
    private static let triesEvery = 512...1024
    /// What comes at the end of them says how fast it goes without the thread.
    private static let measuredNotifications = 64
    /// Passes of a try of the thread as it is, and between two looks at how it does.
    private static let passesOfATry = 4
    private static let passesOfALook = 16
    /// Passes of a try with gathering. Each of them may end it.
    private static let gatheringPasses = 8
    /// Requests in each pass that are worth a thread's wake-up, and a pause.
    private static let worthThread = 2
    private static let worthGathering = 3
    /// Passes until it is tried anew whether gathering still pays.
    private static let gatheringEnds = 1024

    private(set) var turn = Turn.processor
    private var interval = Self.triesEvery.lowerBound
    private var notifications = 0
    private var passes = 0
    private var requests = 0
    private var allPasses = 0
    private var isTry = false
    /// When what is measured began.
    private var start: UInt64 = 0
    /// Nanoseconds for 1024 requests without the thread.
    private var usualTime: UInt64 = 0

    /// A notification has come. Who takes what it is about, at monotonic nanoseconds that are asked for where they are
    /// needed.
    mutating func notified(at now: () -> UInt64) -> Turn {
        guard turn == .processor else { return turn }
        notifications += 1
        if notifications == interval - Self.measuredNotifications { (start, requests) = (now(), 0) }
        guard notifications == interval else { return .processor }
        usualTime = Self.time(of: requests, from: start, to: now())
        begin(.thread)
        return turn
    }

    /// The vCPU has taken so many requests.
    mutating func took(_ count: Int) { requests += count }

    /// The thread has taken so many in a pass.
    mutating func passed(_ count: Int, at now: () -> UInt64) {
        passes += 1
        requests += count
        switch turn {
        case .processor: return
        case .thread: judgeThread(at: now)
        case .gatheringThread: isTry ? judgeTryOfGathering(at: now) : judgeGathering()
        }
    }

    private mutating func judgeThread(at now: () -> UInt64) {
        guard passes >= (isTry ? Self.passesOfATry : Self.passesOfALook) else { return }
        if requests >= Self.worthThread * passes {
            isTry = false
            return (passes, requests) = (0, 0)
        }
        guard isTry else { return endTry(in: Self.triesEvery.lowerBound) }
        begin(.gatheringThread)
        start = now()
    }

    private mutating func judgeTryOfGathering(at now: () -> UInt64) {
        let isEnough = passes >= Self.gatheringPasses
        // In the end at least a tenth faster; on the way not much slower, if there is something to compare.
        let limit = isEnough ? usualTime - usualTime / 10 : usualTime &+ usualTime / 4
        let isFast = passes == 1 || Self.time(of: requests, from: start, to: now()) <= limit
        guard requests >= Self.worthGathering * passes, isFast else {
            return endTry(in: min(2 * interval, Self.triesEvery.upperBound))
        }
        guard isEnough else { return }
        isTry = false
        (passes, requests, allPasses) = (0, 0, 0)
    }

    private mutating func judgeGathering() {
        guard passes >= Self.passesOfALook else { return }
        allPasses += passes
        if requests < Self.worthGathering * passes { return endTry(in: Self.triesEvery.lowerBound) }
        // The load may be another by now.
        if allPasses >= Self.gatheringEnds { return endTry(in: 2 * Self.measuredNotifications) }
        (passes, requests) = (0, 0)
    }

    private mutating func begin(_ new: Turn) {
        turn = new
        isTry = true
        (passes, requests) = (0, 0)
    }

    /// The vCPU takes so many notifications now.
    private mutating func endTry(in notifications: Int) {
        self = BlockTurns()
        interval = notifications
    }

    private static func time(of requests: Int, from start: UInt64, to end: UInt64) -> UInt64 {
        requests > 0 ? ((end &- start) / UInt64(requests)) &<< 10 : .max >> 2
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
        guard let ring, let context = currentContext else { return }
        if state.withLock({ $0.lanes[queue].turns.turn == .gatheringThread }) {
            HostClock.sleep(nanoseconds: BlockTurns.gatheringTime)
        }
        guard context.gate.enter() else { return }
        defer { context.gate.leave() }
        guard context.queues[queue].isEnabled else { return }
        let (count, hasMore) = takeAvailable(queue, ring, context)
        state.withLock { $0.lanes[queue].turns.passed(count) { HostClock.monotonicNanoseconds } }
        if hasMore { notifiers.withLock { $0 }?[queue].signal() }
    }

    /// Whether the disk's thread was told to take what a notification is about.
    func isTurnOfThread(_ queue: Int) -> Bool {
        guard let notifiers = notifiers.withLock({ $0 }) else { return false }
        let turn = state.withLock { $0.lanes[queue].turns.notified { HostClock.monotonicNanoseconds } }
        guard turn != .processor else { return false }
        notifiers[queue].signal()
        return true
    }

    /// The requests of a notification that are nobody else's to take. True: there may be more.
    func takeOwnTurn(_ queue: Int, _ ring: SubmissionRing, _ context: VirtioContext) -> Bool {
        let (count, hasMore) = takeAvailable(queue, ring, context)
        state.withLock { $0.lanes[queue].turns.took(count) }
        return hasMore
    }
}
