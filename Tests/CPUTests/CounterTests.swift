import CHost
import Testing

@testable import CPU

/// What the processor counts for statistics: everything off the run loop.
@Suite("Counters")
struct CounterTests {
    /// mov ecx, 1000; 1: dec ecx; jnz 1b; hlt.
    private static let loop: [UInt8] = [0xB9, 0xE8, 0x03, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xF4]

    private func machine(_ code: [UInt8], _ execution: Execution) -> TestMachine {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.write(code, at: Place.code)
        machine.enterLong()
        machine.state.setRegister(4, Place.kernelStack)
        machine.state.pointee.rip = Place.code
        return machine
    }

    @Test("A loop that becomes host code")
    func translation() {
        let machine = machine(Self.loop, .translator(threshold: 1))
        #expect(machine.processor.run() == .halt)
        let state = machine.state.pointee.counters
        // A conditional jump does not end a block: one is of all four instructions, one begins at the jump's target.
        #expect(machine.state.pointee.translated_blocks == 2)
        #expect(machine.state.pointee.translated_instructions == 7)
        #expect(state.decoded_blocks == 2)
        #expect(state.unlinked_branches > 0 && state.unlinked_branches < 10)
        #expect(state.linked_branches > 0 && state.linked_branches <= state.unlinked_branches)
        #expect(state.fetch_misses == 1)
        #expect(state.decoding_cycles > 0)
        #expect(state.translation_cycles > 0)
        let usage = machine.processor.codeUsage
        #expect(usage.translatedBytes > 0 && usage.translatedBytes < 4096)
        #expect(usage.decodedBlocks == 2)
        #expect(usage.decodedInstructions == 9)
        // The page of the code, and of the tables what was touched.
        #expect(usage.residentBytes > usage.translatedBytes)
        #expect(usage.residentBytes < 64 << 20)
    }

    @Test("The interpreter translates nothing")
    func interpretation() {
        let machine = machine(Self.loop, .interpreter)
        #expect(machine.processor.run() == .halt)
        #expect(machine.state.pointee.translated_blocks == 0)
        #expect(machine.state.pointee.counters.translation_cycles == 0)
        #expect(machine.state.pointee.counters.unlinked_branches == 0)
        #expect(machine.processor.codeUsage.translatedBytes == 0)
    }

    @Test("Exceptions by vector")
    func exceptions() {
        // ud2
        let machine = machine([0x0F, 0x0B], .interpreter)
        #expect(machine.run()?.vector == 6)
        let counts = martlet_exception_counts(machine.state)
        for vector in 0..<Int(MARTLET_EXCEPTION_VECTORS) { #expect(counts[vector] == (vector == 6 ? 1 : 0)) }
    }
}
