internal import Host

/// Where the apt of this machine gets Debian's packages, and how.
struct HostPackageSources: Equatable {
    static let archiveKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    private static let usual = "http://deb.debian.org/debian"

    /// URI and suite of each of Debian's own package indexes.
    var targets: [Target] = []
    /// Lines for apt.conf: proxies, and what else it takes to reach the mirrors.
    var options: [String] = []

    struct Target: Equatable {
        var uri: String
        var suite: String
    }

    init() {}

    /// From the texts of `apt-get indextargets` in `targetFormat`, and of `apt-config dump`.
    init(targets text: String, configuration: String) {
        for line in text.split(separator: "\n") {
            let fields = line.split(separator: "|", omittingEmptySubsequences: false).map(String.init)
            // The origin is not known before the lists were read.
            guard fields.count == 3, fields[2] == "Debian" || (fields[2].isEmpty && fields[0].contains("debian"))
            else { continue }
            let uri = fields[0].hasSuffix("/") ? String(fields[0].dropLast()) : fields[0]
            let target = Target(uri: uri, suite: fields[1])
            if DebianNames.isMirror(uri), !targets.contains(target) { targets.append(target) }
        }
        options = configuration.split(separator: "\n").map(String.init).filter(Self.isAboutReaching)
            .map { $0.hasSuffix(";") ? String($0.dropLast()) : $0 }
    }

    static let targetFormat = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)"

    private static func isAboutReaching(_ line: String) -> Bool {
        guard let name = line.split(separator: " ").first, line.hasPrefix("Acquire::"), !line.contains("\"\"") else {
            return false
        }
        let wanted = ["Proxy", "Check-Valid-Until", "Check-Date", "Retries", "ForceIPv4", "ForceIPv6", "Timeout"]
        return wanted.contains { name.contains($0) }
    }

    /// The mirror that has the suite, or another release's, or the usual one.
    func mirror(of suite: String) -> String {
        let mains = targets.filter { target in
            !["-security", "-updates", "-backports"].contains { target.suite.contains($0) }
        }
        return (mains.first { $0.suite == suite } ?? mains.first)?.uri ?? Self.usual
    }

    /// Nil where this machine has packages of Debian and none of its security archive.
    var securityMirror: String? {
        targets.isEmpty ? Self.usual + "-security" : targets.first { $0.suite.hasSuffix("-security") }?.uri
    }
}
