internal import ArgumentParser
internal import Disk

/// `martlet image build debian`.
struct BuildDebianCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "debian",
        abstract: "Builds a Debian disk image from Debian's packages; as root, or as any user with subordinate ids.",
        discussion: """
            EXAMPLES
              martlet image build debian debian.qcow2 && martlet run debian.qcow2
              martlet image build debian --suite trixie --size 20G --ssh-key ~/.ssh/id_ed25519.pub server.qcow2
              martlet image build debian --packages nginx,git --cloud-init user-data.yaml web.qcow2

            WHAT IT MAKES
              OUTPUT          the disk: a GPT with one ext4 root partition, behind 128 MiB that are left for the
                              partitions of a firmware's boot loader
              OUTPUT.kernel   its kernel, OUTPUT.initrd its initial RAM disk
              OUTPUT.json     the manifest, by which `martlet run OUTPUT` finds them; keep all four together
              They replace files of the same names when all are whole. A kernel that is installed in the guest later
              is not taken into OUTPUT.kernel.

            LOGGING IN
              The user is in the group sudo and needs no password for it. Its password is locked, unless there is a
              --password-file; --ssh-key lets it in over the network. Without either, or with --autologin, the
              console on the serial port needs no login. root cannot log in.
              Each machine makes its own SSH host keys and machine-id at its first start. The network is set up by
              DHCP on all wired interfaces.

            WHERE PACKAGES COME FROM
              From where the apt of this machine gets Debian's packages, through its proxy if it has one; else from
              deb.debian.org. The image itself always has deb.debian.org in its sources.

            TOOLS
              Debian packages: mmdebstrap (or, as root, debootstrap), e2fsprogs, fdisk. Other users than root also
              need uidmap, and a range of ids in /etc/subuid and /etc/subgid. Temporary files go to $TMPDIR or /tmp,
              about 1 GB.
            """)

    @Option(help: ArgumentHelp("The release: bookworm, trixie, sid, …", valueName: "name"))
    var suite = "bookworm"

    @Option(
        help: ArgumentHelp("The disk's size (default: 4G); it takes only what is written to it.", valueName: "size"),
        transform: DiskSize.parse)
    var size = DiskSize(bytes: 4 << 30)

    @Option(help: ArgumentHelp("The user who may log in.", valueName: "name"))
    var user = "debian"

    @Option(help: ArgumentHelp("A file with the public keys that let the user in by SSH.", valueName: "file"))
    var sshKey: String?

    @Option(help: ArgumentHelp("A file whose first line is the user's password.", valueName: "file"))
    var passwordFile: String?

    @Flag(help: "Log the user in on the serial console without a password.")
    var autologin = false

    @Option(help: ArgumentHelp("The machine's name.", valueName: "name"))
    var hostname = "debian"

    @Option(help: ArgumentHelp("Packages to install besides, separated by commas; again for more.", valueName: "names"))
    var packages: [String] = []

    @Option(
        help: ArgumentHelp("User data for cloud-init's NoCloud source, which is then installed.", valueName: "file"))
    var cloudInit: String?

    @Option(
        help: ArgumentHelp("The kernel's package.", valueName: "package"))
    var kernelPackage = "linux-image-cloud-amd64"

    @Option(help: ArgumentHelp("The mirror to build from, instead of what apt uses here.", valueName: "url"))
    var mirror: String?

    @Option(help: ArgumentHelp("The image's format: qcow2, raw.", valueName: "format"), transform: FormatOption.parse)
    var format: DiskFormat = .qcow2

    @Flag(name: .shortAndLong, help: "Show what the tools say.")
    var verbose = false

    @Argument(help: "The new image.")
    var output: String

    static let smallestDisk: UInt64 = 1 << 30

    func validate() throws {
        func require(_ isRight: Bool, _ message: String) throws {
            if !isRight { throw ValidationError(message) }
        }
        try require(
            DebianNames.isSuite(suite), "--suite '\(suite)': a release has a name such as bookworm, trixie or sid")
        try require(
            DebianNames.isUser(user),
            "--user '\(user)': a user's name begins with a small letter, and has small letters, digits, - and _ (at most 32)"
        )
        try require(
            DebianNames.isHost(hostname),
            "--hostname '\(hostname)': a machine's name has letters, digits and - (at most 63)")
        for name in packageNames + [kernelPackage] {
            try require(DebianNames.isPackage(name), "'\(name)' is no name of a Debian package")
        }
        try require(size.bytes >= Self.smallestDisk, "--size: a Debian needs at least 1G")
        try require(size.bytes <= 16 << 40, "--size: ext4 with blocks of 4K ends at 16T")
        try require(size.bytes.isMultiple(of: 1 << 20), "--size must be a multiple of 1M")
        try require(
            mirror.map { DebianNames.isMirror($0) } ?? true,
            "--mirror must be a URL such as http://deb.debian.org/debian")
        try require(!output.isEmpty && !output.hasSuffix("/"), "OUTPUT is the name of a file")
        if user == "root", passwordFile == nil, sshKey == nil, cloudInit == nil, !autologin {
            throw ValidationError("--user root needs --ssh-key, --password-file or --autologin")
        }
    }

    var packageNames: [String] { packages.flatMap { $0.split(separator: ",").map(String.init) } }

    func run() throws {
        let recipe = DebianRecipe(self)
        try BuildProgress(isVerbose: verbose).run { progress throws(DiskError) in
            try DebianBuild(recipe, progress: progress).run()
        }
        Message.line("\(output) is ready. Start it with: martlet run \(output)")
        if recipe.logsInByItself {
            Message.line("Its console logs in \(user) without a password; --ssh-key or --password-file change that.")
        }
    }
}
