import Glibc
import Host
import Synchronization

@testable import Net

/// vhost-net by linux/vhost.h and Virtio 1.2 §2.7, on a thread of its own: frames between rings in guest memory and a
/// tap, be it a socket whose messages are header and frame. Refuses calls that come before those they build on, and knows
/// nothing of the code under test: memory and rings are where the calls say.
final class VhostModel: VhostNetDevice {
    struct Ring {
        var size: UInt16 = 0
        var addresses: VhostRingAddresses?
        var nextAvailable: UInt16 = 0
        var nextUsed: UInt16 = 0
        var signalled: UInt16?
        var events: [VhostEvent: EventNotifier] = [:]
        var tap: Int32?
        /// Not before the next kick.
        var isWaiting = false
        /// Not before the tap takes frames again.
        var isFull = false

        var isComplete: Bool { size > 0 && addresses != nil && events.count == 3 }
    }

    struct State {
        var hasOwner = false
        var features: UInt64?
        var regions: [VhostMemoryRegion] = []
        var rings = [Ring(), Ring()]
        var isEnding = false
    }

    /// What all models of a test have in common, and what it may make them do.
    final class Maker: Sendable {
        struct Record {
            var opened = 0
            var alive = 0
            var calls = 0
            /// Which call from now on fails; 0 is the next one.
            var failure: Int?
            var violations: [String] = []
            var offered: UInt64 = VhostModel.allFeatures
        }

        let record = Mutex(Record())
        private let latest = Mutex(Latest())

        private struct Latest {
            weak var model: VhostModel?
        }

        /// The model that has both rings.
        var active: VhostModel? {
            guard let model = latest.withLock({ $0.model }) else { return nil }
            return model.state.withLock { $0.rings.allSatisfy { $0.tap != nil } } ? model : nil
        }

        /// Once their threads have let go of them.
        var alive: Int {
            _ = eventually { record.withLock { $0.alive } == (active == nil ? 0 : 1) ? true : nil }
            return record.withLock { $0.alive }
        }

        func open() throws(HostError) -> any VhostNetDevice {
            try call("open")
            let model = try VhostModel(self)
            record.withLock { $0.opened += 1 }
            latest.withLock { $0.model = model }
            return model
        }

        func call(_ name: String) throws(HostError) {
            let fails = record.withLock { record in
                record.calls += 1
                guard let failure = record.failure else { return false }
                record.failure = failure == 0 ? nil : failure - 1
                return failure == 0
            }
            if fails { throw HostError(name, errorNumber: EIO) }
        }

        func require(_ condition: Bool, _ violation: String) throws(HostError) {
            guard !condition else { return }
            record.withLock { $0.violations.append(violation) }
            throw HostError(violation, errorNumber: EINVAL)
        }
    }

    static let allFeatures: UInt64 = 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32
    let state = Mutex(State())
    private let maker: Maker
    private let changed: EventNotifier
    private let thread = Mutex<HostThread?>(nil)

    init(_ maker: Maker) throws(HostError) {
        self.maker = maker
        changed = try EventNotifier()
        maker.record.withLock { $0.alive += 1 }
        let (changed, box) = (changed, WeakModel())
        box.model.withLock { $0.model = self }
        let started = try HostThread(name: "vhost model") { Self.run(box, changed) }
        thread.withLock { $0 = started }
    }

    deinit {
        maker.record.withLock { $0.alive -= 1 }
        changed.signal()
    }

    private final class WeakModel: Sendable {
        struct Reference { weak var model: VhostModel? }
        let model = Mutex(Reference())
    }

    // MARK: Calls

    private func change(
        _ name: String, _ body: (inout State) throws(HostError) -> Void
    ) throws(HostError) {
        try maker.call(name)
        let outcome: Result<Void, HostError> = state.withLock { state in
            do throws(HostError) {
                try maker.require(state.hasOwner || name == "owner", "\(name) before the owner")
                return .success(try body(&state))
            } catch {
                return .failure(error)
            }
        }
        changed.signal()
        try outcome.get()
    }

    func setOwner() throws(HostError) {
        try change("owner") { state throws(HostError) in
            try maker.require(!state.hasOwner, "a second owner")
            state.hasOwner = true
        }
    }

    func features() throws(HostError) -> UInt64 {
        try maker.call("features")
        return maker.record.withLock { $0.offered }
    }

    func setFeatures(_ features: UInt64) throws(HostError) {
        let offered = maker.record.withLock { $0.offered }
        try change("set features") { state throws(HostError) in
            try maker.require(features & ~offered == 0, "features that are not offered")
            try maker.require(features & 1 << 32 != 0, "no VERSION_1")
            try maker.require(state.rings.allSatisfy { $0.addresses == nil }, "features behind rings")
            state.features = features
        }
    }

    func setMemory(_ regions: [VhostMemoryRegion]) throws(HostError) {
        try change("memory") { state throws(HostError) in
            try maker.require(!regions.isEmpty && regions.allSatisfy { $0.size > 0 }, "an empty table")
            try maker.require(state.rings.allSatisfy { $0.addresses == nil }, "memory behind rings")
            state.regions = regions
        }
    }

    private func changeRing(
        _ name: String, _ index: Int, _ body: (inout Ring) throws(HostError) -> Void
    ) throws(HostError) {
        try change(name) { state throws(HostError) in
            try maker.require(state.features != nil && !state.regions.isEmpty, "\(name) before features and memory")
            try maker.require(state.rings[index].tap == nil, "\(name) of a running ring")
            try body(&state.rings[index])
        }
    }

    func setSize(_ size: UInt16, ofRing ring: Int) throws(HostError) {
        try changeRing("size", ring) { ring throws(HostError) in
            try maker.require(size.nonzeroBitCount == 1, "a size that is no power of two")
            ring.size = size
        }
    }

    func setBase(_ base: UInt16, ofRing ring: Int) throws(HostError) {
        try changeRing("base", ring) { ring throws(HostError) in ring.nextAvailable = base }
    }

    func setAddresses(_ addresses: VhostRingAddresses, ofRing ring: Int) throws(HostError) {
        try changeRing("addresses", ring) { ring throws(HostError) in
            try maker.require(ring.size > 0, "addresses before the size")
            try maker.require(addresses.available % 2 == 0 && addresses.used % 4 == 0, "unaligned addresses")
            ring.addresses = addresses
        }
    }

    func setEvent(_ event: VhostEvent, _ notifier: EventNotifier, ofRing ring: Int) throws(HostError) {
        try changeRing("event", ring) { ring throws(HostError) in ring.events[event] = notifier }
    }

    func setBackend(_ tap: BorrowedDescriptor?, ofRing ring: Int) throws(HostError) {
        try change("backend") { state throws(HostError) in
            guard let tap else {
                state.rings[ring].tap = nil
                return
            }
            try maker.require(
                state.rings[0].isComplete && state.rings[1].isComplete, "a back end before the rings are complete")
            state.rings[ring].tap = tap.rawValue
            var part = state.part(ring)
            part.start()
            state.rings[ring] = part.ring
        }
    }

    func base(ofRing ring: Int) throws(HostError) -> UInt16 {
        var base: UInt16 = 0
        try changeRing("get base", ring) { ring throws(HostError) in base = ring.nextAvailable }
        return base
    }

    // MARK: The thread

    private static func run(_ box: WeakModel, _ changed: EventNotifier) {
        while true {
            guard let model = box.model.withLock({ $0.model }) else { return }
            var poll = DescriptorPoll()
            poll.set(changed.descriptor, .readable)
            let rings = model.state.withLock { $0.rings }
            var interest: Interest = []
            for ring in rings where ring.tap != nil { poll.set(ring.kick.descriptor, .readable) }
            if rings[0].tap != nil, !rings[0].isWaiting { interest.insert(.readable) }
            if rings[1].tap != nil, rings[1].isFull { interest.insert(.writable) }
            if let tap = rings[0].tap, !interest.isEmpty { poll.set(BorrowedDescriptor(tap), interest) }
            model.wait(poll, rings)
        }
    }

    private func wait(_ poll: consuming DescriptorPoll, _ rings: [Ring]) {
        // Not for ever: somebody may have let go of this model while it is held here.
        _ = try? poll.wait(timeoutNanoseconds: 20_000_000)
        _ = changed.consume()
        state.withLock { state in
            for index in 0..<2 where state.rings[index].tap != nil {
                if state.rings[index].kick.consume() > 0 { state.rings[index].isWaiting = false }
                var part = state.part(index)
                if index == 0 { part.receive() } else { part.transmit() }
                state.rings[index] = part.ring
            }
        }
    }
}

extension VhostModel.Ring {
    var kick: EventNotifier { events[.kick]! }
}

extension VhostModel.State {
    func part(_ index: Int) -> VhostModelRing {
        VhostModelRing(ring: rings[index], features: features ?? 0, regions: regions)
    }
}
