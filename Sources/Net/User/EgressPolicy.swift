/// The addresses of a user network, as libslirp's users know them.
public struct UserNetworkLayout: Equatable, Sendable {
    public var prefix: AddressPrefix
    /// The host's loopback, and the gateway.
    public var host: IPAddress
    public var nameserver: IPAddress
    /// The guest's address from DHCP.
    public var guest: IPAddress

    public static let ipv4 = UserNetworkLayout(
        prefix: AddressPrefix(.v4(0x0A00_0200), length: 24), host: .v4(0x0A00_0202), nameserver: .v4(0x0A00_0203),
        guest: .v4(0x0A00_020F))

    /// fec0::/64; the guest chooses its own address (RFC 4862).
    public static let ipv6 = UserNetworkLayout(
        prefix: AddressPrefix(.v6(0xFEC0 << 112), length: 64), host: .v6(0xFEC0 << 112 | 2),
        nameserver: .v6(0xFEC0 << 112 | 3), guest: .v6(0xFEC0 << 112 | 15))

    /// The fixed name of the host, in a domain that is nobody's (ICANN resolution 2024.07.29.06: .internal).
    public static let hostName = "host.martlet.internal"
}

/// Ports that a destination allows.
public struct EgressPorts: Equatable, Sendable {
    public var range: ClosedRange<UInt16>
    public var allowsTCP = true
    public var allowsUDP = true

    public init(_ range: ClosedRange<UInt16>, allowsTCP: Bool = true, allowsUDP: Bool = true) {
        self.range = range
        self.allowsTCP = allowsTCP
        self.allowsUDP = allowsUDP
    }

    public static let all = EgressPorts(0...UInt16.max)

    var isAll: Bool { self == .all }
}

/// Where a guest may send to: `egress=all|host|none|CIDR:PORT,…`.
public enum EgressPolicy: Equatable, Sendable {
    case all
    case list([Rule])

    public enum Rule: Equatable, Sendable {
        /// The host's loopback, by its fixed address.
        case host
        /// The host's resolver.
        case resolver
        case destination(AddressPrefix, EgressPorts)
    }

    /// Only the host's loopback.
    public static let host = EgressPolicy.list([.host])
    /// A lease by DHCP, and nothing else.
    public static let none = EgressPolicy.list([])

    var allowsResolver: Bool {
        switch self {
        case .all: true
        case .list(let rules):
            rules.contains { rule in
                switch rule {
                case .resolver: true
                case .destination(let prefix, let ports):
                    UserNetworkLayout.ipv4.prefix.contains(prefix)
                        && prefix.contains(UserNetworkLayout.ipv4.nameserver) && ports.range.contains(53)
                default: false
                }
            }
        }
    }

    var allowsHostName: Bool {
        switch self {
        case .all: true
        case .list(let rules):
            rules.contains { rule in
                switch rule {
                case .host: true
                case .destination(let prefix, _):
                    UserNetworkLayout.ipv4.prefix.contains(prefix) && prefix.contains(UserNetworkLayout.ipv4.host)
                default: false
                }
            }
        }
    }

    /// Whether a TCP or UDP destination may be reached.
    func allows(_ address: IPAddress, port: UInt16, protocolNumber: UInt8, in layout: UserNetworkLayout) -> Bool {
        allows(address, in: layout, resolverPort: port) { ports in
            ports.range.contains(port)
                && (protocolNumber == IPProtocol.tcp ? ports.allowsTCP : ports.allowsUDP)
        }
    }

    /// Whether all of a destination may be reached: for what has no port.
    func allowsAll(of address: IPAddress, in layout: UserNetworkLayout) -> Bool {
        allows(address, in: layout, resolverPort: nil) { $0.isAll }
    }

    private func allows(
        _ address: IPAddress, in layout: UserNetworkLayout, resolverPort: UInt16?, _ suffices: (EgressPorts) -> Bool
    ) -> Bool {
        let isInside = layout.prefix.contains(address)
        // Inside there are only the host and its resolver; libslirp would look for all others on the host's own network.
        if isInside, address != layout.host, address != layout.nameserver { return false }
        if address == layout.nameserver, resolverPort != nil, resolverPort != 53 { return false }
        guard case .list(let rules) = self else { return true }
        return rules.contains { rule in
            switch rule {
            case .host: address == layout.host
            case .resolver: address == layout.nameserver && resolverPort == 53
            case .destination(let prefix, let ports):
                // 0.0.0.0/0 means the world, not the host's loopback: who wants that names it.
                prefix.contains(address) && (!isInside || layout.prefix.contains(prefix)) && suffices(ports)
            }
        }
    }
}

extension IPAddress {
    /// Addresses that no policy lets out, because a socket of the host would take them for the host itself or for
    /// nobody: "this network" and loopback, class E and broadcast (RFC 6890 §2.2.2), unspecified, loopback, IPv4 in
    /// IPv6 and link-local (RFC 4291 §2.5).
    var isMartian: Bool {
        switch self {
        case .v4(let value): value >> 24 == 0 || value >> 24 == 127 || value >> 28 == 0xF
        case .v6(let value): value >> 32 == 0 || value >> 32 == 0xFFFF || value >> 118 == 0x3FA
        }
    }

    var isMulticast: Bool {
        switch self {
        case .v4(let value): value >> 28 == 0xE
        case .v6(let value): value >> 120 == 0xFF
        }
    }

    var isBroadcast: Bool { self == .v4(UInt32.max) }
}

/// What was refused, for the log.
public struct RefusedDestination: Hashable, Sendable, CustomStringConvertible {
    public enum Kind: String, Sendable {
        case tcp = "TCP"
        case udp = "UDP"
        case icmp = "ICMP"
        case other = "protocol"
    }

    public var kind: Kind
    public var address: IPAddress
    /// The port; the protocol's number for `.other`.
    public var number: UInt16

    public init(_ kind: Kind, _ address: IPAddress, number: UInt16) {
        self.kind = kind
        self.address = address
        self.number = number
    }

    public var description: String {
        switch kind {
        case .tcp, .udp:
            if case .v6 = address {
                "\(kind.rawValue) to [\(address)]:\(number)"
            } else {
                "\(kind.rawValue) to \(address):\(number)"
            }
        case .icmp: "\(kind.rawValue) to \(address)"
        case .other: "protocol \(number) to \(address)"
        }
    }
}
