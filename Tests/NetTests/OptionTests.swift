import Host
import Testing

@testable import Net

@Suite struct OptionTests {
    private func user(_ change: (inout UserConfiguration) -> Void = { _ in }) -> NetworkConfiguration {
        var user = UserConfiguration()
        change(&user)
        return NetworkConfiguration(.user(user))
    }

    private func with(_ configuration: NetworkConfiguration, _ change: (inout NetworkConfiguration) -> Void)
        -> NetworkConfiguration
    {
        var result = configuration
        change(&result)
        return result
    }

    @Test func networks() throws {
        let prefix = try #require(AddressPrefix("192.0.2.0/24"))
        let prefix6 = try #require(AddressPrefix("2001:db8::/32"))
        let table: [(String, NetworkConfiguration)] = [
            ("user", user()),
            ("none", NetworkConfiguration(.none)),
            ("user,egress=host", user { $0.egress = .host }),
            (
                "user,egress=none,name=lan,ipv6=on",
                with(
                    user {
                        $0.egress = .none; $0.hasIPv6 = true
                    }
                ) { $0.name = "lan" }
            ),
            (
                "user,egress=host,192.0.2.0/24:443/tcp,dns,mac=02:00:5e:10:00:01",
                with(
                    user {
                        $0.egress = .list([
                            .host, .destination(prefix, EgressPorts(443...443, allowsUDP: false)), .resolver,
                        ])
                    }
                ) { $0.mac = MACAddress(rawValue: 0x0200_5E10_0001) }
            ),
            (
                "user,egress=[2001:db8::]/32:8000-8100/udp,mtu=9000",
                with(
                    user { $0.egress = .list([.destination(prefix6, EgressPorts(8000...8100, allowsTCP: false))]) }
                ) { $0.mtu = 9000 }
            ),
            ("user,egress=[2001:db8::/32]:*", user { $0.egress = .list([.destination(prefix6, .all)]) }),
            ("tap,name=tap0", NetworkConfiguration(.tap(.name("tap0")))),
            ("tap,fd=7", NetworkConfiguration(.tap(.descriptor(7)))),
            ("tap,name=tap0,vhost=auto", NetworkConfiguration(.tap(TapConfiguration(.name("tap0"))))),
            ("tap,vhost=on,fd=7", NetworkConfiguration(.tap(TapConfiguration(.descriptor(7), vhost: .required)))),
            ("tap,name=tap0,vhost=off", NetworkConfiguration(.tap(TapConfiguration(.name("tap0"), vhost: .never)))),
            (
                "tap,name=tap0,queues=2,capture=x",
                with(NetworkConfiguration(.tap(.name("tap0")))) {
                    $0.queuePairs = 2
                    $0.capturePath = "x"
                }
            ),
            (
                "socket,path=/run/a,peer=/run/b",
                NetworkConfiguration(.socket(SocketConfiguration(path: "/run/a", peer: "/run/b")))
            ),
            (
                "user,bandwidth=10M,operations=1000,burst=64K,operations-burst=5,capture=/tmp/x.pcapng",
                with(user()) {
                    $0.limits = TrafficLimits(
                        bandwidth: 10 << 20, operations: 1000, burst: 64 << 10, operationsBurst: 5)
                    $0.capturePath = "/tmp/x.pcapng"
                }
            ),
        ]
        for (text, expected) in table { #expect(try NetworkConfiguration(option: text) == expected, "\(text)") }
    }

    @Test(arguments: [
        ("", "There is no network ''; the networks are: user, tap, socket, none."),
        ("bridge", "There is no network 'bridge'; the networks are: user, tap, socket, none."),
        ("user,", "'' is not KEY=VALUE."),
        ("user,egress", "'egress' is not KEY=VALUE."),
        ("user,mac=", "'mac=' is not KEY=VALUE."),
        ("user,mac=02:00:5e:10:00:01,192.0.2.0/24:1", "'192.0.2.0/24:1' is not KEY=VALUE."),
        ("user,mtu=1500,mtu=1500", "'mtu' is there twice."),
        ("user,path=/x", "The network 'user' has no 'path'."),
        ("none,mac=02:00:5e:10:00:01", "The network 'none' has no 'mac'."),
        ("user,mtu=500", "mtu must be from 576 to 65521."),
        ("user,ipv6=on,mtu=1000", "ipv6=on needs an mtu of 1280 or more."),
        ("user,ipv6=yes", "ipv6 is on or off."),
        (
            "user,mac=01:00:5e:10:00:01",
            "'01:00:5e:10:00:01' is no card's address; write six bytes, the first one even: mac=02:00:5e:10:00:01."
        ),
        (
            "user,bandwidth=fast",
            "'bandwidth=fast' is no amount; write bandwidth=1000, bandwidth=64K or bandwidth=10M."
        ),
        ("user,burst=1K", "burst= needs bandwidth=."),
        ("tap", "tap needs one of two: tap,name=tap0 or tap,fd=3."),
        ("tap,name=tap0,fd=3", "tap needs one of two: tap,name=tap0 or tap,fd=3."),
        ("tap,fd=0", "'0' is no descriptor for a network; write tap,fd=3."),
        ("tap,name=a/b", "'a/b' is no interface's name; write tap,name=tap0."),
        ("tap,name=tap0,vhost=yes", "vhost is auto, on or off."),
        ("user,vhost=on", "The network 'user' has no 'vhost'."),
        (
            "tap,name=tap0,vhost=on,capture=x",
            "vhost=on does not go with a capture: frames in the kernel do not pass here; leave out one of the two."
        ),
        (
            "tap,name=tap0,vhost=on,bandwidth=1M",
            "vhost=on does not go with bandwidth= and operations=: frames in the kernel do not pass here; leave out one "
                + "of the two."
        ),
        (
            "tap,name=tap0,vhost=on,queues=2",
            "vhost=on does not go with queues=2: a tap has one queue; leave out one of the two."
        ),
        ("socket,path=/a", "socket needs two paths: socket,path=/run/a,peer=/run/b."),
        ("socket,path=/a,peer=/a", "socket needs two paths: socket,path=/run/a,peer=/run/b."),
    ])
    func problems(text: String, message: String) {
        #expect(throws: NetworkOptionError(message)) { _ = try NetworkConfiguration(option: text) }
    }

    @Test(arguments: [
        "", "hosts", "192.0.2.1", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:9-8", "192.0.2.1:+1",
        "192.0.2.0/33:1", "192.0.2:1", "192.0.2.01:1", "2001:db8::1:80", "[2001:db8::1:80", "192.0.2.1:80/sctp",
        "192.0.2.1:80/tcp/udp", "host,,dns", "[::1]x:1",
    ])
    func impossiblePolicies(text: String) {
        #expect(throws: NetworkOptionError.self) { _ = try EgressPolicy(option: text) }
    }

    @Test func publishedPorts() throws {
        let table: [(String, PublishedPort)] = [
            ("8080:80", PublishedPort(hostPort: 8080, guestPort: 80)),
            ("8080:80/tcp", PublishedPort(hostPort: 8080, guestPort: 80)),
            ("5353:53/udp", PublishedPort(hostPort: 5353, guestPort: 53, isUDP: true)),
            ("0.0.0.0:8080:80", PublishedPort(address: 0, hostPort: 8080, guestPort: 80)),
            ("192.0.2.7:1:65535/udp", PublishedPort(address: 0xC000_0207, hostPort: 1, guestPort: 65_535, isUDP: true)),
        ]
        for (text, expected) in table { #expect(try PublishedPort(option: text) == expected) }
        for text in ["", "80", "0:80", "80:0", "80:80/sctp", "a:80", "1:2:3", "::1:80:80", "80:80/", "1.2.3.4:5:80:80"]
        {
            #expect(throws: NetworkOptionError.self, "\(text)") { _ = try PublishedPort(option: text) }
        }
    }

    @Test(arguments: [
        ("::", "::"), ("::1", "::1"), ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"), ("fe80::", "fe80::"),
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"), ("1:0:3:4:5:6:7:8", "1:0:3:4:5:6:7:8"), ("192.0.2.1", "192.0.2.1"),
    ])
    func addressesAreWrittenAsRead(text: String, expected: String) throws {
        #expect("\(try #require(IPAddress(text)))" == expected)
    }

    @Test(arguments: [
        "1:2:3:4:5:6:7", "1::2::3", ":1", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::8", "g::", "12345::", "1.2.3", "",
    ])
    func impossibleAddresses(text: String) { #expect(IPAddress(text) == nil) }

    @Test func aRandomAddressIsOurOwnToGive() {
        let mac = NetworkConfiguration().chooseMAC()
        #expect(mac.bytes[0] == 2 && mac.bytes.count == 6)
        #expect(MACAddress(mac.description) == mac)
    }

    @Test func savedStateIsReadAsWritten() throws {
        var statistics = NetworkStatistics()
        statistics.sentFrames = 5
        statistics.egress.answeredNames = 7
        statistics.egress.refusedICMP = .max
        let state = NetworkSavedState(mac: MACAddress(rawValue: 0x0200_0000_0001), mtu: 1500, statistics: statistics)
        #expect(NetworkSavedState(fields: state.fields) == state)
        for index in 0..<2 {
            var fields = state.fields
            fields[index] = .max
            #expect(NetworkSavedState(fields: fields) == nil)
        }
        #expect(NetworkSavedState(fields: []) == nil)
    }
}
