internal import CHost
internal import Glibc
internal import Host
internal import Synchronization

/// What tells a file of the host from all others, also from a later one that got the same inode.
struct NodeIdentity: Hashable, Sendable {
    var device: UInt64
    var inode: UInt64
    /// Nanoseconds; 0 where the file system does not know.
    var birth: Int64

    /// By inode: names of one file lead to one node. A later file with that inode is told by `birth`.
    static func == (a: NodeIdentity, b: NodeIdentity) -> Bool { a.device == b.device && a.inode == b.inode }
    func hash(into hasher: inout Hasher) {
        hasher.combine(device)
        hasher.combine(inode)
    }

    func isSameFile(as other: NodeIdentity) -> Bool { self == other && birth == other.birth }
}

/// Where a node was found.
struct NodeLocation: Equatable, Sendable {
    var parent: UInt64
    var name: FileName
}

/// A file that the guest knows by a number.
struct Node: Sendable {
    var identity: NodeIdentity
    var type: UInt32
    /// How often the guest was told of it and has not forgotten (FUSE's nlookup).
    var lookups: UInt64 = 0
    /// Nodes that were found in it.
    var children = 0
    /// Handles of it.
    var opens = 0
    /// nil: it has lost its name, and lives as long as its descriptor.
    var location: NodeLocation?
    /// nil: found again by its location when it is needed.
    var descriptor: PathDescriptor?
    var wasUsed = false
}

/// The files that the guest knows. A node's descriptor may be closed while the node is kept: it is then opened again by
/// its name in its parent, and must be the same file, else it is ESTALE, which makes a guest look it up anew. So the
/// number of descriptors is bounded and that of nodes is the guest's memory's.
final class NodeTable: Sendable {
    static let root: UInt64 = 1

    struct State: Sendable {
        var nodes: [UInt64: Node] = [:]
        var byIdentity: [NodeIdentity: UInt64] = [:]
        var next: UInt64 = NodeTable.root + 1
        /// Nodes with descriptors.
        var openCount = 0
        /// Their numbers in the order in which they were opened, and some that are gone.
        var ring: [UInt64] = []
        var hand = 0
        /// Small numbers for the file systems below the root's.
        var devices: [UInt64: UInt64] = [:]
    }

    private let state: Mutex<State>
    private let rootDescriptor: PathDescriptor
    private let rootFacts: FileFacts
    private let nodeLimit: Int
    /// Above it descriptors are closed; a quarter more, and there is ENFILE.
    private let descriptorLimit: Int

    /// More directories above each other than any path may have (PATH_MAX / 2).
    private static let depthLimit = 2048
    private static let evictionSteps = 64

    init(root: PathDescriptor, nodeLimit: Int, descriptorLimit: Int) throws(ShareFault) {
        rootDescriptor = root
        rootFacts = try root.facts()
        self.nodeLimit = nodeLimit
        self.descriptorLimit = descriptorLimit
        state = Mutex(Self.initialState(root, rootFacts))
    }

    private static func initialState(_ descriptor: PathDescriptor, _ facts: FileFacts) -> State {
        var state = State()
        state.nodes[root] = Node(identity: facts.identity, type: facts.type, descriptor: descriptor)
        state.byIdentity[facts.identity] = root
        state.devices[facts.device] = 0
        return state
    }

    /// The guest knows the root only.
    func reset() {
        let fresh = Self.initialState(rootDescriptor, rootFacts)
        let old = state.withLock { state in
            let old = state
            state = fresh
            // Never the same number for another file.
            state.next = old.next
            return old
        }
        _ = old
    }

    var counts: (nodes: Int, descriptors: Int) { state.withLock { ($0.nodes.count, $0.openCount) } }

    /// The inode number that the guest is told: one number space for all file systems below the root.
    func inodeNumber(_ facts: FileFacts) -> UInt64 {
        if facts.device == rootFacts.device { return facts.inode }
        return state.withLock { state in
            let index = state.devices[facts.device] ?? UInt64(state.devices.count)
            state.devices[facts.device] = index
            return facts.inode ^ index << 48
        }
    }

    // MARK: Finding

    /// An O_PATH descriptor of a node.
    func descriptor(_ identifier: UInt64) throws(ShareFault) -> PathDescriptor {
        var missing: [(identifier: UInt64, location: NodeLocation, identity: NodeIdentity)] = []
        var descriptor = try state.withLock { (state) throws(ShareFault) -> PathDescriptor in
            var current = identifier
            while true {
                guard let node = state.nodes[current] else { throw ShareFault(ESTALE) }
                if let descriptor = node.descriptor {
                    if !node.wasUsed { state.nodes[current]?.wasUsed = true }
                    return descriptor
                }
                guard let location = node.location, missing.count < Self.depthLimit else { throw ShareFault(ESTALE) }
                missing.append((current, location, node.identity))
                current = location.parent
            }
        }
        for step in missing.reversed() {
            let found = try Self.staleIfGone { () throws(ShareFault) in try descriptor.find(step.location.name) }
            guard try found.facts().identity.isSameFile(as: step.identity) else { throw ShareFault(ESTALE) }
            descriptor = try install(found, step.identifier)
        }
        return descriptor
    }

    /// What a node is like now.
    func facts(_ identifier: UInt64) throws(ShareFault) -> FileFacts {
        let (known, location, identity) = try state.withLock { (state) throws(ShareFault) in
            guard let node = state.nodes[identifier] else { throw ShareFault(ESTALE) }
            return (node.descriptor, node.location, node.identity)
        }
        if let known { return try known.facts() }
        guard let location else { throw ShareFault(ESTALE) }
        let parent = try descriptor(location.parent)
        let facts = try Self.staleIfGone { () throws(ShareFault) in try parent.facts(of: location.name) }
        guard facts.identity.isSameFile(as: identity) else { throw ShareFault(ESTALE) }
        return facts
    }

    private static func staleIfGone<Result>(_ body: () throws(ShareFault) -> Result) throws(ShareFault) -> Result {
        do throws(ShareFault) {
            return try body()
        } catch {
            throw [ENOENT, ENOTDIR, ELOOP, EXDEV].contains(error.number) ? ShareFault(ESTALE) : error
        }
    }

    func type(_ identifier: UInt64) throws(ShareFault) -> UInt32 {
        guard let type = state.withLock({ $0.nodes[identifier]?.type }) else { throw ShareFault(ESTALE) }
        return type
    }

    /// Gives a node its descriptor, unless it has one by now.
    @discardableResult
    func install(_ descriptor: PathDescriptor, _ identifier: UInt64) throws(ShareFault) -> PathDescriptor {
        try state.withLock { (state) throws(ShareFault) in
            // Forgotten meanwhile: it serves this request.
            guard let node = state.nodes[identifier] else { return descriptor }
            if let known = node.descriptor { return known }
            if state.openCount >= descriptorLimit, !evict(&state), state.openCount >= descriptorLimit * 5 / 4 {
                throw ShareFault(ENFILE)
            }
            state.nodes[identifier]?.descriptor = descriptor
            state.nodes[identifier]?.wasUsed = true
            state.openCount += 1
            if state.ring.count - state.hand > 2 * state.openCount + 1024 || state.hand > 1024 {
                let live = state.ring[state.hand...].filter { state.nodes[$0]?.descriptor != nil && $0 != identifier }
                state.ring = Array(live)
                state.hand = 0
            }
            state.ring.append(identifier)
            return descriptor
        }
    }

    /// Closes a descriptor that was not used lately and can be had again.
    private func evict(_ state: inout State) -> Bool {
        for _ in 0..<Self.evictionSteps where state.hand < state.ring.count {
            let identifier = state.ring[state.hand]
            state.hand += 1
            guard let node = state.nodes[identifier], node.descriptor != nil else { continue }
            guard !node.wasUsed, node.opens == 0, node.location != nil else {
                state.nodes[identifier]?.wasUsed = false
                state.ring.append(identifier)
                continue
            }
            state.nodes[identifier]?.descriptor = nil
            state.openCount -= 1
            return true
        }
        return false
    }

    // MARK: What the guest is told and forgets

    /// The guest is told of what `name` is in `parent`: one lookup more.
    func enter(_ facts: FileFacts, parent: UInt64, name: FileName) throws(ShareFault) -> UInt64 {
        try state.withLock { (state) throws(ShareFault) in
            guard state.nodes[parent] != nil else { throw ShareFault(ESTALE) }
            let location = NodeLocation(parent: parent, name: name)
            let identity = facts.identity
            if let known = state.byIdentity[identity] {
                // The old file is gone, its inode is another's.
                if state.nodes[known]?.identity.isSameFile(as: identity) == true {
                    state.nodes[known]?.lookups &+= 1
                    if known != Self.root { relocate(known, location, &state) }
                    return known
                }
                state.byIdentity[identity] = nil
                relocate(known, nil, &state)
            }
            guard state.nodes.count < nodeLimit else { throw ShareFault(ENFILE) }
            let identifier = state.next
            state.next += 1
            state.nodes[identifier] = Node(identity: identity, type: facts.type, lookups: 1)
            state.byIdentity[identity] = identifier
            relocate(identifier, location, &state)
            return identifier
        }
    }

    func forget(_ identifier: UInt64, count: UInt64) {
        state.withLock { state in
            guard identifier != Self.root, let lookups = state.nodes[identifier]?.lookups else { return }
            state.nodes[identifier]?.lookups = lookups - min(lookups, count)
            removeUnused(identifier, &state)
        }
    }

    /// A handle of the node was opened or closed.
    func count(opens change: Int, of identifier: UInt64) {
        state.withLock { state in
            state.nodes[identifier]?.opens += change
            if change < 0 { removeUnused(identifier, &state) }
        }
    }

    private func removeUnused(_ identifier: UInt64, _ state: inout State) {
        var current = identifier
        while current != Self.root, let node = state.nodes[current], node.lookups == 0, node.children == 0,
            node.opens <= 0
        {
            state.nodes[current] = nil
            if node.descriptor != nil { state.openCount -= 1 }
            if state.byIdentity[node.identity] == current { state.byIdentity[node.identity] = nil }
            guard let parent = node.location?.parent else { return }
            state.nodes[parent]?.children -= 1
            current = parent
        }
    }

    private func relocate(_ identifier: UInt64, _ location: NodeLocation?, _ state: inout State) {
        let old = state.nodes[identifier]?.location
        guard old != location else { return }
        state.nodes[identifier]?.location = location
        if let location { state.nodes[location.parent]?.children += 1 }
        if let old {
            state.nodes[old.parent]?.children -= 1
            removeUnused(old.parent, &state)
        }
    }

    // MARK: Names that change

    /// The number of a file, if the guest knows it.
    func identifier(of facts: FileFacts) -> UInt64? {
        state.withLock { state in
            guard let known = state.byIdentity[facts.identity],
                state.nodes[known]?.identity.isSameFile(as: facts.identity) == true
            else { return nil }
            return known
        }
    }

    /// The name is no longer the node's, which lives on by its descriptor.
    func nameWasRemoved(_ identifier: UInt64, _ location: NodeLocation) {
        state.withLock { state in
            if state.nodes[identifier]?.location == location { relocate(identifier, nil, &state) }
        }
    }

    /// The node has another name now.
    func wasRenamed(_ identifier: UInt64, to location: NodeLocation) {
        state.withLock { state in
            guard identifier != Self.root, state.nodes[identifier] != nil, state.nodes[location.parent] != nil else {
                return
            }
            relocate(identifier, location, &state)
        }
    }

    // MARK: Saved state

    func save() -> (nodes: [ShareSnapshot.SavedNode], next: UInt64, rootDevice: UInt64) {
        let (nodes, next) = state.withLock { ($0.nodes, $0.next) }
        let saved = nodes.compactMap { identifier, node -> ShareSnapshot.SavedNode? in
            guard identifier != Self.root else { return nil }
            return ShareSnapshot.SavedNode(
                identifier: identifier, parent: node.location?.parent ?? 0, name: node.location?.name.text ?? [],
                device: node.identity.device, inode: node.identity.inode, birth: node.identity.birth, type: node.type,
                lookups: node.lookups)
        }
        return (saved.sorted { $0.identifier < $1.identifier }, next, rootFacts.device)
    }

    /// The nodes of a snapshot; none of them is open yet. False where no table can have been like that.
    func restore(_ snapshot: ShareSnapshot) -> Bool {
        var fresh = Self.initialState(rootDescriptor, rootFacts)
        guard snapshot.nodes.count < nodeLimit, snapshot.nextNode <= ShareSnapshot.numberLimit else { return false }
        fresh.next = snapshot.nextNode
        for saved in snapshot.nodes {
            guard saved.identifier > Self.root, saved.identifier < snapshot.nextNode,
                fresh.nodes[saved.identifier] == nil
            else { return false }
            // The number of a file system is the host's of that day; the root's is known.
            let device = saved.device == snapshot.rootDevice ? rootFacts.device : saved.device
            let identity = NodeIdentity(device: device, inode: saved.inode, birth: saved.birth)
            fresh.nodes[saved.identifier] = Node(identity: identity, type: saved.type, lookups: saved.lookups)
            if saved.parent != 0 { fresh.byIdentity[identity] = saved.identifier }
        }
        for saved in snapshot.nodes where saved.parent != 0 {
            guard fresh.nodes[saved.parent] != nil, let name = try? FileName(saved.name) else { return false }
            fresh.nodes[saved.identifier]?.location = NodeLocation(parent: saved.parent, name: name)
            fresh.nodes[saved.parent]?.children += 1
        }
        state.withLock { $0 = fresh }
        return true
    }
}
