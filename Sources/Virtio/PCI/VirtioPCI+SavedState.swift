public import DeviceModel

/// A virtio PCI device's saved state, version 1: its function, the transport's registers, where it is in its rings, and
/// the device's own state as bytes of the device's own format.
public struct VirtioPCISavedState: DeviceSavedState {
    public static let identifier = "virtio-pci"
    public static let version: UInt32 = 1

    var kind: UInt16
    var function: PCIFunctionSavedState
    var transport: VirtioPCIState
    var positions: [RingPosition]
    /// For the device's own saved-state type.
    public var device: [UInt8]

    /// Of either layout: positions in bits 14–0, a packed ring's wrap counter in bit 15 of its own fields.
    struct RingPosition: Equatable, Sendable {
        var nextAvailable: UInt16 = 0
        var nextUsed: UInt16 = 0
        var unsignalled: UInt16 = 0
        var availableWrap = false
        var usedWrap = false
    }

    init(
        kind: UInt16, function: PCIFunctionSavedState, state: VirtioPCIState, rings: [Virtqueue.Ring?],
        device: [UInt8]
    ) {
        self.kind = kind
        self.function = function
        transport = state
        self.device = device
        positions = rings.map { ring in
            switch ring {
            case .split(let ring):
                RingPosition(
                    nextAvailable: ring.nextAvailable, nextUsed: ring.nextUsed,
                    unsignalled: ring.nextUsed &- ring.lastSignalled)
            case .packed(let ring):
                RingPosition(
                    nextAvailable: ring.nextAvailable.index, nextUsed: ring.nextUsed.index,
                    unsignalled: ring.unsignalled, availableWrap: ring.nextAvailable.wrap, usedWrap: ring.nextUsed.wrap)
            case nil: RingPosition()
            }
        }
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(kind)
        function.encode(into: &encoder)
        encoder.write(transport.status)
        encoder.write(transport.deviceFeatureSelect)
        encoder.write(transport.driverFeatureSelect)
        encoder.write(transport.driverFeatures)
        encoder.write(transport.configurationVector)
        encoder.write(transport.configurationGeneration)
        encoder.write(transport.queueSelect)
        encoder.write(transport.interruptStatus)
        encoder.write(transport.isLegacy)
        encoder.write(transport.isStartedEarly)
        encoder.write(UInt16(clamping: transport.queues.count))
        for (queue, position) in zip(transport.queues, positions) {
            encoder.write(queue.size)
            encoder.write(queue.vector)
            encoder.write(queue.isEnabled)
            encoder.write(queue.addresses.descriptors)
            encoder.write(queue.addresses.driver)
            encoder.write(queue.addresses.device)
            encoder.write(position.nextAvailable)
            encoder.write(position.nextUsed)
            encoder.write(position.unsignalled)
            encoder.write(position.availableWrap)
            encoder.write(position.usedWrap)
        }
        encoder.write(device)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        kind = try decoder.read()
        function = try PCIFunctionSavedState(from: &decoder)
        transport = VirtioPCIState(queueSizes: [])
        transport.status = try decoder.read()
        transport.deviceFeatureSelect = try decoder.read()
        transport.driverFeatureSelect = try decoder.read()
        transport.driverFeatures = try decoder.read()
        transport.configurationVector = try decoder.read()
        transport.configurationGeneration = try decoder.read()
        transport.queueSelect = try decoder.read()
        transport.interruptStatus = try decoder.read()
        transport.isLegacy = try decoder.readBool("isLegacy")
        transport.isStartedEarly = try decoder.readBool("isStartedEarly")
        positions = []
        let count: UInt16 = try decoder.read()
        guard count <= VirtioPCILayout.queueLimit else { throw .invalid(identifier: Self.identifier, field: "queues") }
        for _ in 0..<count {
            var queue = VirtioQueueRegisters(size: try decoder.read())
            queue.vector = try decoder.read()
            queue.isEnabled = try decoder.readBool("isEnabled")
            queue.addresses.descriptors = try decoder.read()
            queue.addresses.driver = try decoder.read()
            queue.addresses.device = try decoder.read()
            transport.queues.append(queue)
            var position = RingPosition()
            position.nextAvailable = try decoder.read()
            position.nextUsed = try decoder.read()
            position.unsignalled = try decoder.read()
            position.availableWrap = try decoder.readBool("availableWrap")
            position.usedWrap = try decoder.readBool("usedWrap")
            positions.append(position)
        }
        device = try decoder.readBytes("device", limit: 1 << 28)
    }

    // MARK: Restore

    private static func check(_ field: String, _ isValid: Bool) throws(SavedStateError) {
        guard isValid else { throw .invalid(identifier: identifier, field: field) }
    }

    /// The registers, if a device like this one can have had them.
    func state(for device: any VirtioDevice, isTransitional: Bool) throws(SavedStateError) -> VirtioPCIState {
        try Self.check("isLegacy", !transport.isLegacy || isTransitional && !transport.areFeaturesFixed)
        try Self.check("isStartedEarly", !transport.isStartedEarly || transport.isLegacy)
        try Self.check("kind", kind == device.kind.identifier)
        try Self.check("queues", transport.queues.count == device.queueSizes.count)
        try Self.check("status", transport.status & ~VirtioStatus.all == 0)
        try Self.check(
            "driverFeatures",
            !transport.areFeaturesFixed && !transport.isLegacy
                || transport.driverFeatures & ~(device.features | VirtioFeature.offered | VirtioFeature.anyLayout) == 0)
        for (queue, maximum) in zip(transport.queues, device.queueSizes) {
            try Self.check("queueSize", transport.isValid(size: queue.size, maximum: maximum))
            try Self.check(
                "queueVector", queue.vector == virtioNoVector || Int(queue.vector) <= device.queueSizes.count)
        }
        return transport
    }

    func ring(_ index: Int, in state: VirtioPCIState) throws(SavedStateError) -> Virtqueue.Ring? {
        guard state.isDriverReady, positions.indices.contains(index) else { return nil }
        let position = positions[index]
        switch state.ring(index) {
        case .split(var ring):
            ring.nextAvailable = position.nextAvailable
            ring.nextUsed = position.nextUsed
            ring.lastSignalled = position.nextUsed &- position.unsignalled
            return .split(ring)
        case .packed(var ring):
            try Self.check("nextAvailable", position.nextAvailable < ring.size)
            try Self.check("nextUsed", position.nextUsed < ring.size)
            ring.nextAvailable = PackedRing.Position(index: position.nextAvailable, wrap: position.availableWrap)
            ring.nextUsed = PackedRing.Position(index: position.nextUsed, wrap: position.usedWrap)
            ring.unsignalled = position.unsignalled
            return .packed(ring)
        case nil: return nil
        }
    }
}
