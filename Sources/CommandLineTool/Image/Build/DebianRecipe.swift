internal import Disk
internal import Host

/// What one Debian image is made of, and what its tools are told.
struct DebianRecipe {
    let options: BuildDebianCommand
    /// A random UUID (RFC 9562 §5.4) each.
    let rootIdentifier = Self.randomIdentifier()
    let diskIdentifier = Self.randomIdentifier()

    init(_ options: BuildDebianCommand) { self.options = options }

    /// Where the root partition begins: what is in front is left for the partitions of a firmware's boot loader.
    static let rootOffset: UInt64 = 128 << 20
    /// The end of the disk, where the second copy of the partition table is (UEFI 2.10 §5.3).
    static let tail: UInt64 = 1 << 20

    /// `quiet`, as Debian's own boot loader says: the serial console is for logging in.
    var kernelOptions: String { "root=UUID=\(rootIdentifier) ro quiet console=ttyS0" }

    var logsInByItself: Bool {
        options.autologin || (options.sshKey == nil && options.passwordFile == nil && options.cloudInit == nil)
    }

    /// What a small server needs. Without recommended packages: those are a choice of whoever uses it.
    var packages: [String] {
        var names = [
            options.kernelPackage, "ca-certificates", "dbus", "e2fsprogs", "init", "iproute2", "iputils-ping", "kmod",
            "less", "libpam-systemd", "nano", "netbase", "openssh-server", "procps", "sudo", "systemd-timesyncd",
            "udev",
        ]
        // Part of systemd itself in older releases.
        if !["buster", "bullseye"].contains(options.suite) { names.append("systemd-resolved") }
        if options.cloudInit != nil { names.append("cloud-init") }
        return names + options.packageNames
    }

    /// The environment of the install script.
    var environment: [String] {
        let sectors = (options.size.bytes - Self.rootOffset - Self.tail) / 512
        return [
            "MARTLET_SOURCES=\(imageSources)", "MARTLET_HOSTNAME=\(options.hostname)", "MARTLET_USER=\(options.user)",
            "MARTLET_AUTOLOGIN=\(logsInByItself ? 1 : 0)", "MARTLET_ROOT_UUID=\(rootIdentifier)",
            "MARTLET_DISK_UUID=\(diskIdentifier)", "MARTLET_ROOT_SECTOR=\(Self.rootOffset / 512)",
            "MARTLET_ROOT_SECTORS=\(sectors)",
        ]
    }

    /// Releases without a -security and an -updates suite.
    private var isRolling: Bool { ["sid", "unstable", "experimental"].contains(options.suite) }

    /// The image's sources.list.d entry (sources.list(5), deb822 style): Debian's usual places, whatever the build used.
    private var imageSources: String {
        func entry(_ uri: String, _ suites: [String]) -> String {
            """
            Types: deb
            URIs: \(uri)
            Suites: \(suites.joined(separator: " "))
            Components: main
            Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
            """
        }
        let suite = options.suite
        let main = entry("http://deb.debian.org/debian", isRolling ? [suite] : [suite, "\(suite)-updates"])
        return isRolling ? main : main + "\n\n" + entry("http://deb.debian.org/debian-security", ["\(suite)-security"])
    }

    /// The lines of the build's own sources.list.
    func buildSources(_ host: HostPackageSources) -> [String] {
        func line(_ uri: String, _ suite: String) -> String {
            let keys = HostPackageSources.archiveKeys
            return "deb \(HostPath.exists(keys) ? "[signed-by=\(keys)] " : "")\(uri) \(suite) main"
        }
        if let mirror = options.mirror { return [line(mirror, options.suite)] }
        let main = line(host.mirror(of: options.suite), options.suite)
        guard !isRolling, let security = host.securityMirror else { return [main] }
        return [main, line(security, "\(options.suite)-security")]
    }

    private static func randomIdentifier() -> String {
        var bytes = HostRandom.bytes(count: 16)
        bytes[6] = bytes[6] & 0x0F | 0x40
        bytes[8] = bytes[8] & 0x3F | 0x80
        let digits = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
        return [0..<4, 4..<6, 6..<8, 8..<10, 10..<16].map { digits[$0].joined() }.joined(separator: "-")
    }
}
