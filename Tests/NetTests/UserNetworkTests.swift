import Glibc
import Host
import HostNetwork
import Synchronization
import Testing

@testable import Net

private let host: UInt32 = 0x0A00_0202
/// TEST-NET-1 (RFC 5737): nobody's. The policies of these tests never let a packet out to it.
private let outside: UInt32 = 0xC000_0201

@Suite struct UserNetworkTests {
    private final class Lines: Sendable {
        private let lines = Mutex<[String]>([])
        func append(_ event: NetworkEvent) { lines.withLock { $0.append("\(event)") } }
        var all: [String] { lines.withLock { $0 } }
    }

    private func guest(
        _ policy: EgressPolicy, _ ports: [PublishedPort] = [], _ lines: Lines = Lines()
    ) throws -> TestGuest {
        try TestGuest(UserConfiguration(egress: policy, publishedPorts: ports)) { lines.append($0) }
    }

    private func leasedGuest(
        _ policy: EgressPolicy, _ ports: [PublishedPort] = [], _ lines: Lines = Lines()
    ) throws -> TestGuest {
        let guest = try guest(policy, ports, lines)
        try #require(guest.lease() != nil)
        return guest
    }

    /// A guest, and the port of the host that it has published: one that was free a moment ago, or the next such where
    /// somebody else was faster.
    private func publishingGuest(
        _ policy: EgressPolicy, _ guestPort: UInt16, isUDP: Bool = false, attempts: Int = 5
    ) throws -> (guest: TestGuest, port: PublishedPort) {
        let port = PublishedPort(hostPort: freePort(isUDP: isUDP), guestPort: guestPort, isUDP: isUDP)
        do {
            return (try guest(policy, [port]), port)
        } catch NetworkError.portTaken where attempts > 1 {
            return try publishingGuest(policy, guestPort, isUDP: isUDP, attempts: attempts - 1)
        }
    }

    @Test(arguments: [EgressPolicy.host, .none])
    func everyPolicyLeases(policy: EgressPolicy) throws {
        let lease = try #require(try guest(policy).lease())
        #expect(lease.address == 0x0A00_020F)
        // Where nothing else is allowed, there is no router either.
        #expect(lease.router == (policy == .none ? nil : host))
        #expect(lease.nameserver == (policy == .none ? nil : 0x0A00_0203))
    }

    /// libslirp's leases have no end and are sixteen: a guest that asks in many names starves only itself, and the card's
    /// own lease, which came first, stays.
    @Test func sixteenLeases() throws {
        let guest = try guest(.host)
        let own = try #require(guest.lease())
        for client in UInt8(1)..<16 {
            #expect(guest.lease(for: [2, 0, 0, 0, 1, client])?.address == 0x0A00_020F + UInt32(client))
        }
        #expect(guest.lease(for: [2, 0, 0, 0, 1, 16], seconds: 0.3) == nil)
        #expect(guest.lease() == own)
        #expect(guest.resolve("host.martlet.internal")?.address == host)
    }

    @Test func theHostHasAName() throws {
        let guest = try leasedGuest(.host)
        let answer = try #require(guest.resolve("Host.Martlet.Internal"))
        #expect(answer == (0, 1, host))
        // No IPv6 here: the name exists, without such a record.
        let none = try #require(guest.resolve("host.martlet.internal", type: 28))
        #expect(none.code == 0 && none.answers == 0)
        // NXDOMAIN, from us.
        let other = try #require(guest.resolve("example.com"))
        #expect(other.code == 3 && other.answers == 0)
        #expect(guest.backend.statistics.egress.answeredNames == 3)
    }

    @Test func reachesTheHostsLoopback() throws {
        let server = LoopbackSocket(isUDP: false)
        let guest = try leasedGuest(.host)
        let connection = try #require(TestConnection.connect(guest, to: host, port: server.port))
        let accepted = try #require(server.acceptOne())
        connection.send(Array("hello".utf8))
        #expect(accepted.read(upTo: 100) == Array("hello".utf8))
        accepted.write(Array("welcome".utf8))
        #expect(connection.receive(7) == Array("welcome".utf8))
        connection.finish()
        #expect(accepted.read(upTo: 100).isEmpty)
    }

    @Test func reachesTheHostsDatagrams() throws {
        let server = LoopbackSocket(isUDP: true)
        let guest = try leasedGuest(.host)
        guest.send(guest.udp(to: host, port: server.port, [1, 2, 3]))
        server.echoDatagram()
        let answer = try #require(guest.datagram(to: 40_000))
        #expect(answer.payload == [1, 2, 3, 0x21])
        #expect(answer.packet.source == .v4(host))
    }

    /// Larger than a frame, in fragments both ways: put together here, cut by libslirp.
    @Test func largeDatagramsPass() throws {
        let server = LoopbackSocket(isUDP: true)
        let guest = try leasedGuest(.host)
        let payload = (0..<4000).map { UInt8(truncatingIfNeeded: $0 / 11) }
        let whole = guest.udp(to: host, port: server.port, payload)
        for start in stride(from: 0, to: whole.count - 34, by: 1480) {
            let piece = Array(whole[34 + start..<min(34 + start + 1480, whole.count)])
            let more: UInt16 = 34 + start + 1480 < whole.count ? 0x2000 : 0
            guest.send(guest.ipv4(17, to: host, piece, fragment: more | UInt16(start / 8)))
        }
        #expect(server.read(upTo: 10_000) == payload)
    }

    @Test func pingsTheHost() throws {
        let guest = try leasedGuest(.host)
        guest.ping(host)
        let answer = try #require(guest.icmp())
        #expect(answer == (0, 0))
    }

    @Test(arguments: [EgressPolicy.host, .none])
    func everythingElseIsRefusedAtOnce(policy: EgressPolicy) throws {
        let lines = Lines()
        let guest = try leasedGuest(policy, [], lines)
        let begin = HostClock.monotonicNanoseconds
        let connection = try #require(TestConnection.connect(guest, to: outside, port: 80))
        #expect(connection.wasReset)
        guest.send(guest.udp(to: outside, port: 123, [0]))
        #expect(try #require(guest.icmp()) == (3, 13))
        guest.ping(outside)
        #expect(try #require(guest.icmp()) == (3, 13))
        #expect(HostClock.monotonicNanoseconds - begin < 5_000_000_000)
        let counts = guest.backend.statistics.egress
        #expect((counts.refusedTCP, counts.refusedUDP, counts.refusedICMP) == (1, 1, 1))
        #expect(
            lines.all == [
                "user: egress refused TCP to 192.0.2.1:80", "user: egress refused UDP to 192.0.2.1:123",
                "user: egress refused ICMP to 192.0.2.1",
            ])
    }

    @Test func noneRefusesTheHostToo() throws {
        let server = LoopbackSocket(isUDP: false)
        let guest = try leasedGuest(.none)
        #expect(try #require(TestConnection.connect(guest, to: host, port: server.port)).wasReset)
        guest.send(guest.udp(to: 0x0A00_0203, port: 53, TestGuest.query("host.martlet.internal")))
        #expect(try #require(guest.icmp()) == (3, 13))
    }

    @Test func aListAllowsItsPortsOnly() throws {
        let server = LoopbackSocket(isUDP: false)
        let other = LoopbackSocket(isUDP: false)
        let policy = try EgressPolicy(option: "10.0.2.2:\(server.port)/tcp")
        let guest = try leasedGuest(policy)
        #expect(try #require(TestConnection.connect(guest, to: host, port: server.port)).wasReset == false)
        #expect(try #require(TestConnection.connect(guest, to: host, port: other.port)).wasReset)
        guest.send(guest.udp(to: host, port: server.port, [0]))
        #expect(try #require(guest.icmp()) == (3, 13))
        #expect(try #require(guest.resolve("example.com")).code == 3)
    }

    @Test func refusalsAreLoggedWithinBounds() throws {
        let lines = Lines()
        let guest = try leasedGuest(.host, [], lines)
        let begin = HostClock.monotonicNanoseconds
        for port in 1...200 { guest.send(guest.udp(to: outside, port: UInt16(port), [0])) }
        for _ in 1...200 { #expect(guest.icmp() != nil) }
        #expect(guest.backend.statistics.egress.refusedUDP == 200)
        // Eleven at once, and one in each second.
        let count = lines.all.count
        let seconds = Int((HostClock.monotonicNanoseconds - begin) / 1_000_000_000)
        #expect((11...11 + seconds).contains(count))
    }

    @Test(arguments: [EgressPolicy.host, .none])
    func aPublishedPortIsReached(policy: EgressPolicy) throws {
        let (guest, port) = try publishingGuest(policy, 80)
        try #require(guest.lease() != nil)
        let client = try #require(LoopbackSocket(isUDP: false, connectedTo: port.hostPort))
        let connection = try #require(TestConnection.accept(guest, port: 80))
        client.write(Array("GET".utf8))
        #expect(connection.receive(3) == Array("GET".utf8))
        connection.send(Array("200".utf8))
        #expect(client.read(upTo: 10) == Array("200".utf8))
        #expect(guest.backend.statistics.egress.refused == 0)
    }

    @Test(arguments: [EgressPolicy.host, .none])
    func aPublishedDatagramPortIsReached(policy: EgressPolicy) throws {
        let (guest, port) = try publishingGuest(policy, 53, isUDP: true)
        try #require(guest.lease() != nil)
        let client = try #require(LoopbackSocket(isUDP: true, connectedTo: port.hostPort))
        client.write([7, 8])
        let question = try #require(guest.datagram(to: 53))
        #expect(question.payload == [7, 8])
        guard case .v4(let source) = question.packet.source, let ports = question.packet.ports else { return }
        guest.send(guest.udp(to: source, port: ports.source, from: 53, [9]))
        #expect(client.read(upTo: 10) == [9])
        // The answer was allowed, nothing else from that port is.
        guest.send(guest.udp(to: outside, port: ports.source, from: 53, [9]))
        #expect(try #require(guest.icmp()) == (3, 13))
    }

    @Test(arguments: [false, true])
    func aTakenPortIsNamed(isUDP: Bool) throws {
        let owner = LoopbackSocket(isUDP: isUDP)
        let port = PublishedPort(hostPort: owner.port, guestPort: 80, isUDP: isUDP)
        let error = #expect(throws: NetworkError.self) {
            _ = try NetworkConfiguration(.user(UserConfiguration(egress: .none, publishedPorts: [port]))).open { _ in }
        }
        #expect(error == .portTaken(port, reason: "Address already in use"))
        #expect(
            error.map { "\($0)" }
                == "Cannot publish 127.0.0.1:\(owner.port) to the guest's \(isUDP ? "UDP" : "TCP") port 80: Address "
                + "already in use; choose another host port or stop what uses it")
    }

    @Test(arguments: [false, true])
    func twoNetworksCannotPublishOnePort(isUDP: Bool) throws {
        let (first, port) = try publishingGuest(.none, 80, isUDP: isUDP)
        #expect(throws: NetworkError.portTaken(port, reason: "Address already in use")) { _ = try guest(.none, [port]) }
        withExtendedLifetime(first) {}
    }

    /// 4 MiB towards a guest with room for eight frames: nothing is lost, and the sender has to wait.
    @Test func aSlowGuestLosesNothing() throws {
        let server = LoopbackSocket(isUDP: false)
        let guest = try leasedGuest(.host)
        let connection = try #require(TestConnection.connect(guest, to: host, port: server.port))
        let accepted = try #require(server.acceptOne())
        guest.setRoom(8)
        let data = (0..<(4 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 2_654_435_761 >> 13) }
        let sender = try HostThread(name: "sender") {
            if !accepted.writeAll(data) { Issue.record("not all of it was taken") }
        }
        #expect(connection.receive(data.count) == data)
        sender.join()
        #expect(guest.refusals > 0)
        #expect(guest.backend.statistics.overrunFrames == 0)
    }

    /// What a guest with segmentation offload sends arrives whole.
    @Test func largeSegmentsAreCut() throws {
        let server = LoopbackSocket(isUDP: false)
        let guest = try leasedGuest(.host)
        let connection = try #require(TestConnection.connect(guest, to: host, port: server.port))
        let accepted = try #require(server.acceptOne())
        let data = (0..<30_000).map { UInt8(truncatingIfNeeded: $0 / 7) }
        connection.sendLarge(data, segmentSize: 1460)
        var received: [UInt8] = []
        while received.count < data.count {
            let chunk = accepted.read(upTo: 65_536)
            if chunk.isEmpty { break }
            received += chunk
        }
        #expect(received == data)
    }

    @Test func theLimitHolds() throws {
        var configuration = NetworkConfiguration(.user(UserConfiguration(egress: .none)))
        configuration.limits = TrafficLimits(operations: 100, operationsBurst: 10)
        let guest = try TestGuest(configuration)
        let begin = HostClock.monotonicNanoseconds
        for _ in 0..<60 { guest.send([UInt8](repeating: 0xFF, count: 60)) }
        let elapsed = HostClock.monotonicNanoseconds - begin
        // 10 at once, 50 at 100 a second.
        #expect(elapsed > 480_000_000)
        #expect(guest.backend.statistics.throttled > 0)
        #expect(guest.backend.statistics.sentFrames == 60)
    }

    @Test func closingTwiceAndSendingAfterwards() throws {
        let guest = try guest(.none)
        guest.backend.close()
        guest.backend.close()
        #expect(guest.backend.send([UInt8](repeating: 0, count: 60)) == .dropped)
        #expect(throws: NetworkError.alreadyStarted(network: "user")) { try guest.backend.start(guest) }
    }
}
