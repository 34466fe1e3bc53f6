internal import ArgumentParser
internal import Host

/// The `martlet` command.
public enum CommandLineTool {
    /// Runs the verb that `arguments` name (without the program's name); the process's exit status.
    public static func run(_ arguments: [String]) -> Int32 {
        // A reader that goes away is an error of write(2) that has a message, not a silent death.
        Signal.ignore(.pipe)
        var expanded: ExpandedArguments?
        do {
            let all = try ExpandedArguments(arguments)
            expanded = all
            var command = try Martlet.parseAsRoot(all.arguments)
            try command.run()
            return 0
        } catch let error as ConfigurationFileError {
            return report(error)
        } catch {
            return report(error, verb: arguments.first, expanded)
        }
    }

    private static func report(_ error: ConfigurationFileError) -> Int32 {
        switch error {
        case .unreadable(let text):
            Message.error(text)
            return ExitStatus.martletFailed.rawValue
        case .wrong(let text):
            Message.error(text + " See: martlet run --help")
            return ExitStatus.usage.rawValue
        }
    }

    /// Help and version go to standard output; trouble is one line on standard error.
    private static func report(_ error: any Error, verb: String?, _ expanded: ExpandedArguments?) -> Int32 {
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
        let message = Martlet.message(for: error)
        let place = expanded?.place(of: message) ?? ""
        let lines = place + message.split(separator: "\n").joined(separator: " ")
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
              martlet run debian.qcow2       a Debian, from: martlet image build debian debian.qcow2
              martlet doctor                 what this host offers, and what to do about it
              martlet image --help           disk images
            """,
        version: "0.1.0",
        subcommands: [RunCommand.self, ImageCommand.self, ConfigCommand.self, DoctorCommand.self])
}
