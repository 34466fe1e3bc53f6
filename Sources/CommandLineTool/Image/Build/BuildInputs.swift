internal import Disk
internal import Host

/// The files that a person gives to a build, read and looked at before the work begins.
struct BuildInputs {
    var keys: [UInt8] = []
    /// `user:password`, for chpasswd(8).
    var password: [UInt8] = []
    var userData: [UInt8] = []

    init(_ options: BuildDebianCommand) throws(DiskError) {
        if let path = options.sshKey { keys = try Self.keys(path) }
        if let path = options.passwordFile { password = try Self.password(path, user: options.user) }
        if let path = options.cloudInit { userData = try Self.userData(path) }
    }

    private static func read(_ path: String, _ what: String) throws(DiskError) -> [UInt8] {
        do throws(HostError) {
            return try RandomAccessFile(path: path).readAll(limit: 1 << 20)
        } catch {
            throw DiskError(
                .host(error.errorNumber), "Cannot read the \(what) \(path): \(error.reason). Check the path")
        }
    }

    private static func invalid(_ text: String) -> DiskError { DiskError(.invalid, text) }

    /// Lines for authorized_keys (sshd(8)).
    private static func keys(_ path: String) throws(DiskError) -> [UInt8] {
        let text = String(decoding: try read(path, "public key"), as: UTF8.self)
        guard !text.contains("PRIVATE KEY") else {
            throw invalid("\(path) is a private key, which stays with you. Give the public one: \(path).pub")
        }
        let lines = text.split { $0.isNewline }.filter { !$0.hasPrefix("#") && $0.contains { $0 != " " } }
        let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"]
        for line in lines {
            let isKey = line.split(separator: " ").contains { word in
                kinds.contains { word.hasPrefix($0) }
            }
            guard isKey else {
                throw invalid("\(path) has a line that is no public key. Make a key with: ssh-keygen -t ed25519")
            }
        }
        guard !lines.isEmpty else { throw invalid("\(path) has no public key in it") }
        return Array((lines.joined(separator: "\n") + "\n").utf8)
    }

    private static func password(_ path: String, user: String) throws(DiskError) -> [UInt8] {
        let bytes = try read(path, "password file")
        let line = Array(bytes.prefix { $0 != 0x0A && $0 != 0x0D })
        guard !line.isEmpty, !line.contains(0), line.count <= 255 else {
            throw invalid("\(path) has no password of 1 to 255 bytes in its first line")
        }
        return Array("\(user):".utf8) + line + [0x0A]
    }

    /// What cloud-init accepts begins with a line that says what it is.
    private static func userData(_ path: String) throws(DiskError) -> [UInt8] {
        let bytes = try read(path, "user data")
        let text = String(decoding: bytes.prefix(64), as: UTF8.self)
        guard ["#", "Content-Type:", "## template"].contains(where: { text.hasPrefix($0) }) else {
            throw invalid("\(path) is no user data of cloud-init: its first line is not #cloud-config")
        }
        return bytes
    }
}
