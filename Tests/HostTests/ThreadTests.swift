import Glibc
import Host
import Synchronization
import Testing

/// Carries a result from one thread to another.
final class ResultBox<T: Sendable>: Sendable {
    private let result = Mutex<Result<T, any Error>?>(nil)

    func store(_ new: Result<T, any Error>) { result.withLock { $0 = new } }
    func load() -> Result<T, any Error>? { result.withLock { $0 } }
}

@Suite struct ThreadTests {
    @Test func runsWithItsNameAndNumber() throws {
        let box = ResultBox<(String, ThreadID)>()
        let thread = try HostThread(name: "a name too long for the kernel") {
            box.store(
                Result {
                    let comm = try FileDescriptor.open("/proc/thread-self/comm").read(upTo: 100)
                    return (String(decoding: comm.dropLast(), as: UTF8.self), .current)
                })
        }
        thread.join()
        thread.join()
        let (name, id) = try #require(box.load()).get()
        #expect(name == "a name too long")
        #expect(id == thread.id)
        #expect(id != .current)
    }

    @Test func takesOnlyTheKickAndItsOwnFaults() throws {
        let blocked = try onThread {
            var set = sigset_t()
            pthread_sigmask(SIG_BLOCK, nil, &set)
            return [SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGSEGV, SIGABRT, kickSignal].filter {
                sigismember(&set, $0) == 1
            }
        }
        #expect(blocked == [SIGINT, SIGTERM, SIGHUP, SIGALRM])
    }

    /// SIGRTMIN, as glibc counts: a macro that Swift cannot see.
    private let kickSignal: Int32 = 34

    @Test func kickEndsAWait() throws {
        let thread = try HostThread(name: "sleeper") { _ = try? DescriptorPoll().wait(timeoutNanoseconds: nil) }
        // The kick may come before the wait: repeat it until the thread is gone.
        let timer = try ThreadTimer(kicking: thread.id)
        timer.arm(everyNanoseconds: 5_000_000)
        thread.join()
        thread.kick()  // harmless afterwards
    }

    @Test func timerComesInTime() throws {
        let limit: UInt64 = 5_000_000_000
        let elapsed = try onThread {
            let timer = try ThreadTimer(kicking: .current)
            var elapsed = limit
            // On a busy host a kick can come before the wait, which then lasts until its limit.
            for _ in 0..<5 where elapsed >= limit {
                let start = HostClock.monotonicNanoseconds
                timer.arm(afterNanoseconds: 30_000_000)
                _ = try DescriptorPoll().wait(timeoutNanoseconds: limit)
                elapsed = HostClock.monotonicNanoseconds - start
            }
            return elapsed
        }
        #expect((30_000_000..<limit).contains(elapsed))
    }

    @Test func disarmedTimerDoesNotKick() throws {
        let isInterrupted = try onThread {
            let timer = try ThreadTimer(kicking: .current)
            timer.arm(afterNanoseconds: 20_000_000)
            timer.disarm()
            let start = HostClock.monotonicNanoseconds
            _ = try DescriptorPoll().wait(timeoutNanoseconds: 60_000_000)
            return HostClock.monotonicNanoseconds - start < 60_000_000
        }
        #expect(!isInterrupted)
    }
}

@Suite struct FutexTests {
    @Test func otherValueReturnsAtOnce() {
        var word: UInt32 = 1
        #expect(Futex.wait(&word, while: 2, untilMonotonicNanoseconds: nil) == .valueChanged)
    }

    @Test func timesOut() {
        var word: UInt32 = 1
        let until = HostClock.monotonicNanoseconds + 20_000_000
        var wake = Futex.wait(&word, while: 1, untilMonotonicNanoseconds: until)
        while wake == .interrupted { wake = Futex.wait(&word, while: 1, untilMonotonicNanoseconds: until) }
        #expect(wake == .timedOut)
        #expect(HostClock.monotonicNanoseconds >= until)
        #expect(Futex.wait(&word, while: 1, untilMonotonicNanoseconds: 0) == .timedOut)
    }

    @Test func wakes() throws {
        let word = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
        defer { word.deallocate() }
        word.initialize(to: 0)
        nonisolated(unsafe) let shared = word
        let box = ResultBox<Futex.Wake>()
        let thread = try HostThread(name: "sleeper") {
            box.store(
                .success(
                    Futex.wait(
                        shared, while: 0, untilMonotonicNanoseconds: HostClock.monotonicNanoseconds + 20_000_000_000)))
        }
        // Until it sleeps there is nobody to wake.
        while box.load() == nil {
            Futex.wake(word)
            HostClock.sleep(nanoseconds: 1_000_000)
        }
        thread.join()
        #expect(try #require(box.load()).get() == .woken)
    }
}
