internal import CHost
internal import Glibc

/// An eventfd: a counter that a thread can wait for together with other descriptors. Never blocks.
public final class EventNotifier: Sendable {
    private let owned: FileDescriptor

    public init() throws(HostError) {
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: try check(host_eventfd(), "Cannot make an eventfd")))
    }

    /// Another end of somebody's eventfd, which may then close its own.
    public init(duplicating descriptor: Int32) throws(HostError) {
        let result = try check(host_duplicate(descriptor), "Cannot use an eventfd")
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: result))
    }

    public var descriptor: BorrowedDescriptor { owned.borrowed }

    /// Makes `descriptor` readable.
    public func signal() {
        var one: UInt64 = 1
        // Fails only when the counter is full, and then it is readable already.
        _ = host_write(owned.rawValue, &one, 8)
    }

    /// How often it was signalled since the last call; 0 when it was not.
    public func consume() -> UInt64 {
        var count: UInt64 = 0
        return host_read(owned.rawValue, &count, 8) == 8 ? count : 0
    }
}

/// A POSIX signal by its number.
public struct Signal: Hashable, Sendable {
    public let rawValue: Int32

    public init(_ rawValue: Int32) { self.rawValue = rawValue }

    public static let interrupt = Signal(SIGINT)
    public static let terminate = Signal(SIGTERM)
    public static let hangUp = Signal(SIGHUP)
    public static let quit = Signal(SIGQUIT)
    public static let kill = Signal(SIGKILL)
    public static let windowChange = Signal(SIGWINCH)
    public static let pipe = Signal(SIGPIPE)
    public static let stop = Signal(SIGTSTP)
    public static let `continue` = Signal(SIGCONT)

    /// Ignores `signal` in the whole process; SIGPIPE, so that a closed output is an error of the write.
    public static func ignore(_ signal: Signal) { host_ignore_signal(signal.rawValue) }
}

/// A signalfd: signals as events. They become blocked in the calling thread, and in threads it starts later; create it
/// before other threads exist.
public final class SignalSource: Sendable {
    private let owned: FileDescriptor

    public init(_ signals: [Signal]) throws(HostError) {
        let numbers = signals.map(\.rawValue)
        let result = host_signalfd(numbers, numbers.count)
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: try check(result, "Cannot make a signalfd")))
    }

    public var descriptor: BorrowedDescriptor { owned.borrowed }

    /// The next pending signal, if there is one.
    public func next() -> Signal? {
        // struct signalfd_siginfo: 128 bytes that begin with ssi_signo (signalfd(2)).
        var record: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        var whole = (record, record)
        guard host_read(owned.rawValue, &whole, 128) == 128 else { return nil }
        record = whole.0
        return Signal(Int32(truncatingIfNeeded: record.0))
    }
}

/// What to wait for on a descriptor.
public struct Interest: OptionSet, Sendable {
    public let rawValue: Int16

    public init(rawValue: Int16) { self.rawValue = rawValue }

    public static let readable = Interest(rawValue: Int16(POLLIN))
    public static let writable = Interest(rawValue: Int16(POLLOUT))
}

/// Waits for several descriptors. ppoll rather than epoll, because standard input may be a regular file, which epoll
/// refuses.
public struct DescriptorPoll: Sendable {
    /// One descriptor that something happened to.
    public struct Ready: Equatable, Sendable {
        public let descriptor: BorrowedDescriptor
        public let isReadable: Bool
        public let isWritable: Bool
        /// The other end is gone, or the descriptor is in error. There may still be something to read.
        public let isHungUp: Bool
    }

    private var set: [pollfd] = []

    public init() {}

    /// Adds a descriptor, or changes what it is watched for.
    public mutating func set(_ descriptor: BorrowedDescriptor, _ interest: Interest) {
        remove(descriptor)
        set.append(pollfd(fd: descriptor.rawValue, events: interest.rawValue, revents: 0))
    }

    public mutating func remove(_ descriptor: BorrowedDescriptor) {
        set.removeAll { $0.fd == descriptor.rawValue }
    }

    /// The descriptors that are ready; none after the timeout, or when a signal came. Without a timeout it waits for
    /// ever.
    public func wait(timeoutNanoseconds: UInt64?) throws(HostError) -> [Ready] {
        var set = set
        let timeout = timeoutNanoseconds.map { Int64(clamping: $0) } ?? -1
        let result = set.withUnsafeMutableBufferPointer { buffer in
            // An empty array may have no address, and the wrapper wants one.
            var none = pollfd()
            guard let base = buffer.baseAddress else { return host_poll(&none, 0, timeout) }
            return host_poll(base, buffer.count, timeout)
        }
        if result == Int(-EINTR) { return [] }
        try check(result, "Cannot wait for events")
        return set.compactMap { entry in
            let events = Int32(entry.revents)
            guard events != 0 else { return nil }
            return Ready(
                descriptor: BorrowedDescriptor(entry.fd), isReadable: events & POLLIN != 0,
                isWritable: events & POLLOUT != 0, isHungUp: events & (POLLHUP | POLLERR | POLLNVAL) != 0)
        }
    }
}
