internal import CHost

/// Deterministic cache parameters, CPUID leaf 4 (SDM vol. 2, CPUID): the host's own, since guest data lies in the host's
/// caches. Programs choose by them how they copy: glibc writes around the caches what is larger than three quarters of
/// the last level, and a processor without a third level is then told by its second.
struct CacheParameters: Equatable {
    var eax: UInt32
    var ebx: UInt32
    var ecx: UInt32
    var edx: UInt32

    /// Leaf 8000001DH of AMD's processors has the same layout (APM vol. 3, appendix E.4.15).
    private static let leaves: [UInt32] = [4, 0x8000_001D]
    /// Type 0 ends the list; hostile or broken hosts get no longer one.
    private static let longestList: UInt32 = 8

    /// What a guest of one processor gets to see.
    static let all: [CacheParameters] = {
        for leaf in leaves {
            let found = list { HostProcessor.leaf(leaf, $0) }
            if found.contains(where: { $0.level >= 2 }) { return found }
        }
        return customary
    }()

    /// The list that a host's CPUID gives, subleaf by subleaf.
    static func list(_ read: (UInt32) -> [UInt32]) -> [CacheParameters] {
        var caches: [CacheParameters] = []
        for subleaf in 0..<longestList {
            let registers = read(subleaf)
            if registers[0] & 0x1F == 0 { break }
            caches.append(
                CacheParameters(eax: registers[0], ebx: registers[1], ecx: registers[2], edx: registers[3]).unshared)
        }
        return caches
    }

    /// Where the host says nothing: 48 KiB and 32 KiB, 1 MiB, 16 MiB.
    private static let customary = [
        CacheParameters(eax: 0x121, ebx: 0x02C0_003F, ecx: 0x3F, edx: 0),
        CacheParameters(eax: 0x122, ebx: 0x01C0_003F, ecx: 0x3F, edx: 0),
        CacheParameters(eax: 0x143, ebx: 0x03C0_003F, ecx: 0x3FF, edx: 0),
        CacheParameters(eax: 0x163, ebx: 0x03C0_003F, ecx: 0x3FFF, edx: 0),
    ]

    /// 1 to 3 (EAX bits 7:5).
    private var level: UInt32 { eax >> 5 & 7 }

    /// Without the numbers of threads and cores that share the cache (EAX bits 31:14).
    private var unshared: CacheParameters {
        var cache = self
        cache.eax &= 0x3FF
        return cache
    }
}
