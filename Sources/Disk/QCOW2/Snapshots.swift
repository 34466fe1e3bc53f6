internal import Host

/// A snapshot inside of an image, as people see it.
public struct SnapshotInfo: Equatable, Sendable {
    public var id: String
    public var name: String
    public var secondsSinceEpoch: UInt32
    public var nanoseconds: UInt32
    public var guestNanoseconds: UInt64
    public var stateSize: UInt64
    public var diskSize: UInt64
    /// -1 in the image where the guest's instructions were not counted; nil where it says nothing.
    public var instructionCount: UInt64?
}

extension QCOW2Disk {
    public func snapshots() throws(DiskError) -> [SnapshotInfo] {
        try alone { metadata throws(DiskError) in
            try SnapshotEntry.readTable(metadata.storage, metadata.header).map { entry in
                SnapshotInfo(
                    id: entry.id, name: entry.name, secondsSinceEpoch: entry.seconds, nanoseconds: entry.nanoseconds,
                    guestNanoseconds: entry.guestNanoseconds, stateSize: entry.stateSize, diskSize: entry.diskSize,
                    instructionCount: entry.extra.count >= 24 ? PageBuffer(entry.extra).load(16) : nil)
            }
        }
    }

    /// Keeps what the disk holds now under a name. `time` is since the epoch, in nanoseconds.
    public func createSnapshot(_ name: String, time: UInt64) throws(DiskError) {
        try requireWritable()
        guard !name.isEmpty, name.utf8.count <= 255 else {
            throw DiskError(.invalid, "A snapshot's name has 1 to 255 bytes")
        }
        try alone { metadata throws(DiskError) in try metadata.createSnapshot(name, time: time) }
    }

    /// The disk becomes what it was then; what it is now is lost unless another snapshot has it.
    public func applySnapshot(_ name: String) throws(DiskError) {
        try requireWritable()
        try alone { metadata throws(DiskError) in
            try metadata.bitmaps?.mark(0..<metadata.header.size, in: metadata)
            try metadata.applySnapshot(name)
        }
    }

    public func deleteSnapshot(_ name: String) throws(DiskError) {
        try requireWritable()
        try alone { metadata throws(DiskError) in try metadata.deleteSnapshot(name) }
    }

    /// Makes the disk show a snapshot, for reading only.
    public func showSnapshot(_ name: String) throws(DiskError) {
        guard !isWritable else {
            throw DiskError(.invalid, "A snapshot can only be shown of a disk opened for reading")
        }
        try alone { metadata throws(DiskError) in
            let (entry, _, _) = try metadata.findSnapshot(name)
            metadata.l1 = try metadata.readL1(of: entry)
            metadata.header.size = entry.diskSize
        }
    }
}

extension QCOW2Metadata {
    /// By id or by name.
    fileprivate func findSnapshot(
        _ name: String
    ) throws(DiskError) -> (entry: SnapshotEntry, index: Int, all: [SnapshotEntry]) {
        let all = try SnapshotEntry.readTable(storage, header)
        guard let index = all.firstIndex(where: { $0.name == name }) ?? all.firstIndex(where: { $0.id == name }) else {
            let known = all.isEmpty ? "It has none" : "It has: \(all.map(\.name).joined(separator: ", "))"
            throw DiskError(.invalid, "\(storage.path) has no snapshot \(name). \(known)")
        }
        return (all[index], index, all)
    }

    fileprivate func readL1(of entry: SnapshotEntry) throws(DiskError) -> [UInt64] {
        let end = endCluster << clusterBits
        guard entry.l1Offset & (clusterSize - 1) == 0, entry.l1Offset < end,
            entry.l1Offset + UInt64(entry.l1Size) * 8 <= end,
            UInt64(entry.l1Size) >= header.l1EntriesNeeded(for: entry.diskSize)
        else { throw corruption("snapshot \(entry.id) has an L1 table of \(entry.l1Size) at \(entry.l1Offset)") }
        return try QCOW2Metadata.readTable(storage, at: entry.l1Offset, count: Int(entry.l1Size))
    }

    fileprivate func requireSnapshotsPossible() throws(DiskError) {
        try requireSound()
        guard !hasDataFile else {
            throw DiskError(
                .unsupported, "\(storage.path): an image with an external data file cannot have snapshots inside")
        }
        try commit(durable: true)
    }

    /// Runs `body`, in which counts and tables go through states that do not fit each other: the dirty bit tells whoever
    /// comes after a crash to count again.
    private func unsettled(_ body: () throws(DiskError) -> Void) throws(DiskError) {
        try setDirty(true)
        try body()
        try finish()
    }

    // MARK: Create

    fileprivate func createSnapshot(_ name: String, time: UInt64) throws(DiskError) {
        try requireSnapshotsPossible()
        var all = try SnapshotEntry.readTable(storage, header)
        guard UInt32(all.count) < QCOW2Header.mostSnapshots else {
            throw DiskError(.invalid, "\(storage.path) has \(all.count) snapshots already, the most there can be")
        }
        guard !all.contains(where: { $0.name == name }) else {
            throw DiskError(.invalid, "\(storage.path) has a snapshot \(name) already. Choose another name")
        }
        try requireRoomForReferences()
        try unsettled { () throws(DiskError) in
            let table = try writeL1Copy()
            try changeReferences(of: l1, by: 1)
            let id = (all.compactMap { UInt64($0.id) }.max() ?? 0) &+ 1
            all.append(
                SnapshotEntry(
                    l1Offset: table, l1Size: UInt32(l1.count), seconds: UInt32(clamping: time / 1_000_000_000),
                    nanoseconds: UInt32(time % 1_000_000_000), guestNanoseconds: 0, stateSize: 0,
                    diskSize: header.size, extra: [], id: String(id), name: name))
            try settleFlags()
            try commit(durable: true)
            try writeSnapshotTable(all)
        }
    }

    /// Before anything is changed: each count has room for one more.
    private func requireRoomForReferences() throws(DiskError) {
        try forEachCluster(of: l1) { cluster throws(DiskError) in
            guard try self.refcount(cluster) < self.largestRefcount else {
                throw DiskError(
                    .invalid,
                    "\(self.storage.path): its \(1 << self.refcountOrder)-bit reference counts have no room for one more"
                        + " snapshot. Convert the image to one with larger refcount_bits")
            }
        }
    }

    private func writeL1Copy() throws(DiskError) -> UInt64 {
        let count = max((UInt64(l1.count) * 8 + clusterSize - 1) >> clusterBits, 1)
        let target = try allocateTable(count) << clusterBits
        try QCOW2Metadata.writeTable(storage, l1.map { $0 & ~L1Entry.copied }, at: target)
        // It is nobody's active table; what protects it from now on are its counts.
        for cluster in 0..<count { metadataClusters.remove(target >> clusterBits + cluster) }
        return target
    }

    // MARK: Apply, delete

    fileprivate func applySnapshot(_ name: String) throws(DiskError) {
        try requireSnapshotsPossible()
        let (entry, _, _) = try findSnapshot(name)
        let former = l1
        let formerRange = tableClusters(header.l1Offset, UInt64(header.l1Size) * 8)
        let new = try readL1(of: entry)
        try unsettled { () throws(DiskError) in
            try changeReferences(of: new, by: 1)
            l1 = new
            dirtyL1 = []
            let table = try writeL1Copy()
            try extendFile()
            try writeRefcounts()
            try flushStorage()
            try switchL1(to: table, size: entry.diskSize)
            for cluster in formerRange { metadataClusters.remove(cluster) }
            try changeReferences(of: former, by: -1)
            try dropReferences(formerRange, isData: false)
            l2Cache.forgetAll()
            try settleFlags()
            compressedTail = 0
        }
        try collectMetadataClusters()
    }

    /// The header names another L1 table and size of the disk, in one write.
    func switchL1(to table: UInt64, size: UInt64) throws(DiskError) {
        header.size = size
        header.l1Size = UInt32(l1.count)
        header.l1Offset = table
        let field = PageBuffer(count: 24)
        field.store(header.size, at: 0)
        field.store(header.cryptMethod, at: 8)
        field.store(header.l1Size, at: 12)
        field.store(header.l1Offset, at: 16)
        try storage.write(field.memory, at: HeaderField.size)
        try flushStorage()
    }

    fileprivate func deleteSnapshot(_ name: String) throws(DiskError) {
        try requireSnapshotsPossible()
        var (entry, index, all) = try findSnapshot(name)
        let table = try readL1(of: entry)
        all.remove(at: index)
        try unsettled { () throws(DiskError) in
            try writeSnapshotTable(all)
            try changeReferences(of: table, by: -1)
            try dropReferences(tableClusters(entry.l1Offset, UInt64(entry.l1Size) * 8), isData: false)
            try settleFlags()
            entry.name = ""
        }
    }

    func tableClusters(_ offset: UInt64, _ size: UInt64) -> Range<UInt64> {
        offset >> clusterBits..<(offset + max(size, 1) + clusterSize - 1) >> clusterBits
    }

    /// A new table, then the header names it, then the old one goes.
    private func writeSnapshotTable(_ entries: [SnapshotEntry]) throws(DiskError) {
        var former: Range<UInt64>?
        if header.snapshotCount > 0 {
            let size = SnapshotEntry.serialized(try SnapshotEntry.readTable(storage, header)).count
            former = tableClusters(header.snapshotsOffset, UInt64(size))
        }
        let bytes = SnapshotEntry.serialized(entries)
        guard bytes.count <= QCOW2Header.largestSnapshotTable else {
            throw DiskError(.invalid, "\(storage.path): the snapshot table would be larger than 64 MiB")
        }
        var target: UInt64 = 0
        if !entries.isEmpty {
            target = try allocateTable((UInt64(bytes.count) + clusterSize - 1) >> clusterBits) << clusterBits
            try storage.write(PageBuffer(bytes).memory, at: target)
        }
        try extendFile()
        try writeRefcounts()
        try flushStorage()
        header.snapshotCount = UInt32(entries.count)
        header.snapshotsOffset = target
        let field = PageBuffer(count: 12)
        field.store(header.snapshotCount, at: 0)
        field.store(header.snapshotsOffset, at: 4)
        try storage.write(field.memory, at: HeaderField.snapshots)
        try flushStorage()
        if let former {
            for cluster in former { metadataClusters.remove(cluster) }
            try dropReferences(former, isData: false)
        }
    }

    // MARK: Counting

    /// Calls `body` for each cluster that a tree of tables refers to, L2 tables included, once for each reference.
    private func forEachCluster(
        of l1: [UInt64], _ body: (UInt64) throws(DiskError) -> Void
    ) throws(DiskError) {
        for raw in l1 {
            guard let table = try l2Table(L1Entry(rawValue: raw)) else { continue }
            let bytes = try storage.read(count: Int(clusterSize), at: table)
            for position in stride(from: 0, to: bytes.count, by: 8) {
                let entry = L2Entry(rawValue: bytes.load(position))
                switch entry.kind(hasDataFile: false) {
                case .unallocated, .zero: continue
                case .compressed:
                    let range = CompressedRange(entry, clusterBits: header.clusterBits)
                    for cluster in range.clusters(clusterBits: header.clusterBits) { try body(cluster) }
                case .data, .zeroAllocated:
                    guard isCluster(entry.hostOffset) else { throw corruption("data is at \(entry.hostOffset)") }
                    try body(entry.hostOffset >> clusterBits)
                }
            }
            try body(table >> clusterBits)
        }
    }

    private func changeReferences(of l1: [UInt64], by change: Int) throws(DiskError) {
        try forEachCluster(of: l1) { cluster throws(DiskError) in
            if change > 0 {
                try self.addReferences(cluster..<cluster + 1)
            } else {
                try self.dropReferences(cluster..<cluster + 1, isData: true)
            }
        }
    }

    /// Sets the copied flags of the active tables by the counts ("Snapshots").
    private func settleFlags() throws(DiskError) {
        try l2Cache.writeDirty()
        for (index, raw) in l1.enumerated() {
            guard let table = try l2Table(L1Entry(rawValue: raw)) else { continue }
            let isSingle = try refcount(table >> clusterBits) == 1
            let new = table | (isSingle ? L1Entry.copied : 0)
            if new != raw {
                l1[index] = new
                dirtyL1.insert(index)
            }
            try settleFlags(inTable: table)
        }
        l2Cache.forgetAll()
    }

    private func settleFlags(inTable table: UInt64) throws(DiskError) {
        let bytes = try storage.read(count: Int(clusterSize), at: table)
        var isChanged = false
        for position in stride(from: 0, to: bytes.count, by: 8) {
            let entry = L2Entry(rawValue: bytes.load(position))
            let kind = entry.kind(hasDataFile: false)
            guard kind == .data || kind == .zeroAllocated else { continue }
            guard try (refcount(entry.hostOffset >> clusterBits) == 1) != entry.isCopied else { continue }
            bytes.store(entry.rawValue ^ L2Entry.copied, at: position)
            isChanged = true
        }
        if isChanged { try storage.write(bytes.memory, at: table) }
    }
}
