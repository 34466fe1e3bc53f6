internal import Host
internal import Synchronization

/// Where the devices and the outside report that the machine ends. The first report counts.
final class MachineEvents: Sendable {
    private struct State {
        var outcome: MachineOutcome?
        var guestStatus: UInt8?
        var sawPanic = false
        var holdReason: String?
        var trace: ProcessorTrace?
        var profile: ProfiledRun?
        var isFinished = false
    }

    private let state = Mutex(State())
    /// What the vCPU thread looks at after each exit, without a lock.
    private let isEnding = Atomic(false)
    private let activity: EventNotifier

    init(activity: EventNotifier) {
        self.activity = activity
    }

    /// Whether the vCPU must not run again.
    var mustEnd: Bool { isEnding.load(ordering: .acquiring) }

    func end(with outcome: MachineOutcome) {
        state.withLock { state in
            // A guest that was executed wrongly ended for no reason that counts.
            if state.outcome == nil || outcome.isDifference { state.outcome = outcome }
        }
        isEnding.store(true, ordering: .releasing)
        activity.signal()
    }

    /// ACPI power-off: with the status that the guest left, if it left one.
    func powerOff() {
        let status = state.withLock { $0.guestStatus }
        end(with: status.map { .status($0) } ?? .poweredOff)
    }

    func setGuestStatus(_ status: UInt8) {
        state.withLock { $0.guestStatus = status }
    }

    /// The pvpanic device was written to; the kernel goes on to print and to restart or hang.
    func notePanic() {
        state.withLock { $0.sawPanic = true }
        activity.signal()
    }

    /// A device has met trouble and waits for it to be mended.
    func noteHold(_ reason: String) {
        state.withLock { $0.holdReason = reason }
        activity.signal()
    }

    /// The last of such troubles since the last call.
    func takeHoldReason() -> String? {
        state.withLock { state in
            defer { state.holdReason = nil }
            return state.holdReason
        }
    }

    var sawPanic: Bool { state.withLock { $0.sawPanic } }

    /// The vCPU thread's last act.
    func finish(trace: ProcessorTrace?, profile: ProfiledRun?) {
        state.withLock { state in
            state.trace = trace
            state.profile = profile
            state.isFinished = true
        }
        activity.signal()
    }

    /// What was sampled; nil while the vCPU thread runs, and without a profile.
    var profile: ProfiledRun? { state.withLock { $0.profile } }

    /// Set when the vCPU thread has ended.
    var result: (outcome: MachineOutcome, trace: ProcessorTrace?)? {
        state.withLock { state in
            guard state.isFinished, let outcome = state.outcome else { return nil }
            return (outcome, state.trace)
        }
    }
}
