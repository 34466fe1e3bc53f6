internal import DeviceModel

/// Where a machine's PCI devices are: on bus 0 from slot 1 on, in their order, as long as there is room. What is more is
/// behind root ports, eight of them in each of the last slots, since a link has one device.
struct PCILayout: Equatable {
    struct Place: Equatable {
        /// On bus 0: the device itself, or its root port.
        var address: PCIAddress
        /// nil: there is no root port. Else the number that its bus starts with.
        var bus: UInt8?

        /// What guests find the device at first.
        var deviceAddress: PCIAddress { bus.map { PCIAddress(bus: $0, device: 0) } ?? address }
    }

    /// Slot 0 is the host bridge.
    static let slotCount = 31
    private static let portsPerSlot = 8
    static let limit = slotCount * portsPerSlot

    let places: [Place]

    /// `count` is at most `limit`.
    init(count: Int) {
        precondition(count <= Self.limit)
        // Each slot of ports takes a place and gives eight.
        let excess = max(count - Self.slotCount, 0)
        let portSlots = (excess + Self.portsPerSlot - 2) / (Self.portsPerSlot - 1)
        let direct = Self.slotCount - portSlots
        places = (0..<count).map { index in
            guard index >= direct else { return Place(address: PCIAddress(device: UInt8(index + 1))) }
            let port = index - direct
            return Place(
                address: PCIAddress(
                    device: UInt8(direct + 1 + port / Self.portsPerSlot), function: UInt8(port % Self.portsPerSlot)),
                bus: UInt8(port + 1))
        }
    }

    /// The slots of bus 0 with something in them.
    var slots: [UInt8] { Set(places.map(\.address.device)).sorted() }

    /// Whether a slot has more functions than one.
    func isMultifunction(_ slot: UInt8) -> Bool { places.count { $0.address.device == slot } > 1 }
}
