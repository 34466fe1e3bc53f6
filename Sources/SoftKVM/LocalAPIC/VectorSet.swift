/// 256 bits, one per vector: IRR, ISR and TMR (SDM vol. 3A §11.8.4).
struct VectorSet: Equatable, Sendable {
    private var words = SIMD4<UInt64>()

    subscript(vector: UInt8) -> Bool {
        get { words[Int(vector >> 6)] & (1 << UInt64(vector & 63)) != 0 }
        set {
            let bit = UInt64(1) << UInt64(vector & 63)
            if newValue { words[Int(vector >> 6)] |= bit } else { words[Int(vector >> 6)] &= ~bit }
        }
    }

    var highest: UInt8? {
        for index in stride(from: 3, through: 0, by: -1) where words[index] != 0 {
            return UInt8(truncatingIfNeeded: index * 64 + 63 - words[index].leadingZeroBitCount)
        }
        return nil
    }

    /// The register with vectors `index * 32` and up; `index` is 0–7.
    func register(_ index: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: words[index >> 1 & 3] >> (index & 1 == 0 ? 0 : 32))
    }

    mutating func setRegister(_ index: Int, _ value: UInt32) {
        let shift: UInt64 = index & 1 == 0 ? 0 : 32
        words[index >> 1 & 3] = words[index >> 1 & 3] & ~(0xffff_ffff << shift) | UInt64(value) << shift
    }
}
