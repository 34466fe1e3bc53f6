public import Glibc
internal import Host
internal import Synchronization

/// A program of the host that a test runs; it is killed with its owner.
///
/// Foundation's Process learns of an end by a socket that its child holds, and so does whatever another thread starts in
/// that moment: it may notice minutes late. This one asks the kernel, and its children hold no descriptor but their
/// standard streams.
public final class HostProcess: Sendable {
    public enum Stream: Sendable {
        /// /dev/null.
        case nothing
        case inherited
        /// To read for an input; made or emptied for an output.
        case file(String)
        /// Written by `write(_:)`, read by `readToEnd()`.
        case pipe
        /// For the errors: where the output goes.
        case output
    }

    public struct StartError: Error, CustomStringConvertible {
        public var description: String
    }

    /// The process ID.
    public let number: pid_t
    /// Our ends of the pipes; -1 without.
    private let keyboard: Mutex<Int32>
    private let screen: Int32
    private let life: Life

    /// Its end, taken from the kernel as soon as it comes: what waits for any child of this process, as the test library
    /// does for its exit tests, would otherwise meet the same one again and again.
    private final class Life: Sendable {
        private let number: pid_t
        /// As waitpid(2) gave it; nil while it runs.
        private let status = Mutex<Int32?>(nil)

        init(_ number: pid_t) { self.number = number }

        var ending: Int32? {
            status.withLock { status in
                var now: Int32 = 0
                if status == nil, waitpid(number, &now, WNOHANG) == number { status = now }
                return status
            }
        }

        func wait() -> Int32 {
            while true {
                if let ending { return ending }
                var information = siginfo_t()
                _ = waitid(P_PID, id_t(number), &information, WEXITED | WNOWAIT)
            }
        }

        func signal(_ signal: Int32) {
            // Under the lock: nobody reaps it meanwhile, and the number stays its own.
            status.withLock { status in if status == nil { _ = kill(number, signal) } }
        }
    }

    /// - Parameters:
    ///   - program: its path.
    ///   - environment: what is different from ours.
    public init(
        _ program: String, _ arguments: [String] = [], environment: [String: String] = [:], input: Stream = .nothing,
        output: Stream = .nothing, errors: Stream = .inherited
    ) throws {
        var ours: [Int32] = [-1, -1, -1]
        var theirs: [Int32] = []
        defer { for descriptor in theirs where descriptor > 2 { close(descriptor) } }
        func open(_ stream: Stream, as number: Int) throws {
            switch stream {
            case .inherited: theirs.append(Int32(number))
            case .output: theirs.append(theirs[1])
            case .nothing: theirs.append(try Self.open("/dev/null", O_RDWR))
            case .file(let path):
                theirs.append(try Self.open(path, number == 0 ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC))
            case .pipe:
                let pipe = try Pipe()
                let reading = fcntl(pipe.reading.borrowed.rawValue, F_DUPFD_CLOEXEC, 3)
                let writing = fcntl(pipe.writing.borrowed.rawValue, F_DUPFD_CLOEXEC, 3)
                theirs.append(number == 0 ? reading : writing)
                ours[number] = number == 0 ? writing : reading
            }
        }
        do {
            for (index, stream) in [input, output, errors].enumerated() { try open(stream, as: index) }
            number = try Self.start(program, arguments, environment, theirs)
            let life = Life(number)
            self.life = life
            _ = try HostThread(name: "reaper") { _ = life.wait() }
        } catch {
            for descriptor in ours where descriptor >= 0 { close(descriptor) }
            throw error
        }
        keyboard = Mutex(ours[0])
        screen = ours[1]
    }

    deinit {
        if isRunning {
            signal(SIGKILL)
            waitUntilExit()
        }
        closeInput()
        if screen >= 0 { close(screen) }
    }

    private static func open(_ path: String, _ flags: Int32) throws -> Int32 {
        let descriptor = Glibc.open(path, flags | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw StartError(description: "\(path): \(String(cString: strerror(errno)))") }
        return descriptor
    }

    private static func start(
        _ program: String, _ arguments: [String], _ environment: [String: String], _ streams: [Int32]
    ) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        var attributes = posix_spawnattr_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawnattr_init(&attributes)
        defer {
            posix_spawn_file_actions_destroy(&actions)
            posix_spawnattr_destroy(&attributes)
        }
        for (index, descriptor) in streams.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, descriptor, Int32(index))
        }
        guard let closeFrom, closeFrom(&actions, 3) == 0 else { throw StartError(description: "no closefrom") }
        // Whatever this process blocks or ignores.
        var (none, all) = (sigset_t(), sigset_t())
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

        var variables = ownEnvironment
        for (name, value) in environment { variables[name] = value }
        var argv = ([program] + arguments).map { strdup($0) } + [nil]
        var envp = variables.map { strdup("\($0)=\($1)") } + [nil]
        defer { for string in argv + envp { free(string) } }
        var number: pid_t = 0
        let error = posix_spawn(&number, program, &actions, &attributes, &argv, &envp)
        guard error == 0 else { throw StartError(description: "\(program): \(String(cString: strerror(error)))") }
        return number
    }

    private static var ownEnvironment: [String: String] {
        var variables: [String: String] = [:]
        var next = environ
        while let line = next.pointee {
            let parts = String(cString: line).split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            variables[String(parts[0])] = parts.count > 1 ? String(parts[1]) : ""
            next += 1
        }
        return variables
    }

    // MARK: Its life

    public var isRunning: Bool { life.ending == nil }

    public func signal(_ signal: Int32) { life.signal(signal) }

    public func waitUntilExit() { _ = life.wait() }

    /// Waits for its end, and kills it at the limit: a machine that hangs ends this test and not the whole run.
    /// Whether it had to.
    public func waitOrKill(limit: Duration) async -> Bool {
        let end = ContinuousClock.now + limit
        while isRunning {
            if ContinuousClock.now > end {
                signal(SIGKILL)
                waitUntilExit()
                return true
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
        return false
    }

    /// Of a process that has ended, as a shell reports it: 128 and more if a signal ended it.
    public var status: Int32 {
        guard let value = life.ending else { preconditionFailure("it still runs") }
        return endingSignal.map { 128 + $0 } ?? (value >> 8) & 0xFF
    }

    /// The signal that ended it (wait(2)); nil if it went by itself.
    public var endingSignal: Int32? {
        let signal = (life.ending ?? 0) & 0x7F
        return signal == 0 ? nil : signal
    }

    // MARK: Its streams

    /// All of it, to an input that is a pipe; false if nobody reads.
    @discardableResult
    public func write(_ bytes: some Sequence<UInt8>) -> Bool {
        Signal.ignore(.pipe)
        let bytes = Array(bytes)
        let descriptor = keyboard.withLock { $0 }
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress! + done, $0.count - done) }
            if count < 0 {
                if errno == EINTR { continue }
                return false
            }
            done += count
        }
        return true
    }

    public func closeInput() {
        keyboard.withLock { descriptor in
            if descriptor >= 0 { close(descriptor) }
            descriptor = -1
        }
    }

    /// The next line of the output, without its end; nil where there is none.
    public func readLine() -> String? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while true {
            let count = read(screen, &byte, 1)
            if count < 0, errno == EINTR { continue }
            if count <= 0 { return bytes.isEmpty ? nil : String(decoding: bytes, as: UTF8.self) }
            if byte == 0x0A { return String(decoding: bytes, as: UTF8.self) }
            bytes.append(byte)
        }
    }

    /// The output, and the errors if they go there, until nobody has it open any more.
    public func readToEnd() -> [UInt8] {
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = read(screen, &chunk, chunk.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return bytes }
            bytes += chunk.prefix(count)
        }
    }
}

/// posix_spawn_file_actions_addclosefrom_np(3), which the Glibc module does not show.
private let closeFrom: CloseFrom? = {
    let symbol = dlsym(dlopen(nil, RTLD_NOW), "posix_spawn_file_actions_addclosefrom_np")
    // SAFETY: the function's type in posix_spawn_file_actions_addclosefrom_np(3).
    return symbol.map { unsafeBitCast($0, to: CloseFrom.self) }
}()

private typealias CloseFrom = @convention(c) (UnsafeMutablePointer<posix_spawn_file_actions_t>, Int32) -> Int32
