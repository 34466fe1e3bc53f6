internal import CHost
internal import Testing
internal import X86

@testable internal import VMM

@Suite("Processor model")
struct CPUModelTests {
    private func entry(
        _ function: UInt32, _ index: UInt32 = 0, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
    ) -> kvm_cpuid_entry2 {
        var entry = kvm_cpuid_entry2()
        (entry.function, entry.index) = (function, index)
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (eax, ebx, ecx, edx)
        return entry
    }

    /// A processor with everything from SSE to AVX-512, and leaf 0DH with the components 0, 1, 2, 5, 6, 7 and 9.
    private var leaves: [kvm_cpuid_entry2] {
        [
            entry(1, ecx: .max, edx: .max), entry(7, ebx: .max, ecx: .max, edx: .max), entry(7, 2, edx: 1 << 4),
            entry(0xD, 0, eax: 0x2E7, ebx: 576, ecx: 2696), entry(0xD, 1, eax: 7), entry(0xD, 2, eax: 256, ebx: 576),
            entry(0xD, 5, eax: 64, ebx: 1088), entry(0xD, 6, eax: 512, ebx: 1152), entry(0xD, 7, eax: 1024, ebx: 1664),
            entry(0xD, 9, eax: 8, ebx: 2688), entry(0x8000_0001, ecx: 1, edx: 1 << 20 | 1 << 29),
        ]
    }

    private func features(_ words: String) throws -> Set<String> {
        Set(CPUModel.features(of: try CPUModel(words).applied(to: leaves, engine: "test")))
    }

    @Test("Each name is there once, and each name that is needed exists")
    func table() {
        let names = CPUIDFeatures.all.map(\.name)
        #expect(Set(names).count == names.count)
        #expect(!names.contains(CPUModel.mitigations))
        for feature in CPUIDFeatures.all {
            #expect(feature.needs.allSatisfy(names.contains), "\(feature.name)")
            #expect(feature.mask != 0)
            let others = CPUIDFeatures.all.filter {
                ($0.leaf, $0.subleaf) == (feature.leaf, feature.subleaf) && $0.register == feature.register
                    && $0.mask & feature.mask != 0
            }
            #expect(others == [feature])
        }
    }

    /// Some bits by the manual, so that a slip in the table shows (SDM vol. 2, CPUID).
    private static let bits: [(String, UInt32, CPUIDRegister, UInt32)] = [
        ("sse2", 1, .edx, 26), ("pcid", 1, .ecx, 17), ("x2apic", 1, .ecx, 21), ("avx", 1, .ecx, 28),
        ("aes", 1, .ecx, 25), ("fsgsbase", 7, .ebx, 0), ("avx2", 7, .ebx, 5), ("erms", 7, .ebx, 9),
        ("invpcid", 7, .ebx, 10), ("avx512f", 7, .ebx, 16), ("smap", 7, .ebx, 20), ("umip", 7, .ecx, 2),
        ("gfni", 7, .ecx, 8), ("fsrm", 7, .edx, 4), ("spec_ctrl", 7, .edx, 26), ("arch_capabilities", 7, .edx, 29),
        ("nx", 0x8000_0001, .edx, 20), ("rdtscp", 0x8000_0001, .edx, 27), ("nonstop_tsc", 0x8000_0007, .edx, 8),
    ]

    @Test("Places of features", arguments: bits)
    func places(name: String, leaf: UInt32, register: CPUIDRegister, bit: UInt32) throws {
        let feature = try #require(CPUIDFeatures.named(name))
        #expect(feature.leaf == leaf && feature.subleaf == 0 && feature.register == register)
        #expect(feature.mask == 1 << bit)
    }

    @Test("A feature goes with all that need it, and comes with all that it needs")
    func dependencies() throws {
        let all = try features("default")
        #expect(all.isSuperset(of: ["avx", "avx2", "fma", "avx512f", "avx512vl", "vaes", "aes", "xsave", "pcid"]))
        #expect(try features("max") == all)
        let withoutAVX = try features("default,-avx")
        let gone = all.subtracting(withoutAVX)
        #expect(gone.isSuperset(of: ["avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vbmi2", "vaes"]))
        #expect(withoutAVX.isSuperset(of: ["aes", "xsave", "sse4_2", "gfni", "pclmulqdq"]))
        #expect(try features("-avx512f").symmetricDifference(all).allSatisfy { $0.hasPrefix("avx512") })
        #expect(try features("default,-sse2,+avx2").isSuperset(of: ["avx2", "avx", "sse4_2", "ssse3", "sse2"]))
        #expect(try !features("default,-avx,+avx2").contains("fma"))
        #expect(try features("default,-pcid") == all.subtracting(["pcid"]))
        #expect(try features("default,+pcid,-pcid,+pcid") == all)
    }

    /// (words, mask and size in leaf 0DH, the components' leaves that are left)
    private static let states: [(String, UInt32, UInt32, [UInt32])] = [
        ("default", 0x2E7, 2696, [0, 1, 2, 5, 6, 7, 9]), ("default,-avx512f", 0x207, 2696, [0, 1, 2, 9]),
        ("default,-avx512f,-pku", 0x7, 832, [0, 1, 2]), ("default,-avx", 0x203, 2696, [0, 1, 9]),
        ("default,-avx,-pku", 0x3, 576, [0, 1]),
    ]

    @Test("XSAVE's leaf follows the register files", arguments: states)
    func extendedState(words: String, mask: UInt32, size: UInt32, indices: [UInt32]) throws {
        let state = try CPUModel(words).applied(to: leaves, engine: "test").filter { $0.function == 0xD }
        #expect(state.map(\.index) == indices)
        #expect(state.first?.eax == mask && state.first?.ecx == size)
        #expect(try CPUModel("-xsave").applied(to: leaves, engine: "test").allSatisfy { $0.function != 0xD })
    }

    @Test("Mitigations are the absence of what says that they are not needed")
    func mitigations() throws {
        let all = try features("default")
        #expect(try features("default,+mitigations") == all.subtracting(["arch_capabilities", "bhi_ctrl"]))
        #expect(try features("default,+mitigations,-mitigations") == all)
        #expect(try CPUModel("default,+mitigations").wantsMitigations)
        #expect(try !CPUModel("default,+mitigations,-mitigations").wantsMitigations)
        #expect(!CPUModel().wantsMitigations)
    }

    /// (words, what the message has to say)
    private static let wrong: [(String, [String])] = [
        ("host", ["'host'", "default, max"]), ("", ["''"]), ("default,avx", ["+avx or -avx"]),
        ("default,+acx", ["'acx'", "adx", "avx", "--cpu help"]), ("+avx512", ["avx512f"]),
        ("default,,+avx", ["''", "--cpu help"]), ("default,+", ["''"]), ("default,+AVX", ["'AVX'"]),
        ("default,+mitigation", ["mitigations"]), ("default,max", ["'max'"]),
    ]

    @Test("Words that are none", arguments: wrong)
    func errors(words: String, parts: [String]) {
        do throws(CPUModelError) {
            _ = try CPUModel(words)
            Issue.record("'\(words)' was taken")
        } catch {
            for part in parts { #expect(error.description.contains(part), "\(error)") }
        }
    }

    @Test("What the engine lacks cannot be added")
    func missing() throws {
        let model = try CPUModel("default,+avx512vl")
        let old = leaves.map { entry in
            var entry = entry
            if entry.function == 1 { entry.ecx &= ~(1 << 28) }
            return entry
        }
        do throws(MachineError) {
            _ = try model.applied(to: old, engine: "soft")
            Issue.record("it was added")
        } catch {
            #expect(error.description.contains("soft engine's processor has no avx "))
            #expect(error.description.contains("avx512vl") && error.description.contains("--cpu help"))
        }
        // To hide what is not there is nothing.
        #expect(try CPUModel("-svm").applied(to: leaves, engine: "soft").count == leaves.count)
    }
}
