internal import Foundation
internal import HostProcess
internal import Testing

/// With a terminal of our own: script(1) gives one.
@Suite(
    "Terminal", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"),
    .enabled(if: FileManager.default.isExecutableFile(atPath: Terminal.script), "script(1) is missing"))
struct TerminalTests {
    @Test(
        "The terminal is as it was, whatever ended the machine",
        arguments: [
            ("\u{1}x", "run", 0),
            ("\u{1}h\u{1}x", "run", 0),
            ("", "run --timeout 1s", 124),
            ("", "run --kernel /etc/passwd", 125),
        ] as [(String, String, Int32)])
    func restored(typed: String, arguments: String, status: Int32) async throws {
        let text = try await Terminal.run("\"$MARTLET\" \(arguments)", typed: typed)
        #expect(text.contains("status=\(status) same=yes"), "\(text)")
        #expect(text.contains("Ctrl-A x switches") == typed.contains("h"), "\(text)")
    }

    @Test("A signal that ends the machine leaves the terminal as it was", arguments: [("TERM", 143), ("HUP", 129)])
    func signals(name: String, status: Int32) async throws {
        let text = try await Terminal.run(
            "timeout --foreground --preserve-status -s \(name) 1 \"$MARTLET\" run", typed: "")
        #expect(text.contains("status=\(status) same=yes"), "\(text)")
    }

    @Test("The guest's terminal has the size and the kind of ours")
    func size() async throws {
        let text = try await Terminal.run(
            "stty rows 33 cols 101; TERM=vt220 \"$MARTLET\" run --timeout 10m",
            typed: "stty size; echo kind=$TERM; exit\n")
        #expect(text.contains("33 101"), "\(text)")
        #expect(text.contains("kind=vt220"), "\(text)")
    }
}

enum Terminal {
    static let script = "/usr/bin/script"

    /// Runs a shell line on a new terminal with `typed` as its keyboard; what the terminal showed, and at the end
    /// "status=N same=yes" if the terminal's settings are what they were.
    static func run(_ line: String, typed: String) async throws -> String {
        let scratch = try Scratch()
        // The size is no part of the comparison: stty -g does not have it.
        let wrapped = "a=$(stty -g); \(line); s=$?; [ \"$a\" = \"$(stty -g)\" ] && echo status=$s same=yes"
        let process = try HostProcess(
            script, ["-q", "-e", "-c", wrapped, "/dev/null"], environment: ["MARTLET": Martlet.path], input: .pipe,
            output: .file(scratch.file("out").path), errors: .nothing)
        // Open until the end: script(1) takes the end of its input as the end of the terminal.
        process.write(typed.utf8)
        _ = await process.waitOrKill(limit: .seconds(600))
        process.closeInput()
        return String(decoding: try Data(contentsOf: scratch.file("out")), as: UTF8.self)
    }
}
