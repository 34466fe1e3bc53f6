/// Puts the guest's IPv4 fragments together (RFC 791 §3.2), so that the policy sees ports, and libslirp no fragments:
/// the reassembly of 4.7 follows pointers out of packets (found by FuzzTests).
struct FragmentAssembler {
    private struct Key: Hashable {
        let source: IPAddress
        let destination: IPAddress
        let protocolNumber: UInt8
        let identification: UInt16
    }

    private struct Datagram {
        /// Ethernet and IP header of the first fragment.
        var headers: [UInt8]?
        var payload: [UInt8] = []
        /// What is there, in order and without overlap.
        var pieces: [Range<Int>] = []
        /// Known from the last fragment.
        var size: Int?
        var deadline: UInt64
    }

    enum Outcome: Equatable {
        case incomplete
        case complete([UInt8])
        /// Overlaps or contradicts another one: nothing of the datagram is kept (RFC 1858 §4, RFC 5722 §4).
        case invalid
    }

    /// Bounds what a guest can make the host remember: 64 times 64 KiB.
    private static let limit = 64
    /// As long as Linux waits (ipfrag_time).
    private static let patience: UInt64 = 30_000_000_000

    private var datagrams: [Key: Datagram] = [:]

    var count: Int { datagrams.count }

    mutating func add(_ frame: [UInt8], _ packet: ParsedPacket, nowNanoseconds now: UInt64) -> Outcome {
        let key = Key(
            source: packet.source, destination: packet.destination, protocolNumber: packet.protocolNumber,
            identification: frame.bigEndian16(at: packet.network + 4))
        makeRoom(now)
        var datagram = datagrams.removeValue(forKey: key) ?? Datagram(deadline: now &+ FragmentAssembler.patience)
        guard FragmentAssembler.insert(frame, packet, into: &datagram) else { return .invalid }
        if let whole = FragmentAssembler.assemble(datagram) { return .complete(whole) }
        datagrams[key] = datagram
        return .incomplete
    }

    private mutating func makeRoom(_ now: UInt64) {
        guard !datagrams.isEmpty else { return }
        for (key, datagram) in datagrams where datagram.deadline <= now { datagrams[key] = nil }
        guard datagrams.count >= FragmentAssembler.limit else { return }
        if let oldest = datagrams.min(by: { $0.value.deadline < $1.value.deadline }) { datagrams[oldest.key] = nil }
    }

    /// False when the fragment is impossible.
    private static func insert(_ frame: [UInt8], _ packet: ParsedPacket, into datagram: inout Datagram) -> Bool {
        let field = frame.bigEndian16(at: packet.network + 6)
        let start = Int(field & 0x1FFF) * 8
        let piece = start..<start + packet.end - packet.transport
        let isLast = field & 0x2000 == 0
        guard !piece.isEmpty, isLast || piece.count.isMultiple(of: 8), piece.upperBound <= 65_535 - 20,
            piece.upperBound <= datagram.size ?? .max, !datagram.pieces.contains(where: { $0.overlaps(piece) })
        else { return false }
        if isLast {
            guard datagram.size == nil, piece.upperBound >= datagram.pieces.last?.upperBound ?? 0 else { return false }
            datagram.size = piece.upperBound
        }
        if start == 0 { datagram.headers = Array(frame[..<packet.transport]) }
        if datagram.payload.count < piece.upperBound {
            datagram.payload.append(contentsOf: repeatElement(0, count: piece.upperBound - datagram.payload.count))
        }
        datagram.payload.replaceSubrange(piece, with: frame[packet.transport..<packet.end])
        let place = datagram.pieces.firstIndex { $0.lowerBound > piece.lowerBound } ?? datagram.pieces.count
        datagram.pieces.insert(piece, at: place)
        return true
    }

    /// The datagram as one frame, when nothing is missing and it is not too long with its options.
    private static func assemble(_ datagram: Datagram) -> [UInt8]? {
        guard let size = datagram.size, var frame = datagram.headers,
            datagram.pieces.reduce(0, { $0 + $1.count }) == size
        else { return nil }
        let network = ParsedFrame.ethernetHeaderSize
        let transport = frame.count
        guard let length = UInt16(exactly: transport - network + size) else { return nil }
        frame.setBigEndian(length, at: network + 2)
        frame.setBigEndian(UInt16(0), at: network + 6)
        frame.setBigEndian(UInt16(0), at: network + 10)
        var sum = InternetChecksum()
        sum.add(frame[network..<transport])
        frame.setBigEndian(sum.value, at: network + 10)
        return frame + datagram.payload
    }
}
