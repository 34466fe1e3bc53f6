/// A register of a CPUID leaf.
public enum CPUIDRegister: Sendable {
    case eax, ebx, ecx, edx
}

/// A feature that CPUID reports, by the name that Linux has for it (/proc/cpuinfo).
public struct CPUIDFeature: Equatable, Sendable {
    public var name: String
    public var leaf: UInt32
    public var subleaf: UInt32
    public var register: CPUIDRegister
    /// Usually one bit.
    public var mask: UInt32
    /// Names of what it makes no sense without.
    public var needs: [String]
}

/// Every feature with a name (SDM vol. 2, CPUID; AMD's leaves in the APM vol. 3, appendix E). A new one is one line.
public enum CPUIDFeatures {
    public static let all: [CPUIDFeature] =
        basic + structured + extendedState + extended + paravirtual

    public static func named(_ name: String) -> CPUIDFeature? { all.first { $0.name == name } }

    /// The feature and everything that it needs, directly or not.
    public static func withNeeds(of name: String) -> Set<String> {
        var result: Set<String> = []
        var open = [name]
        while let next = open.popLast() {
            guard result.insert(next).inserted, let feature = named(next) else { continue }
            open += feature.needs
        }
        return result
    }

    /// The feature and everything that needs it, directly or not.
    public static func withDependents(of name: String) -> Set<String> {
        var result: Set<String> = [name]
        var count = 0
        while count != result.count {
            count = result.count
            for feature in all where feature.needs.contains(where: result.contains) { result.insert(feature.name) }
        }
        return result
    }

    /// (name, bit number, what it needs).
    private typealias Row = (name: String, bit: UInt32, needs: String)

    private static func rows(
        _ leaf: UInt32, _ register: CPUIDRegister, subleaf: UInt32 = 0, _ rows: [Row]
    ) -> [CPUIDFeature] {
        rows.map { row in
            CPUIDFeature(
                name: row.name, leaf: leaf, subleaf: subleaf, register: register, mask: 1 << row.bit,
                needs: row.needs.split(separator: " ").map(String.init))
        }
    }

    // MARK: Leaves 1 and 6

    private static let leaf1EDX: [Row] = [
        ("fpu", 0, ""), ("vme", 1, ""), ("de", 2, ""), ("pse", 3, ""), ("tsc", 4, ""), ("msr", 5, ""), ("pae", 6, ""),
        ("mce", 7, ""), ("cx8", 8, ""), ("apic", 9, ""), ("sep", 11, ""), ("mtrr", 12, ""), ("pge", 13, ""),
        ("mca", 14, ""), ("cmov", 15, ""), ("pat", 16, ""), ("pse36", 17, ""), ("clflush", 19, ""), ("mmx", 23, "fpu"),
        ("fxsr", 24, "fpu"), ("sse", 25, "fxsr"), ("sse2", 26, "sse"), ("ss", 27, ""),
    ]
    private static let leaf1ECX: [Row] = [
        ("pni", 0, "sse2"), ("pclmulqdq", 1, "sse2"), ("monitor", 3, ""), ("vmx", 5, ""), ("ssse3", 9, "pni"),
        ("fma", 12, "avx"), ("cx16", 13, ""), ("pcid", 17, ""), ("sse4_1", 19, "ssse3"), ("sse4_2", 20, "sse4_1"),
        ("x2apic", 21, "apic"), ("movbe", 22, ""), ("popcnt", 23, ""), ("tsc_deadline_timer", 24, "tsc apic"),
        ("aes", 25, "sse2"), ("xsave", 26, "fxsr"), ("avx", 28, "sse4_2 xsave"), ("f16c", 29, "avx"),
        ("rdrand", 30, ""), ("hypervisor", 31, ""),
    ]
    private static let basic =
        rows(1, .edx, leaf1EDX) + rows(1, .ecx, leaf1ECX) + rows(6, .eax, [("arat", 2, "apic")])

    // MARK: Leaf 7

    private static let leaf7EBX: [Row] = [
        ("fsgsbase", 0, ""), ("tsc_adjust", 1, "tsc"), ("bmi1", 3, ""), ("hle", 4, ""), ("avx2", 5, "avx"),
        ("smep", 7, ""), ("bmi2", 8, ""), ("erms", 9, ""), ("invpcid", 10, ""), ("rtm", 11, ""), ("mpx", 14, "xsave"),
        ("avx512f", 16, "avx2 fma f16c"), ("avx512dq", 17, "avx512f"), ("rdseed", 18, ""), ("adx", 19, ""),
        ("smap", 20, ""), ("avx512ifma", 21, "avx512f"), ("clflushopt", 23, ""), ("clwb", 24, ""),
        ("avx512cd", 28, "avx512f"), ("sha_ni", 29, "sse2"), ("avx512bw", 30, "avx512f"), ("avx512vl", 31, "avx512f"),
    ]
    private static let leaf7ECX: [Row] = [
        ("avx512vbmi", 1, "avx512bw"), ("umip", 2, ""), ("pku", 3, "xsave"), ("waitpkg", 5, ""),
        ("avx512_vbmi2", 6, "avx512bw"), ("shstk", 7, "xsaves"), ("gfni", 8, "sse2"), ("vaes", 9, "avx aes"),
        ("vpclmulqdq", 10, "avx pclmulqdq"), ("avx512_vnni", 11, "avx512f"), ("avx512_bitalg", 12, "avx512bw"),
        ("avx512_vpopcntdq", 14, "avx512f"), ("la57", 16, "lm"), ("rdpid", 22, ""), ("bus_lock_detect", 24, ""),
        ("cldemote", 25, ""), ("movdiri", 27, ""), ("movdir64b", 28, ""), ("enqcmd", 29, "xsaves"),
    ]
    private static let leaf7EDX: [Row] = [
        ("fsrm", 4, "erms"), ("avx512_vp2intersect", 8, "avx512f"), ("md_clear", 10, ""), ("serialize", 14, ""),
        ("tsxldtrk", 16, "rtm"), ("ibt", 20, "xsaves"), ("amx_bf16", 22, "amx_tile"),
        ("avx512_fp16", 23, "avx512bw avx512vl"), ("amx_tile", 24, "xsave"), ("amx_int8", 25, "amx_tile"),
        ("spec_ctrl", 26, ""), ("intel_stibp", 27, "spec_ctrl"), ("flush_l1d", 28, ""), ("arch_capabilities", 29, ""),
        ("ssbd", 31, "spec_ctrl"),
    ]
    private static let leaf7Subleaf1EAX: [Row] = [
        ("avx_vnni", 4, "avx2"), ("avx512_bf16", 5, "avx512bw"), ("fzrm", 10, ""), ("fsrs", 11, ""), ("fsrc", 12, ""),
        ("avx_ifma", 23, "avx2"), ("lam", 26, "lm"),
    ]
    private static let leaf7Subleaf2EDX: [Row] = [
        ("psfd", 0, "spec_ctrl"), ("ipred_ctrl", 1, "spec_ctrl"), ("rrsba_ctrl", 2, "spec_ctrl"),
        ("ddpd_u", 3, "spec_ctrl"), ("bhi_ctrl", 4, "spec_ctrl"), ("mcdt_no", 5, ""),
    ]
    private static let structured =
        rows(7, .ebx, leaf7EBX) + rows(7, .ecx, leaf7ECX) + rows(7, .edx, leaf7EDX)
        + rows(7, .eax, subleaf: 1, leaf7Subleaf1EAX) + rows(7, .edx, subleaf: 2, leaf7Subleaf2EDX)

    // MARK: Leaf 0DH

    private static let extendedState = rows(
        0xD, .eax, subleaf: 1,
        [("xsaveopt", 0, "xsave"), ("xsavec", 1, "xsave"), ("xgetbv1", 2, "xsave"), ("xsaves", 3, "xsavec")])

    // MARK: Leaves 8000_0001H, 7H and 8H

    private static let extendedECX: [Row] = [
        ("lahf_lm", 0, "lm"), ("svm", 2, ""), ("abm", 5, ""), ("sse4a", 6, "pni"), ("misalignsse", 7, "sse"),
        ("3dnowprefetch", 8, ""), ("osvw", 9, ""), ("xop", 11, "avx"), ("fma4", 16, "avx"), ("tbm", 21, ""),
        ("perfctr_core", 23, ""),
    ]
    private static let extendedEDX: [Row] = [
        ("syscall", 11, ""), ("nx", 20, "pae"), ("mmxext", 22, "mmx"), ("fxsr_opt", 25, "fxsr"),
        ("pdpe1gb", 26, "lm"), ("rdtscp", 27, "tsc"), ("lm", 29, "pae"), ("3dnowext", 30, "3dnow"),
        ("3dnow", 31, "mmx"),
    ]
    private static let capacityEBX: [Row] = [
        ("clzero", 0, ""), ("xsaveerptr", 2, "xsave"), ("wbnoinvd", 9, ""), ("amd_ibpb", 12, ""), ("amd_ibrs", 14, ""),
        ("amd_stibp", 15, ""), ("amd_ssbd", 24, ""), ("virt_ssbd", 25, ""), ("amd_psfd", 28, ""),
    ]
    private static let extended =
        rows(0x8000_0001, .ecx, extendedECX) + rows(0x8000_0001, .edx, extendedEDX)
        + rows(0x8000_0007, .edx, [("nonstop_tsc", 8, "tsc")]) + rows(0x8000_0008, .ebx, capacityEBX)

    // MARK: KVM's own leaf (Documentation/virt/kvm/x86/cpuid.rst)

    private static let paravirtual: [CPUIDFeature] =
        [
            CPUIDFeature(
                name: "kvmclock", leaf: 0x4000_0001, subleaf: 0, register: .eax, mask: 1 << 0 | 1 << 3 | 1 << 24,
                needs: ["tsc"])
        ]
        + rows(
            0x4000_0001, .eax,
            [
                ("kvm_nopiodelay", 1, ""), ("kvm_asyncpf", 4, ""), ("kvm_steal_time", 5, ""), ("kvm_pv_eoi", 6, ""),
                ("kvm_pv_unhalt", 7, ""), ("kvm_pv_tlb_flush", 9, ""), ("kvm_pv_ipi", 11, ""),
                ("kvm_poll_control", 12, ""), ("kvm_pv_sched_yield", 13, ""),
            ])
}
