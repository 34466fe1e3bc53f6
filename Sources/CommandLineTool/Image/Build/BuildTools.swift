internal import Disk
internal import Glibc
internal import Host

/// The programs that a build runs.
struct BuildTools {
    enum Bootstrap: Equatable {
        case mmdebstrap(String)
        /// For root only.
        case debootstrap(String)
    }

    let bootstrap: Bootstrap
    let isRoot: Bool
    /// What the programs find others in: Debian gives ordinary users no /usr/sbin.
    let searchPath: String

    /// - Parameters:
    ///   - searchPath: PATH.
    ///   - isRoot: whether root runs it.
    ///   - systemPath: where else programs are.
    init(
        searchPath: String = environmentVariable("PATH") ?? "", isRoot: Bool = geteuid() == 0,
        systemPath: String = "/usr/sbin:/usr/bin:/sbin:/bin"
    ) throws(DiskError) {
        let searchPath = [searchPath, systemPath].filter { !$0.isEmpty }.joined(separator: ":")
        func find(_ name: String) -> String? { HostPath.findProgram(name, in: searchPath) }
        var missing: [String] = []
        let mmdebstrap = find("mmdebstrap")
        let debootstrap = isRoot ? find("debootstrap") : nil
        if mmdebstrap == nil, debootstrap == nil { missing.append("mmdebstrap") }
        if find("mkfs.ext4") == nil { missing.append("e2fsprogs") }
        if find("sfdisk") == nil { missing.append("fdisk") }
        if !isRoot, find("newuidmap") == nil { missing.append("uidmap") }
        guard missing.isEmpty else {
            throw DiskError(
                .unsupported,
                "These Debian packages are missing for the build: \(missing.joined(separator: ", ")). Install them: "
                    + "\(isRoot ? "" : "sudo ")apt-get install \(missing.joined(separator: " "))")
        }
        bootstrap = mmdebstrap.map { .mmdebstrap($0) } ?? .debootstrap(debootstrap ?? "debootstrap")
        self.isRoot = isRoot
        self.searchPath = searchPath
        if !isRoot { try Self.requireSubordinateIDs() }
    }

    /// A user's build needs 65536 ids of its own for the owners of files (subuid(5)).
    private static func requireSubordinateIDs() throws(DiskError) {
        let user = getpwuid(getuid()).flatMap { $0.pointee.pw_name }.map { String(cString: $0) } ?? ""
        for path in ["/etc/subuid", "/etc/subgid"] {
            let text = (try? RandomAccessFile(path: path)).flatMap { try? $0.readAll(limit: 1 << 20) } ?? []
            let names = String(decoding: text, as: UTF8.self).split(separator: "\n").compactMap {
                $0.split(separator: ":").first.map(String.init)
            }
            guard names.contains(user) || names.contains(String(getuid())) else {
                throw DiskError(
                    .unsupported,
                    "\(path) has no ids for \(user.isEmpty ? "this user" : user), which a build without root needs. "
                        + "Run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \(user)")
            }
        }
    }

    /// The environment of the programs: what makes them speak plainly, and nothing of the caller's shell but where to go.
    func environment(_ more: [String]) -> [String] {
        let kept = ["TMPDIR", "USER", "LOGNAME", "http_proxy", "https_proxy", "no_proxy", "APT_CONFIG"]
        let values = kept.compactMap { name in environmentVariable(name).map { "\(name)=\($0)" } }
        return values + ["PATH=\(searchPath)", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "HOME=/nonexistent"]
            + more
    }
}
