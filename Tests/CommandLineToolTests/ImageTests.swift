internal import Foundation
internal import HostProcess
internal import Testing

@Suite("martlet image", .enabled(if: Martlet.isBuilt, "the release binary is not built: run ./scripts/test"))
struct ImageTests {
    static let hasQemuImg = FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-img")

    private func expect(_ arguments: String..., sourceLocation: SourceLocation = #_sourceLocation) async throws
        -> String
    {
        let result = try await Martlet.run(["image"] + arguments)
        #expect(result.status == 0, "\(result.errors)", sourceLocation: sourceLocation)
        #expect(result.errors.isEmpty, sourceLocation: sourceLocation)
        return result.outputText
    }

    private func qemuImg(_ arguments: String...) throws -> (status: Int32, output: Data) {
        let process = try HostProcess("/usr/bin/qemu-img", arguments, output: .pipe)
        let data = Data(process.readToEnd())
        process.waitUntilExit()
        return (process.status, data)
    }

    @Test("A life of an image, and qemu-img finds nothing", .enabled(if: hasQemuImg, "qemu-img is not installed"))
    func life() async throws {
        let scratch = try Scratch()
        func path(_ name: String) -> String { scratch.file(name).path }
        var content = Data((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 / 1000) })
        content.append(Data(count: 2_000_000 / 512 * 512 + 512 - 3_000_000 % 512))
        try content.write(to: scratch.file("raw"))
        _ = try await expect(
            "convert", "--from", "raw", "--to", "qcow2", "--compress", "zstd", "-o", "cluster_size=16k", path("raw"),
            path("base"))
        _ = try await expect("create", "--backing", path("base"), "--backing-format", "qcow2", path("top"))
        _ = try await expect("snapshot", "create", path("top"), "one")
        #expect(try await expect("snapshot", "list", path("top")).contains("one"))
        _ = try await expect("resize", path("top"), "+1M")
        _ = try await expect("rebase", path("top"))
        #expect(try await expect("check", path("top")).contains("No errors"))
        #expect(try qemuImg("check", "-q", path("top")).status == 0)
        _ = try await expect("snapshot", "delete", path("top"), "one")
        _ = try await expect("resize", "--shrink", path("top"), "\(content.count)")
        _ = try await expect("convert", "--to", "raw", path("top"), path("back"))
        #expect(try Data(contentsOf: scratch.file("back")) == content)
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: scratch.directory.path).sorted().filter {
                $0.hasSuffix(".part")
            }.isEmpty)
    }

    @Test("bench writes and reads where it says")
    func bench() async throws {
        let scratch = try Scratch()
        let path = scratch.file("image").path
        _ = try await expect("create", path, "4M")
        // The third request is behind the end, so that it is the first one again.
        let written = try await expect(
            "bench", "--write", "--size", "64k", "--step", "1M", "--offset", "2M", "--count", "3", "--flush-interval",
            "2",
            path)
        #expect(written.hasPrefix("3 requests in ") && written.contains("\nclosed in "))
        #expect(try await expect("bench", "--size", "1M", "--count", "10", path).hasPrefix("10 requests in "))
        _ = try await expect("convert", "--to", "raw", path, scratch.file("raw").path)
        var wanted = Data(count: 4 << 20)
        for start in [2 << 20, 3 << 20] {
            wanted.replaceSubrange(start..<start + 65536, with: Data(repeating: 0xff, count: 65536))
        }
        #expect(try Data(contentsOf: scratch.file("raw")) == wanted)
        for arguments in [
            ["--count", "0"], ["--size", "0"], ["--flush-interval", "3"], ["--size", "2G", "--write"],
        ] {
            #expect(try await Martlet.run(["image", "bench"] + arguments + [path]).status == 64)
        }
        let outside = try await Martlet.run(["image", "bench", "--offset", "4M", path])
        #expect(outside.status == 125 && outside.errors.contains("past its end"), "\(outside.errors)")
    }

    @Test("info says what qemu-img says", .enabled(if: hasQemuImg, "qemu-img is not installed"))
    func info() async throws {
        let scratch = try Scratch()
        let path = scratch.file("image").path
        _ = try await expect("create", "-o", "cluster_size=4k,lazy_refcounts=on,refcount_bits=8", path, "10M")
        func object(_ data: Data) throws -> NSDictionary {
            try JSONSerialization.jsonObject(with: data) as? NSDictionary ?? [:]
        }
        let ours = try object(Data(try await expect("info", "--json", path).utf8))
        let theirs = try object(qemuImg("info", "--output=json", path).output)
        for key in [
            "virtual-size", "filename", "format", "cluster-size", "actual-size", "dirty-flag", "format-specific",
        ] {
            #expect((ours[key] as? NSObject) == (theirs[key] as? NSObject), "\(key)")
        }
    }

    @Test(
        "What cannot be is one line",
        arguments: [
            (["create", "/nonexistent/x", "1M"], 125, ["/nonexistent/x", "No such file"]),
            (["create", "x"], 64, ["SIZE"]),
            (["create", "--format", "vmdk", "x", "1M"], 64, ["raw, qcow2"]),
            (["create", "-o", "cluster_size=3k", "/tmp/martlet-never", "1M"], 125, ["3072", "power of two"]),
            (["create", "-o", "colour=red", "x", "1M"], 64, ["colour", "cluster_size"]),
            (["create", "-o", "extended_l2=on", "x", "1M"], 64, ["extended_l2"]),
            (["create", "--backing", "b", "x"], 64, ["--backing-format"]),
            (["info", "/nonexistent"], 125, ["/nonexistent", "No such file"]),
            (["convert", "--to", "qcow2", "/etc/passwd", "/tmp/martlet-never"], 125, ["--from raw"]),
            (["check", "/etc/passwd"], 125, ["/etc/passwd", "not a qcow2 image"]),
            (["resize", "/etc/passwd", "big"], 64, ["20G"]),
        ] as [([String], Int32, [String])])
    func badInput(arguments: [String], status: Int32, words: [String]) async throws {
        let result = try await Martlet.run(["image"] + arguments)
        #expect(result.status == status, "\(result.errors)")
        #expect(result.errorLines.count == 1, "\(result.errors)")
        for word in words { #expect(result.errors.contains(word), "\(result.errors)") }
        #expect(!FileManager.default.fileExists(atPath: "/tmp/martlet-never"))
    }

    @Test("Ctrl-C leaves nothing half made")
    func interrupted() throws {
        let scratch = try Scratch()
        let source = scratch.file("raw").path
        let handle = try scratch.emptyFile("raw")
        func names() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: scratch.directory.path) }
        // What cannot be compressed takes longest: it must not be done before the signal comes. If this thread was held up
        // for so long, there is twice as much the next time.
        let piece = Data((0..<1 << 20).map { _ in UInt8.random(in: 0...255) })
        for pieces in [200, 200, 400] {
            for _ in 0..<pieces { try handle.write(contentsOf: piece) }
            let process = try HostProcess(
                Martlet.path,
                [
                    "image", "convert", "--from", "raw", "--to", "qcow2", "--compress", "zlib", source,
                    scratch.file("out").path,
                ], errors: .nothing)
            // Until the new file is there. No task: a busy pool of threads may let one sleep until all is done.
            while process.isRunning, try names().count < 2 { Thread.sleep(forTimeInterval: 0.005) }
            process.signal(SIGINT)
            process.waitUntilExit()
            if process.status == 0 {
                try FileManager.default.removeItem(at: scratch.file("out"))
                continue
            }
            #expect(process.status == 130)
            #expect(try names() == ["raw"])
            return
        }
        Issue.record("the conversion was always done before the signal")
    }
}
