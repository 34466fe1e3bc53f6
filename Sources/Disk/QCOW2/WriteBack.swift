internal import Host

/// The order in which tables reach the medium. What must hold after a power cut at any moment: no table refers to what is
/// not there. So, with a flush between the steps:
///
/// 1. data, and the counts of clusters that were given out (at worst clusters that nobody refers to: leaks),
/// 2. the reference count table's new entries,
/// 3. L2 tables, which refer to data,
/// 4. L1 entries, which refer to L2 tables,
/// 5. only then the counts of clusters that 3 and 4 do not refer to any more go down.
///
/// A count in the cache is never lower than what the medium's tables need, so counts may be written at any time.
extension QCOW2Metadata {
    /// Before the first change of a count: with lazy reference counts the image says that its counts are not to be
    /// believed until it is closed (dirty bit).
    func prepareRefcountChange() throws(DiskError) {
        guard hasLazyRefcounts, !header.incompatible.contains(.dirty) else { return }
        try setDirty(true)
    }

    var hasLazyRefcounts: Bool { header.version == 3 && header.compatible.contains(.lazyRefcounts) }

    /// Sets or clears the dirty bit on the medium.
    func setDirty(_ isDirty: Bool) throws(DiskError) {
        guard header.version == 3 else { return }
        if isDirty {
            header.incompatible.insert(.dirty)
        } else {
            header.incompatible.remove(.dirty)
        }
        try storage.store(header.incompatible.rawValue, at: HeaderField.incompatible)
        try flushStorage()
    }

    var hasDirtyTables: Bool {
        l2Cache.hasDirty || !dirtyL1.isEmpty || !dirtyRefcountTable.isEmpty || refcountCache.hasDirty
    }

    /// Writes changed tables in order. With `durable` they are on the medium afterwards, and dropped clusters are free.
    func commit(durable: Bool) throws(DiskError) {
        try extendFile()
        // With the dirty bit set nobody believes the counts: they can wait for the end.
        if !header.incompatible.contains(.dirty) {
            try refcountCache.writeDirty()
            try writeRefcountTable()
        }
        if l2Cache.hasDirty {
            try flushAll()
            try l2Cache.writeDirty()
        }
        if !dirtyL1.isEmpty {
            try flushAll()
            try writeDirtyEntries(l1, &dirtyL1, at: header.l1Offset)
        }
        guard durable else { return }
        try flushAll()
        try applyPendingFrees()
    }

    /// Counts that are needed elsewhere in memory; they may go out at any time.
    func writeRefcounts() throws(DiskError) {
        try extendFile()
        try refcountCache.writeDirty()
    }

    private func writeRefcountTable() throws(DiskError) {
        guard !dirtyRefcountTable.isEmpty else { return }
        try flushStorage()
        try writeDirtyEntries(refcountTable, &dirtyRefcountTable, at: header.refcountTableOffset)
    }

    private func writeDirtyEntries(
        _ table: [UInt64], _ dirty: inout Set<Int>, at offset: UInt64
    ) throws(DiskError) {
        for index in dirty.sorted() {
            try storage.store(table[index], at: offset + UInt64(index * 8))
            dirty.remove(index)
        }
    }

    /// The last act: everything written, and the dirty bit cleared.
    func finish() throws(DiskError) {
        try commit(durable: true)
        // What became free just now, and with lazy reference counts all of them.
        try extendFile()
        try refcountCache.writeDirty()
        try writeRefcountTable()
        try flushAll()
        if header.incompatible.contains(.dirty) { try setDirty(false) }
    }

    /// Clusters that were given out may not be behind the end of the file when a table names them.
    func extendFile() throws(DiskError) {
        let needed = endCluster << clusterBits
        guard needed > knownFileSize else { return }
        if try storage.currentSize() < needed { try storage.truncate(to: needed) }
        knownFileSize = needed
    }

    func flushStorage() throws(DiskError) { try noting { () throws(DiskError) in try storage.flush() } }

    /// The data file's bytes come before the tables that say that they are valid.
    func flushAll() throws(DiskError) {
        if hasDataFile { try noting { () throws(DiskError) in try dataStorage.flush() } }
        try flushStorage()
    }

    /// After a flush that failed the kernel takes the lost pages for clean: a later flush would succeed and mean nothing.
    private func noting(_ flush: () throws(DiskError) -> Void) throws(DiskError) {
        if let flushFailure { throw flushFailure }
        do throws(DiskError) {
            try flush()
        } catch {
            flushFailure = error
            throw error
        }
    }
}
