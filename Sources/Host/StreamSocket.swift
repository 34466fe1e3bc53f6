internal import CHost
internal import Glibc

extension HostError {
    /// Somebody else listens there.
    public var isAddressInUse: Bool { errorNumber == EADDRINUSE }

    public static func nameTooLong(_ operation: String) -> HostError {
        HostError(operation, errorNumber: ENAMETOOLONG)
    }
}

/// A connected stream socket of the file system that never waits; closed with its owner.
public final class StreamSocket: Sendable {
    private let owned: FileDescriptor

    /// Which direction to end.
    public enum Direction: Sendable { case receiving, sending }

    fileprivate init(owning descriptor: Int32) { owned = FileDescriptor(owning: descriptor) }

    /// nil: nobody listens there, or there is no room.
    public init?(connectingTo path: String) {
        let result = retryingInterrupted { host_stream_connect(path) }
        guard result >= 0 else { return nil }
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: result))
    }

    public var descriptor: BorrowedDescriptor { owned.borrowed }

    /// What a transfer says when it cannot go on now.
    public static func isBusy(_ result: Int) -> Bool { result == Int(-EAGAIN) || result == Int(-EWOULDBLOCK) }

    /// As much of `bytes` as it takes now, or -errno.
    public func send(_ bytes: ArraySlice<UInt8>) -> Int {
        bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress, !buffer.isEmpty else { return 0 }
            var piece = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: buffer.count)
            return retryingInterrupted { host_stream_send(owned.rawValue, &piece, 1) }
        }
    }

    /// Up to `limit` bytes that are there now; none at the end, nil where there are none now or it is broken.
    public func receive(limit: Int) -> [UInt8]? {
        var result = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, initialized in
            if let base = buffer.baseAddress {
                var piece = iovec(iov_base: base, iov_len: limit)
                result = retryingInterrupted { host_stream_receive(owned.rawValue, &piece, 1) }
            }
            initialized = max(result, 0)
        }
        return result < 0 ? nil : bytes
    }

    /// The other end may be gone, and then there is nothing to end.
    public func shut(_ direction: Direction) {
        _ = host_stream_shut(owned.rawValue, Int32(direction == .receiving ? SHUT_RD : SHUT_WR))
    }
}

/// A stream socket that listens at a path of the file system (mode 0600).
public final class StreamListener: Sendable {
    public let path: String
    private let owned: FileDescriptor
    private let inode: UInt64

    /// Replaces a socket that nobody listens on. Fails with EADDRINUSE where somebody does, with EEXIST where something
    /// else has that name.
    public init(path: String) throws(HostError) {
        var inode: UInt64 = 0
        let result = retryingInterrupted { host_stream_listen(path, &inode) }
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: try check(result, "Cannot listen at \(path)")))
        self.path = path
        self.inode = inode
    }

    public var descriptor: BorrowedDescriptor { owned.borrowed }

    /// nil: nobody waits.
    public func accept() -> StreamSocket? {
        let result = retryingInterrupted { host_stream_accept(owned.rawValue) }
        return result < 0 ? nil : StreamSocket(owning: Int32(truncatingIfNeeded: result))
    }

    /// Nobody finds it any more. Somebody may have removed its name, or given it to another socket: then it is not ours.
    public func removeName() { _ = host_stream_remove(path, inode) }

    deinit {
        removeName()
        // A child that was just started may have a copy until its exec: nobody listens in that either.
        _ = host_stream_shut(owned.rawValue, Int32(SHUT_RDWR))
    }
}

/// Waits for many descriptors at once (epoll(7)); each has a number by which it is told.
public final class EventPoll: Sendable {
    public struct Event: Sendable {
        public let token: UInt64
        public let isReadable: Bool
        public let isWritable: Bool
        /// The other end sends nothing more.
        public let isEnded: Bool
        /// Both directions are over, or it is in error.
        public let isHungUp: Bool
    }

    private let owned: FileDescriptor

    public init() throws(HostError) {
        let result = try check(host_epoll_create(), "Cannot wait for events")
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: result))
    }

    private static func bits(_ interest: Interest) -> UInt32 {
        // An end is only told while reading is wanted: it stays, and would be told for ever.
        UInt32(
            (interest.contains(.readable) ? HOST_EPOLL_READABLE | HOST_EPOLL_ENDED : 0)
                | (interest.contains(.writable) ? HOST_EPOLL_WRITABLE : 0))
    }

    public func add(_ descriptor: BorrowedDescriptor, _ interest: Interest, token: UInt64) throws(HostError) {
        try check(
            host_epoll_add(owned.rawValue, descriptor.rawValue, Self.bits(interest), token), "Cannot watch a socket")
    }

    public func change(_ descriptor: BorrowedDescriptor, _ interest: Interest, token: UInt64) throws(HostError) {
        try check(
            host_epoll_change(owned.rawValue, descriptor.rawValue, Self.bits(interest), token),
            "Cannot watch a socket")
    }

    public func remove(_ descriptor: BorrowedDescriptor) throws(HostError) {
        try check(host_epoll_remove(owned.rawValue, descriptor.rawValue), "Cannot stop watching a socket")
    }

    /// Waits until something happens, for ever without a timeout.
    public func wait(timeoutMilliseconds: Int32? = nil) throws(HostError) -> [Event] {
        var events = [host_epoll_event](repeating: host_epoll_event(), count: 64)
        let result = retryingInterrupted {
            host_epoll_wait(owned.rawValue, &events, Int32(events.count), timeoutMilliseconds ?? -1)
        }
        try check(result, "Cannot wait for events")
        return events.prefix(result).map { event in
            func has(_ bit: Int) -> Bool { event.events & UInt32(bit) != 0 }
            return Event(
                token: event.token, isReadable: has(HOST_EPOLL_READABLE), isWritable: has(HOST_EPOLL_WRITABLE),
                isEnded: has(HOST_EPOLL_ENDED), isHungUp: has(HOST_EPOLL_HUNG_UP) || has(HOST_EPOLL_ERROR))
        }
    }
}
