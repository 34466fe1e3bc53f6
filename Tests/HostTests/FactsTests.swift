import Glibc
import Testing

@testable import Host

@Suite struct FactsTests {
    @Test(
        arguments: [
            ("MemTotal:        2048 kB\nMemFree: 5 kB\nMemAvailable:     512 kB\n", 2048 * 1024, 512 * 1024),
            ("MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB", UInt64.max &* 1024, 1024),
        ] as [(String, UInt64, UInt64)])
    func memory(meminfo: String, total: UInt64, available: UInt64) {
        let memory = HostMemory(meminfo: meminfo)
        #expect(memory.total == total)
        #expect(memory.available == available)
    }

    @Test(arguments: ["", "MemTotal:\nMemAvailable: x kB\n"])
    func memoryFromTheKernelWhereTheFileSaysNothing(meminfo: String) {
        let memory = HostMemory(meminfo: meminfo)
        #expect(memory.total > 1 << 20)
        #expect(memory.available <= memory.total)
    }

    @Test func processor() {
        let text =
            "processor\t: 0\nmodel name\t: Some  CPU @ 2\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nflags\t\t: other\n"
        let processor = HostProcessor(cpuinfo: text)
        #expect(processor.flags == ["fpu", "vmx"])
        #expect(processor.modelName == "Some CPU @ 2")
        #expect(processor.onlineCount >= 1)
    }

    @Test func processorOfAnEmptyFile() {
        #expect(HostProcessor(cpuinfo: "").flags.isEmpty)
        #expect(HostProcessor(cpuinfo: "").modelName == "unknown")
    }

    @Test func thisHost() {
        #expect(HostProcessor().flags.contains("sse2"))
        #expect(HostMemory().total > HostMemory().available)
    }

    @Test func randomBytes() {
        #expect(HostRandom.bytes(count: 0).isEmpty)
        #expect(HostRandom.bytes(count: 1000).count == 1000)
        #expect(HostRandom.bytes(count: 16) != HostRandom.bytes(count: 16))
    }
}

@Suite(.serialized) struct TerminalTests {
    /// A pseudo-terminal: (controlling end, the terminal).
    private func openTerminal() throws -> (Int32, Int32) {
        let controller = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
        try #require(controller >= 0)
        var isLocked: Int32 = 0
        try #require(ioctl(controller, 0x4004_5431, &isLocked) == 0)  // TIOCSPTLCK
        let terminal = ioctl(controller, 0x5441, O_RDWR | O_NOCTTY | O_CLOEXEC)  // TIOCGPTPEER
        try #require(terminal >= 0)
        return (controller, terminal)
    }

    private func localFlags(_ terminal: Int32) -> tcflag_t {
        var settings = termios()
        tcgetattr(terminal, &settings)
        return settings.c_lflag
    }

    @Test func rawAndBack() throws {
        let (controller, terminal) = try openTerminal()
        defer {
            close(terminal)
            close(controller)
        }
        let before = localFlags(terminal)
        let raw = try RawTerminal(BorrowedDescriptor(terminal))
        #expect(localFlags(terminal) & tcflag_t(ICANON | ECHO | ISIG) == 0)
        #expect(throws: HostError.self) { _ = try RawTerminal(BorrowedDescriptor(terminal)) }
        raw.restore()
        raw.restore()
        #expect(localFlags(terminal) == before)
        raw.reenter()
        #expect(localFlags(terminal) & tcflag_t(ECHO) == 0)
        raw.restore()
        #expect(localFlags(terminal) == before)
    }

    @Test func size() throws {
        let (controller, terminal) = try openTerminal()
        defer {
            close(terminal)
            close(controller)
        }
        #expect(TerminalSize(of: BorrowedDescriptor(terminal)) == nil)
        var size = winsize(ws_row: 40, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0)
        try #require(ioctl(controller, UInt(TIOCSWINSZ), &size) == 0)
        #expect(TerminalSize(of: BorrowedDescriptor(terminal)) == TerminalSize(columns: 132, rows: 40))
    }

    @Test func notATerminal() throws {
        let file = try FileDescriptor.open("/dev/null")
        #expect(!file.borrowed.isTerminal)
        #expect(throws: HostError("Cannot put the terminal into raw mode", errorNumber: ENOTTY)) {
            _ = try RawTerminal(file.borrowed)
        }
    }

    /// A killed process must not leave the terminal raw, whatever killed it. In a process of its own: the ones that are
    /// killed would have copies of all other tests' descriptors, and of locks that other threads have.
    @Test func lastResort() async {
        await #expect(processExitsWith: .success) {
            for signal in [SIGTERM, SIGSEGV, SIGABRT, 0] { try TerminalTests().endsChild(by: signal) }
        }
    }

    /// 0: the child exits.
    private func endsChild(by signal: Int32) throws {
        let (controller, terminal) = try openTerminal()
        defer {
            close(terminal)
            close(controller)
        }
        let before = localFlags(terminal)
        let child = fork_for_test()
        if child == 0 {
            // The test library's threads block signals; and a child that hangs must not keep us.
            var none = sigset_t()
            sigemptyset(&none)
            pthread_sigmask(SIG_SETMASK, &none, nil)
            alarm(60)
            // Not the runtime's backtrace of a crash, which takes long.
            if signal != 0 { Glibc.signal(signal, SIG_DFL) }
            guard let raw = try? RawTerminal(BorrowedDescriptor(terminal)) else { _exit(99) }
            withExtendedLifetime(raw) {
                if signal == 0 { exit(7) }
                kill(getpid(), signal)
                while true { pause() }
            }
        }
        var status: Int32 = 0
        #expect(waitpid(child, &status, 0) == child)
        #expect(status & 0x7f == signal)
        if signal == 0 { #expect(status >> 8 == 7) }
        #expect(localFlags(terminal) == before, "signal \(signal)")
    }
}

/// Swift hides fork(2), because little is safe in the child of a process with threads.
@_silgen_name("fork") private func fork_for_test() -> Int32
