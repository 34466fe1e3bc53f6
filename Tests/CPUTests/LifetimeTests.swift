internal import CHost
import Testing

@testable import CPU

/// Processors that are made, used and dropped leave nothing behind.
@Suite(.serialized) struct LifetimeTests {
    private static let executions: [Execution] = [.interpreter, .translator(threshold: 1), .lockstep(threshold: 1)]

    /// Interprets, translates, jumps indirectly, uses vector registers and the x87, and divides by zero.
    private static let code: [UInt8] = [
        0xB9, 0xE8, 3, 0, 0,  // mov ecx, 1000
        0x48, 0x01, 0x03,  // add [rbx], rax
        0x0F, 0x10, 0x03,  // movups xmm0, [rbx]
        0x66, 0x0F, 0xD4, 0xC0,  // paddq xmm0, xmm0
        0xD9, 0xE8, 0xDD, 0xD8,  // fld1; fstp st0
        0xFF, 0xC9, 0x75, 0xEE,  // dec ecx; jnz
        0x31, 0xD2, 0xF7, 0xF1,  // xor edx, edx; div ecx
    ]

    private struct Parts {
        weak var processor: Processor?
        weak var lockstep: Lockstep?
        weak var shadow: Processor?
        weak var cache: CodeCache?
        weak var arena: CodeArena?

        var isGone: Bool { processor == nil && lockstep == nil && shadow == nil && cache == nil && arena == nil }
    }

    private func live(_ execution: Execution) -> Parts {
        let machine = TestMachine()
        let processor = machine.processor
        processor.execution = execution
        machine.enterLong()
        machine.write(Self.code, at: Place.code)
        machine.forgetCode()
        machine.state.setRegister(3, Place.data)
        machine.state.setRegister(4, Place.userStack)
        machine.state.pointee.rip = Place.code
        #expect(machine.run()?.vector == 0, "\(execution)")
        return Parts(
            processor: processor, lockstep: processor.lockstep, shadow: processor.lockstep?.shadow,
            cache: processor.cache, arena: processor.arena)
    }

    @Test func nothingIsLeftOfAProcessor() {
        for execution in Self.executions { #expect(live(execution).isGone, "\(execution)") }
    }

    /// What is mapped is unmapped: a processor that has run takes more than a MiB. In a process of its own, because memory
    /// is counted by process.
    @Test func manyProcessorsTakeNoMoreMemoryThanOne() async {
        await #expect(processExitsWith: .success) {
            let tests = LifetimeTests()
            for _ in 0..<5 { for execution in LifetimeTests.executions { _ = tests.live(execution) } }
            let resident = residentPages()
            for _ in 0..<50 { for execution in LifetimeTests.executions { _ = tests.live(execution) } }
            #expect(residentPages() - resident < 64 << 8, "memory grew by more than 64 MiB")
        }
    }
}
