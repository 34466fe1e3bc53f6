internal import CHost
internal import CURing
internal import Glibc
internal import Synchronization

/// Reads and writes of files that the kernel does without a thread of this process waiting for each (io_uring(7)).
///
/// Operations are prepared, then submitted together by one system call. Whoever submits, and whoever sees `completions`
/// become readable, calls `reap`, which runs what was to be done at the end of each operation. All calls may come from
/// any thread; one that submits should live as long as its operations, since the kernel cancels those of a thread that
/// ends (their result is ECANCELED).
public final class SubmissionRing: @unchecked Sendable {
    // SAFETY: `submissions` guards the submission side of the ring, `completionSide` the completion side, as liburing
    // wants it; `operations` the table.
    private let ring: OpaquePointer
    private let capacity: Int
    private let submissions = Mutex(Counts())
    private let completionSide = Mutex(Stash())
    private let operations = Mutex(Table())
    /// Readable when there is something to reap.
    public let completions: EventNotifier

    private struct Counts: Sendable {
        var systemCalls: UInt64 = 0
    }

    /// Completions that had to be taken off the ring before anybody asked for them.
    private struct Stash: Sendable {
        var completions: [uring_completion] = []
    }

    /// Operations that are on their way, by the number that the kernel knows them by.
    private struct Table: Sendable {
        var entries: [Operation?] = []
        var free: [Int] = []

        mutating func insert(_ operation: Operation) -> UInt64 {
            if let index = free.popLast() {
                entries[index] = operation
                return UInt64(index)
            }
            entries.append(operation)
            return UInt64(entries.count - 1)
        }

        mutating func remove(_ token: UInt64) -> Operation? {
            guard token < UInt64(entries.count), let operation = entries[Int(token)] else { return nil }
            entries[Int(token)] = nil
            free.append(Int(token))
            return operation
        }
    }

    private final class Operation: @unchecked Sendable {
        // SAFETY: one thread at a time has it: who prepares it, then who reaps it.
        enum Kind { case read, write, timer }

        let kind: Kind
        let file: BorrowedDescriptor
        let whole: TransferMemory
        let offset: UInt64
        let completion: @Sendable (Int) -> Void
        var done = 0
        var attempts = 0
        private var vectors: UnsafeMutableBufferPointer<iovec>?

        init(
            _ kind: Kind, _ file: BorrowedDescriptor, _ memory: TransferMemory, at offset: UInt64,
            _ completion: @escaping @Sendable (Int) -> Void
        ) {
            self.kind = kind
            self.file = file
            self.whole = memory
            self.offset = offset
            self.completion = completion
        }

        deinit { vectors?.deallocate() }

        /// Calls `body` with what is left to do, which stays where it is until this operation goes. A single piece does
        /// not: the ring copies it.
        func withPieces(_ body: (UnsafePointer<iovec>, Int) -> Int) -> Int {
            let rest = whole.part(done..<whole.count).pieces
            if rest.count == 1 { return withUnsafePointer(to: rest[0]) { body($0, 1) } }
            let vectors = UnsafeMutableBufferPointer<iovec>.allocate(capacity: rest.count)
            _ = vectors.initialize(from: rest)
            self.vectors?.deallocate()
            self.vectors = vectors
            return vectors.baseAddress.map { body($0, rest.count) } ?? 0
        }
    }

    /// How often an operation that could not be done just now is tried again at once.
    private static let attemptLimit = 16

    /// A ring with room for `entries` operations that are prepared and not submitted. Fails where the host forbids
    /// io_uring (ENOSYS, EPERM), has an old one (ENOSYS), or has no memory that may be locked for it (ENOMEM).
    public init(entries: Int = 256) throws(HostError) {
        precondition((1...4096).contains(entries))
        // Rounded up by the kernel.
        capacity = 2 * entries
        completions = try EventNotifier()
        var ring: OpaquePointer?
        let result = uring_create(UInt32(entries), completions.descriptor.rawValue, &ring)
        guard result >= 0, let ring else {
            throw HostError("Cannot use io_uring", errorNumber: Int32(truncatingIfNeeded: -result))
        }
        self.ring = ring
    }

    deinit { uring_destroy(ring) }

    // MARK: Preparing

    /// Reads into `memory`, which the caller keeps, with the open file, until `completion` is called: with the number of
    /// bytes, less than asked for only where the file ends, or -errno.
    public func read(
        into memory: TransferMemory, from file: BorrowedDescriptor, at offset: UInt64,
        _ completion: @escaping @Sendable (Int) -> Void
    ) {
        prepare(Operation(.read, file, memory, at: offset, completion))
    }

    /// As `read`; fewer bytes than asked for where the file takes no more.
    public func write(
        _ memory: TransferMemory, to file: BorrowedDescriptor, at offset: UInt64,
        _ completion: @escaping @Sendable (Int) -> Void
    ) {
        prepare(Operation(.write, file, memory, at: offset, completion))
    }

    /// Calls `completion` after so many nanoseconds.
    public func wait(nanoseconds: UInt64, _ completion: @escaping @Sendable () -> Void) {
        let nothing = TransferMemory(joining: [])
        prepare(Operation(.timer, BorrowedDescriptor(-1), nothing, at: nanoseconds) { _ in completion() })
    }

    private func prepare(_ operation: Operation) {
        guard operation.kind == .timer || operation.whole.count > 0 else { return operation.completion(0) }
        let token = operations.withLock { $0.insert(operation) }
        submissions.withLock { counts in
            while enter(operation, token) < 0 { submit(&counts) }
        }
    }

    private func enter(_ operation: Operation, _ token: UInt64) -> Int {
        guard operation.kind != .timer else { return uring_prepare_timer(ring, operation.offset, token) }
        let offset = operation.offset &+ UInt64(operation.done)
        return operation.withPieces { pieces, count in
            operation.kind == .read
                ? uring_prepare_read(ring, operation.file.rawValue, pieces, count, offset, token)
                : uring_prepare_write(ring, operation.file.rawValue, pieces, count, offset, token)
        }
    }

    // MARK: Submitting and reaping

    /// Hands all that is prepared to the kernel. What it could do at once is ready for `reap` when this returns.
    public func submit() { submissions.withLock { submit(&$0) } }

    private func submit(_ counts: inout Counts) {
        while uring_prepared(ring) > 0 {
            counts.systemCalls += 1
            let result = uring_submit(ring)
            guard result < 0, result != Int(-EINTR) else { continue }
            if result == Int(-EAGAIN) || result == Int(-EBUSY) {
                // The kernel lacks memory, or wants completions to be taken first.
                completionSide.withLock { $0.completions += take() }
                HostClock.sleep(nanoseconds: 100_000)
            } else {
                withdraw(result)
            }
        }
    }

    /// The kernel takes nothing any more: what is prepared ends with that error.
    private func withdraw(_ error: Int) {
        let tokens = [UInt64](unsafeUninitializedCapacity: capacity) { buffer, count in
            count = buffer.baseAddress.map { uring_withdraw(ring, $0, capacity) } ?? 0
        }
        let result = Int32(truncatingIfNeeded: error)
        completionSide.withLock { stash in
            stash.completions += tokens.map { uring_completion(token: $0, result: result) }
        }
        completions.signal()
    }

    /// Completes what is done. Each completion is called on this thread, without a lock.
    public func reap() {
        var isAgain = false
        while true {
            let batch = takeCompletions()
            guard !batch.isEmpty else { break }
            for completion in batch where !finish(completion) { isAgain = true }
        }
        guard isAgain else { return }
        submit()
        reap()
    }

    private func takeCompletions() -> [uring_completion] {
        completionSide.withLock { stash in
            guard stash.completions.isEmpty else {
                defer { stash.completions = [] }
                return stash.completions
            }
            return take()
        }
    }

    private func take() -> [uring_completion] {
        [uring_completion](unsafeUninitializedCapacity: 64) { buffer, count in
            count = buffer.baseAddress.map { uring_reap(ring, $0, 64) } ?? 0
        }
    }

    /// False: there is more to do for that operation, which is prepared again.
    private func finish(_ completion: uring_completion) -> Bool {
        guard let operation = operations.withLock({ $0.remove(completion.token) }) else { return true }
        let result = Int(completion.result)
        guard operation.kind != .timer else {
            operation.completion(result)
            return true
        }
        if result > 0 { operation.done += result }
        let isShort = result > 0 && operation.done < operation.whole.count
        if result == Int(-EAGAIN) || result == Int(-EINTR), operation.attempts < Self.attemptLimit {
            operation.attempts += 1
        } else if !isShort {
            operation.completion(result < 0 ? result : operation.done)
            return true
        }
        prepare(operation)
        return false
    }

    // MARK: Figures

    /// How many operations are on their way.
    public var inFlight: Int { operations.withLock { $0.entries.count - $0.free.count } }
    /// How many system calls have submitted operations.
    public var submissionCount: UInt64 { submissions.withLock { $0.systemCalls } }
}
