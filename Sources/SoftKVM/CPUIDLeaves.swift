internal import CHost

/// What the engine around the processor adds to its CPUID: the local APIC, and KVM's paravirtual leaves.
enum CPUIDLeaves {
    /// Documentation/virt/kvm/x86/cpuid.rst.
    static let signatureLeaf: UInt32 = 0x4000_0000
    static let featureLeaf: UInt32 = 0x4000_0001
    /// TSC and APIC bus frequency in kHz, as VMware defined it.
    static let timingLeaf: UInt32 = 0x4000_0010

    /// KVM_FEATURE_CLOCKSOURCE, _NOP_IO_DELAY, _CLOCKSOURCE2, _CLOCKSOURCE_STABLE_BIT.
    static let features: UInt32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24

    static func complete(_ entries: [kvm_cpuid_entry2], tscFrequency: UInt64) -> [kvm_cpuid_entry2] {
        var result = entries.filter { !($0.function >= signatureLeaf && $0.function <= timingLeaf) }
        for index in result.indices { edit(&result[index]) }
        addMissing(6, to: &result)
        addMissing(0x8000_0007, to: &result)
        result.append(
            // "KVMKVMKVM\0\0\0"
            kvm_cpuid_entry2(
                leaf: signatureLeaf, eax: timingLeaf, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x0000_004d))
        result.append(kvm_cpuid_entry2(leaf: featureLeaf, eax: features))
        result.append(
            kvm_cpuid_entry2(
                leaf: timingLeaf, eax: UInt32(clamping: (tscFrequency + 500) / 1000), ebx: 1_000_000))
        return result
    }

    /// SDM vol. 2A, CPUID: what the local APIC and the clock make true.
    private static func edit(_ entry: inout kvm_cpuid_entry2) {
        switch entry.function {
        case 0: entry.eax = max(entry.eax, 6)
        case 1:
            // x2APIC, TSC-deadline, hypervisor; APIC.
            entry.ecx |= 1 << 21 | 1 << 24 | 1 << 31
            entry.edx |= 1 << 9
        // ARAT: the APIC timer never stops.
        case 6: entry.eax |= 1 << 2
        case 0x8000_0000: entry.eax = max(entry.eax, 0x8000_0007)
        // Invariant TSC.
        case 0x8000_0007: entry.edx |= 1 << 8
        default: break
        }
    }

    private static func addMissing(_ leaf: UInt32, to entries: inout [kvm_cpuid_entry2]) {
        guard !entries.contains(where: { $0.function == leaf }) else { return }
        var entry = kvm_cpuid_entry2(leaf: leaf)
        edit(&entry)
        entries.append(entry)
    }
}

extension kvm_cpuid_entry2 {
    init(leaf: UInt32, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
        self.init()
        function = leaf
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }
}
