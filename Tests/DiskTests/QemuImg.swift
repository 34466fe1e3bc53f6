internal import Foundation
internal import HostProcess
internal import Testing

/// QEMU's tool, which these tests believe more than us (Debian: qemu-utils).
enum QemuImg {
    struct Result {
        var status: Int32
        var output: String
        var errors: String
    }

    static let path = ["/usr/bin/qemu-img", "/usr/local/bin/qemu-img"].first {
        FileManager.default.isExecutableFile(atPath: $0)
    }
    static let isInstalled = path != nil
    static let missing: Comment = "qemu-img is not installed (Debian: qemu-utils)"

    @discardableResult
    static func run(_ arguments: String...) throws -> Result { try run(arguments) }

    static func run(_ arguments: [String], program: String? = nil) throws -> Result {
        let scratch = try Scratch()
        let process = try HostProcess(
            program ?? path ?? "/nonexistent", arguments, output: .file(scratch.path("out")),
            errors: .file(scratch.path("err")))
        process.waitUntilExit()
        return Result(
            status: process.status,
            output: String(decoding: try Data(contentsOf: scratch.file("out")), as: UTF8.self),
            errors: String(decoding: try Data(contentsOf: scratch.file("err")), as: UTF8.self))
    }

    /// Runs it and expects that it is content.
    @discardableResult
    static func expect(
        _ arguments: String..., sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> String {
        let result = try run(arguments)
        #expect(
            result.status == 0, "qemu-img \(arguments.joined(separator: " ")): \(result.output)\(result.errors)",
            sourceLocation: sourceLocation)
        return result.output
    }

    /// `qemu-img check` finds nothing: no errors, no leaks.
    static func expectClean(_ path: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        try expect("check", "-q", "-f", "qcow2", path, sourceLocation: sourceLocation)
    }

    static func json(_ arguments: String...) throws -> [String: Any] {
        let result = try run(arguments)
        let object = try JSONSerialization.jsonObject(with: Data(result.output.utf8))
        return object as? [String: Any] ?? [:]
    }
}

/// A directory that goes with its owner.
final class Scratch: Sendable {
    let directory: URL

    init(in parent: URL = FileManager.default.temporaryDirectory) throws {
        directory = parent.appending(path: "martlet-disk-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: directory) }

    func file(_ name: String) -> URL { directory.appending(path: name) }
    func path(_ name: String) -> String { file(name).path }
}

/// Random numbers that come again with the same seed (SplitMix64).
struct SeededRandom: RandomNumberGenerator {
    var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
