internal import CHost
internal import Glibc
internal import Synchronization

/// A thread of this process, by the kernel's number.
public struct ThreadID: Hashable, Sendable {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static var current: ThreadID { ThreadID(rawValue: host_thread_id()) }

    /// Makes a blocking system call of that thread (KVM_RUN, a futex wait, a poll) return. Harmless when there is none,
    /// and when the thread has ended.
    public func kick() {
        host_install_kick_handler()
        host_kick_thread(rawValue)
    }
}

/// A pthread with a name. It takes no signals except the kick and its own faults, so that the process's signals stay
/// with the main thread.
public final class HostThread: Sendable {
    /// What the new thread finds: its body, and where to leave its number.
    private final class Start: Sendable {
        let name: String
        let body: @Sendable () -> Void
        let thread = Atomic<Int32>(0)
        let hasStarted: EventNotifier

        init(name: String, body: @escaping @Sendable () -> Void) throws(HostError) {
            self.name = name
            self.body = body
            hasStarted = try EventNotifier()
        }
    }

    public let id: ThreadID
    private let handle: UInt
    private let isJoined = Mutex(false)

    /// Starts the thread at once.
    public init(
        name: String, stackSize: Int = 1 << 20, _ body: @escaping @Sendable () -> Void
    ) throws(HostError) {
        let start = try Start(name: name, body: body)
        let argument = Unmanaged.passRetained(start)
        var handle: UInt = 0
        let result = host_thread_start(
            stackSize,
            { argument in
                guard let argument else { return nil }
                // SAFETY: the retained reference that the creator passed, taken over once.
                let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                host_name_thread(start.name)
                start.thread.store(host_thread_id(), ordering: .releasing)
                start.hasStarted.signal()
                start.body()
                return nil
            }, argument.toOpaque(), &handle)
        if result < 0 { argument.release() }
        try check(result, "Cannot start thread \(name)")
        self.handle = handle
        var poll = DescriptorPoll()
        poll.set(start.hasStarted.descriptor, .readable)
        // The thread runs: nothing from here on may fail.
        while start.thread.load(ordering: .acquiring) == 0 { _ = try? poll.wait(timeoutNanoseconds: nil) }
        id = ThreadID(rawValue: start.thread.load(ordering: .acquiring))
    }

    public func kick() { id.kick() }

    /// Waits until the body has returned. Further calls return at once when the first one has.
    public func join() {
        isJoined.withLock { isJoined in
            if !isJoined { _ = host_thread_join(handle) }
            isJoined = true
        }
    }

    deinit {
        // Not joined by anyone: let the kernel clean up after it.
        if !isJoined.withLock({ $0 }) { pthread_detach(pthread_t(handle)) }
    }
}

/// A timer that kicks one thread.
public final class ThreadTimer: Sendable {
    private let timer: Int

    public init(kicking thread: ThreadID) throws(HostError) {
        var timer = 0
        try check(host_timer_create(thread.rawValue, &timer), "Cannot make a timer")
        self.timer = timer
    }

    /// Kicks once at the given time, at once when that is past. Replaces what was armed before.
    public func arm(atMonotonicNanoseconds time: UInt64) { set(time: max(time, 1), interval: 0) }

    public func arm(afterNanoseconds delay: UInt64) {
        let (time, overflow) = HostClock.monotonicNanoseconds.addingReportingOverflow(delay)
        arm(atMonotonicNanoseconds: overflow ? .max : time)
    }

    /// Kicks again and again, first after one interval. A kick can come just before the call it should interrupt: what
    /// must not be missed is kicked repeatedly.
    public func arm(everyNanoseconds interval: UInt64) {
        set(time: HostClock.monotonicNanoseconds &+ interval, interval: max(interval, 1))
    }

    public func disarm() { set(time: 0, interval: 0) }

    private func set(time: UInt64, interval: UInt64) {
        // The kernel takes signed 64-bit nanoseconds at most; 0 would disarm.
        _ = host_timer_set(timer, min(time, UInt64(Int64.max)), min(interval, UInt64(Int64.max)))
    }

    deinit { host_timer_delete(timer) }
}

/// A word in memory that threads sleep on (futex(2), private to the process).
public enum Futex {
    /// Why a wait ended. Any of them may be spurious: look at the word again.
    public enum Wake: Equatable, Sendable {
        case woken
        case valueChanged
        case timedOut
        case interrupted
    }

    /// Sleeps while `*word == expected`, until a wake or the absolute time.
    public static func wait(
        _ word: UnsafeMutablePointer<UInt32>, while expected: UInt32, untilMonotonicNanoseconds: UInt64?
    ) -> Wake {
        // Int64.max nanoseconds is 292 years, and the kernel's own limit.
        let until = untilMonotonicNanoseconds.map { min($0, UInt64(Int64.max)) } ?? .max
        return switch host_futex_wait(word, expected, until) {
        case 0: .woken
        case Int(-EAGAIN): .valueChanged
        case Int(-ETIMEDOUT): .timedOut
        default: .interrupted
        }
    }

    /// Wakes up to `count` sleepers.
    public static func wake(_ word: UnsafeMutablePointer<UInt32>, count: Int32 = 1) {
        _ = host_futex_wake(word, count)
    }
}

/// The host's clocks, in nanoseconds.
public enum HostClock {
    /// CLOCK_MONOTONIC: never set back, not advanced while the host sleeps.
    public static var monotonicNanoseconds: UInt64 { host_monotonic_ns() }

    /// CLOCK_REALTIME: since 1970 UTC.
    public static var realtimeNanoseconds: UInt64 { host_realtime_ns() }

    /// Sleeps at least this long, signals or not.
    public static func sleep(nanoseconds: UInt64) { host_sleep_until(host_monotonic_ns() &+ nanoseconds) }
}
