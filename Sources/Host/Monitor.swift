internal import CHost

/// A lock that threads can also wait on until somebody changes what it guards. Not recursive.
public final class Monitor: @unchecked Sendable {
    // SAFETY: the C object is made for being used by several threads.
    private let handle = host_monitor_create()

    public init() {}

    deinit { host_monitor_destroy(handle) }

    public func lock() { host_monitor_lock(handle) }
    /// The lock if nobody has it, without waiting.
    public func tryLock() -> Bool { host_monitor_try_lock(handle) == 1 }
    public func unlock() { host_monitor_unlock(handle) }

    /// Gives the lock up until `wakeAll()`, and has it again when it returns. It may return early: look again.
    public func wait() { host_monitor_wait(handle) }

    public func wakeAll() { host_monitor_wake_all(handle) }
}
