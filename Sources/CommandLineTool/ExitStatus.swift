/// The process's exit status where it is ours to choose; `martlet run --help` documents them. Above the range that
/// commands commonly use, and equal to what timeout(1), docker(1) and the shell use for the same things.
struct ExitStatus: Error, Equatable {
    var rawValue: Int32

    static let success = ExitStatus(rawValue: 0)
    /// EX_USAGE of sysexits(3).
    static let usage = ExitStatus(rawValue: 64)
    static let guestPanicked = ExitStatus(rawValue: 120)
    static let tripleFault = ExitStatus(rawValue: 121)
    static let engineFailed = ExitStatus(rawValue: 122)
    static let enginesDiffer = ExitStatus(rawValue: 123)
    static let timedOut = ExitStatus(rawValue: 124)
    static let martletFailed = ExitStatus(rawValue: 125)

    static func signal(_ number: Int32) -> ExitStatus { ExitStatus(rawValue: 128 + number) }
}
