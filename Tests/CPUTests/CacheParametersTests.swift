internal import CHost
import Testing

@testable import CPU

/// CPUID leaf 4 (SDM vol. 2, CPUID).
@Suite struct CacheParametersTests {
    /// A host's leaf, and what a guest of one processor is told.
    @Test(
        arguments: [
            // Threads and cores that share a cache are not the guest's.
            ([[0x4121, 1, 2, 3], [0xFC00_4163, 4, 5, 6], [0, 0, 0, 0]], [[0x121, 1, 2, 3], [0x163, 4, 5, 6]]),
            ([[0, 9, 9, 9], [0x121, 1, 2, 3]], []),
        ] as [([[UInt32]], [[UInt32]])])
    func listOfAHost(host: [[UInt32]], guest: [[UInt32]]) {
        let list = CacheParameters.list { $0 < host.count ? host[Int($0)] : [0, 0, 0, 0] }
        #expect(list.map { [$0.eax, $0.ebx, $0.ecx, $0.edx] } == guest)
    }

    @Test func endlessListIsCutOff() {
        #expect(CacheParameters.list { _ in [0x121, 0, 0, 0] }.count == 8)
    }

    /// A guest finds a last level of at least 1 MiB, whatever the host is: glibc would write around smaller ones.
    @Test func lastLevelIsLarge() throws {
        let last = try #require(CacheParameters.all.last)
        let size = UInt64(last.ebx >> 22 + 1) * UInt64(last.ebx & 0xFFF + 1) * UInt64(last.ecx + 1)
        #expect(size >= 1 << 20)
        let leaves = Processor.supportedCPUID().filter { $0.function == 4 }
        #expect(leaves.map(\.index) == Array(0...UInt32(CacheParameters.all.count)))
        #expect(leaves.last?.eax == 0)
    }
}
