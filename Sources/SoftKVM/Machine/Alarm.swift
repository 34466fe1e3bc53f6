internal import Host
internal import Synchronization

/// What the timer thread sleeps on: a count of rings, in a word that is also a futex.
final class Alarm: @unchecked Sendable {
    // SAFETY: the word is only ever used atomically, and lives as long as its owner.
    private let rings: UnsafeMutablePointer<Atomic<UInt32>>
    private let isStopped = Atomic<Bool>(false)

    private var word: UnsafeMutablePointer<UInt32> {
        // SAFETY: Atomic<UInt32> has the size, the alignment and the content of a UInt32.
        UnsafeMutableRawPointer(rings).assumingMemoryBound(to: UInt32.self)
    }

    init() {
        rings = UnsafeMutablePointer<Atomic<UInt32>>.allocate(capacity: 1)
        rings.initialize(to: Atomic(0))
    }

    deinit {
        rings.deinitialize(count: 1)
        rings.deallocate()
    }

    /// Ends the current or next `sleep`.
    func ring() {
        rings.pointee.add(1, ordering: .sequentiallyConsistent)
        Futex.wake(word)
    }

    /// `nextBell` gives nil from now on.
    func stop() {
        isStopped.store(true, ordering: .sequentiallyConsistent)
        ring()
    }

    /// To be read before the work that a sleep waits for more of.
    func nextBell() -> UInt32? {
        isStopped.load(ordering: .sequentiallyConsistent) ? nil : rings.pointee.load(ordering: .sequentiallyConsistent)
    }

    /// Sleeps until a ring that came after `bell` was read, or the time (`UInt64.max`: never).
    func sleep(since bell: UInt32, untilMonotonicNanoseconds deadline: UInt64) {
        _ = Futex.wait(word, while: bell, untilMonotonicNanoseconds: deadline == .max ? nil : deadline)
    }
}
