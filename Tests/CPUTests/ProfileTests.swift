import CHost
import Testing

@testable import CPU

/// What samples say of where the guest is.
@Suite("Profile", .serialized)
struct ProfileTests {
    /// mov rcx, imm32; 1: dec rcx; jnz 1b; hlt, at `Place.code`. The loop is at offset 7.
    private static let loop: [UInt8] = [0x48, 0xC7, 0xC1, 0, 0, 0, 0, 0x48, 0xFF, 0xC9, 0x75, 0xFB, 0xF4]
    private static let loopOffset: UInt64 = 7

    private func machine(_ execution: Execution, passes: UInt32) -> TestMachine {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.write(Self.loop, at: Place.code)
        machine.store(passes, at: Place.code + 3)
        machine.enterLong()
        machine.state.setRegister(4, Place.kernelStack)
        machine.state.pointee.rip = Place.code
        machine.processor.prepareProfile()
        return machine
    }

    private func sample(_ machine: TestMachine) throws -> martlet_sample {
        let samples = try #require(machine.processor.profile).samples
        #expect(samples.count == 1)
        return try #require(samples.first)
    }

    @Test(
        "A loop is met by the timer where it is",
        arguments: [
            (.interpreter, UInt32(MARTLET_AT_INTERPRETER)), (.translator(threshold: 1), UInt32(MARTLET_AT_TRANSLATED)),
        ] as [(Execution, UInt32)])
    func timer(execution: Execution, at: UInt32) throws {
        let machine = machine(execution, passes: execution == .interpreter ? 20_000_000 : 300_000_000)
        let recorder = try #require(machine.processor.profile)
        #expect(recorder.start(intervalNanoseconds: 1_000_000) == 0)
        #expect(machine.processor.run() == .halt)
        recorder.stop()
        let samples = recorder.samples
        let total = samples.reduce(0) { $0 + $1.count }
        let inLoop = samples.filter {
            $0.at == at && $0.flags == 0
                && (Place.code + Self.loopOffset..<Place.code + UInt64(Self.loop.count)).contains($0.rip)
        }.reduce(0) { $0 + $1.count }
        #expect(total > 10)
        #expect(Double(inLoop) > 0.9 * Double(total), "\(inLoop) of \(total): \(samples)")
        #expect(recorder.lostCount == 0)
    }

    @Test("No sample comes after the end, and a profile can begin anew")
    func startAndStop() throws {
        let machine = machine(.interpreter, passes: 3_000_000)
        let recorder = try #require(machine.processor.profile)
        recorder.stop()
        #expect(recorder.start(intervalNanoseconds: 1_000_000) == 0)
        recorder.stop()
        #expect(machine.processor.run() == .halt)
        #expect(recorder.samples.isEmpty)
    }

    @Test("A block of translated code is found by any address in it")
    func places() throws {
        let machine = machine(.translator(threshold: 1), passes: 3)
        #expect(machine.processor.run() == .halt)
        let recorder = try #require(machine.processor.profile)
        #expect(recorder.blocks.map(\.guest) == [Place.code, Place.code + Self.loopOffset])
        for block in recorder.blocks {
            let before = recorder.samples.first { $0.rip == block.guest }?.count ?? 0
            martlet_set_activity(machine.state, UInt32(MARTLET_AT_GUEST))
            for address in [block.host, block.host + block.size / 2, block.host + block.size - 1] {
                recorder.count(registers: [0], programCounter: address)
            }
            let sample = try #require(recorder.samples.first { $0.rip == block.guest })
            #expect(sample.count == before + 3)
            #expect(sample.at == UInt32(MARTLET_AT_TRANSLATED))
        }
        recorder.forgetTranslated()
        #expect(recorder.blocks.isEmpty)
        recorder.count(registers: [0], programCounter: machine.processor.arena.codeRange.start)
        // Nothing is known of it but the page.
        #expect(recorder.samples.contains { $0.rip == Place.code && $0.flags == UInt32(MARTLET_SAMPLE_PAGE) })
    }

    @Test("A handler's instruction is found by a register; else the page is known")
    func registers() throws {
        let machine = machine(.interpreter, passes: 3)
        #expect(machine.processor.run() == .halt)
        let recorder = try #require(machine.processor.profile)
        let range = machine.processor.cache.instructionRange
        let stride = UInt64(MemoryLayout<martlet_insn>.stride)
        martlet_set_activity(machine.state, UInt32(MARTLET_AT_PAGE_WALK))
        // Values around the instructions that lead to none, then the loop's JNZ.
        recorder.count(
            registers: [0, range.start &- 1, range.start &+ 1, range.start &+ range.size, range.start + 2 * stride],
            programCounter: 0)
        #expect(try sample(machine).rip == Place.code + 10)
        #expect(try sample(machine).at == UInt32(MARTLET_AT_PAGE_WALK))
        #expect(try sample(machine).flags == 0)
    }

    @Test("User mode, and what happens outside of guest code")
    func outside() throws {
        let machine = machine(.interpreter, passes: 3)
        let recorder = try #require(machine.processor.profile)
        machine.setPrivilege(3)
        machine.state.pointee.rip = 0x1234_5678
        martlet_set_activity(machine.state, UInt32(MARTLET_AT_ENGINE))
        recorder.count(registers: [0], programCounter: 0)
        #expect(try sample(machine).rip == 0x1234_5678)
        #expect(try sample(machine).flags == UInt32(MARTLET_SAMPLE_USER))
        #expect(try sample(machine).at == UInt32(MARTLET_AT_ENGINE))
    }

    @Test("More places than there is room for are counted as lost")
    func bounds() throws {
        let machine = machine(.interpreter, passes: 3)
        let recorder = try #require(machine.processor.profile)
        martlet_set_activity(machine.state, UInt32(MARTLET_AT_OUTSIDE))
        for number in UInt64(0)..<400_000 {
            machine.state.pointee.rip = number
            recorder.count(registers: [0], programCounter: 0)
        }
        let kept = recorder.samples.reduce(0) { $0 + $1.count }
        #expect(kept + recorder.lostCount == 400_000)
        #expect(kept > 200_000)
    }
}
