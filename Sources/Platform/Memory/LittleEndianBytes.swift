/// Wire structures as plain bytes: everything a PC's tables hold is little-endian.
extension [UInt8] {
    mutating func append<T: FixedWidthInteger>(littleEndian value: T) {
        for index in 0..<(T.bitWidth / 8) {
            append(UInt8(truncatingIfNeeded: value >> T(index * 8)))
        }
    }

    /// Nil when the field reaches beyond the end.
    func load<T: FixedWidthInteger>(_ type: T.Type = T.self, at offset: Int) -> T? {
        let size = T.bitWidth / 8
        guard offset >= 0, offset <= count, size <= count - offset else { return nil }
        var value: T = 0
        for index in 0..<size {
            value |= T(truncatingIfNeeded: self[offset + index]) << T(index * 8)
        }
        return value
    }

    /// For structures whose size we chose ourselves.
    mutating func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        for index in 0..<(T.bitWidth / 8) {
            self[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
        }
    }

    /// ASCII, cut or padded with zero bytes to `width`.
    mutating func append(_ text: String, width: Int, padding: UInt8 = 0) {
        let bytes = text.utf8.prefix(width)
        append(contentsOf: bytes)
        append(contentsOf: repeatElement(padding, count: width - bytes.count))
    }
}

extension UInt64 {
    /// The next multiple of `alignment`, a power of two; nil when there is none.
    func roundedUp(to alignment: UInt64) -> UInt64? {
        let (sum, overflow) = addingReportingOverflow(alignment &- 1)
        return overflow ? nil : sum & ~(alignment &- 1)
    }

    func roundedDown(to alignment: UInt64) -> UInt64 { self & ~(alignment &- 1) }
}
