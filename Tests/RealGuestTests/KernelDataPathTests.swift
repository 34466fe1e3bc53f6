internal import Foundation
internal import Testing

/// The tests of the kernel's own data path of network cards want a kernel that has it: they run once more in a Debian.
@Suite(
    "vhost-net in a Debian's kernel", .serialized,
    .enabled(if: RealGuest.hasDebian, "no Debian image: run scripts/debian-image (needs mmdebstrap and a mirror)"))
struct KernelDataPathTests {
    private static let suite = "VhostNetTests"
    private let scratch: Scratch

    init() throws { scratch = try Scratch() }

    /// The files that this process runs from, without those that a Debian has itself.
    private func program() throws -> (tests: URL, libraries: [URL]) {
        let maps = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8)
        let paths = Set(maps.split(separator: "\n").compactMap { line in line.firstIndex(of: "/").map { line[$0...] } })
        let files = paths.map { URL(filePath: String($0)) }
        let system = ["libc.", "libm.", "ld-linux", "libpthread.", "libdl.", "librt.", "libutil.", "libresolv."]
        let libraries = files.filter { file in
            file.lastPathComponent.contains(".so") && !system.contains { file.lastPathComponent.hasPrefix($0) }
        }
        let tests = try #require(files.first { $0.lastPathComponent.hasSuffix(".xctest") })
        return (tests, libraries)
    }

    /// A hard link where it can be one: all together these are some hundred megabytes.
    private func share(_ file: URL, in folder: URL) throws {
        let place = folder.appending(path: file.lastPathComponent)
        do { try FileManager.default.linkItem(at: file, to: place) } catch {
            try FileManager.default.copyItem(at: file, to: place)
        }
    }

    @Test("Frames, pauses, resets and ends with the real device", .timeLimit(.minutes(10)))
    func realDevice() async throws {
        let folder = URL(filePath: scratch.path("program"))
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: false)
        let (tests, libraries) = try program()
        for file in libraries + [tests] { try share(file, in: folder) }
        let console = try SerialConsole([
            "--accel", "soft", "--snapshot", "--memory", "2G", RealGuest.debian, "--share", "\(folder.path):program:ro",
        ])
        try await console.logIn()
        let command = """
            sudo modprobe -a vhost_net tun && sudo mount -t virtiofs program /mnt && \
            sudo env LD_LIBRARY_PATH=/mnt /mnt/\(tests.lastPathComponent) --testing-library swift-testing \
            --filter \(Self.suite) 2>&1 | tail -n 40
            """
        let result = try await console.run(command, limit: .seconds(480))
        #expect(result.text.contains(/Test run with [0-9]+ tests? .*passed/), "\(result.text)")
        #expect(!result.text.contains("skipped"), "\(result.text)")
        try console.type("sudo poweroff\n")
        #expect(try await console.end() == 0, "\(console.transcript)")
    }
}
