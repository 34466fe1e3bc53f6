internal import CHost
import Testing

@testable import CPU

/// Two processors on one guest: what must be found, and what must not.
@Suite struct LockstepTests {
    private static let loop: [UInt8] = [
        0x48, 0xFF, 0xC0,  // inc rax
        0x48, 0x89, 0x03,  // mov [rbx], rax
        0xFF, 0xC9,  // dec ecx
        0x75, 0xF6,  // jnz
        0xF4,
    ]

    private func machine(_ code: [UInt8], count: UInt64 = 1000) -> TestMachine {
        let machine = TestMachine()
        machine.processor.execution = .lockstep(threshold: 1)
        machine.enterLong()
        machine.write(code, at: Place.code)
        machine.forgetCode()
        machine.state.setRegister(0, 0)
        machine.state.setRegister(1, count)
        machine.state.setRegister(3, Place.data)
        machine.state.setRegister(4, Place.userStack)
        machine.state.pointee.rip = Place.code
        return machine
    }

    /// The decoded instruction of one side at an address of `Place.code`.
    private func instruction(_ processor: Processor, at address: UInt64, index: Int) throws -> Insn {
        try #require(processor.cache.find(CodeCache.key(address, mode: CodeMode.bits64, isUser: false))) + index
    }

    @Test func equalProcessorsAgree() {
        let machine = machine(Self.loop, count: 1_000_000)
        #expect(machine.processor.run() == .halt)
        #expect(machine.processor.checkLockstep())
        #expect(machine.processor.lockstepReport == nil)
        #expect(machine.state.register(0) == 1_000_000)
    }

    /// A handler of the primary that is wrong in one register.
    @Test func aWrongRegisterIsFound() throws {
        let machine = machine(Self.loop)
        #expect(machine.processor.run() == .halt)
        machine.state.pointee.rip = Place.code
        machine.state.setRegister(1, 1000)
        let first = try instruction(machine.processor, at: Place.code, index: 0)
        let broken: Handler = { s, i in
            s.setRegister(0, s.register(0) &+ 1)
            s.setRegister(9, 0xBAD)
            return i + 1
        }
        first.pointee.handler = unsafeBitCast(broken, to: UnsafeMutableRawPointer.self)
        #expect(machine.processor.run() == .difference)
        let report = try #require(machine.processor.lockstepReport)
        #expect(report.contains("the translator and the interpreter differ: registers"))
        #expect(report.contains("from rip 0x40000"))
        #expect(report.contains("48 ff c0"))
        let line = try #require(report.split(separator: "\n").first { $0.contains(" r9 ") })
        #expect(line.contains("0000000000000bad") && line.hasSuffix("<<<"))
        // It cannot go on.
        #expect(machine.processor.run() == .difference)
        #expect(!machine.processor.checkLockstep())
    }

    @Test func aWrongStoreIsFound() throws {
        let machine = machine(Self.loop)
        #expect(machine.processor.run() == .halt)
        machine.state.pointee.rip = Place.code
        machine.state.setRegister(1, 1000)
        let store = try instruction(machine.processor, at: Place.code, index: 0)
        let broken: Handler = { s, i in
            s.setRegister(0, s.register(0) &+ 1)
            // What translated code with a wrong address would do: nothing in the logs knows of it.
            (s.slotTable[0].host.unsafelyUnwrapped + 0x7_0123).pointee = 0x5A
            return i + 1
        }
        store.pointee.handler = unsafeBitCast(broken, to: UnsafeMutableRawPointer.self)
        #expect(machine.processor.run() == .halt)
        #expect(!machine.processor.checkLockstep())
        let report = try #require(machine.processor.lockstepReport)
        #expect(report.contains("guest memory at 0x70123"))
    }

    @Test func aWrongExceptionIsFound() throws {
        let machine = machine([0x90, 0x90, 0x90, 0xF4])
        #expect(machine.processor.run() == .halt)
        machine.state.pointee.rip = Place.code
        let second = try instruction(machine.processor, at: Place.code, index: 0)
        let broken: Handler = { s, i in fault(s, i, .generalProtection) }
        second.pointee.handler = unsafeBitCast(broken, to: UnsafeMutableRawPointer.self)
        #expect(machine.processor.run() == .difference)
        let report = try #require(machine.processor.lockstepReport)
        #expect(report.contains("the translator stopped for exception 13, error 0x0, the interpreter for nothing"))
    }

    /// The time and the devices answer the primary only; the shadow gets the same answers.
    @Test func answersFromOutsideAreReplayed() {
        // rdtsc; mov r8d, eax; in al, 0x20; mov rcx, [0xFEE00000]; out 0x21, al; hlt
        let code: [UInt8] = [
            0x0F, 0x31, 0x41, 0x89, 0xC0, 0xE4, 0x20, 0x48, 0x8B, 0x0C, 0x25, 0, 0, 0xE0, 0x3E, 0xE6, 0x21, 0xF4,
        ]
        let machine = machine(code)
        let s = machine.state
        var reads: UInt64 = 0x1234
        withUnsafeMutablePointer(to: &reads) { reads in
            s.pointee.hooks.context = UnsafeMutableRawPointer(reads)
            s.pointee.hooks.mmio = { context, _, _, isWrite, value in
                guard let reads = context?.assumingMemoryBound(to: UInt64.self), isWrite == 0 else { return 1 }
                value.pointee = reads.pointee
                reads.pointee += 1
                return 0
            }
            s.pointee.hooks.port = { context, _, _, isWrite, value in
                guard let reads = context?.assumingMemoryBound(to: UInt64.self), isWrite == 0 else { return 1 }
                value.pointee = UInt32(truncatingIfNeeded: reads.pointee)
                reads.pointee += 1
                return 0
            }
            #expect(machine.processor.run() == .portIO)
            #expect(s.pointee.port_is_write == 1 && s.pointee.port_number == 0x21)
            s.pointee.port_answered = s.pointee.port_count
            #expect(machine.processor.run() == .halt)
            // Each was asked for once.
            #expect(reads.pointee == 0x1236)
        }
        #expect(s.register(1) == 0x1235)
        #expect(s.register(0) & 0xFF == 0x34)
        #expect(machine.processor.checkLockstep())
    }

    /// What the host writes to guest memory is in both, at once.
    @Test func hostWritesReachBoth() {
        let machine = machine(Self.loop)
        #expect(machine.processor.run() == .halt)
        machine.state.pointee.rip = Place.code
        machine.state.setRegister(1, 5)
        (machine.ram.bytes + Int(Place.code) + 2).storeBytes(of: 0xC2, as: UInt8.self)
        machine.processor.noteMemoryWritten(at: Place.code + 2, count: 1)
        machine.state.setRegister(2, 0)
        #expect(machine.processor.run() == .halt)
        // INC RDX now.
        #expect(machine.state.register(2) == 5)
        #expect(machine.processor.checkLockstep())
    }

    @Test func interruptsComeAtTheSameInstruction() {
        // sti; loop: inc rax; jmp loop; the handler of vector 0x40 halts.
        let machine = machine([0xFB, 0x48, 0xFF, 0xC0, 0xEB, 0xFB])
        for round in 1...200 {
            martlet_request_attention(machine.state)
            if round > 1 { #expect(machine.processor.run() == .attention) }
            martlet_clear_attention(machine.state)
            if machine.processor.canAcceptInterrupt {
                machine.processor.deliverInterrupt(0x40)
                #expect(machine.processor.run() == .halt)
                machine.state.pointee.rip = Place.code
                machine.state.setRegister(4, Place.userStack)
            }
            machine.state.pointee.window_requested = 1
            #expect(machine.processor.run() == .window)
            machine.state.pointee.window_requested = 0
        }
        #expect(machine.processor.checkLockstep())
    }
}
