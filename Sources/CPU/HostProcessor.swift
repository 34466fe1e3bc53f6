internal import CHost

/// What the host's processor has of the integer extensions that guests get through its own instructions. Vector
/// extensions are in `VectorUnit`.
enum HostProcessor {
    /// EAX EBX ECX EDX of a leaf; zeros where it is beyond the highest.
    static func leaf(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
        func read(_ leaf: UInt32, _ subleaf: UInt32) -> [UInt32] {
            var registers: [UInt32] = [0, 0, 0, 0]
            registers.withUnsafeMutableBufferPointer {
                if let base = $0.baseAddress { martlet_host_cpuid(leaf, subleaf, base) }
            }
            return registers
        }
        return read(leaf & 0x8000_0000, 0)[0] >= leaf ? read(leaf, subleaf) : [0, 0, 0, 0]
    }

    private static func has(_ number: UInt32, _ register: Int, _ bit: UInt32) -> Bool {
        leaf(number)[register] >> bit & 1 != 0
    }

    static let hasLZCNT = has(0x8000_0001, 2, 5)
    /// TZCNT is part of BMI1.
    static let hasTZCNT = has(7, 1, 3)
    static let hasADX = has(7, 1, 19)
    static let hasRDRAND = has(1, 2, 30)
    static let hasRDSEED = has(7, 1, 18)
}
