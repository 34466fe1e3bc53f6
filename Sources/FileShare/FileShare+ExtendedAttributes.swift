internal import Glibc

/// Only `user.` attributes: all others mean something to the host's kernel, and what a guest writes should not.
extension FileShare {
    private static let prefix = Array("user.".utf8)
    private static let nameLimit = 255
    private static let valueLimit = 64 << 10

    private func attributeName(_ text: ArraySlice<UInt8>) throws(ShareFault) -> [CChar] {
        guard text.count <= Self.nameLimit else { throw ShareFault(ERANGE) }
        guard text.starts(with: Self.prefix), text.count > Self.prefix.count else { throw ShareFault(EOPNOTSUPP) }
        return text.map { CChar(bitPattern: $0) } + [0]
    }

    /// struct fuse_setxattr_in (the form of 8 bytes), name, value.
    func setExtendedAttribute(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let size = Int(try arguments.u32())
        let flags = try arguments.u32()
        let name = try attributeName(try arguments.string())
        guard size <= Self.valueLimit else { throw ShareFault(E2BIG) }
        let value = try arguments.data(size)
        // XATTR_CREATE and XATTR_REPLACE.
        guard flags & ~3 == 0 else { throw ShareFault(EINVAL) }
        try nodes.descriptor(request.header.node).setAttribute(name, value, flags: Int32(flags))
        return ReplyBytes()
    }

    /// struct fuse_getxattr_in and a name. With size 0 only the size is asked for (struct fuse_getxattr_out).
    func getExtendedAttribute(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let size = Int(try arguments.u32())
        try arguments.skip(4)
        let name = try attributeName(try arguments.string())
        let descriptor = try nodes.descriptor(request.header.node)
        var reply = ReplyBytes()
        if size == 0 {
            reply.u32(UInt32(try descriptor.attributeSize(name)))
            reply.u32(0)
        } else {
            reply.data(try descriptor.attribute(name, limit: min(size, Self.valueLimit)))
        }
        return reply
    }

    func listExtendedAttributes(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let size = Int(try arguments.u32())
        let names = try nodes.descriptor(request.header.node).attributeNames().split(separator: 0)
            .filter { $0.starts(with: Self.prefix) }
        let list = names.flatMap { $0 + [0] }
        var reply = ReplyBytes()
        guard size > 0 else {
            reply.u32(UInt32(list.count))
            reply.u32(0)
            return reply
        }
        guard list.count <= size else { throw ShareFault(ERANGE) }
        reply.data(list)
        return reply
    }

    func removeExtendedAttribute(_ request: Request) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let name = try attributeName(try arguments.string())
        try nodes.descriptor(request.header.node).removeAttribute(name)
        return ReplyBytes()
    }
}
