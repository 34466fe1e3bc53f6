internal import Host

/// What changes the relation of an image to its backing file.
public enum BackingOperations {
    private static let step: UInt64 = 2 << 20

    /// Writes what is in the image at `path` into its backing file, and then empties the image unless `keepsContent`.
    public static func commit(_ path: String, keepsContent: Bool, progress: DiskProgress) throws(DiskError) {
        var options = DiskImage.Options(isWritable: true)
        options.backing = .ignored
        let top = try DiskImage.openQCOW2(path, options)
        let header = try top.alone { metadata throws(DiskError) in metadata.header }
        guard let name = header.backingFile else {
            throw DiskError(.invalid, "\(path) has no backing file to commit to")
        }
        let format = try DiskImage.backingFormat(header, of: path, DiskImage.Options())
        let base = try DiskImage.open(
            DiskImage.resolve(name, besides: path), format, DiskImage.Options(isWritable: true))
        if base.size < top.size { try base.resize(to: top.size) }
        try forEachRun(of: top, progress) { run, offset throws(DiskError) in
            switch run.kind {
            case .unallocated: return
            case .zero, .zeroAllocated:
                try base.writeZeroes(offset..<offset + run.count, mayUnmap: true)
            case .data, .compressed:
                let buffer = PageBuffer(count: Int(run.count))
                try top.read(into: buffer.memory, at: offset)
                try base.write(buffer.memory, at: offset)
            }
        }
        try base.close()
        if !keepsContent {
            try top.changeClusters(0..<top.size, makesTables: false) { _, entries, _ throws(DiskError) in
                entries.map { _ in L2Entry.unallocated }
            }
        }
        try top.close()
    }

    /// Gives the image another backing file, or none. Unless `isUnsafe`, what the disk reads as stays the same: the
    /// difference between the backing files is copied into the image.
    public static func rebase(
        _ path: String, to backing: String?, _ format: DiskFormat?, isUnsafe: Bool, progress: DiskProgress
    ) throws(DiskError) {
        guard backing == nil || format != nil else {
            throw DiskError(.invalid, "The new backing file's format is not given. Say --backing-format raw or qcow2")
        }
        var options = DiskImage.Options(isWritable: true)
        options.backing = .ignored
        let top = try DiskImage.openQCOW2(path, options)
        if !isUnsafe { try copyDifference(top, path, backing, format, progress) }
        if let backing, let format, !isUnsafe || HostPath.exists(DiskImage.resolve(backing, besides: path)) {
            try refuseLoop(path, DiskImage.resolve(backing, besides: path), format)
        }
        try top.setBacking(backing, format)
        try top.close()
    }

    private static func refuseLoop(_ path: String, _ backing: String, _ format: DiskFormat) throws(DiskError) {
        var chain = DiskImage.Chain()
        var options = DiskImage.Options()
        options.sharing = .forced
        try chain.add(try FileStorage(path: path, isWritable: false, sharing: .forced))
        _ = try DiskImage.open(backing, format, options, &chain)
    }

    private static func copyDifference(
        _ top: QCOW2Disk, _ path: String, _ backing: String?, _ format: DiskFormat?, _ progress: DiskProgress
    ) throws(DiskError) {
        let header = try top.alone { metadata throws(DiskError) in metadata.header }
        var before: (any BlockDevice)?
        var after: (any BlockDevice)?
        if let name = header.backingFile {
            let oldFormat = try DiskImage.backingFormat(header, of: path, DiskImage.Options())
            before = try DiskImage.open(DiskImage.resolve(name, besides: path), oldFormat, DiskImage.Options())
        }
        if let backing, let format {
            after = try DiskImage.open(DiskImage.resolve(backing, besides: path), format, DiskImage.Options())
        }
        try forEachRun(of: top, progress) { run, offset throws(DiskError) in
            guard run.kind == .unallocated else { return }
            let old = try content(before, offset, run.count)
            let new = try content(after, offset, run.count)
            try writeDifference(old, new, to: top, at: offset)
        }
        try top.flush()
        try before?.close()
        try after?.close()
    }

    private static func content(
        _ disk: (any BlockDevice)?, _ offset: UInt64, _ count: UInt64
    ) throws(DiskError) -> PageBuffer {
        let buffer = PageBuffer(count: Int(count))
        guard let disk, offset < disk.size else { return buffer }
        try disk.read(into: buffer.memory(0..<Int(min(count, disk.size - offset))), at: offset)
        return buffer
    }

    private static func writeDifference(
        _ old: PageBuffer, _ new: PageBuffer, to top: QCOW2Disk, at offset: UInt64
    ) throws(DiskError) {
        let unit = Int(top.clusterSize)
        for start in stride(from: 0, to: old.count, by: unit) {
            let range = start..<min(start + unit, old.count)
            if old.bytes(range) == new.bytes(range) { continue }
            let place = offset + UInt64(start)
            if old.isZero(range) {
                // The image has no backing file while this runs, so zeros would be taken for nothing.
                try top.writeExplicitZeroes(place..<place + UInt64(range.count))
            } else {
                try top.write(old.memory(range), at: place)
            }
        }
    }

    private static func forEachRun(
        of disk: QCOW2Disk, _ progress: DiskProgress, _ body: (ClusterRun, UInt64) throws(DiskError) -> Void
    ) throws(DiskError) {
        var offset: UInt64 = 0
        let size = disk.size
        while offset < size {
            guard progress(offset, size) else { throw DiskError(.cancelled, "Stopped") }
            let run = try disk.run(at: offset, limit: min(step, size - offset))
            try body(run, offset)
            offset += run.count
        }
        _ = progress(size, size)
    }
}

extension QCOW2Disk {
    /// Zeros that hide what a backing file has there.
    func writeExplicitZeroes(_ range: Range<UInt64>) throws(DiskError) {
        guard metadata.header.version >= 3 else {
            return try write(PageBuffer(count: Int(range.upperBound - range.lowerBound)).memory, at: range.lowerBound)
        }
        try changeClusters(range, makesTables: true) { _, entries, _ throws(DiskError) in
            entries.map { _ in L2Entry.zeroes }
        }
    }

    /// Writes the header with another backing file's name.
    func setBacking(_ name: String?, _ format: DiskFormat?) throws(DiskError) {
        try alone { metadata throws(DiskError) in
            try metadata.requireSound()
            guard name == nil || !metadata.header.autoclear.contains(.rawExternalData) else {
                throw DiskError(.invalid, "\(self.path) has a raw data file, and so cannot have a backing file")
            }
            try metadata.commit(durable: true)
            metadata.header.backingFile = name
            metadata.header.backingFormat = name == nil ? nil : format?.rawValue
            let bytes = try metadata.header.serialized(path: self.path)
            let whole = PageBuffer(count: max(bytes.count, Int(min(metadata.clusterSize, 4096))))
            bytes.memory.copy(to: whole)
            try metadata.storage.write(whole.memory, at: 0)
            try metadata.flushStorage()
        }
    }
}
