/// A port of the host that leads to the guest: `--publish [ADDRESS:]HOST:GUEST[/udp]`.
public struct PublishedPort: Hashable, Sendable, CustomStringConvertible {
    /// IPv4 address to listen at; loopback unless another one is named.
    public var address: UInt32 = 0x7F00_0001
    public var hostPort: UInt16
    public var guestPort: UInt16
    public var isUDP = false

    public init(address: UInt32 = 0x7F00_0001, hostPort: UInt16, guestPort: UInt16, isUDP: Bool = false) {
        self.address = address
        self.hostPort = hostPort
        self.guestPort = guestPort
        self.isUDP = isUDP
    }

    public var description: String {
        "\(IPAddress.v4(address)):\(hostPort) to the guest's \(isUDP ? "UDP" : "TCP") port \(guestPort)"
    }
}

/// `--net user`.
public struct UserConfiguration: Equatable, Sendable {
    public var egress = EgressPolicy.all
    public var publishedPorts: [PublishedPort] = []
    /// Off by default: where the host has no IPv6 a guest would try it in vain.
    public var hasIPv6 = false

    public init(egress: EgressPolicy = .all, publishedPorts: [PublishedPort] = [], hasIPv6: Bool = false) {
        self.egress = egress
        self.publishedPorts = publishedPorts
        self.hasIPv6 = hasIPv6
    }
}
