internal import Host

/// Which clusters of the file are given out.
extension QCOW2Metadata {
    /// Some clusters in a row, with one reference each.
    struct Allocation {
        var clusters: Range<UInt64>
        /// They were never written: they read as zeros.
        var isFresh: Bool
    }

    /// Between one and `count` clusters. The cost does not grow with the image: at most one slice of counts is looked
    /// through for free clusters before the file is made longer.
    func allocate(upTo count: UInt64) throws(DiskError) -> Allocation {
        if freeRanges.isEmpty, !unscanned.isEmpty { try scanForFree() }
        if let free = freeRanges.last {
            let taken = free.lowerBound..<min(free.upperBound, free.lowerBound + count)
            freeRanges.removeLast()
            if taken.upperBound < free.upperBound { freeRanges.append(taken.upperBound..<free.upperBound) }
            try requireNoTable(taken)
            try addReferences(taken)
            return Allocation(clusters: taken, isFresh: false)
        }
        return try allocateAtEnd(count)
    }

    private func allocateAtEnd(_ count: UInt64) throws(DiskError) -> Allocation {
        try skipUsedEnd()
        try requireRoom(1)
        let first = endCluster
        guard hasRefcountBlock(first >> refcountBlockBits) else {
            // The block takes the end itself, and the end moves.
            try makeRefcountBlock(covering: first)
            return try allocateAtEnd(count)
        }
        // As many as that block of counts describes.
        var regionEnd = (first >> refcountBlockBits + 1) << refcountBlockBits
        if storage.isFixed { regionEnd = min(regionEnd, knownFileSize >> clusterBits) }
        var last = first
        while last < min(first + count, regionEnd), try refcount(last) == 0 { last += 1 }
        guard last <= 1 << (56 - clusterBits) else {
            throw DiskError(.unsupported, "\(storage.path): the file cannot be larger than 2^56 bytes")
        }
        endCluster = last
        try addReferences(first..<last)
        let isFresh = first << clusterBits >= knownFileSize
        return Allocation(clusters: first..<last, isFresh: isFresh)
    }

    private func hasRefcountBlock(_ index: UInt64) -> Bool {
        index < UInt64(refcountTable.count) && refcountTable[Int(index)] != 0
    }

    /// `count` clusters in a row for a table, all zeros.
    func allocateTable(_ count: UInt64) throws(DiskError) -> UInt64 {
        while true {
            try skipUsedEnd()
            try requireRoom(count)
            let first = endCluster
            let blocks = first >> refcountBlockBits...(first + count - 1) >> refcountBlockBits
            guard let missing = blocks.first(where: { !hasRefcountBlock($0) }) else {
                endCluster = first + count
                for cluster in first..<first + count {
                    try setRefcount(cluster, to: 1)
                    try prepareTable(cluster)
                }
                return first
            }
            try makeRefcountBlock(covering: max(missing << refcountBlockBits, first))
        }
    }

    private func requireNoTable(_ clusters: Range<UInt64>) throws(DiskError) {
        for cluster in clusters where metadataClusters.contains(cluster) {
            throw corruption("cluster \(cluster) has no reference, and there is a table in it")
        }
    }

    /// Looks through one slice of counts for clusters that are free already.
    private func scanForFree() throws(DiskError) {
        let perSlice = (UInt64(refcountCache.sliceSize) << 3) >> refcountOrder
        let end = min(unscanned.upperBound, (unscanned.lowerBound / perSlice + 1) * perSlice)
        let part = unscanned.lowerBound..<end
        unscanned = end..<unscanned.upperBound
        let block = part.lowerBound >> refcountBlockBits
        guard block < UInt64(refcountTable.count), refcountTable[Int(block)] != 0 else { return }
        var start: UInt64?
        for cluster in part {
            let isFree = try refcount(cluster) == 0
            if isFree, start == nil { start = cluster }
            if !isFree, let first = start {
                freeRanges.append(first..<cluster)
                start = nil
            }
        }
        if let start { freeRanges.append(start..<end) }
    }
}
