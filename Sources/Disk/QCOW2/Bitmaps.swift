internal import Host

/// The directory of an image's bitmaps (qcow2 specification, "Bitmap directory").
struct BitmapDirectory {
    var offset: UInt64
    var size: UInt64
    var entries: [BitmapEntry]

    private static let mostBitmaps: UInt32 = 65535
    private static let largestSize: UInt64 = 64 << 20

    /// nil where the image has none, or where somebody wrote to the image who did not know them.
    static func read(_ metadata: QCOW2Metadata) throws(DiskError) -> BitmapDirectory? {
        let header = metadata.header
        guard header.autoclear.contains(.bitmaps),
            let item = header.extensions.first(where: { $0.type == HeaderExtension.bitmaps })
        else { return nil }
        let data = PageBuffer(item.data)
        guard data.count == 24 else { throw metadata.corruption("the bitmaps extension is \(data.count) bytes") }
        let count: UInt32 = data.load(0)
        let size: UInt64 = data.load(8)
        let offset: UInt64 = data.load(16)
        guard count <= mostBitmaps, size <= largestSize, metadata.isCluster(offset),
            offset + size <= metadata.endCluster << metadata.clusterBits
        else { throw metadata.corruption("the bitmap directory is \(size) bytes at \(offset)") }
        let bytes = try metadata.storage.read(count: Int(size), at: offset)
        var entries: [BitmapEntry] = []
        var position = 0
        for _ in 0..<count {
            guard let entry = BitmapEntry(bytes, at: position) else {
                throw metadata.corruption("the bitmap directory's entry at \(position) cannot be")
            }
            entries.append(entry)
            position += entry.size
        }
        return BitmapDirectory(offset: offset, size: size, entries: entries)
    }
}

/// One bitmap's entry in the directory.
struct BitmapEntry {
    var tableOffset: UInt64
    var tableSize: UInt32
    var flags: UInt32
    var type: UInt8
    var granularityBits: UInt8
    var name: String
    /// Where it starts in the directory, and how long it is.
    var position: Int
    var size: Int

    static let inUse: UInt32 = 1
    static let automatic: UInt32 = 2

    init?(_ bytes: PageBuffer, at position: Int) {
        guard position <= bytes.count - 24 else { return nil }
        let nameSize = Int(bytes.load(position + 18) as UInt16)
        let extraSize = Int(bytes.load(position + 20) as UInt32)
        guard nameSize <= 1023, extraSize <= bytes.count, position + 24 + nameSize + extraSize <= bytes.count else {
            return nil
        }
        tableOffset = bytes.load(position)
        tableSize = bytes.load(position + 8)
        flags = bytes.load(position + 12)
        type = bytes[position + 16]
        granularityBits = bytes[position + 17]
        let nameStart = position + 24 + extraSize
        name = String(decoding: bytes.bytes(nameStart..<nameStart + nameSize), as: UTF8.self)
        self.position = position
        size = (24 + nameSize + extraSize + 7) & ~7
    }

    func readTable(_ metadata: QCOW2Metadata) throws(DiskError) -> [UInt64] {
        let end = metadata.endCluster << metadata.clusterBits
        guard UInt64(tableSize) * 8 <= QCOW2Header.largestL1, tableOffset < end,
            tableOffset + UInt64(tableSize) * 8 <= end
        else { throw metadata.corruption("bitmap \(name) has a table of \(tableSize) entries at \(tableOffset)") }
        return try QCOW2Metadata.readTable(metadata.storage, at: tableOffset, count: Int(tableSize))
    }
}

/// Keeps the bitmaps that track changes true while the image is written. As in QEMU, the image says "in use" of them from
/// the first write on until they are stored again: after a crash nobody believes them.
final class BitmapTracker {
    private final class Bitmap {
        let entry: BitmapEntry
        /// One bit for `1 << granularityBits` bytes of the disk.
        var bits: [UInt8]

        init(_ entry: BitmapEntry, bits: [UInt8]) {
            self.entry = entry
            self.bits = bits
        }
    }

    private let directory: BitmapDirectory
    private var bitmaps: [Bitmap] = []
    /// On the medium: marking costs nothing any more.
    private(set) var isMarkedInUse = false
    /// More memory than bitmaps of any sensible granularity take.
    private static let mostBytes: UInt64 = 256 << 20

    /// nil where there is none that is to follow changes.
    init?(_ metadata: QCOW2Metadata) throws(DiskError) {
        guard let directory = try BitmapDirectory.read(metadata) else { return nil }
        self.directory = directory
        for entry in directory.entries
        where entry.flags & (BitmapEntry.automatic | BitmapEntry.inUse) == BitmapEntry.automatic {
            guard entry.type == 1, 9...31 ~= entry.granularityBits else {
                throw metadata.corruption("bitmap \(entry.name) has granularity 2^\(entry.granularityBits)")
            }
            bitmaps.append(Bitmap(entry, bits: try BitmapTracker.load(entry, metadata)))
        }
        if bitmaps.isEmpty { return nil }
    }

    private static func load(_ entry: BitmapEntry, _ metadata: QCOW2Metadata) throws(DiskError) -> [UInt8] {
        let granularity = UInt64(1) << UInt64(entry.granularityBits)
        let bitCount = metadata.header.size / granularity + 1
        let byteCount = (bitCount + 7) / 8
        let table = try entry.readTable(metadata)
        guard byteCount <= mostBytes, UInt64(table.count) << metadata.clusterBits &+ metadata.clusterSize >= byteCount
        else { throw metadata.corruption("bitmap \(entry.name) has a table of \(table.count) entries") }
        var bits: [UInt8] = []
        for item in table {
            let offset = item & L2Entry.offsetMask
            if offset != 0 {
                guard metadata.isCluster(offset) else { throw metadata.corruption("bitmap data is at \(offset)") }
                bits += try metadata.storage.read(count: Int(metadata.clusterSize), at: offset).bytes
            } else {
                bits += [UInt8](repeating: item & 1 == 1 ? 255 : 0, count: Int(metadata.clusterSize))
            }
            guard UInt64(bits.count) <= mostBytes + metadata.clusterSize else { break }
        }
        return bits
    }

    /// A range of the disk is about to change.
    func mark(_ range: Range<UInt64>, in metadata: QCOW2Metadata) throws(DiskError) {
        guard !range.isEmpty else { return }
        if !isMarkedInUse {
            try setFlags(metadata) { $0 | BitmapEntry.inUse }
            isMarkedInUse = true
        }
        for bitmap in bitmaps {
            let shift = UInt64(bitmap.entry.granularityBits)
            for bit in range.lowerBound >> shift...(range.upperBound - 1) >> shift
            where bit >> 3 < UInt64(bitmap.bits.count) {
                bitmap.bits[Int(bit >> 3)] |= 1 << UInt8(bit & 7)
            }
        }
    }

    /// Writes what was marked, and says that it can be believed.
    func store(in metadata: QCOW2Metadata) throws(DiskError) {
        guard isMarkedInUse, !metadata.isCorrupt else { return }
        for bitmap in bitmaps { try store(bitmap, metadata) }
        try metadata.writeRefcounts()
        try metadata.commit(durable: true)
        try setFlags(metadata) { $0 & ~BitmapEntry.inUse }
        isMarkedInUse = false
    }

    private func store(_ bitmap: Bitmap, _ metadata: QCOW2Metadata) throws(DiskError) {
        var table = try bitmap.entry.readTable(metadata)
        let size = Int(metadata.clusterSize)
        for index in table.indices where (index + 1) * size <= bitmap.bits.count {
            let bytes = PageBuffer(Array(bitmap.bits[index * size..<(index + 1) * size]))
            if table[index] & L2Entry.offsetMask == 0 {
                let value: UInt8 = table[index] & 1 == 1 ? 255 : 0
                if bytes.bytes.allSatisfy({ $0 == value }) { continue }
                table[index] = try metadata.allocateTable(1) << metadata.clusterBits
            }
            try metadata.storage.write(bytes.memory, at: table[index] & L2Entry.offsetMask)
        }
        // The counts of new clusters are on the medium before the table names them.
        try metadata.commit(durable: true)
        try QCOW2Metadata.writeTable(metadata.storage, table, at: bitmap.entry.tableOffset)
        try metadata.flushStorage()
    }

    private func setFlags(_ metadata: QCOW2Metadata, _ change: (UInt32) -> UInt32) throws(DiskError) {
        for bitmap in bitmaps {
            try metadata.storage.store(
                change(bitmap.entry.flags), at: directory.offset + UInt64(bitmap.entry.position + 12))
        }
        try metadata.flushStorage()
    }
}

extension QCOW2Metadata {
    /// Called once, before the first write.
    func loadBitmaps() throws(DiskError) {
        bitmaps = try BitmapTracker(self)
        guard let directory = try BitmapDirectory.read(self) else { return }
        // Their tables are tables, too: no data may go there.
        for offset in [directory.offset] + directory.entries.map(\.tableOffset) {
            metadataClusters.insert(offset >> clusterBits)
        }
    }
}
