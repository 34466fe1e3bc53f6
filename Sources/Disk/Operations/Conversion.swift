internal import Host

/// Says how far an operation is; false stops it.
public typealias DiskProgress = (_ done: UInt64, _ total: UInt64) -> Bool

/// How a disk's content is copied.
public struct Conversion {
    /// Clusters of a qcow2 target are compressed.
    public var compresses = false
    /// Runs of zeros of at least so many bytes are not written.
    public var zeroUnit = 4096

    private static let step = 2 << 20

    public init() {}

    /// Copies all of `source` to `target`, which is as large or larger and reads as zeros.
    public func run(
        from source: any BlockDevice, to target: any BlockDevice, progress: DiskProgress
    ) throws(DiskError) {
        let size = source.size
        guard target.size >= size else {
            throw DiskError(.invalid, "The target has \(target.size) bytes, and the source \(size)")
        }
        let unit = compresses ? max(target.capabilities.discardGranularity, 512) : zeroUnit
        let buffer = PageBuffer(count: max(Conversion.step, unit))
        var offset: UInt64 = 0
        while offset < size {
            guard progress(offset, size) else { throw DiskError(.cancelled, "Stopped") }
            let extent = try Conversion.extent(of: source, at: offset, limit: size - offset)
            let isAtUnit = offset.isMultiple(of: UInt64(unit))
            if extent.isZero, isAtUnit, extent.count >= UInt64(unit) || offset + extent.count == size {
                offset += offset + extent.count == size ? extent.count : extent.count / UInt64(unit) * UInt64(unit)
                continue
            }
            // Up to a multiple of the unit, so that what is zero is seen unit by unit.
            let wanted = extent.isZero ? UInt64(unit) : max(extent.count, UInt64(unit))
            let end = min((offset + min(wanted, UInt64(buffer.count))) / UInt64(unit) * UInt64(unit), size)
            let count = Int(end > offset ? end - offset : min(UInt64(unit), size - offset))
            try source.read(into: buffer.memory(0..<count), at: offset)
            try copy(buffer, count, to: target, at: offset, unit: unit)
            offset += UInt64(count)
        }
        _ = progress(size, size)
    }

    private func copy(
        _ buffer: PageBuffer, _ count: Int, to target: any BlockDevice, at offset: UInt64, unit: Int
    ) throws(DiskError) {
        var start = 0
        while start < count {
            let end = min(start + unit, count)
            if buffer.isZero(start..<end) {
                start = end
                continue
            }
            if compresses, let image = target as? QCOW2Disk {
                let cluster = PageBuffer(count: unit)
                buffer.memory(start..<end).copy(to: cluster)
                try image.writeCompressed(cluster, at: offset + UInt64(start))
                start = end
                continue
            }
            // As much in one write as is not zero.
            var last = end
            while last < count, !buffer.isZero(last..<min(last + unit, count)) { last = min(last + unit, count) }
            try target.write(buffer.memory(start..<last), at: offset + UInt64(start))
            start = last
        }
    }

    /// What is at `offset` of a disk, through its backing files.
    static func extent(
        of disk: any BlockDevice, at offset: UInt64, limit: UInt64
    ) throws(DiskError) -> (isZero: Bool, count: UInt64) {
        var disk = disk
        var limit = limit
        while true {
            let extent = try disk.extent(at: offset, limit: limit)
            switch extent.mapping {
            case .zero, .unallocated: return (true, extent.count)
            case .data, .compressed: return (false, extent.count)
            case .backing(let backing):
                guard offset < backing.size else { return (true, extent.count) }
                limit = min(extent.count, backing.size - offset)
                disk = backing
            }
        }
    }
}
