import Testing

@testable import Net

@Suite struct EgressPolicyTests {
    private static let guest: UInt32 = 0x0A00_020F

    private func filter(_ text: String, hasIPv6: Bool = false) throws -> EgressFilter {
        EgressFilter(
            try EgressPolicy(option: text), hasIPv6: hasIPv6, publishedUDPPorts: [53], log: { _, _ in })
    }

    private func frame(_ kind: String, _ address: String, _ port: UInt16) throws -> [UInt8] {
        guard case .v4(let target)? = IPAddress(address) else { throw NetworkOptionError(address) }
        switch kind {
        case "tcp":
            let body = big(UInt16(1000)) + big(port) + [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xFF, 0xFF, 0, 0, 0, 0]
            return TestGuest.ipv4(6, from: Self.guest, to: target, body)
        case "udp":
            let body = big(UInt16(1000)) + big(port) + big(UInt16(9)) + [0, 0, 7]
            return TestGuest.ipv4(17, from: Self.guest, to: target, body)
        case "ping": return TestGuest.ipv4(1, from: Self.guest, to: target, [8, 0, 0xF7, 0xFF, 0, 0, 0, 0])
        default: return TestGuest.ipv4(47, from: Self.guest, to: target, [0, 0, 0, 0])
        }
    }

    /// f: forwarded, r: answered with a refusal, d: dropped.
    @Test(arguments: [
        ("all", "tcp", "192.0.2.1", 80, "f"), ("all", "udp", "192.0.2.1", 80, "f"),
        ("all", "ping", "192.0.2.1", 0, "f"),
        ("all", "gre", "192.0.2.1", 0, "r"),
        ("all", "tcp", "10.0.2.3", 53, "f"), ("all", "tcp", "10.0.2.3", 80, "r"),
        // The nameserver gets queries only.
        ("all", "udp", "10.0.2.3", 53, "d"),
        // Nobody else is in the virtual network, and libslirp would look for them in the real one.
        ("all", "tcp", "10.0.2.7", 80, "r"), ("all", "tcp", "127.0.0.1", 80, "r"), ("all", "tcp", "0.0.0.0", 80, "r"),
        ("all", "udp", "127.8.9.1", 80, "r"), ("all", "udp", "240.0.0.1", 80, "r"),
        ("all", "udp", "224.0.0.251", 5353, "d"), ("all", "udp", "255.255.255.255", 9, "d"),
        ("all", "udp", "10.0.2.255", 9, "d"),
        ("host", "tcp", "10.0.2.2", 22, "f"), ("host", "udp", "10.0.2.2", 22, "f"),
        ("host", "ping", "10.0.2.2", 0, "f"),

        ("host", "tcp", "10.0.2.3", 53, "r"), ("host", "tcp", "192.0.2.1", 80, "r"),

        ("host", "udp", "255.255.255.255", 67, "f"), ("host", "ping", "192.0.2.1", 0, "r"),
        ("none", "udp", "255.255.255.255", 67, "f"), ("none", "udp", "10.0.2.2", 67, "f"),
        ("none", "tcp", "10.0.2.2", 67, "r"), ("none", "udp", "10.0.2.2", 68, "r"),
        ("none", "udp", "192.0.2.1", 67, "r"),
        ("none", "ping", "10.0.2.2", 0, "r"), ("none", "udp", "10.0.2.3", 53, "r"),
        ("192.0.2.0/24:443", "tcp", "192.0.2.255", 443, "f"), ("192.0.2.0/24:443", "tcp", "192.0.3.0", 443, "r"),
        ("192.0.2.0/24:443", "tcp", "192.0.2.1", 80, "r"), ("192.0.2.0/24:443", "udp", "192.0.2.1", 443, "f"),
        ("192.0.2.0/24:443/tcp", "udp", "192.0.2.1", 443, "r"), ("192.0.2.0/24:443", "ping", "192.0.2.1", 0, "r"),
        ("192.0.2.0/24:*", "ping", "192.0.2.1", 0, "f"),

        // The world is not the host.
        ("0.0.0.0/0:*", "tcp", "10.0.2.2", 80, "r"), ("0.0.0.0/0:*", "tcp", "192.0.2.1", 80, "f"),
        ("0.0.0.0/0:*", "tcp", "127.0.0.1", 80, "r"), ("0.0.0.0/0:*", "tcp", "10.0.2.3", 53, "r"),
        ("10.0.2.2:80,dns", "tcp", "10.0.2.2", 80, "f"), ("10.0.2.2:80,dns", "tcp", "10.0.2.2", 81, "r"),
        ("10.0.2.2:80,dns", "tcp", "10.0.2.3", 53, "f"),
    ])
    func decisions(policy: String, kind: String, address: String, port: UInt16, expected: String) throws {
        var filter = try filter(policy)
        let decision =
            switch filter.examine(try frame(kind, address, port)) {
            case .forward, .forwardWhole: "f"
            case .reply: "r"
            case .drop: "d"
            }
        #expect(decision == expected)
        #expect((filter.statistics.refused > 0) == (expected == "r"))
    }

    /// A datagram in three fragments, in any order, is judged when it is whole.
    @Test(arguments: [[0, 1, 2], [2, 1, 0], [1, 2, 0]]) func fragmentsAreJudgedTogether(order: [Int]) throws {
        let payload = (0..<40).map { UInt8($0) }
        for (policy, port, isAllowed) in [("192.0.2.0/24:80", UInt16(80), true), ("192.0.2.0/24:80", 81, false)] {
            var filter = try filter(policy)
            let body = big(UInt16(1000)) + big(port) + big(UInt16(48)) + [0, 0] + payload
            let pieces = [
                (body[..<16], UInt16(0x2000)), (body[16..<32], 0x2000 | 2), (body[32...], 4),
            ].map { TestGuest.ipv4(17, from: Self.guest, to: 0xC000_0201, Array($0), fragment: $1) }
            let actions = order.map { filter.examine(pieces[$0]) }
            #expect(actions[0] == .drop && actions[1] == .drop)
            let whole = TestGuest.ipv4(17, from: Self.guest, to: 0xC000_0201, body)
            if isAllowed {
                #expect(actions[2] == .forwardWhole(whole))
            } else {
                guard case .reply = actions[2] else {
                    Issue.record("not refused")
                    return
                }
            }
        }
    }

    /// Overlaps, contradictions, and a header too short to tell its ports (RFC 1858).
    @Test func impossibleFragments() throws {
        func fragment(_ count: Int, _ field: UInt16) -> [UInt8] {
            TestGuest.ipv4(17, from: Self.guest, to: 0xC000_0201, [UInt8](repeating: 1, count: count), fragment: field)
        }
        for pair in [
            [fragment(16, 0x2000), fragment(16, 0x2001)], [fragment(16, 2), fragment(16, 0x2004)],
            [fragment(16, 2), fragment(16, 4)], [fragment(9, 0x2000)], [fragment(4, 0x2000)], [fragment(0, 1)],
            [fragment(16, 0x1FFF)],
        ] {
            var filter = try filter("all")
            for frame in pair { #expect(filter.examine(frame) == .drop) }
            #expect(filter.malformed == 1)
        }
        // The reserved bit makes none of what is whole, and nothing grows without bound.
        var assembler = FragmentAssembler()
        for index in 0..<1000 {
            var frame = fragment(16, 0x2000)
            frame[18] = UInt8(index >> 8)
            frame[19] = UInt8(index & 0xFF)
            guard case .packet(let packet) = ParsedFrame(frame) else { continue }
            #expect(assembler.add(frame, packet, nowNanoseconds: 1) == .incomplete)
        }
        #expect(assembler.count == 64)
        guard case .packet(let packet) = ParsedFrame(fragment(16, 0x2000)) else { return }
        _ = assembler.add(fragment(16, 0x2000), packet, nowNanoseconds: 60_000_000_000)
        #expect(assembler.count == 1)
    }

    @Test func onlyKnownKindsOfFramesPass() throws {
        var filter = try filter("all")
        let ethernet = TestGuest.broadcast + TestGuest.mac
        #expect(filter.examine(ethernet + [8, 6] + [UInt8](repeating: 0, count: 28)) == .forward)
        #expect(filter.examine(ethernet + [8, 6] + [UInt8](repeating: 0, count: 27)) == .drop)
        // NC-SI, a VLAN tag, IPv6 where there is none.
        #expect(filter.examine(ethernet + [0x88, 0xF8] + [UInt8](repeating: 0, count: 60)) == .drop)
        #expect(filter.examine(ethernet + [0x81, 0] + [UInt8](repeating: 0, count: 60)) == .drop)
        #expect(filter.examine(ipv6(6, to: "2001:db8::1", [UInt8](repeating: 0, count: 20))) == .drop)
        #expect(filter.examine([]) == .drop)
        #expect(filter.malformed == 2 && filter.statistics.refusedOther == 3)
    }

    private func ipv6(_ next: UInt8, to address: String, _ body: [UInt8]) -> [UInt8] {
        guard case .v6(let target)? = IPAddress(address) else { return [] }
        func bytes(_ value: UInt128) -> [UInt8] {
            (0..<16).map { UInt8(truncatingIfNeeded: value >> UInt128(120 - 8 * $0)) }
        }
        return TestGuest.broadcast + TestGuest.mac + [0x86, 0xDD, 0x60, 0, 0, 0] + big(UInt16(body.count)) + [next, 64]
            + bytes(0xFEC0 << 112 | 15) + bytes(target) + body
    }

    @Test(
        arguments: [
            ("all", 6, "2001:db8::1", "f"), ("all", 6, "::1", "r"), ("all", 6, "::ffff:7f00:1", "r"),
            ("all", 6, "fe80::2", "r"),
            ("all", 6, "fec0::9", "r"), ("all", 17, "ff02::fb", "d"), ("host", 6, "fec0::2", "f"),
            ("host", 6, "2001:db8::1", "r"), ("[2001:db8::]/32:80", 6, "2001:db8:1::", "f"),
            ("[2001:db8::]/32:81", 6, "2001:db8:1::", "r"), ("[::]/0:*", 6, "fec0::2", "r"),
            // Extension headers could hide a port.
            ("all", 0, "2001:db8::1", "r"), ("all", 44, "2001:db8::1", "r"),
        ] as [(String, UInt8, String, String)])
    func decisionsOverIPv6(policy: String, next: UInt8, address: String, expected: String) throws {
        var filter = try filter(policy, hasIPv6: true)
        let body = big(UInt16(1000)) + big(UInt16(80)) + [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xFF, 0xFF, 0, 0, 0, 0]
        let decision =
            switch filter.examine(ipv6(next, to: address, body)) {
            case .forward, .forwardWhole: "f"
            case .reply: "r"
            case .drop: "d"
            }
        #expect(decision == expected)
    }

    @Test func neighborDiscoveryPasses() throws {
        var filter = try filter("none", hasIPv6: true)
        #expect(filter.examine(ipv6(58, to: "ff02::2", [133, 0, 0, 0, 0, 0, 0, 0])) == .forward)
        #expect(filter.examine(ipv6(58, to: "ff02::2", [128, 0, 0, 0, 0, 0, 0, 0])) == .drop)
    }

    /// RFC 9293 §3.10.7.1: the two kinds of RST, and none for a RST.
    @Test func resets() throws {
        func reply(_ flags: UInt8, _ payload: [UInt8] = []) throws -> ArraySlice<UInt8>? {
            let body =
                big(UInt16(1000)) + big(UInt16(80)) + [0, 0, 0, 9, 0, 0, 1, 0, 0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0]
                + payload
            var filter = try filter("none")
            let frame = TestGuest.ipv4(6, from: Self.guest, to: 0xC000_0201, body)
            guard case .reply(let answer) = filter.examine(frame) else { return nil }
            #expect(onesComplement(Array(answer[14..<34])) == 0)
            let pseudo = Array(answer[26..<34]) + [0, 6] + big(UInt16(20))
            #expect(onesComplement(pseudo + answer[34...]) == 0)
            #expect(Array(answer[0..<6]) == TestGuest.mac)
            #expect(answer[26..<30] == [192, 0, 2, 1] && answer[34..<38] == [0, 80, 3, 0xE8])
            return answer[38..<48]
        }
        #expect(try reply(TCPFlag.syn) == [0, 0, 0, 0, 0, 0, 0, 10, 0x50, 0x14])
        #expect(try reply(TCPFlag.fin, [1, 2]) == [0, 0, 0, 0, 0, 0, 0, 12, 0x50, 0x14])
        #expect(try reply(TCPFlag.ack, [1]) == [0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x04])
        #expect(try reply(TCPFlag.rst) == nil)
    }

    @Test func prohibitionsQuoteThePacket() throws {
        var filter = try filter("none")
        let frame = try frame("udp", "192.0.2.1", 99)
        guard case .reply(let answer) = filter.examine(frame) else {
            Issue.record("no answer")
            return
        }
        #expect(onesComplement(Array(answer[34...])) == 0)
        #expect(answer[26..<30] == [10, 0, 2, 2] && answer[34..<36] == [3, 13])
        #expect(Array(answer[42...]) == Array(frame[14...]))
    }

    /// Answers to connections from outside pass; a flow that only looks like one does not.
    @Test func inboundFlowsAreAnswered() throws {
        var filter = try filter("none")
        func tcp(_ from: UInt32, _ fromPort: UInt16, _ to: UInt32, _ toPort: UInt16, _ flags: UInt8) -> [UInt8] {
            let body = big(fromPort) + big(toPort) + [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0]
            return TestGuest.ipv4(6, from: from, to: to, body)
        }
        let outside: UInt32 = 0xC000_0201
        filter.noteInbound(tcp(outside, 5000, Self.guest, 80, TCPFlag.syn | TCPFlag.ack))
        #expect(filter.examine(tcp(Self.guest, 80, outside, 5000, TCPFlag.ack)) != .forward)
        filter.noteInbound(tcp(outside, 5000, Self.guest, 80, TCPFlag.syn))
        #expect(filter.examine(tcp(Self.guest, 80, outside, 5000, TCPFlag.ack)) == .forward)
        #expect(filter.examine(tcp(Self.guest, 80, outside, 5001, TCPFlag.ack)) != .forward)
        // It stays while it is used, however many others come.
        for index in 0..<20_000 {
            filter.noteInbound(
                tcp(outside &+ UInt32(index / 1000 + 1), UInt16(1 + index % 1000), Self.guest, 80, TCPFlag.syn))
            if index.isMultiple(of: 1000) {
                #expect(filter.examine(tcp(Self.guest, 80, outside, 5000, TCPFlag.ack)) == .forward)
            }
        }
    }

    @Test(arguments: [
        ("host", "host.martlet.internal", UInt16(1), "answer"), ("all", "HOST.martlet.internal", 1, "answer"),
        ("all", "example.com", 1, "ask"), ("host", "example.com", 1, "answer"), ("dns", "example.com", 1, "ask"),
        // Without `host` the name leads nowhere.
        ("192.0.2.0/24:80", "host.martlet.internal", 1, "answer"), ("dns", "host.martlet.internal", 1, "ask"),
    ])
    func names(policy: String, name: String, type: UInt16, expected: String) throws {
        let service = NameService(policy: try EgressPolicy(option: policy), hasIPv6: false)
        let decision = service.decide(TestGuest.query(name, type: type))
        switch decision {
        case .ask: #expect(expected == "ask")
        case .ignore: #expect(expected == "ignore")
        case .answer(let bytes):
            #expect(expected == "answer")
            let isHost = name.lowercased() == UserNetworkLayout.hostName && policy != "192.0.2.0/24:80"
            #expect(bytes[3] & 0xF == (isHost ? 0 : 3))
        }
    }

    @Test func queriesThatAreNone() throws {
        let service = NameService(policy: .host, hasIPv6: false)
        var response = TestGuest.query("a.b")
        response[2] |= 0x80
        #expect(service.decide(response) == .ignore)
        #expect(service.decide([1, 2, 3]) == .ignore)
        // A compressed name, a name without an end, no question: "not implemented".
        for bytes in [[0xC0, 12, 0, 1, 0, 1], [5, 97], []] as [[UInt8]] {
            let query: [UInt8] = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0] + bytes
            #expect(service.decide(query) == .answer([1, 2, 0x81, 0x84, 0, 0, 0, 0, 0, 0, 0, 0]))
        }
    }
}
