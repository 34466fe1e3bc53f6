internal import Glibc
internal import Synchronization

/// An open file or directory of the guest.
final class Handle: Sendable {
    let node: UInt64
    /// What it was opened with, without what has its effect once.
    let flags: Int32
    let isDirectory: Bool
    /// nil after a restore, until it is used.
    private let file: Mutex<OpenFile?>
    let listing = Mutex(Listing())

    /// Where a directory is being read.
    struct Listing: Sendable {
        /// Records that the kernel has given and the guest has not got.
        var records: [UInt8] = []
        var position = 0
        /// The place of the next record, as the kernel names it.
        var offset: UInt64 = 0
        /// The kernel's place is where the records end.
        var isValid = true
    }

    init(node: UInt64, flags: Int32, isDirectory: Bool, file: OpenFile?) {
        self.node = node
        self.flags = flags
        self.isDirectory = isDirectory
        self.file = Mutex(file)
        if file == nil { listing.withLock { $0.isValid = false } }
    }

    /// The open file; after a restore it is opened again.
    func opened(in nodes: NodeTable) throws(ShareFault) -> OpenFile {
        try file.withLock { (file) throws(ShareFault) in
            if let file { return file }
            let opened = try nodes.descriptor(node).open(flags)
            file = opened
            return opened
        }
    }
}

/// The handles that the guest has.
final class HandleTable: Sendable {
    private struct State: Sendable {
        var handles: [UInt64: Handle] = [:]
        var next: UInt64 = 1
    }

    private let state = Mutex(State())
    private let limit: Int

    init(limit: Int) { self.limit = limit }

    func reset() {
        let old = state.withLock { state in
            defer { state.handles = [:] }
            return state.handles
        }
        _ = old
    }

    var count: Int { state.withLock { $0.handles.count } }

    /// Asked before a file is opened.
    func requireRoom() throws(ShareFault) {
        guard state.withLock({ $0.handles.count < limit }) else { throw ShareFault(ENFILE) }
    }

    func add(_ handle: Handle) throws(ShareFault) -> UInt64 {
        try state.withLock { (state) throws(ShareFault) in
            guard state.handles.count < limit else { throw ShareFault(ENFILE) }
            let number = state.next
            state.next += 1
            state.handles[number] = handle
            return number
        }
    }

    /// A handle of the node; EBADF where it is none.
    func handle(_ number: UInt64, of node: UInt64, isDirectory: Bool) throws(ShareFault) -> Handle {
        guard let handle = state.withLock({ $0.handles[number] }), handle.node == node,
            handle.isDirectory == isDirectory
        else { throw ShareFault(EBADF) }
        return handle
    }

    func remove(_ number: UInt64, of node: UInt64, isDirectory: Bool) throws(ShareFault) {
        let removed = state.withLock { state -> Handle? in
            guard let handle = state.handles[number], handle.node == node, handle.isDirectory == isDirectory else {
                return nil
            }
            return state.handles.removeValue(forKey: number)
        }
        guard removed != nil else { throw ShareFault(EBADF) }
    }

    // MARK: Saved state

    func save() -> (handles: [ShareSnapshot.SavedHandle], next: UInt64) {
        let (handles, next) = state.withLock { ($0.handles, $0.next) }
        let saved = handles.map {
            ShareSnapshot.SavedHandle(
                number: $0, node: $1.node, flags: UInt32(bitPattern: $1.flags), isDirectory: $1.isDirectory)
        }
        return (saved.sorted { $0.number < $1.number }, next)
    }

    func restore(_ snapshot: ShareSnapshot) -> Bool {
        var fresh = State()
        guard snapshot.handles.count <= limit, snapshot.nextHandle <= ShareSnapshot.numberLimit else { return false }
        fresh.next = snapshot.nextHandle
        for saved in snapshot.handles {
            guard saved.number < snapshot.nextHandle, fresh.handles[saved.number] == nil else { return false }
            fresh.handles[saved.number] = Handle(
                node: saved.node, flags: OpenFlags.kept(saved.flags), isDirectory: saved.isDirectory, file: nil)
        }
        let restored = fresh
        state.withLock { $0 = restored }
        return true
    }
}

/// Flags of open(2) as the guest's kernel has them, which on x86-64 are the host's.
enum OpenFlags {
    /// Access mode, append and synchronous writes: all others are the guest kernel's business, or not for a host's file.
    private static let passed = O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC

    static func kept(_ flags: UInt32) -> Int32 { Int32(bitPattern: flags) & passed }
    static func has(_ flag: Int32, _ flags: UInt32) -> Bool { Int32(bitPattern: flags) & flag != 0 }
    static func isWriting(_ flags: UInt32) -> Bool { Int32(bitPattern: flags) & O_ACCMODE != O_RDONLY }
}
