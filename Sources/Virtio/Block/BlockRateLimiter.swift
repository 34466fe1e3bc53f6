/// How much a disk may be used; nil: as much as it can.
public struct BlockRateLimits: Equatable, Sendable {
    public var bytesPerSecond: UInt64?
    public var operationsPerSecond: UInt64?

    public init(bytesPerSecond: UInt64? = nil, operationsPerSecond: UInt64? = nil) {
        self.bytesPerSecond = bytesPerSecond
        self.operationsPerSecond = operationsPerSecond
    }
}

/// Spreads requests over time: each takes as long as the limits say, and may start when those before it are over. A
/// tenth of a second's worth may come at once.
struct BlockRateLimiter: Sendable {
    private let limits: BlockRateLimits
    /// When all that was let through would be over at the limits' pace, in nanoseconds.
    private var busyUntil: UInt64 = 0

    private static let second: UInt64 = 1_000_000_000
    private static let burst = second / 10
    /// No request waits longer, so that a reset does not either.
    private static let delayLimit = second

    init(_ limits: BlockRateLimits) { self.limits = limits }

    /// How long the next request has to wait, whatever it is.
    func delay(now: UInt64) -> UInt64 {
        // Never further ahead than what will be waited for.
        let wait = max(busyUntil, now) &- now
        guard wait > Self.burst else { return 0 }
        return min(wait &- Self.burst, Self.delayLimit)
    }

    /// How long to wait before a request, which is counted.
    mutating func delay(bytes: Int, now: UInt64) -> UInt64 {
        let start = max(busyUntil, now)
        defer { count(bytes: bytes, from: start) }
        return delay(now: now)
    }

    private mutating func count(bytes: Int, from start: UInt64) {
        busyUntil =
            start
            &+ max(
                Self.time(UInt64(clamping: bytes), limits.bytesPerSecond), Self.time(1, limits.operationsPerSecond))
    }

    private static func time(_ amount: UInt64, _ perSecond: UInt64?) -> UInt64 {
        guard let perSecond, perSecond > 0 else { return 0 }
        let (product, overflow) = amount.multipliedReportingOverflow(by: second)
        return overflow ? delayLimit : product / perSecond
    }
}
