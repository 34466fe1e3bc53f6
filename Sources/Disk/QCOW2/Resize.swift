internal import Host

extension QCOW2Disk {
    public func resize(to size: UInt64) throws(DiskError) {
        try requireWritable()
        guard size & 511 == 0 else {
            throw DiskError(.invalid, "\(path): a disk's size is a multiple of 512 bytes, and \(size) is not")
        }
        if size < self.size { try dropClusters(behind: size) }
        try alone { metadata throws(DiskError) in
            try metadata.requireResizable(to: size)
            try metadata.resize(to: size)
        }
    }

    /// What lies behind the new end goes, so that it does not come back when the disk grows again.
    private func dropClusters(behind size: UInt64) throws(DiskError) {
        try alone { metadata throws(DiskError) in try metadata.requireResizable(to: size) }
        let start = (size + clusterSize - 1) & ~(clusterSize - 1)
        guard start < self.size else { return }
        try changeClusters(start..<self.size, makesTables: false) { _, entries, _ throws(DiskError) in
            entries.map { _ in L2Entry.unallocated }
        }
        try flush()
    }
}

extension QCOW2Metadata {
    fileprivate func requireResizable(to size: UInt64) throws(DiskError) {
        try requireSound()
        guard size <= header.largestDisk else {
            throw DiskError(
                .invalid, "\(storage.path): \(size) bytes are more than clusters of \(clusterSize) allow")
        }
        if header.snapshotCount > 0, header.version == 2 || size < header.size {
            throw DiskError(
                .unsupported,
                "\(storage.path) has \(header.snapshotCount) snapshots and cannot be \(size < header.size ? "shrunk" : "resized")."
                    + " Delete them first, or convert the image")
        }
        if header.autoclear.contains(.bitmaps), try BitmapDirectory.read(self) != nil {
            throw DiskError(
                .unsupported, "\(storage.path) has bitmaps, which cannot be resized. Remove them first: qemu-img bitmap"
            )
        }
    }

    fileprivate func resize(to size: UInt64) throws(DiskError) {
        try commit(durable: true)
        let needed = Int(header.l1EntriesNeeded(for: size))
        if hasDataFile { try dataStorage.truncate(to: size) }
        guard needed > l1.count else {
            header.size = size
            try storage.store(size, at: HeaderField.size)
            return try flushStorage()
        }
        let former = tableClusters(header.l1Offset, UInt64(header.l1Size) * 8)
        l1 += [UInt64](repeating: 0, count: needed - l1.count)
        let count = (UInt64(l1.count) * 8 + clusterSize - 1) >> clusterBits
        let table = try allocateTable(count) << clusterBits
        try QCOW2Metadata.writeTable(storage, l1, at: table)
        // Its counts are on the medium before the header names it.
        try commit(durable: true)
        try switchL1(to: table, size: size)
        for cluster in former { metadataClusters.remove(cluster) }
        try dropReferences(former, isData: false)
    }
}
