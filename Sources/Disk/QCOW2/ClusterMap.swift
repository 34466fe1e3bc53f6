internal import Host

/// A part of the disk that lies in a row, in one way.
struct ClusterRun {
    var kind: L2Entry.Kind
    /// Of the run's first byte in the file; for data only.
    var hostOffset: UInt64 = 0
    /// The clusters belong to the active disk alone: they may be written where they are.
    var isCopied = false
    /// In bytes.
    var count: UInt64
    /// Of the first cluster.
    var entry = L2Entry.unallocated
}

/// The way from a place on the disk to one in the file (qcow2 specification, "Cluster mapping").
extension QCOW2Metadata {
    func l1Index(_ offset: UInt64) -> Int { Int(offset >> (clusterBits + l2Bits)) }
    func l2Index(_ offset: UInt64) -> UInt64 { (offset >> clusterBits) & ((1 << l2Bits) - 1) }

    /// The L2 table of an L1 entry, checked; nil where there is none.
    func l2Table(_ entry: L1Entry) throws(DiskError) -> UInt64? {
        let offset = entry.tableOffset
        guard offset != 0 else { return nil }
        guard isCluster(offset), entry.reservedBits == 0 else { throw corruption("an L2 table is at \(offset)") }
        return offset
    }

    /// The slice with the entry of index `index` of a table, and that entry's place in it.
    func l2Slice(_ table: UInt64, _ index: UInt64) throws(DiskError) -> (slice: MetadataSlice, position: Int) {
        if l2Cache.isFullOfDirty { try commit(durable: false) }
        let start = (index * 8) & ~UInt64(l2Cache.sliceSize - 1)
        return (try l2Cache.slice(at: table + start), Int(index * 8 - start))
    }

    /// What is at `offset`, for at most `limit` bytes, of which some may be left for the next call.
    func run(at offset: UInt64, limit: UInt64) throws(DiskError) -> ClusterRun {
        let inCluster = offset & (clusterSize - 1)
        guard l1Index(offset) < l1.count, let table = try l2Table(L1Entry(rawValue: l1[l1Index(offset)])) else {
            let span = clusterSize << l2Bits
            return ClusterRun(kind: .unallocated, count: min(limit, span - offset & (span - 1)))
        }
        let (slice, position) = try l2Slice(table, l2Index(offset))
        let first = L2Entry(rawValue: slice.bytes.load(position))
        let kind = try checkedKind(first, at: offset)
        var run = ClusterRun(
            kind: kind, hostOffset: kind == .data ? first.hostOffset + inCluster : 0,
            isCopied: first.isCopied, count: clusterSize - inCluster, entry: first)
        var next = position + 8
        while kind != .compressed, run.count < limit, next < l2Cache.sliceSize {
            let entry = L2Entry(rawValue: slice.bytes.load(next))
            guard isContinued(run, entry, kind), try checkedKind(entry, at: offset + run.count) == kind else { break }
            run.count += clusterSize
            next += 8
        }
        run.count = min(run.count, limit)
        return run
    }

    private func isContinued(_ run: ClusterRun, _ entry: L2Entry, _ kind: L2Entry.Kind) -> Bool {
        if entry.rawValue & L2Entry.compressed != 0 { return false }
        return kind == .data
            ? entry.hostOffset == run.hostOffset + run.count && entry.isCopied == run.isCopied
            : entry.isCopied == run.isCopied
    }

    /// What an entry says, if it can be.
    func checkedKind(_ entry: L2Entry, at offset: UInt64) throws(DiskError) -> L2Entry.Kind {
        let kind = entry.kind(hasDataFile: hasDataFile)
        switch kind {
        case .unallocated:
            return kind
        case .compressed:
            guard !hasDataFile else { throw corruption("there is a compressed cluster beside an external data file") }
            return kind
        case .zero, .zeroAllocated, .data:
            guard header.version >= 3 || kind == .data else {
                throw corruption("there is a zero cluster at \(offset) in an image of version 2")
            }
            guard entry.hostOffset & (clusterSize - 1) == 0 else {
                throw corruption("the data at \(offset) is said to be at \(entry.hostOffset), where no cluster starts")
            }
            guard !hasDataFile || kind == .zero || entry.hostOffset == offset & ~(clusterSize - 1) else {
                throw corruption("the data at \(offset) is said to be at \(entry.hostOffset) of the external data file")
            }
            return kind
        }
    }

    /// The L2 table for `offset`, made or copied so that it may be changed.
    func writableL2Table(for offset: UInt64) throws(DiskError) -> UInt64 {
        let index = l1Index(offset)
        guard index < l1.count else { throw corruption("the L1 table ends before \(offset)") }
        let entry = L1Entry(rawValue: l1[index])
        if let table = try l2Table(entry), entry.isCopied {
            return table
        }
        let cluster = try allocateTable(1)
        let target = cluster << clusterBits
        if let old = try l2Table(entry) {
            // Shared with a snapshot, so it was not changed in memory: what the file has is all.
            try storage.write(try storage.read(count: Int(clusterSize), at: old).memory, at: target)
            dropLater(old >> clusterBits..<old >> clusterBits + 1, isData: false)
            metadataClusters.remove(old >> clusterBits)
        }
        l1[index] = L1Entry(tableAt: target).rawValue
        dirtyL1.insert(index)
        return target
    }

    /// The entries from `offset` on, at most `count` and not beyond their slice.
    func entries(at offset: UInt64, count: Int) throws(DiskError) -> [L2Entry] {
        guard l1Index(offset) < l1.count, let table = try l2Table(L1Entry(rawValue: l1[l1Index(offset)])) else {
            return []
        }
        let (slice, position) = try l2Slice(table, l2Index(offset))
        let count = min(count, (l2Cache.sliceSize - position) / 8)
        return (0..<count).map { L2Entry(rawValue: slice.bytes.load(position + $0 * 8)) }
    }

    /// Changes entries of a table that may be changed; they are in one slice.
    func setEntries(_ entries: [L2Entry], at offset: UInt64) throws(DiskError) {
        let table = try writableL2Table(for: offset)
        let (slice, position) = try l2Slice(table, l2Index(offset))
        for (index, entry) in entries.enumerated() { slice.bytes.store(entry.rawValue, at: position + index * 8) }
        l2Cache.markDirty(slice)
    }

    /// Drops what an entry refers to, once the medium does not refer to it any more.
    func dropTarget(_ entry: L2Entry) {
        switch entry.kind(hasDataFile: hasDataFile) {
        case .unallocated, .zero: return
        case .compressed:
            dropLater(
                CompressedRange(entry, clusterBits: header.clusterBits).clusters(clusterBits: header.clusterBits),
                isData: true)
        case .data, .zeroAllocated:
            if hasDataFile { return }
            let cluster = entry.hostOffset >> clusterBits
            dropLater(cluster..<cluster + 1, isData: true)
        }
    }
}
