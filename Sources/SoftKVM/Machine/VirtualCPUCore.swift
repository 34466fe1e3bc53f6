internal import CHost
internal import CPU
internal import Host
internal import Synchronization

/// The part of a vCPU that other threads touch: how to get its attention, and how to keep it out of guest code.
///
/// Order of locks: the machine's slot lock, a vCPU's `execution`, the machine's fabric lock, the clock's lock.
final class VirtualCPUCore: @unchecked Sendable {
    // SAFETY: `processor` is used only under `execution`; of its state other threads write only the attention word,
    // atomically. The rest is atomics.
    let id: Int
    let processor: Processor
    let state: UnsafeMutablePointer<martlet_cpu>

    /// Held while the processor runs or is changed.
    let execution = Mutex<Void>(())
    /// Other threads that want `execution`: the vCPU must not take it again before they had it.
    private let visitors = Atomic<Int>(0)
    private let isSleeping = Atomic<Bool>(false)
    private let exitRequested = Atomic<Bool>(false)
    /// The guest's copy of the clock has to be written again.
    let clockIsStale = Atomic<Bool>(false)
    /// Guest pages that the engine itself wrote since the last dirty log; under `execution`.
    var engineWrites: Set<UInt64> = []

    init(id: Int, execution: Execution) {
        self.id = id
        processor = Processor(apicID: id)
        processor.execution = execution
        state = processor.state
    }

    /// Makes the vCPU leave guest code or its sleep and look around. Signal-safe.
    func raiseAttention() {
        martlet_request_attention(state)
        // Both this load and the sleeper's store are sequentially consistent: one of the two sees the other.
        if isSleeping.load(ordering: .sequentiallyConsistent) { Futex.wake(martlet_attention_word(state)) }
    }

    func requestExit() {
        exitRequested.store(true, ordering: .sequentiallyConsistent)
        raiseAttention()
    }

    var hasExitRequest: Bool { exitRequested.load(ordering: .sequentiallyConsistent) }

    /// True once for each request.
    func takeExitRequest() -> Bool { exitRequested.exchange(false, ordering: .sequentiallyConsistent) }

    var hasVisitors: Bool { visitors.load(ordering: .sequentiallyConsistent) != 0 }

    /// Sleeps until there is attention, or the time.
    func sleep(untilMonotonicNanoseconds deadline: UInt64?) {
        isSleeping.store(true, ordering: .sequentiallyConsistent)
        if martlet_attention(state) == 0 {
            _ = Futex.wait(martlet_attention_word(state), while: 0, untilMonotonicNanoseconds: deadline)
        }
        isSleeping.store(false, ordering: .sequentiallyConsistent)
    }

    /// Lets other threads have the processor; called by the vCPU's thread outside of `execution`.
    func yieldToVisitors() {
        while hasVisitors { HostClock.sleep(nanoseconds: 10_000) }
    }

    /// Runs `body` while the vCPU is out of guest code; from any thread but out of `execution`.
    func withStoppedProcessor<Result: Sendable>(_ body: (Processor) -> Result) -> Result {
        // Counted before attention is raised: whoever clears the attention looks at the count afterwards.
        visitors.add(1, ordering: .sequentiallyConsistent)
        raiseAttention()
        let result = execution.withLock { _ in body(processor) }
        visitors.subtract(1, ordering: .sequentiallyConsistent)
        return result
    }
}
