internal import Synchronization

/// Something that runs jobs, now or soon.
public protocol JobRunner: Sendable {
    func run(_ job: @escaping @Sendable () -> Void)
    /// Returns when every job that was accepted has run; later ones are dropped.
    func stop()
}

/// Runs each job in its caller, before `run` returns.
public struct ImmediateRunner: JobRunner {
    public init() {}
    public func run(_ job: @escaping @Sendable () -> Void) { job() }
    public func stop() {}
}

/// Threads that run jobs in the order in which they come; started when there is work for them.
public final class WorkerPool: JobRunner {
    private struct State: Sendable {
        var jobs: [@Sendable () -> Void] = []
        var next = 0
        var threads: [HostThread] = []
        var idle = 0
        var isStopped = false

        mutating func take() -> (@Sendable () -> Void)? {
            guard next < jobs.count else { return nil }
            defer {
                next += 1
                if next == jobs.count {
                    jobs.removeAll(keepingCapacity: true)
                    next = 0
                }
            }
            return jobs[next]
        }
    }

    /// What the threads share; they do not keep the pool.
    private final class Shared: Sendable {
        let state = Mutex(State())
        let bell: FutexWord

        init() { bell = FutexWord() }

        func work() {
            while true {
                let heard = bell.value
                let (job, isOver): ((@Sendable () -> Void)?, Bool) = state.withLock { state in
                    let job = state.take()
                    return (job, job == nil && state.isStopped)
                }
                if let job {
                    job()
                    continue
                }
                if isOver { return }
                state.withLock { $0.idle += 1 }
                bell.wait(while: heard)
                state.withLock { $0.idle -= 1 }
            }
        }
    }

    private let shared = Shared()
    private let name: String
    private let limit: Int

    public init(name: String, limit: Int) {
        precondition(limit > 0)
        self.name = name
        self.limit = limit
    }

    public func run(_ job: @escaping @Sendable () -> Void) {
        let shared = shared
        let runsHere = shared.state.withLock { state in
            guard !state.isStopped else { return false }
            state.jobs.append(job)
            guard state.idle < state.jobs.count - state.next, state.threads.count < limit else { return false }
            do throws(HostError) {
                state.threads.append(try HostThread(name: name) { shared.work() })
                return false
            } catch {
                // No thread to be had at all: the caller does the work.
                guard state.threads.isEmpty, state.jobs.popLast() != nil else { return false }
                return true
            }
        }
        if runsHere { job() } else { shared.bell.ring(1) }
    }

    public func stop() {
        let threads = shared.state.withLock { state in
            state.isStopped = true
            return state.threads
        }
        shared.bell.ring(.max)
        for thread in threads { thread.join() }
    }

    deinit {
        shared.state.withLock { $0.isStopped = true }
        shared.bell.ring(.max)
    }
}

/// A counter that threads sleep on.
public final class FutexWord: @unchecked Sendable {
    // SAFETY: the word is only ever used atomically, and lives as long as this object.
    private let word: UnsafeMutablePointer<Atomic<UInt32>>

    public init() {
        word = .allocate(capacity: 1)
        word.initialize(to: Atomic(0))
    }

    deinit {
        word.deinitialize(count: 1)
        word.deallocate()
    }

    private var address: UnsafeMutablePointer<UInt32> {
        // SAFETY: Atomic<UInt32> has the size, the alignment and the content of a UInt32.
        UnsafeMutableRawPointer(word).assumingMemoryBound(to: UInt32.self)
    }

    public var value: UInt32 { word.pointee.load(ordering: .sequentiallyConsistent) }

    /// Counts up and wakes so many sleepers.
    public func ring(_ count: Int32) {
        word.pointee.add(1, ordering: .sequentiallyConsistent)
        Futex.wake(address, count: count)
    }

    /// Sleeps until a ring that came after `value` was read; may return early.
    public func wait(while value: UInt32) { _ = Futex.wait(address, while: value, untilMonotonicNanoseconds: nil) }
}
