import Glibc
import Host
import Synchronization

@testable import Net

/// A guest by hand: answers ARP, and speaks as much DHCP, DNS, UDP, TCP and ICMP as a test needs. Its packets are built
/// here, from the RFCs, and not by the code under test.
final class TestGuest: FrameReceiver, Sendable {
    private struct State {
        var frames: [[UInt8]] = []
        var headers: [VirtualNetworkHeader] = []
        var address: UInt32 = 0
        var peerMAC = TestGuest.broadcast
        /// So many frames may wait before `receive` says that there is no room.
        var room = Int.max
        var isRefusing = false
        var sendWakeups = 0
        var refusals = 0
        /// Each exchange of DHCP has its own, so that a late answer to another one is no answer.
        var transaction: UInt32 = 0x4D61_0000
    }

    static let mac: [UInt8] = [0x02, 0, 0, 0, 0, 0x15]
    static let broadcast = [UInt8](repeating: 0xFF, count: 6)
    private let state = Mutex(State())
    let backend: any NetworkBackend

    init(_ configuration: NetworkConfiguration, log: @escaping NetworkLog = { _ in }) throws {
        backend = try configuration.open(log: log)
        try backend.start(self)
    }

    init(_ user: UserConfiguration, log: @escaping NetworkLog = { _ in }) throws {
        backend = try NetworkConfiguration(.user(user)).open(log: log)
        try backend.start(self)
    }

    deinit { backend.close() }

    var address: UInt32 {
        get { state.withLock { $0.address } }
        set { state.withLock { $0.address = newValue } }
    }

    /// Where frames go to; libslirp does not care.
    func setPeerMAC(_ mac: [UInt8]) { state.withLock { $0.peerMAC = mac } }
    func setRoom(_ room: Int) { state.withLock { $0.room = room } }
    var refusals: Int { state.withLock { $0.refusals } }
    var sendWakeups: Int { state.withLock { $0.sendWakeups } }
    var waiting: Int { state.withLock { $0.frames.count } }

    // MARK: FrameReceiver

    func receive(_ header: VirtualNetworkHeader, _ frame: borrowing RawSpan) -> Bool {
        let bytes = frame.withUnsafeBytes { Array($0) }
        if let reply = arpReply(bytes) {
            _ = backend.send(reply)
            return true
        }
        return state.withLock { state in
            guard state.frames.count < state.room else {
                state.isRefusing = true
                state.refusals += 1
                return false
            }
            state.frames.append(bytes)
            state.headers.append(header)
            return true
        }
    }

    func canSend() { state.withLock { $0.sendWakeups += 1 } }

    private func arpReply(_ frame: [UInt8]) -> [UInt8]? {
        let address = address
        guard frame.count >= 42, frame[12] == 8, frame[13] == 6, frame[21] == 1, frame.bigEndian32(at: 38) == address,
            address != 0
        else { return nil }
        return Array(frame[6..<12]) + TestGuest.mac + [8, 6, 0, 1, 8, 0, 6, 4, 0, 2] + TestGuest.mac + big(address)
            + Array(frame[22..<32])
    }

    // MARK: Frames

    /// The first frame for which `wanted` is true; those before it are thrown away. Nil after the time.
    func next(seconds: Double = 60, _ wanted: ([UInt8]) -> Bool = { _ in true }) -> [UInt8]? {
        nextWithHeader(seconds: seconds, wanted)?.frame
    }

    func nextWithHeader(
        seconds: Double = 60, _ wanted: ([UInt8]) -> Bool = { _ in true }
    ) -> (header: VirtualNetworkHeader, frame: [UInt8])? {
        let end = HostClock.monotonicNanoseconds + UInt64(seconds * 1e9)
        while HostClock.monotonicNanoseconds < end {
            let (found, mustResume) = state.withLock { state -> ((VirtualNetworkHeader, [UInt8])?, Bool) in
                guard !state.frames.isEmpty else { return (nil, false) }
                let frame = state.frames.removeFirst()
                let header = state.headers.removeFirst()
                let mustResume = state.isRefusing
                state.isRefusing = false
                return ((header, frame), mustResume)
            }
            if mustResume { backend.resumeReceiving() }
            if let found {
                if wanted(found.1) { return found }
            } else {
                HostClock.sleep(nanoseconds: 1_000_000)
            }
        }
        return nil
    }

    func packet(seconds: Double = 60, _ wanted: (ParsedPacket, [UInt8]) -> Bool) -> ([UInt8], ParsedPacket)? {
        var result: ParsedPacket?
        let frame = next(seconds: seconds) { frame in
            guard case .packet(let packet) = ParsedFrame(frame), wanted(packet, frame) else { return false }
            result = packet
            return true
        }
        guard let frame, let result else { return nil }
        return (frame, result)
    }

    /// Sends, waiting where the back end is full.
    func send(_ frame: [UInt8], _ header: VirtualNetworkHeader = VirtualNetworkHeader()) {
        while true {
            let before = sendWakeups
            guard backend.send(frame, header: header) == .full else { return }
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while sendWakeups == before, HostClock.monotonicNanoseconds < end { HostClock.sleep(nanoseconds: 100_000) }
        }
    }

    func ipv4(_ protocolNumber: UInt8, to destination: UInt32, _ body: [UInt8], fragment: UInt16 = 0) -> [UInt8] {
        let peerMAC = state.withLock { $0.peerMAC }
        return peerMAC
            + TestGuest.ipv4(protocolNumber, from: address, to: destination, body, fragment: fragment).dropFirst(6)
    }

    static func ipv4(
        _ protocolNumber: UInt8, from source: UInt32, to destination: UInt32, _ body: [UInt8], fragment: UInt16 = 0
    ) -> [UInt8] {
        var header: [UInt8] = [0x45, 0] + big(UInt16(20 + body.count)) + [0x12, 0x34] + big(fragment)
        header += [64, protocolNumber, 0, 0] + big(source) + big(destination)
        let sum = onesComplement(header)
        header[10] = UInt8(sum >> 8)
        header[11] = UInt8(sum & 0xFF)
        return broadcast + mac + [8, 0] + header + body
    }

    /// TCP or UDP with its checksum at `field`.
    static func withChecksum(
        _ body: [UInt8], at field: Int, _ protocolNumber: UInt8, from source: UInt32, to destination: UInt32
    ) -> [UInt8] {
        var body = body
        let pseudo = big(source) + big(destination) + [0, protocolNumber] + big(UInt16(body.count))
        let sum = onesComplement(pseudo + body)
        body[field] = UInt8(sum >> 8)
        body[field + 1] = UInt8(sum & 0xFF)
        return body
    }

    /// As a guest with checksum offload leaves it: the sum of the pseudo header alone.
    static func withPseudoChecksum(
        _ body: [UInt8], at field: Int, _ protocolNumber: UInt8, from source: UInt32, to destination: UInt32
    ) -> [UInt8] {
        var body = body
        let sum = ~onesComplement(big(source) + big(destination) + [0, protocolNumber] + big(UInt16(body.count)))
        body[field] = UInt8(sum >> 8)
        body[field + 1] = UInt8(sum & 0xFF)
        return body
    }

    // MARK: UDP, ICMP, DHCP, DNS

    func udp(to destination: UInt32, port: UInt16, from source: UInt16 = 40_000, _ payload: [UInt8]) -> [UInt8] {
        let body = big(source) + big(port) + big(UInt16(8 + payload.count)) + [0, 0] + payload
        return ipv4(17, to: destination, TestGuest.withChecksum(body, at: 6, 17, from: address, to: destination))
    }

    /// The payload of the next datagram for one of our ports.
    func datagram(to port: UInt16, seconds: Double = 60) -> (payload: [UInt8], packet: ParsedPacket)? {
        packet(seconds: seconds) { packet, _ in packet.protocolNumber == 17 && packet.ports?.destination == port }
            .map { frame, packet in (Array(frame[(packet.transport + 8)..<packet.end]), packet) }
    }

    func ping(_ destination: UInt32) {
        var body: [UInt8] = [8, 0, 0, 0, 0, 1, 0, 1] + Array("abcdefgh".utf8)
        let sum = onesComplement(body)
        body[2] = UInt8(sum >> 8)
        body[3] = UInt8(sum & 0xFF)
        send(ipv4(1, to: destination, body))
    }

    /// Type and code of the next ICMP packet.
    func icmp(seconds: Double = 60) -> (type: UInt8, code: UInt8)? {
        packet(seconds: seconds) { packet, _ in packet.protocolNumber == 1 }
            .map { frame, packet in (frame[packet.transport], frame[packet.transport + 1]) }
    }

    struct Lease: Equatable {
        var address: UInt32
        var router: UInt32?
        var nameserver: UInt32?
    }

    /// DISCOVER, OFFER, REQUEST, ACK (RFC 2131 §3.1), for the card's own address or another client's.
    func lease(for client: [UInt8] = TestGuest.mac, seconds: Double = 60) -> Lease? {
        guard let offer = dhcp(1, client, [], seconds), offer.options[53] == [2] else { return nil }
        let server = offer.options[54] ?? []
        guard let done = dhcp(3, client, [50, 4] + big(offer.address) + [54, 4] + server, seconds),
            done.options[53] == [5]
        else { return nil }
        address = done.address
        func value(_ option: UInt8) -> UInt32? {
            done.options[option].flatMap { $0.count >= 4 ? $0.bigEndian32(at: 0) : nil }
        }
        return Lease(address: done.address, router: value(3), nameserver: value(6))
    }

    private func dhcp(
        _ type: UInt8, _ client: [UInt8], _ options: [UInt8], _ seconds: Double
    ) -> (address: UInt32, options: [UInt8: [UInt8]])? {
        let transaction = state.withLock { state in
            state.transaction += 1
            return big(state.transaction)
        }
        var message: [UInt8] = [1, 1, 6, 0] + transaction + [UInt8](repeating: 0, count: 20) + client
        message += [UInt8](repeating: 0, count: 10 + 64 + 128) + [0x63, 0x82, 0x53, 0x63, 53, 1, type]
        message += options + [55, 2, 3, 6, 255]
        let body = big(UInt16(68)) + big(UInt16(67)) + big(UInt16(8 + message.count)) + [0, 0] + message
        send(
            TestGuest.ipv4(
                17, from: 0, to: .max, TestGuest.withChecksum(body, at: 6, 17, from: 0, to: .max)))
        let answer = packet(seconds: seconds) { packet, frame in
            packet.protocolNumber == 17 && packet.ports?.destination == 68
                && frame[(packet.transport + 8)..<packet.end].dropFirst(4).prefix(4) == transaction[...]
        }
        guard let (frame, packet) = answer, packet.end - packet.transport > 248 else { return nil }
        let reply = Array(frame[(packet.transport + 8)..<packet.end])
        var found: [UInt8: [UInt8]] = [:]
        var offset = 240
        while offset + 1 < reply.count, reply[offset] != 255 {
            let end = offset + 2 + Int(reply[offset + 1])
            guard end <= reply.count else { return nil }
            found[reply[offset]] = Array(reply[offset + 2..<end])
            offset = end
        }
        return (reply.bigEndian32(at: 16), found)
    }

    static func query(_ name: String, type: UInt16 = 1) -> [UInt8] {
        var message: [UInt8] = [0xAB, 0xCD, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
        for label in name.split(separator: ".") { message += [UInt8(label.utf8.count)] + Array(label.utf8) }
        return message + [0] + big(type) + [0, 1]
    }

    /// The response code and the last four bytes of the answer.
    func resolve(_ name: String, type: UInt16 = 1) -> (code: UInt8, answers: UInt16, address: UInt32)? {
        send(udp(to: 0x0A00_0203, port: 53, from: 40_053, TestGuest.query(name, type: type)))
        guard let (reply, packet) = datagram(to: 40_053), packet.source == .v4(0x0A00_0203), reply.count >= 16,
            reply[0] == 0xAB, reply[1] == 0xCD, reply[2] & 0x80 != 0
        else { return nil }
        return (reply[3] & 0xF, reply.bigEndian16(at: 6), reply.bigEndian32(at: reply.count - 4))
    }
}

func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xFF)] }
func big(_ value: UInt32) -> [UInt8] { big(UInt16(value >> 16)) + big(UInt16(value & 0xFFFF)) }

/// RFC 1071, the slow way.
func onesComplement(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for (index, byte) in bytes.enumerated() {
        sum += index.isMultiple(of: 2) ? UInt32(byte) << 8 : UInt32(byte)
        if sum > 0xFFFF { sum -= 0xFFFF }
    }
    return ~UInt16(sum)
}
