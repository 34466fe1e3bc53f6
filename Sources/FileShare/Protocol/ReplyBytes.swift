/// A reply, with room for its header in front; numbers are little-endian.
struct ReplyBytes: Sendable {
    private(set) var bytes: [UInt8]

    init(capacity: Int = 160) {
        bytes = []
        bytes.reserveCapacity(capacity)
        bytes.append(contentsOf: repeatElement(0, count: FUSE.replyHeaderSize))
    }

    var count: Int { bytes.count }

    mutating func u16(_ value: UInt16) { append(UInt64(value), 2) }
    mutating func u32(_ value: UInt32) { append(UInt64(value), 4) }
    mutating func u64(_ value: UInt64) { append(value, 8) }

    private mutating func append(_ value: UInt64, _ size: Int) {
        for index in 0..<size { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
    }

    mutating func data(_ value: some Collection<UInt8>) { bytes.append(contentsOf: value) }
    mutating func zeros(_ count: Int) { bytes.append(contentsOf: repeatElement(0, count: count)) }

    /// struct fuse_out_header: length with what follows, -errno, the request's number.
    static func header(length: Int, error: Int32, unique: UInt64) -> [UInt8] {
        var header = ReplyBytes(capacity: 32)
        header.bytes.removeAll(keepingCapacity: true)
        header.u32(UInt32(truncatingIfNeeded: length))
        header.u32(UInt32(bitPattern: 0 &- error))
        header.u64(unique)
        return header.bytes
    }

    /// With its header filled in.
    func finished(unique: UInt64) -> [UInt8] {
        var result = bytes
        result.replaceSubrange(
            0..<FUSE.replyHeaderSize, with: Self.header(length: bytes.count, error: 0, unique: unique))
        return result
    }
}
