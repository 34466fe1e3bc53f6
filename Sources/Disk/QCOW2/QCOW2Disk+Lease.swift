public import Host

/// Transfers that the caller makes: reads of data, zeros and what is behind this image, and writes in place.
extension QCOW2Disk {
    /// More parts than a request that is worth it has.
    private static let partLimit = 64

    public func lease(_ memory: TransferMemory, at offset: UInt64, forWriting: Bool) -> BlockLease? {
        let (end, overflow) = offset.addingReportingOverflow(UInt64(memory.count))
        guard !overflow, memory.count > 0, let ticket = tryEnter(offset..<end, exclusive: false) else { return nil }
        var lease = BlockLease()
        lease.hold(ticket, of: self)
        // The order of requests comes first, as everywhere: with it, what the tables say of the range stays so.
        guard let runs = cachedRuns(offset..<end, forWriting: forWriting),
            fill(&lease, runs, memory, at: offset)
        else {
            lease.release()
            return nil
        }
        return lease
    }

    /// What the tables in memory say of the whole range; nil where they do not, where somebody else has the lock (and
    /// perhaps waits for the medium), or where there is more to do than to move bytes.
    private func cachedRuns(_ range: Range<UInt64>, forWriting: Bool) -> [ClusterRun]? {
        guard lock.tryLock() else { return nil }
        defer { lock.unlock() }
        guard !isClosed, range.upperBound <= metadata.header.size else { return nil }
        guard !forWriting || isWritable && isReady && cache != .writethrough && metadata.canWriteAtOnce else {
            return nil
        }
        var runs: [ClusterRun] = []
        var offset = range.lowerBound
        while offset < range.upperBound {
            guard runs.count < Self.partLimit,
                let run = try? metadata.cachedRun(at: offset, limit: range.upperBound - offset),
                run.kind != .compressed
            else { return nil }
            if forWriting {
                guard run.kind == .data, run.isCopied, (try? metadata.requireNoTables(run)) != nil else { return nil }
            }
            runs.append(run)
            offset += run.count
        }
        if forWriting, let bitmaps = metadata.bitmaps {
            guard (try? bitmaps.mark(range, in: metadata)) != nil else { return nil }
        }
        return runs
    }

    private func fill(
        _ lease: inout BlockLease, _ runs: [ClusterRun], _ memory: TransferMemory, at offset: UInt64
    ) -> Bool {
        var done = 0
        for run in runs {
            let part = memory.part(done..<done + Int(run.count))
            switch run.kind {
            case .data:
                lease.parts.append(
                    BlockLease.Part(memory: part, storage: metadata.dataStorage, offset: run.hostOffset))
            case .zero, .zeroAllocated: part.clear()
            case .unallocated:
                guard fillFromBacking(&lease, part, at: offset + UInt64(done)) else { return false }
            case .compressed: return false
            }
            done += Int(run.count)
        }
        return true
    }

    /// What lies beyond the end of a backing file reads as zeros.
    private func fillFromBacking(_ lease: inout BlockLease, _ memory: TransferMemory, at offset: UInt64) -> Bool {
        guard let backing else {
            memory.clear()
            return true
        }
        let size = backing.size
        let count = offset < size ? Int(min(UInt64(memory.count), size - offset)) : 0
        memory.part(count..<memory.count).clear()
        guard count > 0 else { return true }
        guard let below = backing.lease(memory.part(0..<count), at: offset, forWriting: false) else { return false }
        lease.add(below)
        return true
    }
}

extension QCOW2Metadata {
    /// `run(at:limit:)` if it takes no access to the file; nil otherwise.
    func cachedRun(at offset: UInt64, limit: UInt64) throws(DiskError) -> ClusterRun? {
        if l1Index(offset) < l1.count {
            let table = L1Entry(rawValue: l1[l1Index(offset)]).tableOffset
            let slice = (l2Index(offset) * 8) & ~UInt64(l2Cache.sliceSize - 1)
            guard table == 0 || !l2Cache.isFullOfDirty && l2Cache.has(table + slice) else { return nil }
        }
        return try run(at: offset, limit: limit)
    }

    /// Whether writes in place need nothing but the write.
    var canWriteAtOnce: Bool {
        !isCorrupt && flushFailure == nil && bitmaps?.isMarkedInUse ?? true
    }
}
