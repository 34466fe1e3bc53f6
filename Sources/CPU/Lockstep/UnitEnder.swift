internal import CHost
internal import Glibc
internal import Synchronization

/// A thread that ends the primary's long units: translated code looks at attention where it goes backwards or to a place
/// that it computed, and at nothing else.
final class UnitEnder {
    private final class Shared: Sendable {
        // SAFETY: of the state only the attention word is used, atomically; `UnitEnder` outlives its thread.
        nonisolated(unsafe) let state: State
        let isInUnit = Atomic(false)
        let isStopped = Atomic(false)

        init(_ state: State) { self.state = state }
    }

    private static let nanoseconds = 100_000
    private let shared: Shared
    private var thread = pthread_t()
    /// Where the host has no thread to spare, all units are short.
    let isRunning: Bool

    init(_ state: State) {
        shared = Shared(state)
        let argument = Unmanaged.passRetained(shared)
        let result = pthread_create(
            &thread, nil,
            { raw in
                guard let raw else { return nil }
                let shared = Unmanaged<Shared>.fromOpaque(raw).takeRetainedValue()
                while !shared.isStopped.load(ordering: .relaxed) {
                    var time = timespec(tv_sec: 0, tv_nsec: UnitEnder.nanoseconds)
                    nanosleep(&time, nil)
                    if shared.isInUnit.load(ordering: .relaxed) { martlet_end_unit(shared.state) }
                }
                return nil
            }, argument.toOpaque())
        isRunning = result == 0
        if !isRunning { argument.release() }
    }

    deinit {
        shared.isStopped.store(true, ordering: .relaxed)
        if isRunning { pthread_join(thread, nil) }
    }

    func begin() { shared.isInUnit.store(true, ordering: .relaxed) }
    func end() { shared.isInUnit.store(false, ordering: .relaxed) }
}
