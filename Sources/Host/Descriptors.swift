internal import CHost
internal import Glibc

/// The number of an open file that somebody else keeps open.
public struct BorrowedDescriptor: Hashable, Sendable {
    public let rawValue: Int32

    public init(_ rawValue: Int32) { self.rawValue = rawValue }

    public static let standardInput = BorrowedDescriptor(0)
    public static let standardOutput = BorrowedDescriptor(1)
    public static let standardError = BorrowedDescriptor(2)

    public var isTerminal: Bool { isatty(rawValue) == 1 }

    /// Up to `count` bytes; none at the end of the file. Signals are not an error; EAGAIN is.
    public func read(upTo count: Int) throws(HostError) -> [UInt8] {
        var result = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if let base = buffer.baseAddress { result = retryingInterrupted { host_read(rawValue, base, count) } }
            initialized = max(result, 0)
        }
        try check(result, "Cannot read")
        return bytes
    }

    /// Writes what the descriptor takes now and returns how many bytes that was.
    public func writeSome(_ bytes: ArraySlice<UInt8>) throws(HostError) -> Int {
        let result = bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress, !buffer.isEmpty else { return 0 }
            return retryingInterrupted { host_write(rawValue, base, buffer.count) }
        }
        return try check(result, "Cannot write")
    }

    /// Writes all of `bytes`, waiting where the descriptor is non-blocking and full.
    public func write(_ bytes: some Collection<UInt8>) throws(HostError) {
        var rest = ArraySlice(bytes)
        while !rest.isEmpty {
            do {
                rest = rest.dropFirst(try writeSome(rest))
            } catch  where error.errorNumber == EAGAIN {
                try waitUntilWritable()
            }
        }
    }

    private func waitUntilWritable() throws(HostError) {
        var poll = DescriptorPoll()
        poll.set(self, .writable)
        _ = try poll.wait(timeoutNanoseconds: nil)
    }

    /// O_NONBLOCK belongs to the open file: it shows in every process that shares it.
    public func setNonBlocking(_ isOn: Bool) throws(HostError) {
        try check(host_set_nonblocking(rawValue, isOn ? 1 : 0), "Cannot change a descriptor's mode")
    }
}

/// An open file with one owner, closed when that owner goes.
public struct FileDescriptor: ~Copyable, Sendable {
    /// How to open a path.
    public enum Access: Sendable {
        case readOnly
        case writeOnly
        case readWrite
        /// A new or emptied file for writing, mode 0644 less the umask.
        case create
        /// A new file for writing; fails when there is anything of that name.
        case createNew
        /// For writing behind what is there; made if there is none.
        case append

        fileprivate var flags: Int32 {
            switch self {
            case .readOnly: O_RDONLY
            case .writeOnly: O_WRONLY
            case .readWrite: O_RDWR
            case .create: O_WRONLY | O_CREAT | O_TRUNC
            case .createNew: O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW
            // Not waiting for a pipe's reader.
            case .append: O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK
            }
        }
    }

    public let rawValue: Int32

    /// Takes over an open descriptor.
    public init(owning rawValue: Int32) { self.rawValue = rawValue }

    /// Opens `path`, closed on exec.
    public static func open(_ path: String, _ access: Access = .readOnly) throws(HostError) -> FileDescriptor {
        let result = retryingInterrupted { host_open(path, access.flags, 0o644) }
        return FileDescriptor(owning: Int32(truncatingIfNeeded: try check(result, "Cannot open \(path)")))
    }

    public var borrowed: BorrowedDescriptor { BorrowedDescriptor(rawValue) }

    public func read(upTo count: Int) throws(HostError) -> [UInt8] { try borrowed.read(upTo: count) }
    public func write(_ bytes: some Collection<UInt8>) throws(HostError) { try borrowed.write(bytes) }

    /// Fails with EISDIR for a directory and EINVAL for anything else that is not a regular file.
    public func requireRegularFile(_ path: String) throws(HostError) {
        _ = try check(host_regular_file_size(rawValue), "Cannot use \(path)")
    }

    /// Gives up ownership: the caller closes.
    public consuming func release() -> Int32 {
        let rawValue = rawValue
        discard self
        return rawValue
    }

    deinit { _ = host_close(rawValue) }
}

/// A regular file read at any offset, by any thread.
public final class RandomAccessFile: Sendable {
    public let path: String
    /// The size when it was opened.
    public let size: UInt64
    private let descriptor: FileDescriptor

    /// Fails with EISDIR for a directory and EINVAL for anything else that is not a regular file.
    public init(path: String) throws(HostError) {
        let descriptor = try FileDescriptor.open(path)
        size = UInt64(try check(host_regular_file_size(descriptor.rawValue), "Cannot use \(path)"))
        self.path = path
        self.descriptor = descriptor
    }

    /// `count` bytes at `offset`; fewer only where the file ends.
    public func read(count: Int, at offset: UInt64) throws(HostError) -> [UInt8] {
        guard offset < size else { return [] }
        let count = Int(min(UInt64(max(count, 0)), size - offset))
        var failure = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            guard let base = buffer.baseAddress else { return }
            while initialized < count {
                let done = initialized
                let result = retryingInterrupted {
                    host_pread(descriptor.rawValue, base + done, count - done, offset + UInt64(done))
                }
                guard result > 0 else {
                    failure = result
                    return
                }
                initialized += result
            }
        }
        try check(failure, "Cannot read \(path)")
        return bytes
    }

    /// The whole file; EFBIG when it is larger than `limit` bytes.
    public func readAll(limit: Int) throws(HostError) -> [UInt8] {
        guard size <= UInt64(limit) else { throw HostError("Cannot load \(path)", errorNumber: EFBIG) }
        return try read(count: Int(size), at: 0)
    }
}

/// The result of a wrapper in CHost, or the error that its negative value stands for.
@discardableResult
func check(_ result: Int, _ operation: @autoclosure () -> String) throws(HostError) -> Int {
    guard result >= 0 else { throw HostError(operation(), errorNumber: Int32(truncatingIfNeeded: -result)) }
    return result
}

/// Repeats a call that a signal interrupted: the kick is for KVM_RUN and the futex, not for files.
func retryingInterrupted(_ call: () -> Int) -> Int {
    while true {
        let result = call()
        if result != Int(-EINTR) { return result }
    }
}
