internal import CHost
internal import Glibc

extension FileShare {
    /// How long the guest may believe a name or attributes, in seconds.
    private static let validity: UInt64 = 1
    /// Files and descriptors that a guest may have on the way at once.
    private static let backgroundLimit: UInt16 = 256
    private static let congestion: UInt16 = 192
    /// 1 MiB: what a write and a read may have.
    static let transferLimit = 1 << 20

    func initialize(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let major = try arguments.u32()
        let minor = try arguments.u32()
        var reply = ReplyBytes()
        reply.u32(FUSE.major)
        reply.u32(FUSE.minor)
        guard major <= FUSE.major else {
            // A newer guest asks again with our version.
            reply.zeros(56)
            return reply
        }
        guard major == FUSE.major, minor >= FUSE.oldestMinor else { throw ShareFault(EPROTO) }
        let readAhead = try arguments.u32()
        let flags = try arguments.u32()
        reset()
        noteInitialized()
        reply.u32(readAhead)
        reply.u32(flags & FUSE.Feature.offered)
        reply.u16(Self.backgroundLimit)
        reply.u16(Self.congestion)
        reply.u32(UInt32(Self.transferLimit))
        // Times are nanoseconds.
        reply.u32(1)
        reply.u16(UInt16(Self.transferLimit / 4096))
        reply.u16(0)
        reply.zeros(32)
        return reply
    }

    func destroy() -> ReplyBytes {
        reset()
        return ReplyBytes()
    }

    // MARK: Replies

    /// struct fuse_attr.
    func append(_ facts: FileFacts, to reply: inout ReplyBytes) {
        reply.u64(nodes.inodeNumber(facts))
        reply.u64(facts.size)
        reply.u64(facts.blocks)
        reply.u64(UInt64(bitPattern: facts.access.seconds))
        reply.u64(UInt64(bitPattern: facts.modification.seconds))
        reply.u64(UInt64(bitPattern: facts.change.seconds))
        reply.u32(facts.access.nanoseconds)
        reply.u32(facts.modification.nanoseconds)
        reply.u32(facts.change.nanoseconds)
        reply.u32(facts.mode)
        reply.u32(facts.links)
        reply.u32(owners.shown(user: facts.user))
        reply.u32(owners.shown(group: facts.group))
        // The kernel's own form of a device number, which for small ones is makedev's.
        reply.u32(UInt32(truncatingIfNeeded: facts.special))
        reply.u32(facts.block_size)
        reply.u32(0)
    }

    /// struct fuse_entry_out.
    func append(entry node: UInt64, _ facts: FileFacts, to reply: inout ReplyBytes) {
        reply.u64(node)
        reply.u64(0)
        reply.u64(Self.validity)
        reply.u64(Self.validity)
        reply.u64(0)
        append(facts, to: &reply)
    }

    func attributes(_ facts: FileFacts) -> ReplyBytes {
        var reply = ReplyBytes()
        reply.u64(Self.validity)
        reply.u64(0)
        append(facts, to: &reply)
        return reply
    }

    // MARK: Requests

    func getAttributes(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let flags = try arguments.u32()
        try arguments.skip(4)
        let number = try arguments.u64()
        guard flags & FUSE.getAttributesByHandle != 0 else { return attributes(try nodes.facts(request.header.node)) }
        let handle = try handles.handle(number, of: request.header.node, isDirectory: false)
        return attributes(try handle.opened(in: nodes).facts())
    }

    /// struct fuse_setattr_in, as far as it is used.
    private struct Changes {
        var valid: UInt32
        var handle: UInt64
        var size: UInt64
        var access: host_share_time
        var modification: host_share_time
        var mode: UInt32
        var user: UInt32
        var group: UInt32

        init(_ arguments: RequestReader) throws(ShareFault) {
            var arguments = arguments
            valid = try arguments.u32()
            try arguments.skip(4)
            handle = try arguments.u64()
            size = try arguments.u64()
            try arguments.skip(8)
            let seconds = (try arguments.u64(), try arguments.u64(), try arguments.u64())
            let nanoseconds = (try arguments.u32(), try arguments.u32(), try arguments.u32())
            access = host_share_time(seconds: Int64(bitPattern: seconds.0), nanoseconds: nanoseconds.0)
            modification = host_share_time(seconds: Int64(bitPattern: seconds.1), nanoseconds: nanoseconds.1)
            mode = try arguments.u32()
            try arguments.skip(4)
            user = try arguments.u32()
            group = try arguments.u32()
        }

        func has(_ bit: UInt32) -> Bool { valid & bit != 0 }
    }

    func setAttributes(_ request: Request) throws(ShareFault) -> ReplyBytes {
        let changes = try Changes(request.arguments)
        let descriptor = try nodes.descriptor(request.header.node)
        // The owner first: changing it takes set-user-ID away, and the mode may bring it back.
        if changes.has(FUSE.SetAttribute.user) || changes.has(FUSE.SetAttribute.group) {
            let user = changes.has(FUSE.SetAttribute.user) ? try owners.requested(user: changes.user) : nil
            let group = changes.has(FUSE.SetAttribute.group) ? try owners.requested(group: changes.group) : nil
            if user != nil || group != nil { try descriptor.setOwner(user: user, group: group) }
        }
        if changes.has(FUSE.SetAttribute.mode) {
            guard try nodes.type(request.header.node) != FileMode.symbolicLink else { throw ShareFault(EOPNOTSUPP) }
            try descriptor.setMode(changes.mode)
        }
        if changes.has(FUSE.SetAttribute.size) { try truncate(request.header.node, changes, descriptor) }
        try setTimes(changes, descriptor)
        return attributes(try descriptor.facts())
    }

    private func truncate(
        _ node: UInt64, _ changes: Changes, _ descriptor: PathDescriptor
    ) throws(ShareFault) {
        guard try nodes.type(node) == FileMode.regular else { throw ShareFault(EINVAL) }
        let file: OpenFile
        if changes.has(FUSE.SetAttribute.handle) {
            file = try handles.handle(changes.handle, of: node, isDirectory: false).opened(in: nodes)
        } else {
            file = try descriptor.open(O_WRONLY)
        }
        try file.truncate(to: changes.size)
        if changes.has(FUSE.SetAttribute.killPrivileges) { try killPrivileges(file) }
    }

    private func setTimes(_ changes: Changes, _ descriptor: PathDescriptor) throws(ShareFault) {
        func time(_ isSet: Bool, _ isNow: Bool, _ time: host_share_time) throws(ShareFault) -> host_share_time {
            guard isSet || isNow else { return host_share_time(seconds: 0, nanoseconds: UInt32(HOST_SHARE_TIME_OMIT)) }
            guard !isNow else { return host_share_time(seconds: 0, nanoseconds: UInt32(HOST_SHARE_TIME_NOW)) }
            guard time.nanoseconds < 1_000_000_000 else { throw ShareFault(EINVAL) }
            return time
        }
        let setsAccess = changes.has(FUSE.SetAttribute.accessTime)
        let setsModification = changes.has(FUSE.SetAttribute.modificationTime)
        guard setsAccess || setsModification else { return }
        try descriptor.setTimes(
            access: time(setsAccess, setsAccess && changes.has(FUSE.SetAttribute.accessNow), changes.access),
            modification: time(
                setsModification, setsModification && changes.has(FUSE.SetAttribute.modificationNow),
                changes.modification))
    }

    /// A file that was changed by somebody without privileges is no longer set-user-ID or set-group-ID
    /// (FUSE_HANDLE_KILLPRIV_V2).
    func killPrivileges(_ file: OpenFile) throws(ShareFault) {
        let mode = try file.facts().mode
        // Set-group-ID without group execution is another thing (mandatory locking).
        let isGroup =
            mode & (FileMode.setGroup | FileMode.groupExecutes) == (FileMode.setGroup | FileMode.groupExecutes)
        let kept = mode & ~FileMode.setUser & ~(isGroup ? FileMode.setGroup : 0)
        if kept != mode { try file.setMode(kept) }
    }

    /// struct fuse_access_in. Linux asks for nothing here: it decides by mode and owner itself.
    func access(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let mask = try arguments.u32()
        try arguments.skip(4)
        let facts = try nodes.facts(request.header.node)
        guard mask & ~7 == 0 else { throw ShareFault(EINVAL) }
        if isReadOnly, mask & UInt32(W_OK) != 0 { throw ShareFault(EROFS) }
        let granted: UInt32
        if request.header.user == 0 {
            granted = facts.isDirectory || facts.mode & 0o111 != 0 ? 7 : 6
        } else if request.header.user == owners.shown(user: facts.user) {
            granted = facts.mode >> 6 & 7
        } else if request.header.group == owners.shown(group: facts.group) {
            granted = facts.mode >> 3 & 7
        } else {
            granted = facts.mode & 7
        }
        guard mask & ~granted == 0 else { throw ShareFault(EACCES) }
        return ReplyBytes()
    }

    /// struct fuse_statfs_out.
    func space(_ request: Request) throws(ShareFault) -> ReplyBytes {
        let space = try nodes.descriptor(request.header.node).space()
        var reply = ReplyBytes()
        reply.u64(space.blocks)
        reply.u64(space.free)
        reply.u64(space.available)
        reply.u64(space.files)
        reply.u64(space.free_files)
        reply.u32(space.block_size)
        reply.u32(space.name_length)
        reply.u32(space.fragment_size)
        reply.zeros(28)
        return reply
    }
}
