internal import Host

/// What a check of an image found.
public struct CheckReport: Equatable, Sendable {
    /// Contradictions: something is lost or will be.
    public var corruptions = 0
    /// Clusters that nobody refers to: only space is lost.
    public var leaks = 0
    public var corruptionsFixed = 0
    public var leaksFixed = 0
    public var totalClusters: UInt64 = 0
    public var allocatedClusters: UInt64 = 0
    public var compressedClusters: UInt64 = 0
    public var fragmentedClusters: UInt64 = 0
    /// Behind the last cluster in use.
    public var imageEndOffset: UInt64 = 0
    /// The first findings, a line each.
    public var findings: [String] = []

    public var isClean: Bool { corruptions == 0 && leaks == 0 }

    mutating func note(_ text: String) {
        if findings.count < 100 { findings.append(text) }
    }
}

/// What of it is to be repaired.
public enum Repair: String, CaseIterable, Sendable {
    case leaks
    case all
}

extension QCOW2Disk {
    /// Reads all tables and compares what they say of each other.
    public func check(repair: Repair? = nil) throws(DiskError) -> CheckReport {
        if repair != nil { try requireWritable() }
        return try alone { metadata throws(DiskError) in
            if self.isReady { try metadata.commit(durable: true) }
            let report = try Self.check(metadata, repair)
            if repair != nil, report.corruptions == 0 { try metadata.forgetTrouble() }
            return report
        }
    }

    private static func check(_ metadata: QCOW2Metadata, _ repair: Repair?) throws(DiskError) -> CheckReport {
        var walk = ImageWalk(metadata, repairsAll: repair == .all)
        try walk.countAll()
        try walk.compareCounts(repair)
        try walk.compareFlags(repair)
        if repair != nil {
            try metadata.extendFile()
            try metadata.finish()
        }
        return walk.report
    }

    /// For an image whose last user had no time to close it.
    func repairAfterCrash() throws(DiskError) {
        let report = try alone { metadata throws(DiskError) in try Self.check(metadata, .all) }
        guard report.corruptions == 0 else {
            throw DiskError(
                .corrupt,
                "\(path) was not closed in order and cannot be repaired: \(report.findings.first ?? "")."
                    + " Look at it with: martlet image check")
        }
    }
}

extension QCOW2Metadata {
    /// After a repair: the marks of trouble go.
    fileprivate func forgetTrouble() throws(DiskError) {
        guard header.version == 3, header.incompatible.contains(.corrupt) || header.incompatible.contains(.dirty) else {
            return
        }
        header.incompatible.subtract([.corrupt, .dirty])
        try storage.store(header.incompatible.rawValue, at: HeaderField.incompatible)
        try flushStorage()
    }
}

/// One walk through all tables of an image.
struct ImageWalk {
    private let metadata: QCOW2Metadata
    private let repairsAll: Bool
    private var counter = ReferenceCounter()
    /// Clusters that only one table may be in.
    private var exclusive: Set<UInt64> = []
    /// The table of counts itself is wrong: it is made anew.
    private var needsNewBlocks = false
    /// Entries of the reference count table whose block is another's, too: looking at it once is enough.
    private var repeatedBlocks: Set<Int> = []
    private(set) var report = CheckReport()

    init(_ metadata: QCOW2Metadata, repairsAll: Bool) {
        self.metadata = metadata
        self.repairsAll = repairsAll
        report.totalClusters = (metadata.header.size + metadata.clusterSize - 1) / metadata.clusterSize
    }

    private mutating func corruption(_ text: String, isFixed: Bool = false) {
        if isFixed { report.corruptionsFixed += 1 } else { report.corruptions += 1 }
        report.note((isFixed ? "repaired: " : "error: ") + text)
    }

    // MARK: Counting

    mutating func countAll() throws(DiskError) {
        let header = metadata.header
        exclusive.insert(0)
        counter.add(0)
        addTable(
            "the table of reference counts", header.refcountTableOffset,
            UInt64(header.refcountTableClusters) << metadata.clusterBits)
        try countTree("the disk", &metadata.l1, at: header.l1Offset, isActive: true)
        try countSnapshots()
        try countBitmaps()
        try countBlocks()
        for cluster in exclusive.sorted() where counter[cluster] > 1 {
            corruption("cluster \(cluster) holds a table and is used \(counter[cluster]) times")
        }
    }

    /// False where it cannot be.
    @discardableResult
    private mutating func addTable(_ name: String, _ offset: UInt64, _ size: UInt64) -> Bool {
        guard size > 0 else { return true }
        let bits = metadata.clusterBits
        guard offset & (metadata.clusterSize - 1) == 0, offset != 0, offset >> bits < metadata.endCluster,
            size <= 64 << 20, (offset + size - 1) >> bits < metadata.endCluster
        else {
            corruption("\(name) is at \(offset), outside of the file or where no cluster starts")
            return false
        }
        for cluster in offset >> bits...(offset + size - 1) >> bits {
            exclusive.insert(cluster)
            counter.add(cluster)
        }
        return true
    }

    private mutating func countTree(
        _ name: String, _ l1: inout [UInt64], at l1Offset: UInt64, isActive: Bool
    ) throws(DiskError) {
        guard addTable("the L1 table of \(name)", l1Offset, UInt64(l1.count) * 8) else { return }
        var seen: Set<UInt64> = []
        for (index, raw) in l1.enumerated() where raw != 0 {
            let entry = L1Entry(rawValue: raw)
            guard entry.tableOffset != 0 else { continue }
            guard metadata.isCluster(entry.tableOffset), entry.reservedBits == 0 else {
                corruption("an L2 table of \(name) is at \(entry.tableOffset)", isFixed: isActive && repairsAll)
                if isActive, repairsAll {
                    l1[index] = 0
                    metadata.dirtyL1.insert(index)
                }
                continue
            }
            counter.add(entry.tableOffset >> metadata.clusterBits)
            guard seen.insert(entry.tableOffset).inserted else {
                corruption("two L1 entries of \(name) name the L2 table at \(entry.tableOffset)")
                continue
            }
            try countTable(entry.tableOffset, of: name, isActive: isActive)
        }
    }

    private mutating func countTable(_ table: UInt64, of name: String, isActive: Bool) throws(DiskError) {
        let bytes = try metadata.storage.read(count: Int(metadata.clusterSize), at: table)
        var isChanged = false
        var next: UInt64 = 0
        for position in stride(from: 0, to: bytes.count, by: 8) {
            var entry = L2Entry(rawValue: bytes.load(position))
            guard entry.rawValue != 0 else { continue }
            if entry.rawValue & L2Entry.compressed == 0, entry.rawValue & L2Entry.reserved != 0 {
                corruption("an L2 entry of \(name) has reserved bits set", isFixed: isActive && repairsAll)
                entry.rawValue &= ~L2Entry.reserved
                bytes.store(entry.rawValue, at: position)
                isChanged = repairsAll && isActive
            }
            if !countEntry(entry, of: name, isActive: isActive, next: &next), repairsAll, isActive {
                let replacement = metadata.header.version >= 3 ? L2Entry.zeroes : .unallocated
                bytes.store(replacement.rawValue, at: position)
                isChanged = true
            }
        }
        guard isChanged else { return }
        metadata.l2Cache.forget(table, count: metadata.clusterSize)
        try metadata.storage.write(bytes.memory, at: table)
    }

    /// False where the entry cannot be.
    private mutating func countEntry(
        _ entry: L2Entry, of name: String, isActive: Bool, next: inout UInt64
    ) -> Bool {
        let size = metadata.clusterSize
        switch entry.kind(hasDataFile: metadata.hasDataFile) {
        case .unallocated, .zero: return true
        case .compressed:
            let bits = metadata.header.clusterBits
            let clusters = CompressedRange(entry, clusterBits: bits).clusters(clusterBits: bits)
            guard clusters.upperBound <= metadata.endCluster, clusters.lowerBound > 0, !entry.isCopied else {
                corruption(
                    "a compressed cluster of \(name) is at \(clusters.lowerBound)", isFixed: isActive && repairsAll)
                return false
            }
            for cluster in clusters { counter.add(cluster) }
            if isActive {
                report.allocatedClusters += 1
                report.compressedClusters += 1
                report.fragmentedClusters += 1
            }
            return true
        case .data, .zeroAllocated:
            let offset = entry.hostOffset
            if isActive {
                report.allocatedClusters += 1
                if next != 0, offset != next { report.fragmentedClusters += 1 }
                next = offset + size
            }
            if metadata.hasDataFile { return true }
            guard metadata.isCluster(offset) else {
                corruption("data of \(name) is at \(offset)", isFixed: isActive && repairsAll)
                return false
            }
            counter.add(offset >> metadata.clusterBits)
            return true
        }
    }

    private mutating func countSnapshots() throws(DiskError) {
        let header = metadata.header
        guard header.snapshotCount > 0 else { return }
        let snapshots = try SnapshotEntry.readTable(metadata.storage, header)
        addTable("the snapshot table", header.snapshotsOffset, UInt64(SnapshotEntry.serialized(snapshots).count))
        for snapshot in snapshots {
            let size = UInt64(snapshot.l1Size) * 8
            guard snapshot.l1Offset >> metadata.clusterBits < metadata.endCluster,
                snapshot.l1Offset + size <= metadata.endCluster << metadata.clusterBits
            else {
                corruption("the L1 table of snapshot \(snapshot.id) is at \(snapshot.l1Offset)")
                continue
            }
            var l1 = try QCOW2Metadata.readTable(metadata.storage, at: snapshot.l1Offset, count: Int(snapshot.l1Size))
            try countTree("snapshot \(snapshot.id)", &l1, at: snapshot.l1Offset, isActive: false)
        }
    }

    private mutating func countBitmaps() throws(DiskError) {
        guard let directory = try BitmapDirectory.read(metadata) else { return }
        addTable("the bitmap directory", directory.offset, directory.size)
        for bitmap in directory.entries {
            guard addTable("a bitmap's table", bitmap.tableOffset, UInt64(bitmap.tableSize) * 8) else { continue }
            for entry in try bitmap.readTable(metadata) where entry & L2Entry.offsetMask != 0 {
                addTable("a bitmap's data", entry & L2Entry.offsetMask, metadata.clusterSize)
            }
        }
    }

    private mutating func countBlocks() throws(DiskError) {
        for (index, entry) in metadata.refcountTable.enumerated() where entry != 0 {
            guard entry & 511 == 0, metadata.isCluster(entry) else {
                needsNewBlocks = true
                corruption("a block of reference counts is at \(entry)", isFixed: repairsAll)
                if repairsAll { metadata.refcountTable[index] = 0 }
                continue
            }
            let cluster = entry >> metadata.clusterBits
            if counter[cluster] > 0 {
                needsNewBlocks = true
                repeatedBlocks.insert(index)
            }
            exclusive.insert(cluster)
            counter.add(cluster)
        }
    }

    // MARK: Comparing

    mutating func compareCounts(_ repair: Repair?) throws(DiskError) {
        if repairsAll, needsNewBlocks { try dropBlocks() }
        // Block by block: what no block counts and nobody refers to needs no look, and a sparse file has much of it.
        let perBlock = UInt64(1) << metadata.refcountBlockBits
        for (index, block) in metadata.refcountTable.enumerated() where block != 0 && !repeatedBlocks.contains(index) {
            let first = UInt64(index) * perBlock
            for cluster in first..<first + perBlock { try compareCount(cluster, repair) }
        }
        for cluster in counter.clusters where !hasBlock(cluster) { try compareCount(cluster, repair) }
    }

    private func hasBlock(_ cluster: UInt64) -> Bool {
        let index = cluster >> metadata.refcountBlockBits
        return index < UInt64(metadata.refcountTable.count) && metadata.refcountTable[Int(index)] != 0
    }

    private mutating func compareCount(_ cluster: UInt64, _ repair: Repair?) throws(DiskError) {
        let stored = try metadata.refcount(cluster)
        let counted = counter[cluster]
        if stored != 0 || counted != 0 {
            report.imageEndOffset = max(report.imageEndOffset, (cluster + 1) << metadata.clusterBits)
        }
        if stored > counted {
            try noteLeak(cluster, stored, counted, repair)
        } else if stored < counted {
            try noteMissing(cluster, stored, counted)
        }
    }

    private mutating func noteLeak(
        _ cluster: UInt64, _ stored: UInt64, _ counted: UInt64, _ repair: Repair?
    ) throws(DiskError) {
        report.note(
            "\(repair == nil ? "leak" : "repaired"): cluster \(cluster) has \(stored) references, \(counted) are used")
        guard repair != nil else {
            report.leaks += 1
            return
        }
        report.leaksFixed += 1
        try metadata.setRefcount(cluster, to: counted)
    }

    private mutating func noteMissing(_ cluster: UInt64, _ stored: UInt64, _ counted: UInt64) throws(DiskError) {
        corruption("cluster \(cluster) has \(stored) references, \(counted) are used", isFixed: repairsAll)
        if repairsAll { try metadata.setRefcount(cluster, to: counted) }
    }

    /// All blocks anew, at the end of the file: the old ones are in each other's way.
    private mutating func dropBlocks() throws(DiskError) {
        metadata.endCluster = max(metadata.endCluster, counter.end)
        for index in metadata.refcountTable.indices where metadata.refcountTable[index] != 0 {
            metadata.refcountTable[index] = 0
            metadata.dirtyRefcountTable.insert(index)
        }
        metadata.refcountCache.forgetAll()
        // The old blocks are not counted any more.
        counter = ReferenceCounter()
        exclusive = []
        repeatedBlocks = []
        let before = report
        try countAll()
        report = before
    }

    // MARK: The copied flag

    /// It says that there is one reference; only the active tables' flags mean something.
    mutating func compareFlags(_ repair: Repair?) throws(DiskError) {
        for (index, raw) in metadata.l1.enumerated() {
            let entry = L1Entry(rawValue: raw)
            guard metadata.isCluster(entry.tableOffset), entry.reservedBits == 0 else { continue }
            let isSingle = try metadata.refcount(entry.tableOffset >> metadata.clusterBits) == 1
            if isSingle != entry.isCopied {
                corruption("the copied flag of the L2 table at \(entry.tableOffset) is wrong", isFixed: repairsAll)
                if repairsAll {
                    metadata.l1[index] = entry.tableOffset | (isSingle ? L1Entry.copied : 0)
                    metadata.dirtyL1.insert(index)
                }
            }
            try compareFlags(inTable: entry.tableOffset)
        }
    }

    private mutating func compareFlags(inTable table: UInt64) throws(DiskError) {
        guard !metadata.hasDataFile else { return }
        let bytes = try metadata.storage.read(count: Int(metadata.clusterSize), at: table)
        var isChanged = false
        for position in stride(from: 0, to: bytes.count, by: 8) {
            let entry = L2Entry(rawValue: bytes.load(position))
            let kind = entry.kind(hasDataFile: false)
            guard kind == .data || kind == .zeroAllocated, metadata.isCluster(entry.hostOffset) else { continue }
            let isSingle = try metadata.refcount(entry.hostOffset >> metadata.clusterBits) == 1
            guard isSingle != entry.isCopied else { continue }
            corruption("the copied flag of the data at \(entry.hostOffset) is wrong", isFixed: repairsAll)
            bytes.store(entry.rawValue ^ L2Entry.copied, at: position)
            isChanged = true
        }
        guard isChanged, repairsAll else { return }
        metadata.l2Cache.forget(table, count: metadata.clusterSize)
        try metadata.storage.write(bytes.memory, at: table)
    }
}
