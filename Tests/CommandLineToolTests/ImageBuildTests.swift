internal import ArgumentParser
internal import Disk
internal import Foundation
internal import Testing

@testable internal import CommandLineTool

@Suite("Building images")
struct ImageBuildTests {
    private func recipe(_ arguments: String...) throws -> DebianRecipe {
        DebianRecipe(try BuildDebianCommand.parse(arguments + ["out.qcow2"]))
    }

    @Test(
        "Options that cannot be",
        arguments: [
            ["--suite", "Book Worm"], ["--suite", "a/b"], ["--user", "Ann"], ["--user", "a:b"], ["--user", ""],
            ["--hostname", "a.b"], ["--hostname", "-a"], ["--packages", "a b"], ["--packages", "x;rm"],
            ["--size", "100M"], ["--size", "17T"], ["--size", "1073741825"], ["--mirror", "ftp://x"],
            ["--mirror", "http://x/ [trusted=yes]"], ["--kernel-package", "$(x)"], ["--user", "root"],
        ])
    func wrongOptions(arguments: [String]) {
        #expect(throws: (any Error).self) { try BuildDebianCommand.parse(arguments + ["out.qcow2"]) }
    }

    @Test("The image's sources are Debian's usual ones, wherever it was built from")
    func sources() throws {
        let recipe = try recipe("--mirror", "http://mirror.example/debian")
        let sources = try #require(recipe.environment.first { $0.hasPrefix("MARTLET_SOURCES=") })
        #expect(sources.contains("URIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\n"))
        #expect(sources.contains("Suites: bookworm-security\n") && !sources.contains("mirror.example"))
        let lines = recipe.buildSources(HostPackageSources())
        #expect(lines.count == 1 && lines[0].hasSuffix("http://mirror.example/debian bookworm main"))
        #expect(try !self.recipe("--suite", "sid").environment[0].contains("updates"))
    }

    @Test("The mirrors are what apt uses here")
    func hostSources() throws {
        let host = HostPackageSources(
            targets: """
                http://a.example/debian/|bookworm|Debian
                http://a.example/debian/|bookworm-updates|Debian
                http://b.example/debian-security/|bookworm-security|Debian
                https://other.example/apt/|nodistro|Other
                """,
            configuration: """
                Acquire::http::Proxy "http://proxy.example:3128";
                Acquire::https::Proxy "";
                Acquire::Check-Date "false";
                APT::Install-Recommends "1";
                """)
        #expect(
            host.options == ["Acquire::http::Proxy \"http://proxy.example:3128\"", "Acquire::Check-Date \"false\""])
        let lines = try recipe().buildSources(host)
        #expect(lines.count == 2)
        #expect(lines[0].hasSuffix("http://a.example/debian bookworm main"))
        #expect(lines[1].hasSuffix("http://b.example/debian-security bookworm-security main"))
        // Another release from the same mirror.
        #expect(
            try recipe("--suite", "sid").buildSources(host).first?.hasSuffix("http://a.example/debian sid main") == true
        )
        #expect(try recipe().buildSources(HostPackageSources()).first?.contains("http://deb.debian.org/debian") == true)
    }

    @Test("The root partition is inside the disk")
    func layout() throws {
        let values = Dictionary(
            uniqueKeysWithValues: try recipe("--size", "2G").environment.map { line in
                let pair = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                return (String(pair[0]), String(pair[1]))
            })
        let start = try #require(UInt64(values["MARTLET_ROOT_SECTOR"] ?? ""))
        let count = try #require(UInt64(values["MARTLET_ROOT_SECTORS"] ?? ""))
        #expect(start == 262_144)
        #expect((start + count) * 512 == (2 << 30) - (1 << 20))
        let uuid = try #require(UUID(uuidString: values["MARTLET_ROOT_UUID"] ?? ""))
        #expect(uuid.uuid.6 >> 4 == 4 && uuid.uuid.8 >> 6 == 2)
    }

    @Test("Who can log in")
    func login() throws {
        #expect(try recipe().logsInByItself)
        #expect(try !recipe("--ssh-key", "k").logsInByItself)
        #expect(try !recipe("--password-file", "k").logsInByItself)
        #expect(try recipe("--ssh-key", "k", "--autologin").logsInByItself)
        #expect(try recipe("--cloud-init", "c").packages.contains("cloud-init"))
    }

    @Test("What tools print becomes phases and a cause")
    func output() {
        var output = BuildOutput()
        let changes = [
            "I: chroot architecture amd64\nI: running apt-get up", "date...\n",
            "I: installing remaining packages inside the chroot...\n",
        ].map { output.take(Array($0.utf8)) }
        #expect(changes == [false, true, true])
        _ = output.take(Array("dpkg: warning: Permission denied\nE: Unable to locate package x\n".utf8))
        _ = output.take(
            Array("martlet-kernel 6.1.0-1-amd64\nE: setup failed: E: apt\nE: mmdebstrap failed to run\n".utf8))
        #expect(output.kernelRelease == "6.1.0-1-amd64")
        #expect(output.complaint == "E: Unable to locate package x")
        #expect(!output.isDiskFull)
        _ = output.take(Array("dpkg: error: cannot copy: No space left on device\nE: mmdebstrap failed\n".utf8))
        #expect(output.isDiskFull && output.complaint.contains("No space left"))
        // What never ends a line takes no memory for ever.
        for _ in 0..<100 { _ = output.take([UInt8](repeating: 0x78, count: 100_000)) }
        #expect(output.lines.count <= 400 && output.lines.allSatisfy { $0.utf8.count <= 4096 })
    }

    @Test("Missing tools are named by their packages")
    func missingTools() throws {
        let scratch = try Scratch()
        for isRoot in [true, false] {
            do throws(DiskError) {
                _ = try BuildTools(searchPath: scratch.directory.path, isRoot: isRoot, systemPath: "")
                Issue.record("there are none")
            } catch {
                for name in ["mmdebstrap", "e2fsprogs", "fdisk", "apt-get install"] {
                    #expect(error.description.contains(name), "\(error.description)")
                }
                #expect(error.description.contains("uidmap") == !isRoot)
            }
        }
    }

    @Test("Inputs are looked at before the work", .enabled(if: Martlet.isBuilt, "the release binary is not built"))
    func inputs() async throws {
        let scratch = try Scratch()
        let tools = (try? BuildTools()) != nil
        for (name, text, option, word) in [
            ("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "--ssh-key", ".pub"),
            ("key", "hello\n", "--ssh-key", "ssh-keygen"), ("key", "", "--ssh-key", "no public key"),
            ("pw", "\nsecret\n", "--password-file", "first line"), ("ud", "hello", "--cloud-init", "#cloud-config"),
        ] {
            try Data(text.utf8).write(to: scratch.file(name))
            let result = try await Martlet.run([
                "image", "build", "debian", option, scratch.file(name).path, scratch.file("out.qcow2").path,
            ])
            #expect(result.status == 125)
            #expect(result.errors.contains(tools ? word : "missing"), "\(result.errors)")
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: scratch.directory.path).allSatisfy {
                    !$0.hasPrefix("out")
                })
        }
    }
}

@Suite("Image manifests")
struct ImageManifestTests {
    private static let good = ImageManifest(
        system: "Debian bookworm", kernelRelease: "6.1", kernel: "a \"b\".kernel", initrd: "a.initrd",
        append: "root=x ro")

    @Test("A manifest reads as it was written")
    func roundTrip() throws {
        #expect(try ImageManifest(Array(Self.good.json.text().utf8), path: "m") == Self.good)
    }

    @Test(
        "Manifests that are none",
        arguments: [
            ("", "JSON"), ("[]", "object"), ("{}", "version"),
            ("{\"martlet-image\": \"1\", \"kernel\": \"k\"}", "version"),
            ("{\"martlet-image\": 2, \"kernel\": \"k\"}", "version 2"), ("{\"martlet-image\": 1}", "kernel"),
            ("{\"martlet-image\": 1, \"kernel\": 5}", "kernel"), ("{\"martlet-image\": 1, \"kernel\": \"\"}", "kernel"),
            ("{\"martlet-image\": 1, \"kernel\": \"k\", \"append\": []}", "append"),
            ("{\"martlet-image\": -1, \"kernel\": \"k\"}", "version"),
        ])
    func broken(text: String, word: String) {
        do throws(DiskError) {
            _ = try ImageManifest(Array(text.utf8), path: "m.json")
            Issue.record("it was taken: \(text)")
        } catch {
            #expect(error.description.contains("m.json") && error.description.contains(word), "\(error.description)")
        }
    }

    @Test(
        "An image without a manifest says what to do", .enabled(if: Martlet.isBuilt, "the release binary is not built"))
    func none() async throws {
        let scratch = try Scratch()
        let disk = scratch.file("disk.raw")
        try Data(count: 4096).write(to: disk)
        let result = try await Martlet.run(["run", disk.path])
        #expect(result.status == 125 && result.errorLines.count == 1)
        for word in ["disk.raw.json", "--kernel", "martlet image build"] {
            #expect(result.errors.contains(word), "\(result.errors)")
        }
        let missing = try await Martlet.run(["run", scratch.file("none.qcow2").path])
        #expect(missing.status == 125 && missing.errors.contains("no file"), "\(missing.errors)")
        let both = try await Martlet.run(["run", disk.path, "--", "ls"])
        #expect(both.status == 64 && both.errors.contains("default guest"), "\(both.errors)")
    }
}
