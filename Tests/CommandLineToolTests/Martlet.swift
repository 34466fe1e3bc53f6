internal import Foundation
internal import HostProcess
internal import SoftKVM
internal import VMM

/// The release binary as a user meets it: a process with arguments, standard streams and a status.
struct Martlet {
    struct Result: Sendable {
        var status: Int32
        var output: Data
        var errors: String
        var wasKilled = false

        var outputText: String { String(decoding: output, as: UTF8.self) }
        var errorLines: [Substring] { errors.split(separator: "\n") }
    }

    /// MARTLET_BINARY, or what `swift build -c release` leaves in this package.
    static let path =
        ProcessInfo.processInfo.environment["MARTLET_BINARY"] ?? root.appending(path: ".build/release/martlet").path

    private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    /// Where scripts/build-guests puts our own guests.
    static let bareMetalDirectory = root.appending(path: ".build/guests")
    static let hasBareMetalGuests = FileManager.default.fileExists(
        atPath: bareMetalDirectory.appending(path: "multiboot-exit.elf").path)

    static let isBuilt = FileManager.default.isExecutableFile(atPath: path)

    static let guestDirectory: String = {
        let environment = ProcessInfo.processInfo.environment
        let cache =
            environment["XDG_CACHE_HOME"].flatMap { $0.isEmpty ? nil : $0 } ?? "\(environment["HOME"] ?? "")/.cache"
        return cache + "/martlet/guest"
    }()

    /// What `--accel auto` would take.
    static let hasKVM = (try? EngineChoice(.auto, software: .translator))?.name == "kvm"

    static let hasGuest = isBuilt && FileManager.default.isReadableFile(atPath: guestDirectory + "/vmlinuz")

    /// Runs `arguments` with `input`, from a shell line if `redirection` has one (such as `>&-`).
    static func run(
        _ arguments: [String], input: Data = Data(), redirection: String = "", environment: [String: String] = [:],
        limit: Duration = .seconds(900)
    ) async throws -> Result {
        let scratch = try Scratch()
        try input.write(to: scratch.file("in"))
        let line = "\(redirection.contains("|") ? "" : "exec ")\"$0\" \"$@\" \(redirection)"
        // Files, not pipes: nobody has to read while it runs.
        let process = try HostProcess(
            "/bin/sh", ["-c", line, path] + arguments, environment: environment, input: .file(scratch.file("in").path),
            output: .file(scratch.file("out").path), errors: .file(scratch.file("err").path))
        let killed = await process.waitOrKill(limit: limit)
        return Result(
            status: process.status, output: try Data(contentsOf: scratch.file("out")),
            errors: String(decoding: try Data(contentsOf: scratch.file("err")), as: UTF8.self), wasKilled: killed)
    }
}

/// A directory that goes with its owner.
final class Scratch {
    let directory: URL

    init() throws {
        directory = FileManager.default.temporaryDirectory.appending(path: "martlet-test-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: directory) }

    func file(_ name: String) -> URL { directory.appending(path: name) }

    func emptyFile(_ name: String) throws -> FileHandle {
        try Data().write(to: file(name))
        return try FileHandle(forWritingTo: file(name))
    }
}
