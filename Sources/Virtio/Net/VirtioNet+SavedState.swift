public import DeviceModel
public import Net
internal import Synchronization

/// A network device's own saved state, version 1: what the guest was told and has chosen, and the back end's counts. Of
/// frames there are none: those under way are in the guest's memory, or lost as on any cable.
public struct VirtioNetSavedState: DeviceSavedState {
    public static let identifier = "virtio-net"
    public static let version: UInt32 = 1

    var network: NetworkSavedState
    var filter: ReceiveFilter
    var activePairs: UInt16
    var guestOffloads: UInt64
    var mustAnnounce: Bool

    init(_ state: NetState, mtu: UInt16, statistics: NetworkStatistics) {
        network = NetworkSavedState(mac: state.mac, mtu: mtu, statistics: statistics)
        filter = state.filter
        activePairs = UInt16(clamping: state.activePairs)
        guestOffloads = state.guestOffloads
        mustAnnounce = state.mustAnnounce
    }

    public func encode(into encoder: inout StateEncoder) {
        let fields = network.fields
        encoder.write(UInt16(clamping: fields.count))
        for field in fields { encoder.write(field) }
        for flag in [
            filter.isPromiscuous, filter.allMulticast, filter.allUnicast, filter.noMulticast, filter.noUnicast,
            filter.noBroadcast,
        ] { encoder.write(flag) }
        for table in [filter.unicast, filter.multicast] {
            encoder.write(table.isOverfull)
            encoder.write(UInt16(clamping: table.addresses.count))
            for address in table.addresses.sorted() { encoder.write(address) }
        }
        encoder.write(filter.vlans != nil)
        for word in filter.vlans ?? [] { encoder.write(word) }
        encoder.write(activePairs)
        encoder.write(guestOffloads)
        encoder.write(mustAnnounce)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        var fields: [UInt64] = []
        for _ in 0..<(try decoder.read(UInt16.self)) { fields.append(try decoder.read()) }
        guard let network = NetworkSavedState(fields: fields) else {
            throw .invalid(identifier: Self.identifier, field: "network")
        }
        self.network = network
        filter = ReceiveFilter()
        filter.isPromiscuous = try decoder.readBool("isPromiscuous")
        filter.allMulticast = try decoder.readBool("allMulticast")
        filter.allUnicast = try decoder.readBool("allUnicast")
        filter.noMulticast = try decoder.readBool("noMulticast")
        filter.noUnicast = try decoder.readBool("noUnicast")
        filter.noBroadcast = try decoder.readBool("noBroadcast")
        filter.unicast = try Self.table("unicast", &decoder)
        filter.multicast = try Self.table("multicast", &decoder)
        if try decoder.readBool("vlans") {
            var words: [UInt64] = []
            for _ in 0..<ReceiveFilter.noVLANs.count { words.append(try decoder.read()) }
            filter.vlans = words
        }
        activePairs = try decoder.read()
        guestOffloads = try decoder.read()
        mustAnnounce = try decoder.readBool("mustAnnounce")
    }

    private static func table(
        _ field: String, _ decoder: inout StateDecoder
    ) throws(SavedStateError) -> ReceiveFilter.Table {
        var table = ReceiveFilter.Table()
        table.isOverfull = try decoder.readBool(field)
        let count = Int(try decoder.read(UInt16.self))
        guard count <= ReceiveFilter.tableLimit else { throw .invalid(identifier: identifier, field: field) }
        for _ in 0..<count { table.addresses.insert(try decoder.read()) }
        guard table.addresses.count == count, table.addresses.allSatisfy({ $0 >> 48 == 0 }) else {
            throw .invalid(identifier: identifier, field: field)
        }
        return table
    }

    fileprivate func state(pairs: Int) throws(SavedStateError) -> NetState {
        guard activePairs >= 1, Int(activePairs) <= pairs else {
            throw .invalid(identifier: Self.identifier, field: "activePairs")
        }
        guard guestOffloads & ~NetFeature.guestOffloads == 0 else {
            throw .invalid(identifier: Self.identifier, field: "guestOffloads")
        }
        var state = NetState(mac: network.mac)
        state.filter = filter
        state.activePairs = Int(activePairs)
        state.guestOffloads = guestOffloads
        // Wherever it was: switches have to learn where it is now (§5.1.6.5.4).
        state.mustAnnounce = true
        return state
    }
}

extension VirtioNet {
    /// In a port with the same MTU, which the guest was told.
    public convenience init(
        restoring saved: VirtioNetSavedState, _ port: NetworkPort, options: NetworkCardOptions
    ) throws(SavedStateError) {
        guard saved.network.mtu == port.mtu else {
            throw .invalid(identifier: VirtioNetSavedState.identifier, field: "mtu")
        }
        self.init(port, options: options, state: try saved.state(pairs: options.queuePairs), link: .paused)
    }

    public func saveState() -> [UInt8] {
        VirtioNetSavedState(state.withLock { $0 }, mtu: port.mtu, statistics: port.statistics).encoded()
    }
}
