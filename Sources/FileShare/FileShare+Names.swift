internal import CHost
internal import Glibc

extension FileShare {
    /// struct fuse_forget_in, and struct fuse_batch_forget_in with so many of struct fuse_forget_one.
    func forget(_ request: Request) throws(ShareFault) {
        var arguments = request.arguments
        guard request.opcode == .batchForget else {
            return nodes.forget(request.header.node, count: try arguments.u64())
        }
        let count = Int(try arguments.u32())
        try arguments.skip(4)
        guard arguments.remaining / 16 >= count else { throw ShareFault(EINVAL) }
        for _ in 0..<count { nodes.forget(try arguments.u64(), count: try arguments.u64()) }
    }

    /// The reply to everything that finds or makes a name: the guest knows one lookup more.
    private func entry(_ name: FileName, in parent: UInt64, _ directory: PathDescriptor) throws(ShareFault)
        -> ReplyBytes
    {
        let facts = try directory.facts(of: name)
        let node = try nodes.enter(facts, parent: parent, name: name)
        var reply = ReplyBytes()
        append(entry: node, facts, to: &reply)
        return reply
    }

    func lookUp(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        return try entry(
            try arguments.name(), in: request.header.node, nodes.descriptor(request.header.node))
    }

    func readLink(_ request: Request) throws(ShareFault) -> ReplyBytes {
        guard try nodes.type(request.header.node) == FileMode.symbolicLink else { throw ShareFault(EINVAL) }
        var reply = ReplyBytes()
        reply.data(try nodes.descriptor(request.header.node).readLink())
        return reply
    }

    // MARK: Making

    /// Creates with the mode that was asked for, whatever the umask of this process.
    func withoutMask() throws(ShareFault) { try checked(host_share_clear_umask()) }

    /// What was just made belongs to who asked for it, and has the mode that a change of owner takes away. Where that
    /// cannot be it is removed again.
    func giveAway(
        _ name: FileName, in directory: PathDescriptor, mode: UInt32?, _ request: Request, isDirectory: Bool = false
    ) throws(ShareFault) {
        let (user, group) = (request.header.user, request.header.group)
        guard owners.isIdentity, user != host_share_user() || group != host_share_group() else { return }
        do throws(ShareFault) {
            let made = try directory.find(name)
            let facts = try made.facts()
            // A set-group-ID directory has given it its own group.
            let inherits = try directory.facts().mode & FileMode.setGroup != 0
            let newUser = facts.user == user ? nil : user
            let newGroup = inherits || facts.group == group ? nil : group
            guard newUser != nil || newGroup != nil else { return }
            try made.setOwner(user: newUser, group: newGroup)
            if let mode, mode & 0o6000 != 0, !isDirectory { try made.setMode(mode) }
        } catch {
            // The first trouble is the one to tell.
            try? directory.remove(name, isDirectory: isDirectory)
            throw error
        }
    }

    func makeNode(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let mode = try arguments.u32()
        try arguments.skip(12)
        let name = try arguments.name()
        let directory = try nodes.descriptor(request.header.node)
        try withoutMask()
        try directory.makeNode(name, mode: mode & FileMode.typeMask == 0 ? mode | FileMode.regular : mode)
        try giveAway(name, in: directory, mode: mode, request)
        return try entry(name, in: request.header.node, directory)
    }

    func makeDirectory(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let mode = try arguments.u32()
        try arguments.skip(4)
        let name = try arguments.name()
        let directory = try nodes.descriptor(request.header.node)
        try withoutMask()
        try directory.makeDirectory(name, mode: mode)
        try giveAway(name, in: directory, mode: mode, request, isDirectory: true)
        return try entry(name, in: request.header.node, directory)
    }

    func makeSymlink(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let name = try arguments.name()
        // Where it leads is the guest's business: nobody follows it here.
        let target = try arguments.string()
        guard !target.isEmpty else { throw ShareFault(ENOENT) }
        guard target.count < Int(PATH_MAX) else { throw ShareFault(ENAMETOOLONG) }
        let directory = try nodes.descriptor(request.header.node)
        try directory.makeSymlink(name, to: target.map { CChar(bitPattern: $0) } + [0])
        try giveAway(name, in: directory, mode: nil, request)
        return try entry(name, in: request.header.node, directory)
    }

    func link(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let old = try arguments.u64()
        let name = try arguments.name()
        let directory = try nodes.descriptor(request.header.node)
        guard try nodes.type(old) != FileMode.directory else { throw ShareFault(EPERM) }
        try directory.makeLink(name, to: try nodes.descriptor(old))
        return try entry(name, in: request.header.node, directory)
    }

    // MARK: Removing and renaming

    // renameat2(2).
    private static let renameNoReplace: UInt32 = 1
    private static let renameExchange: UInt32 = 2

    /// The guest's node of a name that is about to go, kept by its descriptor: it may be open, or have other names.
    private func keep(_ name: FileName, in directory: PathDescriptor) -> UInt64? {
        guard let facts = try? directory.facts(of: name), let node = nodes.identifier(of: facts) else { return nil }
        // Where it cannot be kept it will be ESTALE.
        _ = try? nodes.descriptor(node)
        return node
    }

    func remove(_ request: Request, isDirectory: Bool) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let name = try arguments.name()
        let directory = try nodes.descriptor(request.header.node)
        let kept = keep(name, in: directory)
        try directory.remove(name, isDirectory: isDirectory)
        if let kept { nodes.nameWasRemoved(kept, NodeLocation(parent: request.header.node, name: name)) }
        return ReplyBytes()
    }

    /// struct fuse_rename_in or struct fuse_rename2_in, and two names.
    func rename(_ request: Request, hasFlags: Bool) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let newParent = try arguments.u64()
        var flags: UInt32 = 0
        if hasFlags {
            flags = try arguments.u32()
            try arguments.skip(4)
        }
        let name = try arguments.name()
        let newName = try arguments.name()
        let exchange = Self.renameExchange
        // A whiteout is a device node.
        guard flags & ~(Self.renameNoReplace | exchange) == 0 else { throw ShareFault(EINVAL) }
        let directory = try nodes.descriptor(request.header.node)
        let newDirectory = try nodes.descriptor(newParent)
        let replaced = keep(newName, in: newDirectory)
        let moved = (try? directory.facts(of: name)).flatMap { nodes.identifier(of: $0) }
        try directory.rename(name, into: newDirectory, as: newName, flags: flags)
        let (from, to) = (
            NodeLocation(parent: request.header.node, name: name), NodeLocation(parent: newParent, name: newName)
        )
        if let replaced, replaced != moved {
            if flags & exchange != 0 {
                nodes.wasRenamed(replaced, to: from)
            } else {
                nodes.nameWasRemoved(replaced, to)
            }
        }
        if let moved { nodes.wasRenamed(moved, to: to) }
        return ReplyBytes()
    }

    // MARK: Creating and opening at once

    /// struct fuse_create_in and a name; the reply is an entry and a handle.
    func create(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let flags = try arguments.u32()
        let mode = try arguments.u32()
        try arguments.skip(8)
        let name = try arguments.name()
        let directory = try nodes.descriptor(request.header.node)
        try handles.requireRoom()
        try withoutMask()
        let file = try createOrOpen(name, in: directory, flags: flags, mode: mode, request)
        let facts = try file.facts()
        let node = try nodes.enter(facts, parent: request.header.node, name: name)
        do throws(ShareFault) {
            try nodes.install(file.pathDescriptor(), node)
            let number = try addHandle(file, node: node, flags: flags, isDirectory: false)
            var reply = ReplyBytes(capacity: 192)
            append(entry: node, facts, to: &reply)
            reply.u64(number)
            reply.u64(0)
            return reply
        } catch {
            nodes.forget(node, count: 1)
            throw error
        }
    }

    private func createOrOpen(
        _ name: FileName, in directory: PathDescriptor, flags: UInt32, mode: UInt32, _ request: Request
    ) throws(ShareFault) -> OpenFile {
        do throws(ShareFault) {
            let file = try directory.create(name, flags: OpenFlags.kept(flags), mode: mode)
            try giveAway(name, in: directory, mode: mode, request)
            return file
        } catch {
            guard error.number == EEXIST, !OpenFlags.has(O_EXCL, flags) else { throw error }
        }
        let found = try directory.find(name)
        guard try found.facts().isRegular else { throw ShareFault(ENXIO) }
        return try found.open(OpenFlags.kept(flags) | (OpenFlags.has(O_TRUNC, flags) ? O_TRUNC : 0))
    }
}
