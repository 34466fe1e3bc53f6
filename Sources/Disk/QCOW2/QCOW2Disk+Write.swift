public import Host

extension QCOW2Disk {
    public func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        try requireWritable()
        try requireInside(offset, UInt64(memory.count))
        var done = 0
        while done < memory.count {
            let rest = memory.part(done..<memory.count)
            let inPlace = try writeInPlace(rest, at: offset + UInt64(done))
            done += inPlace
            if inPlace == 0 { done += try writeAllocating(rest, at: offset + UInt64(done)) }
        }
        try flushIfWritethrough()
    }

    /// Writes as far as clusters belong to this disk alone; 0 where the first one does not.
    private func writeInPlace(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) -> Int {
        let range = offset..<offset + UInt64(memory.count)
        let ticket = enter(range, exclusive: false)
        defer { leave(ticket) }
        guard let run = try runInPlace(range) else { return 0 }
        try metadata.dataStorage.write(memory.part(0..<Int(run.count)), at: run.hostOffset)
        return Int(run.count)
    }

    private func runInPlace(_ range: Range<UInt64>) throws(DiskError) -> ClusterRun? {
        lock.lock()
        defer { lock.unlock() }
        try metadata.requireSound()
        let run = try metadata.run(at: range.lowerBound, limit: range.upperBound - range.lowerBound)
        guard run.kind == .data, run.isCopied else { return nil }
        try metadata.requireNoTables(run)
        try metadata.bitmaps?.mark(range, in: metadata)
        return run
    }

    // MARK: Allocating

    /// What was decided under the lock about clusters that are to be written anew.
    private struct Plan {
        /// On the disk; a whole number of clusters.
        var guest: Range<UInt64>
        var hostOffset: UInt64
        var isFresh: Bool
        /// The host clusters were the disk's already, kept ready for it.
        var isReused: Bool
        var old: [L2Entry]
    }

    /// Writes the first clusters of the range to new places; how many bytes of `memory` that were.
    private func writeAllocating(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) -> Int {
        let range = offset..<offset + UInt64(memory.count)
        let ticket = enter(range, exclusive: true)
        defer { leave(ticket) }
        // Somebody may have been here since the look without the range.
        if let run = try runInPlace(range) {
            try metadata.dataStorage.write(memory.part(0..<Int(run.count)), at: run.hostOffset)
            return Int(run.count)
        }
        let plan = try plan(range)
        let end = min(range.upperBound, plan.guest.upperBound)
        let part = memory.part(0..<Int(end - offset))
        do throws(DiskError) {
            try write(part, at: offset, to: plan)
        } catch {
            withdraw(plan)
            throw error
        }
        try establish(plan)
        return part.count
    }

    private func plan(_ range: Range<UInt64>) throws(DiskError) -> Plan {
        lock.lock()
        defer { lock.unlock() }
        try metadata.bitmaps?.mark(range, in: metadata)
        _ = try metadata.writableL2Table(for: range.lowerBound)
        let start = range.lowerBound & ~(clusterSize - 1)
        let wanted = Int((range.upperBound - start + clusterSize - 1) / clusterSize)
        let entries = try metadata.entries(at: start, count: wanted)
        let old = try metadata.sameTreatment(entries, at: start)
        guard let first = old.first else { throw metadata.corruption("there is no L2 table for \(start)") }
        if metadata.hasDataFile {
            return Plan(guest: guest(start, old.count), hostOffset: start, isFresh: false, isReused: true, old: old)
        }
        if first.isCopied, first.kind(hasDataFile: false) == .zeroAllocated {
            return Plan(
                guest: guest(start, old.count), hostOffset: first.hostOffset, isFresh: false, isReused: true, old: old)
        }
        let allocation = try metadata.allocate(upTo: UInt64(old.count))
        return Plan(
            guest: guest(start, allocation.clusters.count), hostOffset: allocation.clusters.lowerBound * clusterSize,
            isFresh: allocation.isFresh, isReused: false, old: Array(old.prefix(allocation.clusters.count)))
    }

    private func guest(_ start: UInt64, _ count: Int) -> Range<UInt64> { start..<start + UInt64(count) * clusterSize }

    /// The data, with what was around it in its first and last cluster.
    private func write(_ memory: TransferMemory, at offset: UInt64, to plan: Plan) throws(DiskError) {
        let end = offset + UInt64(memory.count)
        let head = try surrounding(plan.guest.lowerBound..<offset, plan.old.first, plan)
        let tail = try surrounding(end..<plan.guest.upperBound, plan.old.last, plan)
        let whole = TransferMemory(joining: [head?.memory, memory, tail?.memory].compactMap(\.self))
        let start = head == nil ? offset : plan.guest.lowerBound
        try metadata.dataStorage.write(whole, at: plan.hostOffset + (start - plan.guest.lowerBound))
    }

    /// What a part of a cluster held before; nil where there is nothing, or zeros that the new place has already.
    private func surrounding(
        _ range: Range<UInt64>, _ old: L2Entry?, _ plan: Plan
    ) throws(DiskError) -> PageBuffer? {
        guard !range.isEmpty, let old else { return nil }
        let kind = old.kind(hasDataFile: metadata.hasDataFile)
        let isZero = kind == .zero || kind == .zeroAllocated || (kind == .unallocated && backing == nil)
        if isZero, plan.isFresh { return nil }
        let buffer = PageBuffer(count: Int(range.upperBound - range.lowerBound))
        if !isZero { try readMapped(into: buffer.memory, at: range.lowerBound) }
        return buffer
    }

    /// The data is there: the tables may say so.
    private func establish(_ plan: Plan) throws(DiskError) {
        lock.lock()
        defer { lock.unlock() }
        let entries = plan.old.indices.map { L2Entry(dataAt: plan.hostOffset + UInt64($0) * clusterSize) }
        try metadata.setEntries(entries, at: plan.guest.lowerBound)
        guard !plan.isReused else { return }
        for entry in plan.old { metadata.dropTarget(entry) }
        try metadata.limitPendingFrees()
    }

    /// The data could not be written: the clusters are free again, nobody knew of them.
    private func withdraw(_ plan: Plan) {
        guard !plan.isReused else { return }
        lock.lock()
        defer { lock.unlock() }
        let first = plan.hostOffset / clusterSize
        // If even that fails they are lost to the image, and nothing else is.
        try? metadata.dropReferences(first..<first + UInt64(plan.old.count), isData: true)
    }
}

extension QCOW2Metadata {
    /// Data may not be written over a table.
    func requireNoTables(_ run: ClusterRun) throws(DiskError) {
        guard !hasDataFile else { return }
        for cluster in run.hostOffset >> clusterBits...(run.hostOffset + run.count - 1) >> clusterBits
        where metadataClusters.contains(cluster) {
            throw corruption("data is said to be in cluster \(cluster), and a table is there")
        }
    }

    /// The first entries that can be dealt with in one way: places kept ready in a row, or ones that need a new place.
    func sameTreatment(_ entries: [L2Entry], at offset: UInt64) throws(DiskError) -> [L2Entry] {
        var result: [L2Entry] = []
        var isReady = false
        for (index, entry) in entries.enumerated() {
            let kind = try checkedKind(entry, at: offset + UInt64(index) << clusterBits)
            let mayStay = entry.isCopied && (kind == .data || kind == .zeroAllocated)
            if let first = result.first {
                guard mayStay == isReady, kind != .data || !mayStay else { break }
                if mayStay, entry.hostOffset != first.hostOffset + UInt64(index) << clusterBits { break }
            } else {
                isReady = mayStay
            }
            result.append(entry)
        }
        return result
    }

    /// So that a guest that only discards does not fill the memory.
    func limitPendingFrees() throws(DiskError) {
        if pendingFrees.count >= 8192 { try commit(durable: true) }
    }
}
