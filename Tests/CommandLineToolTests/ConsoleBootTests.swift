internal import Foundation
internal import HostProcess
internal import Testing

@testable internal import CommandLineTool

/// Virtio consoles and ports in the default guest.
@Suite(
    "Consoles and ports of the default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct ConsoleBootTests {
    private static let pattern = Data((0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 9) })

    @Test("Ports lead to a socket and to a file", arguments: ["translator", "interpreter"])
    func ports(engine: String) async throws {
        let scratch = try Scratch()
        let (socket, log) = (scratch.file("agent.sock").path, scratch.file("log"))
        try Data("before\n".utf8).write(to: log)
        // Waits until somebody listens, speaks to the guest, and hears the answer behind its own last word.
        let client = try Background {
            let connection = try UnixSocket.connected(to: socket, within: 300)
            let writer = Thread {
                connection.write(Self.pattern)
                shutdown(connection.descriptor, Int32(SHUT_WR))
            }
            writer.start()
            return connection.readAll()
        }
        let script = """
            ls /dev/virtio-ports | tr '\\n' ' '
            echo words >/dev/virtio-ports/log
            exec 5<>/dev/virtio-ports/org.agent.0
            # Without a client the port is at its end.
            until [ -s /tmp/in ]; do head -c \(Self.pattern.count) <&5 >/tmp/in; done
            sha256sum </tmp/in | cut -d ' ' -f 1
            echo sum=$(wc -c </tmp/in) >&5
            """
        let result = try await Martlet.run(
            [
                "run", "--timeout", "20m", "--accel", "soft", "--engine", engine, "--port",
                "org.agent.0=unix:\(socket)",
                "--port", "log=file:\(log.path)", "--", "sh", "-c", script,
            ])
        try #require(result.status == 0, "\(result.errors)")
        #expect(result.outputText.hasPrefix("log org.agent.0 \(Self.sha256)\n"), "\(result.outputText)")
        #expect(try client.value() == Data("sum=300000\n".utf8))
        #expect(try Data(contentsOf: log) == Data("before\nwords\n".utf8))
        #expect(!FileManager.default.fileExists(atPath: socket), "the socket goes with the machine")
    }

    /// Of the pattern, by sha256sum(1).
    private static let sha256: String = {
        guard let process = try? HostProcess("/usr/bin/sha256sum", input: .pipe, output: .pipe) else {
            return "no sha256sum"
        }
        // It prints nothing before it has read everything.
        process.write(pattern)
        process.closeInput()
        return String(decoding: process.readToEnd().prefix(64), as: UTF8.self)
    }()

    @Test(
        "The terminal is hvc0, and has our terminal's size when that changes",
        .enabled(if: FileManager.default.isExecutableFile(atPath: Terminal.script), "script(1) is missing"))
    func terminal() async throws {
        let scratch = try Scratch()
        let ready = scratch.file("ready").path
        let resize = "until [ -s '\(ready)' ]; do sleep 0.1; done; stty rows 41 cols 121 </dev/tty"
        let typed = """
            tty; stty size; echo go >/dev/virtio-ports/ready; \
            until [ "$(stty size)" = "41 121" ]; do sleep 1; done; echo re''sized; exit

            """
        let text = try await Terminal.run(
            "stty rows 33 cols 101; (\(resize)) & "
                + "\"$MARTLET\" run --timeout 10m --console virtio --port ready=file:\(ready)",
            typed: typed)
        #expect(text.contains("/dev/hvc0") && text.contains("33 101") && text.contains("resized"), "\(text)")
        #expect(text.contains("status=0 same=yes"), "\(text)")
    }

    @Test("A virtio console without a terminal: what is piped in is typed, and its end is Ctrl-D")
    func piped() async throws {
        let result = try await Martlet.run(
            ["run", "--timeout", "10m", "--console", "virtio"], input: Data("tty; echo $((6 * 7))\n".utf8))
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.outputText.contains("/dev/hvc0") && result.outputText.contains("42"), "\(result.outputText)")
    }

    @Test("What cannot be is one line")
    func refused() async throws {
        let scratch = try Scratch()
        try Data().write(to: scratch.file("file"))
        for (options, words) in [
            (["--port", "a=unix:\(scratch.file("file").path)"], "Cannot listen"),
            (["--port", "a=file:\(scratch.directory.path)"], "directory"),
            (["--port", "a=file:/dev/null"], "regular file"),
            (["--engine", "lockstep", "--port", "a=unix:\(scratch.file("s").path)"], "--port"),
            (["--engine", "lockstep", "--console", "virtio"], "--console virtio"),
        ] {
            let result = try await Martlet.run(["run"] + options + ["--", "true"])
            #expect(result.status == 125 && result.errorLines.count == 1, "\(result.errors)")
            #expect(result.errors.contains(words), "\(result.errors)")
        }
        for (options, words) in [
            (["--console", "vga"], "serial, virtio"), (["--port", "a=unix:/a", "--port", "a=unix:/b"], "Two ports"),
            (["--balloon", "target=512M"], "all of the guest's memory"),
        ] {
            let result = try await Martlet.run(["run"] + options + ["--", "true"])
            #expect(result.status == 64 && result.errors.contains(words), "\(result.errors)")
        }
    }
}
