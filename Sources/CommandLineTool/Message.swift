internal import Host

/// Lines for the person at the terminal, on standard error.
enum Message {
    static func error(_ text: String) { line("martlet: \(text)") }

    static func note(_ text: String) { line("martlet: \(text)") }

    static func line(_ text: String) {
        // Nobody can be told that standard error is broken.
        try? BorrowedDescriptor.standardError.write(Array((text + "\n").utf8))
    }
}
