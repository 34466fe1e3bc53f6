internal import CCompression
public import Host

extension CompressionKind {
    /// A cluster as a compressed stream; nil where that is not shorter.
    func compress(_ cluster: PageBuffer) -> PageBuffer? {
        // A stream that is not shorter than the cluster is of no use.
        let target = PageBuffer(count: cluster.count - 1)
        // SAFETY: both sizes are passed on; the C side stays inside them.
        let size = unsafe target.fill(from: cluster, 0..<cluster.count) { source, count, target, capacity in
            switch self {
            case .zlib: unsafe compression_deflate(source, count, target, capacity)
            case .zstd: unsafe compression_zstd_compress(source, count, target, capacity)
            }
        }
        guard size > 0 else { return nil }
        let result = PageBuffer(count: size)
        result.memory.copy(from: target)
        return result
    }

    /// The cluster whose stream `input` starts with; nil where it is none.
    func decompress(_ input: PageBuffer, clusterSize: Int) -> PageBuffer? {
        let target = PageBuffer(count: clusterSize)
        // SAFETY: both sizes are passed on; the C side stays inside them.
        let size = unsafe target.fill(from: input, 0..<input.count) { source, count, target, capacity in
            switch self {
            case .zlib: unsafe compression_inflate(source, count, target, capacity)
            case .zstd: unsafe compression_zstd_decompress(source, count, target, capacity)
            }
        }
        return size == clusterSize ? target : nil
    }
}

extension QCOW2Disk {
    /// Writes one cluster compressed where that makes it shorter. `cluster` is a whole cluster, also at the disk's end,
    /// where zeros fill it up. The place must not be in the image yet; otherwise it is written as it is.
    public func writeCompressed(_ cluster: PageBuffer, at offset: UInt64) throws(DiskError) {
        try requireWritable()
        guard UInt64(cluster.count) == clusterSize, offset & (clusterSize - 1) == 0, offset < size else {
            throw DiskError(.invalid, "\(path): compressed writes are of whole clusters of \(clusterSize) bytes")
        }
        guard !metadata.hasDataFile else {
            throw DiskError(.unsupported, "\(path): an image with an external data file has no compressed clusters")
        }
        let isNew = try run(at: offset, limit: clusterSize).entry == .unallocated
        guard isNew, let stream = metadata.header.compression.compress(cluster) else {
            return try write(cluster.memory(0..<Int(min(clusterSize, size - offset))), at: offset)
        }
        let ticket = enter(offset..<offset + clusterSize, exclusive: true)
        defer { leave(ticket) }
        guard let entry = try allocateCompressed(offset, stream.count) else {
            throw DiskError(.unsupported, "\(path): the file is too large for compressed clusters of this size")
        }
        let range = CompressedRange(entry, clusterBits: metadata.header.clusterBits)
        try metadata.storage.write(stream.memory, at: range.offset)
        lock.lock()
        defer { lock.unlock() }
        try metadata.setEntries([entry], at: offset)
    }

    private func allocateCompressed(_ offset: UInt64, _ count: Int) throws(DiskError) -> L2Entry? {
        lock.lock()
        defer { lock.unlock() }
        try metadata.requireSound()
        forgetDecompressed()
        try metadata.bitmaps?.mark(offset..<min(offset + clusterSize, metadata.header.size), in: metadata)
        _ = try metadata.writableL2Table(for: offset)
        let place = try metadata.allocateBytes(UInt64(count))
        return CompressedRange.entry(offset: place, count: count, clusterBits: metadata.header.clusterBits)
    }
}

extension QCOW2Metadata {
    /// A place for less than a cluster of bytes: behind the last such ones where there is room, so that several
    /// compressed clusters share a host cluster.
    fileprivate func allocateBytes(_ count: UInt64) throws(DiskError) -> UInt64 {
        let tail = compressedTail
        let room = tail == 0 ? 0 : clusterSize - tail & (clusterSize - 1)
        let tailCluster = tail >> clusterBits
        var isShared = tail != 0
        if isShared { isShared = try refcount(tailCluster) < largestRefcount }
        var place = tail
        if isShared, count <= room {
            try addReferences(tailCluster..<tailCluster + 1)
        } else {
            let new = try allocate(upTo: 1).clusters.lowerBound
            if isShared, new == tailCluster + 1 {
                try addReferences(tailCluster..<tailCluster + 1)
            } else {
                place = new << clusterBits
            }
        }
        let end = place + count
        compressedTail = end & (clusterSize - 1) == 0 ? 0 : end
        return place
    }
}
