/// Constants of the socket device (Virtio 1.2 §5.10).
enum VsockLayout {
    /// The driver and device know stream sockets (§5.10.3).
    static let streamFeature: UInt64 = 1 << 0
    /// The host's number (§5.10.4).
    static let hostCID: UInt64 = 2
    /// The only type without further features (§5.10.6).
    static let streamType: UInt16 = 1
    /// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7).
    static let transportReset: UInt32 = 0

    enum Queue {
        static let receive = 0
        static let transmit = 1
        static let event = 2
    }

    /// Flags of SHUTDOWN (§5.10.6.5): the sender will receive nothing more, or send nothing more.
    static let receivesNoMore: UInt32 = 1 << 0
    static let sendsNoMore: UInt32 = 1 << 1
}

/// What a packet says (§5.10.6).
enum VsockOperation: UInt16 {
    case request = 1
    case response = 2
    case reset = 3
    case shutdown = 4
    case data = 5
    case creditUpdate = 6
    case creditRequest = 7
}

/// struct virtio_vsock_hdr (§5.10.6).
struct VsockHeader: Equatable, Sendable {
    static let size = 44

    var sourceCID: UInt64
    var targetCID: UInt64
    var sourcePort: UInt32
    var targetPort: UInt32
    /// Bytes of data behind the header.
    var length: UInt32 = 0
    var type: UInt16 = VsockLayout.streamType
    var operation: UInt16
    var flags: UInt32 = 0
    /// The sender's room for data, and how much of what it got has left that room.
    var bufferSize: UInt32 = 0
    var forwarded: UInt32 = 0

    /// nil: there are fewer bytes.
    init?(_ bytes: [UInt8]) {
        guard bytes.count == Self.size else { return nil }
        func u32(_ offset: Int) -> UInt32 { UInt32(truncatingIfNeeded: littleEndian(bytes, at: offset, count: 4)) }
        sourceCID = littleEndian(bytes, at: 0, count: 8)
        targetCID = littleEndian(bytes, at: 8, count: 8)
        sourcePort = u32(16)
        targetPort = u32(20)
        length = u32(24)
        type = UInt16(truncatingIfNeeded: littleEndian(bytes, at: 28, count: 2))
        operation = UInt16(truncatingIfNeeded: littleEndian(bytes, at: 30, count: 2))
        flags = u32(32)
        bufferSize = u32(36)
        forwarded = u32(40)
    }

    /// From the host to a guest.
    init(_ operation: VsockOperation, to guestCID: UInt64, _ ports: VsockPorts) {
        sourceCID = VsockLayout.hostCID
        targetCID = guestCID
        sourcePort = ports.host
        targetPort = ports.guest
        self.operation = operation.rawValue
    }

    var bytes: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Self.size)
        bytes.store(sourceCID, at: 0)
        bytes.store(targetCID, at: 8)
        bytes.store(sourcePort, at: 16)
        bytes.store(targetPort, at: 20)
        bytes.store(length, at: 24)
        bytes.store(type, at: 28)
        bytes.store(operation, at: 30)
        bytes.store(flags, at: 32)
        bytes.store(bufferSize, at: 36)
        bytes.store(forwarded, at: 40)
        return bytes
    }
}

/// The two ends of a connection.
struct VsockPorts: Hashable, Sendable {
    var guest: UInt32
    var host: UInt32
}
