internal import Glibc
internal import Synchronization

extension FileShare {
    /// Bytes of records that are asked of the host's kernel at once.
    private static let listingChunk = 32 << 10

    /// struct fuse_read_in; the reply is as many entries as there is room for, none at the end.
    func readDirectory(_ request: Request, withAttributes: Bool, limit: Int) throws(ShareFault) -> ReplyBytes {
        var arguments = request.arguments
        let number = try arguments.u64()
        let offset = try arguments.u64()
        let size = Int(try arguments.u32())
        guard size <= Self.transferLimit else { throw ShareFault(EINVAL) }
        let handle = try handles.handle(number, of: request.header.node, isDirectory: true)
        let file = try handle.opened(in: nodes)
        let directory = try withAttributes ? nodes.descriptor(request.header.node) : nil
        let room = min(limit, FUSE.replyHeaderSize + size)
        return try handle.listing.withLock { (listing) throws(ShareFault) in
            if !listing.isValid || listing.offset != offset {
                listing = Handle.Listing(offset: offset, isValid: false)
                try file.seekDirectory(to: offset)
                listing.isValid = true
            }
            var reply = ReplyBytes(capacity: min(room, Self.listingChunk))
            while true {
                if listing.position >= listing.records.count {
                    listing.records = try file.readDirectory(limit: Self.listingChunk)
                    listing.position = 0
                    if listing.records.isEmpty { return reply }
                }
                guard let entry = DirectoryRecord(listing.records, at: listing.position) else { throw ShareFault(EIO) }
                let entrySize = entry.replySize + (withAttributes ? FUSE.entrySize : 0)
                guard reply.count + entrySize <= room else {
                    // Not even one: the guest asks for too little.
                    if reply.count == FUSE.replyHeaderSize { throw ShareFault(EINVAL) }
                    return reply
                }
                if let directory { appendEntry(entry, request.header.node, directory, to: &reply) }
                append(
                    entry, isRootParent: request.header.node == NodeTable.root && entry.name == [0x2E, 0x2E], &reply)
                listing.position += entry.size
                listing.offset = entry.next
            }
        }
    }

    /// What a lookup of the name would have said. Nothing for `.` and `..`, of which a guest knows, and for what is gone
    /// by now: the guest then looks it up itself.
    private func appendEntry(
        _ entry: DirectoryRecord, _ parent: UInt64, _ directory: PathDescriptor, to reply: inout ReplyBytes
    ) {
        guard let name = try? FileName(entry.name), let facts = try? directory.facts(of: name),
            let node = try? nodes.enter(facts, parent: parent, name: name)
        else { return reply.zeros(FUSE.entrySize) }
        append(entry: node, facts, to: &reply)
    }

    /// struct fuse_dirent.
    private func append(_ entry: DirectoryRecord, isRootParent: Bool, _ reply: inout ReplyBytes) {
        // What is above the folder is nobody's business.
        reply.u64(isRootParent ? 1 : entry.inode)
        reply.u64(entry.next)
        reply.u32(UInt32(entry.name.count))
        reply.u32(UInt32(entry.type))
        reply.data(entry.name)
        reply.zeros(entry.replySize - FUSE.directoryEntrySize - entry.name.count)
    }
}

/// One record of getdents64(2): inode, offset of the next one, size, type, name with a NUL and padding.
struct DirectoryRecord: Equatable {
    var inode: UInt64
    var next: UInt64
    /// Bytes of the record.
    var size: Int
    var type: UInt8
    var name: ArraySlice<UInt8>

    /// nil: there is no whole one.
    init?(_ bytes: [UInt8], at position: Int) {
        let head = 19
        guard bytes.count - position > head else { return nil }
        func number(_ offset: Int, _ count: Int) -> UInt64 {
            (0..<count).reduce(0) { $0 | UInt64(bytes[position + offset + $1]) << UInt64(8 * $1) }
        }
        inode = number(0, 8)
        next = number(8, 8)
        size = Int(number(16, 2))
        type = bytes[position + 18]
        guard size > head, size <= bytes.count - position else { return nil }
        let field = bytes[position + head..<position + size]
        guard let end = field.firstIndex(of: 0) else { return nil }
        name = field[..<end]
    }

    /// Bytes as struct fuse_dirent, padded to 8.
    var replySize: Int { (FUSE.directoryEntrySize + name.count + 7) & ~7 }
}
