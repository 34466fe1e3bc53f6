internal import Host

/// The tables of an open qcow2 image: which host cluster holds what, and which are free. Not thread safe: QCOW2Disk calls
/// it under its lock.
final class QCOW2Metadata {
    let storage: any ImageStorage
    /// Where the disk's own bytes are: `storage`, or the external data file.
    let dataStorage: any ImageStorage
    let hasDataFile: Bool
    var header: QCOW2Header
    let clusterBits: UInt64
    let clusterSize: UInt64
    /// How many entries of an L2 table, and of a refcount block, as a power of two.
    let l2Bits: UInt64
    let refcountBlockBits: UInt64
    let refcountOrder: UInt64

    var l1: [UInt64]
    var dirtyL1: Set<Int> = []
    let l2Cache: MetadataCache

    var refcountTable: [UInt64]
    var dirtyRefcountTable: Set<Int> = []
    let refcountCache: MetadataCache

    /// Clusters that hold tables; no data may go there.
    var metadataClusters: Set<UInt64> = []
    var freeRanges: [Range<UInt64>] = []
    /// Clusters that were in the file when it was opened, and whose reference counts were not looked at yet.
    var unscanned: Range<UInt64>
    /// Behind every cluster in use.
    var endCluster: UInt64
    /// The file's size as far as it was set.
    var knownFileSize: UInt64
    /// References that were dropped, but are still in the tables on the medium.
    var pendingFrees: [PendingFree] = []
    /// Where the next compressed cluster's bytes go, if there is room left in a cluster.
    var compressedTail: UInt64 = 0

    /// Set when the tables turned out to contradict each other: nothing is written any more.
    private(set) var isCorrupt = false
    /// Set when a flush failed: what is on the medium is not known any more.
    var flushFailure: DiskError?
    var bitmaps: BitmapTracker?

    /// Clusters whose reference is to be dropped once the medium does not have it any more.
    struct PendingFree {
        var clusters: Range<UInt64>
        var isData: Bool
    }

    init(
        _ storage: any ImageStorage, dataStorage: (any ImageStorage)?, header: QCOW2Header, cacheSize: Int
    ) throws(DiskError) {
        self.storage = storage
        self.dataStorage = dataStorage ?? storage
        hasDataFile = dataStorage != nil
        self.header = header
        clusterBits = UInt64(header.clusterBits)
        clusterSize = header.clusterSize
        l2Bits = clusterBits - 3
        refcountOrder = UInt64(header.refcountOrder)
        refcountBlockBits = clusterBits + 3 - refcountOrder
        knownFileSize = try storage.currentSize()
        endCluster = knownFileSize >> clusterBits + (knownFileSize & (clusterSize - 1) == 0 ? 0 : 1)
        unscanned = 0..<endCluster
        l1 = try QCOW2Metadata.readTable(storage, at: header.l1Offset, count: Int(header.l1Size))
        refcountTable = try QCOW2Metadata.readTable(
            storage, at: header.refcountTableOffset, count: Int(UInt64(header.refcountTableClusters) << l2Bits))
        l2Cache = MetadataCache(storage, clusterSize: clusterSize, capacity: cacheSize)
        refcountCache = MetadataCache(storage, clusterSize: clusterSize, capacity: max(cacheSize / 4, 1 << 16))
    }

    /// A table of big-endian numbers whose size the header's parser has bounded.
    static func readTable(_ storage: any ImageStorage, at offset: UInt64, count: Int) throws(DiskError) -> [UInt64] {
        guard count > 0 else { return [] }
        var result: [UInt64] = []
        result.reserveCapacity(count)
        // In parts, so that a large table is not in memory twice.
        var done = 0
        while done < count {
            let part = min(count - done, 1 << 16)
            let bytes = try storage.read(count: part * 8, at: offset + UInt64(done * 8))
            for index in 0..<part { result.append(bytes.load(index * 8)) }
            done += part
        }
        return result
    }

    static func writeTable(_ storage: any ImageStorage, _ table: [UInt64], at offset: UInt64) throws(DiskError) {
        var done = 0
        while done < table.count {
            let part = min(table.count - done, 1 << 16)
            let bytes = PageBuffer(count: part * 8)
            for index in 0..<part { bytes.store(table[done + index], at: index * 8) }
            try storage.write(bytes.memory, at: offset + UInt64(done * 8))
            done += part
        }
    }

    /// On a block device, whose own end says nothing, the image ends behind the last cluster with a reference. To be called
    /// once the counts are right.
    func findEndOnDevice() throws(DiskError) {
        guard storage.isFixed else { return }
        // Until then, where the device ends.
        endCluster = try lastReference().map { $0 + 1 } ?? 1
        unscanned = 0..<endCluster
    }

    private func lastReference() throws(DiskError) -> UInt64? {
        let blocks = min(endCluster >> refcountBlockBits + 1, UInt64(refcountTable.count))
        for index in (0..<blocks).reversed() where refcountTable[Int(index)] != 0 {
            let first = index << refcountBlockBits
            for cluster in (first..<min(endCluster, first + 1 << refcountBlockBits)).reversed()
            where try refcount(cluster) != 0 {
                return cluster
            }
        }
        return nil
    }

    // MARK: Corruption

    /// Marks the image as corrupt, so that nobody writes to it before it is repaired, and is the error to throw.
    func corruption(_ text: String) -> DiskError {
        if !isCorrupt, storage.isWritable {
            isCorrupt = true
            if header.version == 3 {
                header.incompatible.insert(.corrupt)
                // The trouble at hand is worse than that the mark could not be made.
                try? storage.store(header.incompatible.rawValue, at: HeaderField.incompatible)
                try? storage.flush()
            }
        }
        return DiskError(
            .corrupt, "\(storage.path) is corrupt: \(text). Stop its user and run: martlet image check --repair all")
    }

    func requireSound() throws(DiskError) {
        if isCorrupt {
            throw DiskError(
                .readOnly,
                "\(storage.path) is corrupt and takes no writes. Stop its user and run: martlet image check --repair all"
            )
        }
        if let flushFailure { throw flushFailure }
    }

    /// Notes every cluster with a table in it, and refuses an image in which two tables share one.
    func collectMetadataClusters() throws(DiskError) {
        metadataClusters = [0]
        try addMetadata("the L1 table", header.l1Offset, UInt64(header.l1Size) * 8)
        try addMetadata(
            "the table of reference counts", header.refcountTableOffset,
            UInt64(header.refcountTableClusters) << clusterBits)
        if header.snapshotCount > 0 { try addMetadata("the snapshot table", header.snapshotsOffset, 1) }
        for entry in refcountTable where entry != 0 {
            guard isCluster(entry & ~511), entry & 511 == 0 else {
                throw corruption("a block of reference counts is at \(entry)")
            }
            try addMetadata("a block of reference counts", entry, 1)
        }
        for raw in l1 where raw != 0 {
            let entry = L1Entry(rawValue: raw)
            guard entry.tableOffset != 0 else { continue }
            guard isCluster(entry.tableOffset), entry.reservedBits == 0 else {
                throw corruption("an L2 table is at \(entry.tableOffset)")
            }
            try addMetadata("an L2 table", entry.tableOffset, 1)
        }
    }

    private func addMetadata(_ name: String, _ offset: UInt64, _ size: UInt64) throws(DiskError) {
        guard size > 0 else { return }
        let first = offset >> clusterBits
        for cluster in first...(offset + size - 1) >> clusterBits {
            guard metadataClusters.insert(cluster).inserted else {
                throw corruption("\(name) at \(offset) overlaps another table")
            }
        }
    }

    /// Whether `offset` is where a cluster of the file starts that is not the header.
    func isCluster(_ offset: UInt64) -> Bool {
        offset & (clusterSize - 1) == 0 && offset != 0 && offset >> clusterBits < endCluster
    }
}
