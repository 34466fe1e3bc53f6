public import Host
internal import Platform
internal import Virtio

/// How a session with a machine ended.
public enum SessionEnd: Equatable, Sendable {
    case machine(MachineOutcome, ProcessorTrace?)
    /// Ctrl-A x.
    case left
    case timedOut
    case signalled(Signal)
    /// Standard output or standard error cannot be written any more.
    case outputFailed(HostError)
}

/// Runs a machine, restart after restart, and carries bytes between its serial ports and the host, on one thread.
public final class MachineSession {
    /// After a panic's first line: time for the rest of its report.
    private static let panicGrace: UInt64 = 3_000_000_000
    /// How often the shell is told that its input has ended: a Ctrl-D that comes while nobody reads is lost, as the line
    /// discipline forgets it when the shell's editor takes over (drivers/tty/n_tty.c, n_tty_set_termios).
    private static let endOfInputInterval: UInt64 = 200_000_000
    private static let controlD: UInt8 = 4
    private static let statisticsInterval: UInt64 = 1_000_000_000
    /// How much typed input waits at most for the guest.
    private static let maximumInput = 4096

    private let configuration: MachineConfiguration
    private let console: ConsoleConfiguration
    private let engine: EngineChoice
    private let restarts: Bool
    private let signals: SignalSource?
    private let startedAt: UInt64
    private let deadline: UInt64?
    private let observer: SessionObserver
    private let activity: EventNotifier
    private let symbols: SymbolTable
    /// Whose statistics are asked for while the machine runs.
    private let balloons: [BalloonControl]

    /// Where the processor of the last machine stopped.
    public private(set) var trace: ProcessorTrace?
    /// Of all machines of the session, if the engine samples.
    public private(set) var profile = ProfileReport()

    private var output: OutputPump
    private var errors: OutputPump
    private var escapes = EscapeFilter()
    private var inputHasEnded = false
    // What follows is new with each restart.
    private var toConsole: [UInt8] = []
    private var toControl: [UInt8] = []
    private var control = ControlChannel()
    private var panic = PanicWatch()
    private var panicDeadline: UInt64?
    private var shellIsReady = false
    private var nextEndOfInput: UInt64 = 0
    private var nextStatistics: UInt64 = 0
    private var inputIsWanted = false
    private var sawConsole = false
    private var commandStatus: UInt8?

    /// `restarts`: a guest that resets is started again. `symbols` name what a profile finds. `startedAt` and `deadline` are in `HostClock`'s monotonic time.
    public init(
        _ configuration: MachineConfiguration, console: ConsoleConfiguration, engine: EngineChoice, restarts: Bool,
        signals: SignalSource?, startedAt: UInt64, deadline: UInt64?, observer: SessionObserver = SessionObserver(),
        symbols: SymbolTable = SymbolTable(), asksBalloons: Bool = false
    ) throws(MachineError) {
        self.configuration = configuration
        self.console = console
        self.engine = engine
        self.restarts = restarts
        self.signals = signals
        self.startedAt = startedAt
        self.deadline = deadline
        self.observer = observer
        self.symbols = symbols
        balloons =
            asksBalloons
            ? configuration.devices.compactMap { if case .balloon(let control) = $0 { control } else { nil } } : []
        output = OutputPump(console.output)
        errors = OutputPump(console.errors)
        do {
            activity = try EventNotifier()
        } catch {
            throw MachineError("\(error). Raise the limit of open files (ulimit -n) and try again.")
        }
    }

    /// Returns when the guest has ended for good, or somebody ended it.
    public func run() throws(MachineError) -> SessionEnd {
        while true {
            let machine = try Machine(configuration, on: engine.system, activity: activity)
            phase("set-up (\(engine.name), \(machine.bootProtocol), entry at \(hex(machine.entryPoint)))")
            forgetLastRun()
            resizeConsole(of: machine)
            try machine.start()
            phase("kernel entry")
            let end: Result<SessionEnd, MachineError>
            do {
                end = .success(try carry(machine))
            } catch let error as HostError {
                end = .success(.outputFailed(error))
            } catch {
                end = .failure(MachineError("\(error)"))
            }
            machine.end(with: .stopped)
            machine.waitForEnd()
            trace = machine.result?.trace
            machine.addProfile(to: &profile, symbols: symbols)
            // However it ended: the guest was not executed as it should be.
            if let result = machine.result, result.outcome.isDifference {
                return .machine(result.outcome, result.trace)
            }
            guard restarts, case .success(.machine(.reset, _)) = end else { return try end.get() }
            phase("restart")
        }
    }

    private func forgetLastRun() {
        toConsole = []
        toControl = []
        control = ControlChannel()
        panic = PanicWatch()
        panicDeadline = nil
        shellIsReady = false
        nextEndOfInput = 0
        inputIsWanted = false
        sawConsole = false
        commandStatus = nil
    }

    private func phase(_ name: String) {
        observer.onPhase(name, .nanoseconds(Int64(clamping: HostClock.monotonicNanoseconds &- startedAt)))
    }

    // MARK: The loop

    private func carry(_ machine: Machine) throws -> SessionEnd {
        while true {
            // Asked first: what the guest wrote before its end is in the buffers by now.
            let result = machine.result
            takeOutput(machine)
            if let reason = machine.takeHoldReason() { try standStill(machine, because: reason) }
            if !machine.standsStill { giveInput(machine) }
            if let result, output.isEmpty, errors.isEmpty, !hasMoreOutput(machine) {
                return .machine(finalOutcome(result.outcome, machine), result.trace)
            }
            let now = HostClock.monotonicNanoseconds
            if let deadline, now >= deadline { return .timedOut }
            if let panicDeadline, now >= panicDeadline { endByPanic(machine) }
            askBalloons(now)
            if let end = try waitAndServe(machine, now: now) { return end }
        }
    }

    /// One wait for anything to happen, and what is to be done about it.
    private func waitAndServe(_ machine: Machine, now: UInt64) throws -> SessionEnd? {
        var poll = DescriptorPoll()
        poll.set(activity.descriptor, .readable)
        if let signals { poll.set(signals.descriptor, .readable) }
        if wantsInput { poll.set(console.input, .readable) }
        if !output.isEmpty { poll.set(output.descriptor, .writable) }
        if !errors.isEmpty { poll.set(errors.descriptor, .writable) }
        let next = [
            deadline, panicDeadline, mustEndShell ? nextEndOfInput : nil, balloons.isEmpty ? nil : nextStatistics,
        ].compactMap(\.self).min()
        for ready in try poll.wait(timeoutNanoseconds: next.map { $0 > now ? $0 - now : 0 }) {
            if ready.descriptor == activity.descriptor {
                _ = activity.consume()
            } else if ready.descriptor == signals?.descriptor {
                if let end = try serveSignals(machine) { return end }
            } else if ready.descriptor == console.input, ready.isReadable || ready.isHungUp {
                switch readInput() {
                case .leave: return .left
                case .pause: try togglePause(machine)
                case .help, nil: break
                }
            } else if ready.descriptor == output.descriptor {
                try output.flush()
            } else if ready.descriptor == errors.descriptor {
                try errors.flush()
            }
        }
        return nil
    }

    private func serveSignals(_ machine: Machine) throws(MachineError) -> SessionEnd? {
        while let signal = signals?.next() {
            switch signal {
            case .interrupt, .terminate, .hangUp, .quit: return .signalled(signal)
            case .continue:
                observer.onContinue()
                try goOn(machine)
            case .windowChange: resizeConsole(of: machine)
            default: break
            }
        }
        return nil
    }

    // MARK: Standing still

    private func standStill(_ machine: Machine, because reason: String?) throws(MachineError) {
        guard !machine.standsStill, try machine.standStill() else { return }
        observer.onPause(reason)
    }

    private func goOn(_ machine: Machine) throws(MachineError) {
        guard machine.standsStill else { return }
        try machine.resume()
        observer.onResume()
    }

    private func togglePause(_ machine: Machine) throws(MachineError) {
        if machine.standsStill { try goOn(machine) } else { try standStill(machine, because: nil) }
    }

    private func resizeConsole(of machine: Machine) {
        guard let size = TerminalSize(of: console.output) ?? TerminalSize(of: console.input) else { return }
        machine.console?.resize(size)
    }

    /// Once a second: the last answer is there when the machine has ended.
    private func askBalloons(_ now: UInt64) {
        guard !balloons.isEmpty, now >= nextStatistics else { return }
        nextStatistics = now &+ Self.statisticsInterval
        for balloon in balloons { balloon.requestStatistics() }
    }

    // MARK: From the guest

    private func takeOutput(_ machine: Machine) {
        if errors.isEmpty || console.mode != .command || !console.showsConsole { takeConsole(machine) }
        guard configuration.serial == .defaultGuest else { return }
        for message in control.receive(machine.serial[1].take()) {
            switch message {
            case .ready:
                shellIsReady = true
                phase("shell")
            case .wantsInput:
                if !inputIsWanted, !shellIsReady { phaseOnce() }
                inputIsWanted = true
            case .exited(let status):
                commandStatus = status
                machine.end(with: .status(status))
            }
        }
        if output.isEmpty, console.mode == .command { output.add(machine.serial[2].take()) }
        if errors.isEmpty, console.mode == .command { errors.add(machine.serial[3].take()) }
    }

    private var sawCommand = false
    private func phaseOnce() {
        if !sawCommand { phase("init, command starts") }
        sawCommand = true
    }

    private func takeConsole(_ machine: Machine) {
        guard console.mode == .command || output.isEmpty else { return }
        // A kernel's first and last words are on the serial port, whatever else it has.
        let bytes = machine.serial[0].take() + (machine.console?.take() ?? [])
        guard !bytes.isEmpty else { return }
        if !sawConsole { phase("first console output") }
        sawConsole = true
        panic.receive(bytes)
        if panic.reason != nil || machine.sawPanic, panicDeadline == nil {
            panicDeadline = HostClock.monotonicNanoseconds &+ Self.panicGrace
        }
        if panic.hasEnded { endByPanic(machine) }
        if console.mode != .command {
            output.add(bytes)
        } else if console.showsConsole {
            errors.add(bytes)
        }
    }

    private func hasMoreOutput(_ machine: Machine) -> Bool {
        // One more look: the last bytes may have come between the last take and the end.
        takeOutput(machine)
        return !output.isEmpty || !errors.isEmpty
    }

    private func endByPanic(_ machine: Machine) {
        panicDeadline = nil
        machine.end(with: .panicked(reason: panic.reason ?? "no reason given"))
    }

    private func finalOutcome(_ outcome: MachineOutcome, _ machine: Machine) -> MachineOutcome {
        switch outcome {
        // A kernel with panic=-1 resets after its report.
        case .reset, .tripleFault:
            if let reason = panic.reason { return .panicked(reason: reason) }
            return machine.sawPanic ? .panicked(reason: "reported by the pvpanic device") : outcome
        // The guest was off before its last words were read here.
        case .poweredOff: return commandStatus.map(MachineOutcome.status) ?? outcome
        default: return outcome
        }
    }

    // MARK: To the guest

    private var wantsInput: Bool {
        guard !inputHasEnded else { return false }
        switch console.mode {
        case .console, .shell: return toConsole.count < Self.maximumInput
        case .command: return inputIsWanted && toControl.isEmpty
        }
    }

    /// The default guest's shell runs on after its input has ended.
    private var mustEndShell: Bool { console.mode == .shell && inputHasEnded && shellIsReady && toConsole.isEmpty }

    private func giveInput(_ machine: Machine) {
        let now = HostClock.monotonicNanoseconds
        if mustEndShell, now >= nextEndOfInput {
            toConsole = [Self.controlD]
            nextEndOfInput = now &+ Self.endOfInputInterval
        }
        if console.mode == .console || shellIsReady, !toConsole.isEmpty {
            let virtio = machine.console.flatMap { $0.isOpen ? $0 : nil }
            toConsole.removeFirst(virtio?.send(toConsole[...]) ?? machine.serial[0].send(toConsole[...]))
        }
        guard console.mode == .command else { return }
        if inputHasEnded, inputIsWanted, toControl.isEmpty { queueFrame([]) }
        if !toControl.isEmpty { toControl.removeFirst(machine.serial[1].send(toControl[...])) }
    }

    private func readInput() -> EscapeFilter.Action? {
        let limit = console.mode == .command ? ControlChannel.maximumFrame : Self.maximumInput
        let bytes: [UInt8]
        do {
            bytes = try console.input.read(upTo: limit)
        } catch  where error.isTemporary {
            return nil
        } catch {
            // A closed or broken standard input is one that has ended.
            bytes = []
        }
        if bytes.isEmpty { inputHasEnded = true }
        switch console.mode {
        case .command:
            if !bytes.isEmpty { queueFrame(bytes) }
            return nil
        case .console, .shell:
            return type(bytes)
        }
    }

    private func queueFrame(_ bytes: [UInt8]) {
        toControl += ControlChannel.frame(bytes)
        inputIsWanted = false
    }

    private func type(_ bytes: [UInt8]) -> EscapeFilter.Action? {
        guard console.hasEscapes else {
            toConsole += bytes
            return nil
        }
        let (forGuest, actions) = escapes.filter(bytes)
        toConsole += forGuest
        for action in actions {
            guard action == .help else { return action }
            observer.onHelp()
        }
        return nil
    }
}
