internal import Host

/// Incompatible features (qcow2 specification, "Header").
struct IncompatibleFeatures: OptionSet, Sendable {
    var rawValue: UInt64

    static let dirty = IncompatibleFeatures(rawValue: 1 << 0)
    static let corrupt = IncompatibleFeatures(rawValue: 1 << 1)
    static let externalData = IncompatibleFeatures(rawValue: 1 << 2)
    static let compressionType = IncompatibleFeatures(rawValue: 1 << 3)
    static let extendedL2 = IncompatibleFeatures(rawValue: 1 << 4)
    static let known: IncompatibleFeatures = [.dirty, .corrupt, .externalData, .compressionType, .extendedL2]
}

/// Compatible features.
struct CompatibleFeatures: OptionSet, Sendable {
    var rawValue: UInt64

    static let lazyRefcounts = CompatibleFeatures(rawValue: 1 << 0)
}

/// Autoclear features: whoever writes to the image clears those that it does not know.
struct AutoclearFeatures: OptionSet, Sendable {
    var rawValue: UInt64

    static let bitmaps = AutoclearFeatures(rawValue: 1 << 0)
    static let rawExternalData = AutoclearFeatures(rawValue: 1 << 1)
    static let known: AutoclearFeatures = [.bitmaps, .rawExternalData]
}

/// How compressed clusters are compressed ("Additional fields").
public enum CompressionKind: UInt8, CaseIterable, Sendable {
    case zlib = 0
    case zstd = 1

    public var name: String { self == .zlib ? "zlib" : "zstd" }
}

/// A header extension whose content is only carried along.
struct HeaderExtension: Equatable, Sendable {
    var type: UInt32
    var data: [UInt8]

    static let end: UInt32 = 0
    static let backingFormat: UInt32 = 0xe279_2aca
    static let featureNames: UInt32 = 0x6803_f857
    static let bitmaps: UInt32 = 0x2385_2875
    static let encryption: UInt32 = 0x0537_be77
    static let dataFile: UInt32 = 0x4441_5441
}

/// The first cluster of an image (qcow2 specification, "Header" and "Header extensions").
struct QCOW2Header: Sendable {
    static let magic: UInt32 = 0x5146_49fb

    // Limits that QEMU has too: nobody makes images beyond them, and a hostile header may not make us allocate more.
    static let clusterBitsRange: ClosedRange<UInt32> = 9...21
    static let largestL1: UInt64 = 32 << 20
    static let largestRefcountTable: UInt64 = 8 << 20
    static let mostSnapshots: UInt32 = 65536
    static let largestSnapshotTable = 64 << 20

    var version: UInt32 = 3
    var backingFileOffset: UInt64 = 0
    var backingFileSize: UInt32 = 0
    var clusterBits: UInt32 = 16
    var size: UInt64 = 0
    var cryptMethod: UInt32 = 0
    var l1Size: UInt32 = 0
    var l1Offset: UInt64 = 0
    var refcountTableOffset: UInt64 = 0
    var refcountTableClusters: UInt32 = 0
    var snapshotCount: UInt32 = 0
    var snapshotsOffset: UInt64 = 0
    var incompatible: IncompatibleFeatures = []
    var compatible: CompatibleFeatures = []
    var autoclear: AutoclearFeatures = []
    var refcountOrder: UInt32 = 4
    var headerLength: UInt32 = 112
    var compression = CompressionKind.zlib
    /// Bytes of a header that is longer than what is known, kept as they are.
    var unknownFields: [UInt8] = []

    var backingFile: String?
    var backingFormat: String?
    var dataFile: String?
    var extensions: [HeaderExtension] = []

    var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
    var refcountBits: UInt32 { 1 << refcountOrder }
    var l2EntryCount: UInt64 { clusterSize / 8 }
    /// How many bytes of the disk one L2 table maps.
    var l2Span: UInt64 { clusterSize * l2EntryCount }

    /// How many L1 entries a disk of `size` bytes needs.
    func l1EntriesNeeded(for size: UInt64) -> UInt64 { size / l2Span + (size % l2Span == 0 ? 0 : 1) }

    /// The largest disk that the L1 table's limit leaves room for.
    var largestDisk: UInt64 {
        let (product, overflow) = (QCOW2Header.largestL1 / 8).multipliedReportingOverflow(by: l2Span)
        return overflow ? 1 << 62 : min(product, 1 << 62)
    }
}

/// Field offsets of what is rewritten in place.
enum HeaderField {
    static let size: UInt64 = 24
    static let l1Size: UInt64 = 36
    static let refcountTable: UInt64 = 48
    static let snapshots: UInt64 = 60
    static let incompatible: UInt64 = 72
    static let autoclear: UInt64 = 88
}

/// Where bytes become a header, value by value, none of which is believed.
struct HeaderParser {
    private let bytes: PageBuffer
    private let path: String
    private let fileSize: UInt64
    private(set) var header = QCOW2Header()

    /// `bytes` are the file's first bytes, up to a cluster.
    init(_ bytes: PageBuffer, path: String, fileSize: UInt64) throws(DiskError) {
        self.bytes = bytes
        self.path = path
        self.fileSize = fileSize
        guard bytes.count >= 72, fileSize >= 72, bytes.load(0) == QCOW2Header.magic else {
            throw DiskError(
                .wrongFormat, "\(path) is not a qcow2 image: it does not start with QFI\\xfb. Name its format")
        }
        try parseFixedPart()
        try parseVersion3()
        try checkTables()
        try parseExtensions()
        try parseBackingFile()
    }

    private func corrupt(_ text: String) -> DiskError {
        DiskError(.corrupt, "\(path): \(text). The image is damaged; restore it from a backup")
    }

    private func unsupported(_ text: String) -> DiskError { DiskError(.unsupported, "\(path): \(text)") }

    private mutating func parseFixedPart() throws(DiskError) {
        header.version = bytes.load(4)
        guard header.version == 2 || header.version == 3 else {
            throw unsupported("qcow2 version \(header.version) is not known; versions 2 and 3 are")
        }
        header.backingFileOffset = bytes.load(8)
        header.backingFileSize = bytes.load(16)
        header.clusterBits = bytes.load(20)
        guard QCOW2Header.clusterBitsRange.contains(header.clusterBits) else {
            throw unsupported("clusters of 2^\(header.clusterBits) bytes are not supported; 2^9 to 2^21 are")
        }
        header.size = bytes.load(24)
        header.cryptMethod = bytes.load(32)
        guard header.cryptMethod == 0 else { throw encryption() }
        header.l1Size = bytes.load(36)
        header.l1Offset = bytes.load(40)
        header.refcountTableOffset = bytes.load(48)
        header.refcountTableClusters = bytes.load(56)
        header.snapshotCount = bytes.load(60)
        header.snapshotsOffset = bytes.load(64)
    }

    private func encryption() -> DiskError {
        let name = header.cryptMethod == 2 ? "LUKS" : header.cryptMethod == 1 ? "AES" : "method \(header.cryptMethod)"
        return unsupported(
            "the image is encrypted (\(name)), which is not supported. Decrypt it with qemu-img convert first")
    }

    private mutating func parseVersion3() throws(DiskError) {
        guard header.version == 3 else {
            header.headerLength = 72
            return
        }
        guard bytes.count >= 104 else { throw corrupt("the header is cut off") }
        header.incompatible = IncompatibleFeatures(rawValue: bytes.load(72))
        header.compatible = CompatibleFeatures(rawValue: bytes.load(80))
        header.autoclear = AutoclearFeatures(rawValue: bytes.load(88))
        header.refcountOrder = bytes.load(96)
        header.headerLength = bytes.load(100)
        guard header.refcountOrder <= 6 else {
            throw corrupt("reference counts of 2^\(header.refcountOrder) bits cannot be")
        }
        let length = header.headerLength
        guard length >= 104, length.isMultiple(of: 8), UInt64(length) <= header.clusterSize,
            Int(length) <= bytes.count
        else { throw corrupt("a header of \(length) bytes cannot be") }
        try checkFeatures()
        if length > 104 { try parseCompression(bytes[104]) }
        if length > 112 { header.unknownFields = bytes.bytes(112..<Int(length)) }
        if length <= 104, header.incompatible.contains(.compressionType) {
            throw corrupt("it says that it has a compression type, and has none")
        }
    }

    private func checkFeatures() throws(DiskError) {
        let unknown = header.incompatible.subtracting(.known).rawValue
        guard unknown == 0 else {
            throw unsupported("the image needs features that are not known here: \(featureNames(unknown))")
        }
        guard !header.incompatible.contains(.extendedL2) else {
            throw unsupported(
                "the image has extended L2 entries (subclusters), which are not supported. Convert it with qemu-img")
        }
        if header.autoclear.contains(.rawExternalData), !header.incompatible.contains(.externalData) {
            throw corrupt("it says that its external data file is raw, and has no such file")
        }
    }

    private mutating func parseCompression(_ value: UInt8) throws(DiskError) {
        guard let kind = CompressionKind(rawValue: value) else {
            throw unsupported("compression type \(value) is not known; zlib and zstd are")
        }
        guard (kind != .zlib) == header.incompatible.contains(.compressionType) else {
            throw corrupt("the compression type \(value) contradicts the features")
        }
        header.compression = kind
    }

    /// The image's own words for feature bits ("Feature name table"), else their numbers.
    private func featureNames(_ bits: UInt64) -> String {
        var names: [Int: String] = [:]
        if let extensions = try? scanExtensions() {
            for item in extensions where item.type == HeaderExtension.featureNames {
                for start in stride(from: 0, to: item.data.count - 47, by: 48) where item.data[start] == 0 {
                    let name = item.data[start + 2..<start + 48].prefix { $0 >= 32 && $0 < 127 }
                    names[Int(item.data[start + 1])] = String(decoding: name, as: UTF8.self)
                }
            }
        }
        return (0..<64).filter { bits >> UInt64($0) & 1 == 1 }
            .map { names[$0].map { "\"\($0)\"" } ?? "bit \($0)" }.joined(separator: ", ")
    }

    private func checkTables() throws(DiskError) {
        let cluster = header.clusterSize
        guard header.size <= header.largestDisk else {
            throw corrupt("a disk of \(header.size) bytes cannot be with clusters of \(cluster)")
        }
        guard header.refcountTableClusters > 0 else { throw corrupt("it has no table of reference counts") }
        try checkTable(
            "the table of reference counts", offset: header.refcountTableOffset,
            size: UInt64(header.refcountTableClusters) &* cluster, limit: QCOW2Header.largestRefcountTable)
        try checkTable(
            "the L1 table", offset: header.l1Offset, size: UInt64(header.l1Size) &* 8, limit: QCOW2Header.largestL1)
        guard UInt64(header.l1Size) >= header.l1EntriesNeeded(for: header.size) else {
            throw corrupt("its L1 table has \(header.l1Size) entries, which is too few for \(header.size) bytes")
        }
        guard header.snapshotCount <= QCOW2Header.mostSnapshots else {
            throw corrupt("it says that it has \(header.snapshotCount) snapshots")
        }
        try checkTable(
            "the snapshot table", offset: header.snapshotsOffset, size: UInt64(header.snapshotCount) &* 40,
            limit: UInt64(QCOW2Header.largestSnapshotTable))
    }

    private func checkTable(_ name: String, offset: UInt64, size: UInt64, limit: UInt64) throws(DiskError) {
        guard size <= limit else { throw corrupt("\(name) has \(size) bytes; \(limit) are allowed") }
        guard size > 0 else { return }
        guard offset & (header.clusterSize - 1) == 0, offset >= header.clusterSize else {
            throw corrupt("\(name) is at \(offset), which is not where a cluster starts")
        }
        guard offset < 1 << 56, offset &+ size <= fileSize else {
            throw corrupt("\(name) at \(offset) goes past the end of the file, \(fileSize)")
        }
    }

    // MARK: Extensions

    private func scanExtensions() throws(DiskError) -> [HeaderExtension] {
        var result: [HeaderExtension] = []
        var offset = Int(header.headerLength)
        // In front of the backing file's name if that is in the first cluster, else up to the cluster's end.
        let limit =
            header.backingFileOffset > UInt64(offset)
            ? min(bytes.count, Int(clamping: header.backingFileOffset)) : bytes.count
        while offset + 8 <= limit {
            let type: UInt32 = bytes.load(offset)
            let length = Int(bytes.load(offset + 4) as UInt32)
            if type == HeaderExtension.end { break }
            guard length <= limit - offset - 8 else {
                throw corrupt("its header extension 0x\(String(type, radix: 16)) is \(length) bytes, which do not fit")
            }
            result.append(HeaderExtension(type: type, data: bytes.bytes(offset + 8..<offset + 8 + length)))
            offset += 8 + (length + 7) & ~7
        }
        return result
    }

    private mutating func parseExtensions() throws(DiskError) {
        for item in try scanExtensions() {
            switch item.type {
            case HeaderExtension.backingFormat: header.backingFormat = String(decoding: item.data, as: UTF8.self)
            case HeaderExtension.dataFile: header.dataFile = String(decoding: item.data, as: UTF8.self)
            case HeaderExtension.encryption: throw unsupported("the image has an encryption header, and no encryption")
            case HeaderExtension.bitmaps where item.data.count != 24:
                throw corrupt("its bitmaps extension is \(item.data.count) bytes instead of 24")
            default: header.extensions.append(item)
            }
        }
        if header.autoclear.contains(.bitmaps),
            !header.extensions.contains(where: { $0.type == HeaderExtension.bitmaps })
        {
            throw corrupt("it says that its bitmaps are consistent, and has none")
        }
    }

    private mutating func parseBackingFile() throws(DiskError) {
        guard header.backingFileOffset != 0 else { return }
        let offset = header.backingFileOffset
        let count = UInt64(header.backingFileSize)
        guard count <= 1023, offset < header.clusterSize, offset &+ count <= header.clusterSize,
            offset &+ count <= UInt64(bytes.count)
        else { throw corrupt("its backing file's name (\(count) bytes at \(offset)) is not in the first cluster") }
        guard count > 0 else { return }
        guard !header.autoclear.contains(.rawExternalData) else {
            throw corrupt("it has a backing file and a raw external data file, which exclude each other")
        }
        let name = bytes.bytes(Int(offset)..<Int(offset + count))
        guard !name.contains(0) else { throw corrupt("its backing file's name has a zero byte in it") }
        header.backingFile = String(decoding: name, as: UTF8.self)
    }
}

extension QCOW2Header {
    /// Reads the header of the image in `storage`.
    static func read(from storage: any ImageStorage) throws(DiskError) -> QCOW2Header {
        let fileSize = try storage.currentSize()
        let start = try storage.read(count: 4096, at: 0)
        let bits = min(max(start.load(20) as UInt32, 9), 21)
        let count = Int(min(UInt64(1) << UInt64(bits), max(fileSize, 512)))
        let bytes = try storage.read(count: count, at: 0)
        return try HeaderParser(bytes, path: storage.path, fileSize: fileSize).header
    }

    /// The first cluster's beginning as it is to be stored; sets where the backing file's name goes.
    mutating func serialized(path: String) throws(DiskError) -> PageBuffer {
        var tail: [UInt8] = []
        func append(_ type: UInt32, _ data: [UInt8]) {
            for value in [type, UInt32(data.count)] {
                for shift in [24, 16, 8, 0] { tail.append(UInt8(truncatingIfNeeded: value >> UInt32(shift))) }
            }
            tail += data + [UInt8](repeating: 0, count: -data.count & 7)
        }
        if let backingFormat, backingFile != nil { append(HeaderExtension.backingFormat, Array(backingFormat.utf8)) }
        if let dataFile { append(HeaderExtension.dataFile, Array(dataFile.utf8)) }
        for item in extensions { append(item.type, item.data) }
        append(HeaderExtension.end, [])

        let name = Array((backingFile ?? "").utf8)
        let length = Int(headerLength)
        guard name.count <= 1023, length + tail.count + name.count <= Int(clusterSize) else {
            throw DiskError(
                .invalid, "\(path): the backing file's name and the header do not fit a cluster. Use a shorter path")
        }
        backingFileOffset = name.isEmpty ? 0 : UInt64(length + tail.count)
        backingFileSize = UInt32(name.count)
        let buffer = PageBuffer(count: length + tail.count + name.count)
        storeFields(in: buffer)
        buffer.copy(tail, to: length)
        buffer.copy(name, to: length + tail.count)
        return buffer
    }

    private func storeFields(in buffer: PageBuffer) {
        buffer.store(QCOW2Header.magic, at: 0)
        buffer.store(version, at: 4)
        buffer.store(backingFileOffset, at: 8)
        buffer.store(backingFileSize, at: 16)
        buffer.store(clusterBits, at: 20)
        buffer.store(size, at: 24)
        buffer.store(cryptMethod, at: 32)
        buffer.store(l1Size, at: 36)
        buffer.store(l1Offset, at: 40)
        buffer.store(refcountTableOffset, at: 48)
        buffer.store(refcountTableClusters, at: 56)
        buffer.store(snapshotCount, at: 60)
        buffer.store(snapshotsOffset, at: 64)
        guard version == 3 else { return }
        buffer.store(incompatible.rawValue, at: 72)
        buffer.store(compatible.rawValue, at: 80)
        buffer.store(autoclear.rawValue, at: 88)
        buffer.store(refcountOrder, at: 96)
        buffer.store(headerLength, at: 100)
        if headerLength > 104 { buffer.store(compression.rawValue, at: 104) }
        if headerLength > 112 { buffer.copy(unknownFields, to: 112) }
    }

    /// Names for the features that an image may have, for those who do not know them.
    static var featureNameTable: HeaderExtension {
        var data: [UInt8] = []
        let names: [(UInt8, UInt8, String)] = [
            (0, 0, "dirty bit"), (0, 1, "corrupt bit"), (0, 2, "external data file"), (0, 3, "compression type"),
            (0, 4, "extended L2 entries"), (1, 0, "lazy refcounts"), (2, 0, "bitmaps"), (2, 1, "raw external data"),
        ]
        for (type, bit, name) in names {
            data += [type, bit] + Array(name.utf8) + [UInt8](repeating: 0, count: 46 - name.utf8.count)
        }
        return HeaderExtension(type: HeaderExtension.featureNames, data: data)
    }
}
