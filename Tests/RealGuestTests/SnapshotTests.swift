internal import Foundation
internal import Testing

@Suite(
    "Throwaway disks",
    .enabled(if: RealGuest.hasDefaultGuest, "no release binary or no default guest: run ./scripts/test"))
struct SnapshotTests {
    private static let script = """
        head -c 70000 /dev/vda | md5sum
        dd if=/dev/zero of=/dev/vda bs=4k seek=3 count=20 conv=notrunc,fsync 2>/dev/null
        dd if=/dev/urandom of=/dev/vda bs=64k seek=40 count=9 conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/vda bs=4k skip=3 count=20 2>/dev/null | tr -d '\\0' | wc -c
        """

    @Test("--snapshot: the guest sees what it wrote, and the image stays as it was", arguments: ["raw", "qcow2"])
    func imageStays(format: String) async throws {
        let scratch = try Scratch()
        let raw = scratch.path("disk.raw")
        var bytes = Data(count: 8 << 20)
        for index in stride(from: 0, to: 1 << 20, by: 97) { bytes[index] = UInt8(truncatingIfNeeded: index | 1) }
        try bytes.write(to: URL(filePath: raw))
        let disk = scratch.path("disk.\(format)")
        if format == "qcow2" {
            let made = try RealGuest.run(
                RealGuest.martlet, "image", "convert", "--from", "raw", "--to", "qcow2", raw, disk)
            try #require(made.status == 0, "\(made.text)")
        }
        let before = try Data(contentsOf: URL(filePath: disk))
        // Two at once: each has the lock of a reader.
        let options = ["--accel", "soft", "--snapshot", "--disk", disk, "--", "sh", "-c", Self.script]
        let consoles = try [SerialConsole(options), SerialConsole(options)]
        for console in consoles {
            let status = try await console.end(limit: .seconds(120))
            #expect(status == 0, "\(console.transcript)")
            #expect(try console.rest().hasSuffix("  -\n0\n"), "\(console.transcript)")
        }
        #expect(try Data(contentsOf: URL(filePath: disk)) == before)
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.directory.path).count <= 2)
    }
}
