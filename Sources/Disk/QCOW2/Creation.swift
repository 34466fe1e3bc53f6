internal import Host

/// How much of a new image is set up at once, as QEMU's names have it.
public enum Preallocation: String, CaseIterable, Sendable {
    case off
    /// The tables.
    case metadata
    /// The tables, and the file system's promise of room for the data.
    case falloc
    /// The tables, and the data written as zeros.
    case full
}

/// What a new qcow2 image is like; the names are those of `martlet image create --option`.
public struct QCOW2Options: Equatable, Sendable {
    public var clusterSize: UInt64 = 65536
    public var version: UInt32 = 3
    public var refcountBits: UInt32 = 16
    public var hasLazyRefcounts = false
    public var compression = CompressionKind.zlib
    public var preallocation = Preallocation.off
    public var backingFile: String?
    public var backingFormat: DiskFormat?
    public var dataFile: String?
    public var isDataFileRaw = false

    public init() {}

    /// Refuses what cannot be, with the values.
    func check(_ path: String, size: UInt64) throws(DiskError) {
        func invalid(_ text: String) -> DiskError { DiskError(.invalid, "Cannot create \(path): \(text)") }
        guard clusterSize.nonzeroBitCount == 1, 512...2 << 20 ~= clusterSize else {
            throw invalid("cluster_size \(clusterSize) must be a power of two from 512 to 2M")
        }
        guard version == 2 || version == 3 else {
            throw invalid("qcow2 has versions 2 (compat=0.10) and 3 (compat=1.1)")
        }
        guard refcountBits.nonzeroBitCount == 1, 1...64 ~= refcountBits else {
            throw invalid("refcount_bits \(refcountBits) must be a power of two from 1 to 64")
        }
        if version == 2 {
            let needs: [(Bool, String)] = [
                (refcountBits != 16, "refcount_bits other than 16"), (hasLazyRefcounts, "lazy_refcounts"),
                (compression != .zlib, "compression_type other than zlib"), (dataFile != nil, "data_file"),
            ]
            for (isWanted, name) in needs where isWanted { throw invalid("\(name) needs version 3: say compat=1.1") }
        }
        if isDataFileRaw, dataFile == nil { throw invalid("data_file_raw is for an image with a data_file") }
        if isDataFileRaw, backingFile != nil { throw invalid("a raw data file and a backing file exclude each other") }
        if backingFile != nil, preallocation == .falloc || preallocation == .full {
            throw invalid("preallocation=\(preallocation.rawValue) would hide the backing file")
        }
        if backingFile != nil, preallocation == .metadata {
            throw invalid("preallocation=metadata would hide the backing file")
        }
        if backingFile != nil, backingFormat == nil {
            throw invalid("the backing file's format is not given. Say --backing-format raw or qcow2")
        }
        guard size <= header(size: size).largestDisk else {
            throw invalid("\(size) bytes are more than clusters of \(clusterSize) allow")
        }
    }

    /// The header of an empty image: header, reference count table, its first block and the L1 table, in a row.
    fileprivate func header(size: UInt64) -> QCOW2Header {
        var header = QCOW2Header()
        header.version = version
        header.clusterBits = UInt32(clusterSize.trailingZeroBitCount)
        header.size = size
        header.refcountOrder = UInt32(refcountBits.trailingZeroBitCount)
        header.headerLength = version == 2 ? 72 : 112
        header.compression = compression
        header.backingFile = backingFile
        header.backingFormat = backingFormat?.rawValue
        header.dataFile = dataFile
        if hasLazyRefcounts { header.compatible.insert(.lazyRefcounts) }
        if compression != .zlib { header.incompatible.insert(.compressionType) }
        if dataFile != nil { header.incompatible.insert(.externalData) }
        if isDataFileRaw { header.autoclear.insert(.rawExternalData) }
        // A header cluster of 512 bytes has no room for names of features.
        if version == 3, clusterSize >= 4096 { header.extensions = [QCOW2Header.featureNameTable] }
        return header
    }
}

extension QCOW2Disk {
    /// Makes an empty image of `size` bytes in `storage`, which is empty. The data file, if there is one, has to exist.
    static func create(in storage: any ImageStorage, size: UInt64, _ options: QCOW2Options) throws(DiskError) {
        guard size <= 1 << 62 else {
            throw DiskError(.invalid, "Cannot create \(storage.path): \(size) bytes are more than any image has")
        }
        let size = (size + 511) & ~511
        try options.check(storage.path, size: size)
        var header = options.header(size: size)
        let cluster = header.clusterSize
        let l1Count = header.l1EntriesNeeded(for: size)
        let l1Clusters = max((l1Count * 8 + cluster - 1) / cluster, 1)
        let bits = UInt64(header.refcountBits)
        // As many blocks as describe everything there is, themselves included.
        let perBlock = cluster * 8 / bits
        var blocks: UInt64 = 1
        var tableClusters: UInt64 = 1
        while true {
            let total = 1 + tableClusters + blocks + l1Clusters
            let neededBlocks = (total + perBlock - 1) / perBlock
            let neededTable = (neededBlocks * 8 + cluster - 1) / cluster
            if neededBlocks <= blocks, neededTable <= tableClusters { break }
            blocks = max(blocks, neededBlocks)
            tableClusters = max(tableClusters, neededTable)
        }
        header.refcountTableOffset = cluster
        header.refcountTableClusters = UInt32(tableClusters)
        header.l1Offset = (1 + tableClusters + blocks) * cluster
        header.l1Size = UInt32(max(l1Count, 1))
        try storage.truncate(to: (1 + tableClusters + blocks + l1Clusters) * cluster)
        let table = (0..<blocks).map { (1 + tableClusters + $0) * cluster }
        try QCOW2Metadata.writeTable(storage, table, at: cluster)
        try storage.write(try header.serialized(path: storage.path).memory, at: 0)
        let metadata = try QCOW2Metadata(storage, dataStorage: nil, header: header, cacheSize: 1 << 20)
        for index in 0..<1 + tableClusters + blocks + l1Clusters { try metadata.countFirstReference(index) }
        try metadata.refcountCache.writeDirty()
        try storage.flush()
    }

    /// Gives every cluster of the disk a place, all zeros.
    func preallocate(_ mode: Preallocation) throws(DiskError) {
        guard mode != .off else { return }
        var offset: UInt64 = 0
        let end = size
        while offset < end {
            try alone { metadata throws(DiskError) in
                let start = offset
                _ = try metadata.writableL2Table(for: start)
                let wanted = (end - start + clusterSize - 1) / clusterSize
                var count = UInt64(try metadata.entries(at: start, count: Int(min(wanted, 512))).count)
                var host = start
                if !metadata.hasDataFile {
                    let allocation = try metadata.allocate(upTo: count)
                    count = UInt64(allocation.clusters.count)
                    host = allocation.clusters.lowerBound * clusterSize
                }
                let entries = (0..<count).map { L2Entry(dataAt: host + $0 * clusterSize) }
                try metadata.setEntries(entries, at: start)
                offset = start + count * clusterSize
            }
        }
        try flush()
        let target = metadata.dataStorage
        let range = 0..<(metadata.hasDataFile ? end : try target.currentSize())
        if metadata.hasDataFile { try target.truncate(to: end) }
        if mode == .falloc { try target.allocate(range) }
        if mode == .full { try writeZeroData() }
    }

    /// Zeros as bytes in every place.
    private func writeZeroData() throws(DiskError) {
        let zeros = PageBuffer(count: 1 << 20)
        var offset: UInt64 = 0
        while offset < size {
            let count = Int(min(UInt64(zeros.count), size - offset))
            try write(zeros.memory(0..<count), at: offset)
            offset += UInt64(count)
        }
        try flush()
    }
}

extension QCOW2Metadata {
    /// For a new image, whose file has its final size already.
    fileprivate func countFirstReference(_ cluster: UInt64) throws(DiskError) {
        let wasLazy = header.compatible
        // The dirty bit is not for an image that nobody knows yet.
        header.compatible = []
        defer { header.compatible = wasLazy }
        try setRefcount(cluster, to: 1)
    }
}
