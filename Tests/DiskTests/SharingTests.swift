internal import Disk
internal import Foundation
internal import HostProcess
internal import Testing

@Suite("Who may use an image at the same time")
struct SharingTests {
    private func image(_ scratch: Scratch) throws -> String {
        try DiskImage.createQCOW2(scratch.path("image"), size: 1 << 20, QCOW2Options())
        return scratch.path("image")
    }

    private func open(_ path: String, writing: Bool, forced: Bool = false) throws -> QCOW2Disk {
        var options = DiskImage.Options(isWritable: writing)
        if forced { options.sharing = .forced }
        return try DiskImage.openQCOW2(path, options)
    }

    @Test("One writer alone, or readers; forced looks always")
    func ours() throws {
        let scratch = try Scratch()
        let path = try image(scratch)
        let writer = try open(path, writing: true)
        for writing in [false, true] {
            let error = #expect(throws: DiskError.self) { try open(path, writing: writing) }
            #expect(error?.kind == .inUse)
            #expect(error?.description.contains(path) == true)
        }
        #expect(try open(path, writing: false, forced: true).size == 1 << 20)
        #expect(try ImageInfo(path, .qcow2, sharing: .forced).virtualSize == 1 << 20)
        try writer.close()
        let readers = [try open(path, writing: false), try open(path, writing: false)]
        #expect(throws: DiskError.self) { try open(path, writing: true) }
        for reader in readers { try reader.close() }
        try open(path, writing: true).close()
    }

    @Test("QEMU's tools and ours keep each other out", .enabled(if: QemuImg.isInstalled, QemuImg.missing))
    func theirs() throws {
        let scratch = try Scratch()
        let path = try image(scratch)
        let writer = try open(path, writing: true)
        #expect(try QemuImg.run("info", path).errors.contains("lock"))
        #expect(try QemuImg.run("info", "-U", path).status == 0)
        #expect(try QemuImg.run("resize", "-q", path, "2M").status != 0)
        try writer.close()
        try QemuImg.expect("info", path)

        guard FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-io") else { return }
        let qemu = try HostProcess(
            "/usr/bin/qemu-io", ["-f", "qcow2", path], input: .pipe, output: .file(scratch.path("out")))
        // It asks for commands when it has the image. Before that an attempt of ours could keep it out, and it would end.
        let end = Date(timeIntervalSinceNow: 60)
        func isReady() throws -> Bool {
            try String(contentsOf: scratch.file("out"), encoding: .utf8).contains("qemu-io>")
        }
        while try !isReady(), qemu.isRunning, Date() < end { Thread.sleep(forTimeInterval: 0.01) }
        let error = #expect(throws: DiskError.self) { try open(path, writing: true) }
        #expect(error?.kind == .inUse)
        qemu.closeInput()
        qemu.waitUntilExit()
        try open(path, writing: true).close()
    }

    @Test("Threads on one disk: each finds its own, and the image is clean", arguments: [UInt64(512), 4096, 65536])
    func threads(clusterSize: UInt64) throws {
        let scratch = try Scratch()
        var options = QCOW2Options()
        options.clusterSize = clusterSize
        try DiskImage.createQCOW2(scratch.path("image"), size: 4 << 20, options)
        let disk = try DiskImage.openQCOW2(scratch.path("image"), DiskImage.Options(isWritable: true))
        // Pieces of a cluster each: neighbours meet in the same clusters and tables.
        DispatchQueue.concurrentPerform(iterations: 4) { number in
            var random = SeededRandom(UInt64(number))
            var content: [Int: UInt8] = [:]
            for step in 0..<400 {
                let piece = Int.random(in: 0..<500, using: &random) * 4 + number
                let offset = UInt64(piece * 1024)
                do {
                    switch Int.random(in: 0..<6, using: &random) {
                    case 0..<3:
                        try disk.write([UInt8](repeating: UInt8(step % 251 + 1), count: 1024), at: offset)
                        content[piece] = UInt8(step % 251 + 1)
                    case 3:
                        try disk.writeZeroes(offset..<offset + 1024, mayUnmap: true)
                        content[piece] = 0
                    case 4 where step % 20 == 0: try disk.flush()
                    default:
                        let found = try disk.read(count: 1024, at: offset)
                        let expected = content[piece] ?? 0
                        #expect(found.allSatisfy { $0 == expected }, "piece \(piece)")
                    }
                } catch {
                    Issue.record(error)
                }
            }
        }
        #expect(try disk.check().isClean)
        try disk.close()
        if QemuImg.isInstalled { try QemuImg.expectClean(scratch.path("image")) }
    }
}
