@testable import Net

/// One TCP connection of a `TestGuest`: in order, without loss, without a clock (the virtual cable loses nothing).
final class TestConnection {
    private let guest: TestGuest
    private let peer: UInt32
    private let peerPort: UInt16
    private let port: UInt16
    private var sequence: UInt32 = 1000
    private var acknowledged: UInt32 = 0
    private(set) var isFinished = false
    private(set) var wasReset = false

    private init(_ guest: TestGuest, peer: UInt32, peerPort: UInt16, port: UInt16) {
        self.guest = guest
        self.peer = peer
        self.peerPort = peerPort
        self.port = port
    }

    /// Nil when there is no answer; `wasReset` when there is a RST.
    static func connect(_ guest: TestGuest, to peer: UInt32, port: UInt16, from source: UInt16 = 50_000)
        -> TestConnection?
    {
        let connection = TestConnection(guest, peer: peer, peerPort: port, port: source)
        connection.transmit(TCPFlag.syn)
        connection.sequence &+= 1
        guard let (flags, sequence, _) = connection.segment() else { return nil }
        connection.wasReset = flags & TCPFlag.rst != 0
        guard !connection.wasReset else { return connection }
        guard flags & (TCPFlag.syn | TCPFlag.ack) == TCPFlag.syn | TCPFlag.ack else { return nil }
        connection.acknowledged = sequence &+ 1
        connection.transmit(TCPFlag.ack)
        return connection
    }

    /// Waits for a SYN to `port`.
    static func accept(_ guest: TestGuest, port: UInt16) -> TestConnection? {
        let found = guest.packet { packet, frame in
            packet.protocolNumber == IPProtocol.tcp && packet.ports?.destination == port
                && frame[packet.transport + 13] & TCPFlag.syn != 0
        }
        guard let (frame, packet) = found, case .v4(let peer) = packet.source, let ports = packet.ports else {
            return nil
        }
        let connection = TestConnection(guest, peer: peer, peerPort: ports.source, port: port)
        connection.acknowledged = frame.bigEndian32(at: packet.transport + 4) &+ 1
        connection.transmit(TCPFlag.syn | TCPFlag.ack)
        connection.sequence &+= 1
        return connection
    }

    /// At most a segment; the peer's window is larger than that.
    func send(_ payload: [UInt8]) {
        transmit(TCPFlag.ack | TCPFlag.psh, payload)
        sequence &+= UInt32(payload.count)
    }

    /// One frame with a header that asks for its segmentation.
    func sendLarge(_ payload: [UInt8], segmentSize: UInt16) {
        var header = VirtualNetworkHeader()
        header.flags = VirtualNetworkHeader.Flag.needsChecksum
        header.segmentation = VirtualNetworkHeader.Segmentation.tcp4
        header.segmentSize = segmentSize
        header.checksumStart = 34
        header.checksumOffset = 16
        guest.send(frame(TCPFlag.ack | TCPFlag.psh, payload, isPartial: true), header)
        sequence &+= UInt32(payload.count)
    }

    func receive(_ count: Int) -> [UInt8] {
        var result: [UInt8] = []
        while result.count < count, !isFinished, !wasReset, let (flags, sequence, payload) = segment() {
            if flags & TCPFlag.rst != 0 { wasReset = true }
            guard sequence == acknowledged else { continue }
            result += payload
            acknowledged &+= UInt32(payload.count)
            if flags & TCPFlag.fin != 0 {
                acknowledged &+= 1
                isFinished = true
            }
            if !payload.isEmpty || isFinished { transmit(TCPFlag.ack) }
        }
        return result
    }

    func finish() {
        transmit(TCPFlag.ack | TCPFlag.fin)
        sequence &+= 1
    }

    private func transmit(_ flags: UInt8, _ payload: [UInt8] = []) { guest.send(frame(flags, payload)) }

    private func frame(_ flags: UInt8, _ payload: [UInt8], isPartial: Bool = false) -> [UInt8] {
        let body =
            big(port) + big(peerPort) + big(sequence) + big(acknowledged) + [0x50, flags] + big(UInt16.max)
            + [0, 0, 0, 0] + payload
        let complete =
            isPartial
            ? TestGuest.withPseudoChecksum(body, at: 16, 6, from: guest.address, to: peer)
            : TestGuest.withChecksum(body, at: 16, 6, from: guest.address, to: peer)
        return guest.ipv4(6, to: peer, complete)
    }

    private func segment() -> (flags: UInt8, sequence: UInt32, payload: [UInt8])? {
        let found = guest.packet { packet, _ in
            packet.protocolNumber == IPProtocol.tcp && packet.ports?.destination == self.port
                && packet.ports?.source == self.peerPort
        }
        guard let (frame, packet) = found, let size = packet.tcpHeaderSize(frame) else { return nil }
        return (
            frame[packet.transport + 13], frame.bigEndian32(at: packet.transport + 4),
            Array(frame[packet.transport + size..<packet.end])
        )
    }
}
