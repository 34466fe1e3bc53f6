internal import CHost
internal import Glibc

extension FileShare {
    /// struct fuse_lk_in.
    private struct LockRequest {
        var handle: UInt64
        var owner: UInt64
        var lock: host_share_lock

        init(_ arguments: RequestReader) throws(ShareFault) {
            var arguments = arguments
            handle = try arguments.u64()
            owner = try arguments.u64()
            lock = host_share_lock(
                start: try arguments.u64(), end: try arguments.u64(), type: try arguments.u32(),
                process: try arguments.u32())
            let flags = try arguments.u32()
            // flock(2) is the guest kernel's business: FUSE_FLOCK_LOCKS is not offered.
            guard flags & FUSE.lockIsWholeFile == 0 else { throw ShareFault(EOPNOTSUPP) }
            guard [F_RDLCK, F_WRLCK, F_UNLCK].contains(where: { UInt32($0) == lock.type }) else {
                throw ShareFault(EINVAL)
            }
            guard lock.start <= lock.end, lock.start <= UInt64(Int64.max) else { throw ShareFault(EINVAL) }
            lock.end = min(lock.end, UInt64(Int64.max))
        }
    }

    private func openFile(_ lock: LockRequest, _ request: Request) throws(ShareFault) -> OpenFile {
        try handles.handle(lock.handle, of: request.header.node, isDirectory: false).opened(in: nodes)
    }

    func getLock(_ request: Request) throws(ShareFault) -> ReplyBytes {
        let lock = try LockRequest(request.arguments)
        guard lock.lock.type != UInt32(F_UNLCK) else { throw ShareFault(EINVAL) }
        let found = try locks.conflict(
            with: lock.lock, node: request.header.node, owner: lock.owner, file: openFile(lock, request))
        var reply = ReplyBytes()
        reply.u64(found.start)
        reply.u64(found.end)
        reply.u32(found.type)
        reply.u32(found.process)
        return reply
    }

    func setLock(_ request: Request) throws(ShareFault) -> ReplyBytes {
        let lock = try LockRequest(request.arguments)
        _ = try openFile(lock, request)
        try locks.set(lock.lock, node: request.header.node, owner: lock.owner, nodes: nodes)
        return ReplyBytes()
    }

    /// nil: the lock is set.
    func waitForLock(_ request: Request) throws(ShareFault) -> LockWait? {
        let lock = try LockRequest(request.arguments)
        _ = try openFile(lock, request)
        do throws(ShareFault) {
            try locks.set(lock.lock, node: request.header.node, owner: lock.owner, nodes: nodes)
            return nil
        } catch {
            guard error.number == EAGAIN || error.number == EACCES else { throw error }
        }
        let wait = LockWait(
            unique: request.header.unique, node: request.header.node, owner: lock.owner, lock: lock.lock)
        try locks.add(wait)
        // What was unlocked since it was tried.
        locks.retry(nodes)
        return wait
    }
}
