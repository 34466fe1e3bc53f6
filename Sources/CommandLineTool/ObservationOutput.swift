internal import Glibc
internal import Host
internal import SoftKVM
internal import Synchronization
internal import VMM

/// Where what `--profile` and `--trace` find goes: files that are opened before the machine is built, so that what is
/// wrong with them is said at once.
final class ObservationOutput {
    let observation: Observation
    /// Of `--symbols`.
    let symbols: SymbolTable
    private let profile: OutputFile?
    private let traceFile: OutputFile?

    init(_ options: RunCommand, startedAt: UInt64, isRawTerminal: Bool) throws(MachineError) {
        var symbols: [SymbolTable.Symbol] = []
        for file in options.symbols { symbols += try file.load() }
        self.symbols = SymbolTable(symbols)
        profile = try options.profile.map { path throws(MachineError) in try OutputFile(path, role: "profile") }
        traceFile = try options.traceFile.map { path throws(MachineError) in try OutputFile(path, role: "trace") }
        observation = Observation(
            profiles: profile != nil,
            trace: Self.trace(options, startedAt: startedAt, to: traceFile, isRawTerminal: isRawTerminal))
    }

    private static func trace(
        _ options: RunCommand, startedAt: UInt64, to file: OutputFile?, isRawTerminal: Bool
    ) -> Trace? {
        guard !options.trace.isEmpty else { return nil }
        return Trace(options.trace, limit: options.traceLimit ?? RunCommand.defaultTraceLimit, startedAt: startedAt) {
            if let file { return file.write($0) }
            // A raw terminal needs its own carriage return.
            let bytes = isRawTerminal ? $0.flatMap { $0 == 0x0A ? [0x0D, 0x0A] : [$0] } : $0
            // Nobody can be told that standard error is broken.
            try? BorrowedDescriptor.standardError.write(bytes)
        }
    }

    /// At the end: writes the profile, and says what could not be written. The guest's status is what counts.
    func finish(_ report: ProfileReport, verbose: Bool) {
        observation.trace?.flush()
        if let profile {
            profile.write(Array(report.folded.utf8))
            let map = PerfMap.write(report.perfMap)
            if verbose { Message.note("profile: \(report.sampleCount) samples in \(profile.path), \(map)") }
        }
        for file in [profile, traceFile].compactMap(\.self) {
            guard let error = file.error else { continue }
            Message.error(
                "Cannot write all of the \(file.role) \(file.path): \(error.reason). Give it a place with more room.")
        }
    }
}

/// A file that is written as things happen; its first error is kept.
final class OutputFile: Sendable {
    let path: String
    let role: String
    private let descriptor: FileDescriptor
    private let failure = Mutex<HostError?>(nil)

    init(_ path: String, role: String) throws(MachineError) {
        self.path = path
        self.role = role
        do {
            descriptor = try FileDescriptor.open(path, .create)
        } catch {
            throw MachineError(
                "Cannot create the \(role) \(path): \(error.reason). Check its directory and permissions.")
        }
    }

    var error: HostError? { failure.withLock { $0 } }

    func write(_ bytes: [UInt8]) {
        failure.withLock { failure in
            if failure != nil { return }
            do throws(HostError) {
                try descriptor.write(bytes)
            } catch {
                failure = error
            }
        }
    }
}

/// Where perf(1) looks for the names of code that a process made (Linux tools/perf/Documentation/jit-interface.txt).
enum PerfMap {
    static var path: String { "/tmp/perf-\(getpid()).map" }

    /// Says where it is, or why it is not. A file of this name is of a process that is gone; no other's is followed.
    static func write(_ text: String) -> String {
        unlink(path)
        do {
            let file = try FileDescriptor.open(path, .createNew)
            try file.write(Array(text.utf8))
            return "translated code for perf in \(path)"
        } catch {
            return "no translated code for perf: \(error)"
        }
    }
}
