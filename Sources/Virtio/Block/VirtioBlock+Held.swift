internal import DeviceModel
internal import Host
internal import Synchronization

/// Requests that failed and are held, so that somebody can do something about the host's trouble (`on-error=stop`). The
/// driver does not notice: for it they take long.
extension VirtioBlock {
    func isHeld(_ error: BlockError) -> Bool {
        switch options.onError {
        case .report: false
        case .stop: true
        case .stopWhenFull: error.isOutOfSpace
        }
    }

    /// `body` is called, on any thread, with the reason whenever a request was held, for whoever stops the machine then:
    /// later or on another thread, since the device does not stop before `body` has returned.
    public func onHold(_ body: @escaping @Sendable (String) -> Void) {
        holdObserver.withLock { $0 = HoldObserver(body) }
    }

    func hold(_ chain: DescriptorChain, _ queue: Int, _ reason: String) {
        state.withLock { $0.held.append(BlockState.Held(queue: queue, chain: chain)) }
        holdObserver.withLock { $0 }?.note(reason)
    }

    public var heldRequestCount: Int { state.withLock { $0.held.count } }

    /// Executes again what is held. What fails again is held again. Does nothing while the device is stopped.
    public func retryHeldRequests() {
        guard let context = currentContext, context.gate.enter() else { return }
        defer { context.gate.leave() }
        let held = state.withLock { state in
            defer { state.held = [] }
            return state.held
        }
        for request in held {
            context.gate.enterAgain()
            runner.run { [self] in
                execute(request.chain, context.queues[request.queue], context)
                context.gate.leave()
            }
        }
    }

    /// The queues of a restored device know of what it holds before anything else is taken out of them.
    func adoptHeld(_ context: VirtioContext) {
        state.withLock { state in
            guard state.isHeldFromBefore else { return }
            state.isHeldFromBefore = false
            for queue in context.queues {
                let own = state.held.filter { $0.queue == queue.index }.map(\.chain)
                let adopted = queue.adopt(own)
                state.held.removeAll { $0.queue == queue.index }
                state.held += adopted.map { BlockState.Held(queue: queue.index, chain: $0) }
            }
        }
    }

    /// Answers that the driver cannot see, since one that is held comes before them (VIRTIO_F_IN_ORDER), are given up:
    /// those requests are executed again, too.
    func holdHiddenAnswers(_ context: VirtioContext) {
        state.withLock { state in
            guard !state.held.isEmpty else { return }
            for queue in context.queues {
                state.held += queue.takeBackHidden().map { BlockState.Held(queue: queue.index, chain: $0) }
            }
        }
    }
}

/// In a structure: a bare closure would be wrapped anew by each access through the generic lock.
struct HoldObserver: Sendable {
    let note: @Sendable (String) -> Void
    init(_ note: @escaping @Sendable (String) -> Void) { self.note = note }
}
