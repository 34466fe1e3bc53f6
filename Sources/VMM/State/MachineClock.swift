internal import Host
internal import Synchronization

/// The time of a machine's life, which stands still while the machine does.
final class MachineClock: Sendable {
    private struct State: Sendable {
        /// What is to be taken off the host's time.
        var lag: UInt64 = 0
        var stoppedAt: UInt64?
    }

    private let state = Mutex(State())

    /// In the host's monotonic time, less all pauses.
    var nanoseconds: UInt64 {
        let now = HostClock.monotonicNanoseconds
        return state.withLock { ($0.stoppedAt ?? now) &- $0.lag }
    }

    func stop() {
        let now = HostClock.monotonicNanoseconds
        state.withLock { $0.stoppedAt = $0.stoppedAt ?? now }
    }

    func start() {
        let now = HostClock.monotonicNanoseconds
        state.withLock { state in
            guard let stoppedAt = state.stoppedAt else { return }
            state.lag &+= now &- stoppedAt
            state.stoppedAt = nil
        }
    }
}
