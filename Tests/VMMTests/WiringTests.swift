internal import CHost
internal import DeviceModel
internal import Hypervisor
internal import Synchronization
internal import Testing

@testable internal import VMM

@Suite("Wiring")
struct WiringTests {
    private final class RecordingLine: InterruptLine {
        private let record = Mutex<[Bool]>([])
        var levels: [Bool] { record.withLock { $0 } }

        func setLevel(_ level: Bool) { record.withLock { $0.append(level) } }
    }

    @Test(
        "A shared line is high while any device drives it",
        arguments: [
            ([(0, true), (0, false)], [true, false]),
            ([(0, true), (1, true), (0, false), (1, false)], [true, false]),
            ([(0, true), (0, true), (0, false)], [true, false]),
            ([(1, false), (0, false)], []),
            ([(0, true), (1, false), (0, false), (1, true)], [true, false, true]),
        ] as [([(Int, Bool)], [Bool])])
    func sharedLine(changes: [(Int, Bool)], expected: [Bool]) {
        let output = RecordingLine()
        let line = SharedInterruptLine(output)
        for (input, level) in changes { line.input(input).setLevel(level) }
        #expect(output.levels == expected)
    }

    @Test("A guest with one processor sees no topology of the host")
    func cpuid() {
        func entry(_ function: UInt32, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0)
            -> kvm_cpuid_entry2
        {
            var entry = kvm_cpuid_entry2()
            entry.function = function
            entry.eax = eax
            entry.ebx = ebx
            entry.ecx = ecx
            entry.edx = edx
            return entry
        }
        let leaves = GuestCPUID.singleProcessor(from: [
            entry(0, eax: 0x1f), entry(1, ebx: 0x0710_0800, edx: 0x1000_0001), entry(4, eax: 0x1c00_4121),
            entry(0xb, eax: 1), entry(0x1f, eax: 1), entry(0x4000_0000, ebx: 0x4b4d_564b),
            entry(0x8000_0008, ecx: 0x700f),
        ])
        #expect(leaves.map(\.function) == [0, 1, 4, 0x4000_0000, 0x8000_0008])
        #expect(leaves[1].ebx == 0x0001_0800)
        #expect(leaves[1].edx == 1)
        #expect(leaves[1].ecx & (1 << 31) != 0)
        #expect(leaves[2].eax == 0x121)
        #expect(leaves[3].ebx == 0x4b4d_564b)
        #expect(leaves[4].ecx == 0)
    }

    @Test(
        "The processor's last place in words",
        arguments: [
            (ProcessorTrace(rip: 0x10, cr2: 0), "rip 0x10, cr2 0x0"),
            (
                ProcessorTrace(
                    rip: 0x10, cr2: 0x20,
                    lastException: .init(vector: 14, errorCode: 2, rip: 0x30, cr2: 0x20)),
                "rip 0x10, cr2 0x20, last exception #PF (error code 0x2) at 0x30"
            ),
            (
                ProcessorTrace(rip: 1, cr2: 2, lastException: .init(vector: 200, errorCode: nil, rip: 3, cr2: 2)),
                "rip 0x1, cr2 0x2, last exception vector 200 at 0x3"
            ),
        ])
    func trace(trace: ProcessorTrace, expected: String) {
        #expect(trace.description == expected)
    }
}
