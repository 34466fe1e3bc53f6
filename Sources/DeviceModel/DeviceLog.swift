internal import Host
internal import Synchronization

/// Where a device says what its guest or its host does wrong. What a guest can trigger is bounded: after ten messages
/// there is one a second.
public final class DeviceLog: Sendable {
    public typealias Sink = @Sendable (String) -> Void
    private let name: String
    private let sink: Sink
    private let limiter = Mutex(RateLimiter(burst: 10, interval: .seconds(1)))

    /// `name` stands before each message; without a sink they are dropped.
    public init(name: String, sink: @escaping Sink = { _ in }) {
        self.name = name
        self.sink = sink
    }

    public func note(_ message: @autoclosure () -> String) {
        let now = Duration.nanoseconds(Int64(clamping: HostClock.monotonicNanoseconds))
        let (allowed, suppressed) = limiter.withLock { limiter in
            let suppressed = limiter.suppressed
            return (limiter.allows(now: now), suppressed)
        }
        guard allowed else { return }
        sink("\(name): \(message())" + (suppressed > 0 ? " (\(suppressed) more were not shown)" : ""))
    }
}
