public import DeviceModel
public import GuestMemory
internal import Host
internal import Synchronization

/// What a device is to its driver (Virtio 1.2 §5).
public struct VirtioKind: Equatable, Sendable {
    public var name: String
    /// §5: 2 for a block device.
    public var identifier: UInt16
    /// What PCI calls such a device: base class, subclass, programming interface.
    public var pciClass: UInt32

    public init(name: String, identifier: UInt16, pciClass: UInt32) {
        self.name = name
        self.identifier = identifier
        self.pciClass = pciClass
    }
}

/// Feature bits that belong to no device type (§6).
public enum VirtioFeature {
    /// Of the legacy interface: requests need not be cut as the first drivers cut them.
    static let anyLayout: UInt64 = 1 << 27
    public static let indirectDescriptors: UInt64 = 1 << 28
    public static let eventIndex: UInt64 = 1 << 29
    public static let version1: UInt64 = 1 << 32
    public static let packedRing: UInt64 = 1 << 34
    public static let inOrder: UInt64 = 1 << 35
    public static let ringReset: UInt64 = 1 << 40
    /// What the queues and the transport of this module implement.
    public static let offered = indirectDescriptors | eventIndex | version1 | packedRing | inOrder | ringReset
}

/// A virtio device without its transport. A new one is one class that implements this, in a folder of its own.
///
/// The life of a device: its transport reads `kind`, `features`, `queueSizes` once. When the driver is ready (DRIVER_OK)
/// `start` hands over the queues; from then on `notify` comes for each queue with new buffers. `stop` comes before
/// every reset, save and end. Between `stop` returning and the next `start` the device must not touch guest memory, its
/// queues or the driver. `start`, `stop` and `reset` never overlap each other; `notify` and the configuration methods
/// may come from any thread at any time.
///
/// Work that goes on after `notify` has returned (on a `JobRunner`, say) is announced to `VirtioContext.gate`: `stop` may
/// then be left to the gate, which the transport closes, and waits for, before it calls `stop`.
///
/// Nothing that comes out of a queue or the configuration can be trusted: read a request's header once, check the copy,
/// answer nonsense with the error that the specification has for it, or with `VirtioContext.fail` where it has none.
public protocol VirtioDevice: AnyObject, Sendable {
    var kind: VirtioKind { get }
    /// The device type's own feature bits. Which are negotiated comes with `start`.
    var features: UInt64 { get }
    /// Of the features that every device has by its queues and its transport, those that a driver had better not choose;
    /// a device that was saved elsewhere may have them.
    var declinedFeatures: UInt64 { get }
    /// Whether the driver's choice makes sense; false makes FEATURES_OK fail (§3.1.1).
    func accepts(features: UInt64) -> Bool
    /// The most entries of each queue, powers of two.
    var queueSizes: [UInt16] { get }

    /// The device-specific configuration as it is now, little-endian.
    var configuration: [UInt8] { get }
    /// A driver's write of one byte of it that may be written; all others are dropped.
    func writeConfiguration(_ value: UInt8, at offset: Int, features: UInt64)

    /// The driver is ready, or a saved device goes on.
    func start(_ context: VirtioContext)
    /// A queue has new buffers. Called with the gate entered. True: it has more than one call may handle, call again.
    func notify(_ queue: Int) -> Bool
    /// Hands over nothing and holds nothing any more; called with the gate closed.
    func stop()
    /// One queue was reset (VIRTIO_F_RING_RESET): buffers of it that the device holds are gone. As `stop`, but the other
    /// queues go on when it returns.
    func queueWasReset(_ queue: Int)
    /// Power-on state; called after `stop`.
    func reset()

    /// What the device remembers itself, as its own `DeviceSavedState` encodes it. Called between `stop` and `start`.
    func saveState() -> [UInt8]
}

extension VirtioDevice {
    public var declinedFeatures: UInt64 { 0 }
    public func accepts(features: UInt64) -> Bool { true }
    public var configuration: [UInt8] { [] }
    public func writeConfiguration(_ value: UInt8, at offset: Int, features: UInt64) {}
    public func stop() {}
    public func queueWasReset(_ queue: Int) {}
    public func reset() {}
    public func saveState() -> [UInt8] { [] }
}

/// What a started device works with, until it is stopped.
public struct VirtioContext: Sendable {
    /// What driver and device agreed on.
    public let features: UInt64
    public let queues: [Virtqueue]
    public let memory: GuestMemory
    public let gate: ActivityGate
    public let log: DeviceLog
    let onConfigurationChange: @Sendable () -> Void
    let onRepeat: @Sendable (Int) -> Void
    let onFailure: @Sendable (String) -> Void
    let events: any VirtioEvents

    public func has(_ feature: UInt64) -> Bool { features & feature != 0 }

    /// Tells the driver that the configuration has changed.
    public func noteConfigurationChange() { onConfigurationChange() }

    /// Has `notify` called again for a queue that the device could not go on with before; soon and, where the machine has
    /// one, on the thread of its doorbells.
    public func repeatNotification(of queue: Int) { onRepeat(queue) }

    /// The driver has done something that the device cannot go on after: DEVICE_NEEDS_RESET (§2.1.1), and a line in the
    /// log.
    public func fail(_ reason: String) { onFailure(reason) }
}

/// The eventfds of a device and the thread that listens to them, for a device whose queues the kernel works on.
protocol VirtioEvents: Sendable {
    /// The eventfd of a queue's notifications, to which nobody listens any more: `notify` still comes for those that went
    /// another way, and for one that was under way. Nil: there is none.
    func claimDoorbell(of queue: Int) -> EventNotifier?
    /// `notify` comes again, and once at once if there was anything to hear.
    func returnDoorbell(of queue: Int)
    /// As `DoorbellThread`'s.
    func listen(to notifier: EventNotifier, _ handler: @escaping @Sendable () -> Void) throws(HostError)
    func stopListening(to notifier: EventNotifier)
}

/// Counts what is going on inside a device, so that a reset can wait until nothing is.
public final class ActivityGate: Sendable {
    private struct State: Sendable {
        var isOpen = false
        var active = 0
    }

    private let state = Mutex(State())

    public init() {}

    /// False: the device is stopped or stopping, do nothing. Otherwise `leave` follows.
    public func enter() -> Bool {
        state.withLock { state in
            if state.isOpen { state.active += 1 }
            return state.isOpen
        }
    }

    /// For one more that goes on after the caller, who has entered and not left: also while the device is stopping.
    public func enterAgain() { state.withLock { $0.active += 1 } }

    /// So many that entered.
    public func leave(_ count: Int = 1) { state.withLock { $0.active -= count } }

    func open() { state.withLock { $0.isOpen = true } }

    /// Nobody enters any more; returns when everybody has left.
    func closeAndWait() {
        state.withLock { $0.isOpen = false }
        // Resets are rare: a lock and a wake-up for each request would cost more than this.
        while state.withLock({ $0.active > 0 }) { HostClock.sleep(nanoseconds: 20_000) }
    }
}
