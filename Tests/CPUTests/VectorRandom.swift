@testable import CPU

// Random machines: operands where instructions differ from each other.

extension Random {
    private static let doubles: [UInt64] = [
        0, 0x8000_0000_0000_0000, 0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000, 0x7FF0_0000_0000_0000,
        0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 1, 0x000F_FFFF_FFFF_FFFF,
        0x0010_0000_0000_0000, 0x7FEF_FFFF_FFFF_FFFF, 0x41DF_FFFF_FFC0_0000, 0xC1E0_0000_0000_0000,
        0x43E0_0000_0000_0000, 0x4004_0000_0000_0000, 0x3FE0_0000_0000_0000, 0x3FB9_9999_9999_999A,
    ]
    private static let singles: [UInt32] = [
        0, 0x8000_0000, 0x3F80_0000, 0xBF80_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 1, 0x007F_FFFF,
        0x0080_0000, 0x7F7F_FFFF, 0x4EFF_FFFF, 0xCF00_0000, 0x5F00_0000, 0x4020_0000, 0x3F00_0000, 0x3DCC_CCCD,
    ]

    mutating func lane() -> UInt64 {
        switch below(6) {
        case 0, 1: return pick(Self.doubles)
        case 2, 3: return UInt64(pick(Self.singles)) | UInt64(pick(Self.singles)) << 32
        case 4: return next() & next() & 0x7F7F_7F7F_7F7F_7F7F
        default: return next()
        }
    }

    /// An 80-bit number: any class, unnormal ones too.
    mutating func extended() -> (UInt64, UInt16) {
        let significand: UInt64 =
            switch below(5) {
            case 0: 0
            case 1: 0x8000_0000_0000_0000
            case 2: next()
            case 3: 0xC000_0000_0000_0000
            default: next() | 0x8000_0000_0000_0000
            }
        let exponent: UInt16 = pick([0, 1, 0x3FFF, 0x4000, 0x4005, 0x401D, 0x403E, 0x3F80, 0x43FF, 0x7FFE, 0x7FFF])
        return (significand, exponent | (chance(2) ? 0x8000 : 0))
    }

    /// Any state in which all exceptions are masked.
    mutating func machine() -> VectorMachine {
        var machine = VectorMachine()
        for number in 0..<16 {
            machine.gpr[number] = chance(2) ? UInt64(bitPattern: Int64(below(40)) - 20) : next()
        }
        machine.flags = next() & VectorBench.statusFlags
        for offset in stride(from: 160, to: 416, by: 8) { machine.set(lane(), at: offset) }
        for offset in stride(from: 32, to: 160, by: 16) {
            let (significand, exponent) = extended()
            machine.set(chance(3) ? lane() : significand, at: offset)
            machine.set(exponent, at: offset + 8)
        }
        machine.set(UInt16(0x7F) | UInt16(pick([0x300, 0, 0x200])) | UInt16(below(4)) << 10, at: 0)
        machine.set(UInt16(truncatingIfNeeded: next()) & 0x7F3F, at: 2)
        machine.image[4] = chance(2) ? 0xFF : UInt8(truncatingIfNeeded: next())
        machine.mxcsr = chance(2) ? 0x1F80 : (0x1F80 | UInt32(truncatingIfNeeded: next()) & 0xE07F)
        machine.set(UInt32(0xFFFF), at: 28)
        for offset in stride(from: 0, to: VectorBench.memorySize, by: 8) {
            let value = lane()
            for byte in 0..<8 { machine.memory[offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(byte * 8)) }
        }
        return machine
    }
}
