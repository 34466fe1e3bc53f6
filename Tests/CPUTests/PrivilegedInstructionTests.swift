internal import CHost
import Testing

@testable import CPU

/// The privileged instructions that the translator makes host code of (CPU/Translator/BlockTranslator+System.swift), at
/// each privilege, with flags that matter behind them and without.
@Suite struct PrivilegedInstructionTests {
    struct Outcome: Equatable {
        var trapped: Trapped?
        var flags: UInt64
        var registers: [UInt64]
        var bases: [UInt64]
    }

    static let instructions: [(name: String, code: [UInt8], isPrivileged: Bool)] = [
        ("cli", [0xFA], true),
        ("cld", [0xFC], false),
        ("swapgs", [0x0F, 0x01, 0xF8], true),
        ("mov rbx, cr0", [0x0F, 0x20, 0xC3], true),
        ("mov r12, cr2", [0x41, 0x0F, 0x20, 0xD4], true),
        ("mov rax, cr3", [0x0F, 0x20, 0xD8], true),
        ("mov r15, cr4", [0x41, 0x0F, 0x20, 0xE7], true),
        ("mov rbx, cr8", [0x44, 0x0F, 0x20, 0xC3], true),
        ("mov rbx, cr1", [0x0F, 0x20, 0xCB], true),
        ("lock cli", [0xF0, 0xFA], true),
        ("push [rsp + 8]", [0xFF, 0x74, 0x24, 0x08], false),
        ("push gs:[8]", [0x65, 0xFF, 0x34, 0x25, 0x08, 0x00, 0x00, 0x00], false),
        ("push [rsi]", [0xFF, 0x36], false),
    ]

    private func outcome(
        _ code: [UInt8], cpl: UInt8, _ execution: Execution, around: ([UInt8], [UInt8])
    ) -> [Outcome] {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.enterLong()
        machine.useStackTable(for: [6, 13, 14])
        let s = machine.state
        return (0..<3).map { pass in
            machine.setPrivilege(cpl == 3 ? 3 : 0)
            if cpl == 1 || cpl == 2 { setCodeSegment(s, s.segment(SegmentRegister.cs).pointee, cpl: cpl) }
            s.setFlags(0x646)
            s.pointee.cr2 = 0x1234_5678 &+ UInt64(pass)
            s.segment(SegmentRegister.gs).pointee.base = Place.data
            s.segmentBases[SegmentRegister.gs] = Place.data
            s.pointee.kernel_gs_base = 0xFFFF_8880_0000_0000 &+ UInt64(pass)
            for number in 0..<16 where number != 4 { s.setRegister(number, UInt64(number) << 8) }
            let trapped = machine.execute(around.0 + code + around.1, [6: Place.data])
            return Outcome(
                trapped: trapped, flags: s.flags,
                registers: (0..<16).map { s.register($0) } + [s.pointee.cr2],
                bases: [
                    s.segment(SegmentRegister.gs).pointee.base, s.segmentBases[SegmentRegister.gs],
                    s.pointee.kernel_gs_base,
                ])
        }
    }

    @Test(arguments: 0..<instructions.count) func atEachPrivilege(number: Int) {
        let row = Self.instructions[number]
        // Where a compare follows, nobody reads the flags; where SETZ does, somebody does.
        let surroundings: [([UInt8], [UInt8])] = [
            ([0x39, 0xD8], [0x39, 0xC9]), ([0x39, 0xD8], [0x0F, 0x94, 0xC2, 0x39, 0xC9]),
        ]
        for cpl in UInt8(0)...3 {
            for around in surroundings {
                let expected = outcome(row.code, cpl: cpl, .interpreter, around: around)
                // Otherwise nothing is compared.
                #expect(
                    expected.allSatisfy { $0.trapped?.vector == 3 } == (cpl == 0 || !row.isPrivileged)
                        || ["mov rbx, cr1", "lock cli"].contains(row.name), "\(row.name) at \(cpl): \(expected)")
                for execution in [
                    .translator(threshold: 1), .lockstep(threshold: 1), .lockstep(threshold: 1, exactFlags: true),
                ] as [Execution] {
                    var found = outcome(row.code, cpl: cpl, execution, around: around)
                    if !execution.exactFlags, row.isPrivileged {
                        // Status flags that nobody reads are not kept for a fault's frame (decision 0009).
                        for index in found.indices where expected[index].trapped?.vector != 3 {
                            found[index].trapped?.flags = expected[index].trapped?.flags ?? 0
                            found[index].flags = expected[index].flags
                        }
                    }
                    #expect(found == expected, "\(row.name) at \(cpl), \(execution)")
                }
            }
        }
    }
}
