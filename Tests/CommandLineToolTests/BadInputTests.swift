internal import Foundation
internal import Testing

@Suite("Bad input", .enabled(if: Martlet.isBuilt, "the release binary is not built: run ./scripts/test"))
struct BadInputTests {
    /// One line that names the trouble, a status, nothing on standard output.
    private func expectOneLine(_ result: Martlet.Result, status: Int32, naming words: [String]) {
        #expect(!result.wasKilled)
        #expect(result.status == status)
        #expect(result.output.isEmpty)
        #expect(result.errorLines.count == 1, "\(result.errors)")
        for word in words { #expect(result.errors.contains(word), "\(result.errors)") }
    }

    @Test(
        "Wrong command lines",
        arguments: [
            (["run", "--memory", "0"], ["--memory", "2M"]),
            (["run", "--memory", "1"], ["--memory", "1M"]),
            (["run", "--memory", "x"], ["--memory", "512M"]),
            (["run", "--memory", "10000001"], ["multiple of 4K"]),
            (["run", "--accel", "xen"], ["auto, kvm, soft"]),
            (["run", "--cpu", "host"], ["--cpu", "default, max"]),
            (["run", "--cpu", "default,+acx"], ["'acx'", "avx", "--cpu help"]),
            (["run", "--cpu", "default,avx"], ["+avx or -avx"]),
            (["run", "--timeout", "soon"], ["30s"]),
            (["run", "--device", "e1000"], ["isa-debug-exit"]),
            (["run", "--disk", "x,format=vmdk"], ["--disk", "raw"]),
            (["run", "--net", "bridge"], ["--net", "user, tap, socket, none"]),
            (["run", "--net", "user,egress=some"], ["192.0.2.0/24:443"]),
            (["run", "--net", "user,queues=17"], ["queues", "1 to 16"]),
            (["run", "--publish", "80"], ["--publish", "8080:80"]),
            (["run", "--net", "none", "--publish", "8080:80"], ["--net user"]),
            (["run", "--net", "user", "--net", "user", "--capture", "x"], ["capture=FILE"]),
            (["run", "a.qcow2", "uname"], ["uname", "after --"]),
            (["run", "--nonsense"], ["--nonsense"]),
            (["run", "--initrd", "x", "--", "ls"], ["--initrd"]),
            (["fly"], ["fly"]),
        ])
    func usage(arguments: [String], words: [String]) async throws {
        expectOneLine(try await Martlet.run(arguments), status: 64, naming: words + ["--help"])
    }

    @Test(
        "Machines that cannot be",
        arguments: [
            (["--memory", "9000T"], ["9437184000 MiB", "--memory"]),
            (["--kernel", "/nonexistent"], ["/nonexistent", "No such file"]),
            (["--kernel", "/"], ["Is a directory"]),
            (["--kernel", "/etc/passwd"], ["/etc/passwd"]),
            (["--cpu", "default,+svm"], ["no svm", "--cpu help"]),
            (["--initrd", "/nonexistent"], ["initrd", "No such file"]),
            (["--disk", "/nonexistent"], ["disk /nonexistent", "No such file"]),
            (["--disk", "/"], ["Is a directory"]),
            (["--disk", "/dev/null,readonly"], ["/dev/null", "neither a file nor a block device"]),
            (["--net", "tap,fd=99"], ["descriptor 99", "Bad file descriptor"]),
            (["--net", "socket,path=/nonexistent/a,peer=/nonexistent/b"], ["/nonexistent/a", "another path"]),
            (["--net", "tap,name=mt0,vhost=on", "--capture", "/tmp/x"], ["vhost=on", "a capture", "leave out one"]),
            (["--capture", "/nonexistent/x"], ["/nonexistent/x", "another file"]),
            (["--net", "user", "--engine", "lockstep"], ["lockstep", "--net"]),
            (["--initrd", ""], ["--initrd"]),
            (["--snapshot", "--disk", "/nonexistent"], ["disk /nonexistent", "No such file"]),
        ])
    func machines(arguments: [String], words: [String]) async throws {
        let result = try await Martlet.run(["run", "--accel", "soft"] + arguments)
        let needsGuest = !arguments.contains("--kernel")
        if needsGuest, !Martlet.hasGuest {
            expectOneLine(result, status: 125, naming: ["scripts/run"])
        } else {
            expectOneLine(result, status: 125, naming: words)
        }
    }

    @Test("Kernels that are empty, cut off or too large", .enabled(if: Martlet.hasGuest, "no default guest"))
    func brokenKernels() async throws {
        let scratch = try Scratch()
        let kernel = try Data(contentsOf: URL(filePath: Martlet.guestDirectory + "/vmlinuz"))
        for count in [0, 1, 511, 4096, kernel.count / 2] {
            try kernel.prefix(count).write(to: scratch.file("kernel"))
            let result = try await Martlet.run(["run", "--kernel", scratch.file("kernel").path, "--accel", "soft"])
            expectOneLine(result, status: 125, naming: [scratch.file("kernel").path])
        }
        let small = try await Martlet.run(["run", "--memory", "8M", "--accel", "soft"])
        expectOneLine(small, status: 125, naming: ["--memory"])
    }

    @Test("No default guest in the cache")
    func missingGuest() async throws {
        let scratch = try Scratch()
        let result = try await Martlet.run(
            ["run"], environment: ["XDG_CACHE_HOME": scratch.directory.path])
        expectOneLine(result, status: 125, naming: [scratch.directory.path, "scripts/run"])
        let doctor = try await Martlet.run(
            ["doctor"], environment: ["XDG_CACHE_HOME": scratch.directory.path])
        #expect(doctor.status == 1)
        #expect(doctor.outputText.contains("scripts/default-guest") && doctor.outputText.contains("vhost-net"))
    }

    @Test("A closed standard output")
    func closedOutput() async throws {
        expectOneLine(
            try await Martlet.run(["run", "--", "ls"], redirection: ">&-"), status: 125, naming: ["Standard output"])
    }

    @Test("Help and version are no trouble", arguments: [["--help"], ["run", "--help"], ["--version"], []])
    func help(arguments: [String]) async throws {
        let result = try await Martlet.run(arguments)
        #expect(result.status == 0)
        #expect(!result.output.isEmpty)
        #expect(result.errors.isEmpty)
    }

    @Test("A full disk under the help text")
    func fullDisk() async throws {
        let result = try await Martlet.run(["run", "--help"], redirection: ">/dev/full")
        expectOneLine(result, status: 125, naming: ["No space left"])
    }
}
