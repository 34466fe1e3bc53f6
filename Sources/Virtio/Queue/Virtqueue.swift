public import GuestMemory
internal import Synchronization

/// One queue of a device, whichever layout its driver chose. The device takes buffers and gives them back; it may hold
/// several, and give them back in any order and from any thread. All that a driver can do wrong ends in `onFault`, and
/// then the queue is silent until the device is reset.
public final class Virtqueue: Sendable {
    enum Ring: Equatable, Sendable {
        case split(SplitRing)
        case packed(PackedRing)
    }

    struct State: Sendable {
        var ring: Ring?
        /// Buffers may be taken; giving back is always possible.
        var isRunning = false
        /// Counts how often the queue was enabled: a buffer of before is no longer the device's.
        var epoch: UInt64 = 0
        var sequence: UInt64 = 0
        /// VIRTIO_F_IN_ORDER (Virtio 1.2 §6): what was used before its turn, by sequence.
        var isInOrder = false
        var nextInOrder: UInt64 = 0
        var early: [UInt64: UsedBuffer] = [:]
        var outstanding = 0
    }

    public let index: Int
    /// What the addresses in its buffers mean.
    public let memory: GuestMemory
    private let onInterrupt: @Sendable () -> Void
    private let onFault: @Sendable (QueueFault) -> Void
    private let state = Mutex(State())

    init(
        index: Int, memory: GuestMemory, onInterrupt: @escaping @Sendable () -> Void,
        onFault: @escaping @Sendable (QueueFault) -> Void
    ) {
        self.index = index
        self.memory = memory
        self.onInterrupt = onInterrupt
        self.onFault = onFault
    }

    // MARK: For the device

    /// The next buffer; nil when there is none, or the queue does not run. Every buffer is given back with `complete`,
    /// or with `putBack`.
    public func next() -> DescriptorChain? {
        attempt { state throws(QueueFault) in
            guard state.isRunning, let ring = state.ring else { return nil }
            let chain: DescriptorChain?
            switch ring {
            case .split(var split):
                chain = try split.take(memory, sequence: state.sequence, epoch: state.epoch)
                state.ring = .split(split)
            case .packed(var packed):
                chain = try packed.take(memory, sequence: state.sequence, epoch: state.epoch)
                state.ring = .packed(packed)
            }
            guard let chain else { return nil }
            state.sequence &+= 1
            state.outstanding += 1
            return chain
        } ?? nil
    }

    /// Gives a buffer back with `written` bytes in its writable part, and interrupts the driver if it wants that.
    public func complete(_ chain: DescriptorChain, written: Int) {
        complete([UsedBuffer(chain, written: written)], interrupts: true)
    }

    /// Gives several buffers back, which the driver sees all at once. Without `interrupts` it hears of them with the next
    /// ones, or through `interruptIfWanted`.
    public func complete(_ buffers: [UsedBuffer], interrupts: Bool) {
        let mustInterrupt = attempt { state throws(QueueFault) in
            let own = buffers.filter { $0.chain.epoch == state.epoch }
            guard let first = own.first, state.ring != nil else { return false }
            guard state.outstanding >= own.count else { throw .notOutstanding(first.chain.identifier) }
            if state.isInOrder {
                for buffer in own { state.early[buffer.chain.sequence] = buffer }
                var next: [UsedBuffer] = []
                while let buffer = state.early.removeValue(forKey: state.nextInOrder) {
                    next.append(buffer)
                    state.nextInOrder &+= 1
                }
                try use(next, &state)
            } else {
                try use(own, &state)
            }
            return interrupts ? try takeInterrupt(&state) : false
        }
        if mustInterrupt == true { onInterrupt() }
    }

    /// Interrupts the driver if it wants to hear of what it was given since the last time.
    public func interruptIfWanted() {
        let mustInterrupt = attempt { state throws(QueueFault) in try takeInterrupt(&state) }
        if mustInterrupt == true { onInterrupt() }
    }

    /// Puts back the buffer that was taken last, untouched: it will be the next one again.
    public func putBack(_ chain: DescriptorChain) {
        state.withLock { state in
            guard chain.epoch == state.epoch, chain.sequence &+ 1 == state.sequence else { return }
            switch state.ring {
            case .split(var split):
                split.putBack()
                state.ring = .split(split)
            case .packed(var packed):
                packed.putBack(chain)
                state.ring = .packed(packed)
            case nil: return
            }
            state.sequence &-= 1
            state.outstanding -= 1
        }
    }

    /// Takes and handles what is there, at most as many buffers as the ring has, so that no driver can keep its caller
    /// for ever. True: there is more. Otherwise the driver notifies when there is.
    public func drain(_ body: (DescriptorChain) -> Void) -> Bool {
        for _ in 0..<max(size, 1) {
            guard let chain = next() else { return requestNotification() }
            body(chain)
        }
        return requestNotification()
    }

    /// Asks the driver to notify at its next buffer. True: there is one already.
    public func requestNotification() -> Bool {
        attempt { state throws(QueueFault) in
            guard state.isRunning, let ring = state.ring else { return false }
            switch ring {
            case .split(var split):
                defer { state.ring = .split(split) }
                return try split.requestNotification(memory)
            case .packed(var packed):
                defer { state.ring = .packed(packed) }
                return try packed.requestNotification(memory)
            }
        } ?? false
    }

    /// Entries; 0 while the queue is not enabled.
    public var size: Int {
        state.withLock { state in
            switch state.ring {
            case .split(let ring): Int(ring.size)
            case .packed(let ring): Int(ring.size)
            case nil: 0
            }
        }
    }

    public var isEnabled: Bool { state.withLock { $0.ring != nil } }

    // MARK: For a device that is saved with buffers in its hands

    /// Takes back what was given back and cannot be seen by the driver, since a buffer before it was not
    /// (VIRTIO_F_IN_ORDER): it is the device's again.
    func takeBackHidden() -> [DescriptorChain] {
        state.withLock { state in
            defer { state.early = [:] }
            return state.early.values.map(\.chain)
        }
    }

    /// After a restore, before anything is taken: these had been taken when the queue was saved. Returns them as this
    /// queue's.
    func adopt(_ chains: [DescriptorChain]) -> [DescriptorChain] {
        state.withLock { state in
            chains.sorted { $0.sequence < $1.sequence }.map { chain in
                defer {
                    state.sequence &+= 1
                    state.outstanding += 1
                }
                return chain.moved(to: state.sequence, epoch: state.epoch)
            }
        }
    }

    // MARK: For a device whose queue the kernel works on

    /// Where the kernel finds the ring; nil: it is no split one, or the device has buffers of it.
    func splitRing() -> SplitRing? {
        state.withLock { state in
            guard state.isRunning, state.outstanding == 0, !state.isInOrder, case .split(let ring) = state.ring else {
                return nil
            }
            return ring
        }
    }

    /// The kernel has stopped before this entry of the available ring, and works on it no more.
    func resume(at available: UInt16) {
        _ = attempt { state throws(QueueFault) in
            guard case .split(var split) = state.ring else { return }
            try split.resume(at: available, memory)
            state.ring = .split(split)
        }
    }

    /// Interrupts the driver, for somebody who has looked at its wish.
    func interrupt() { onInterrupt() }

    // MARK: For the transport

    func start(_ ring: Ring, isInOrder: Bool) {
        state.withLock { state in
            let epoch = state.epoch &+ 1
            state = State()
            state.ring = ring
            state.epoch = epoch
            state.isInOrder = isInOrder
            state.isRunning = true
        }
    }

    func stop() {
        state.withLock { state in
            let epoch = state.epoch &+ 1
            state = State()
            state.epoch = epoch
        }
    }

    /// No buffers are taken any more, until a reset.
    func silence() { state.withLock { $0.isRunning = false } }

    var ring: Ring? { state.withLock { $0.ring } }
    var outstanding: Int { state.withLock { $0.outstanding } }

    // MARK: Under the lock

    private func use(_ buffers: [UsedBuffer], _ state: inout State) throws(QueueFault) {
        state.outstanding -= buffers.count
        switch state.ring {
        case .split(var split):
            defer { state.ring = .split(split) }
            try split.use(buffers, memory)
        case .packed(var packed):
            defer { state.ring = .packed(packed) }
            try packed.use(buffers, memory)
        case nil: break
        }
    }

    private func takeInterrupt(_ state: inout State) throws(QueueFault) -> Bool {
        switch state.ring {
        case .split(var split):
            defer { state.ring = .split(split) }
            return try split.takeInterrupt(memory)
        case .packed(var packed):
            defer { state.ring = .packed(packed) }
            return try packed.takeInterrupt(memory)
        case nil: return false
        }
    }

    /// nil after a fault, which is reported without the lock.
    private func attempt<Result: Sendable>(_ body: (inout State) throws(QueueFault) -> Result) -> Result? {
        let outcome: Swift.Result<Result, QueueFault> = state.withLock { state in
            do throws(QueueFault) {
                return .success(try body(&state))
            } catch {
                state.isRunning = false
                return .failure(error)
            }
        }
        switch outcome {
        case .success(let result): return result
        case .failure(let fault):
            onFault(fault)
            return nil
        }
    }
}
