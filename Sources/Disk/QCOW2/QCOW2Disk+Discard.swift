internal import Host

extension QCOW2Disk {
    public func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError) {
        try requireWritable()
        try requireInside(range.lowerBound, range.upperBound - range.lowerBound)
        let inner = wholeClusters(range)
        guard !inner.isEmpty, canSayZero else { return try writeRealZeroes(range) }
        try writeRealZeroes(range.lowerBound..<inner.lowerBound)
        try changeClusters(inner, makesTables: backing != nil) { metadata, entries, start throws(DiskError) in
            try self.zeroed(entries, at: start, in: metadata, mayUnmap: mayUnmap)
        }
        if inner.upperBound < range.upperBound { try writeRealZeroes(inner.upperBound..<range.upperBound) }
        try flushIfWritethrough()
    }

    public func discard(_ range: Range<UInt64>) throws(DiskError) {
        try requireWritable()
        try requireInside(range.lowerBound, range.upperBound - range.lowerBound)
        let inner = wholeClusters(range)
        // Version 2 cannot say that the backing file's content is gone.
        guard !inner.isEmpty, canSayZero else { return }
        try changeClusters(inner, makesTables: backing != nil) { metadata, entries, start throws(DiskError) in
            try self.zeroed(entries, at: start, in: metadata, mayUnmap: true)
        }
        try flushIfWritethrough()
    }

    /// The clusters whose disk content is inside the range; the disk's last one may be shorter.
    private func wholeClusters(_ range: Range<UInt64>) -> Range<UInt64> {
        let mask = clusterSize - 1
        let start = (range.lowerBound &+ mask) & ~mask
        let end = range.upperBound == size ? range.upperBound : range.upperBound & ~mask
        return start < end ? start..<end : range.lowerBound..<range.lowerBound
    }

    /// Whether there is an entry that reads as zeros: the zero flag of version 3, or no entry where nothing is behind it.
    private var canSayZero: Bool { metadata.header.version >= 3 || backing == nil }

    /// Zeros as data, except where there are zeros already.
    private func writeRealZeroes(_ range: Range<UInt64>) throws(DiskError) {
        var offset = range.lowerBound
        let zeros = PageBuffer(count: Int(min(range.upperBound - range.lowerBound, 1 << 20)))
        while offset < range.upperBound {
            let run = try run(at: offset, limit: min(range.upperBound - offset, UInt64(zeros.count)))
            let isZero =
                run.kind == .zero || run.kind == .zeroAllocated || (run.kind == .unallocated && backing == nil)
            if !isZero { try write(zeros.memory(0..<Int(run.count)), at: offset) }
            offset += run.count
        }
    }

    /// Calls `change` for the entries of the range, a slice at a time, and stores what it returns.
    ///
    /// Where there is no table, nothing is in the image; unless `makesTables`, that stays so.
    func changeClusters(
        _ range: Range<UInt64>, makesTables: Bool,
        _ change: (QCOW2Metadata, [L2Entry], UInt64) throws(DiskError) -> [L2Entry]
    ) throws(DiskError) {
        var offset = range.lowerBound
        while offset < range.upperBound {
            let wanted = Int(min((range.upperBound - offset + clusterSize - 1) / clusterSize, 512))
            let ticket = enter(offset..<offset + UInt64(wanted) * clusterSize, exclusive: true)
            defer { leave(ticket) }
            offset += try changeSlice(offset, wanted, makesTables, change) * clusterSize
        }
    }

    private func changeSlice(
        _ offset: UInt64, _ wanted: Int, _ makesTables: Bool,
        _ change: (QCOW2Metadata, [L2Entry], UInt64) throws(DiskError) -> [L2Entry]
    ) throws(DiskError) -> UInt64 {
        lock.lock()
        defer { lock.unlock() }
        try metadata.requireSound()
        let range = offset..<min(offset + UInt64(wanted) * clusterSize, metadata.header.size)
        try metadata.bitmaps?.mark(range, in: metadata)
        let span = clusterSize << metadata.l2Bits
        if !makesTables, try metadata.entries(at: offset, count: 1).isEmpty {
            // Up to the end of the table that is not there.
            return min((span - offset & (span - 1)) / clusterSize, UInt64(wanted))
        }
        _ = try metadata.writableL2Table(for: offset)
        let old = try metadata.entries(at: offset, count: wanted)
        forgetDecompressed()
        let new = try change(metadata, old, offset)
        guard !old.isEmpty else { throw metadata.corruption("there is no L2 table for \(offset)") }
        if new != old { try metadata.setEntries(new, at: offset) }
        for (before, after) in zip(old, new) where before != after && after.hostOffset != before.hostOffset {
            metadata.dropTarget(before)
        }
        try metadata.limitPendingFrees()
        return UInt64(old.count)
    }

    /// The entries of clusters that read as zeros from now on.
    private func zeroed(
        _ entries: [L2Entry], at start: UInt64, in metadata: QCOW2Metadata, mayUnmap: Bool
    ) throws(DiskError) -> [L2Entry] {
        var result: [L2Entry] = []
        for (index, entry) in entries.enumerated() {
            let offset = start + UInt64(index) * clusterSize
            let kind = try metadata.checkedKind(entry, at: offset)
            if metadata.hasDataFile { try zeroDataFile(offset, kind, mayUnmap: mayUnmap) }
            result.append(zeroed(entry, kind, mayUnmap: mayUnmap))
        }
        return result
    }

    private func zeroed(_ entry: L2Entry, _ kind: L2Entry.Kind, mayUnmap: Bool) -> L2Entry {
        let nothing = backing == nil ? L2Entry.unallocated : L2Entry.zeroes
        switch kind {
        case .zero: return entry
        case .unallocated: return nothing
        case .zeroAllocated where !mayUnmap: return entry
        case .data where !mayUnmap && entry.isCopied && metadata.header.version >= 3:
            return L2Entry(rawValue: entry.rawValue | L2Entry.zero)
        // An external data file is read by others without these tables: its clusters stay where they are.
        case .data where metadata.hasDataFile, .zeroAllocated where metadata.hasDataFile:
            return L2Entry(rawValue: entry.rawValue | L2Entry.zero)
        case .zeroAllocated, .data, .compressed: return nothing
        }
    }

    /// A raw data file has to read as zeros itself; another one may give the space back.
    private func zeroDataFile(_ offset: UInt64, _ kind: L2Entry.Kind, mayUnmap: Bool) throws(DiskError) {
        let range = offset..<min(offset + clusterSize, metadata.header.size)
        if metadata.header.autoclear.contains(.rawExternalData) {
            try metadata.dataStorage.writeZeroes(range, mayUnmap: mayUnmap)
        } else if mayUnmap, kind == .data || kind == .zeroAllocated {
            try metadata.dataStorage.discard(range)
        }
    }
}
