internal import Foundation
internal import SoftKVM
internal import Testing
internal import VMM

@testable internal import CommandLineTool

@Suite("Options of profile and trace")
struct ObservationOptionTests {
    private static func request(_ kinds: Set<TraceRequest.Kind>, _ change: (inout TraceRequest) -> Void) -> TraceRequest
    {
        var request = TraceRequest(kinds)
        change(&request)
        return request
    }

    @Test(
        "What is traced",
        arguments: [
            ("faults", TraceRequest([.faults])),
            ("exits,blocks,faults", TraceRequest([.exits, .blocks, .faults])),
            (
                "faults:vector=14,user",
                request([.faults]) {
                    $0.vectors = [14...14]; $0.isUser = true
                }
            ),
            (
                "exits:port=0x3f8-0x3ff,kernel",
                request([.exits]) {
                    $0.ports = [0x3f8...0x3ff]; $0.isUser = false
                }
            ),
            (
                "blocks:entries,rip=0x1000+0x200,rip=0",
                request([.blocks]) {
                    $0.includesEntries = true; $0.rips = [0x1000...0x11ff, 0...0]
                }
            ),
            (
                "faults,exits:address=0-0xffffffffffffffff,vector=6",
                request([.faults, .exits]) {
                    $0.addresses = [0...UInt64.max]; $0.vectors = [6...6]
                }
            ),
        ] as [(String, TraceRequest)])
    func trace(text: String, expected: TraceRequest) throws {
        #expect(try TraceOption.parse(text) == expected)
    }

    @Test(
        "What cannot be traced",
        arguments: [
            "", "everything", "faults,", "faults:", "faults:vector", "faults:vector=", "faults:vector=256",
            "faults:vector=14-6", "faults:port=0x3f8", "exits:vector=14", "exits:entries", "faults:entries",
            "blocks:address=1", "exits:port=0x10000", "faults:user,kernel", "faults:rip=0x", "faults:rip=-1",
            "faults:rip=1+0", "faults:rip=0xffffffffffffffff+2", "faults:rip=+1", "faults:colour=red", "faults:rip=1-",
        ])
    func badTrace(text: String) {
        #expect(throws: (any Error).self) { try TraceOption.parse(text) }
    }

    @Test(
        "Symbol files",
        arguments: [
            ("System.map", SymbolFile(path: "System.map")),
            ("a@0x1000", SymbolFile(path: "a", loadAddress: 0x1000)),
            ("a@b", SymbolFile(path: "a@b")),
            ("a@b@16", SymbolFile(path: "a@b", loadAddress: 16)),
            ("a@", SymbolFile(path: "a@")),
        ] as [(String, SymbolFile)])
    func symbols(text: String, expected: SymbolFile) throws {
        #expect(try SymbolsOption.parse(text) == expected)
    }

    @Test("Limits", arguments: ["", "0", "-1", "ten", "99999999999999999999"])
    func badLimit(text: String) {
        #expect(throws: (any Error).self) { try TraceLimitOption.parse(text) }
    }
}

/// Profiles and traces of whole machines, as a user gets them.
@Suite(
    "Profile and trace", .serialized,
    .enabled(if: Martlet.isBuilt && Martlet.hasBareMetalGuests, "no release binary or no guests: run ./scripts/test"))
struct ObservationTests {
    private func run(_ name: String, _ options: [String]) async throws -> Martlet.Result {
        try await Martlet.run(
            [
                "run", "--timeout", "5m", "--device", "isa-debug-exit", "--kernel",
                Martlet.bareMetalDirectory.appending(path: name).path,
            ] + options)
    }

    /// Counts by stack.
    private func profile(_ file: URL) throws -> [String: Int] {
        var result: [String: Int] = [:]
        for line in String(decoding: try Data(contentsOf: file), as: UTF8.self).split(separator: "\n") {
            let separator = try #require(line.lastIndex(of: " "))
            let count: Int = try #require(Int(line[separator...].dropFirst()))
            result[String(line[..<separator])] = count
        }
        return result
    }

    @Test("The loop of a program is where its time is: by symbol, and by page without one", arguments: [true, false])
    func hotLoop(hasSymbols: Bool) async throws {
        let scratch = try Scratch()
        let kernel = Martlet.bareMetalDirectory.appending(path: "multiboot-loop.elf").path
        let result = try await run(
            "multiboot-loop.elf",
            ["--profile", scratch.file("profile").path, "--verbose"] + (hasSymbols ? ["--symbols", kernel] : []))
        #expect(result.status == 15, "\(result.errors)")
        let counts = try profile(scratch.file("profile"))
        let name = hasSymbols ? "hot_loop" : "0x101000"
        let inLoop = counts["kernel;\(name);translated"] ?? 0
        let total = counts.values.reduce(0, +)
        #expect(total > 20, "\(counts)")
        #expect(Double(inLoop) > 0.8 * Double(total), "\(counts)")
        #expect(result.errors.contains("profile: \(total) samples in \(scratch.file("profile").path)"))
        let map = try #require(result.errors.firstMatch(of: /\/tmp\/perf-[0-9]+\.map/).map { String($0.output) })
        #expect(FileManager.default.fileExists(atPath: map))
        try FileManager.default.removeItem(atPath: map)
    }

    @Test("A trace on standard error, and in a file")
    func trace() async throws {
        let scratch = try Scratch()
        let options = ["--trace", "exits:port=0xf4"]
        let result = try await run("multiboot-exit.elf", options)
        #expect(result.status == 43)
        #expect(result.errorLines.count == 1)
        #expect(result.errors.contains("exit port write 0xf4 size 1 value 0x15 rip 0x"), "\(result.errors)")
        let toFile = try await run("multiboot-exit.elf", options + ["--trace-file", scratch.file("trace").path])
        #expect(toFile.errors.isEmpty)
        let text = String(decoding: try Data(contentsOf: scratch.file("trace")), as: UTF8.self)
        #expect(text.split(separator: "\n").count == 1)
        #expect(text.hasPrefix("trace "))
    }

    @Test(
        "Combinations and files that cannot be",
        arguments: [
            (["--symbols", "x"], 64, ["--symbols", "--profile"]),
            (["--trace-file", "x"], 64, ["--trace-file", "--trace"]),
            (["--trace-limit", "5"], 64, ["--trace-limit", "--trace"]),
            (["--trace", "nothing"], 64, ["blocks, exits, faults"]),
            (["--profile", "/nonexistent/x"], 125, ["/nonexistent/x", "No such file"]),
            (["--trace", "faults", "--trace-file", "/"], 125, ["trace", "/", "directory"]),
            (["--profile", "/dev/null", "--symbols", "/nonexistent"], 125, ["/nonexistent", "No such file"]),
            (["--profile", "/dev/null", "--symbols", "/etc/passwd"], 125, ["/etc/passwd", "System.map"]),
            (["--profile", "/dev/null", "--accel", "kvm"], 125, ["--profile", "--accel soft"]),
        ] as [([String], Int32, [String])])
    func refusals(options: [String], status: Int32, words: [String]) async throws {
        let result = try await run("multiboot-exit.elf", options)
        #expect(result.status == status, "\(result.errors)")
        #expect(result.errorLines.count == 1, "\(result.errors)")
        for word in words { #expect(result.errors.contains(word), "\(result.errors)") }
    }

    @Test(
        "A profile and a trace that find no room on their disk; the guest's status counts",
        arguments: [
            ("multiboot-loop.elf", ["--profile", "/dev/full"], 15),
            ("multiboot-exit.elf", ["--trace", "exits", "--trace-file", "/dev/full"], 43),
        ] as [(String, [String], Int32)])
    func fullDisk(guest: String, options: [String], status: Int32) async throws {
        let result = try await run(guest, options)
        #expect(result.status == status)
        #expect(result.errorLines.count == 1)
        #expect(result.errors.contains("/dev/full: No space left"), "\(result.errors)")
    }
}

@Suite(
    "Profile of the default guest", .enabled(if: Martlet.hasGuest, "no default guest: run ./scripts/test"))
struct GuestProfileTests {
    @Test("The kernel names its own functions; privileges and what executed are apart")
    func defaultGuest() async throws {
        var text = try await profile()
        // A timer's ticks that come faster than a busy host lets the sleeping processor look are one sample.
        for _ in 0..<2 where halted(text) <= 500 { text = try await profile() }
        let lines = text.split(separator: "\n")
        #expect(lines.contains { $0.hasPrefix("kernel;start_kernel;") || $0.contains("clear_page") }, "\(text)")
        #expect(lines.contains { $0.hasPrefix("user;0x") && $0.contains(";translated ") }, "\(text)")
        #expect(lines.contains { $0.hasPrefix("kernel;") && $0.contains(";page walk ") }, "\(text)")
        #expect(halted(text) > 500, "\(text)")
    }

    /// Of a guest that computes, and sleeps for a second.
    private func profile() async throws -> String {
        let scratch = try Scratch()
        let result = try await Martlet.run([
            "run", "--accel", "soft", "--engine", "translator", "--timeout", "4m", "--profile",
            scratch.file("profile").path, "--", "sh", "-c",
            "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done; sleep 1",
        ])
        #expect(result.status == 0, "\(result.errors)")
        return String(decoding: try Data(contentsOf: scratch.file("profile")), as: UTF8.self)
    }

    private func halted(_ text: String) -> Int {
        let line = text.split(separator: "\n").first { $0.hasPrefix("halted ") }
        return line.flatMap { Int($0.dropFirst("halted ".count)) } ?? 0
    }
}
