/// Makes large segments for a guest that takes them (VIRTIO_NET_F_GUEST_TSO4) out of those that a stack has cut: what a
/// network card's large receive offload does. Only segments that follow each other without a gap and differ in nothing
/// but sequence number, identification, checksums and, the last one, PSH are joined, so that cutting the result again
/// gives what came.
struct SegmentCoalescer {
    private(set) var header = VirtualNetworkHeader()
    private(set) var frame: [UInt8] = []
    private var segmentSize = 0
    private var nextSequence: UInt32 = 0
    /// A short segment or one with PSH ends it.
    private var isClosed = false

    private static let network = ParsedFrame.ethernetHeaderSize
    private static let transport = network + 20
    private static let headers = transport + 20

    /// Begins with `frame`, whatever it is.
    init(_ frame: [UInt8], header: VirtualNetworkHeader) {
        self.header = header
        self.frame = frame
        segmentSize = SegmentCoalescer.payload(frame) ?? 0
        isClosed = segmentSize == 0 || SegmentCoalescer.pushes(frame)
        if segmentSize > 0 {
            nextSequence = frame.bigEndian32(at: SegmentCoalescer.transport + 4) &+ UInt32(segmentSize)
        }
    }

    /// Adds the next frame; false: it does not belong to this one.
    mutating func append(_ next: [UInt8]) -> Bool {
        guard !isClosed, let payload = SegmentCoalescer.payload(next), payload <= segmentSize,
            frame.count + payload <= 65_535 + ParsedFrame.ethernetHeaderSize,
            next.bigEndian32(at: SegmentCoalescer.transport + 4) == nextSequence, hasSameHeaders(next)
        else { return false }
        frame.append(contentsOf: next[SegmentCoalescer.headers...])
        nextSequence &+= UInt32(payload)
        if SegmentCoalescer.pushes(next) { frame[SegmentCoalescer.transport + 13] |= TCPFlag.psh }
        isClosed = payload < segmentSize || SegmentCoalescer.pushes(next)
        return true
    }

    /// The frame as the guest gets it: several segments have the length of all, and a checksum to be completed.
    mutating func finish() {
        let network = SegmentCoalescer.network
        let transport = SegmentCoalescer.transport
        guard segmentSize > 0, frame.count > SegmentCoalescer.headers + segmentSize else { return }
        frame.setBigEndian(UInt16(truncatingIfNeeded: frame.count - network), at: network + 2)
        frame.setBigEndian(UInt16(0), at: network + 10)
        var sum = InternetChecksum()
        sum.add(frame[network..<transport])
        frame.setBigEndian(sum.value, at: network + 10)
        var pseudo = InternetChecksum()
        pseudo.addPseudoHeader(
            source: .v4(frame.bigEndian32(at: network + 12)), destination: .v4(frame.bigEndian32(at: network + 16)),
            protocolNumber: IPProtocol.tcp, length: frame.count - transport)
        frame.setBigEndian(~pseudo.value, at: transport + 16)
        header = VirtualNetworkHeader()
        header.flags = VirtualNetworkHeader.Flag.needsChecksum
        header.segmentation = VirtualNetworkHeader.Segmentation.tcp4
        header.headerLength = UInt16(SegmentCoalescer.headers)
        header.segmentSize = UInt16(truncatingIfNeeded: segmentSize)
        header.checksumStart = UInt16(transport)
        header.checksumOffset = 16
    }

    /// How much a plain segment carries: IPv4 and TCP without options, no flags but ACK and PSH, no padding. Nil for all
    /// else.
    private static func payload(_ frame: [UInt8]) -> Int? {
        guard frame.count > headers, frame.bigEndian16(at: 12) == EtherType.ipv4, frame[network] == 0x45,
            Int(frame.bigEndian16(at: network + 2)) == frame.count - network,
            frame.bigEndian16(at: network + 6) & 0xBFFF == 0, frame[network + 9] == IPProtocol.tcp,
            frame[transport + 12] >> 4 == 5, frame[transport + 13] & ~TCPFlag.psh == TCPFlag.ack
        else { return nil }
        return frame.count - headers
    }

    private static func pushes(_ frame: [UInt8]) -> Bool { frame[transport + 13] & TCPFlag.psh != 0 }

    /// Addresses of both layers, type of service and life time, ports, acknowledgement and window.
    private func hasSameHeaders(_ other: [UInt8]) -> Bool {
        let network = SegmentCoalescer.network
        let transport = SegmentCoalescer.transport
        let same = [
            0..<network + 2, network + 6..<network + 10, network + 12..<transport + 4, transport + 8..<transport + 13,
            transport + 14..<transport + 16, transport + 18..<transport + 20,
        ]
        return same.allSatisfy { frame[$0] == other[$0] }
    }
}
