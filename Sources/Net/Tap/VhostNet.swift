internal import CHost
public import Host

/// Whether a tap's frames may go past this program, from the guest's memory to the device in the kernel (`vhost=`).
public enum VhostChoice: String, CaseIterable, Sendable {
    /// Where that is possible.
    case automatic = "auto"
    case required = "on"
    case never = "off"
}

/// A range of guest memory as the kernel's data path finds it.
public struct VhostMemoryRegion: Equatable, Sendable {
    public var guestAddress: UInt64
    public var size: UInt64
    public var hostAddress: UInt64

    public init(guestAddress: UInt64, size: UInt64, hostAddress: UInt64) {
        self.guestAddress = guestAddress
        self.size = size
        self.hostAddress = hostAddress
    }
}

/// A split ring's three parts, as addresses of this process.
public struct VhostRingAddresses: Equatable, Sendable {
    public var descriptors: UInt64
    public var available: UInt64
    public var used: UInt64

    public init(descriptors: UInt64, available: UInt64, used: UInt64) {
        self.descriptors = descriptors
        self.available = available
        self.used = used
    }
}

/// A ring's eventfds.
public enum VhostEvent: Sendable {
    /// The driver has made buffers available.
    case kick
    /// The driver wants to hear of what was used.
    case call
    /// The ring makes no sense.
    case error
}

/// The kernel's virtio-net data path for one pair of queues (linux/vhost.h), or a test's model of it: one ioctl each.
/// The owner first, then features, memory and rings (0: receive, 1: transmit), the back ends last. The data path ends
/// with its last owner.
public protocol VhostNetDevice: AnyObject, Sendable {
    /// VHOST_SET_OWNER.
    func setOwner() throws(HostError)
    /// VHOST_GET_FEATURES: of the ring's and the header's feature bits.
    func features() throws(HostError) -> UInt64
    /// VHOST_SET_FEATURES.
    func setFeatures(_ features: UInt64) throws(HostError)
    /// VHOST_SET_MEM_TABLE.
    func setMemory(_ regions: [VhostMemoryRegion]) throws(HostError)
    /// VHOST_SET_VRING_NUM.
    func setSize(_ size: UInt16, ofRing ring: Int) throws(HostError)
    /// VHOST_SET_VRING_BASE: the next entry of the available ring.
    func setBase(_ base: UInt16, ofRing ring: Int) throws(HostError)
    /// VHOST_SET_VRING_ADDR.
    func setAddresses(_ addresses: VhostRingAddresses, ofRing ring: Int) throws(HostError)
    /// VHOST_SET_VRING_KICK, _CALL and _ERR.
    func setEvent(_ event: VhostEvent, _ notifier: EventNotifier, ofRing ring: Int) throws(HostError)
    /// VHOST_NET_SET_BACKEND; nil stops the ring, and nothing of it is under way afterwards.
    func setBackend(_ tap: BorrowedDescriptor?, ofRing ring: Int) throws(HostError)
    /// VHOST_GET_VRING_BASE.
    func base(ofRing ring: Int) throws(HostError) -> UInt16
}

/// What a back end has for the kernel's data path, if that may take over.
public struct VhostOffer: Sendable {
    /// The back end's own, as long as it is open.
    public let tap: BorrowedDescriptor
    /// The user wants to know where it is not possible.
    public let isRequired: Bool
    public let open: @Sendable () throws(HostError) -> any VhostNetDevice

    public init(
        tap: BorrowedDescriptor, isRequired: Bool = false,
        open: @escaping @Sendable () throws(HostError) -> any VhostNetDevice
    ) {
        self.tap = tap
        self.isRequired = isRequired
        self.open = open
    }
}

/// /dev/vhost-net.
public final class VhostNet: VhostNetDevice {
    public static let path = "/dev/vhost-net"
    private let device: FileDescriptor

    public init() throws(HostError) {
        let result = host_vhost_net_open()
        guard result >= 0 else { throw HostError("Cannot open \(VhostNet.path)", Int(result)) }
        device = FileDescriptor(owning: Int32(truncatingIfNeeded: result))
    }

    public func setOwner() throws(HostError) {
        try check(host_vhost_set_owner(device.rawValue), "VHOST_SET_OWNER")
    }

    public func features() throws(HostError) -> UInt64 {
        var features: UInt64 = 0
        try check(unsafe host_vhost_features(device.rawValue, &features), "VHOST_GET_FEATURES")
        return features
    }

    public func setFeatures(_ features: UInt64) throws(HostError) {
        try check(host_vhost_set_features(device.rawValue, features), "VHOST_SET_FEATURES")
    }

    public func setMemory(_ regions: [VhostMemoryRegion]) throws(HostError) {
        let table = regions.map {
            host_vhost_region(guest_address: $0.guestAddress, size: $0.size, host_address: $0.hostAddress)
        }
        let result = unsafe table.withUnsafeBufferPointer { buffer in
            // SAFETY: as many entries as the array has, which are only read.
            unsafe buffer.baseAddress.map { unsafe host_vhost_set_memory(device.rawValue, $0, buffer.count) } ?? 0
        }
        try check(result, "VHOST_SET_MEM_TABLE")
    }

    public func setSize(_ size: UInt16, ofRing ring: Int) throws(HostError) {
        try check(host_vhost_set_ring_size(device.rawValue, UInt32(ring), UInt32(size)), "VHOST_SET_VRING_NUM")
    }

    public func setBase(_ base: UInt16, ofRing ring: Int) throws(HostError) {
        try check(host_vhost_set_ring_base(device.rawValue, UInt32(ring), UInt32(base)), "VHOST_SET_VRING_BASE")
    }

    public func setAddresses(_ addresses: VhostRingAddresses, ofRing ring: Int) throws(HostError) {
        var parts = host_vhost_ring(
            descriptors: addresses.descriptors, available: addresses.available, used: addresses.used)
        let result = unsafe host_vhost_set_ring_addresses(device.rawValue, UInt32(ring), &parts)
        try check(result, "VHOST_SET_VRING_ADDR")
    }

    public func setEvent(_ event: VhostEvent, _ notifier: EventNotifier, ofRing ring: Int) throws(HostError) {
        let kind =
            switch event {
            case .kick: HOST_VHOST_KICK
            case .call: HOST_VHOST_CALL
            case .error: HOST_VHOST_ERROR
            }
        let result = host_vhost_set_ring_event(
            device.rawValue, UInt32(ring), Int32(kind), notifier.descriptor.rawValue)
        try check(result, "VHOST_SET_VRING_KICK, CALL or ERR")
    }

    public func setBackend(_ tap: BorrowedDescriptor?, ofRing ring: Int) throws(HostError) {
        let result = host_vhost_net_set_backend(device.rawValue, UInt32(ring), tap?.rawValue ?? -1)
        try check(result, "VHOST_NET_SET_BACKEND")
    }

    public func base(ofRing ring: Int) throws(HostError) -> UInt16 {
        let result = host_vhost_ring_base(device.rawValue, UInt32(ring))
        try check(result, "VHOST_GET_VRING_BASE")
        return UInt16(truncatingIfNeeded: result)
    }

    private func check(_ result: Int, _ call: String) throws(HostError) {
        guard result >= 0 else { throw HostError(call, result) }
    }
}

extension HostError {
    fileprivate init(_ operation: String, _ result: Int) {
        self.init(operation, errorNumber: Int32(truncatingIfNeeded: -result))
    }
}
