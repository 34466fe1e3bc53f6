internal import Foundation
internal import HostProcess
internal import Testing

@testable internal import CommandLineTool

/// Folders and sockets of the host in the default guest, as a user has them.
@Suite(
    "Shared folders and sockets", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct SharedFolderTests {
    private static let tool = Martlet.bareMetalDirectory.appending(path: "guest-tool")
    static let hasTool = FileManager.default.isExecutableFile(atPath: tool.path)

    private func value(_ name: String, in result: Martlet.Result) -> String? {
        result.outputText.split(separator: "\n").first { $0.hasPrefix(name + "=") }
            .map { String($0.dropFirst(name.count + 1)) }
    }

    /// A folder to share with the tool in it, and a secret beside it.
    private func folder(_ scratch: Scratch) throws -> URL {
        let folder = scratch.file("shared: folder")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: false)
        if Self.hasTool {
            try FileManager.default.copyItem(at: Self.tool, to: folder.appending(path: "guest-tool"))
        }
        try Data("secret\n".utf8).write(to: scratch.file("secret"))
        return folder
    }

    private static let pattern = Data((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 9 ^ $0 >> 16) })

    @Test(
        "A folder from both sides", .enabled(if: hasTool, "no guest-tool: run scripts/build-guests"),
        arguments: ["translator", "interpreter"])
    func bothSides(engine: String) async throws {
        let scratch = try Scratch()
        let folder = try folder(scratch)
        func file(_ name: String) -> URL { folder.appending(path: name) }
        try Self.pattern.write(to: file("in"))
        try FileManager.default.createSymbolicLink(atPath: file("up").path, withDestinationPath: "../secret")
        try FileManager.default.createSymbolicLink(
            atPath: file("absolute").path, withDestinationPath: scratch.file("secret").path)
        let locked = open(file("locked").path, O_RDWR | O_CREAT, 0o644)
        defer { close(locked) }
        #expect(flockAll(locked, F_WRLCK) == 0)
        let script = """
            cd /mnt/data
            echo sum=$(sha256sum <in | cut -d ' ' -f 1)
            cp in out
            echo text >a; mv a b; ln b c; ln -s b d; mkdir -p e/f; mv b e/f/g; rm c
            echo more >>e/f/g
            echo renamed=$(cat e/f/g | tr '\\n' ' ') $(ls | wc -l) $(stat -c %h e/f/g)
            chmod 751 e; touch -d @1000000000 e/f
            echo mode=$(stat -c %a e) $(stat -c %Y e/f)
            cat up 2>/dev/null || echo up=refused
            cat absolute 2>/dev/null || echo absolute=refused
            ls /mnt/data/.. | grep -q secret || echo above=nothing
            echo x 2>/dev/null >/mnt/fixed/new || echo fixed=refused
            echo reads=$(cat /mnt/fixed/file)
            mkdir many; for i in $(seq 1 300); do echo $i >many/$i; done
            echo many=$(ls many | wc -l) $(cat many/* | awk '{ s += $1 } END { print s }')
            truncate -s 10 e/f/g; echo size=$(wc -c <e/f/g)
            exec 5<>deleted; rm deleted; echo still >&5; echo deleted=$(cat /proc/self/fd/5)
            ./guest-tool setattr e/f/g value; echo attribute=$(./guest-tool getattr e/f/g)
            ./guest-tool trylock locked; echo try=$?
            (sleep 1; echo go >waiting) & ./guest-tool lock locked; echo lock=$?
            echo df=$(df /mnt/data | tail -n 1 | awk '{ print $6 }')
            """
        let fixed = scratch.file("fixed")
        try FileManager.default.createDirectory(at: fixed, withIntermediateDirectories: false)
        try Data("fixed".utf8).write(to: fixed.appending(path: "file"))
        // Lets the guest have its lock when the guest says that it waits.
        let unlock = Task {
            while !FileManager.default.fileExists(atPath: file("waiting").path) {
                try await Task.sleep(for: .milliseconds(20))
            }
            #expect(flockAll(locked, F_UNLCK) == 0)
        }
        defer { unlock.cancel() }
        let result = try await Martlet.run(
            [
                "run", "--timeout", "20m", "--accel", "soft", "--engine", engine, "--share", "\(folder.path):data",
                "--share", "\(fixed.path):fixed:ro", "--", "sh", "-c", script,
            ])
        #expect(result.status == 0, "\(result.errors)")
        let expected = [
            "sum": try sha256(file("in")), "renamed": "text more 8 1", "mode": "751 1000000000", "up": "refused",
            "absolute": "refused", "above": "nothing", "fixed": "refused", "reads": "fixed", "many": "300 45150",
            "size": "10", "deleted": "still", "attribute": "value", "try": "1", "lock": "0", "df": "/mnt/data",
        ]
        for (name, text) in expected {
            #expect(value(name, in: result) == text, "\(name): \(result.outputText) \(result.errors)")
        }
        #expect(try Data(contentsOf: file("out")) == Self.pattern)
        #expect(try Data(contentsOf: file("e/f/g")) == Data("text\nmore\n".utf8))
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: file("d").path) == "b")
        #expect(try FileManager.default.contentsOfDirectory(atPath: fixed.path) == ["file"])
        #expect(!FileManager.default.fileExists(atPath: file("deleted").path))
        #expect(try String(contentsOf: file("many/300"), encoding: .utf8) == "300\n")
    }

    @Test("A folder where everything happens in the guest's own steps")
    func lockstep() async throws {
        let scratch = try Scratch()
        let folder = try folder(scratch)
        try Self.pattern.write(to: folder.appending(path: "in"))
        let result = try await Martlet.run(
            [
                "run", "--timeout", "20m", "--engine", "lockstep", "--share", "\(folder.path):data", "--", "sh", "-c",
                "cd /mnt/data; head -c 300000 in >out; ls | wc -l",
            ])
        #expect(result.status == 0, "\(result.errors)")
        #expect(try Data(contentsOf: folder.appending(path: "out")) == Self.pattern.prefix(300_000))
        let refused = try await Martlet.run(
            ["run", "--engine", "lockstep", "--vsock", "3,\(scratch.file("s").path)", "--", "true"])
        #expect(refused.status == 125 && refused.errors.contains("--vsock"), "\(refused.errors)")
    }

    @Test("Sockets from both sides", .enabled(if: hasTool, "no guest-tool: run scripts/build-guests"))
    func sockets() async throws {
        let scratch = try Scratch()
        let folder = try folder(scratch)
        let path = scratch.file("s").path
        try Self.pattern.write(to: folder.appending(path: "in"))
        // Port 700: answers with what came, when all has come.
        let server = try UnixSocket.listening(at: path + "_700")
        let served = try Background {
            let connection = try server.accepted()
            let received = connection.readAll()
            connection.write(received)
            return received
        }
        // Port 1234 of the guest, which sends back what comes.
        let listening = folder.appending(path: "listening")
        let echoed = try Background {
            let end = ContinuousClock.now + .seconds(300)
            while (try? Data(contentsOf: listening))?.isEmpty != false, ContinuousClock.now < end {
                Thread.sleep(forTimeInterval: 0.02)
            }
            let connection = try UnixSocket.connected(to: path)
            connection.write(Data("CONNECT 1234\n".utf8))
            let line = connection.readLine()
            // The guest sends back while it receives.
            let writer = Thread {
                connection.write(Self.pattern)
                shutdown(connection.descriptor, Int32(SHUT_WR))
            }
            writer.start()
            return (line, connection.readAll())
        }
        let script = """
            cd /mnt/data
            ./guest-tool connect 700 <in >out; echo connect=$?
            ./guest-tool connect 701 </dev/null; echo refused=$?
            ./guest-tool echo 1234 >listening; echo echo=$?
            """
        let result = try await Martlet.run(
            [
                "run", "--timeout", "20m", "--accel", "soft", "--share", "\(folder.path):data", "--vsock", "3,\(path)",
                "--", "sh", "-c", script,
            ])
        #expect(result.status == 0, "\(result.errors)")
        try #require(value("connect", in: result) == "0" && value("refused", in: result) == "1", "\(result.outputText)")
        try #require(value("echo", in: result) == "0", "\(result.outputText)")
        #expect(try served.value() == Self.pattern)
        #expect(try Data(contentsOf: folder.appending(path: "out")) == Self.pattern)
        let (line, data) = try echoed.value()
        #expect(line.hasPrefix("OK ") && data == Self.pattern)
        // The socket goes with the machine.
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("What cannot be shared is one line")
    func badShares() async throws {
        let scratch = try Scratch()
        try Data().write(to: scratch.file("file"))
        let missing = scratch.file("missing").path
        for (options, words) in [
            (["--share", "\(missing):data"], "No such file"),
            (["--share", "\(scratch.file("file").path):data"], "Not a directory"),
            (["--vsock", "3,\(scratch.file("file").path)"], "Cannot listen"),
            (["--vsock", "3,\(missing)/s"], "Cannot listen"),
        ] {
            let result = try await Martlet.run(["run"] + options + ["--", "true"])
            #expect(result.status == 125 && result.errorLines.count == 1, "\(result.errors)")
            #expect(result.errors.contains(words), "\(result.errors)")
        }
    }

    // MARK: Help

    private func sha256(_ file: URL) throws -> String {
        let process = try HostProcess("/usr/bin/sha256sum", [file.path], output: .pipe)
        return String(decoding: process.readToEnd().prefix(64), as: UTF8.self)
    }
}

/// A lock on a whole file that belongs to the open file, as another process's would (F_OFD_SETLK).
private func flockAll(_ file: Int32, _ type: Int32) -> Int32 {
    let setLock: Int32 = 37
    var lock = flock(l_type: Int16(type), l_whence: 0, l_start: 0, l_len: 0, l_pid: 0)
    return fcntl(file, setLock, &lock)
}
