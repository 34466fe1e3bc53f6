/// What the tools of a build print, line by line: the phase it is in, facts from the install script, and what to tell
/// where it fails.
struct BuildOutput {
    /// The parts of a build, in their order.
    enum Phase: Int, CaseIterable {
        case start, lists, download, unpack, essential, packages, configure, filesystem, convert

        var title: String {
            switch self {
            case .start: "Starting"
            case .lists: "Reading the package lists"
            case .download: "Downloading packages"
            case .unpack: "Unpacking packages"
            case .essential: "Setting up the base system"
            case .packages: "Installing the kernel and the packages"
            case .configure: "Configuring the system"
            case .filesystem: "Writing the file system"
            case .convert: "Writing the image"
            }
        }
    }

    private(set) var phase = Phase.start
    private(set) var kernelRelease: String?
    private(set) var lines: [String] = []
    /// Which of them is the first of the phase.
    private var phaseStart = 0
    private var rest: [UInt8] = []
    private static let keptLines = 400
    private static let longestLine = 4096

    /// Takes what was printed; true when the phase has changed.
    mutating func take(_ bytes: [UInt8], whole: (String) -> Void = { _ in }) -> Bool {
        let before = phase
        for byte in bytes {
            if byte == 0x0A || byte == 0x0D || rest.count >= Self.longestLine {
                if !rest.isEmpty { takeLine(String(decoding: rest, as: UTF8.self), whole) }
                rest = []
                if byte == 0x0A || byte == 0x0D { continue }
            }
            rest.append(byte)
        }
        return phase != before
    }

    private mutating func takeLine(_ line: String, _ whole: (String) -> Void) {
        if line.hasPrefix("martlet-kernel ") {
            kernelRelease = String(line.dropFirst("martlet-kernel ".count))
            return
        }
        if let next = Self.phase(line), next != phase {
            phase = next
            phaseStart = lines.count
        }
        if line.hasPrefix("martlet-phase ") { return }
        whole(line)
        lines.append(line)
        if lines.count > Self.keptLines {
            lines.removeFirst(Self.keptLines / 2)
            phaseStart = max(0, phaseStart - Self.keptLines / 2)
        }
    }

    /// mmdebstrap's and debootstrap's own words.
    private static func phase(_ line: String) -> Phase? {
        let table: [(String, Phase)] = [
            ("I: running apt-get update", .lists), ("I: Retrieving InRelease", .lists),
            ("I: downloading packages", .download), ("I: Resolving dependencies", .download),
            ("I: extracting archives", .unpack), ("I: Extracting ", .unpack),
            ("I: installing essential packages", .essential), ("I: Unpacking required packages", .essential),
            ("I: installing remaining packages", .packages), ("I: Unpacking the base system", .packages),
            ("martlet-phase configure", .configure), ("martlet-phase filesystem", .filesystem),
        ]
        return table.first { line.hasPrefix($0.0) }?.1
    }

    /// What is most likely the cause, of everything that was printed.
    var complaint: String {
        // The full disk first: what else goes wrong follows from it.
        let causes = ["No space left on device", "Disk quota exceeded"]
        if let line = lines.first(where: { line in causes.contains { line.contains($0) } }) { return line }
        let errors = lines[phaseStart...].filter { line in
            Self.beginnings.contains { line.hasPrefix($0) }
        }
        // mmdebstrap's last words only say that it failed.
        let useful = errors.first { line in !["mmdebstrap failed", "setup failed"].contains { line.contains($0) } }
        return useful ?? errors.first ?? lines.last ?? "no message"
    }

    /// How the tools' errors begin.
    private static let beginnings = [
        "E: ", "dpkg: error", "mkfs.ext4: ", "sfdisk: ", "mount: ", "unshare: ", "cp: ", "cat: ", "chroot: ",
        "useradd: ",
        "chpasswd: ", "sh: ", "/bin/sh: ", "__populate_fs: ", "Failed to ",
    ]

    var isDiskFull: Bool {
        lines.contains { $0.contains("No space left on device") || $0.contains("Disk quota exceeded") }
    }
}
