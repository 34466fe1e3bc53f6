/// One queue's registers.
struct VirtioQueueRegisters: Equatable, Sendable {
    var size: UInt16
    var vector = virtioNoVector
    var isEnabled = false
    var addresses = QueueAddresses()
}

/// The transport's registers, apart from the device and its queues.
struct VirtioPCIState: Equatable, Sendable {
    var status: UInt8 = 0
    var deviceFeatureSelect: UInt32 = 0
    var driverFeatureSelect: UInt32 = 0
    var driverFeatures: UInt64 = 0
    var configurationVector = virtioNoVector
    var configurationGeneration: UInt8 = 0
    var queueSelect: UInt16 = 0
    var interruptStatus: UInt8 = 0
    var queues: [VirtioQueueRegisters]
    /// The driver uses the legacy interface.
    var isLegacy = false
    /// It has used a queue before it said that it is ready.
    var isStartedEarly = false

    init(queueSizes: [UInt16]) { queues = queueSizes.map { VirtioQueueRegisters(size: $0) } }

    var isDriverReady: Bool { status & VirtioStatus.driverOK != 0 || isStartedEarly }
    var areFeaturesFixed: Bool { status & VirtioStatus.featuresOK != 0 }
    /// The queue that the queue registers are of.
    var selected: Int? { queues.indices.contains(Int(queueSelect)) ? Int(queueSelect) : nil }

    func has(_ feature: UInt64) -> Bool { driverFeatures & feature != 0 }

    /// False: a driver of today has the device already.
    mutating func becomeLegacy() -> Bool {
        if !areFeaturesFixed { isLegacy = true }
        return isLegacy
    }

    /// One 32-bit half of a feature set; there are no bits beyond 63 (Virtio 1.2 §4.1.4.3.1).
    static func half(_ features: UInt64, _ select: UInt32) -> UInt32 {
        switch select {
        case 0: UInt32(truncatingIfNeeded: features)
        case 1: UInt32(truncatingIfNeeded: features >> 32)
        default: 0
        }
    }

    mutating func setDriverFeatures(_ value: UInt32) {
        switch driverFeatureSelect {
        case 0: driverFeatures = driverFeatures & ~0xFFFF_FFFF | UInt64(value)
        case 1: driverFeatures = driverFeatures & 0xFFFF_FFFF | UInt64(value) << 32
        default: break
        }
    }

    /// The ring as the driver has laid it out.
    func ring(_ index: Int) -> Virtqueue.Ring? {
        guard queues.indices.contains(index), queues[index].isEnabled else { return nil }
        let queue = queues[index]
        let hasEventIndex = has(VirtioFeature.eventIndex)
        return has(VirtioFeature.packedRing)
            ? .packed(PackedRing(size: queue.size, addresses: queue.addresses, hasEventIndex: hasEventIndex))
            : .split(SplitRing(size: queue.size, addresses: queue.addresses, hasEventIndex: hasEventIndex))
    }

    /// A split ring's size is a power of two (§2.7), a packed one's any number up to 2¹⁵ (§2.8.10.1).
    func isValid(size: UInt16, maximum: UInt16) -> Bool {
        guard size > 0, size <= maximum else { return false }
        return has(VirtioFeature.packedRing) || size & (size - 1) == 0
    }
}
