internal import Host

/// The thread that makes timers expire while vCPUs run guest code; it ends with its last owner.
final class TimerThread: Sendable {
    private let core: MachineCore
    private let thread: HostThread

    init(_ core: MachineCore) throws(HostError) {
        self.core = core
        // The thread keeps the core, not this object, whose end stops it.
        thread = try HostThread(name: "guest timers") { core.runTimers() }
    }

    deinit {
        core.alarm.stop()
        thread.join()
    }
}
