internal import CHost
internal import Glibc

/// A program that this process started, in a process group of its own: a Ctrl-C at the terminal does not reach it.
public final class ChildProcess: Sendable {
    /// How a child ended.
    public enum Ending: Equatable, Sendable {
        case exited(Int32)
        case killed(Signal)
    }

    private let number: Int32
    private let owned: FileDescriptor

    /// - Parameters:
    ///   - program: its path.
    ///   - arguments: what follows the program's name.
    ///   - environment: `NAME=value`, all of it.
    ///   - input: its standard input.
    ///   - output: its standard output and error.
    ///   - extra: its descriptor 3. Nothing else is inherited.
    public init(
        program: String, arguments: [String], environment: [String], input: BorrowedDescriptor,
        output: BorrowedDescriptor, extra: BorrowedDescriptor? = nil
    ) throws(HostError) {
        let result = withCStrings([program] + arguments) { argv in
            withCStrings(environment) { envp in
                host_spawn(program, argv, envp, input.rawValue, output.rawValue, extra?.rawValue ?? -1)
            }
        }
        number = Int32(truncatingIfNeeded: try check(result, "Cannot start \(program)"))
        let descriptor = host_process_descriptor(number)
        if descriptor < 0 {
            _ = host_signal_group(number, SIGKILL)
            try check(descriptor, "Cannot watch \(program)")
        }
        owned = FileDescriptor(owning: Int32(truncatingIfNeeded: descriptor))
    }

    /// Readable when the child has ended.
    public var descriptor: BorrowedDescriptor { owned.borrowed }

    /// How the child ended; nil while it runs. Asked successfully once, it is not to be asked again.
    public func ending() throws(HostError) -> Ending? {
        var status: Int32 = 0
        let result = retryingInterrupted { host_process_status(number, &status) }
        if result == Int(-EAGAIN) { return nil }
        try check(result, "Cannot wait for a program")
        let signal = status & 0x7F
        return signal == 0 ? .exited((status >> 8) & 0xFF) : .killed(Signal(signal))
    }

    /// Signals the child and what it started, unless that left its process group.
    public func signalGroup(_ signal: Signal) { _ = host_signal_group(number, signal.rawValue) }
}

/// A pipe from a child to us.
public struct Pipe: ~Copyable {
    public let reading: FileDescriptor
    public let writing: FileDescriptor

    public init() throws(HostError) {
        var ends: (Int32, Int32) = (-1, -1)
        try check(host_pipe(&ends.0, &ends.1), "Cannot make a pipe")
        reading = FileDescriptor(owning: ends.0)
        writing = FileDescriptor(owning: ends.1)
    }

    /// Keeps the reading end and closes the other one here.
    public consuming func keepReading() -> FileDescriptor { reading }
}

/// Lends a null-terminated list of C strings.
private func withCStrings<Result>(
    _ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) -> Result
) -> Result {
    let copies = strings.map { strdup($0) }
    defer { for copy in copies { free(copy) } }
    var pointers: [UnsafePointer<CChar>?] = copies.map { $0.map { UnsafePointer($0) } }
    pointers.append(nil)
    return pointers.withUnsafeBufferPointer { body($0.baseAddress!) }
}
