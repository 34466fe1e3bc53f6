internal import Disk
internal import GuestMemory
internal import Host
internal import Synchronization

/// Requests that the host's kernel executes while the device goes on.
extension VirtioBlock {
    /// Takes what the queue has, at most as much as its ring has room for, and hands all reads and writes of it to the
    /// kernel at once. How many it took, and whether there may be more.
    func takeAvailable(
        _ index: Int, _ ring: SubmissionRing, _ context: VirtioContext
    ) -> (count: Int, hasMore: Bool) {
        let queue = context.queues[index]
        let limit = Int(max(queue.size, 1))
        var count = 0
        while count < limit {
            if isDelayed(index, ring, context) { break }
            guard let chain = queue.next() else {
                submit(ring, context)
                if queue.requestNotification() { continue }
                return (count, false)
            }
            begin(chain, index, ring, context)
            count += 1
        }
        submit(ring, context)
        return (count, count == limit)
    }

    private func submit(_ ring: SubmissionRing, _ context: VirtioContext) {
        ring.submit()
        reap()
    }

    /// Answers what the kernel is done with; of several requests the driver hears once.
    public func reap() {
        guard let ring else { return }
        ring.reap()
        giveBack()
    }

    private func giveBack() {
        for index in 0..<options.queueCount {
            let done = state.withLock { state in
                defer { state.lanes[index].done.removeAll(keepingCapacity: true) }
                return state.lanes[index].done
            }
            guard !done.isEmpty, let context = currentContext else { continue }
            context.queues[index].complete(done, interrupts: true)
            context.gate.leave(done.count)
        }
    }

    // MARK: One request

    private func begin(_ chain: DescriptorChain, _ index: Int, _ ring: SubmissionRing, _ context: VirtioContext) {
        let queue = context.queues[index]
        guard let header = header(of: chain, queue, context) else { return queue.complete(chain, written: 0) }
        // Whoever called us is inside. What was taken is done, also when the device is about to stop: but not here, where
        // the ends of transfers come that it may have to wait for.
        context.gate.enterAgain()
        switch BlockRequestType(rawValue: header.type) {
        case .read, .write: move(header, chain, index, ring, context)
        case .flush, .discard, .writeZeroes:
            count(bytes: 0)
            handOver(.execute(chain), index, context)
        case .identify: note(chain, identify(chain, context), index, context)
        case nil: note(chain, .unsupported, index, context)
        }
    }

    /// Remembers an answer for the next time that some are given back.
    private func note(_ chain: DescriptorChain, _ status: BlockStatus, _ index: Int, _ context: VirtioContext) {
        let used = answer(chain, status, context.queues[index], context)
        state.withLock { $0.lanes[index].done.append(used) }
    }

    private func move(
        _ header: BlockRequestHeader, _ chain: DescriptorChain, _ index: Int, _ ring: SubmissionRing,
        _ context: VirtioContext
    ) {
        guard let transfer = transfer(header, chain, context) else { return note(chain, .error, index, context) }
        count(bytes: transfer.data.count)
        guard let lease = backend.lease(transfer.segments, at: transfer.offset, forWriting: transfer.isWrite) else {
            return handOver(.execute(chain), index, context)
        }
        let files = lease.parts.compactMap { $0.storage.descriptor(for: $0.memory, at: $0.offset) }
        guard files.count == lease.parts.count else {
            lease.release()
            return handOver(.execute(chain), index, context)
        }
        if lease.parts.allSatisfy(\.storage.isCached) {
            if transfer.isWrite { return writeCached(transfer, lease, chain, index, context) }
            if readCached(transfer, lease, files) {
                return conclude(transfer, lease, failed: false, chain, index, context)
            }
        }
        let progress = BlockProgress(parts: lease.parts.count)
        let end: @Sendable (Int, TransferMemory) -> Void = { [self] result, memory in
            // What a file does not have reads as zeros; what it does not take is an error, and said by the slow way.
            if !transfer.isWrite, result >= 0 { memory.part(result..<memory.count).clear() }
            guard progress.isLast(failed: transfer.isWrite ? result != memory.count : result < 0) else { return }
            conclude(transfer, lease, failed: progress.hasFailed, chain, index, context)
        }
        guard !lease.parts.isEmpty else { return conclude(transfer, lease, failed: false, chain, index, context) }
        for (part, file) in zip(lease.parts, files) {
            let memory = part.memory
            if transfer.isWrite {
                ring.write(memory, to: file, at: part.offset) { end($0, memory) }
            } else {
                ring.read(into: memory, from: file, at: part.offset) { end($0, memory) }
            }
        }
    }

    /// A small read of what the page cache has is done on the spot, without the ring's bookkeeping at both ends
    /// (docs/decisions/0012). After one that it did not have, some go to the ring at once.
    private func readCached(_ transfer: Transfer, _ lease: BlockLease, _ files: [BorrowedDescriptor]) -> Bool {
        guard transfer.data.count <= Self.quickReadLimit else { return false }
        guard coldReads.load(ordering: .relaxed) <= 0 else {
            coldReads.subtract(1, ordering: .relaxed)
            return false
        }
        for (part, file) in zip(lease.parts, files) {
            guard part.memory.fillFromCache(of: file, at: part.offset) else {
                coldReads.store(Self.readsAfterCold, ordering: .relaxed)
                return false
            }
        }
        return true
    }

    private static let quickReadLimit = 64 << 10
    private static let readsAfterCold = 16

    /// A write into the page cache is done on the spot: the kernel would give it to a thread of its own, one after the
    /// other for each file, at three times the cost (docs/decisions/0012). Large ones, and all for a while after one took
    /// long because the cache is full, are left to our threads, so that reads are not held up.
    private func writeCached(
        _ transfer: Transfer, _ lease: BlockLease, _ chain: DescriptorChain, _ index: Int, _ context: VirtioContext
    ) {
        let start = HostClock.monotonicNanoseconds
        guard transfer.data.count <= Self.quickWriteLimit, start >= slowWritesUntil.load(ordering: .relaxed) else {
            lease.release()
            return handOver(.execute(chain), index, context)
        }
        var hasFailed = false
        for part in lease.parts where !hasFailed {
            hasFailed = (try? part.storage.write(part.memory, at: part.offset)) == nil
        }
        let end = HostClock.monotonicNanoseconds
        if end &- start > Self.slowWrite { slowWritesUntil.store(end &+ Self.slowWritePause, ordering: .relaxed) }
        conclude(transfer, lease, failed: hasFailed, chain, index, context)
    }

    private static let quickWriteLimit = 1 << 20
    /// Nanoseconds.
    private static let slowWrite: UInt64 = 2_000_000
    private static let slowWritePause: UInt64 = 100_000_000

    /// All parts of a transfer are done with.
    private func conclude(
        _ transfer: Transfer, _ lease: BlockLease, failed: Bool, _ chain: DescriptorChain, _ index: Int,
        _ context: VirtioContext
    ) {
        lease.release()
        if !transfer.isWrite { context.memory.noteTransfer(into: transfer.data.ranges) }
        // A thread tries once more: it waits where the ring would not, and has the words for what is wrong.
        if failed { return handOver(.execute(chain), index, context) }
        if transfer.isWrite, writesThrough(context) { return handOver(.flush(chain), index, context) }
        note(chain, .ok, index, context)
    }

    // MARK: Rate limits

    private func count(bytes: Int) {
        guard isLimited else { return }
        _ = limiter.withLock { $0.take(bytes: bytes, nowNanoseconds: HostClock.monotonicNanoseconds) }
    }

    /// Whether the limits want the queue to wait: then its requests stay in it until a timer rings.
    private func isDelayed(_ index: Int, _ ring: SubmissionRing, _ context: VirtioContext) -> Bool {
        guard isLimited else { return false }
        let wait = limiter.withLock { $0.waitNanoseconds(nowNanoseconds: HostClock.monotonicNanoseconds) }
        let delay = min(wait, Self.longestDelay)
        guard delay > 0 else { return false }
        let isNew = state.withLock { state in
            defer { state.lanes[index].isDelayed = true }
            return !state.lanes[index].isDelayed
        }
        guard isNew else { return true }
        ring.wait(nanoseconds: delay) { [weak self] in
            self?.state.withLock { $0.lanes[index].isDelayed = false }
            context.repeatNotification(of: index)
        }
        return true
    }
}

/// How far the parts of a transfer are.
private final class BlockProgress: Sendable {
    private let left: Atomic<Int>
    private let failures = Atomic<Int>(0)

    init(parts: Int) { left = Atomic(parts) }

    var hasFailed: Bool { failures.load(ordering: .acquiring) > 0 }

    func isLast(failed: Bool) -> Bool {
        if failed { failures.add(1, ordering: .acquiringAndReleasing) }
        return left.subtract(1, ordering: .acquiringAndReleasing).newValue == 0
    }
}
