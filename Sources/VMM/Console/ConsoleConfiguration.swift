public import Host

/// Where the machine's console and the default guest's command meet the host's descriptors.
public struct ConsoleConfiguration: Sendable {
    public enum Mode: Equatable, Sendable {
        /// Somebody else's kernel: its COM1 is the terminal.
        case console
        /// The default guest's shell: input waits until the shell is there, and its end is Ctrl-D.
        case shell
        /// The default guest's command: standard streams of its own, the console is only watched.
        case command
    }

    public var mode: Mode
    public var input: BorrowedDescriptor
    public var output: BorrowedDescriptor
    public var errors: BorrowedDescriptor
    /// Ctrl-A is ours: somebody types.
    public var hasEscapes: Bool
    /// In command mode: the kernel's console goes to `errors`.
    public var showsConsole: Bool

    public init(
        mode: Mode, input: BorrowedDescriptor = .standardInput, output: BorrowedDescriptor = .standardOutput,
        errors: BorrowedDescriptor = .standardError, hasEscapes: Bool = false, showsConsole: Bool = false
    ) {
        self.mode = mode
        self.input = input
        self.output = output
        self.errors = errors
        self.hasEscapes = hasEscapes
        self.showsConsole = showsConsole
    }
}
