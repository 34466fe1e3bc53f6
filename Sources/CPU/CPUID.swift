public import CHost
internal import X86

// CPUID (SDM vol. 2, CPUID): the leaves of this processor. A feature is listed only when it is implemented here, and,
// where the host's own instruction does the work, when the host has it.

/// Feature bits by leaf and register.
private enum Features {
    // Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH (MMX FXSR SSE SSE2: vector).
    static let leaf1EDX: UInt32 =
        1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
        | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19
    // Leaf 1 ECX: CX16 PCID MOVBE POPCNT XSAVE HYPERVISOR (OSXSAVE follows CR4).
    static let leaf1ECX: UInt32 = 1 << 13 | 1 << 17 | 1 << 22 | 1 << 23 | 1 << 26 | 1 << 31
    // Leaf 7 EBX: FSGSBASE TSC_ADJUST SMEP ERMS INVPCID SMAP CLFLUSHOPT CLWB; bit 13: FCS and FDS are not kept (SDM vol. 1
    // §8.1.8).
    static let leaf7EBX: UInt32 =
        1 << 0 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 20 | 1 << 23 | 1 << 24
    // Leaf 7 ECX: UMIP RDPID.
    static let leaf7ECX: UInt32 = 1 << 2 | 1 << 22
    // Leaf 7 EDX: FSRM, IBRS/IBPB, ARCH_CAPABILITIES.
    static let leaf7EDX: UInt32 = 1 << 4 | 1 << 26 | 1 << 29
    // Leaf 7.2 EDX: BHI_CTRL, MCDT_NO. Linux looks at no "not affected" bit for branch history injection, only at this
    // control, and without it clears its branch history by a loop at each system call.
    static let leaf7Subleaf2EDX: UInt32 = 1 << 4 | 1 << 5
    // Leaf 0x80000001 EDX: SYSCALL NX RDTSCP LM (page size extension of 1 GiB too).
    static let extendedEDX: UInt32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
    // Leaf 0x80000001 ECX: LAHF in 64-bit mode, PREFETCHW.
    static let extendedECX: UInt32 = 1 << 0 | 1 << 8

    // What the host's own instructions do.
    static let hostLeaf1ECX = VectorUnit.features(leaf: 1, register: 2) | (HostProcessor.hasRDRAND ? 1 << 30 : 0)
    static let hostLeaf1EDX = VectorUnit.features(leaf: 1, register: 3)
    static let hostLeaf7EBX =
        VectorUnit.features(leaf: 7, register: 1) | (HostProcessor.hasRDSEED ? 1 << 18 : 0)
        | (HostProcessor.hasADX ? 1 << 19 : 0)
    static let hostLeaf7ECX = VectorUnit.features(leaf: 7, register: 2)
    /// LZCNT.
    static let hostExtendedECX: UInt32 = HostProcessor.hasLZCNT ? 1 << 5 : 0
}

extension Processor {
    /// Every leaf that this processor has; the engine adds its own (paravirtual leaves, APIC features).
    public static func supportedCPUID() -> [kvm_cpuid_entry2] {
        var entries: [kvm_cpuid_entry2] = []
        func add(_ leaf: UInt32, _ eax: UInt32, _ ebx: UInt32, _ ecx: UInt32, _ edx: UInt32, subleaf: UInt32? = nil) {
            var entry = kvm_cpuid_entry2()
            entry.function = leaf
            entry.index = subleaf ?? 0
            entry.flags = subleaf == nil ? 0 : 1
            entry.eax = eax
            entry.ebx = ebx
            entry.ecx = ecx
            entry.edx = edx
            entries.append(entry)
        }
        func text(_ string: StaticString) -> [UInt32] {
            string.withUTF8Buffer { bytes in
                (0..<bytes.count / 4).map { word in
                    (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[word * 4 + $1]) << UInt32($1 * 8) }
                }
            }
        }
        let vendor = text("GenuineIntel")
        add(0, 0xD, vendor[0], vendor[2], vendor[1])
        // Family 6, model 0x6A, stepping 6; CLFLUSH line of 64 bytes, one logical processor.
        add(
            1, 0x0006_06A6, 0x0001_0800, Features.leaf1ECX | Features.hostLeaf1ECX,
            Features.leaf1EDX | Features.hostLeaf1EDX)
        add(2, 0x0076_0301, 0xF0B5_FF, 0, 0x00C3_0000)
        for (subleaf, cache) in CacheParameters.all.enumerated() {
            add(4, cache.eax, cache.ebx, cache.ecx, cache.edx, subleaf: UInt32(subleaf))
        }
        add(4, 0, 0, 0, 0, subleaf: UInt32(CacheParameters.all.count))
        add(6, 1 << 2, 0, 0, 0)
        add(
            7, 2, Features.leaf7EBX | Features.hostLeaf7EBX, Features.leaf7ECX | Features.hostLeaf7ECX,
            Features.leaf7EDX, subleaf: 0)
        add(7, VectorUnit.features(leaf: 7, subleaf: 1, register: 0), 0, 0, 0, subleaf: 1)
        add(7, 0, 0, 0, Features.leaf7Subleaf2EDX, subleaf: 2)
        add(0xA, 0, 0, 0, 0)
        addExtendedState { add($0, $1, $2, $3, $4, subleaf: $5) }
        add(0x8000_0000, 0x8000_0008, 0, 0, 0)
        add(0x8000_0001, 0, 0, Features.extendedECX | Features.hostExtendedECX, Features.extendedEDX)
        let brand = text("Martlet software x86-64 processor               ")
        for index in 0..<3 {
            add(
                0x8000_0002 + UInt32(index), brand[index * 4], brand[index * 4 + 1], brand[index * 4 + 2],
                brand[index * 4 + 3])
        }
        add(0x8000_0006, 0, 0, 0x0100_6040, 0)
        add(0x8000_0007, 0, 0, 0, 1 << 8)
        // 40 physical and 48 virtual address bits.
        add(0x8000_0008, 0x3028, 0, 0, 0)
        return entries
    }

    /// Leaf 0DH: state components and their places in an XSAVE area. XSAVEOPT, XSAVEC and XGETBV with ECX = 1, not XSAVES.
    /// EBX of the first two follows XCR0.
    private static func addExtendedState(_ add: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32?) -> Void) {
        let components = VectorUnit.supportedComponents
        let size = UInt32(StateComponent.standardSize(components))
        add(0xD, UInt32(truncatingIfNeeded: components), size, size, UInt32(truncatingIfNeeded: components >> 32), 0)
        add(0xD, 0x7, UInt32(StateComponent.compactedSize(components)), 0, 0, 1)
        for number in StateComponent.extended where components >> UInt64(number) & 1 != 0 {
            let (size, offset) = (StateComponent.size(number), StateComponent.offset(number))
            add(0xD, UInt32(size), UInt32(offset), 0, 0, UInt32(number))
        }
    }

    /// CR4 bits that are reserved without their feature (SDM vol. 3A §2.5).
    private static let controlledFeatures: [(cr4: UInt64, leaf: UInt32, register: CPUIDRegister, bit: UInt32)] = [
        (Control.userModeInstructionPrevention, 7, .ecx, 2),
        (Control.fsgsbase, 7, .ebx, 0),
        (Control.processContextIdentifiers, 1, .ecx, 17),
        (Control.extendedStateEnable, 1, .ecx, 26),
        (Control.smep, 7, .ebx, 7),
        (Control.smap, 7, .ebx, 20),
    ]

    /// Whether CPUID says that the local APIC has the mode.
    public var hasX2APIC: Bool { hasFeature(leaf: 1, .ecx, bit: 21) }

    func hasFeature(leaf: UInt32, _ register: CPUIDRegister, bit: UInt32) -> Bool {
        let (eax, ebx, ecx, edx) = cpuid(leaf, 0)
        let word: UInt32 =
            switch register {
            case .eax: eax
            case .ebx: ebx
            case .ecx: ecx
            case .edx: edx
            }
        return word & (1 << bit) != 0
    }

    /// KVM_SET_CPUID2.
    public func setCPUID(_ entries: [kvm_cpuid_entry2]) {
        cpuidEntries = entries
        lockstep?.shadow.setCPUID(entries)
        state.pointee.supported_cr4 = supportedCR4
        for feature in Self.controlledFeatures
        where !hasFeature(leaf: feature.leaf, feature.register, bit: feature.bit) {
            state.pointee.supported_cr4 &= ~feature.cr4
        }
        if let sizes = entries.first(where: { $0.function == 0x8000_0008 }) {
            let bits = UInt64(min(52, max(32, sizes.eax & 0xFF)))
            state.pointee.physical_address_mask = (1 << bits) - 1
        }
    }

    /// What CPUID returns (EAX, EBX, ECX, EDX): an unknown leaf reads as zeros, as on AMD, not as the highest one.
    func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (UInt32, UInt32, UInt32, UInt32) {
        for entry in cpuidEntries where entry.function == leaf && (entry.flags & 1 == 0 || entry.index == subleaf) {
            return current(entry)
        }
        return (0, 0, 0, 0)
    }

    /// An entry with what follows the processor's state: APIC by its enable bit, OSXSAVE by CR4, the sizes of leaf 0DH by
    /// XCR0.
    private func current(_ entry: kvm_cpuid_entry2) -> (UInt32, UInt32, UInt32, UInt32) {
        var (ebx, ecx, edx) = (entry.ebx, entry.ecx, entry.edx)
        if entry.function == 1 {
            if state.pointee.apic_base & (1 << 11) == 0 { edx &= ~(1 << 9) }
            ecx &= ~(1 << 27)
            if state.pointee.cr4 & Control.extendedStateEnable != 0 { ecx |= 1 << 27 }
        }
        if entry.function == 0xD, entry.index == 0 { ebx = UInt32(StateComponent.standardSize(state.pointee.xcr0)) }
        if entry.function == 0xD, entry.index == 1, entry.eax & 0xA != 0 {
            ebx = UInt32(StateComponent.compactedSize(state.pointee.xcr0))
        }
        return (entry.eax, ebx, ecx, edx)
    }
}
