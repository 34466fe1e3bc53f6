internal import CHost
import Testing

@testable import CPU

/// An instruction counts when it completes: not when it faults, once however often it is restarted for answers from
/// outside, and once for all repetitions of REP. Both ways of executing count alike.
@Suite struct InstructionCountTests {
    struct Row: CustomTestStringConvertible {
        var what: String
        var code: [UInt8]
        var registers: [Int: UInt64] = [:]
        /// Up to the HLT that ends the code, or that of the exception's handler.
        var count: UInt64
        var offset: UInt64 = 0
        var testDescription: String { what }
    }

    private static let device = Pages.base
    private static let ram = Pages.address(1)
    private static let unmapped = Pages.address(9)
    private static let nonCanonical: UInt64 = 0x8000_0000_0000
    private static let hlt: UInt8 = 0xF4

    static let plain: [Row] = [
        Row(what: "plain", code: [0x90, 0x90, 0x90, hlt], count: 4),
        Row(what: "longer than a block", code: [UInt8](repeating: 0x90, count: 130) + [hlt], count: 131),
        Row(what: "loop", code: [0xFF, 0xC9, 0x75, 0xFC, hlt], registers: [1: 100], count: 201),
        Row(what: "LOOP", code: [0x90, 0xE2, 0xFD, hlt], registers: [1: 100], count: 201),
        Row(what: "forward branch", code: [0x31, 0xC0, 0x74, 0x01, hlt, 0x90, hlt], count: 4),
        Row(what: "call and return", code: [0xE8, 0x01, 0, 0, 0, hlt, 0x90, 0xC3], count: 4),
        Row(what: "indirect jump", code: [0xFF, 0xE0, 0, 0, hlt], registers: [0: Place.code + 4], count: 2),
        Row(
            what: "page crossing", code: [0x90, 0xB8, 1, 2, 3, 4, 0x90, hlt], count: 4, offset: 0xFFD),
        Row(
            what: "page crossing in a loop", code: [0x90, 0xB8, 1, 2, 3, 4, 0xFF, 0xC9, 0x75, 0xF6, hlt],
            registers: [1: 50], count: 201, offset: 0xFFD),
        Row(what: "end of page", code: [0x90, 0x90, 0x90, 0x90, hlt], count: 5, offset: 0xFFE),
        Row(what: "own code", code: [0xC6, 0x05, 1, 0, 0, 0, 0x90, 0x90, hlt, hlt], count: 4),
        Row(what: "STI", code: [0xFB, 0x90, 0xFA, hlt], count: 4),
        Row(what: "MOV SS", code: [0x8E, 0xD0, 0x90, hlt], registers: [0: UInt64(Selector.kernelData)], count: 3),
        Row(what: "SSE", code: [0x0F, 0x58, 0xC1, 0x0F, 0x10, 0x03, hlt], registers: [3: ram], count: 3),
        Row(what: "x87", code: [0xD9, 0xE8, 0xD9, 0x1B, hlt], registers: [3: ram], count: 3),
        Row(what: "access over pages", code: [0x89, 0x03, hlt], registers: [3: ram - 4 + 0x1000], count: 2),
    ]

    static let faults: [Row] = [
        Row(what: "UD2", code: [0x90, 0x0F, 0x0B], count: 2),
        Row(what: "load", code: [0x90, 0x8B, 0x03, hlt], registers: [3: unmapped], count: 2),
        Row(what: "store", code: [0x90, 0x89, 0x03, hlt], registers: [3: unmapped], count: 2),
        Row(what: "push", code: [0x90, 0x50, hlt], registers: [4: nonCanonical], count: 2),
        Row(what: "divide", code: [0x90, 0xF7, 0xF1, hlt], registers: [1: 0], count: 2),
        Row(what: "SSE load", code: [0x90, 0x0F, 0x10, 0x03, hlt], registers: [3: unmapped], count: 2),
        Row(what: "jump to nowhere", code: [0x90, 0xFF, 0xE0], registers: [0: unmapped], count: 3),
        Row(what: "call to nowhere", code: [0x90, 0xFF, 0xD0], registers: [0: unmapped], count: 3),
        Row(what: "jump out of the address space", code: [0x90, 0xFF, 0xE0], registers: [0: nonCanonical], count: 2),
        Row(what: "call out of the address space", code: [0x90, 0xFF, 0xD0], registers: [0: nonCanonical], count: 2),
        Row(what: "return out of the address space", code: [0x50, 0xC3], registers: [0: nonCanonical], count: 2),
        Row(what: "INT3", code: [0x90, 0xCC], count: 3),
        Row(what: "INT", code: [0x90, 0xCD, 0x80], count: 3),
        Row(what: "privileged instruction's fault", code: [0x90, 0x0F, 0x22, 0xC0], registers: [0: 1 << 40], count: 2),
        // PUSHF; OR dword [RSP], 100h; POPF; NOP, trapped behind.
        Row(what: "single step", code: [0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D, 0x90], count: 5),
    ]

    static let outside: [Row] = [
        Row(what: "device load", code: [0x90, 0x8B, 0x03, 0x90, hlt], registers: [3: device], count: 4),
        Row(what: "device store", code: [0x90, 0x89, 0x03, 0x90, hlt], registers: [3: device], count: 4),
        Row(what: "device read and write", code: [0x90, 0x01, 0x03, 0x90, hlt], registers: [3: device], count: 4),
        Row(what: "device SSE", code: [0x0F, 0x10, 0x03, hlt], registers: [3: device], count: 2),
        Row(what: "IN", code: [0x90, 0xE4, 0x20, 0x90, hlt], count: 4),
        Row(what: "OUT", code: [0x90, 0xE6, 0x20, 0x90, hlt], count: 4),
        Row(what: "REP INSB", code: [0xF3, 0x6C, hlt], registers: [1: 3000, 2: 0x20, 7: ram], count: 2),
        Row(what: "REP OUTSB", code: [0xF3, 0x6E, hlt], registers: [1: 7, 2: 0x20, 6: ram], count: 2),
        Row(what: "REP STOSD to a device", code: [0xF3, 0xAB, hlt], registers: [1: 5, 7: device], count: 2),
        Row(
            what: "REP MOVSD from a device", code: [0xF3, 0xA5, hlt], registers: [1: 5, 6: device, 7: ram], count: 2),
    ]

    static let repetitions: [Row] = [
        Row(what: "none", code: [0xF3, 0xA4, hlt], registers: [1: 0, 6: ram, 7: ram], count: 2),
        Row(what: "pages", code: [0xF3, 0xA4, hlt], registers: [1: 0x2000, 6: 0, 7: 0x7_0000], count: 2),
        // More elements than are done at once.
        Row(
            what: "downwards", code: [0xFD, 0xF3, 0xA4, 0xFC, hlt],
            registers: [1: 10_000, 6: 0x7_FFFF, 7: 0x6_FFFF], count: 4),
        Row(what: "SCASB", code: [0xF2, 0xAE, hlt], registers: [0: 0x5A, 1: 9000, 7: 0x7_0000], count: 2),
        Row(what: "LODSQ", code: [0xF3, 0x48, 0xAD, hlt], registers: [1: 9000, 6: 0x7_0000], count: 2),
        Row(what: "faults midway", code: [0xF3, 0xAA, hlt], registers: [1: 0x3000, 7: ram], count: 1),
    ]

    private static let executions: [Execution] = [
        .interpreter, .translator(threshold: 1), .translator(threshold: 3), .lockstep(threshold: 1),
    ]

    private func run(_ machine: TestMachine, _ row: Row, attention: Bool) -> UInt64? {
        let s = machine.state
        machine.write(row.code, at: Place.code + row.offset)
        s.setFlags(2)
        s.setRegister(4, Place.userStack)
        for (number, value) in row.registers { s.setRegister(number, value) }
        s.pointee.rip = Place.code + row.offset
        let before = s.pointee.instruction_count
        for _ in 0..<1000 {
            if attention { martlet_request_attention(s) }
            switch machine.runProcessor() {
            case .attention:
                martlet_clear_attention(s)
                // Answered and single instructions go ahead; the rest begins only now.
                if case .halt = machine.runProcessor() { return s.pointee.instruction_count - before }
                answer(s)
            case .mmio, .portIO: answer(s)
            case .halt: return s.pointee.instruction_count - before
            default: return nil
            }
        }
        return nil
    }

    private func answer(_ s: State) {
        switch s.pointee.stop {
        case UInt32(MARTLET_STOP_PORT): s.pointee.port_answered = s.pointee.port_count
        case UInt32(MARTLET_STOP_MMIO):
            s.pointee.mmio_count += 1
            s.pointee.mmio_pending = 0
        default: break
        }
    }

    private func check(_ row: Row) {
        for execution in Self.executions {
            let machine = TestMachine()
            machine.processor.execution = execution
            machine.state.pointee.counts_instructions = 1
            machine.enterPagedLong()
            machine.map(0, to: 0xFEE0_0000, 3)
            machine.map(1, to: Pages.frame, 3)
            machine.map(2, to: Pages.frame + 0x1000, 3)
            machine.useStackTable(for: [12, 13, 14])
            // The first pass decodes and translates, the others find what it left.
            for pass in 0..<4 {
                if row.what == "own code" { machine.forgetCode() }
                let count = run(machine, row, attention: pass == 3)
                #expect(count == row.count, "\(execution), pass \(pass)")
            }
        }
    }

    @Test(arguments: plain) func plainCode(_ row: Row) { check(row) }
    @Test(arguments: faults) func faultingCode(_ row: Row) { check(row) }
    @Test(arguments: outside) func answeredAccesses(_ row: Row) { check(row) }
    @Test(arguments: repetitions) func repeatedStrings(_ row: Row) { check(row) }
}
