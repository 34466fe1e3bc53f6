internal import CHost
internal import Glibc
internal import Host

// SAFETY of the calls here: each takes an open descriptor, strings with a NUL at the end, and memory of the size that it
// is told; none keeps a pointer.

typealias FileFacts = host_share_facts

extension FileFacts {
    var type: UInt32 { mode & FileMode.typeMask }
    var isDirectory: Bool { type == FileMode.directory }
    var isRegular: Bool { type == FileMode.regular }
    var identity: NodeIdentity {
        NodeIdentity(
            device: device, inode: inode, birth: birth.seconds &* 1_000_000_000 &+ Int64(birth.nanoseconds))
    }
}

/// A file of the host that is known without being open (O_PATH); closed with its last owner.
final class PathDescriptor: Sendable {
    let rawValue: Int32

    init(owning result: Int) throws(ShareFault) { rawValue = Int32(truncatingIfNeeded: try checked(result)) }

    deinit { _ = host_close(rawValue) }

    // MARK: Of the file itself

    func facts() throws(ShareFault) -> FileFacts { try Self.facts(rawValue, [0]) }

    /// Opens a regular file or a directory; ENXIO for anything else.
    func open(_ flags: Int32) throws(ShareFault) -> OpenFile {
        try OpenFile(owning: retrying { host_share_reopen(rawValue, flags) })
    }

    func readLink() throws(ShareFault) -> [UInt8] {
        try unsafe Self.bytes(limit: Int(PATH_MAX)) { unsafe host_share_read_link(rawValue, $0, $1) }
    }

    func setMode(_ mode: UInt32) throws(ShareFault) { try checked(host_share_set_mode(rawValue, mode)) }

    /// nil: as it is.
    func setOwner(user: UInt32?, group: UInt32?) throws(ShareFault) {
        try checked(host_share_set_owner(rawValue, user ?? .max, group ?? .max))
    }

    func setTimes(access: host_share_time, modification: host_share_time) throws(ShareFault) {
        try checked(host_share_set_times(rawValue, access, modification))
    }

    func space() throws(ShareFault) -> host_share_space {
        var space = host_share_space()
        try checked(unsafe host_share_space(rawValue, &space))
        return space
    }

    func attribute(_ name: [CChar], limit: Int) throws(ShareFault) -> [UInt8] {
        try unsafe Self.bytes(limit: limit) { unsafe host_share_get_attribute(rawValue, name, $0, $1) }
    }

    func attributeSize(_ name: [CChar]) throws(ShareFault) -> Int {
        try checked(unsafe host_share_get_attribute(rawValue, name, nil, 0))
    }

    func setAttribute(_ name: [CChar], _ value: [UInt8], flags: Int32) throws(ShareFault) {
        try checked(unsafe host_share_set_attribute(rawValue, name, value, value.count, flags))
    }

    func attributeNames() throws(ShareFault) -> [UInt8] {
        try unsafe Self.bytes(limit: 64 << 10) { unsafe host_share_list_attributes(rawValue, $0, $1) }
    }

    func removeAttribute(_ name: [CChar]) throws(ShareFault) {
        try checked(unsafe host_share_remove_attribute(rawValue, name))
    }

    // MARK: Of a name in the directory that it is

    func facts(of name: FileName) throws(ShareFault) -> FileFacts { try Self.facts(rawValue, name.bytes) }

    func find(_ name: FileName) throws(ShareFault) -> PathDescriptor {
        try PathDescriptor(owning: retrying { unsafe host_share_open_name(rawValue, name.bytes) })
    }

    /// A new regular file; EEXIST where there is anything of that name.
    func create(_ name: FileName, flags: Int32, mode: UInt32) throws(ShareFault) -> OpenFile {
        try OpenFile(owning: retrying { unsafe host_share_create(rawValue, name.bytes, flags, mode) })
    }

    func makeNode(_ name: FileName, mode: UInt32) throws(ShareFault) {
        try checked(unsafe host_share_make_node(rawValue, name.bytes, mode))
    }

    func makeDirectory(_ name: FileName, mode: UInt32) throws(ShareFault) {
        try checked(unsafe host_share_make_directory(rawValue, name.bytes, mode))
    }

    /// `target` with a NUL at the end.
    func makeSymlink(_ name: FileName, to target: [CChar]) throws(ShareFault) {
        try checked(unsafe host_share_make_symlink(rawValue, name.bytes, target))
    }

    func makeLink(_ name: FileName, to file: PathDescriptor) throws(ShareFault) {
        try checked(unsafe host_share_make_link(file.rawValue, rawValue, name.bytes))
    }

    func remove(_ name: FileName, isDirectory: Bool) throws(ShareFault) {
        try checked(unsafe host_share_remove(rawValue, name.bytes, isDirectory ? 1 : 0))
    }

    func rename(
        _ name: FileName, into directory: PathDescriptor, as newName: FileName, flags: UInt32
    ) throws(ShareFault) {
        try checked(unsafe host_share_rename(rawValue, name.bytes, directory.rawValue, newName.bytes, flags))
    }

    // MARK: How

    fileprivate static func facts(_ descriptor: Int32, _ name: [CChar]) throws(ShareFault) -> FileFacts {
        var facts = FileFacts()
        try checked(unsafe host_share_facts(descriptor, name, &facts))
        return facts
    }

    /// What a call puts into memory of `limit` bytes; its result is how many those are.
    private static func bytes(
        limit: Int, _ call: (UnsafeMutableRawPointer, Int) -> Int
    ) throws(ShareFault) -> [UInt8] {
        var result = 0
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: limit) { buffer, initialized in
            if let base = buffer.baseAddress { result = unsafe call(UnsafeMutableRawPointer(base), limit) }
            initialized = min(max(result, 0), limit)
        }
        try checked(result)
        return bytes
    }
}

/// An open regular file or directory of the host; closed with its last owner.
final class OpenFile: Sendable {
    let rawValue: Int32

    init(owning result: Int) throws(ShareFault) { rawValue = Int32(truncatingIfNeeded: try checked(result)) }

    deinit { _ = host_close(rawValue) }

    var borrowed: BorrowedDescriptor { BorrowedDescriptor(rawValue) }

    func facts() throws(ShareFault) -> FileFacts { try PathDescriptor.facts(rawValue, [0]) }

    func pathDescriptor() throws(ShareFault) -> PathDescriptor {
        try PathDescriptor(owning: host_share_path_descriptor(rawValue))
    }

    func setMode(_ mode: UInt32) throws(ShareFault) { try checked(host_share_set_descriptor_mode(rawValue, mode)) }

    func truncate(to size: UInt64) throws(ShareFault) { try checked(retrying { host_ftruncate(rawValue, size) }) }

    func synchronize(onlyData: Bool) throws(ShareFault) {
        try checked(retrying { host_share_synchronize(rawValue, onlyData ? 1 : 0) })
    }

    func synchronizeAll() throws(ShareFault) { try checked(host_share_synchronize_all(rawValue)) }

    func allocate(mode: UInt32, at offset: UInt64, count: UInt64) throws(ShareFault) {
        try checked(retrying { host_share_allocate(rawValue, mode, offset, count) })
    }

    func seek(to offset: UInt64, whence: Int32) throws(ShareFault) -> UInt64 {
        UInt64(try checked(host_share_seek(rawValue, offset, whence)))
    }

    func copyRange(
        at offset: UInt64, to target: OpenFile, at targetOffset: UInt64, count: UInt64
    ) throws(ShareFault) -> Int {
        try checked(
            retrying { host_share_copy_range(rawValue, offset, target.rawValue, targetOffset, count) })
    }

    /// EAGAIN where somebody else has a lock there.
    func setLock(_ lock: host_share_lock) throws(ShareFault) {
        var lock = lock
        try checked(unsafe host_share_set_lock(rawValue, &lock))
    }

    /// The lock that would be in the way, or `lock` with F_UNLCK.
    func conflict(with lock: host_share_lock) throws(ShareFault) -> host_share_lock {
        var lock = lock
        try checked(unsafe host_share_get_lock(rawValue, &lock))
        return lock
    }

    /// The next records of getdents64(2); none at the end.
    func readDirectory(limit: Int) throws(ShareFault) -> [UInt8] {
        var result = 0
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: limit) { buffer, initialized in
            if let base = buffer.baseAddress {
                result = unsafe host_share_read_directory(rawValue, base, limit)
            }
            initialized = min(max(result, 0), limit)
        }
        try checked(result)
        return bytes
    }

    func seekDirectory(to offset: UInt64) throws(ShareFault) {
        try checked(host_share_seek_directory(rawValue, offset))
    }
}

/// Repeats a call that a signal interrupted.
private func retrying(_ call: () -> Int) -> Int {
    while true {
        let result = call()
        if result != Int(-EINTR) { return result }
    }
}
