internal import CHost
internal import Synchronization

/// A terminal's size in characters.
public struct TerminalSize: Equatable, Sendable {
    public var columns: Int
    public var rows: Int

    public init(columns: Int, rows: Int) {
        self.columns = columns
        self.rows = rows
    }

    /// The size of the terminal behind `descriptor`; nil where there is none or it does not say.
    public init?(of descriptor: BorrowedDescriptor) {
        var columns: Int32 = 0
        var rows: Int32 = 0
        guard host_terminal_size(descriptor.rawValue, &columns, &rows) == 0, columns > 0, rows > 0 else { return nil }
        self.init(columns: Int(columns), rows: Int(rows))
    }
}

/// The process's terminal in raw mode: every key goes to the guest. At most one at a time. Restored by `restore()`, by
/// the end of this object, and as a last resort when the process exits or a fatal signal ends it.
public final class RawTerminal: Sendable {
    private let isRaw = Mutex(true)

    /// Fails with ENOTTY where `descriptor` is not a terminal.
    public init(_ descriptor: BorrowedDescriptor = .standardInput) throws(HostError) {
        try check(host_terminal_make_raw(descriptor.rawValue), "Cannot put the terminal into raw mode")
    }

    /// The settings of before. Harmless when they are back already.
    public func restore() {
        isRaw.withLock { isRaw in
            if isRaw { host_terminal_restore() }
            isRaw = false
        }
    }

    /// Raw mode again, after a `restore()` or after the shell gave the terminal back (SIGCONT).
    public func reenter() {
        isRaw.withLock { isRaw in
            isRaw = host_terminal_remake_raw() >= 0
        }
    }

    deinit { restore() }
}
