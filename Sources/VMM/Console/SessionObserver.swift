/// What a session reports while it goes, for `--verbose` and for the terminal.
public struct SessionObserver {
    /// A phase was reached: its name and the time since the session began.
    public var onPhase: (String, Duration) -> Void
    /// Ctrl-A h.
    public var onHelp: () -> Void
    /// The machine stands still: because of a device's trouble, which is said, or as was asked for by Ctrl-A p.
    public var onPause: (String?) -> Void
    /// It goes on.
    public var onResume: () -> Void
    /// The process continues after it was stopped: the terminal is to be made raw again.
    public var onContinue: () -> Void

    public init(
        onPhase: @escaping (String, Duration) -> Void = { _, _ in }, onHelp: @escaping () -> Void = {},
        onPause: @escaping (String?) -> Void = { _ in }, onResume: @escaping () -> Void = {},
        onContinue: @escaping () -> Void = {}
    ) {
        self.onPhase = onPhase
        self.onHelp = onHelp
        self.onPause = onPause
        self.onResume = onResume
        self.onContinue = onContinue
    }
}
