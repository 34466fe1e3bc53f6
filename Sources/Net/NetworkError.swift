public import Host

/// Why a network could not be made.
public enum NetworkError: Error, Equatable, Sendable, CustomStringConvertible {
    case host(HostError)
    /// libslirp did not start.
    case userNetwork
    case portTaken(PublishedPort, reason: String)
    case tapUnusable(name: String, reason: String)
    case tapWithoutHeader(name: String)
    case vhostUnavailable(name: String, reason: String)
    case vhostExcluded(String)
    case socketUnusable(path: String, reason: String)
    case captureUnusable(path: String, reason: String)
    case alreadyStarted(network: String)

    public var description: String {
        switch self {
        case .host(let error): error.description
        case .userNetwork: "Cannot start the user network: libslirp refused its configuration"
        case .portTaken(let port, let reason):
            "Cannot publish \(port): \(reason); choose another host port or stop what uses it"
        case .tapUnusable(let name, let reason):
            "Cannot use tap device \(name): \(reason); make one for this user (ip tuntap add dev \(name) mode tap user "
                + "$USER) or use --net user"
        case .tapWithoutHeader(let name):
            "Cannot use tap descriptor \(name): its frames have no virtio-net header; open it with IFF_VNET_HDR"
        case .vhostUnavailable(let name, let reason):
            "Cannot give tap device \(name) to /dev/vhost-net: \(reason); load it (modprobe vhost_net) and let this user "
                + "open it, or leave out vhost=on"
        case .vhostExcluded(let reason): reason
        case .socketUnusable(let path, let reason):
            "Cannot use socket \(path): \(reason); choose another path"
        case .captureUnusable(let path, let reason):
            "Cannot capture into \(path): \(reason); choose another file"
        case .alreadyStarted(let network): "Cannot start \(network): it has been started already"
        }
    }
}
