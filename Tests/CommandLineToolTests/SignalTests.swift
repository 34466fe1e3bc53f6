internal import Foundation
internal import Host
internal import HostProcess
internal import Testing

@Suite(
    "Ctrl-C and other signals", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct SignalTests {
    /// From the first instruction of the process to a running kernel.
    @Test("A signal at any phase ends with its status", arguments: [SIGINT, SIGTERM, SIGHUP], [0, 30, 1500])
    func signal(number: Int32, afterMilliseconds: Int) async throws {
        let scratch = try Scratch()
        let process = try HostProcess(
            Martlet.path, ["run", "--", "sleep", "1000"], errors: .file(scratch.file("err").path))
        // No task: a busy pool of threads may let one sleep for a minute.
        HostClock.sleep(nanoseconds: UInt64(afterMilliseconds) * 1_000_000)
        process.signal(number)
        let killed = await process.waitOrKill(limit: .seconds(10))
        #expect(!killed)
        let errors = try String(contentsOf: scratch.file("err"), encoding: .utf8)
        #expect(process.status == 128 + number)
        if process.endingSignal != nil {
            // Before the program had its say: the kernel's own ending.
            #expect(errors.isEmpty)
        } else {
            #expect(errors.split(separator: "\n").count == 1, "\(errors)")
        }
    }
}
