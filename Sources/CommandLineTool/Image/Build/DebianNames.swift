/// What the names in a Debian image may be. They go into configuration files and command lines as they are.
enum DebianNames {
    private static func matches(_ text: String, first: String, rest: String, count: ClosedRange<Int>) -> Bool {
        guard count.contains(text.utf8.count), let start = text.first, first.contains(start) else { return false }
        return text.dropFirst().allSatisfy { rest.contains($0) }
    }

    private static let small = "abcdefghijklmnopqrstuvwxyz"
    private static let digits = "0123456789"

    /// Debian Policy §5.6.1, with an architecture behind a colon.
    static func isPackage(_ text: String) -> Bool {
        matches(text, first: small + digits, rest: small + digits + "+-.:", count: 2...128)
    }

    static func isSuite(_ text: String) -> Bool {
        matches(text, first: small, rest: small + digits + "-.", count: 2...64)
    }

    /// useradd(8) of Debian, and not longer than login accepts.
    static func isUser(_ text: String) -> Bool {
        matches(text, first: small + "_", rest: small + digits + "-_", count: 1...32)
    }

    /// RFC 1123 §2.1: one label.
    static func isHost(_ text: String) -> Bool {
        let letters = small + small.uppercased() + digits
        return matches(text, first: letters, rest: letters + "-", count: 1...63) && !text.hasSuffix("-")
    }

    static func isMirror(_ text: String) -> Bool {
        let schemes = ["http://", "https://", "file:///", "copy:///"]
        return schemes.contains { text.hasPrefix($0) && text.count > $0.count }
            && text.unicodeScalars.allSatisfy { (0x21...0x7E).contains($0.value) && $0 != "[" && $0 != "]" }
    }
}
