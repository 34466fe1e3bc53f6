internal import Foundation
internal import HostNetwork
internal import HostProcess
internal import Testing

/// Networks of the default guest, through the release binary. No packet leaves the machine: the guests reach the host's
/// loopback, or a namespace of the test's own.
@Suite(
    "Networks of the default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct NetworkBootTests {
    /// Pseudo-random bytes, the same in every run.
    private static func data(_ count: Int) -> [UInt8] {
        var state: UInt64 = 0x9E37_79B9_7F4A_7C15
        return (0..<count).map { _ in
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return UInt8(truncatingIfNeeded: state >> 32)
        }
    }

    private static let echoProgram = Martlet.bareMetalDirectory.appending(path: "linux-udp-echo.elf")
    private static let hasEchoProgram = FileManager.default.fileExists(atPath: echoProgram.path)

    /// A server on the loopback that gives `data` to the first connection and keeps what the second one sends.
    private struct Peer {
        let port: UInt16
        let returned: Background<[UInt8]>

        init(_ data: [UInt8]) throws {
            let socket = LoopbackSocket(isUDP: false)
            port = socket.port
            returned = try Background {
                // Until it has booted.
                var first: LoopbackSocket?
                for _ in 0..<5 where first == nil { first = socket.acceptOne() }
                _ = first?.writeAll(data)
                first = nil
                return socket.acceptOne()?.readAll() ?? []
            }
        }
    }

    @Test("A user network: data both ways, names, and what the policy refuses", arguments: [1, 4])
    func user(queues: Int) async throws {
        let data = Self.data(5_000_000)
        let peer = try Peer(data)
        let port = peer.port
        let script = """
            echo lease=$(ip -4 addr show eth0 | awk '/inet / { print $2 }')
            echo vectors=$(grep -c virtio0- /proc/interrupts)
            echo mac=$(cat /sys/class/net/eth0/address) mtu=$(cat /sys/class/net/eth0/mtu)
            nc host.martlet.internal \(port) </dev/null >/tmp/data
            echo size=$(wc -c </tmp/data)
            nc 10.0.2.2 \(port) </tmp/data
            from=$(cut -d . -f 1 /proc/uptime)
            nc 192.0.2.1 80 </dev/null 2>/dev/null ||
                echo soon=$(($(cut -d . -f 1 /proc/uptime) - from < 5))
            nslookup example.com 2>&1 | grep -q NXDOMAIN && echo name=unknown
            """
        let scratch = try Scratch()
        let capture = scratch.file("capture")
        let result = try await Martlet.run([
            "run", "--timeout", "20m", "--net", "user,egress=host,mac=02:00:5e:10:00:01,mtu=1400,queues=\(queues)",
            "--capture", capture.path, "--", "sh", "-c", script,
        ])
        #expect(result.status == 0, "\(result.errors)")
        // A vector for the configuration, and two for each pair.
        #expect(
            result.outputText == """
                lease=10.0.2.15/24
                vectors=\(2 * queues + 1)
                mac=02:00:5e:10:00:01 mtu=1400
                size=5000000
                soon=1
                name=unknown

                """)
        #expect(try peer.returned.value() == data)
        #expect(result.errors == "martlet: user: egress refused TCP to 192.0.2.1:80\n")
        // A pcapng file with at least what was transferred.
        let captured = try Data(contentsOf: capture)
        #expect(captured.prefix(4) == Data([0x0A, 0x0D, 0x0D, 0x0A]) && captured.count > 2 * data.count)
    }

    @Test("Published ports lead to the guest, TCP and UDP", .enabled(if: hasEchoProgram, "run ./scripts/build-guests"))
    func published() async throws {
        let scratch = try Scratch()
        let (tcp, udp) = (freePort(isUDP: false), freePort(isUDP: true))
        let process = try HostProcess(
            Martlet.path,
            [
                "run", "--timeout", "20m", "--net", "user,egress=none", "--publish", "\(tcp):80", "--publish",
                "\(udp):7/udp", "--", "sh", "-c",
                """
                cat >/tmp/echo; chmod +x /tmp/echo; /tmp/echo &
                seq 1 100000 >/tmp/page; httpd -p 80 -h /tmp; echo ready; sleep 1000
                """,
            ], input: .file(Self.echoProgram.path), output: .file(scratch.file("out").path),
            errors: .file(scratch.file("err").path))
        let limit = ContinuousClock.now + .seconds(300)
        while ContinuousClock.now < limit, process.isRunning,
            try String(contentsOf: scratch.file("out"), encoding: .utf8) != "ready\n"
        { try await Task.sleep(for: .milliseconds(20)) }
        let client = try #require(LoopbackSocket(isUDP: false, connectedTo: tcp))
        client.write(Array("GET /page HTTP/1.0\r\n\r\n".utf8))
        let answer = client.readAll()
        var page: [UInt8] = []
        for number in 1...100_000 { page += Array("\(number)\n".utf8) }
        #expect(answer.prefix(15).suffix(7) == Array(" 200 OK".utf8)[...] && answer.suffix(page.count) == page[...])
        let datagrams = try #require(LoopbackSocket(isUDP: true, connectedTo: udp))
        for size in [1, 700, 1400, 9000] {
            let bytes = Self.data(size)
            datagrams.write(bytes)
            #expect(datagrams.read(upTo: 65_536) == bytes)
        }
        // Its ending is ours: by Ctrl-C, which also ends the networks.
        process.signal(SIGINT)
        #expect(!(await process.waitOrKill(limit: .seconds(20))))
        #expect(process.status == 130)
        #expect(LoopbackSocket(isUDP: false, connectedTo: tcp) == nil)
        #expect(try String(contentsOf: scratch.file("err"), encoding: .utf8).split(separator: "\n").count <= 1)
    }

    @Test(
        "A tap device, and a card without a cable",
        .enabled(if: canMakeNetworks, "needs the right to make network namespaces, /dev/net/tun and ip(8)"))
    func tap() throws {
        let data = Self.data(3_000_000)
        let path = temporaryPath("tap")
        defer { _ = shell("rm -f \(path)*") }
        try Data(data).write(to: URL(filePath: path))
        // As the default guest sees the namespace: a kernel's stack behind a cable, and nobody who gives addresses.
        let script = """
            ip link set eth1 up; sleep 1; echo cables=$(cat /sys/class/net/eth0/carrier /sys/class/net/eth1/carrier)
            ip addr add 10.9.0.2/24 dev eth0
            nc -l -p 5000 </dev/null >/tmp/data & sleep 1; echo ready >/dev/ttyS2; wait
            nc 10.9.0.1 $PORT </tmp/data
            """
        let returned: [UInt8]? = try inNewNetwork {
            let set = shell(
                "ip tuntap add dev mt0 mode tap && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up")
            precondition(set.status == 0, set.output)
            let server = LoopbackSocket(isUDP: false, address: 0x0A09_0001)
            let machine = try HostProcess(
                Martlet.path,
                [
                    "run", "--timeout", "20m", "--net", "tap,name=mt0", "--net", "none", "--", "sh", "-c",
                    script.replacingOccurrences(of: "$PORT", with: "\(server.port)"),
                ], output: .file(path + "-out"), errors: .file(path + "-err"))
            let isReady = { (try? String(contentsOfFile: path + "-out", encoding: .utf8))?.contains("ready") == true }
            let end = ContinuousClock.now + .seconds(300)
            while !isReady(), machine.isRunning, ContinuousClock.now < end { Thread.sleep(forTimeInterval: 0.1) }
            let client = LoopbackSocket(isUDP: false, connectedTo: 5000, address: 0x0A09_0002)
            _ = client?.writeAll(data)
            client?.finishWriting()
            let result = server.acceptOne()?.readAll() ?? []
            machine.waitUntilExit()
            return result
        }
        #expect(returned == data)
        let output = try String(contentsOfFile: path + "-out", encoding: .utf8)
        #expect(output.hasPrefix("cables=1 0\nready\n"), "\(output)")
    }
}
