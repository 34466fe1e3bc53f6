/// An entry of the L1 table (qcow2 specification, "Cluster mapping").
struct L1Entry: Equatable, Sendable {
    var rawValue: UInt64

    static let copied: UInt64 = 1 << 63
    static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

    init(rawValue: UInt64) { self.rawValue = rawValue }
    init(tableAt offset: UInt64) { rawValue = offset | L1Entry.copied }

    var tableOffset: UInt64 { rawValue & L1Entry.offsetMask }
    /// The table belongs to the active disk alone, and may be changed where it is.
    var isCopied: Bool { rawValue & L1Entry.copied != 0 }
    var reservedBits: UInt64 { rawValue & ~(L1Entry.offsetMask | L1Entry.copied) }
}

/// An entry of an L2 table: what is known of one cluster of the disk.
struct L2Entry: Equatable, Sendable {
    var rawValue: UInt64

    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    static let zero: UInt64 = 1
    static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

    /// Of standard clusters; for whoever checks.
    static let reserved: UInt64 = 0x3f00_0000_0000_01fe

    static let unallocated = L2Entry(rawValue: 0)
    static let zeroes = L2Entry(rawValue: zero)

    init(rawValue: UInt64) { self.rawValue = rawValue }
    init(dataAt offset: UInt64) { rawValue = offset | L2Entry.copied }

    /// What the entry says, apart from its flags.
    enum Kind: Equatable {
        case unallocated
        /// Zeros without a host cluster.
        case zero
        /// Zeros, with a host cluster kept ready.
        case zeroAllocated
        case data
        case compressed
    }

    var isCopied: Bool { rawValue & L2Entry.copied != 0 }
    /// Of the host cluster; not for compressed ones.
    var hostOffset: UInt64 { rawValue & L2Entry.offsetMask }

    /// With an external data file, host offset 0 with the copied flag is a cluster, too.
    func kind(hasDataFile: Bool) -> Kind {
        if rawValue & L2Entry.compressed != 0 { return .compressed }
        let hasHost = hostOffset != 0 || (hasDataFile && isCopied)
        if rawValue & L2Entry.zero != 0 { return hasHost ? .zeroAllocated : .zero }
        return hasHost ? .data : .unallocated
    }
}

/// Where a compressed cluster's bytes are ("Compressed Clusters Descriptor").
struct CompressedRange: Equatable, Sendable {
    var offset: UInt64
    /// Up to the end of the last sector, whose rest may be somebody else's.
    var count: UInt64

    init(_ entry: L2Entry, clusterBits: UInt32) {
        let shift = CompressedRange.shift(clusterBits)
        offset = entry.rawValue & ((1 << shift) - 1)
        let sectors = (entry.rawValue & ((1 << 62) - 1)) >> shift
        count = (sectors + 1) * 512 - (offset & 511)
    }

    private static func shift(_ clusterBits: UInt32) -> UInt64 { UInt64(62 - (clusterBits - 8)) }

    /// The entry for `count` bytes at `offset`; nil where the offset does not fit.
    static func entry(offset: UInt64, count: Int, clusterBits: UInt32) -> L2Entry? {
        let shift = shift(clusterBits)
        guard offset < 1 << shift, offset < 1 << 56 else { return nil }
        let sectors = (offset + UInt64(count) - 1) / 512 - offset / 512
        return L2Entry(rawValue: L2Entry.compressed | sectors << shift | offset)
    }

    /// The host clusters that it touches.
    func clusters(clusterBits: UInt32) -> Range<UInt64> {
        offset >> UInt64(clusterBits)..<((offset &+ count &- 1) >> UInt64(clusterBits)) + 1
    }
}
