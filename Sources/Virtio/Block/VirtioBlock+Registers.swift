/// Feature bits of a block device (Virtio 1.2 §5.2.3).
enum BlockFeature {
    static let segmentLimit: UInt64 = 1 << 2
    static let readOnly: UInt64 = 1 << 5
    static let blockSize: UInt64 = 1 << 6
    static let flush: UInt64 = 1 << 9
    static let topology: UInt64 = 1 << 10
    static let configurableCache: UInt64 = 1 << 11
    static let multiqueue: UInt64 = 1 << 12
    static let discard: UInt64 = 1 << 13
    static let writeZeroes: UInt64 = 1 << 14
}

/// struct virtio_blk_config (§5.2.4) by offset.
enum BlockConfiguration {
    static let size = 60
    static let capacity = 0
    static let segmentLimit = 12
    static let blockSize = 20
    static let physicalBlockExponent = 24
    static let minimumTransfer = 26
    static let optimalTransfer = 28
    static let writeback = 32
    static let queueCount = 34
    static let discardSectors = 36
    static let discardSegments = 40
    static let discardAlignment = 44
    static let zeroSectors = 48
    static let zeroSegments = 52
    static let zeroMayUnmap = 56
}

/// Request types (§5.2.6); numbers that are missing are legacy or have no feature of ours.
enum BlockRequestType: UInt32 {
    case read = 0
    case write = 1
    case flush = 4
    case identify = 8
    case discard = 11
    case writeZeroes = 13
}

/// What the status byte says (§5.2.6).
enum BlockStatus: UInt8 {
    case ok = 0
    case error = 1
    case unsupported = 2
}

/// The first 16 bytes of a request.
struct BlockRequestHeader: Equatable {
    static let size = 16
    var type: UInt32
    var sector: UInt64

    /// nil: there are fewer.
    init?(_ bytes: [UInt8]) {
        guard bytes.count == Self.size else { return nil }
        type = UInt32(truncatingIfNeeded: littleEndian(bytes, at: 0, count: 4))
        sector = littleEndian(bytes, at: 8, count: 8)
    }
}

/// One range of a discard or write-zeroes request (§5.2.6, struct virtio_blk_discard_write_zeroes).
struct BlockRangeSegment: Equatable {
    static let size = 16
    static let unmap: UInt32 = 1
    var sector: UInt64
    var sectorCount: UInt32
    var flags: UInt32

    init(_ bytes: [UInt8], at offset: Int) {
        sector = littleEndian(bytes, at: offset, count: 8)
        sectorCount = UInt32(truncatingIfNeeded: littleEndian(bytes, at: offset + 8, count: 4))
        flags = UInt32(truncatingIfNeeded: littleEndian(bytes, at: offset + 12, count: 4))
    }
}

/// Bytes beyond the end count as zero.
func littleEndian(_ bytes: [UInt8], at offset: Int, count: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<count where bytes.indices.contains(offset + index) {
        value |= UInt64(bytes[offset + index]) << UInt64(index * 8)
    }
    return value
}

extension [UInt8] {
    /// For structures whose size we chose ourselves.
    mutating func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        for index in 0..<(T.bitWidth / 8) {
            self[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
        }
    }
}
