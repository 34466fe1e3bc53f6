internal import Testing

@testable internal import VMM

@Suite("Console")
struct ConsoleTests {
    @Test(
        "Escape sequences",
        arguments: [
            ([[97, 98]], [97, 98], []),
            ([[1, 120]], [], [.leave]),
            ([[1], [120]], [], [.leave]),
            ([[97, 1, 104, 98]], [97, 98], [.help]),
            ([[1, 1, 120]], [1, 120], []),
            ([[1, 1, 1, 120]], [1], [.leave]),
            ([[1, 122, 97]], [97], []),
        ] as [([[UInt8]], [UInt8], [EscapeFilter.Action])])
    func escapes(typed: [[UInt8]], expected: [UInt8], actions: [EscapeFilter.Action]) {
        var filter = EscapeFilter()
        var forGuest: [UInt8] = []
        var found: [EscapeFilter.Action] = []
        for bytes in typed {
            let result = filter.filter(bytes)
            forGuest += result.forGuest
            found += result.actions
        }
        #expect(forGuest == expected)
        #expect(found == actions)
    }

    @Test(
        "Control messages",
        arguments: [
            (["ready\n"], [.ready]),
            (["mo", "re\nexit 3\n"], [.wantsInput, .exited(3)]),
            (["exit 255\r\n"], [.exited(255)]),
            (["exit 256\nexit -1\nexit \nexit x\nEXIT 1\n\n"], []),
            ([String(repeating: "x", count: 100_000), "\nmore\n"], [.wantsInput]),
            (["ready"], []),
        ] as [([String], [ControlChannel.Message])])
    func control(written: [String], expected: [ControlChannel.Message]) {
        var channel = ControlChannel()
        #expect(written.flatMap { channel.receive($0.utf8) } == expected)
    }

    @Test("Frames of standard input")
    func frames() {
        #expect(ControlChannel.frame([]) == Array("0\n".utf8))
        #expect(ControlChannel.frame([10, 0, 255]) == Array("3\n".utf8) + [10, 0, 255])
    }

    @Test(
        "Kernel panics on the console",
        arguments: [
            ("[    1.7] Kernel panic - not syncing: sysrq triggered crash\r\n", "sysrq triggered crash", false),
            (
                "Kernel panic - not syncing: VFS\n[ 2.0] ---[ end Kernel panic - not syncing: VFS ]---\n", "VFS", true
            ),
            ("Kernel panic - not syncing: first\nKernel panic - not syncing: second\n", "first", false),
            ("Kernel panic - not syncing: \u{1b}[31mred\u{7}\n", "[31mred", false),
            ("no Kernel panic here\n", nil, false),
            ("---[ end Kernel panic\n", nil, false),
            ("Kernel panic - not syncing: unfinished", nil, false),
        ])
    func panics(printed: String, reason: String?, hasEnded: Bool) {
        var watch = PanicWatch()
        // Byte by byte, as a serial port gives them.
        for byte in printed.utf8 { watch.receive([byte]) }
        #expect(watch.reason == reason)
        #expect(watch.hasEnded == hasEnded)
    }

    @Test("A panic line without an end does not grow without bound")
    func longPanic() {
        var watch = PanicWatch()
        watch.receive(Array("Kernel panic - not syncing: ".utf8) + [UInt8](repeating: 120, count: 1 << 20) + [10])
        #expect((watch.reason?.utf8.count ?? 0) < 400)
        #expect(watch.reason != nil)
    }
}
