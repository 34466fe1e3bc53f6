internal import Host
internal import Synchronization

/// Something that goes on beside a guest from now on, on a thread: a task might have to wait until the guest's time is
/// over, for the pool's few threads are busy with other tests.
final class Background<Value: Sendable>: Sendable {
    private final class Outcome: Sendable {
        let result = Mutex<Result<Value, any Error>?>(nil)
    }

    struct Unfinished: Error {}

    private let outcome = Outcome()
    private let thread: HostThread

    init(_ body: @escaping @Sendable () throws -> Value) throws {
        let outcome = outcome
        thread = try HostThread(name: "background") {
            let result = Result { try body() }
            outcome.result.withLock { $0 = result }
        }
    }

    /// Waits for it.
    func value() throws -> Value {
        thread.join()
        return try outcome.result.withLock { $0 }?.get() ?? { throw Unfinished() }()
    }
}
