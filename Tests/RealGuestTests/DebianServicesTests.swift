internal import Foundation
internal import Testing

/// One start of a Debian with a card, two folders and a socket: what people do over them, by the programs that they do it
/// with. Its network reaches this host's loopback and nothing else.
@Suite(
    "A Debian's network, folders and sockets", .serialized,
    .enabled(if: RealGuest.hasDebian, "no Debian image: run scripts/debian-image (needs mmdebstrap and a mirror)"),
    .enabled(if: RealGuest.hasNetworkTools, "one of these is missing: ssh, ssh-keygen, iperf3, python3, dpkg-deb"))
struct DebianServicesTests {
    /// In this order: ssh's, iperf3's, the repository's.
    private let ports: [Int]
    private let scratch: Scratch
    private static let host = "host.martlet.internal"

    init() throws {
        scratch = try Scratch()
        ports = try HostServer.freePorts(3)
        try #require(ports.count == 3)
        for name in ["work", "fixed"] {
            try FileManager.default.createDirectory(
                atPath: scratch.path(name), withIntermediateDirectories: false)
        }
    }

    private func write(_ text: String, to name: String) throws {
        try text.write(toFile: scratch.path(name), atomically: true, encoding: .utf8)
    }

    @Test("ssh, iperf3, apt, what is forbidden, folders, sockets", .timeLimit(.minutes(10)))
    func services() async throws {
        let console = try SerialConsole([
            "--accel", "soft", "--snapshot", "--verbose", RealGuest.debian, "--net", "user,egress=host", "--publish",
            "\(ports[0]):22", "--share", "\(scratch.path("work")):work", "--share", "\(scratch.path("fixed")):fixed:ro",
            "--vsock", "3,\(scratch.path("socket"))",
        ])
        try await console.logIn()
        let state = try await console.run("systemctl is-system-running --wait; systemctl --failed --no-legend --plain")
        #expect(state.text == "running\n", "\(state.text)")
        try await secureShell(console)
        try await throughput(console)
        try await packages(console)
        try await refusal(console)
        try await folders(console)
        try await sockets(console)
        try console.type("sudo poweroff\n")
        #expect(try await console.end() == 0, "\(console.transcript)")
        // What was refused is told when it happens, and counted at the end.
        #expect(console.errors.contains("refused TCP to 192.0.2.1:80"), "\(console.errors)")
        #expect(console.errors.contains(/received \([0-9]+ bytes\)(, [^\n]*)?, [0-9]+ refused/), "\(console.errors)")
    }

    /// Into the guest by a published port, with a key; bytes both ways.
    private func secureShell(_ console: SerialConsole) async throws {
        let key = scratch.path("key")
        let made = try RealGuest.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key)
        try #require(made.status == 0, "\(made.text)")
        let publicKey = try String(contentsOfFile: key + ".pub", encoding: .utf8)
            .trimmingCharacters(in: .whitespacesAndNewlines)
        let added = try await console.run(
            "install -d -m 700 ~/.ssh && echo '\(publicKey)' >>~/.ssh/authorized_keys && systemctl is-active ssh")
        #expect(added.text == "active\n", "\(added.text)")
        // The prompt has not waited for the RSA key, which comes when nothing else is to be done.
        let keys = try await console.run(
            "for i in $(seq 90); do [ -s /etc/ssh/ssh_host_rsa_key ] && break; sleep 1; done; "
                + "cd /etc/ssh && for k in *_key; do ssh-keygen -l -f $k.pub | cut -d ' ' -f 4; done")
        #expect(keys.text == "(ECDSA)\n(ED25519)\n(RSA)\n", "\(keys.text)")
        let bytes = Data((0..<2_000_000).map { UInt8(truncatingIfNeeded: $0 &* 13 ^ $0 >> 7) })
        try bytes.write(to: URL(filePath: scratch.path("in")))
        let options = """
            -F /dev/null -i \(key) -p \(ports[0]) -o BatchMode=yes -o ConnectTimeout=30 -o LogLevel=ERROR \
            -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
            """
        let returned = try RealGuest.run(
            "sh", "-c",
            "cd '\(scratch.directory.path)' && timeout 120 ssh \(options) debian@127.0.0.1 'cat; id -un >&2; exit 5' <in >out"
        )
        #expect(returned.status == 5 && returned.text == "debian\n", "\(returned.text)")
        #expect(try Data(contentsOf: URL(filePath: scratch.path("out"))) == bytes)
    }

    private func throughput(_ console: SerialConsole) async throws {
        let server = try HostServer("iperf3", ["--server", "--bind", "127.0.0.1", "--port", "\(ports[1])"])
        defer { withExtendedLifetime(server) {} }
        for direction in ["", "--reverse"] {
            // It may not listen yet.
            let run = try await console.run(
                "for i in 1 2 3 4 5; do iperf3 -c \(Self.host) -p \(ports[1]) -t 1 -f k \(direction) >/tmp/iperf && break; "
                    + "sleep 1; done; grep receiver /tmp/iperf")
            let rate = run.text.firstMatch(of: /([0-9]+) Kbits/).flatMap { Int($0.output.1) }
            // Far below what it reaches on any machine: that it moves at all.
            #expect(try #require(rate, "\(run.text)") > 1000, "\(run.text)")
        }
    }

    private func packages(_ console: SerialConsole) async throws {
        let repository = try PackageRepository(scratch)
        let server = try HostServer(
            "python3",
            ["-m", "http.server", "--bind", "127.0.0.1", "--directory", repository.directory, "\(ports[2])"])
        defer { withExtendedLifetime(server) {} }
        let url = "http://\(Self.host):\(ports[2])"
        _ = try await console.run(
            "sudo rm -f /etc/apt/sources.list.d/*; "
                + "echo 'deb [trusted=yes] \(url) ./' | sudo tee /etc/apt/sources.list.d/probe.list")
        let update = try await console.run("sudo apt-get -q -o Acquire::Retries=5 update")
        #expect(update.status == 0, "\(update.text)")
        let name = PackageRepository.package
        let install = try await console.run(
            "sudo DEBIAN_FRONTEND=noninteractive apt-get -q -y install \(name)")
        #expect(install.status == 0, "\(install.text)")
        #expect(
            try await console.run("\(name) && dpkg -s \(name) | grep Status").text
                == "probed debian\nStatus: install ok installed\n")
    }

    /// Nobody waits for what the policy forbids.
    private func refusal(_ console: SerialConsole) async throws {
        let refused = try await console.run(
            "from=$SECONDS; timeout 30 bash -c 'echo >/dev/tcp/192.0.2.1/80' 2>/dev/null; "
                + "echo $? $((SECONDS - from < 5))")
        #expect(refused.text == "1 1\n", "\(refused.text)")
    }

    private static let lockHolder = """
        import fcntl, os, sys, time
        file = open("locked", "w")
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        open("held", "w").close()
        while not os.path.exists("let-go"): time.sleep(0.02)
        file.write("host"); file.flush()
        time.sleep(0.3)
        """

    private static let folderProgram = """
        import errno, fcntl, os, time
        os.chdir("/mnt/work")
        def fails(number, what, *arguments):
            try: what(*arguments)
            except OSError as error: assert error.errno == number, error
            else: raise AssertionError(what)
        open("file", "w").write("text")
        os.setxattr("file", "user.colour", b"blue")
        assert os.getxattr("file", "user.colour") == b"blue" and os.listxattr("file") == ["user.colour"]
        fails(errno.EOPNOTSUPP, os.setxattr, "file", "trusted.colour", b"blue")
        os.removexattr("file", "user.colour")
        fails(errno.ENODATA, os.getxattr, "file", "user.colour")
        locked = open("locked", "r+")
        fails(errno.EAGAIN, fcntl.lockf, locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
        open("let-go", "w").close()
        fcntl.lockf(locked, fcntl.LOCK_EX)
        time.sleep(1.1) # so long the guest believes the size that it knows
        assert locked.read() == "host"
        fails(errno.EROFS, open, "/mnt/fixed/new", "w")
        fails(errno.EROFS, os.unlink, "/mnt/fixed/file")
        assert open("/mnt/fixed/file").read() == "fixed"
        os.symlink("../secret", "up")
        fails(errno.ENOENT, open, "up")
        print("the folders are right")
        """

    private func folders(_ console: SerialConsole) async throws {
        try write(Self.folderProgram, to: "work/folder.py")
        try write("fixed", to: "fixed/file")
        try write("secret", to: "secret")
        let holder = try HostServer(python: "import os\nos.chdir('\(scratch.path("work"))')\n" + Self.lockHolder)
        while !FileManager.default.fileExists(atPath: scratch.path("work/held")) {
            try await Task.sleep(for: .milliseconds(20))
        }
        let mounted = try await console.run(
            "sudo mkdir /mnt/work /mnt/fixed && sudo mount -t virtiofs work /mnt/work && "
                + "sudo mount -t virtiofs fixed /mnt/fixed")
        #expect(mounted.status == 0, "\(mounted.text)")
        let run = try await console.run("sudo timeout 60 python3 /mnt/work/folder.py")
        #expect(run.text == "the folders are right\n", "\(run.text)")
        #expect(await holder.end().status == 0)
        let copied = try await console.run(
            "sudo cp -r /usr/lib/systemd/system /mnt/work/units && diff -r /usr/lib/systemd/system /mnt/work/units && "
                + "tar -C /mnt/work -c units | tar -t | wc -l")
        let count = Int(copied.text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        let here = try FileManager.default.subpathsOfDirectory(atPath: scratch.path("work/units")).count
        #expect(copied.status == 0 && count > 100 && count == here + 1, "\(copied.text)")
    }

    private static let guestSockets = """
        import hashlib, socket
        def rest(connection):
            parts = []
            while part := connection.recv(65536): parts.append(part)
            return b"".join(parts)
        out = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        out.connect((2, 5000))
        out.sendall(bytes(range(256)) * 8000)
        out.shutdown(socket.SHUT_WR)
        print(rest(out).decode())
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, 1234))
        listener.listen()
        open("/mnt/work/listening", "w").close()
        connection, peer = listener.accept()
        assert peer[0] == 2, peer
        connection.sendall(hashlib.sha256(rest(connection)).hexdigest().encode())
        connection.close()
        """

    private static let hostSockets = """
        import hashlib, os, socket, sys, time
        path, listening = sys.argv[1:]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path + "_5000")
        listener.listen()
        print("ready")
        connection = listener.accept()[0]
        received = connection.makefile("rb").read()
        assert received == bytes(range(256)) * 8000, len(received)
        connection.sendall(b"the host has it all")
        connection.close()
        while not os.path.exists(listening): time.sleep(0.02)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.sendall(b"CONNECT 1234\\n")
        stream = client.makefile("rb")
        line = stream.readline()
        assert line.startswith(b"OK "), line
        data = os.urandom(3_000_000)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == hashlib.sha256(data).hexdigest().encode()
        """

    /// Both ways, as Firecracker's clients speak.
    private func sockets(_ console: SerialConsole) async throws {
        try write(Self.guestSockets, to: "work/sockets.py")
        let host = try HostServer(python: Self.hostSockets, scratch.path("socket"), scratch.path("work/listening"))
        while !FileManager.default.fileExists(atPath: scratch.path("socket_5000")) {
            try await Task.sleep(for: .milliseconds(20))
        }
        // The host's side listens a moment after its socket is there.
        let run = try await console.run("sleep 1; sudo timeout 60 python3 /mnt/work/sockets.py")
        #expect(run.text == "the host has it all\n", "\(run.text)")
        let ended = await host.end()
        #expect(ended.status == 0, "\(ended.text)")
    }
}
