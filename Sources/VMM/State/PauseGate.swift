internal import Host
internal import Hypervisor
internal import Synchronization

/// Where a vCPU's thread waits while its machine stands still, and does meanwhile what is asked of its vCPU: KVM wants
/// that from the thread that created it (KVM API §2).
final class PauseGate: @unchecked Sendable {
    // SAFETY: everything below `monitor` is used only under it; `isWanted` is atomic.
    typealias Request = @Sendable (any VirtualCPU) -> Void

    private let monitor = Monitor()
    private var isParked = false
    private var isOver = false
    private var request: Request?
    private let isWanted = Atomic(false)

    /// The vCPU's thread has to come here at its next chance.
    var isPauseWanted: Bool { isWanted.load(ordering: .acquiring) }

    /// The thread is to wait here; it must be kicked out of the guest after this call.
    func close() { isWanted.store(true, ordering: .releasing) }

    /// Returns when the thread waits here: true. False: it has ended.
    func waitUntilParked() -> Bool {
        monitor.lock()
        defer { monitor.unlock() }
        while !isParked, !isOver { monitor.wait() }
        return !isOver
    }

    /// Runs `body` on the thread that waits here; nil when it has ended.
    func perform<Result: Sendable>(_ body: @escaping @Sendable (any VirtualCPU) -> Result) -> Result? {
        monitor.lock()
        defer { monitor.unlock() }
        guard isParked, !isOver else { return nil }
        let answer = Answer<Result>()
        request = { cpu in
            let result = body(cpu)
            answer.value.withLock { $0 = result }
        }
        monitor.wakeAll()
        while request != nil, !isOver { monitor.wait() }
        return answer.value.withLock { $0 }
    }

    private final class Answer<Value: Sendable>: Sendable {
        let value = Mutex<Value?>(nil)
    }

    /// The thread may go on.
    func open() {
        monitor.lock()
        defer { monitor.unlock() }
        isWanted.store(false, ordering: .releasing)
        monitor.wakeAll()
    }

    /// The vCPU's thread: waits while the gate is closed.
    func park(_ cpu: any VirtualCPU) {
        monitor.lock()
        defer { monitor.unlock() }
        isParked = true
        monitor.wakeAll()
        while isPauseWanted {
            if let request {
                request(cpu)
                self.request = nil
                monitor.wakeAll()
            } else {
                monitor.wait()
            }
        }
        isParked = false
    }

    /// The thread's last act: nobody waits for it any more.
    func end() {
        monitor.lock()
        defer { monitor.unlock() }
        isOver = true
        monitor.wakeAll()
    }
}
