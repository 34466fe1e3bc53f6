import CHost
import Glibc
import Host
import HostNetwork
import Testing

@testable import Net

private let kernel: UInt32 = 0x0A09_0001

/// A guest on a tap device whose other end is the kernel's own stack, 10.9.0.1, in a namespace of the test's own.
private struct KernelPeer: Sendable {
    let guest: TestGuest
    let server: LoopbackSocket
    let datagrams: LoopbackSocket

    init(_ configuration: NetworkConfiguration) throws {
        guest = try TestGuest(configuration)
        guest.address = 0x0A09_0002
        guest.setPeerMAC([0x02, 0, 0, 0, 9, 1])
        let set = shell(
            "ip link set mt0 address 02:00:00:00:09:01 && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up "
                + "&& ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:15 dev mt0 nud permanent")
        precondition(set.status == 0, set.output)
        server = LoopbackSocket(isUDP: false, address: kernel)
        datagrams = LoopbackSocket(isUDP: true, address: kernel)
    }

    static func make() throws -> KernelPeer? {
        try inNewNetwork { try KernelPeer(NetworkConfiguration(.tap(.name("mt0")))) }
    }
}

@Suite(.enabled(if: canMakeNetworks, "needs the right to make network namespaces, /dev/net/tun and ip(8)"))
struct TapTests {
    @Test func theKernelAnswers() throws {
        let peer = try #require(try KernelPeer.make())
        #expect(peer.guest.backend.name == "tap mt0")
        peer.guest.ping(kernel)
        #expect(try #require(peer.guest.icmp()) == (0, 0))
        let connection = try #require(TestConnection.connect(peer.guest, to: kernel, port: peer.server.port))
        let accepted = try #require(peer.server.acceptOne())
        connection.send([1, 2, 3])
        #expect(accepted.read(upTo: 10) == [1, 2, 3])
        accepted.write([4, 5])
        #expect(connection.receive(2) == [4, 5])
    }

    /// The kernel segments what the guest did not: its own stack gets the right bytes.
    @Test func theKernelSegments() throws {
        let peer = try #require(try KernelPeer.make())
        #expect(peer.guest.backend.nativeOffloads.isSuperset(of: [.checksum, .tcp4, .tcp6]))
        let connection = try #require(TestConnection.connect(peer.guest, to: kernel, port: peer.server.port))
        let accepted = try #require(peer.server.acceptOne())
        let data = (0..<30_000).map { UInt8(truncatingIfNeeded: $0 / 5) }
        connection.sendLarge(data, segmentSize: 1400)
        var received: [UInt8] = []
        while received.count < data.count, case let chunk = accepted.read(upTo: 65_536), !chunk.isEmpty {
            received += chunk
        }
        #expect(received == data)
    }

    /// Natively or, on an old kernel, in software.
    @Test func datagramsAreSegmented() throws {
        let peer = try #require(try KernelPeer.make())
        var header = VirtualNetworkHeader()
        header.flags = VirtualNetworkHeader.Flag.needsChecksum
        header.segmentation = VirtualNetworkHeader.Segmentation.udp
        header.segmentSize = 1000
        header.headerLength = 42
        header.checksumStart = 34
        header.checksumOffset = 6
        let payload = (0..<2500).map { UInt8(truncatingIfNeeded: $0) }
        let body = big(UInt16(7)) + big(peer.datagrams.port) + big(UInt16(8 + payload.count)) + [0, 0] + payload
        let udp = TestGuest.withPseudoChecksum(body, at: 6, 17, from: peer.guest.address, to: kernel)
        peer.guest.send(peer.guest.ipv4(17, to: kernel, udp), header)
        let pieces = (0..<3).map { _ in peer.datagrams.read(upTo: 65_536) }
        #expect(pieces.map(\.count) == [1000, 1000, 500])
        #expect(pieces.flatMap { $0 } == payload)
    }

    /// What the kernel left undone for the guest, our software finishes as the kernel would have: the oracle is the
    /// sender's data, and every checksum sums to zero.
    @Test func softwareFinishesTheKernelsFrames() throws {
        let peer = try #require(try KernelPeer.make())
        try peer.guest.backend.setReceiveOffloads([.checksum, .tcp4, .tcp6])
        let connection = try #require(TestConnection.connect(peer.guest, to: kernel, port: peer.server.port))
        let accepted = try #require(peer.server.acceptOne())
        // The first window of an unacknowledged connection: ten segments (RFC 6928).
        let data = (0..<4_000).map { UInt8(truncatingIfNeeded: $0 / 3) }
        accepted.write(data)
        var received: [UInt8] = []
        var wasLarge = false
        var expected: UInt32?
        while received.count < data.count, let (header, frame) = peer.guest.nextWithHeader() {
            guard case .packet(let large) = ParsedFrame(frame), large.protocolNumber == 6 else { continue }
            wasLarge = wasLarge || header.segmentation != 0
            for segment in try SoftwareOffload.frames(of: frame, header) {
                guard case .packet(let packet) = ParsedFrame(segment), let size = packet.tcpHeaderSize(segment),
                    case .v4(let source) = packet.source, case .v4(let target) = packet.destination
                else { continue }
                let pseudo = big(source) + big(target) + [0, 6] + big(UInt16(packet.end - packet.transport))
                #expect(onesComplement(pseudo + segment[packet.transport..<packet.end]) == 0)
                #expect(onesComplement(Array(segment[14..<packet.transport])) == 0)
                // Nobody acknowledges: after a while the kernel sends the first ones again.
                let sequence = segment.bigEndian32(at: packet.transport + 4)
                guard packet.end > packet.transport + size, expected == nil || expected == sequence else { continue }
                received += segment[packet.transport + size..<packet.end]
                expected = sequence &+ UInt32(packet.end - packet.transport - size)
            }
        }
        #expect(wasLarge)
        #expect(received == data)
        withExtendedLifetime(connection) {}
    }

    @Test func aDescriptorIsTakenOver() throws {
        let peer = try #require(
            try inNewNetwork {
                var name = [CChar](repeating: 0, count: 16)
                let descriptor = host_tap_open("mt0", &name)
                return try KernelPeer(NetworkConfiguration(.tap(.descriptor(Int32(descriptor)))))
            })
        peer.guest.ping(kernel)
        #expect(try #require(peer.guest.icmp()) == (0, 0))
    }

    @Test func aDeletedDeviceIsToldOnce() throws {
        let log = EventLog()
        let peer = try #require(
            try inNewNetwork {
                let guest = try TestGuest(NetworkConfiguration(.tap(.name("mt0"))), log: log.append)
                _ = shell("ip link set mt0 up; ip link del mt0")
                return guest
            })
        #expect(
            log.waitForOne()
                == "tap mt0: The network is gone: File descriptor in bad state. The machine goes on without it")
        #expect(peer.backend.send([UInt8](repeating: 1, count: 60)) == .dropped)
    }

    @Test func errorsNameTheDevice() {
        let error = #expect(throws: NetworkError.self) {
            _ = try NetworkConfiguration(.tap(.name("a-name-too-long-for-linux"))).open { _ in }
        }
        #expect(error == .tapUnusable(name: "a-name-too-long-for-linux", reason: "File name too long"))
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        defer { close(null) }
        #expect(throws: NetworkError.tapUnusable(name: "descriptor \(null)", reason: "Inappropriate ioctl for device"))
        {
            _ = try NetworkConfiguration(.tap(.descriptor(null))).open { _ in }
        }
    }
}
