/// What a share remembers of its guest, as names: what was open is opened again when it is used, and is ESTALE where it
/// is no longer the same file.
public struct ShareSnapshot: Equatable, Sendable {
    public struct SavedNode: Equatable, Sendable {
        public var identifier: UInt64
        /// 0: it had lost its name, and cannot be found again.
        public var parent: UInt64
        public var name: [UInt8]
        public var device: UInt64
        public var inode: UInt64
        /// When it was made, in nanoseconds since 1970; 0 where the file system does not know.
        public var birth: Int64
        public var type: UInt32
        public var lookups: UInt64

        public init(
            identifier: UInt64, parent: UInt64, name: [UInt8], device: UInt64, inode: UInt64, birth: Int64,
            type: UInt32, lookups: UInt64
        ) {
            self.identifier = identifier
            self.parent = parent
            self.name = name
            self.device = device
            self.inode = inode
            self.birth = birth
            self.type = type
            self.lookups = lookups
        }
    }

    public struct SavedHandle: Equatable, Sendable {
        public var number: UInt64
        public var node: UInt64
        public var flags: UInt32
        public var isDirectory: Bool

        public init(number: UInt64, node: UInt64, flags: UInt32, isDirectory: Bool) {
            self.number = number
            self.node = node
            self.flags = flags
            self.isDirectory = isDirectory
        }
    }

    /// A range that is locked, `end` included.
    public struct SavedLock: Equatable, Sendable {
        public var node: UInt64
        public var owner: UInt64
        public var start: UInt64
        public var end: UInt64
        public var isWrite: Bool
        public var process: UInt32

        public init(node: UInt64, owner: UInt64, start: UInt64, end: UInt64, isWrite: Bool, process: UInt32) {
            self.node = node
            self.owner = owner
            self.start = start
            self.end = end
            self.isWrite = isWrite
            self.process = process
        }
    }

    /// Numbers of nodes and handles count up from 1: no share comes as far as this.
    static let numberLimit: UInt64 = 1 << 62

    public var isInitialized: Bool
    public var rootDevice: UInt64
    public var nextNode: UInt64
    public var nextHandle: UInt64
    public var nodes: [SavedNode]
    public var handles: [SavedHandle]
    public var locks: [SavedLock]

    public init(
        isInitialized: Bool, rootDevice: UInt64, nextNode: UInt64, nextHandle: UInt64, nodes: [SavedNode],
        handles: [SavedHandle], locks: [SavedLock]
    ) {
        self.isInitialized = isInitialized
        self.rootDevice = rootDevice
        self.nextNode = nextNode
        self.nextHandle = nextHandle
        self.nodes = nodes
        self.handles = handles
        self.locks = locks
    }
}
