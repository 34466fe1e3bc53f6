internal import CHost
import Testing

@testable import CPU

/// `exactFlags`: status flags that the guest overwrites unread are right all the same in a fault's frame.
@Suite struct ExactFlagsTests {
    /// What leaves flags behind, each with other ones than those it began with.
    private static let producers: [(name: String, code: [UInt8])] = [
        ("add", [0x01, 0xD8]), ("cmp", [0x39, 0xD8]), ("test", [0x85, 0xDB]), ("inc", [0xFF, 0xC0]),
        ("dec bl", [0xFE, 0xCB]), ("shl 3", [0xC1, 0xE0, 3]), ("neg", [0xF7, 0xD8]), ("bsf", [0x0F, 0xBC, 0xC3]),
        ("imul", [0x0F, 0xAF, 0xC3]), ("xor, stc", [0x31, 0xC0, 0xF9]), ("push, pop", [0x39, 0xD8, 0x50, 0x5A]),
        ("ucomiss", [0x0F, 0x2E, 0xC1]),
    ]
    /// Accesses that fault with RSI out of the address space, before XOR overwrites the flags.
    private static let accesses: [(name: String, code: [UInt8])] = [
        ("[rsi]", [0x8B, 0x16]), ("[rsi + rcx * 8 + 5]", [0x48, 0x8B, 0x54, 0xCE, 5]), ("store", [0x89, 0x16]),
        ("movaps", [0x0F, 0x28, 0x1E]), ("two", [0x8B, 0x16, 0x8B, 0x56, 8]),
    ]

    private func frame(_ execution: Execution, _ code: [UInt8]) -> Trapped? {
        let machine = TestMachine(isAlone: true)
        machine.processor.execution = execution
        machine.enterLong()
        machine.useStackTable(for: [13])
        machine.state.pointee.cr4 |= 1 << 9
        machine.write(code, at: Place.code)
        machine.forgetCode()
        machine.state.setFlags(2)
        let registers: [Int: UInt64] = [0: 0x7FFF_FFFF, 1: 2, 3: 0x9000_0009, 4: Place.userStack, 6: 1 << 62]
        for (number, value) in registers { machine.state.setRegister(number, value) }
        machine.state.pointee.rip = Place.code
        return machine.trapped(after: machine.runProcessor())
    }

    @Test func framesAreTheInterpreters() throws {
        for producer in Self.producers {
            for access in Self.accesses {
                // What follows kills all flags: xor ecx, ecx; hlt
                let code = producer.code + access.code + [0x31, 0xC9, 0xF4]
                let expected = try #require(frame(.interpreter, code), "\(producer.name), \(access.name)")
                #expect(expected.vector == 13)
                #expect(
                    frame(.translator(threshold: 1, exactFlags: true), code) == expected,
                    "\(producer.name), \(access.name)")
                #expect(
                    frame(.lockstep(threshold: 1, exactFlags: true), code) == expected,
                    "\(producer.name), \(access.name) in lockstep")
            }
        }
    }

    /// Without it the same frames have the same everything but status flags.
    @Test func framesDifferInStatusFlagsOnly() throws {
        let status: UInt64 = 0x8D5
        for producer in Self.producers {
            for access in Self.accesses {
                let code = producer.code + access.code + [0x31, 0xC9, 0xF4]
                var expected = try #require(frame(.interpreter, code))
                var found = try #require(frame(.translator(threshold: 1), code))
                expected.flags &= ~status
                found.flags &= ~status
                #expect(found == expected, "\(producer.name), \(access.name)")
            }
        }
    }
}
