internal import Glibc

/// Reads a request's fields in their order; too few bytes are EINVAL.
struct RequestReader: Sendable {
    private let bytes: ArraySlice<UInt8>
    private var position: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    var remaining: Int { bytes.endIndex - position }

    private mutating func number(_ size: Int) throws(ShareFault) -> UInt64 {
        guard remaining >= size else { throw ShareFault(EINVAL) }
        var value: UInt64 = 0
        for index in 0..<size { value |= UInt64(bytes[position + index]) << UInt64(8 * index) }
        position += size
        return value
    }

    mutating func u32() throws(ShareFault) -> UInt32 { UInt32(truncatingIfNeeded: try number(4)) }
    mutating func u64() throws(ShareFault) -> UInt64 { try number(8) }

    mutating func skip(_ count: Int) throws(ShareFault) {
        guard remaining >= count else { throw ShareFault(EINVAL) }
        position += count
    }

    /// Exactly so many bytes.
    mutating func data(_ count: Int) throws(ShareFault) -> [UInt8] {
        guard count >= 0, remaining >= count else { throw ShareFault(EINVAL) }
        defer { position += count }
        return Array(bytes[position..<position + count])
    }

    /// The bytes before the next NUL, which must be there.
    mutating func string() throws(ShareFault) -> ArraySlice<UInt8> {
        guard let end = bytes[position...].firstIndex(of: 0) else { throw ShareFault(EINVAL) }
        defer { position = end + 1 }
        return bytes[position..<end]
    }

    mutating func name() throws(ShareFault) -> FileName { try FileName(try string()) }
}
