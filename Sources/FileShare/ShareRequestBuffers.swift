public import Host

/// One request as its transport has it: bytes to read, and room for the reply. Offsets count from the beginning of each.
/// The bytes are the guest's and change under our feet: they are read once.
public protocol ShareRequestBuffers {
    /// Bytes of the request.
    var requestCount: Int { get }
    /// Bytes that the reply may have.
    var replyLimit: Int { get }
    /// nil: they cannot be read.
    func read(at offset: Int, count: Int) -> [UInt8]?
    /// False: they cannot be written.
    func write(_ bytes: [UInt8], at offset: Int) -> Bool
    /// The request's bytes, for a system call to take; nil: they cannot be read.
    func source(at offset: Int, count: Int) -> IOSegments?
    /// Room of the reply, for a system call to fill; nil: it cannot be written.
    func target(at offset: Int, count: Int) -> IOSegments?
    /// A call may have filled that.
    func noteFilled(at offset: Int, count: Int)
}

/// How a request has ended.
public enum ShareOutcome: Sendable {
    /// The reply has so many bytes; 0: there is none.
    case done(written: Int)
    /// It is answered later, with `FileShare.reply(to:error:)`.
    case waits(LockWait)
    /// It has no header, or no room for an answer: its sender does not speak FUSE.
    case malformed(String)
}
