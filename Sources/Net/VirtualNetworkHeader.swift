/// Work on frames that somebody else may do (Virtio 1.2 §5.1.3).
public struct Offloads: OptionSet, Sendable, Hashable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// The TCP or UDP checksum is completed by whoever needs it.
    public static let checksum = Offloads(rawValue: 1 << 0)
    /// TCP over IPv4 in large segments.
    public static let tcp4 = Offloads(rawValue: 1 << 1)
    /// TCP over IPv6 in large segments.
    public static let tcp6 = Offloads(rawValue: 1 << 2)
    /// Large segments with congestion marks (ECN) in them.
    public static let ecn = Offloads(rawValue: 1 << 3)
    /// UDP datagrams of one size, sent or received as one (USO).
    public static let udp = Offloads(rawValue: 1 << 4)

    /// What `NetworkBackend.send` takes, be it native or in software.
    public static let transmit: Offloads = [.checksum, .tcp4, .tcp6, .ecn, .udp]
}

/// The header before each frame: struct virtio_net_hdr_v1 (Virtio 1.2 §5.1.6), 12 bytes, little-endian.
public struct VirtualNetworkHeader: Equatable, Sendable {
    public static let size = 12

    /// VIRTIO_NET_HDR_F_…
    public enum Flag {
        /// The checksum is that of the pseudo header only; the rest is to be added.
        public static let needsChecksum: UInt8 = 1
        /// Whoever delivered the frame has checked its checksums.
        public static let dataValid: UInt8 = 2
    }

    /// VIRTIO_NET_HDR_GSO_…
    public enum Segmentation {
        public static let none: UInt8 = 0
        public static let tcp4: UInt8 = 1
        public static let tcp6: UInt8 = 4
        public static let udp: UInt8 = 5
        /// May be added to both TCP ones.
        public static let ecn: UInt8 = 0x80
    }

    public var flags: UInt8 = 0
    public var segmentation: UInt8 = 0
    /// A hint, and never believed.
    public var headerLength: UInt16 = 0
    /// Payload bytes of each segment.
    public var segmentSize: UInt16 = 0
    public var checksumStart: UInt16 = 0
    /// Of the checksum's field, behind `checksumStart`.
    public var checksumOffset: UInt16 = 0
    public var bufferCount: UInt16 = 0

    public init() {}

    /// The first 12 bytes; nil when there are fewer.
    public init?(_ bytes: some RandomAccessCollection<UInt8>) {
        guard bytes.count >= VirtualNetworkHeader.size else { return nil }
        let bytes = Array(bytes.prefix(VirtualNetworkHeader.size))
        func field(_ offset: Int) -> UInt16 { UInt16(bytes[offset]) | UInt16(bytes[offset + 1]) << 8 }
        flags = bytes[0]
        segmentation = bytes[1]
        headerLength = field(2)
        segmentSize = field(4)
        checksumStart = field(6)
        checksumOffset = field(8)
        bufferCount = field(10)
    }

    public var bytes: [UInt8] {
        var result = [flags, segmentation]
        for field in [headerLength, segmentSize, checksumStart, checksumOffset, bufferCount] {
            result.append(UInt8(truncatingIfNeeded: field))
            result.append(UInt8(truncatingIfNeeded: field >> 8))
        }
        return result
    }

    /// Whether something is left to be done on the frame.
    public var asksForWork: Bool { flags & Flag.needsChecksum != 0 || segmentation != Segmentation.none }
}
