internal import ArgumentParser
internal import Host

/// The `martlet` command.
public enum CommandLineTool {
    /// Runs the verb that `arguments` name (without the program's name); the process's exit status.
    public static func run(_ arguments: [String]) -> Int32 {
        // A reader that goes away is an error of write(2) that has a message, not a silent death.
        Signal.ignore(.pipe)
        do {
            var command = try Martlet.parseAsRoot(arguments)
            try command.run()
            return 0
        } catch {
            return report(error, verb: arguments.first)
        }
    }

    /// Help and version go to standard output; trouble is one line on standard error.
    private static func report(_ error: any Error, verb: String?) -> Int32 {
        if let status = error as? ExitStatus { return status.rawValue }
        let exitCode = Martlet.exitCode(for: error)
        if exitCode.isSuccess {
            do {
                try BorrowedDescriptor.standardOutput.write(Array((Martlet.fullMessage(for: error) + "\n").utf8))
                return 0
            } catch {
                Message.error("Cannot write to standard output: \(error.reason).")
                return ExitStatus.martletFailed.rawValue
            }
        }
        // The parser's message without its usage text; several lines become one.
        let lines = Martlet.message(for: error).split(separator: "\n").joined(separator: " ")
        let isImage = verb == "image"
        let hint = !isImage && lines.contains("Unexpected argument") ? " A command for the guest goes after --." : ""
        let help = isImage ? "martlet image --help" : "martlet run --help"
        Message.error(lines + (lines.hasSuffix(".") ? "" : ".") + hint + " See: \(help)")
        return ExitStatus.usage.rawValue
    }
}

/// `martlet` itself: only its verbs.
struct Martlet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "martlet",
        abstract: "Runs x86-64 virtual machines, on /dev/kvm where the processor allows and in software anywhere.",
        discussion: """
            Start here:
              martlet run                    a Linux shell in the default guest
              martlet run -- uname -a        one command in the default guest
              martlet doctor                 what this host offers, and what to do about it
              martlet image --help           disk images
            """,
        version: "0.1.0",
        subcommands: [RunCommand.self, ImageCommand.self, DoctorCommand.self])
}
