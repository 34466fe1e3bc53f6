/// What a request asks for (the FUSE protocol's enum fuse_opcode, include/uapi/linux/fuse.h of Linux); what is missing
/// is answered with ENOSYS, after which a Linux guest does not ask again.
enum Opcode: UInt32 {
    case lookup = 1
    case forget = 2
    case getAttributes = 3
    case setAttributes = 4
    case readLink = 5
    case makeSymlink = 6
    case makeNode = 8
    case makeDirectory = 9
    case unlink = 10
    case removeDirectory = 11
    case rename = 12
    case link = 13
    case open = 14
    case read = 15
    case write = 16
    case fileSystemSpace = 17
    case release = 18
    case synchronize = 20
    case setExtendedAttribute = 21
    case getExtendedAttribute = 22
    case listExtendedAttributes = 23
    case removeExtendedAttribute = 24
    case flush = 25
    case initialize = 26
    case openDirectory = 27
    case readDirectory = 28
    case releaseDirectory = 29
    case synchronizeDirectory = 30
    case getLock = 31
    case setLock = 32
    case setLockWaiting = 33
    case access = 34
    case create = 35
    case interrupt = 36
    case destroy = 38
    case batchForget = 42
    case allocate = 43
    case readDirectoryPlus = 44
    case renameWithFlags = 45
    case seek = 46
    case copyRange = 47
    case synchronizeFileSystem = 50

    /// It changes what is in the folder.
    var isChange: Bool {
        switch self {
        case .setAttributes, .makeSymlink, .makeNode, .makeDirectory, .unlink, .removeDirectory, .rename, .link, .write,
            .setExtendedAttribute, .removeExtendedAttribute, .create, .allocate, .renameWithFlags, .copyRange:
            true
        default: false
        }
    }

    /// Nobody waits for an answer.
    var hasNoReply: Bool { self == .forget || self == .batchForget || self == .interrupt }
}
