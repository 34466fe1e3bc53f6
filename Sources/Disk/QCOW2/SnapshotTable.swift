internal import Host

/// An entry of the snapshot table (qcow2 specification, "Snapshots").
struct SnapshotEntry: Equatable, Sendable {
    var l1Offset: UInt64
    var l1Size: UInt32
    var seconds: UInt32
    var nanoseconds: UInt32
    var guestNanoseconds: UInt64
    var stateSize: UInt64
    var diskSize: UInt64
    /// Extra data, of which the first sixteen bytes are the state's and the disk's size.
    var extra: [UInt8]
    var id: String
    var name: String

    /// More than any known program writes.
    private static let mostExtra = 1024

    static func readTable(_ storage: any ImageStorage, _ header: QCOW2Header) throws(DiskError) -> [SnapshotEntry] {
        var result: [SnapshotEntry] = []
        var offset = header.snapshotsOffset
        for _ in 0..<header.snapshotCount {
            let (entry, size) = try read(storage, header, at: offset)
            result.append(entry)
            offset += UInt64(size)
            guard offset - header.snapshotsOffset <= UInt64(QCOW2Header.largestSnapshotTable) else {
                throw corrupt(storage, "the snapshot table is larger than 64 MiB")
            }
        }
        return result
    }

    private static func corrupt(_ storage: any ImageStorage, _ text: String) -> DiskError {
        DiskError(.corrupt, "\(storage.path) is corrupt: \(text). Restore it from a backup")
    }

    private static func read(
        _ storage: any ImageStorage, _ header: QCOW2Header, at offset: UInt64
    ) throws(DiskError) -> (SnapshotEntry, size: Int) {
        let fixed = try storage.read(count: 40, at: offset)
        let idLength = Int(fixed.load(12) as UInt16)
        let nameLength = Int(fixed.load(14) as UInt16)
        let extraLength = Int(fixed.load(36) as UInt32)
        guard extraLength <= mostExtra else {
            throw corrupt(storage, "a snapshot has \(extraLength) bytes of extra data")
        }
        let rest = try storage.read(count: extraLength + idLength + nameLength, at: offset + 40)
        let l1Size: UInt32 = fixed.load(8)
        guard UInt64(l1Size) * 8 <= QCOW2Header.largestL1 else {
            throw corrupt(storage, "a snapshot's L1 table has \(l1Size) entries")
        }
        let entry = SnapshotEntry(
            l1Offset: fixed.load(0), l1Size: l1Size, seconds: fixed.load(16), nanoseconds: fixed.load(20),
            guestNanoseconds: fixed.load(24),
            stateSize: extraLength >= 8 ? rest.load(0) : UInt64(fixed.load(32) as UInt32),
            diskSize: extraLength >= 16 ? rest.load(8) : header.size, extra: rest.bytes(0..<extraLength),
            id: String(decoding: rest.bytes(extraLength..<extraLength + idLength), as: UTF8.self),
            name: String(decoding: rest.bytes(extraLength + idLength..<rest.count), as: UTF8.self))
        return (entry, (40 + rest.count + 7) & ~7)
    }

    /// As bytes of a table.
    static func serialized(_ entries: [SnapshotEntry]) -> [UInt8] {
        var result: [UInt8] = []
        for entry in entries {
            let id = Array(entry.id.utf8)
            let name = Array(entry.name.utf8)
            let fixed = PageBuffer(count: 40)
            fixed.store(entry.l1Offset, at: 0)
            fixed.store(entry.l1Size, at: 8)
            fixed.store(UInt16(truncatingIfNeeded: id.count), at: 12)
            fixed.store(UInt16(truncatingIfNeeded: name.count), at: 14)
            fixed.store(entry.seconds, at: 16)
            fixed.store(entry.nanoseconds, at: 20)
            fixed.store(entry.guestNanoseconds, at: 24)
            fixed.store(UInt32(clamping: entry.stateSize), at: 32)
            let extra = PageBuffer(entry.extra.count >= 16 ? entry.extra : [UInt8](repeating: 0, count: 16))
            extra.store(entry.stateSize, at: 0)
            extra.store(entry.diskSize, at: 8)
            fixed.store(UInt32(extra.count), at: 36)
            result += fixed.bytes + extra.bytes + id + name
            result += [UInt8](repeating: 0, count: -result.count & 7)
        }
        return result
    }
}
