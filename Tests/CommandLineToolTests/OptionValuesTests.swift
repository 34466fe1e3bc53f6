internal import Disk
internal import Host
internal import Net
internal import Testing
internal import VMM
internal import Virtio

@testable internal import CommandLineTool

@Suite("Option values")
struct OptionValuesTests {
    @Test(
        "Memory sizes",
        arguments: [
            ("512M", 512 << 20), ("2G", 2 << 30), ("2g", 2 << 30), ("4096K", 4 << 20), ("1GiB", 1 << 30),
            ("512MB", 512 << 20), ("2097152", 2 << 20), ("2097152B", 2 << 20), ("1T", 1 << 40),
        ] as [(String, UInt64)])
    func memory(text: String, bytes: UInt64) throws {
        #expect(try MemorySize.parse(text).bytes == bytes)
    }

    @Test(
        "Memory sizes that are none",
        arguments: [
            "", "0", "1", "M", "-1", "1.5G", "512", "2097153", "99999999999999999999", "18014398509481984K", "5X",
            " 2G",
            "٣M",
        ])
    func badMemory(text: String) {
        #expect(throws: (any Error).self) { try MemorySize.parse(text) }
    }

    @Test(
        "Time spans",
        arguments: [
            ("30s", .seconds(30)), ("30", .seconds(30)), ("5m", .seconds(300)), ("1h", .seconds(3600)),
            ("500ms", .milliseconds(500)),
        ] as [(String, Duration)])
    func timeSpan(text: String, expected: Duration) throws {
        #expect(try TimeSpan.parse(text) == expected)
    }

    @Test("Time spans that are none", arguments: ["", "0", "s", "-1s", "5d", "99999999999999999999s", "999999999h"])
    func badTimeSpan(text: String) {
        #expect(throws: (any Error).self) { try TimeSpan.parse(text) }
    }

    @Test(
        "Ports",
        arguments: [
            ("agent=unix:/run/a:b=c", PortOption(name: "agent", target: .socket, path: "/run/a:b=c")),
            ("org.qemu.guest_agent.0=file:log", PortOption(name: "org.qemu.guest_agent.0", target: .file, path: "log")),
        ])
    func port(text: String, expected: PortOption) throws {
        #expect(try PortOption.parse(text) == expected)
        #expect(throws: (any Error).self) { try PortOption.check([expected, expected]) }
        #expect(throws: (any Error).self) {
            try PortOption.check((0..<16).map { PortOption(name: "\($0)", target: .file, path: "f") })
        }
    }

    @Test(
        "Ports that are none",
        arguments: ["", "a", "=unix:/s", "a=unix:", "a=unix", "a=tcp:1", "a b=unix:/s", "a/b=file:f", ".a=file:f"])
    func badPort(text: String) {
        #expect(throws: (any Error).self) { try PortOption.parse(text) }
    }

    @Test(
        "Balloons",
        arguments: [
            ("target=0", 0, false, false), ("target=256M", 65536, false, false),
            ("free-page-reporting", 0, false, true), ("deflate-on-oom,target=4M,free-page-reporting", 1024, true, true),
        ] as [(String, UInt32, Bool, Bool)])
    func balloon(text: String, pages: UInt32, deflates: Bool, reports: Bool) throws {
        let options = BalloonOptions(deflatesOnOOM: deflates, reportsFreePages: reports)
        #expect(try BalloonOption.parse(text) == BalloonOption(targetPages: pages, options: options))
    }

    @Test("Balloons that are none", arguments: ["", "target", "target=", "target=1", "target=100T", "x", "target=0,"])
    func badBalloon(text: String) {
        #expect(throws: (any Error).self) { try BalloonOption.parse(text) }
    }

    @Test(
        "Devices",
        arguments: [
            ("isa-debug-exit", DebugExitConfiguration()),
            ("isa-debug-exit,iobase=0x501,iosize=1", DebugExitConfiguration(base: 0x501, size: 1)),
            ("isa-debug-exit,iosize=2", DebugExitConfiguration(base: 0xf4, size: 2)),
            ("isa-debug-exit,iobase=244", DebugExitConfiguration()),
        ])
    func device(text: String, expected: DebugExitConfiguration) throws {
        #expect(try DeviceOption.parse(text) == .debugExit(expected))
        #expect(try DeviceOption.parse("virtio-rng") == .entropy)
    }

    @Test(
        "Devices that are none",
        arguments: [
            "", "virtio-blk", "virtio-rng,x", "isa-debug-exit,", "isa-debug-exit,iobase",
            "isa-debug-exit,iobase=0x10000",
            "isa-debug-exit,iosize=3", "isa-debug-exit,iobase=0xffff,iosize=4", "isa-debug-exit,x=1",
        ])
    func badDevice(text: String) {
        #expect(throws: (any Error).self) { try DeviceOption.parse(text) }
    }

    @Test("Disks")
    func disk() throws {
        #expect(try DiskOption.parse("a.raw") == DiskOption(path: "a.raw"))
        let full = try DiskOption.parse(
            "/x/a,,b.raw,readonly,format=raw,serial=S1,queues=4,cache=unsafe,aio=threads,operations=100,bandwidth=2M,burst=4M"
        )
        #expect(full.path == "/x/a,b.raw" && full.isReadOnly && full.format == .raw)
        #expect(try DiskOption.parse("a,format=qcow2").format == .qcow2)
        #expect(full.options.serial == "S1" && full.options.queueCount == 4 && full.options.cache == .unsafe)
        #expect(full.options.transfers == .threads)
        #expect(try DiskOption.parse("a,aio=io_uring").options.transfers == .ioUring)
        #expect(try DiskOption.parse("a,on-error=stop").options.onError == .stop)
        #expect(try DiskOption.parse("a,on-error=enospc").options.onError == .stopWhenFull)
        #expect(full.options.limits == .init(bandwidth: 2 << 20, operations: 100, burst: 4 << 20))
    }

    @Test(
        "Disks that are none",
        arguments: [
            "", ",readonly", "a,", "a,readonly=1", "a,format=vmdk", "a,format", "a,serial=", "a,serial=a b",
            "a,serial=123456789012345678901", "a,queues=0", "a,queues=17", "a,queues=x", "a,cache=fast",
            "a,operations=0",
            "a,aio=native", "a,aio", "a,on-error", "a,on-error=ignore", "a,bandwidth=x", "a,bandwidth=0", "a,burst=1M",
            "a,bandwidth=99999999999999999999", "a,x=1",
        ])
    func badDisk(text: String) {
        #expect(throws: (any Error).self) { try DiskOption.parse(text) }
    }

    @Test(
        "Times of phases",
        arguments: [
            (Duration.milliseconds(7), "[   0.007 s]"), (.seconds(12) + .milliseconds(345), "[  12.345 s]"),
            (.seconds(12345), "[12345.000 s]"),
        ])
    func phaseTime(time: Duration, expected: String) {
        #expect(EndReport.text(of: time) == expected)
    }

    /// (values of --net, of --publish, of --capture; the kinds of cards, how many ports each publishes, their captures)
    private static let cards: [([String], [String], String?, [String])] = [
        ([], [], nil, []),
        ([], ["8080:80"], nil, ["user 1 -"]),
        ([], [], "file", ["user 0 file"]),
        ([], ["8080:80", "5353:53/udp"], "file", ["user 2 file"]),
        (["none"], [], nil, ["none 0 -"]),
        (["tap,name=a", "user", "user"], ["8080:80"], nil, ["tap 0 -", "user 1 -", "user 0 -"]),
        (["user,capture=x", "tap,fd=3,capture=y"], [], nil, ["user 0 x", "tap 0 y"]),
    ]

    @Test("Cards, published ports and captures", arguments: cards)
    func networks(net: [String], publish: [String], capture: String?, expected: [String]) throws {
        let cards = try NetworkOptions.cards(
            try net.map(NetworkOptions.parse), publish: try publish.map(NetworkOptions.parsePort), capture: capture)
        let found = cards.map { card in
            let (kind, ports) =
                switch card.kind {
                case .user(let user): ("user", user.publishedPorts.count)
                case .tap: ("tap", 0)
                case .socket: ("socket", 0)
                case .none: ("none", 0)
                }
            return "\(kind) \(ports) \(card.capturePath ?? "-")"
        }
        #expect(found == expected)
    }

    @Test(
        "Shared folders",
        arguments: [
            ("/srv:data", ShareOption(path: "/srv", tag: "data")),
            ("/srv:data:ro", ShareOption(path: "/srv", tag: "data", isReadOnly: true)),
            ("/a:b:c", ShareOption(path: "/a:b", tag: "c")),
            ("/a:ro:c:ro", ShareOption(path: "/a:ro", tag: "c", isReadOnly: true)),
            ("a:x-1_2.Z", ShareOption(path: "a", tag: "x-1_2.Z")),
        ])
    func share(text: String, expected: ShareOption) throws {
        #expect(try ShareOption.parse(text) == expected)
    }

    @Test(
        "Shared folders that are none",
        arguments: [
            "", "/srv", ":data", "/srv:", "/srv:ro", "/srv::ro", "/srv:a b", "/srv:a/b", "/srv:..", "/srv:-x", "/srv:ä",
            "/srv:" + String(repeating: "x", count: 37),
        ])
    func badShare(text: String) {
        #expect(throws: (any Error).self) { try ShareOption.parse(text) }
    }

    @Test("Sockets")
    func socket() throws {
        #expect(try SocketOption.parse("3,/run/s") == SocketOption(guestCID: 3, path: "/run/s"))
        #expect(try SocketOption.parse("4294967294,a,b") == SocketOption(guestCID: 4_294_967_294, path: "a,b"))
        for text in ["", "3", "3,", "2,/s", "0,/s", "4294967295,/s", "x,/s", "-1,/s", ",/s"] {
            #expect(throws: (any Error).self) { try SocketOption.parse(text) }
        }
    }
}
