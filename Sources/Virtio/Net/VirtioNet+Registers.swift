internal import Net

/// Feature bits of a network device (Virtio 1.2 §5.1.3).
enum NetFeature {
    static let checksum: UInt64 = 1 << 0
    static let guestChecksum: UInt64 = 1 << 1
    static let controlGuestOffloads: UInt64 = 1 << 2
    static let mtu: UInt64 = 1 << 3
    static let mac: UInt64 = 1 << 5
    static let guestTCP4: UInt64 = 1 << 7
    static let guestTCP6: UInt64 = 1 << 8
    static let guestECN: UInt64 = 1 << 9
    static let hostTCP4: UInt64 = 1 << 11
    static let hostTCP6: UInt64 = 1 << 12
    static let hostECN: UInt64 = 1 << 13
    static let mergeableBuffers: UInt64 = 1 << 15
    static let status: UInt64 = 1 << 16
    static let controlQueue: UInt64 = 1 << 17
    static let controlReceive: UInt64 = 1 << 18
    static let controlVLAN: UInt64 = 1 << 19
    static let controlReceiveExtra: UInt64 = 1 << 20
    static let guestAnnounce: UInt64 = 1 << 21
    static let multiqueue: UInt64 = 1 << 22
    static let controlMAC: UInt64 = 1 << 23
    static let guestUDP4: UInt64 = 1 << 54
    static let guestUDP6: UInt64 = 1 << 55
    static let hostUDP: UInt64 = 1 << 56
    static let speedDuplex: UInt64 = 1 << 63

    /// What the guest agrees to receive undone; the same bits are the argument of a GUEST_OFFLOADS command (§5.1.6.5.6).
    static let guestOffloads = guestChecksum | guestTCP4 | guestTCP6 | guestECN | guestUDP4 | guestUDP6

    /// A feature, and of which others one must be there with it (§5.1.3.1; CTRL_GUEST_OFFLOADS and CTRL_RX_EXTRA are
    /// commands of the control queue as well).
    static let requirements: [(feature: UInt64, anyOf: UInt64)] = [
        (guestTCP4, guestChecksum), (guestTCP6, guestChecksum), (guestECN, guestTCP4 | guestTCP6),
        (guestUDP4, guestChecksum), (guestUDP6, guestChecksum), (hostTCP4, checksum), (hostTCP6, checksum),
        (hostECN, hostTCP4 | hostTCP6), (hostUDP, checksum), (controlReceive, controlQueue),
        (controlVLAN, controlQueue), (controlReceiveExtra, controlQueue), (guestAnnounce, controlQueue),
        (multiqueue, controlQueue), (controlMAC, controlQueue), (controlGuestOffloads, controlQueue),
    ]

    /// What may be left undone in frames for a guest with these features.
    static func receiveOffloads(_ features: UInt64) -> Offloads {
        let pairs: [(UInt64, Offloads)] = [
            (guestChecksum, .checksum), (guestTCP4, .tcp4), (guestTCP6, .tcp6), (guestECN, .ecn),
        ]
        var result = pairs.reduce(into: Offloads()) { if features & $1.0 != 0 { $0.insert($1.1) } }
        // The back ends have one switch for both.
        if features & guestUDP4 != 0, features & guestUDP6 != 0 { result.insert(.udp) }
        return result
    }
}

/// struct virtio_net_config (§5.1.4) by offset.
enum NetConfigurationField {
    static let mac = 0
    static let status = 6
    static let maximumQueuePairs = 8
    static let mtu = 10
    static let speed = 12
    static let duplex = 16
    static let size = 17
}

/// The status field (§5.1.4).
enum NetStatus {
    static let linkUp: UInt16 = 1
    static let announce: UInt16 = 2
}

/// Classes and commands of the control queue (§5.1.6.5).
enum NetCommand {
    enum Class {
        static let receive: UInt8 = 0
        static let mac: UInt8 = 1
        static let vlan: UInt8 = 2
        static let announce: UInt8 = 3
        static let multiqueue: UInt8 = 4
        static let guestOffloads: UInt8 = 5
    }

    enum Receive {
        static let promiscuous: UInt8 = 0
        static let allMulticast: UInt8 = 1
        static let allUnicast: UInt8 = 2
        static let noMulticast: UInt8 = 3
        static let noUnicast: UInt8 = 4
        static let noBroadcast: UInt8 = 5
    }

    static let macTableSet: UInt8 = 0
    static let macAddressSet: UInt8 = 1
    static let vlanAdd: UInt8 = 0
    static let vlanDelete: UInt8 = 1
    static let announceAcknowledge: UInt8 = 0
    static let queuePairsSet: UInt8 = 0
    static let guestOffloadsSet: UInt8 = 0

    /// class and command, before the command's data.
    static let headerSize = 2
    /// A table of all addresses that we remember has less; nothing longer is looked at.
    static let limit = 64 << 10

    static let ok: UInt8 = 0
    static let error: UInt8 = 1
}
