internal import Foundation
internal import HostProcess
internal import Testing

/// What these tests work with: the release binary, the guests in the cache, and the host's tools.
enum RealGuest {
    private static let environment = ProcessInfo.processInfo.environment
    private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static let martlet = environment["MARTLET_BINARY"] ?? root.appending(path: ".build/release/martlet").path

    private static let cache =
        (environment["XDG_CACHE_HOME"].flatMap { $0.isEmpty ? nil : $0 } ?? "\(environment["HOME"] ?? "")/.cache")
        + "/martlet"

    /// scripts/debian-image builds it.
    static let debian = cache + "/debian/debian.qcow2"
    static let password = "martlet"

    private static let isBuilt = FileManager.default.isExecutableFile(atPath: martlet)
    static let hasDebian = isBuilt && FileManager.default.isReadableFile(atPath: debian + ".json")
    static let hasDefaultGuest = isBuilt && FileManager.default.isReadableFile(atPath: cache + "/guest/vmlinuz")
    static let hasTools = ["qemu-img", "e2fsck", "mkfs.ext4", "debugfs"].allSatisfy { tool($0) != nil }
    static let hasNetworkTools = ["ssh", "ssh-keygen", "iperf3", "python3", "dpkg-deb"].allSatisfy { tool($0) != nil }

    /// The whole of what CI has only a part of.
    static let isLong = environment["MARTLET_TEST_LONG"] != nil

    static func tool(_ name: String) -> String? {
        let directories = (environment["PATH"] ?? "").split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"]
        return directories.map { "\($0)/\(name)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    /// QEMU's check and ours find nothing, lost space neither.
    static func expectSoundImage(_ image: String, _ context: String) throws {
        let qemu = try run("qemu-img", "check", image)
        #expect(qemu.status == 0, "\(context): \(qemu.text)")
        let own = try run(martlet, "image", "check", image)
        #expect(own.status == 0, "\(context): \(own.text)")
    }

    struct Output {
        var status: Int32
        var text: String
    }

    /// Runs a program of the host to its end: its status, its output and its errors.
    static func run(_ name: String, _ arguments: String...) throws -> Output {
        let process = try HostProcess(
            name.contains("/") ? name : tool(name) ?? "/nonexistent/\(name)", arguments, output: .pipe, errors: .output)
        let data = process.readToEnd()
        process.waitUntilExit()
        return Output(status: process.status, text: String(decoding: data, as: UTF8.self))
    }
}

/// A directory that goes with its owner.
final class Scratch {
    let directory: URL

    init() throws {
        directory = FileManager.default.temporaryDirectory.appending(path: "martlet-real-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    func path(_ name: String) -> String { directory.appending(path: name).path }

    deinit { try? FileManager.default.removeItem(at: directory) }
}
