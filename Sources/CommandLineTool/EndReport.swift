internal import Host
internal import VMM

/// What is said about the end of a session, and the exit status that goes with it.
struct EndReport {
    let end: SessionEnd
    /// Where the processor stopped, however the session ended.
    let trace: ProcessorTrace?
    let engineName: String
    let options: RunCommand
    let isTyping: Bool

    /// One line for everything that was not asked for.
    func tell() -> ExitStatus {
        // The guest's cursor may be anywhere in its line.
        if isTyping, wasCutOff { Message.line("") }
        let (status, line) = statusAndLine
        if let line { Message.error(line) }
        if options.verbose, let trace {
            Message.note("the processor stopped at \(trace.description)")
            if let count = trace.instructionCount { Message.note("\(count) guest instructions") }
            for line in trace.statistics.map(Figures.lines) ?? [] { Message.note(line) }
        }
        return status
    }

    private var wasCutOff: Bool {
        switch end {
        case .left, .timedOut, .signalled: true
        case .machine, .outputFailed: false
        }
    }

    private var statusAndLine: (ExitStatus, String?) {
        switch end {
        case .machine(let outcome, let trace): machineEnd(outcome, trace)
        case .left: (.success, nil)
        case .timedOut:
            (.timedOut, "The time of --timeout is over; the machine was switched off. Give it more if it needs it.")
        case .signalled(let signal):
            (.signal(signal.rawValue), "The machine was switched off by signal \(signal.rawValue).")
        case .outputFailed(let error):
            (.martletFailed, "The guest's output cannot be written: \(error.reason). The machine was switched off.")
        }
    }

    private func machineEnd(_ outcome: MachineOutcome, _ trace: ProcessorTrace?) -> (ExitStatus, String?) {
        let place = trace.map { " (\($0.description))" } ?? ""
        switch outcome {
        case .poweredOff where !options.command.isEmpty:
            return (.success, "The guest switched itself off before the command ended.")
        case .poweredOff, .stopped:
            return (.success, nil)
        case .reset where !options.command.isEmpty:
            return (.martletFailed, "The guest restarted before the command ended; the machine was switched off.")
        case .reset:
            return (.success, nil)
        case .status(let status):
            return (ExitStatus(rawValue: Int32(status)), nil)
        case .debugExit(let status):
            return (ExitStatus(rawValue: status), nil)
        case .panicked(let reason):
            return (.guestPanicked, "The guest's kernel panicked: \(reason)\(place).\(consoleHint)")
        case .tripleFault:
            return (
                .tripleFault,
                "The guest ended with a triple fault\(place): its exception handlers did not work. "
                    + "Check that the kernel is made for this machine."
            )
        case .enginesDiffer(let report):
            return (
                .enginesDiffer,
                "The translator and the interpreter differ: one of them executed the guest wrongly. Please report it "
                    + "with the guest's kernel and command line, and this:\n\(report)"
            )
        case .engineFailure(let reason):
            let advice =
                engineName == "kvm"
                ? "Try --accel soft." : "Please report it with the guest's kernel and command line."
            return (.engineFailed, "The \(engineName) engine had to stop the guest: \(reason)\(place). \(advice)")
        }
    }

    private var consoleHint: String {
        options.command.isEmpty || options.verbose ? "" : " Run it again with --verbose to see the kernel's messages."
    }

    /// "[  1.234 s]".
    static func text(of time: Duration) -> String {
        let (seconds, attoseconds) = time.components
        let milliseconds = attoseconds / 1_000_000_000_000_000
        let fraction = String(repeating: "0", count: 3 - String(milliseconds).count) + String(milliseconds)
        let whole = String(seconds)
        return "[" + String(repeating: " ", count: max(0, 4 - whole.count)) + whole + "." + fraction + " s]"
    }
}
