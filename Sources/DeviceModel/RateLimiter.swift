/// Bounds what a guest can make the host write into its log: a bucket of `burst` messages that gains one per
/// `interval`.
public struct RateLimiter: Sendable {
    private let burst: Int
    private let interval: Duration
    private var tokens: Int
    private var lastRefill: Duration?
    /// Messages refused since the last one that was allowed.
    public private(set) var suppressed = 0

    public init(burst: Int, interval: Duration) {
        precondition(burst > 0 && interval > .zero)
        self.burst = burst
        self.interval = interval
        tokens = burst
    }

    /// Whether a message at the monotonic time `now` may be written.
    public mutating func allows(now: Duration) -> Bool {
        refill(now: now)
        guard tokens > 0 else {
            suppressed &+= 1
            return false
        }
        tokens -= 1
        suppressed = 0
        return true
    }

    private mutating func refill(now: Duration) {
        guard let last = lastRefill else {
            lastRefill = now
            return
        }
        let gained = max(0, (now - last) / interval)
        if gained >= Double(burst - tokens) {
            tokens = burst
            lastRefill = now
        } else if gained >= 1 {
            tokens += Int(gained)
            lastRefill = last + interval * Int(gained)
        }
    }
}
