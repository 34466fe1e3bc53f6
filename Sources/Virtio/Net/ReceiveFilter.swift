internal import Net

/// Which frames the guest wants (Virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3).
struct ReceiveFilter: Equatable, Sendable {
    /// Addresses that are remembered; of a longer table all frames of its kind pass.
    static let tableLimit = 64

    /// Until the driver says otherwise: one that has no such commands wants everything.
    var isPromiscuous = true
    var allMulticast = false
    var allUnicast = false
    var noMulticast = false
    var noUnicast = false
    var noBroadcast = false
    var unicast = Table()
    var multicast = Table()
    /// A bit for each VLAN; nil: VLANs are not filtered.
    var vlans: [UInt64]?

    struct Table: Equatable, Sendable {
        var addresses: Set<UInt64> = []
        var isOverfull = false

        func contains(_ address: UInt64) -> Bool { isOverfull || addresses.contains(address) }
    }

    static let noVLANs = [UInt64](repeating: 0, count: 64)

    private static let group: UInt64 = 1 << 40
    private static let broadcast: UInt64 = 0xFFFF_FFFF_FFFF
    private static let vlanType: UInt16 = 0x8100

    /// Destination, type and, behind that, the VLAN's tag (IEEE 802.1Q §9.3); the frame has at least 14 bytes.
    func accepts(_ frame: borrowing RawSpan, mac: MACAddress) -> Bool {
        guard frame.byteCount >= 14 else { return false }
        func number(_ offset: Int, _ count: Int) -> UInt64 {
            var value: UInt64 = 0
            for index in offset..<offset + count {
                value = value << 8 | UInt64(unsafe frame.unsafeLoad(fromByteOffset: index, as: UInt8.self))
            }
            return value
        }
        if let vlans, number(12, 2) == UInt64(Self.vlanType) {
            guard frame.byteCount >= 16 else { return false }
            let identifier = Int(number(14, 2) & 0xFFF)
            guard vlans[identifier >> 6] >> UInt64(identifier & 63) & 1 != 0 else { return false }
        }
        return accepts(destination: number(0, 6), mac: mac)
    }

    func accepts(destination: UInt64, mac: MACAddress) -> Bool {
        if isPromiscuous { return true }
        if destination == Self.broadcast { return !noBroadcast }
        if destination & Self.group != 0 {
            return !noMulticast && (allMulticast || multicast.contains(destination))
        }
        return !noUnicast && (allUnicast || destination == mac.rawValue || unicast.contains(destination))
    }

    /// False: there is no such VLAN, or nothing to filter.
    mutating func setVLAN(_ identifier: UInt16, _ passes: Bool) -> Bool {
        guard identifier < 4096, vlans != nil else { return false }
        let bit: UInt64 = 1 << UInt64(identifier & 63)
        if passes {
            vlans?[Int(identifier >> 6)] |= bit
        } else {
            vlans?[Int(identifier >> 6)] &= ~bit
        }
        return true
    }

    /// struct virtio_net_ctrl_mac twice, unicast and multicast: a count and so many addresses. False: it is not that.
    mutating func setTables(_ bytes: ArraySlice<UInt8>) -> Bool {
        var rest = bytes
        guard let first = Self.table(&rest, isGroup: false), let second = Self.table(&rest, isGroup: true), rest.isEmpty
        else { return false }
        unicast = first
        multicast = second
        return true
    }

    private static func table(_ rest: inout ArraySlice<UInt8>, isGroup: Bool) -> Table? {
        guard rest.count >= 4 else { return nil }
        let count = Int(littleEndian(Array(rest.prefix(4)), at: 0, count: 4))
        rest = rest.dropFirst(4)
        guard rest.count / 6 >= count else { return nil }
        var table = Table()
        guard count <= tableLimit else {
            rest = rest.dropFirst(count * 6)
            table.isOverfull = true
            return table
        }
        for _ in 0..<count {
            let address = rest.prefix(6).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            rest = rest.dropFirst(6)
            guard (address & group != 0) == isGroup else { return nil }
            table.addresses.insert(address)
        }
        return table
    }
}
