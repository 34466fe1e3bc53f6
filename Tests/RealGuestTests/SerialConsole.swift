internal import Foundation
internal import HostProcess

/// A `martlet run` whose guest is talked to over its console: text is waited for and typed.
final class SerialConsole {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    private let process: HostProcess
    private let output: FileHandle
    private let scratch: Scratch
    /// What was shown and not yet waited for.
    private var pending = Data()
    private var shown = Data()
    private var commandCount = 0

    init(_ arguments: [String]) throws {
        scratch = try Scratch()
        // Files, not pipes: nobody has to read while it runs.
        process = try HostProcess(
            RealGuest.martlet, ["run"] + arguments, input: .pipe, output: .file(scratch.path("out")),
            errors: .file(scratch.path("err")))
        guard let reading = FileHandle(forReadingAtPath: scratch.path("out")) else {
            throw Failure(description: "no output file")
        }
        output = reading
    }

    /// What the machine has said on its standard error.
    var errors: String { (try? String(contentsOfFile: scratch.path("err"), encoding: .utf8)) ?? "" }

    /// Everything so far, for messages.
    var transcript: String {
        String(decoding: shown.suffix(4000), as: UTF8.self) + errors
    }

    private func pump() throws {
        let more = try output.readToEnd() ?? Data()
        pending += more
        shown += more
    }

    /// Waits until the guest has shown `text`; what came before it.
    @discardableResult
    func wait(for text: String, limit: Duration = .seconds(180)) async throws -> String {
        let end = ContinuousClock.now + limit
        let wanted = Data(text.utf8)
        while true {
            let isRunning = process.isRunning
            try pump()
            if let range = pending.range(of: wanted) {
                let before = pending[..<range.lowerBound]
                pending = Data(pending[range.upperBound...])
                return String(decoding: before, as: UTF8.self)
            }
            guard isRunning else {
                throw Failure(description: "the machine ended before it showed '\(text)': \(transcript)")
            }
            guard ContinuousClock.now < end else {
                throw Failure(description: "the guest did not show '\(text)' within \(limit): \(transcript)")
            }
            try await Task.sleep(for: .milliseconds(20))
        }
    }

    /// What is shown and nobody has waited for; for a machine that has ended.
    func rest() throws -> String {
        try pump()
        return String(decoding: pending, as: UTF8.self)
    }

    func type(_ text: String) throws {
        guard process.write(text.utf8) else { throw Failure(description: "nobody reads what is typed: \(transcript)") }
    }

    /// Logs in at the prompt of a Debian, and makes the shell a plain one.
    func logIn() async throws {
        try await wait(for: "login: ")
        try type("debian\n")
        try await wait(for: "Password: ")
        try type(RealGuest.password + "\n")
        try await wait(for: "$ ")
        try type("stty -echo; PS1= ; TERM=dumb; bind 'set enable-bracketed-paste off' 2>/dev/null\n")
        _ = try await run("true")
    }

    /// Runs a line in the guest's shell: its status and what it printed.
    func run(_ line: String, limit: Duration = .seconds(120)) async throws -> (status: Int32, text: String) {
        commandCount += 1
        // In one line: Debian's sudo has a terminal of its own for what it runs (use_pty), and reads what is typed ahead.
        // The mark is put together by the shell, so that an echo of the line is not taken for it.
        try type("\(line); printf 'martlet-%s-%d-%d.\\n' end \(commandCount) $?\n")
        let text = try await wait(for: "martlet-end-\(commandCount)-", limit: limit)
        let status = try await wait(for: ".\r\n", limit: .seconds(60))
        return (Int32(status) ?? -1, text.replacingOccurrences(of: "\r\n", with: "\n"))
    }

    /// The status of the machine's end.
    func end(limit: Duration = .seconds(60)) async throws -> Int32 {
        let end = ContinuousClock.now + limit
        while process.isRunning {
            guard ContinuousClock.now < end else {
                throw Failure(description: "the machine did not end within \(limit): \(transcript)")
            }
            try await Task.sleep(for: .milliseconds(20))
        }
        try pump()
        return process.status
    }

    /// As a power cut: SIGKILL.
    func kill() {
        process.signal(SIGKILL)
        process.waitUntilExit()
    }
}
