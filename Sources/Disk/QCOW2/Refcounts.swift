internal import Host

/// Reference counts (qcow2 specification, "Host cluster management").
extension QCOW2Metadata {
    var largestRefcount: UInt64 { refcountOrder == 6 ? .max : (1 << (1 << refcountOrder)) - 1 }

    /// Where in which slice a cluster's count is; nil where its block does not exist.
    private func refcountSlice(_ cluster: UInt64) throws(DiskError) -> (slice: MetadataSlice, bit: Int)? {
        let tableIndex = cluster >> refcountBlockBits
        guard tableIndex < UInt64(refcountTable.count) else { return nil }
        let block = refcountTable[Int(tableIndex)]
        guard block != 0 else { return nil }
        guard isCluster(block) else { throw corruption("a block of reference counts is at \(block)") }
        let bit = (cluster & ((1 << refcountBlockBits) - 1)) << refcountOrder
        let byte = bit >> 3
        let start = byte & ~UInt64(refcountCache.sliceSize - 1)
        if refcountCache.isFullOfDirty { try writeRefcounts() }
        return (try refcountCache.slice(at: block + start), Int(bit - start << 3))
    }

    func refcount(_ cluster: UInt64) throws(DiskError) -> UInt64 {
        guard let (slice, bit) = try refcountSlice(cluster) else { return 0 }
        return loadRefcount(slice.bytes, bit)
    }

    private func loadRefcount(_ bytes: PageBuffer, _ bit: Int) -> UInt64 {
        switch refcountOrder {
        case 3: UInt64(bytes.load(bit >> 3) as UInt8)
        case 4: UInt64(bytes.load(bit >> 3) as UInt16)
        case 5: UInt64(bytes.load(bit >> 3) as UInt32)
        case 6: bytes.load(bit >> 3) as UInt64
        default: UInt64(bytes[bit >> 3] >> UInt8(bit & 7)) & largestRefcount
        }
    }

    private func storeRefcount(_ value: UInt64, _ bytes: PageBuffer, _ bit: Int) {
        switch refcountOrder {
        case 3: bytes.store(UInt8(truncatingIfNeeded: value), at: bit >> 3)
        case 4: bytes.store(UInt16(truncatingIfNeeded: value), at: bit >> 3)
        case 5: bytes.store(UInt32(truncatingIfNeeded: value), at: bit >> 3)
        case 6: bytes.store(value, at: bit >> 3)
        default:
            let mask = UInt8(largestRefcount) << UInt8(bit & 7)
            bytes[bit >> 3] = (bytes[bit >> 3] & ~mask) | (UInt8(truncatingIfNeeded: value) << UInt8(bit & 7))
        }
    }

    /// Sets one count; its block is made where there is none.
    func setRefcount(_ cluster: UInt64, to value: UInt64) throws(DiskError) {
        guard value <= largestRefcount else { throw tooManyReferences() }
        try prepareRefcountChange()
        var position = try refcountSlice(cluster)
        if position == nil {
            guard value != 0 else { return }
            try makeRefcountBlock(covering: cluster)
            position = try refcountSlice(cluster)
        }
        guard let (slice, bit) = position else { throw corruption("cluster \(cluster) has no reference count") }
        storeRefcount(value, slice.bytes, bit)
        refcountCache.markDirty(slice)
    }

    func addReferences(_ clusters: Range<UInt64>) throws(DiskError) {
        for cluster in clusters {
            let value = try refcount(cluster)
            guard value < largestRefcount else { throw tooManyReferences() }
            try setRefcount(cluster, to: value + 1)
        }
    }

    private func tooManyReferences() -> DiskError {
        DiskError(
            .invalid,
            "\(storage.path): a cluster would have more than \(largestRefcount) references, the most that its"
                + " \(1 << refcountOrder)-bit counts can say. Convert the image to one with larger refcount_bits")
    }

    /// Drops one reference of each cluster; what has none left is free. Only for what the medium does not refer to.
    func dropReferences(_ clusters: Range<UInt64>, isData: Bool) throws(DiskError) {
        var freed: Range<UInt64>?
        for cluster in clusters {
            let value = try refcount(cluster)
            guard value > 0 else { throw corruption("cluster \(cluster) is in use and has no reference") }
            try setRefcount(cluster, to: value - 1)
            guard value == 1 else { continue }
            if let range = freed, range.upperBound == cluster {
                freed = range.lowerBound..<cluster + 1
            } else {
                try giveBack(freed, isData: isData)
                freed = cluster..<cluster + 1
            }
        }
        try giveBack(freed, isData: isData)
    }

    private func giveBack(_ range: Range<UInt64>?, isData: Bool) throws(DiskError) {
        guard let range else { return }
        // What was not looked at yet will be found there.
        if !unscanned.contains(range.lowerBound) { addFree(range) }
        // Its space on the host may go as well; that it cannot is no trouble.
        if isData { try? storage.discard(range.lowerBound << clusterBits..<range.upperBound << clusterBits) }
    }

    private func addFree(_ range: Range<UInt64>) {
        if let last = freeRanges.last, last.upperBound == range.lowerBound {
            freeRanges[freeRanges.count - 1] = last.lowerBound..<range.upperBound
        } else {
            freeRanges.append(range)
        }
    }

    /// Drops a reference as soon as the medium does not have it any more.
    func dropLater(_ clusters: Range<UInt64>, isData: Bool) {
        if let last = pendingFrees.last, last.isData == isData, last.clusters.upperBound == clusters.lowerBound {
            pendingFrees[pendingFrees.count - 1].clusters = last.clusters.lowerBound..<clusters.upperBound
        } else {
            pendingFrees.append(PendingFree(clusters: clusters, isData: isData))
        }
    }

    func applyPendingFrees() throws(DiskError) {
        guard !pendingFrees.isEmpty else { return }
        let frees = pendingFrees
        pendingFrees = []
        // The cluster with room for more compressed bytes may be among them.
        compressedTail = 0
        for free in frees { try dropReferences(free.clusters, isData: free.isData) }
    }

    // MARK: Blocks

    /// Makes the block for the count of `cluster`. It goes to the end of the file.
    func makeRefcountBlock(covering cluster: UInt64) throws(DiskError) {
        let index = Int(cluster >> refcountBlockBits)
        if index >= refcountTable.count { try growRefcountTable(toInclude: index) }
        if refcountTable[index] != 0 { return }
        try skipUsedEnd()
        try requireRoom(1)
        let home = endCluster
        // A block's own count is in itself if it lies in what it covers, else in a block that is there or made first.
        if home >> refcountBlockBits != UInt64(index), try refcountSlice(home) == nil {
            try makeRefcountBlock(covering: home)
            return try makeRefcountBlock(covering: cluster)
        }
        endCluster = home + 1
        try prepareTable(home)
        refcountTable[index] = home << clusterBits
        dirtyRefcountTable.insert(index)
        try setRefcount(home, to: 1)
    }

    /// Moves the end behind clusters that have references although the file ends before them.
    func skipUsedEnd() throws(DiskError) {
        // Some are left by preallocation or a crash; a table that counts without end is a hostile one.
        let limit = endCluster + (1 << 20)
        while try refcount(endCluster) != 0 {
            endCluster += 1
            if endCluster > limit { throw corruption("clusters behind the end of the file have references") }
        }
    }

    /// A block device does not grow.
    func requireRoom(_ count: UInt64) throws(DiskError) {
        guard storage.isFixed, (endCluster + count) << clusterBits > knownFileSize else { return }
        throw DiskError.noRoom(storage.path)
    }

    /// A cluster at the end becomes a table of zeros.
    func prepareTable(_ cluster: UInt64) throws(DiskError) {
        guard metadataClusters.insert(cluster).inserted else {
            throw corruption("the free cluster \(cluster) holds a table")
        }
        let range = cluster << clusterBits..<(cluster + 1) << clusterBits
        // Behind the end of the file there are zeros already.
        if range.lowerBound < knownFileSize { try storage.writeZeroes(range, mayUnmap: false) }
    }

    /// A larger table at the end of the file. Its blocks and contents are on the medium before the header names it.
    private func growRefcountTable(toInclude index: Int) throws(DiskError) {
        let old = header.refcountTableOffset >> clusterBits
        let oldCount = UInt64(header.refcountTableClusters)
        var count = max(oldCount * 2, UInt64(index + 1) >> l2Bits + 1)
        // It has to cover itself and the blocks that are made for it.
        while ((endCluster + 2 * count + 64) >> refcountBlockBits) >= count << l2Bits { count += 1 }
        guard count << clusterBits <= QCOW2Header.largestRefcountTable else {
            throw DiskError(
                .unsupported,
                "\(storage.path): the file would need more than 8 MiB of reference count table. Use larger clusters")
        }
        refcountTable += [UInt64](repeating: 0, count: Int(count << l2Bits) - refcountTable.count)
        let start = try allocateTable(count)
        try extendFile()
        try refcountCache.writeDirty()
        try QCOW2Metadata.writeTable(storage, refcountTable, at: start << clusterBits)
        dirtyRefcountTable = []
        try flushStorage()
        header.refcountTableOffset = start << clusterBits
        header.refcountTableClusters = UInt32(count)
        let field = PageBuffer(count: 12)
        field.store(header.refcountTableOffset, at: 0)
        field.store(header.refcountTableClusters, at: 8)
        try storage.write(field.memory, at: HeaderField.refcountTable)
        try flushStorage()
        for cluster in old..<old + oldCount { metadataClusters.remove(cluster) }
        try dropReferences(old..<old + oldCount, isData: false)
    }
}
