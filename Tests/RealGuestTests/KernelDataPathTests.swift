internal import Foundation
internal import Testing

/// The tests of the kernel's own data path of network cards want a kernel that has it: they run once more in a Debian.
@Suite(
    "vhost-net in a Debian's kernel", .serialized,
    .enabled(if: RealGuest.hasDebian, "no Debian image: run scripts/debian-image (needs mmdebstrap and a mirror)"))
struct KernelDataPathTests {
    private static let suite = "VhostNetTests"
    /// Of the C library, which any Debian has: mixed with another's they would not start.
    private static let system = ["libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "libresolv.so"]
    private let scratch: Scratch

    init() throws { scratch = try Scratch() }

    /// This test program: what the loader of the process has mapped under its name.
    private func program() throws -> String {
        let maps = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8)
        let line = try #require(maps.split(separator: "\n").first { $0.hasSuffix(".xctest") })
        return String(line[try #require(line.firstIndex(of: "/"))...])
    }

    /// A hard link where it can be one: all together these are some hundred megabytes.
    private func share(_ file: String, as name: String) throws {
        let place = scratch.path(name)
        // The loader's names may be symbolic links, which would lead out of the folder.
        let file = URL(filePath: file).resolvingSymlinksInPath().path
        do { try FileManager.default.linkItem(atPath: file, toPath: place) } catch {
            try FileManager.default.copyItem(atPath: file, toPath: place)
        }
    }

    @Test("Frames, pauses, resets and ends with the real device", .timeLimit(.minutes(10)))
    func realDevice() async throws {
        let program = try program()
        try share(program, as: "tests")
        for line in try RealGuest.run("ldd", program).text.split(separator: "\n") {
            // NAME => PATH (ADDRESS)
            let words = line.split(separator: " ").map { $0.trimmingCharacters(in: .whitespaces) }
            guard words.count == 4, words[1] == "=>", !Self.system.contains(where: words[0].hasPrefix) else { continue }
            try share(words[2], as: words[0])
        }
        let console = try SerialConsole([
            "--accel", "soft", "--snapshot", "--memory", "2G", RealGuest.debian,
            "--share", "\(scratch.directory.path):program:ro",
        ])
        try await console.logIn()
        let command = """
            sudo modprobe -a vhost_net tun && sudo mount -t virtiofs program /mnt && \
            sudo env LD_LIBRARY_PATH=/mnt /mnt/tests --testing-library swift-testing --filter \(Self.suite) 2>&1 \
            | tail -n 40
            """
        let result = try await console.run(command, limit: .seconds(480))
        #expect(result.text.contains(/Test run with [0-9]+ tests? in 1 suite passed/), "\(result.text)")
        #expect(!result.text.contains("skipped"), "\(result.text)")
        try console.type("sudo poweroff\n")
        #expect(try await console.end() == 0, "\(console.transcript)")
    }
}
