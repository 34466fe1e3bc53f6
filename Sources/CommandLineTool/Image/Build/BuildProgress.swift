internal import Disk
internal import Host

/// How far a build is: one line that is written anew on a terminal, otherwise one line for each phase. Also the signals
/// that end it in order.
final class BuildProgress {
    private let isTerminal: Bool
    private let isVerbose: Bool
    private let signals: SignalSource?
    private let startedAt = HostClock.monotonicNanoseconds
    private var phase: BuildOutput.Phase?
    private var phaseStartedAt: UInt64 = 0
    private var hasLine = false
    private(set) var signal: Signal?

    init(isVerbose: Bool) {
        self.isVerbose = isVerbose
        isTerminal = BorrowedDescriptor.standardError.isTerminal && !isVerbose
        signals = try? SignalSource([.interrupt, .terminate, .hangUp, .quit])
    }

    /// To wait for along with other things.
    var descriptor: BorrowedDescriptor? { signals?.descriptor }

    /// Whether a signal asked for the end.
    func isStopped() -> Bool {
        if signal == nil { signal = signals?.next() }
        return signal != nil
    }

    func enter(_ next: BuildOutput.Phase) {
        guard next != phase else { return }
        finishPhase()
        phase = next
        phaseStartedAt = HostClock.monotonicNanoseconds
        if isTerminal { update() } else { Message.line("\(place(next)) \(next.title)") }
    }

    private func place(_ phase: BuildOutput.Phase) -> String {
        "[\(phase.rawValue + 1)/\(BuildOutput.Phase.allCases.count)]"
    }

    /// Called a few times a second; `done` is a share of the phase, where it is known.
    func update(done: Double? = nil) {
        guard isTerminal, let phase else { return }
        let seconds = (HostClock.monotonicNanoseconds &- phaseStartedAt) / 1_000_000_000
        let share = done.map { " \(Int($0 * 100))%" } ?? (seconds > 1 ? " \(seconds) s" : "")
        let width = TerminalSize(of: .standardError)?.columns ?? 80
        let text = "\(place(phase)) \(phase.title) …\(share)"
        write("\r\u{1b}[K" + String(text.prefix(max(width - 1, 20))))
        hasLine = true
    }

    func show(_ line: String) {
        if isVerbose { Message.line(line) }
    }

    private func finishPhase() {
        guard isTerminal, let phase, hasLine else { return }
        let seconds = (HostClock.monotonicNanoseconds &- phaseStartedAt) / 1_000_000_000
        write("\r\u{1b}[K\(place(phase)) \(phase.title), \(seconds) s\n")
        hasLine = false
    }

    private func write(_ text: String) {
        // Nobody can be told that standard error is broken.
        try? BorrowedDescriptor.standardError.write(Array(text.utf8))
    }

    /// Runs a build; a signal's end has the signal's exit status and no message.
    func run(_ build: (BuildProgress) throws(DiskError) -> Void) throws {
        var ended: ExitStatus?
        try reportingDiskErrors { () throws(DiskError) in
            do throws(DiskError) {
                try build(self)
                finishPhase()
            } catch {
                if hasLine { write("\r\u{1b}[K") }
                guard error.kind == .cancelled, let signal else { throw error }
                ended = .signal(signal.rawValue)
            }
        }
        if let ended { throw ended }
    }
}
