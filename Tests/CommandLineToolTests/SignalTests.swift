internal import Foundation
internal import Testing

@Suite(
    "Ctrl-C and other signals", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct SignalTests {
    /// From the first instruction of the process to a running kernel.
    @Test("A signal at any phase ends with its status", arguments: [SIGINT, SIGTERM, SIGHUP], [0, 30, 1500])
    func signal(number: Int32, afterMilliseconds: Int) async throws {
        let scratch = try Scratch()
        let process = Process()
        process.executableURL = URL(filePath: Martlet.path)
        process.arguments = ["run", "--timeout", "1m", "--", "sleep", "1000"]
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        process.standardError = try scratch.emptyFile("err")
        try process.run()
        if afterMilliseconds > 0 { try await Task.sleep(for: .milliseconds(afterMilliseconds)) }
        kill(process.processIdentifier, number)
        let killed = await Martlet.waitOrKill(process, limit: .seconds(10))
        #expect(!killed)
        let errors = try String(contentsOf: scratch.file("err"), encoding: .utf8)
        if process.terminationReason == .uncaughtSignal {
            // Before the program had its say: the kernel's own ending, which the shell reports the same way.
            #expect(process.terminationStatus == number)
            #expect(errors.isEmpty)
        } else {
            #expect(process.terminationStatus == 128 + number)
            #expect(errors.split(separator: "\n").count == 1, "\(errors)")
        }
    }
}
