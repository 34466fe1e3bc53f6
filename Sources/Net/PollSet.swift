internal import CHost
internal import Glibc
internal import Host

/// Descriptors to wait for, built anew before each wait: libslirp's set changes every time.
struct PollSet {
    private var entries: [pollfd] = []

    mutating func removeAll() { entries.removeAll(keepingCapacity: true) }

    /// Watches a descriptor; the result is its index for `events`.
    mutating func add(_ descriptor: Int32, _ events: Int16) -> Int {
        entries.append(pollfd(fd: descriptor, events: events, revents: 0))
        return entries.count - 1
    }

    /// What happened to the descriptor with that index; 0 for none, also when there is no such index.
    func events(at index: Int) -> Int16 { entries.indices.contains(index) ? entries[index].revents : 0 }

    /// Waits until something happens or the time is over; without a time for ever.
    mutating func wait(nanoseconds: UInt64?) {
        let timeout = nanoseconds.map { Int64(clamping: $0) } ?? -1
        let result = unsafe entries.withUnsafeMutableBufferPointer { buffer in
            // SAFETY: the address and count of an array, during the call. It is never empty: the wake-up is in it.
            unsafe buffer.baseAddress.map { unsafe host_poll($0, buffer.count, timeout) } ?? 0
        }
        // Interrupted, or out of memory: nothing has happened, and the caller looks again.
        if result < 0 { for index in entries.indices { entries[index].revents = 0 } }
    }
}
