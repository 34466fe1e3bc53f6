internal import Host
internal import Synchronization
internal import X86

/// The eventfds whose signals are edges of GSIs (KVM_IRQFD), and the thread that waits for them.
final class IRQEvents: Sendable {
    private struct State: Sendable {
        /// By the number that the owner knows it by.
        var events: [Int32: (notifier: EventNotifier, gsi: UInt32)] = [:]
        var isStopped = false
    }

    private let state = Mutex(State())
    private let changed: EventNotifier
    private let thread = Mutex<HostThread?>(nil)
    private let core: MachineCore

    init(_ core: MachineCore) throws(HostError) {
        self.core = core
        changed = try EventNotifier()
    }

    /// False: it is assigned already, or was not.
    func set(_ descriptor: Int32, gsi: UInt32, isAssigned: Bool) throws(HostError) -> Bool {
        let notifier = isAssigned ? try EventNotifier(duplicating: descriptor) : nil
        let isDone = state.withLock { state in
            guard let notifier else {
                guard state.events[descriptor]?.gsi == gsi else { return false }
                state.events[descriptor] = nil
                return true
            }
            guard state.events[descriptor] == nil else { return false }
            state.events[descriptor] = (notifier, gsi)
            return true
        }
        changed.signal()
        if isDone, isAssigned {
            try thread.withLock { (thread) throws(HostError) in
                if thread == nil { thread = try HostThread(name: "guest irqfds") { [self] in run() } }
            }
        }
        return isDone
    }

    private func run() {
        while true {
            let current = state.withLock { $0 }
            if current.isStopped { return }
            var poll = DescriptorPoll()
            poll.set(changed.descriptor, .readable)
            for event in current.events.values { poll.set(event.notifier.descriptor, .readable) }
            guard let ready = try? poll.wait(timeoutNanoseconds: nil) else { return }
            for place in ready {
                if place.descriptor == changed.descriptor { _ = changed.consume() }
                for event in current.events.values
                where event.notifier.descriptor == place.descriptor && event.notifier.consume() > 0 {
                    core.withFabric { $0.pulse(event.gsi) }
                }
            }
        }
    }

    /// Ends the thread, which keeps this object.
    func stop() {
        state.withLock { $0 = State(isStopped: true) }
        changed.signal()
        thread.withLock { $0 }?.join()
    }
}
