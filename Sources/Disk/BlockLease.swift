public import Host

/// A range of a disk whose bytes its holder moves itself, for instance with io_uring, instead of waiting in
/// `BlockDevice.read` or `write`. Until it is released nobody changes where the range's bytes are: a discard, an
/// allocation or a snapshot that would waits, so that no cluster under a transfer is given to other data.
public struct BlockLease: Sendable {
    /// Bytes that lie in a row in one file.
    public struct Part: Sendable {
        public var memory: TransferMemory
        public var storage: any ImageStorage
        public var offset: UInt64

        public init(memory: TransferMemory, storage: any ImageStorage, offset: UInt64) {
            self.memory = memory
            self.storage = storage
            self.offset = offset
        }
    }

    /// What is left to be moved, in any order. Parts of a read that are zeros are so already. Bytes that a file does not
    /// have read as zeros.
    public internal(set) var parts: [Part]
    private var holds: [Hold] = []

    private struct Hold: Sendable {
        var disk: QCOW2Disk
        var ticket: RequestOrder.Ticket
    }

    public init(parts: [Part] = []) { self.parts = parts }

    mutating func hold(_ ticket: RequestOrder.Ticket, of disk: QCOW2Disk) {
        holds.append(Hold(disk: disk, ticket: ticket))
    }

    /// Adds a lease of a disk behind this one.
    mutating func add(_ other: BlockLease) {
        parts += other.parts
        holds += other.holds
    }

    /// Once, when no part is being moved any more.
    public func release() {
        for hold in holds { hold.disk.leave(hold.ticket) }
    }
}
