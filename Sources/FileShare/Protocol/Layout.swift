/// Constants of the FUSE protocol (include/uapi/linux/fuse.h of Linux 6.2, protocol 7.38).
enum FUSE {
    static let major: UInt32 = 7
    static let minor: UInt32 = 38
    /// virtio-fs began with it (Linux 5.4).
    static let oldestMinor: UInt32 = 31

    static let requestHeaderSize = 40
    static let replyHeaderSize = 16
    static let entrySize = 128
    /// Of struct fuse_dirent without its name.
    static let directoryEntrySize = 24

    /// FUSE_INIT's flags.
    enum Feature {
        static let asynchronousRead: UInt32 = 1 << 0
        static let posixLocks: UInt32 = 1 << 1
        static let atomicTruncate: UInt32 = 1 << 3
        static let bigWrites: UInt32 = 1 << 5
        static let automaticInvalidation: UInt32 = 1 << 12
        static let readDirectoryPlus: UInt32 = 1 << 13
        static let readDirectoryPlusAdaptive: UInt32 = 1 << 14
        static let asynchronousDirect: UInt32 = 1 << 15
        static let parallelDirectories: UInt32 = 1 << 18
        static let maximumPages: UInt32 = 1 << 22
        static let killPrivileges: UInt32 = 1 << 28

        static let offered =
            asynchronousRead | posixLocks | atomicTruncate | bigWrites | automaticInvalidation | readDirectoryPlus
            | readDirectoryPlusAdaptive | asynchronousDirect | parallelDirectories | maximumPages | killPrivileges
    }

    /// What of an attribute FUSE_SETATTR sets.
    enum SetAttribute {
        static let mode: UInt32 = 1 << 0
        static let user: UInt32 = 1 << 1
        static let group: UInt32 = 1 << 2
        static let size: UInt32 = 1 << 3
        static let accessTime: UInt32 = 1 << 4
        static let modificationTime: UInt32 = 1 << 5
        static let handle: UInt32 = 1 << 6
        static let accessNow: UInt32 = 1 << 7
        static let modificationNow: UInt32 = 1 << 8
        static let killPrivileges: UInt32 = 1 << 11
    }

    static let getAttributesByHandle: UInt32 = 1 << 0
    static let writeKillsPrivileges: UInt32 = 1 << 2
    static let openKillsPrivileges: UInt32 = 1 << 0
    static let synchronizeOnlyData: UInt32 = 1 << 0
    static let lockIsWholeFile: UInt32 = 1 << 0
}

/// struct fuse_in_header.
struct RequestHeader: Sendable {
    var length: Int
    var opcode: UInt32
    var unique: UInt64
    var node: UInt64
    var user: UInt32
    var group: UInt32

    /// nil: there are fewer bytes than a header has.
    init?(_ bytes: [UInt8]) {
        var reader = RequestReader(bytes[...])
        guard let length = try? reader.u32(), let opcode = try? reader.u32(), let unique = try? reader.u64(),
            let node = try? reader.u64(), let user = try? reader.u32(), let group = try? reader.u32(),
            bytes.count >= FUSE.requestHeaderSize
        else { return nil }
        self.length = Int(length)
        self.opcode = opcode
        self.unique = unique
        self.node = node
        self.user = user
        self.group = group
    }
}
