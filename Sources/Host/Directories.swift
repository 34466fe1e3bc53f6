internal import CHost
internal import Glibc

extension HostPath {
    /// A new directory; `mode` is reduced by the umask.
    public static func makeDirectory(_ path: String, mode: UInt32) throws(HostError) {
        try check(host_make_directory(path, mode), "Cannot make the directory \(path)")
    }

    /// An empty one.
    public static func removeDirectory(_ path: String) throws(HostError) {
        try check(host_remove_directory(path), "Cannot remove the directory \(path)")
    }

    /// Past the umask.
    public static func setMode(_ mode: UInt32, of path: String) throws(HostError) {
        try check(host_change_mode(path, mode), "Cannot change the mode of \(path)")
    }

    /// A directory for those who look up names in it.
    public static func openDirectory(_ path: String) throws(HostError) -> FileDescriptor {
        FileDescriptor(
            owning: Int32(truncatingIfNeeded: try check(host_open_directory(path), "Cannot open \(path)")))
    }

    /// Bytes that may still be written to the file system of `path`.
    public static func freeSpace(of path: String) throws(HostError) -> UInt64 {
        var bytes: UInt64 = 0
        try check(host_free_space(path, &bytes), "Cannot ask for the free space of \(path)")
        return bytes
    }

    /// The path of a program, which is looked for in the directories of `searchPath`, separated by colons.
    public static func findProgram(_ name: String, in searchPath: String) -> String? {
        for directory in searchPath.split(separator: ":") {
            let path = "\(directory)/\(name)"
            if access(path, X_OK) == 0 { return path }
        }
        return nil
    }
}
