public import DeviceModel
public import FileShare
internal import GuestMemory
public import Host
internal import Synchronization
internal import X86

/// A file system device (Virtio 1.2 §5.11): a folder of the host, which the guest mounts by its tag and asks in FUSE.
///
/// Short requests are executed by whoever brings the notification (with a doorbell thread of the device's own that is one
/// change of threads for each); those that move much, and those that others would wait behind, by the runner's threads.
public final class VirtioFileSystem: VirtioDevice {
    // Configuration
    private let share: FileShare
    private let tag: [UInt8]
    private let requestQueueCount: Int
    private let runner: any JobRunner
    /// Requests of one queue that are executed at once.
    private let parallelism: Int
    // Glue
    private let context = Mutex<VirtioContext?>(nil)
    // Volatile state
    private let state: Mutex<FileSystemState>

    private static let hiPriorityQueueSize: UInt16 = 128
    /// The guest's driver asks for 1 MiB at once only where a queue has as many entries as that has pages.
    private static let requestQueueSize: UInt16 = 1024
    public static let requestQueueLimit = 16
    /// How often a lock is tried that a process of the host has.
    private static let lockInterval: UInt64 = 20_000_000

    /// Whether it can be a tag: 1 to 36 bytes without NUL.
    public static func isTag(_ text: String) -> Bool {
        (1...FileSystemConfiguration.tagSize).contains(text.utf8.count) && !text.utf8.contains(0)
    }

    public init(
        _ share: FileShare, tag: String, requestQueueCount: Int = 1, runner: any JobRunner, parallelism: Int = 4
    ) {
        precondition(Self.isTag(tag) && (1...Self.requestQueueLimit).contains(requestQueueCount))
        self.share = share
        self.tag = Array(tag.utf8)
        self.requestQueueCount = requestQueueCount
        self.runner = runner
        self.parallelism = max(1, parallelism)
        state = Mutex(FileSystemState(queueCount: requestQueueCount + 1))
    }

    /// With the same folder; what the guest had open there is opened again when it is used.
    public convenience init(
        restoring saved: VirtioFileSystemSavedState, _ share: FileShare, tag: String, requestQueueCount: Int = 1,
        runner: any JobRunner, parallelism: Int = 4, log: DeviceLog? = nil
    ) throws(SavedStateError) {
        guard saved.tag == Array(tag.utf8) else {
            throw .invalid(identifier: VirtioFileSystemSavedState.identifier, field: "tag")
        }
        guard let lostLocks = share.restore(saved.share) else {
            throw .invalid(identifier: VirtioFileSystemSavedState.identifier, field: "share")
        }
        if lostLocks > 0 {
            log?.note(
                "\(lostLocks) locks on files could not be had again: somebody else has them, or the files are gone")
        }
        self.init(
            share, tag: tag, requestQueueCount: requestQueueCount, runner: runner, parallelism: parallelism)
    }

    public func saveState() -> [UInt8] { VirtioFileSystemSavedState(tag: tag, share: share.save()).encoded() }

    // MARK: What the driver sees

    /// Mass storage of another kind, as PCI calls it.
    public let kind = VirtioKind(name: "virtio-fs", identifier: 26, pciClass: 0x01_8000)
    public let features: UInt64 = 0

    /// One for what must not wait behind others, then those for requests (§5.11.2).
    public var queueSizes: [UInt16] {
        [Self.hiPriorityQueueSize] + Array(repeating: Self.requestQueueSize, count: requestQueueCount)
    }

    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: FileSystemConfiguration.size)
        bytes.replaceSubrange(0..<tag.count, with: tag)
        bytes.store(UInt32(requestQueueCount), at: FileSystemConfiguration.requestQueueCount)
        return bytes
    }

    // MARK: Life

    public func start(_ context: VirtioContext) { self.context.withLock { $0 = context } }

    /// Requests that wait for a lock end with EINTR: a buffer that is held cannot be saved.
    public func stop() {
        let (waiting, isStarted) = takeWaiting { _ in true }
        if isStarted { for wait in waiting.values { reply(to: wait, error: LinuxError.interrupted) } }
        share.interruptLockWaits()
        context.withLock { $0 = nil }
    }

    public func queueWasReset(_ queue: Int) {
        let (waiting, _) = takeWaiting { $0.queue == queue }
        for wait in waiting.values { share.interruptLockWait(wait.unique) }
        state.withLock { $0.lanes[queue] = FileSystemState.Lane() }
    }

    private func takeWaiting(
        _ isMeant: (FileSystemState.Waiting) -> Bool
    ) -> ([UInt64: FileSystemState.Waiting], isStarted: Bool) {
        let taken = state.withLock { state in
            let taken = state.waiting.filter { isMeant($0.value) }
            for number in taken.keys { state.waiting[number] = nil }
            return taken
        }
        return (taken, context.withLock { $0 != nil })
    }

    public func reset() {
        share.reset()
        state.withLock { $0 = FileSystemState(queueCount: requestQueueCount + 1) }
    }

    // MARK: Work

    /// Takes what is there: executes it here, or leaves it to the runner's threads.
    public func notify(_ queue: Int) -> Bool {
        guard let context = context.withLock({ $0 }), context.queues.indices.contains(queue) else { return false }
        // Where nothing may happen outside of notifications, locks are tried in them.
        if runner is ImmediateRunner, share.hasLockWaits { share.retryLocks() }
        return context.queues[queue].drain { chain in
            if isShort(chain, context.memory) || !startWorker(chain, queue, context) { execute(chain, queue, context) }
        }
    }

    /// Whether nobody minds to wait behind a request. What it looks at is only a hint, and read again with the request.
    private func isShort(_ chain: DescriptorChain, _ memory: GuestMemory) -> Bool {
        guard chain.readable.count + chain.writable.count <= Self.shortLimit, let head = chain.readable.ranges.first,
            head.count >= 8, let opcode = try? memory.load(UInt32.self, at: head.base + UInt64(4))
        else { return false }
        return !FileShare.mayTakeLong(opcode: opcode)
    }

    /// Bytes of a short request with its reply.
    private static let shortLimit = 72 << 10

    /// Hands a request to the runner; false where it has enough to do.
    private func startWorker(_ chain: DescriptorChain, _ queue: Int, _ context: VirtioContext) -> Bool {
        guard parallelism > 1 else { return false }
        let isStarted = state.withLock { state in
            guard state.lanes[queue].workers < parallelism else { return false }
            state.lanes[queue].workers += 1
            return true
        }
        guard isStarted else { return false }
        guard context.gate.enter() else {
            state.withLock { $0.lanes[queue].workers -= 1 }
            return false
        }
        runner.run { [self] in
            execute(chain, queue, context)
            state.withLock { $0.lanes[queue].workers -= 1 }
            context.gate.leave()
        }
        return true
    }

    private func execute(_ chain: DescriptorChain, _ queue: Int, _ context: VirtioContext) {
        switch share.serve(ChainBuffers(chain: chain, memory: context.memory)) {
        case .done(let written): context.queues[queue].complete(chain, written: written)
        case .malformed(let reason):
            context.queues[queue].complete(chain, written: 0)
            context.fail("queue \(queue): \(reason)")
        case .waits(let wait):
            let number = state.withLock { state in
                state.nextWaiting += 1
                state.waiting[state.nextWaiting] = FileSystemState.Waiting(
                    queue: queue, chain: chain, unique: wait.unique)
                return state.nextWaiting
            }
            startLockThread()
            wait.whenDone { [weak self] error in self?.finish(number, error) }
        }
    }

    // MARK: Locks that are waited for

    private func finish(_ number: UInt64, _ error: Int32) {
        guard let context = context.withLock({ $0 }), context.gate.enter() else { return }
        if let waiting = state.withLock({ $0.waiting.removeValue(forKey: number) }) {
            reply(to: waiting, error: error)
        }
        context.gate.leave()
    }

    private func reply(to waiting: FileSystemState.Waiting, error: Int32) {
        guard let context = context.withLock({ $0 }) else { return }
        let bytes = FileShare.reply(to: waiting.unique, error: error)
        let written = (try? waiting.chain.writable.write(bytes, to: context.memory)) ?? 0
        context.queues[waiting.queue].complete(waiting.chain, written: written)
    }

    /// A process of the host does not tell when it unlocks: a thread looks as long as anybody waits.
    private func startLockThread() {
        guard !(runner is ImmediateRunner) else { return }
        let isNeeded = state.withLock { state in
            defer { state.hasLockThread = true }
            return !state.hasLockThread
        }
        guard isNeeded else { return }
        do throws(HostError) {
            _ = try HostThread(name: "file locks") { [weak self] in
                while let self, self.looksForLocks() { HostClock.sleep(nanoseconds: Self.lockInterval) }
            }
        } catch {
            state.withLock { $0.hasLockThread = false }
            context.withLock { $0 }?.log.note("\(error): locks of the host's processes are not waited for")
            share.interruptLockWaits()
        }
    }

    private func looksForLocks() -> Bool {
        share.retryLocks()
        return state.withLock { state in
            if state.waiting.isEmpty { state.hasLockThread = false }
            return state.hasLockThread
        }
    }
}

/// Linux's numbers of errors, which FUSE replies carry.
enum LinuxError {
    static let interrupted: Int32 = 4
}

/// What changes while a file system device runs.
struct FileSystemState: Sendable {
    /// One queue's requests at the runner.
    struct Lane: Sendable {
        var workers = 0
    }

    /// A request that waits for a lock.
    struct Waiting: Sendable {
        var queue: Int
        var chain: DescriptorChain
        var unique: UInt64
    }

    var lanes: [Lane]
    var waiting: [UInt64: Waiting] = [:]
    var nextWaiting: UInt64 = 0
    var hasLockThread = false

    init(queueCount: Int) { lanes = Array(repeating: Lane(), count: queueCount) }
}
