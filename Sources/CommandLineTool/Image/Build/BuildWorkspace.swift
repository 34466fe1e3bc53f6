internal import Disk
internal import Host

/// The files of a build beside its output, until they get their names: what fails or is stopped leaves nothing behind.
///
/// The outer directory lets nobody in but us. The inner one and its files are open to all, because the tools of an
/// unprivileged build run as other users, who get the inner directory as an open descriptor.
struct BuildWorkspace {
    let directory: String
    let files: String

    static let inputs = ["keys", "password", "user-data"]
    static let outputs = ["disk", "kernel", "initrd"]

    init(besides output: String) throws(DiskError) {
        let bits = HostRandom.bytes(count: 6).map { String($0, radix: 36) }.joined()
        let directory = "\(output).\(bits).part"
        self.directory = directory
        files = directory + "/files"
        try Self.host { () throws(HostError) in try HostPath.makeDirectory(directory, mode: 0o700) }
        do throws(DiskError) {
            let files = files
            try Self.host { () throws(HostError) in
                try HostPath.makeDirectory(files, mode: 0o755)
                try HostPath.setMode(0o755, of: files)
            }
        } catch {
            remove()
            throw error
        }
    }

    func path(_ name: String) -> String { "\(files)/\(name)" }

    /// A file that the tools read.
    func write(_ bytes: [UInt8], to name: String) throws(DiskError) {
        let path = path(name)
        try Self.host { () throws(HostError) in
            let file = try FileDescriptor.open(path, .createNew)
            try file.write(bytes)
            try HostPath.setMode(0o644, of: path)
        }
    }

    /// A file that the tools write.
    func makeWritable(_ name: String) throws(DiskError) {
        let path = path(name)
        try Self.host { () throws(HostError) in
            if !HostPath.exists(path) { _ = try FileDescriptor.open(path, .createNew) }
            try HostPath.setMode(0o666, of: path)
        }
    }

    /// Nobody else may write it any more.
    func finish(_ name: String) throws(DiskError) {
        let path = path(name)
        try Self.host { () throws(HostError) in try HostPath.setMode(0o644, of: path) }
    }

    /// Removes all of it.
    func remove() {
        for name in Self.inputs + Self.outputs + ["image", "manifest"] { try? HostPath.remove(path(name)) }
        try? HostPath.removeDirectory(files)
        try? HostPath.removeDirectory(directory)
    }

    static func host<Result: ~Copyable>(_ call: () throws(HostError) -> Result) throws(DiskError) -> Result {
        do throws(HostError) {
            return try call()
        } catch {
            let hint =
                error.errorNumber == HostError.Number.noSpace
                ? ". Make room on that file system" : ". Check the path and its permissions"
            throw DiskError(.host(error.errorNumber), error.description + hint)
        }
    }
}
