extension Array where Element == UInt8 {
    /// Network order; the caller has checked the bounds.
    func bigEndian16(at offset: Int) -> UInt16 { UInt16(self[offset]) << 8 | UInt16(self[offset + 1]) }

    func bigEndian32(at offset: Int) -> UInt32 {
        UInt32(bigEndian16(at: offset)) << 16 | UInt32(bigEndian16(at: offset + 2))
    }

    mutating func setBigEndian(_ value: UInt16, at offset: Int) {
        self[offset] = UInt8(truncatingIfNeeded: value >> 8)
        self[offset + 1] = UInt8(truncatingIfNeeded: value)
    }

    mutating func setBigEndian(_ value: UInt32, at offset: Int) {
        setBigEndian(UInt16(truncatingIfNeeded: value >> 16), at: offset)
        setBigEndian(UInt16(truncatingIfNeeded: value), at: offset + 2)
    }

    mutating func appendBigEndian(_ value: UInt16) {
        append(UInt8(truncatingIfNeeded: value >> 8))
        append(UInt8(truncatingIfNeeded: value))
    }

    mutating func appendBigEndian(_ value: UInt32) {
        appendBigEndian(UInt16(truncatingIfNeeded: value >> 16))
        appendBigEndian(UInt16(truncatingIfNeeded: value))
    }
}

/// Numbers of IANA's registers.
enum EtherType {
    static let ipv4: UInt16 = 0x0800
    static let arp: UInt16 = 0x0806
    static let ipv6: UInt16 = 0x86DD
}

enum IPProtocol {
    static let icmp: UInt8 = 1
    static let tcp: UInt8 = 6
    static let udp: UInt8 = 17
    static let icmp6: UInt8 = 58
}

enum TCPFlag {
    static let fin: UInt8 = 0x01
    static let syn: UInt8 = 0x02
    static let rst: UInt8 = 0x04
    static let psh: UInt8 = 0x08
    static let ack: UInt8 = 0x10
    static let cwr: UInt8 = 0x80
}

/// What a frame is, as far as it says so without contradiction. Whatever is here lies inside of the frame.
enum ParsedFrame: Equatable {
    case arp
    case packet(ParsedPacket)
    case other(etherType: UInt16)
    /// Too short for what it says it is.
    case malformed

    static let ethernetHeaderSize = 14

    init(_ frame: [UInt8]) {
        guard frame.count >= ParsedFrame.ethernetHeaderSize else {
            self = .malformed
            return
        }
        switch frame.bigEndian16(at: 12) {
        case EtherType.arp:
            // RFC 826 with Ethernet and IPv4: 28 bytes.
            self = frame.count >= ParsedFrame.ethernetHeaderSize + 28 ? .arp : .malformed
        case EtherType.ipv4: self = ParsedPacket(ipv4: frame).map { .packet($0) } ?? .malformed
        case EtherType.ipv6: self = ParsedPacket(ipv6: frame).map { .packet($0) } ?? .malformed
        case let etherType: self = .other(etherType: etherType)
        }
    }
}

/// An IP packet in a frame.
struct ParsedPacket: Equatable {
    var source: IPAddress
    var destination: IPAddress
    var protocolNumber: UInt8
    /// Where the transport's header begins.
    var transport: Int
    /// Where the packet ends; what follows in the frame is padding.
    var end: Int
    /// A fragment, the first one included.
    var isFragment: Bool
    /// The offset of a fragment that is not the first: it has no transport header.
    var isLaterFragment: Bool
    /// Of TCP and UDP, where their header is whole.
    var ports: (source: UInt16, destination: UInt16)?

    let network = ParsedFrame.ethernetHeaderSize

    static func == (left: ParsedPacket, right: ParsedPacket) -> Bool {
        left.source == right.source && left.destination == right.destination
            && left.protocolNumber == right.protocolNumber && left.transport == right.transport && left.end == right.end
            && left.isFragment == right.isFragment && left.isLaterFragment == right.isLaterFragment
            && left.ports?.source == right.ports?.source && left.ports?.destination == right.ports?.destination
    }

    /// RFC 791 §3.1.
    fileprivate init?(ipv4 frame: [UInt8]) {
        let network = ParsedFrame.ethernetHeaderSize
        guard frame.count >= network + 20, frame[network] >> 4 == 4 else { return nil }
        let headerSize = Int(frame[network] & 0xF) * 4
        let length = Int(frame.bigEndian16(at: network + 2))
        guard headerSize >= 20, length >= headerSize, frame.count >= network + length else { return nil }
        let fragment = frame.bigEndian16(at: network + 6)
        source = .v4(frame.bigEndian32(at: network + 12))
        destination = .v4(frame.bigEndian32(at: network + 16))
        protocolNumber = frame[network + 9]
        transport = network + headerSize
        end = network + length
        // More fragments, an offset, or the reserved bit: all but "do not fragment", as libslirp sees it.
        isFragment = fragment & 0xBFFF != 0
        isLaterFragment = fragment & 0x1FFF != 0
        guard readTransport(frame) else { return nil }
    }

    /// RFC 8200 §3. Extension headers are not followed: they are a protocol like any other that is not TCP or UDP.
    fileprivate init?(ipv6 frame: [UInt8]) {
        let network = ParsedFrame.ethernetHeaderSize
        guard frame.count >= network + 40, frame[network] >> 4 == 6 else { return nil }
        let length = Int(frame.bigEndian16(at: network + 4))
        guard frame.count >= network + 40 + length else { return nil }
        func address(_ offset: Int) -> UInt128 {
            (0..<4).reduce(0) { $0 << 32 | UInt128(frame.bigEndian32(at: offset + 4 * $1)) }
        }
        source = .v6(address(network + 8))
        destination = .v6(address(network + 24))
        protocolNumber = frame[network + 6]
        transport = network + 40
        end = transport + length
        isFragment = false
        isLaterFragment = false
        guard readTransport(frame) else { return nil }
    }

    /// False when the packet is too short for its transport's header.
    private mutating func readTransport(_ frame: [UInt8]) -> Bool {
        ports = nil
        guard !isLaterFragment else { return true }
        let size: Int
        switch protocolNumber {
        case IPProtocol.tcp: size = 20
        case IPProtocol.udp: size = 8
        case IPProtocol.icmp, IPProtocol.icmp6: size = 8
        default: return true
        }
        // The header of a first fragment may be cut; then it is not whole, and not for us.
        guard end - transport >= size else { return false }
        if protocolNumber == IPProtocol.tcp || protocolNumber == IPProtocol.udp {
            ports = (frame.bigEndian16(at: transport), frame.bigEndian16(at: transport + 2))
        }
        return true
    }

    var isIPv4: Bool {
        if case .v4 = source { return true }
        return false
    }

    /// The TCP header's length, where it lies in the packet (RFC 9293 §3.1).
    func tcpHeaderSize(_ frame: [UInt8]) -> Int? {
        guard protocolNumber == IPProtocol.tcp, ports != nil else { return nil }
        let size = Int(frame[transport + 12] >> 4) * 4
        return size >= 20 && end - transport >= size ? size : nil
    }
}
