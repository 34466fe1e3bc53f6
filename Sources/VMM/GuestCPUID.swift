internal import CHost

/// The CPUID leaves of a guest with one processor, made from what the engine supports: KVM reports the host's own
/// topology there, which is not the guest's (KVM API §4.46, "KVM_GET_SUPPORTED_CPUID").
enum GuestCPUID {
    static func singleProcessor(from supported: [kvm_cpuid_entry2]) -> [kvm_cpuid_entry2] {
        supported.compactMap { entry in
            var entry = entry
            switch entry.function {
            case 1:
                // EBX: APIC ID 0, one logical processor. ECX bit 31: a hypervisor. ECX bit 24: the TSC deadline timer,
                // which old kernels implement and do not report. EDX bit 28: more than one logical processor.
                entry.ebx = (entry.ebx & 0x0000_ffff) | 1 << 16
                entry.ecx |= 1 << 31 | 1 << 24
                entry.edx &= ~(1 << 28)
            case 4:
                // EAX 31:14: cores and threads that share the cache, less one.
                entry.eax &= 0x3fff
            case 0xb, 0x1f:
                // Topology: no leaf says one processor.
                return nil
            case 0x8000_0008:
                // ECX 7:0: cores, less one.
                entry.ecx = 0
            case 0x8000_001e:
                entry.eax = 0
                entry.ebx = 0
                entry.ecx = 0
            default: break
            }
            return entry
        }
    }
}

extension GuestCPUID {
    /// MAXPHYADDR (SDM vol. 2A, CPUID leaf 80000008H).
    static func physicalAddressBits(in entries: [kvm_cpuid_entry2]) -> Int {
        entries.first { $0.function == 0x8000_0008 }.map { Int($0.eax & 0xFF) } ?? 36
    }
}
