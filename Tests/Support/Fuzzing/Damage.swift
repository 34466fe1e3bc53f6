/// What becomes of bytes on a broken disk, or in the hands of somebody who means harm.
public enum Damage {
    private static let interesting: [UInt64] = [
        0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 47,
        1 << 52, .max >> 1, 1 << 63, .max - 1, .max,
    ]

    /// A copy of `bytes` with one to four changes behind `start`: mostly numbers that are other ones, sometimes bytes too
    /// many or too few.
    public static func done(
        to bytes: [UInt8], behind start: Int = 0, using random: inout some RandomNumberGenerator
    ) -> [UInt8] {
        var bytes = bytes
        for _ in 0..<Int.random(in: 1...4, using: &random) where bytes.count > start {
            let place = Int.random(in: start..<bytes.count, using: &random)
            switch Int.random(in: 0..<24, using: &random) {
            case 0: bytes.removeLast(Int.random(in: 1...bytes.count - start, using: &random))
            case 1: bytes.insert(contentsOf: repeatElement(0xFF, count: 8), at: place)
            case 2: bytes.removeSubrange(place..<min(bytes.count, place + 8))
            case 3...8: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            default: put(at: place, in: &bytes, using: &random)
            }
        }
        return bytes
    }

    /// Small, large or any, of `width` bytes; of eight bytes half of the time what arithmetic has trouble with.
    private static func number(width: Int, using random: inout some RandomNumberGenerator) -> UInt64 {
        if width == 8, Bool.random(using: &random) {
            return [.max, .max - 1, .max >> 1, 1 << 63, 0][Int.random(in: 0..<5, using: &random)]
        }
        return switch Int.random(in: 0..<4, using: &random) {
        case 0: random.next()
        case 1: random.next() % 0x1_0000
        default: interesting[Int.random(in: 0..<interesting.count, using: &random)]
        }
    }

    private static func put(
        at place: Int, in bytes: inout [UInt8], using random: inout some RandomNumberGenerator
    ) {
        let width = [1, 2, 4, 8, 8][Int.random(in: 0..<5, using: &random)]
        let value = number(width: width, using: &random)
        for index in 0..<width where place + index < bytes.count {
            bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
        }
    }
}
