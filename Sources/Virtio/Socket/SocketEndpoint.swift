public import Host

/// The host's side of a socket device: where it listens and where its guest's connections go, in Firecracker's
/// convention. It outlives restarts of a machine.
public final class SocketEndpoint: Sendable {
    public let path: String
    public let guestCID: UInt64
    let listener: StreamListener

    /// Ports of the guest's connections are five characters to ten behind the path, with an underscore.
    private static let pathLimit = 96

    /// Begins to listen at `path` (mode 0600); a socket there that nobody listens on is replaced. Fails with ENAMETOOLONG
    /// where the path has more than 96 bytes.
    public init(path: String, guestCID: UInt32) throws(HostError) {
        precondition(guestCID >= 3 && guestCID < .max)
        guard path.utf8.count <= Self.pathLimit else { throw HostError.nameTooLong("Cannot listen at \(path)") }
        self.path = path
        self.guestCID = UInt64(guestCID)
        listener = try StreamListener(path: path)
    }

    /// The machine has ended for good: the socket's file goes.
    public func close() { listener.removeName() }

    /// The socket of the host that stands for a port; nil: nobody listens there.
    func connect(port: UInt32) -> StreamSocket? { StreamSocket(connectingTo: "\(path)_\(port)") }
}
