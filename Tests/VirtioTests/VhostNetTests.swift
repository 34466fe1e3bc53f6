import DeviceModel
import Fuzzing
import GuestMemory
import Host
import HostNetwork
import Testing
import X86

@testable import Net
@testable import Virtio

private let kernel: UInt32 = 0x0A09_0001
private let guest: UInt32 = 0x0A09_0002

/// A card on a tap in a network namespace of its own, given to the kernel; behind it the kernel's own stack, 10.9.0.1.
private final class VhostPeer: VhostCard {
    let socket: LoopbackSocket

    /// What has to be opened inside of the namespace.
    private struct Parts: Sendable {
        let port: NetworkPort
        let socket: LoopbackSocket
    }

    init(style: DriverStyle = DriverStyle(), features: UInt64 = NetFeature.mergeableBuffers) throws {
        let parts = try inNewNetwork {
            let tap = TapConfiguration(.name("mt0"), vhost: .required)
            let port = try NetworkPort(try NetworkConfiguration(.tap(tap)).open { _ in })
            let set = shell(
                "ip link set mt0 address 02:00:00:00:09:01 && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up "
                    + "&& ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:15 dev mt0 nud permanent")
            precondition(set.status == 0, set.output)
            return Parts(port: port, socket: LoopbackSocket(isUDP: true, address: kernel))
        }
        let made = try #require(parts)
        socket = made.socket
        try super.init(made.port, style: style)
        try start(features)
    }

    // MARK: Datagrams

    private static func big(_ value: UInt32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) }
    }

    private static func big(_ value: Int) -> [UInt8] { Array(big(UInt32(value)).suffix(2)) }

    static func payload(_ number: Int) -> [UInt8] {
        let rest = [UInt8](repeating: UInt8(number & 255), count: number &* 397 % 1400)
        return Array("martlet".utf8) + big(UInt32(number)) + rest
    }

    /// A datagram as the guest sends it (RFC 791, RFC 768), without the checksum that UDP may leave out.
    private func frame(_ payload: [UInt8]) -> [UInt8] {
        let udp = Self.big(7) + Self.big(Int(socket.port)) + Self.big(8 + payload.count) + [0, 0] + payload
        var header: [UInt8] = [0x45, 0] + Self.big(20 + udp.count) + [0, 0, 0x40, 0, 64, 17, 0, 0]
        header += Self.big(guest) + Self.big(kernel)
        var sum = stride(from: 0, to: 20, by: 2).reduce(0) { $0 + Int(header[$1]) << 8 + Int(header[$1 + 1]) }
        while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
        header.replaceSubrange(10..<12, with: Self.big(~sum & 0xFFFF))
        return [2, 0, 0, 0, 9, 1] + Self.mac.bytes + [8, 0] + header + udp
    }

    /// False: the ring has no room.
    func sendDatagram(_ number: Int) throws -> Bool { try send(frame(Self.payload(number))) }

    /// From the kernel's stack to the guest.
    func answer(_ number: Int) -> Bool { socket.sendDatagram(Self.payload(number), to: guest, port: 7) }

    /// The payloads of what the guest got of those.
    func payloads() throws -> [[UInt8]] {
        try received().compactMap { frame in
            guard frame.count > 42, frame[12] == 8, frame[13] == 0, frame[23] == 17 else { return nil }
            let payload = Array(frame[42..<max(42, min(frame.count, 34 + Int(frame[38]) << 8 + Int(frame[39])))])
            return payload.starts(with: Array("martlet".utf8)) ? payload : nil
        }
    }

    override func expectTraffic(_ number: Int, _ location: SourceLocation = #_sourceLocation) throws {
        try refill(1526)
        #expect(try sendDatagram(number), sourceLocation: location)
        #expect(socket.read(upTo: 2000) == Self.payload(number), sourceLocation: location)
        #expect(answer(number + 1), sourceLocation: location)
        // Behind what was under way, if anything was.
        let comes = try eventually { try payloads().contains(Self.payload(number + 1)) ? true : nil }
        #expect(comes == true, sourceLocation: location)
    }
}

/// The kernel itself. Needs nothing but root, /dev/net/tun, /dev/vhost-net and ip(8).
@Suite(
    "vhost-net of the host's kernel", .serialized,
    .enabled(
        if: canMakeNetworks && exists(VhostNet.path),
        "needs /dev/vhost-net (modprobe vhost_net), the right to make network namespaces, /dev/net/tun and ip(8)"))
struct VhostNetTests {
    private static let styles = DriverStyle.all.filter { !$0.isPacked && !$0.isInOrder }

    @Test("What the kernel offers")
    func features() throws {
        let device = try VhostNet()
        try device.setOwner()
        let wanted = VirtioFeature.version1 | VirtioFeature.eventIndex | VirtioFeature.indirectDescriptors
        #expect(try device.features() & wanted == wanted)
        #expect(try device.features() & NetFeature.mergeableBuffers != 0)
    }

    @Test("Datagrams cross both ways", arguments: styles, [true, false])
    func traffic(style: DriverStyle, merges: Bool) throws {
        let peer = try VhostPeer(style: style, features: merges ? NetFeature.mergeableBuffers : 0)
        #expect(peer.usesVhost, "\(peer.log.lines)")
        try peer.driver.enableVectors()
        // What the kernel's own stack has sent before.
        let before = peer.port.statistics.receivedFrames
        for number in stride(from: 0, to: 400, by: 2) { try peer.expectTraffic(number) }
        #expect(peer.port.statistics.receivedFrames == before)
        // Both queues have interrupted.
        #expect(Set(peer.driver.connection.takeMessages().map(\.data)).isSuperset(of: [1, 2]))
        peer.end()
    }

    @Test("Moved between the paths amid traffic, no datagram is lost or comes twice", arguments: styles, 0..<2)
    func moves(style: DriverStyle, seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let peer = try VhostPeer(style: style)
        var (sent, left, offered, received): ([[UInt8]], [[UInt8]], Int, [[UInt8]]) = ([], [], 0, [])
        for round in 0..<200 {
            switch generator.next() % 6 {
            case 0, 1: if try peer.sendDatagram(round) { sent.append(VhostPeer.payload(round)) }
            case 2, 3:
                #expect(peer.answer(offered))
                offered += 1
            case 4: try peer.refill(2000)
            default:
                let allowsVhost = generator.next() & 1 == 0
                try peer.refill(2000)
                try peer.move(allowsVhost: allowsVhost) {
                    #expect(peer.answer(offered))
                    offered += 1
                }
                #expect(peer.usesVhost == allowsVhost, "\(peer.log.lines)")
            }
            received += try peer.payloads()
            while left.count + 8 < sent.count { left.append(peer.socket.read(upTo: 2000)) }
        }
        while left.count < sent.count { left.append(peer.socket.read(upTo: 2000)) }
        #expect(left == sent)
        func lost() -> Int { Int(peer.port.statistics.overrunFrames) }
        _ = try eventually { () -> Bool? in
            try peer.refill(2000)
            received += try peer.payloads()
            return received.count + lost() >= offered ? true : nil
        }
        // What the back end held without a buffer for it may have been a datagram, or other traffic.
        #expect(received.count + lost() >= offered)
        var rest = (0..<offered).map(VhostPeer.payload)[...]
        for payload in received {
            let place = try #require(rest.firstIndex(of: payload))
            rest = rest[(place + 1)...]
        }
        #expect(!peer.driver.needsReset)
        peer.end()
    }

    @Test("Resets, of the device and of each queue", arguments: styles, [0, 1])
    func resets(style: DriverStyle, queue: Int) throws {
        let peer = try VhostPeer(style: style)
        try peer.expectResets(of: queue)
        peer.end()
    }

    @Test("A buffer that is no memory stops the device", arguments: [0, 1])
    func errors(queue: Int) throws {
        let peer = try VhostPeer()
        try peer.expectTraffic(1)
        peer.driver.setStatus(0)
        try peer.start()
        try peer.expectFailure(of: queue) { #expect(peer.answer(1)) }
        try peer.expectTraffic(5)
        peer.end()
    }

    @Test("Nothing is left open after many starts")
    func leftovers() throws {
        let peer = try VhostPeer()
        let before = VhostCard.Belongings()
        for _ in 0..<200 {
            peer.driver.transport.pause()
            peer.driver.transport.resume()
        }
        #expect(peer.usesVhost)
        before.expectKept()
        try peer.expectTraffic(1)
        peer.end()
    }
}
