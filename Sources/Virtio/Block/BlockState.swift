/// What changes while a block device runs.
struct BlockState: Sendable {
    /// One queue's requests.
    struct Lane: Sendable {
        var workers = 0
        /// Notified since a worker last found the queue empty.
        var hasNews = false
        /// What waits for a worker, beside a ring.
        var backlog: [BlockJob] = []
        private var nextInBacklog = 0
        /// What is done, and not given back yet.
        var done: [UsedBuffer] = []
        /// The rate limits hold it up until a timer rings.
        var isDelayed = false
        var turns = BlockTurns()

        /// The next thing for a worker; nil: it is not one any more.
        mutating func nextJob() -> BlockJob? {
            guard nextInBacklog < backlog.count else {
                backlog.removeAll(keepingCapacity: true)
                nextInBacklog = 0
                workers -= 1
                return nil
            }
            defer { nextInBacklog += 1 }
            return backlog[nextInBacklog]
        }
    }

    /// A request that waits for its reason to go away; the driver has no answer.
    struct Held: Equatable, Sendable {
        var queue: Int
        var chain: DescriptorChain
    }

    var isWriteback = true
    var lanes: [Lane]
    var held: [Held] = []
    /// The held ones are of a device that was saved: they are this one's as soon as it starts.
    var isHeldFromBefore = false
    /// The device was started with held requests, which nobody has tried again yet.
    var retriesHeld = false

    init(queueCount: Int) { lanes = Array(repeating: Lane(), count: queueCount) }
}

/// How an attempt at a request ended.
enum BlockOutcome: Equatable, Sendable {
    case status(BlockStatus)
    /// Not at all, and why.
    case held(String)
}

/// What a ring cannot do.
enum BlockJob: Sendable {
    /// All of a request.
    case execute(DescriptorChain)
    /// What is missing of a write that is to be on the medium.
    case flush(DescriptorChain)
}
