public import Host

/// One network card's outside, as `--net` describes it.
public struct NetworkConfiguration: Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        case user(UserConfiguration)
        case tap(TapConfiguration)
        case socket(SocketConfiguration)
        case none
    }

    public var kind: Kind
    /// For log lines and captures; the kind's own name where there is none.
    public var name: String?
    /// The guest's address; a random one where there is none.
    public var mac: MACAddress?
    public var mtu: UInt16 = NetworkConfiguration.defaultMTU
    /// For each direction.
    public var limits = TrafficLimits()
    /// Pairs of queues that the guest may use at once.
    public var queuePairs = 1
    /// A pcapng file, overwritten.
    public var capturePath: String?

    public static let defaultMTU: UInt16 = 1500
    public static let queuePairRange = 1...16
    /// From what IPv4 requires of every host (RFC 791 §3.1) to what fits libslirp's packets.
    public static let mtuRange: ClosedRange<UInt16> = 576...65_521

    public init(_ kind: Kind = .user(UserConfiguration())) { self.kind = kind }

    /// The card's address: the configured one, or a new random one.
    public func chooseMAC() -> MACAddress { mac ?? MACAddress(random: HostRandom.bytes(count: 5)) }

    /// Why the kernel's data path cannot be used although it is asked for, and what to do.
    var vhostConflict: String? {
        guard case .tap(let tap) = kind, tap.vhost == .required, let (option, reason) = vhostObstacle else {
            return nil
        }
        return "vhost=on does not go with \(option): \(reason); leave out one of the two"
    }

    /// What the kernel's data path would pass by, or has not.
    private var vhostObstacle: (option: String, reason: String)? {
        if capturePath != nil { return ("a capture", "frames in the kernel do not pass here") }
        if limits != TrafficLimits() { return ("bandwidth= and operations=", "frames in the kernel do not pass here") }
        if queuePairs > 1 { return ("queues=\(queuePairs)", "a tap has one queue") }
        return nil
    }

    /// Opens the back end. `log` is called by its threads.
    public func open(log: @escaping NetworkLog) throws(NetworkError) -> any NetworkBackend {
        if let conflict = vhostConflict { throw .vhostExcluded(conflict) }
        let transport: any Transport
        switch kind {
        case .user(let user): transport = try UserTransport(user, name: name ?? "user", mtu: mtu, log: log)
        case .tap(var tap):
            if vhostObstacle != nil { tap.vhost = .never }
            transport = try TapTransport(tap, log: log)
        case .socket(let socket):
            transport = try SocketTransport(socket, name: name ?? "socket \(socket.path)")
        case .none: return NoBackend(mtu: mtu)
        }
        var capture: PacketCapture?
        do {
            if let path = capturePath { capture = try PacketCapture(path: path, network: transport.name, log: log) }
        } catch {
            transport.close()
            throw error
        }
        return try BackendLoop(transport, mtu: mtu, limits: limits, capture: capture)
    }
}

/// What of a back end a snapshot keeps: enough to make it anew. It does not keep connections: libslirp's end in sockets
/// of this process and this host, and break with it; guests see them reset. Frames under way are lost, as on any cable.
/// What leads out of the process (a tap descriptor, socket paths, published ports) comes from the configuration of the
/// machine that restores.
public struct NetworkSavedState: Equatable, Sendable {
    public var mac: MACAddress
    public var mtu: UInt16
    public var statistics: NetworkStatistics

    public init(mac: MACAddress, mtu: UInt16, statistics: NetworkStatistics) {
        self.mac = mac
        self.mtu = mtu
        self.statistics = statistics
    }

    /// The fields in an order that never changes, for the codec of the device that keeps this.
    public var fields: [UInt64] {
        let all = statistics
        return [
            mac.rawValue, UInt64(mtu), all.sentFrames, all.sentBytes, all.receivedFrames, all.receivedBytes,
            all.malformedFrames, all.undeliverableFrames, all.overrunFrames, all.throttled, all.egress.refusedTCP,
            all.egress.refusedUDP, all.egress.refusedICMP, all.egress.refusedOther, all.egress.discardedMulticast,
            all.egress.answeredNames,
        ]
    }

    /// Nil when a field is missing or impossible.
    public init?(fields: [UInt64]) {
        guard fields.count == 16, fields[0] != 0, fields[0] >> 40 & 1 == 0, fields[0] >> 48 == 0,
            let mtu = UInt16(exactly: fields[1]), NetworkConfiguration.mtuRange.contains(mtu)
        else { return nil }
        self.mtu = mtu
        mac = MACAddress(rawValue: fields[0])
        statistics = NetworkStatistics()
        statistics.sentFrames = fields[2]
        statistics.sentBytes = fields[3]
        statistics.receivedFrames = fields[4]
        statistics.receivedBytes = fields[5]
        statistics.malformedFrames = fields[6]
        statistics.undeliverableFrames = fields[7]
        statistics.overrunFrames = fields[8]
        statistics.throttled = fields[9]
        statistics.egress.refusedTCP = fields[10]
        statistics.egress.refusedUDP = fields[11]
        statistics.egress.refusedICMP = fields[12]
        statistics.egress.refusedOther = fields[13]
        statistics.egress.discardedMulticast = fields[14]
        statistics.egress.answeredNames = fields[15]
    }
}
