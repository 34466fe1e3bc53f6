internal import Host

/// A part of an L2 table or refcount block in memory.
final class MetadataSlice {
    let offset: UInt64
    let bytes: PageBuffer
    var isDirty = false
    fileprivate var wasUsed = true

    fileprivate init(offset: UInt64, bytes: PageBuffer) {
        self.offset = offset
        self.bytes = bytes
    }
}

/// The tables' parts that were used last, at most `capacity` bytes of them. Parts and not whole tables: with clusters of
/// 2 MiB a request would otherwise cost a read of 2 MiB. Who writes what when is decided elsewhere (WriteBack.swift).
final class MetadataCache {
    let sliceSize: Int
    private let storage: any ImageStorage
    private let capacity: Int
    private var slices: [UInt64: MetadataSlice] = [:]
    /// In a circle; the hand looks for one that was not used since it last came by.
    private var clock: [MetadataSlice] = []
    private var hand = 0
    private var dirty: [MetadataSlice] = []
    private var last: MetadataSlice?

    init(_ storage: any ImageStorage, clusterSize: UInt64, capacity: Int) {
        self.storage = storage
        sliceSize = Int(min(clusterSize, 4096))
        self.capacity = max(capacity / sliceSize, 4)
    }

    var hasDirty: Bool { !dirty.isEmpty }

    /// Whether the next new slice needs somebody to make a place by writing a dirty one.
    var isFullOfDirty: Bool { slices.count >= capacity && dirty.count >= capacity / 2 }

    /// Whether the slice that starts at `offset` is in memory.
    func has(_ offset: UInt64) -> Bool { last?.offset == offset || slices[offset] != nil }

    /// The slice that starts at `offset`.
    func slice(at offset: UInt64) throws(DiskError) -> MetadataSlice {
        if let last, last.offset == offset { return last }
        if let slice = slices[offset] {
            slice.wasUsed = true
            last = slice
            return slice
        }
        return insert(offset, try storage.read(count: sliceSize, at: offset))
    }

    /// A slice of a table that is new and all zeros.
    func insertZeroes(at offset: UInt64) -> MetadataSlice {
        if let slice = slices[offset] {
            slice.bytes.clear(0..<sliceSize)
            markDirty(slice)
            return slice
        }
        let slice = insert(offset, PageBuffer(count: sliceSize))
        markDirty(slice)
        return slice
    }

    func markDirty(_ slice: MetadataSlice) {
        guard !slice.isDirty else { return }
        slice.isDirty = true
        dirty.append(slice)
    }

    private func insert(_ offset: UInt64, _ bytes: PageBuffer) -> MetadataSlice {
        let slice = MetadataSlice(offset: offset, bytes: bytes)
        slices[offset] = slice
        last = slice
        // Dirty ones stay until they are written, so there may be a few more than the capacity for a while.
        if clock.count >= capacity, let index = victim() {
            slices[clock[index].offset] = nil
            clock[index] = slice
        } else {
            clock.append(slice)
        }
        return slice
    }

    private func victim() -> Int? {
        for _ in 0..<min(2 * clock.count, 256) {
            hand = hand + 1 < clock.count ? hand + 1 : 0
            let slice = clock[hand]
            if slice.isDirty { continue }
            if !slice.wasUsed { return hand }
            slice.wasUsed = false
        }
        return nil
    }

    /// Forgets the table at `offset`: its cluster is not one any more.
    func forget(_ offset: UInt64, count: UInt64) {
        for start in stride(from: offset, to: offset + count, by: sliceSize) {
            guard let slice = slices.removeValue(forKey: start) else { continue }
            slice.isDirty = false
            dirty.removeAll { $0 === slice }
            clock.removeAll { $0 === slice }
            if last === slice { last = nil }
        }
        hand = 0
    }

    /// Writes what was changed. After an error the rest is still dirty.
    func writeDirty() throws(DiskError) {
        guard !dirty.isEmpty else { return }
        dirty.sort { $0.offset < $1.offset }
        var done = 0
        defer { dirty.removeFirst(done) }
        while done < dirty.count {
            // Neighbours in one write.
            var run = [dirty[done].bytes.memory]
            while done + run.count < dirty.count, run.count < 256,
                dirty[done + run.count].offset == dirty[done].offset + UInt64(run.count * sliceSize)
            {
                run.append(dirty[done + run.count].bytes.memory)
            }
            try storage.write(TransferMemory(joining: run), at: dirty[done].offset)
            for index in done..<done + run.count { dirty[index].isDirty = false }
            done += run.count
        }
    }
}

extension MetadataCache {
    /// Forgets everything, changed or not.
    func forgetAll() {
        for slice in dirty { slice.isDirty = false }
        dirty = []
        slices = [:]
        clock = []
        last = nil
        hand = 0
    }
}
