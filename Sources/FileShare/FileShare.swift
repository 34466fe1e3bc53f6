internal import CHost
internal import Glibc
internal import Host
internal import Synchronization

/// Why a folder cannot be shared.
public struct FileShareError: Error, Equatable, CustomStringConvertible {
    public var description: String
}

/// A folder of the host as a FUSE server (protocol 7.31 to 7.38, as Linux speaks it). It knows no machine: requests come
/// as `ShareRequestBuffers`, from any number of threads.
///
/// Nothing outside the folder can be reached: every name is one component, resolved beneath its directory's descriptor
/// without following symbolic links (openat2(2)), and only regular files and directories are ever opened.
public final class FileShare: Sendable {
    public let path: String
    public let isReadOnly: Bool
    let nodes: NodeTable
    let handles: HandleTable
    let locks: LockTable
    let owners: OwnerMapping
    private let initialized = Mutex(false)

    /// What of the process's descriptors remains for everything else.
    private static let reservedDescriptors = 256
    /// About a gigabyte of the guest's memory would be needed to know more files at once.
    private static let nodeLimit = 1 << 20

    /// `descriptorShare`: one of so many shares of this process, which part its descriptors.
    public convenience init(
        path: String, isReadOnly: Bool = false, descriptorShare: Int = 1
    ) throws(FileShareError) {
        precondition(descriptorShare > 0)
        let available = max(Int(host_share_raise_descriptor_limit()), 0) - Self.reservedDescriptors
        let limit = available / descriptorShare
        guard limit >= 128 else {
            throw FileShareError(
                description: "a process may have too few open files for it; raise the limit (ulimit -n)")
        }
        // With a quarter more for the first, and a twentieth for locks, it stays below the limit.
        try self.init(
            path: path, isReadOnly: isReadOnly, nodeLimit: Self.nodeLimit, descriptorLimit: limit * 2 / 5,
            handleLimit: limit * 2 / 5)
    }

    init(
        path: String, isReadOnly: Bool = false, nodeLimit: Int, descriptorLimit: Int, handleLimit: Int
    ) throws(FileShareError) {
        self.path = path
        self.isReadOnly = isReadOnly
        owners = OwnerMapping()
        do throws(ShareFault) {
            let root = try PathDescriptor(owning: unsafe host_share_open_root(path))
            nodes = try NodeTable(root: root, nodeLimit: nodeLimit, descriptorLimit: descriptorLimit)
        } catch {
            throw FileShareError(description: HostError("Cannot use \(path)", errorNumber: error.number).reason)
        }
        handles = HandleTable(limit: handleLimit)
        locks = LockTable(holdingLimit: max(handleLimit / 10, 1))
    }

    /// As if no guest had ever spoken to it.
    public func reset() {
        initialized.withLock { $0 = false }
        locks.reset()
        handles.reset()
        nodes.reset()
    }

    func noteInitialized() { initialized.withLock { $0 = true } }

    // MARK: Waiting locks

    public var hasLockWaits: Bool { locks.hasWaits }

    /// Tries those again that wait for a lock that a process of the host may have given up.
    public func retryLocks() { locks.retry(nodes) }

    /// All that wait end with EINTR.
    public func interruptLockWaits() { locks.interruptAll() }

    /// The one with that number ends with EINTR.
    public func interruptLockWait(_ unique: UInt64) { locks.interrupt(unique) }

    /// The reply to a request that has no other content.
    public static func reply(to unique: UInt64, error: Int32) -> [UInt8] {
        ReplyBytes.header(length: FUSE.replyHeaderSize, error: error, unique: unique)
    }

    /// Whether a request of this operation may wait for a disk, however few bytes it has.
    public static func mayTakeLong(opcode: UInt32) -> Bool {
        switch Opcode(rawValue: opcode) {
        case .synchronize, .synchronizeDirectory, .synchronizeFileSystem, .allocate, .copyRange: true
        default: false
        }
    }

    // MARK: Saved state

    /// Nothing is being served meanwhile.
    public func save() -> ShareSnapshot {
        let (savedNodes, nextNode, rootDevice) = nodes.save()
        let (savedHandles, nextHandle) = handles.save()
        return ShareSnapshot(
            isInitialized: initialized.withLock { $0 }, rootDevice: rootDevice, nextNode: nextNode,
            nextHandle: nextHandle, nodes: savedNodes, handles: savedHandles, locks: locks.save())
    }

    /// Goes on where the snapshot was taken; how many locks could not be had again. nil: no share can have been like that.
    public func restore(_ snapshot: ShareSnapshot) -> Int? {
        reset()
        guard nodes.restore(snapshot), handles.restore(snapshot) else {
            reset()
            return nil
        }
        for handle in snapshot.handles { nodes.count(opens: 1, of: handle.node) }
        initialized.withLock { $0 = snapshot.isInitialized }
        return locks.restore(snapshot, nodes: nodes)
    }

    // MARK: Requests

    /// The most of a request that is read as one piece: the longest attribute with its name. Written data is not part of it.
    private static let requestLimit = 80 << 10

    /// Executes one request and writes its reply.
    public func serve(_ buffers: some ShareRequestBuffers) -> ShareOutcome {
        let head = min(buffers.requestCount, FUSE.requestHeaderSize + 40)
        guard var bytes = buffers.read(at: 0, count: head), let header = RequestHeader(bytes) else {
            return .malformed("a request has no FUSE header")
        }
        let opcode = Opcode(rawValue: header.opcode)
        let hasReply = opcode?.hasNoReply != true
        guard !hasReply || buffers.replyLimit >= FUSE.replyHeaderSize else {
            return .malformed("a request has no room for its answer")
        }
        do throws(ShareFault) {
            guard header.length >= FUSE.requestHeaderSize, header.length <= buffers.requestCount else {
                throw ShareFault(EINVAL)
            }
            guard let opcode else { throw ShareFault(ENOSYS) }
            if opcode != .write {
                guard header.length <= Self.requestLimit else { throw ShareFault(E2BIG) }
                if header.length > bytes.count {
                    guard let rest = buffers.read(at: bytes.count, count: header.length - bytes.count) else {
                        throw ShareFault(EFAULT)
                    }
                    bytes += rest
                }
                bytes.removeLast(max(0, bytes.count - header.length))
            }
            guard initialized.withLock({ $0 }) || opcode == .initialize else { throw ShareFault(EIO) }
            if isReadOnly, opcode.isChange { throw ShareFault(EROFS) }
            let request = Request(
                header: header, opcode: opcode, arguments: RequestReader(bytes[FUSE.requestHeaderSize...]))
            return try execute(request, buffers)
        } catch {
            guard hasReply else { return .done(written: 0) }
            return answer(Self.reply(to: header.unique, error: error.number), buffers)
        }
    }

    private func execute(_ request: Request, _ buffers: some ShareRequestBuffers) throws(ShareFault) -> ShareOutcome {
        switch request.opcode {
        case .forget, .batchForget:
            try forget(request)
            return .done(written: 0)
        case .interrupt:
            var arguments = request.arguments
            locks.interrupt(try arguments.u64())
            return .done(written: 0)
        case .read: return try read(request, buffers)
        case .setLockWaiting:
            if let wait = try waitForLock(request) { return .waits(wait) }
            return answer(Self.reply(to: request.header.unique, error: 0), buffers)
        case .write: return try finish(write(request, buffers), request, buffers)
        default: return try finish(reply(to: request, limit: buffers.replyLimit), request, buffers)
        }
    }

    private func finish(
        _ reply: ReplyBytes, _ request: Request, _ buffers: some ShareRequestBuffers
    ) throws(ShareFault) -> ShareOutcome {
        guard reply.count <= buffers.replyLimit else { throw ShareFault(EIO) }
        return answer(reply.finished(unique: request.header.unique), buffers)
    }

    func answer(_ bytes: [UInt8], _ buffers: some ShareRequestBuffers) -> ShareOutcome {
        guard buffers.write(bytes, at: 0) else { return .malformed("the answer's room cannot be written") }
        return .done(written: bytes.count)
    }

    /// Requests whose reply is made in one piece.
    private func reply(to request: Request, limit: Int) throws(ShareFault) -> ReplyBytes {
        switch request.opcode {
        case .initialize: try initialize(request)
        case .destroy: destroy()
        case .lookup: try lookUp(request)
        case .getAttributes: try getAttributes(request)
        case .setAttributes: try setAttributes(request)
        case .readLink: try readLink(request)
        case .makeSymlink: try makeSymlink(request)
        case .makeNode: try makeNode(request)
        case .makeDirectory: try makeDirectory(request)
        case .unlink: try remove(request, isDirectory: false)
        case .removeDirectory: try remove(request, isDirectory: true)
        case .rename: try rename(request, hasFlags: false)
        case .renameWithFlags: try rename(request, hasFlags: true)
        case .link: try link(request)
        case .open: try open(request, isDirectory: false)
        case .openDirectory: try open(request, isDirectory: true)
        case .create: try create(request)
        case .release: try release(request, isDirectory: false)
        case .releaseDirectory: try release(request, isDirectory: true)
        case .flush: try flush(request)
        case .synchronize: try synchronize(request, isDirectory: false)
        case .synchronizeDirectory: try synchronize(request, isDirectory: true)
        case .synchronizeFileSystem: try synchronizeFileSystem(request)
        case .fileSystemSpace: try space(request)
        case .access: try access(request)
        case .allocate: try allocate(request)
        case .seek: try seek(request)
        case .copyRange: try copyRange(request)
        case .readDirectory: try readDirectory(request, withAttributes: false, limit: limit)
        case .readDirectoryPlus: try readDirectory(request, withAttributes: true, limit: limit)
        case .setExtendedAttribute: try setExtendedAttribute(request)
        case .getExtendedAttribute: try getExtendedAttribute(request)
        case .listExtendedAttributes: try listExtendedAttributes(request)
        case .removeExtendedAttribute: try removeExtendedAttribute(request)
        case .getLock: try getLock(request)
        case .setLock: try setLock(request)
        case .forget, .batchForget, .interrupt, .read, .write, .setLockWaiting: throw ShareFault(ENOSYS)
        }
    }
}

/// A request whose header has been read.
struct Request: Sendable {
    var header: RequestHeader
    var opcode: Opcode
    /// What follows the header.
    var arguments: RequestReader
}
