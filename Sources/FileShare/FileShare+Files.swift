internal import CHost
internal import Glibc
internal import Host

extension FileShare {
    func addHandle(
        _ file: OpenFile, node: UInt64, flags: UInt32, isDirectory: Bool
    ) throws(ShareFault) -> UInt64 {
        let number = try handles.add(
            Handle(node: node, flags: OpenFlags.kept(flags), isDirectory: isDirectory, file: file))
        nodes.count(opens: 1, of: node)
        return number
    }

    /// struct fuse_open_in; the reply is struct fuse_open_out.
    func open(_ request: Request, isDirectory: Bool) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let flags = try arguments.u32()
        let openFlags = try arguments.u32()
        let truncates = !isDirectory && OpenFlags.has(O_TRUNC, flags)
        if isReadOnly, OpenFlags.isWriting(flags) || truncates { throw ShareFault(EROFS) }
        let type = try nodes.type(request.header.node)
        if isDirectory {
            guard type == FileMode.directory else { throw ShareFault(ENOTDIR) }
        } else {
            guard type == FileMode.regular else { throw ShareFault(type == FileMode.directory ? EISDIR : ENXIO) }
        }
        try handles.requireRoom()
        let descriptor = try nodes.descriptor(request.header.node)
        let hostFlags = isDirectory ? O_RDONLY | O_DIRECTORY : OpenFlags.kept(flags) | (truncates ? O_TRUNC : 0)
        let file = try descriptor.open(hostFlags)
        if truncates, openFlags & FUSE.openKillsPrivileges != 0 { try killPrivileges(file) }
        let number = try addHandle(
            file, node: request.header.node, flags: isDirectory ? 0 : flags, isDirectory: isDirectory)
        var reply = ReplyBytes()
        reply.u64(number)
        reply.u64(0)
        return reply
    }

    /// struct fuse_release_in.
    func release(_ request: Request, isDirectory: Bool) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        try handles.remove(try arguments.u64(), of: request.header.node, isDirectory: isDirectory)
        nodes.count(opens: -1, of: request.header.node)
        return ReplyBytes()
    }

    /// struct fuse_flush_in: a process has closed a descriptor of the file, and with it all its locks there.
    func flush(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        _ = try handles.handle(try arguments.u64(), of: request.header.node, isDirectory: false)
        try arguments.skip(8)
        locks.drop(node: request.header.node, owner: try arguments.u64(), nodes: nodes)
        return ReplyBytes()
    }

    private func file(_ number: UInt64, _ request: Request) throws(ShareFault) -> OpenFile {
        try handles.handle(number, of: request.header.node, isDirectory: false).opened(in: nodes)
    }

    // MARK: Data

    /// struct fuse_read_in. The host's kernel puts the data where the guest wants it.
    func read(_ request: Request, _ buffers: some ShareRequestBuffers) throws(ShareFault) -> ShareOutcome {
        var arguments = request.arguments
        let file = try file(try arguments.u64(), request)
        let offset = try arguments.u64()
        let size = Int(try arguments.u32())
        guard size <= Self.transferLimit else { throw ShareFault(EINVAL) }
        guard offset <= UInt64(Int64.max) - UInt64(size) else { throw ShareFault(EINVAL) }
        let room = min(size, buffers.replyLimit - FUSE.replyHeaderSize)
        var count = 0
        if room > 0 {
            guard let target = buffers.target(at: FUSE.replyHeaderSize, count: room) else { throw ShareFault(EFAULT) }
            // Told even after a failure: some of it may have been filled.
            defer { buffers.noteFilled(at: FUSE.replyHeaderSize, count: room) }
            count = try checked(TransferMemory(target).fill(from: file.borrowed, at: offset))
        }
        let length = FUSE.replyHeaderSize + count
        let header = ReplyBytes.header(length: length, error: 0, unique: request.header.unique)
        guard buffers.write(header, at: 0) else { throw ShareFault(EFAULT) }
        return .done(written: length)
    }

    /// struct fuse_write_in and the data.
    func write(_ request: Request, _ buffers: some ShareRequestBuffers) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let file = try file(try arguments.u64(), request)
        let offset = try arguments.u64()
        let size = Int(try arguments.u32())
        let flags = try arguments.u32()
        let dataOffset = FUSE.requestHeaderSize + 40
        guard size <= Self.transferLimit, request.header.length == dataOffset + size else { throw ShareFault(EINVAL) }
        guard offset <= UInt64(Int64.max) - UInt64(size) else { throw ShareFault(EFBIG) }
        if flags & FUSE.writeKillsPrivileges != 0 { try killPrivileges(file) }
        var count = 0
        if size > 0 {
            guard let source = buffers.source(at: dataOffset, count: size) else { throw ShareFault(EFAULT) }
            count = try checked(TransferMemory(source).store(in: file.borrowed, at: offset))
        }
        var reply = ReplyBytes()
        reply.u32(UInt32(count))
        reply.u32(0)
        return reply
    }

    /// struct fuse_fsync_in.
    func synchronize(_ request: Request, isDirectory: Bool) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let number = try arguments.u64()
        let flags = try arguments.u32()
        let handle = try handles.handle(number, of: request.header.node, isDirectory: isDirectory)
        try handle.opened(in: nodes).synchronize(onlyData: flags & FUSE.synchronizeOnlyData != 0)
        return ReplyBytes()
    }

    /// The file system that the node is in; nothing to do for a share that may not be written.
    func synchronizeFileSystem(_ request: Request) throws(ShareFault) -> ReplyBytes {
        guard !isReadOnly else { return ReplyBytes() }
        try nodes.descriptor(request.header.node).open(O_RDONLY).synchronizeAll()
        return ReplyBytes()
    }

    /// struct fuse_fallocate_in.
    func allocate(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let file = try file(try arguments.u64(), request)
        let offset = try arguments.u64()
        let count = try arguments.u64()
        let mode = try arguments.u32()
        let keepSize: UInt32 = 1
        let punchHole: UInt32 = 2
        let zeroRange: UInt32 = 16
        guard mode & ~(keepSize | punchHole | zeroRange) == 0 else { throw ShareFault(EOPNOTSUPP) }
        try file.allocate(mode: mode, at: offset, count: count)
        return ReplyBytes()
    }

    /// struct fuse_lseek_in.
    func seek(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let file = try file(try arguments.u64(), request)
        let offset = try arguments.u64()
        let whence = Int32(bitPattern: try arguments.u32())
        var reply = ReplyBytes()
        reply.u64(try file.seek(to: offset, whence: whence))
        return reply
    }

    /// struct fuse_copy_file_range_in.
    func copyRange(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let source = try file(try arguments.u64(), request)
        let offset = try arguments.u64()
        let targetNode = try arguments.u64()
        let target = try handles.handle(try arguments.u64(), of: targetNode, isDirectory: false).opened(in: nodes)
        let targetOffset = try arguments.u64()
        let count = try arguments.u64()
        guard try arguments.u64() == 0 else { throw ShareFault(EINVAL) }
        let copied = try source.copyRange(at: offset, to: target, at: targetOffset, count: count)
        var reply = ReplyBytes()
        reply.u32(UInt32(copied))
        reply.u32(0)
        return reply
    }
}
