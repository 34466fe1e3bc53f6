/// Why a frame's header asks for what cannot be done.
enum OffloadError: Error, Equatable, Sendable {
    /// The checksum's place is not in the frame.
    case checksumOutsideFrame
    /// It is not the kind of packet that the header says, or a fragment of one.
    case notSegmentable
    case unknownSegmentation(UInt8)
    /// A segment size of 0, or one so small that a frame would become very many.
    case segmentSize(UInt16)
}

/// Checksum completion and segmentation for back ends that have neither (Virtio 1.2 §5.1.6.2).
enum SoftwareOffload {
    /// A 64 KiB packet in the smallest segments that a TCP of today agrees to (RFC 9293 §3.7.1: 536; Linux: 48) are no
    /// more. Without a bound a guest could make the host build 65,000 frames of one.
    static let maximumSegments = 1366

    /// The frames that `frame` stands for; one and the same when its header asks for nothing.
    static func frames(
        of frame: consuming [UInt8], _ header: VirtualNetworkHeader
    ) throws(OffloadError) -> [[UInt8]] {
        switch header.segmentation & ~VirtualNetworkHeader.Segmentation.ecn {
        case VirtualNetworkHeader.Segmentation.none:
            if header.flags & VirtualNetworkHeader.Flag.needsChecksum != 0 {
                try completeChecksum(
                    of: &frame, start: Int(header.checksumStart), offset: Int(header.checksumOffset))
            }
            return [frame]
        case VirtualNetworkHeader.Segmentation.tcp4:
            return try segments(of: frame, header.segmentSize, IPProtocol.tcp, isIPv4: true)
        case VirtualNetworkHeader.Segmentation.tcp6:
            return try segments(of: frame, header.segmentSize, IPProtocol.tcp, isIPv4: false)
        case VirtualNetworkHeader.Segmentation.udp:
            return try segments(of: frame, header.segmentSize, IPProtocol.udp, isIPv4: nil)
        default: throw .unknownSegmentation(header.segmentation)
        }
    }

    /// The frame uncut, with the checksums of one, for a receiver that takes packets of any size; nil: it is no TCP segment.
    static func whole(_ frame: [UInt8], _ header: VirtualNetworkHeader) -> [UInt8]? {
        let kind = header.segmentation & ~VirtualNetworkHeader.Segmentation.ecn
        guard kind == VirtualNetworkHeader.Segmentation.tcp4 || kind == VirtualNetworkHeader.Segmentation.tcp6,
            header.segmentSize > 0, case .packet(let packet) = ParsedFrame(frame), !packet.isFragment,
            packet.isIPv4 == (kind == VirtualNetworkHeader.Segmentation.tcp4), packet.tcpHeaderSize(frame) != nil
        else { return nil }
        var whole = frame.count == packet.end ? frame : Array(frame[..<packet.end])
        finish(&whole, packet, index: 0, offset: 0, isLast: true)
        return whole
    }

    /// Adds everything from `start` on to the checksum at `start + offset`, which holds the pseudo header's sum.
    static func completeChecksum(of frame: inout [UInt8], start: Int, offset: Int) throws(OffloadError) {
        guard start >= ParsedFrame.ethernetHeaderSize, start + offset + 2 <= frame.count else {
            throw .checksumOutsideFrame
        }
        // The checksum covers the packet, not the padding of a short frame.
        var end = frame.count
        if case .packet(let packet) = ParsedFrame(frame), start + offset + 2 <= packet.end { end = packet.end }
        var sum = InternetChecksum()
        sum.add(frame[start..<end])
        frame.setBigEndian(sum.nonzeroValue, at: start + offset)
    }

    private static func segments(
        of frame: [UInt8], _ segmentSize: UInt16, _ protocolNumber: UInt8, isIPv4: Bool?
    ) throws(OffloadError) -> [[UInt8]] {
        guard case .packet(let packet) = ParsedFrame(frame), packet.protocolNumber == protocolNumber,
            !packet.isFragment, isIPv4 == nil || packet.isIPv4 == isIPv4
        else { throw .notSegmentable }
        let transportSize = protocolNumber == IPProtocol.udp ? 8 : packet.tcpHeaderSize(frame)
        guard let transportSize else { throw .notSegmentable }
        let headers = packet.transport + transportSize
        let payload = packet.end - headers
        let size = Int(segmentSize)
        guard size > 0, payload <= size * maximumSegments else { throw .segmentSize(segmentSize) }
        var result: [[UInt8]] = []
        var done = 0
        repeat {
            let count = min(size, payload - done)
            var segment = Array(frame[..<headers])
            segment.reserveCapacity(headers + count)
            segment.append(contentsOf: frame[headers + done..<headers + done + count])
            finish(&segment, packet, index: result.count, offset: done, isLast: done + count == payload)
            result.append(segment)
            done += count
        } while done < payload
        return result
    }

    /// Makes the copied headers those of one segment.
    private static func finish(
        _ segment: inout [UInt8], _ packet: ParsedPacket, index: Int, offset: Int, isLast: Bool
    ) {
        let network = packet.network
        let transport = packet.transport
        let length = segment.count - transport
        if packet.isIPv4 {
            segment.setBigEndian(UInt16(truncatingIfNeeded: segment.count - network), at: network + 2)
            // Each segment is a datagram of its own, with an identification of its own (RFC 6864 §4).
            let identification = segment.bigEndian16(at: network + 4) &+ UInt16(truncatingIfNeeded: index)
            segment.setBigEndian(identification, at: network + 4)
            segment.setBigEndian(UInt16(0), at: network + 10)
            var sum = InternetChecksum()
            sum.add(segment[network..<transport])
            segment.setBigEndian(sum.value, at: network + 10)
        } else {
            segment.setBigEndian(UInt16(truncatingIfNeeded: length), at: network + 4)
        }
        let field: Int
        if packet.protocolNumber == IPProtocol.tcp {
            let sequence = segment.bigEndian32(at: transport + 4) &+ UInt32(truncatingIfNeeded: offset)
            segment.setBigEndian(sequence, at: transport + 4)
            // FIN and PSH belong to the last byte, CWR to the first segment (RFC 3168 §6.1.2).
            if !isLast { segment[transport + 13] &= ~(TCPFlag.fin | TCPFlag.psh) }
            if index > 0 { segment[transport + 13] &= ~TCPFlag.cwr }
            field = transport + 16
        } else {
            segment.setBigEndian(UInt16(truncatingIfNeeded: length), at: transport + 4)
            field = transport + 6
        }
        segment.setBigEndian(UInt16(0), at: field)
        var sum = InternetChecksum()
        sum.addPseudoHeader(
            source: packet.source, destination: packet.destination, protocolNumber: packet.protocolNumber,
            length: length)
        sum.add(segment[transport...])
        let isUDP = packet.protocolNumber == IPProtocol.udp
        segment.setBigEndian(isUDP ? sum.nonzeroValue : sum.value, at: field)
    }
}
