/// The Internet checksum (RFC 1071): one's complement sum of 16-bit words in network order.
struct InternetChecksum {
    private var sum: UInt64 = 0

    init() {}

    /// Adds bytes that begin at an even place of what is summed; an odd last one is padded with zero.
    mutating func add(_ bytes: ArraySlice<UInt8>) {
        let span = bytes.span
        var index = 0
        // Eight bytes at once, in the host's order: swapped bytes have the swapped sum (RFC 1071 §2 (B)).
        var swapped: UInt64 = 0
        let raw = unsafe span.bytes
        while index + 8 <= span.count {
            // SAFETY: the condition says that eight bytes are there.
            let word = unsafe raw.unsafeLoadUnaligned(fromUncheckedByteOffset: index, as: UInt64.self)
            swapped &+= (word & 0xFFFF_FFFF) &+ (word >> 32)
            index += 8
        }
        while swapped > 0xFFFF { swapped = (swapped & 0xFFFF) &+ (swapped >> 16) }
        sum &+= UInt64(UInt16(truncatingIfNeeded: swapped).bigEndian)
        while index + 2 <= span.count {
            sum &+= UInt64(span[index]) << 8 | UInt64(span[index + 1])
            index += 2
        }
        if index < span.count { sum &+= UInt64(span[index]) << 8 }
    }

    mutating func add(_ word: UInt16) { sum &+= UInt64(word) }

    /// The pseudo header of TCP and UDP (RFC 9293 §3.1, RFC 8200 §8.1).
    mutating func addPseudoHeader(
        source: IPAddress, destination: IPAddress, protocolNumber: UInt8, length: Int
    ) {
        for address in [source, destination] {
            switch address {
            case .v4(let value): sum &+= UInt64(value >> 16) &+ UInt64(value & 0xFFFF)
            case .v6(let value):
                for group in 0..<8 { sum &+= UInt64(truncatingIfNeeded: value >> UInt128(16 * group)) & 0xFFFF }
            }
        }
        sum &+= UInt64(protocolNumber) &+ UInt64(length >> 16) &+ UInt64(length & 0xFFFF)
    }

    /// The checksum field's value. A sum over data with a right checksum in it gives 0.
    var value: UInt16 {
        var folded = sum
        while folded > 0xFFFF { folded = (folded & 0xFFFF) &+ (folded >> 16) }
        return ~UInt16(truncatingIfNeeded: folded)
    }

    /// As `value`, with 0 written as FFFF: in UDP 0 stands for "no checksum" (RFC 768).
    var nonzeroValue: UInt16 { value == 0 ? 0xFFFF : value }
}
