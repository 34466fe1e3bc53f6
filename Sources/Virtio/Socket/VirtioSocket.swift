internal import DeviceModel
internal import GuestMemory
public import Host
internal import Synchronization

/// A socket device (Virtio 1.2 §5.10): streams between the guest's ports and Unix sockets of the host.
///
/// A guest that connects to a port of the host reaches the socket `PATH_PORT`. Who connects to `PATH` on the host and
/// writes `CONNECT PORT\n` reaches that port of the guest, and reads `OK HOSTPORT\n` first. Sockets never wait, so that
/// everything happens where it is noticed: in notifications and in the device's own thread.
public final class VirtioSocket: VirtioDevice {
    // Configuration
    private let endpoint: SocketEndpoint
    // Glue
    private let shared: SocketThread

    public init(_ endpoint: SocketEndpoint) throws(HostError) {
        self.endpoint = endpoint
        shared = try SocketThread(endpoint, owesTransportReset: false)
    }

    /// The guest's connections of before are gone; it is told so.
    public init(restoring saved: VirtioSocketSavedState, _ endpoint: SocketEndpoint) throws(HostError) {
        self.endpoint = endpoint
        shared = try SocketThread(endpoint, owesTransportReset: saved.hadDriver)
    }

    deinit { shared.end() }

    public func saveState() -> [UInt8] {
        VirtioSocketSavedState(guestCID: endpoint.guestCID, hadDriver: shared.hadDriver).encoded()
    }

    // MARK: What the driver sees

    /// A network controller of another kind, as PCI calls it.
    public let kind = VirtioKind(name: "virtio-vsock", identifier: 19, pciClass: 0x02_8000)
    public let features = VsockLayout.streamFeature
    public let queueSizes: [UInt16] = [256, 256, 64]

    /// struct virtio_vsock_config (§5.10.4): guest_cid.
    public var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 8)
        bytes.store(endpoint.guestCID, at: 0)
        return bytes
    }

    // MARK: Life

    public func start(_ context: VirtioContext) { shared.start(context) }
    public func stop() { shared.stop() }
    public func reset() { shared.reset() }
    public func notify(_ queue: Int) -> Bool { shared.notify(queue) }
}
