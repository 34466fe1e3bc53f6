/// Packets that the back end itself sends to the guest.
enum PacketBuilder {
    /// A UDP datagram that answers the one in `frame`.
    static func datagram(answering frame: [UInt8], _ packet: ParsedPacket, payload: [UInt8]) -> [UInt8]? {
        guard let ports = packet.ports else { return nil }
        var udp: [UInt8] = []
        udp.appendBigEndian(ports.destination)
        udp.appendBigEndian(ports.source)
        udp.appendBigEndian(UInt16(truncatingIfNeeded: 8 + payload.count))
        udp.appendBigEndian(UInt16(0))
        udp += payload
        return finished(
            frame, udp, checksumAt: 6, from: packet.destination, to: packet.source, protocolNumber: IPProtocol.udp)
    }

    /// The RST for a segment to a closed port (RFC 9293 §3.10.7.1); none for a RST.
    static func reset(answering frame: [UInt8], _ packet: ParsedPacket) -> [UInt8]? {
        guard let ports = packet.ports, let headerSize = packet.tcpHeaderSize(frame) else { return nil }
        let flags = frame[packet.transport + 13]
        guard flags & TCPFlag.rst == 0 else { return nil }
        let hasAcknowledgment = flags & TCPFlag.ack != 0
        var length = UInt32(truncatingIfNeeded: packet.end - packet.transport - headerSize)
        if flags & TCPFlag.syn != 0 { length &+= 1 }
        if flags & TCPFlag.fin != 0 { length &+= 1 }
        var tcp: [UInt8] = []
        tcp.appendBigEndian(ports.destination)
        tcp.appendBigEndian(ports.source)
        tcp.appendBigEndian(hasAcknowledgment ? frame.bigEndian32(at: packet.transport + 8) : 0)
        tcp.appendBigEndian(hasAcknowledgment ? 0 : frame.bigEndian32(at: packet.transport + 4) &+ length)
        tcp += [5 << 4, hasAcknowledgment ? TCPFlag.rst : TCPFlag.rst | TCPFlag.ack, 0, 0, 0, 0, 0, 0]
        return finished(
            frame, tcp, checksumAt: 16, from: packet.destination, to: packet.source, protocolNumber: IPProtocol.tcp)
    }

    /// "Communication administratively prohibited": ICMP type 3 code 13 (RFC 1812 §5.2.7.1), ICMPv6 type 1 code 1
    /// (RFC 4443 §3.1), from the gateway, with as much of the packet as these allow.
    static func prohibited(answering frame: [UInt8], _ packet: ParsedPacket, gateway: IPAddress) -> [UInt8]? {
        let isIPv4 = packet.isIPv4
        // The first 576 bytes of an IPv4 answer (RFC 1812 §4.3.2.3), 1280 of an IPv6 one, less the new headers.
        let quoted = frame[packet.network..<min(packet.end, packet.network + (isIPv4 ? 548 : 1232))]
        let icmp: [UInt8] = (isIPv4 ? [3, 13] : [1, 1]) + [0, 0, 0, 0, 0, 0] + quoted
        return finished(
            frame, icmp, checksumAt: 2, from: gateway, to: packet.source,
            protocolNumber: isIPv4 ? IPProtocol.icmp : IPProtocol.icmp6)
    }

    /// Adds the checksum, the IP header and the Ethernet header, back to where `frame` came from.
    private static func finished(
        _ frame: [UInt8], _ transport: [UInt8], checksumAt field: Int, from source: IPAddress,
        to destination: IPAddress,
        protocolNumber: UInt8
    ) -> [UInt8] {
        var body = transport
        var sum = InternetChecksum()
        // ICMP for IPv4 is the one without a pseudo header (RFC 792).
        if protocolNumber != IPProtocol.icmp {
            sum.addPseudoHeader(
                source: source, destination: destination, protocolNumber: protocolNumber, length: body.count)
        }
        sum.add(body[...])
        body.setBigEndian(sum.nonzeroValue, at: field)
        var result = Array(frame[6..<12]) + gatewayMAC
        switch (source, destination) {
        case (.v4(let source), .v4(let destination)):
            result.appendBigEndian(EtherType.ipv4)
            result += ipv4Header(source, destination, protocolNumber, count: body.count)
        case (.v6(let source), .v6(let destination)):
            result.appendBigEndian(EtherType.ipv6)
            result += ipv6Header(source, destination, protocolNumber, count: body.count)
        default: preconditionFailure("an answer has the family of what it answers")
        }
        return result + body
    }

    /// What libslirp's own frames come from: 52:55, then the address of the host in the virtual network.
    static let gatewayMAC: [UInt8] = [0x52, 0x55, 0x0A, 0x00, 0x02, 0x02]

    private static func ipv4Header(
        _ source: UInt32, _ destination: UInt32, _ protocolNumber: UInt8, count: Int
    ) -> [UInt8] {
        var header: [UInt8] = [0x45, 0]
        header.appendBigEndian(UInt16(truncatingIfNeeded: 20 + count))
        // No identification is needed for what may not be fragmented (RFC 6864 §4.1).
        header += [0, 0, 0x40, 0, 64, protocolNumber, 0, 0]
        header.appendBigEndian(source)
        header.appendBigEndian(destination)
        var sum = InternetChecksum()
        sum.add(header[...])
        header.setBigEndian(sum.value, at: 10)
        return header
    }

    private static func ipv6Header(
        _ source: UInt128, _ destination: UInt128, _ protocolNumber: UInt8, count: Int
    ) -> [UInt8] {
        var header: [UInt8] = [0x60, 0, 0, 0]
        header.appendBigEndian(UInt16(truncatingIfNeeded: count))
        header += [protocolNumber, 64]
        for address in [source, destination] {
            for group in 0..<4 {
                header.appendBigEndian(UInt32(truncatingIfNeeded: address >> UInt128(96 - 32 * group)))
            }
        }
        return header
    }
}
