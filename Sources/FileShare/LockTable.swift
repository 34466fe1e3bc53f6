internal import CHost
internal import Glibc
internal import Synchronization

/// A lock request that waits until it can be had.
public final class LockWait: Sendable {
    public let unique: UInt64
    let node: UInt64
    let owner: UInt64
    let lock: host_share_lock

    private enum State {
        case waiting((@Sendable (Int32) -> Void)?)
        case done(Int32)
    }
    private let state = Mutex(State.waiting(nil))

    init(unique: UInt64, node: UInt64, owner: UInt64, lock: host_share_lock) {
        self.unique = unique
        self.node = node
        self.owner = owner
        self.lock = lock
    }

    /// `body` is called once, with 0 or the errno that the request ends with, perhaps before this returns.
    public func whenDone(_ body: @escaping @Sendable (Int32) -> Void) {
        let result: Int32? = state.withLock { state in
            if case .done(let result) = state { return result }
            state = .waiting(body)
            return nil
        }
        if let result { body(result) }
    }

    func finish(_ result: Int32) {
        let body: (@Sendable (Int32) -> Void)? = state.withLock { state in
            guard case .waiting(let body) = state else { return nil }
            state = .done(result)
            return body
        }
        body?(result)
    }
}

/// POSIX locks of the guest's processes as locks of the host, each owner's with an open file of its own (F_OFD_SETLK):
/// so they hold against the host's processes and against other machines.
final class LockTable: Sendable {
    private struct Key: Hashable, Sendable {
        var node: UInt64
        var owner: UInt64
    }

    private struct Holding: Sendable {
        var file: OpenFile
        /// What is locked, not overlapping.
        var ranges: [host_share_lock] = []

        /// All locks go now. Closing the file would do, but not before a process that is just being started (it has the
        /// file until its exec) has closed it too.
        func release() {
            for range in ranges {
                var free = range
                free.type = UInt32(F_UNLCK)
                // Cannot fail: what is unlocked is locked.
                try? file.setLock(free)
            }
        }

        /// As the kernel does it: the last lock of a range counts.
        mutating func apply(_ lock: host_share_lock) {
            ranges = ranges.flatMap { range -> [host_share_lock] in
                guard range.start <= lock.end, lock.start <= range.end else { return [range] }
                var rest: [host_share_lock] = []
                if range.start < lock.start {
                    var head = range
                    head.end = lock.start - 1
                    rest.append(head)
                }
                if range.end > lock.end {
                    var tail = range
                    tail.start = lock.end + 1
                    rest.append(tail)
                }
                return rest
            }
            if lock.type != UInt32(F_UNLCK) { ranges.append(lock) }
        }
    }

    private struct State: Sendable {
        var holdings: [Key: Holding] = [:]
        var waits: [LockWait] = []
    }

    private let state = Mutex(State())
    /// Held while those that wait are tried, so that none is granted and interrupted. Comes before `state`.
    private let trying = Mutex<Void>(())
    private let holdingLimit: Int
    private static let waitLimit = 256
    /// Ranges of one owner in one file.
    private static let rangeLimit = 1024

    init(holdingLimit: Int) { self.holdingLimit = holdingLimit }

    var hasWaits: Bool { state.withLock { !$0.waits.isEmpty } }

    func reset() {
        interruptAll()
        let old = state.withLock { state in
            defer { state.holdings = [:] }
            return state.holdings
        }
        for holding in old.values { holding.release() }
    }

    /// Sets or removes a lock at once; EAGAIN where somebody else has one there.
    func set(_ lock: host_share_lock, node: UInt64, owner: UInt64, nodes: NodeTable) throws(ShareFault) {
        try attempt(lock, node: node, owner: owner, nodes: nodes)
        // A read lock may have been a write lock before.
        if lock.type != UInt32(F_WRLCK) { retry(nodes) }
    }

    private func attempt(_ lock: host_share_lock, node: UInt64, owner: UInt64, nodes: NodeTable) throws(ShareFault) {
        let key = Key(node: node, owner: owner)
        let isUnlock = lock.type == UInt32(F_UNLCK)
        let known = try state.withLock { (state) throws(ShareFault) -> OpenFile? in
            guard let holding = state.holdings[key] else {
                guard isUnlock || state.holdings.count < holdingLimit else { throw ShareFault(ENOLCK) }
                return nil
            }
            guard isUnlock || holding.ranges.count < Self.rangeLimit else { throw ShareFault(ENOLCK) }
            return holding.file
        }
        if known == nil, isUnlock { return }
        let fresh = known == nil ? try Self.open(node, nodes) : nil
        try state.withLock { (state) throws(ShareFault) in
            // Another of the guest's threads may have opened one meanwhile.
            guard let file = state.holdings[key]?.file ?? fresh else { throw ShareFault(ENOLCK) }
            try file.setLock(lock)
            var holding = state.holdings[key] ?? Holding(file: file)
            holding.apply(lock)
            state.holdings[key] = holding
        }
    }

    /// For writing where that is possible: a write lock needs it.
    private static func open(_ node: UInt64, _ nodes: NodeTable) throws(ShareFault) -> OpenFile {
        let descriptor = try nodes.descriptor(node)
        do throws(ShareFault) {
            return try descriptor.open(O_RDWR)
        } catch {
            guard [EACCES, EPERM, EROFS, ETXTBSY].contains(error.number) else { throw error }
            return try descriptor.open(O_RDONLY)
        }
    }

    /// What is in the way of a lock; F_UNLCK where nothing is.
    func conflict(
        with lock: host_share_lock, node: UInt64, owner: UInt64, file: OpenFile
    ) throws(ShareFault) -> host_share_lock {
        let own = state.withLock { $0.holdings[Key(node: node, owner: owner)]?.file }
        var found = try (own ?? file).conflict(with: lock)
        found.process = 0
        guard found.type != UInt32(F_UNLCK) else { return found }
        // Another process of this guest, if we know of one.
        let (start, end) = (found.start, found.end)
        found.process =
            state.withLock { state in
                state.holdings.lazy.filter { $0.key.node == node && $0.key.owner != owner }
                    .flatMap(\.value.ranges).first { $0.start <= end && start <= $0.end }?.process
            } ?? 0
        return found
    }

    /// All locks of an owner on a file go (a descriptor of it was closed).
    func drop(node: UInt64, owner: UInt64, nodes: NodeTable) {
        guard let holding = state.withLock({ $0.holdings.removeValue(forKey: Key(node: node, owner: owner)) }) else {
            return
        }
        holding.release()
        retry(nodes)
    }

    // MARK: Waiting

    func add(_ wait: LockWait) throws(ShareFault) {
        try state.withLock { (state) throws(ShareFault) in
            guard state.waits.count < Self.waitLimit else { throw ShareFault(ENOLCK) }
            state.waits.append(wait)
        }
    }

    /// Tries all that wait once more, in their order.
    func retry(_ nodes: NodeTable) {
        guard hasWaits else { return }
        trying.withLock { _ in
            for wait in state.withLock({ $0.waits }) {
                var result: Int32 = 0
                do throws(ShareFault) {
                    try attempt(wait.lock, node: wait.node, owner: wait.owner, nodes: nodes)
                } catch {
                    guard error.number != EAGAIN, error.number != EACCES else { continue }
                    result = error.number
                }
                end(wait, result)
            }
        }
    }

    /// EINTR for one that waits, if there is one of that number.
    func interrupt(_ unique: UInt64) {
        trying.withLock { _ in
            if let wait = state.withLock({ $0.waits.first { $0.unique == unique } }) { end(wait, EINTR) }
        }
    }

    func interruptAll() {
        trying.withLock { _ in
            for wait in state.withLock({ $0.waits }) { end(wait, EINTR) }
        }
    }

    private func end(_ wait: LockWait, _ result: Int32) {
        state.withLock { state in state.waits.removeAll { $0 === wait } }
        wait.finish(result)
    }

    // MARK: Saved state

    func save() -> [ShareSnapshot.SavedLock] {
        let holdings = state.withLock { $0.holdings }
        return holdings.flatMap { key, holding in
            holding.ranges.map { range in
                ShareSnapshot.SavedLock(
                    node: key.node, owner: key.owner, start: range.start, end: range.end,
                    isWrite: range.type == UInt32(F_WRLCK), process: range.process)
            }
        }.sorted { ($0.node, $0.owner, $0.start) < ($1.node, $1.owner, $1.start) }
    }

    /// Takes the locks again; how many somebody else has taken meanwhile, or whose files are gone.
    func restore(_ snapshot: ShareSnapshot, nodes: NodeTable) -> Int {
        var lost = 0
        for saved in snapshot.locks {
            let type = UInt32(saved.isWrite ? F_WRLCK : F_RDLCK)
            let lock = host_share_lock(start: saved.start, end: saved.end, type: type, process: saved.process)
            do throws(ShareFault) {
                try set(lock, node: saved.node, owner: saved.owner, nodes: nodes)
            } catch {
                lost += 1
            }
        }
        return lost
    }
}
