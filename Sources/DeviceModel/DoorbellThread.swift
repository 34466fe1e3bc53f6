public import Host
internal import Synchronization

extension EventNotifier: DoorbellNotifier {
    public var eventDescriptor: Int32 { descriptor.rawValue }
}

/// The thread that answers the doorbells of a machine: each is an eventfd that the engine signals when the guest writes
/// to a device's register.
public final class DoorbellThread: Sendable {
    private struct Listeners: Sendable {
        var handlers: [BorrowedDescriptor: (notifier: EventNotifier, handler: @Sendable () -> Void)] = [:]
        var isStopped = false
    }

    private let listeners = Mutex(Listeners())
    private let changed: EventNotifier
    private let thread = Mutex<HostThread?>(nil)

    public init() throws(HostError) { changed = try EventNotifier() }

    /// From now on `handler` is called, on this thread, after `notifier` was signalled. It must not wait for the guest.
    public func listen(to notifier: EventNotifier, _ handler: @escaping @Sendable () -> Void) throws(HostError) {
        let isStopped = listeners.withLock { listeners in
            if !listeners.isStopped { listeners.handlers[notifier.descriptor] = (notifier, handler) }
            return listeners.isStopped
        }
        if isStopped { return }
        changed.signal()
        // A machine without doorbells has no thread.
        try thread.withLock { (thread) throws(HostError) in
            if thread == nil { thread = try HostThread(name: "doorbells") { [self] in run() } }
        }
    }

    /// The handler may still be called once, for a signal that came before this returned.
    public func stopListening(to notifier: EventNotifier) {
        listeners.withLock { _ = $0.handlers.removeValue(forKey: notifier.descriptor) }
        changed.signal()
    }

    private func run() {
        while true {
            let (handlers, isStopped) = listeners.withLock { ($0.handlers, $0.isStopped) }
            if isStopped { return }
            var poll = DescriptorPoll()
            poll.set(changed.descriptor, .readable)
            for descriptor in handlers.keys { poll.set(descriptor, .readable) }
            guard let ready = try? poll.wait(timeoutNanoseconds: nil) else { return }
            for event in ready where event.descriptor == changed.descriptor { _ = changed.consume() }
            for event in ready {
                guard let (notifier, handler) = handlers[event.descriptor], notifier.consume() > 0 else { continue }
                handler()
            }
        }
    }

    /// Ends the thread; no handler is called afterwards.
    public func stop() {
        listeners.withLock {
            $0.isStopped = true
            $0.handlers = [:]
        }
        changed.signal()
        thread.withLock { $0 }?.join()
    }
}
