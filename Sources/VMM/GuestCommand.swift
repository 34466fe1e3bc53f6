/// What the default guest's init is told in an archive of its own: the terminal, and the command to run
/// (scripts/guest/init reads /martlet/environment and /martlet/command).
public struct GuestCommand: Equatable, Sendable {
    /// Empty: an interactive shell.
    public var arguments: [String]
    public var terminalType: String?
    public var columns: Int
    public var rows: Int

    public init(arguments: [String] = [], terminalType: String? = nil, columns: Int = 80, rows: Int = 24) {
        self.arguments = arguments
        self.terminalType = terminalType
        self.columns = columns
        self.rows = rows
    }

    /// The archive that follows the default guest's initramfs.
    public var archive: [UInt8] {
        var archive = CpioArchive()
        archive.addDirectory("martlet")
        archive.addFile("martlet/environment", contents: Array(environment.utf8))
        if !arguments.isEmpty {
            let script = "exec " + arguments.map(Self.quoted).joined(separator: " ") + "\n"
            archive.addFile("martlet/command", contents: Array(script.utf8))
        }
        return archive.finished()
    }

    private var environment: String {
        var lines = "LINES=\(rows) COLUMNS=\(columns)\n"
        if let terminalType { lines += "export TERM=\(Self.quoted(terminalType))\n" }
        return lines
    }

    /// `word` as the shell reads it back unchanged.
    static func quoted(_ word: String) -> String {
        var result = "'"
        for scalar in word.unicodeScalars {
            if scalar == "'" { result += "'\\''" } else { result.unicodeScalars.append(scalar) }
        }
        return result + "'"
    }
}
