internal import CHost
internal import Glibc
internal import Host
internal import HostProcess
internal import Testing

@Suite("Child processes")
struct ProcessTests {
    /// Ends of a pipe that are left open on exec, as other code's may be.
    private func leakyPipe() throws -> (reading: Int32, writing: Int32) {
        var ends: [Int32] = [-1, -1]
        try #require(pipe(&ends) == 0)
        return (ends[0], ends[1])
    }

    @Test("A child holds nothing but what it was given: a pipe ends although it runs", arguments: [true, false])
    func inheritsNothing(isOurs: Bool) throws {
        let ends = try leakyPipe()
        defer { close(ends.reading) }
        let null = FileDescriptor(owning: open("/dev/null", O_RDWR | O_CLOEXEC))
        let child =
            isOurs
            ? try ChildProcess(
                program: "/bin/sleep", arguments: ["100"], environment: [], input: null.borrowed, output: null.borrowed)
            : nil
        defer {
            child?.signalGroup(.kill)
            // Taken, so that nobody meets it who waits for any child.
            while let child, (try? child.ending()) == .some(nil) { HostClock.sleep(nanoseconds: 1_000_000) }
        }
        let other = isOurs ? nil : try HostProcess("/bin/sleep", ["100"])
        close(ends.writing)
        var ready = pollfd(fd: ends.reading, events: Int16(POLLIN), revents: 0)
        // What other tests start in the meantime holds it for as long as it runs; a child of ours held it for 100 s.
        #expect(poll(&ready, 1, 60_000) == 1)
        #expect(try child?.ending() == nil && other?.isRunning != false)
    }

    @Test("How a program ended, and what it wrote")
    func endings() async throws {
        let exited = try HostProcess(
            "/bin/sh", ["-c", "cat; echo errors >&2; exit 7"], input: .pipe, output: .pipe, errors: .output)
        #expect(exited.write("words\n".utf8))
        exited.closeInput()
        #expect(exited.readToEnd() == Array("words\nerrors\n".utf8))
        exited.waitUntilExit()
        #expect(exited.status == 7 && exited.endingSignal == nil)
        let signalled = try HostProcess("/bin/sleep", ["100"])
        #expect(signalled.isRunning)
        signalled.signal(SIGINT)
        #expect(await !signalled.waitOrKill(limit: .seconds(60)))
        #expect(signalled.status == 130 && signalled.endingSignal == SIGINT)
        let late = try HostProcess("/bin/sleep", ["100"])
        #expect(await late.waitOrKill(limit: .milliseconds(10)))
        #expect(late.status == 137)
        #expect(throws: HostProcess.StartError.self) { try HostProcess("/nonexistent/program") }
    }
}
