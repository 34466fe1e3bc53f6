internal import CHost
import Testing

@testable import CPU

/// Delivery of exceptions and interrupts, shadows and single-stepping (SDM vol. 3A ch. 6, vol. 3B §17.3).
@Suite struct SystemEventTests {
    private static let returnWithError: [UInt8] = [0xF4, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF]
    private static let returnHandler: [UInt8] = [0xF4, 0x48, 0xCF]

    private func long(_ cpl: UInt8 = 0) -> TestMachine {
        let machine = TestMachine()
        machine.enterPagedLong()
        if cpl == 3 {
            machine.setPrivilege(3)
            machine.map(20, to: Place.userStack - 4096, 7)
        }
        return machine
    }

    // MARK: Double and triple faults

    /// A second fault: #PF while a #GP is delivered, and #GP while a #PF is. Then with no gate for #DF.
    @Test(arguments: [UInt8(13), 14], [true, false]) func doubleFault(first: UInt8, hasGate: Bool) throws {
        let machine = long()
        // The first exception's gate is not there.
        machine.store(UInt64(0), at: Place.idt + UInt64(first) * 16)
        machine.useStackTable(for: [8])
        if !hasGate { machine.store(UInt64(0), at: Place.idt + 8 * 16) }
        let code: [UInt8] = first == 13 ? [0x0F, 0x01, 0xF8, 0x0F, 0x32] : [0x8B, 0x03]
        machine.write(code, at: Place.code)
        let s = machine.state
        s.setRegister(3, Pages.base)
        s.setRegister(1, 0x1234_5678)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        let stop = machine.runProcessor()
        if !hasGate {
            #expect(stop == .shutdown)
            return
        }
        let trapped = try #require(machine.trapped(after: stop))
        #expect(trapped.vector == 8)
        #expect(trapped.error == 0)
        #expect(trapped.rsp == Place.userStack)
    }

    /// A benign exception whose delivery faults is followed by that fault, not by a double fault.
    @Test func benignThenFault() throws {
        let machine = long()
        machine.store(UInt64(0), at: Place.idt + 6 * 16)
        let trapped = try #require(machine.execute([0x0F, 0x0B]))
        #expect(trapped.vector == 13)
        // IDT, external event, index 6.
        #expect(trapped.error == 6 * 8 + 3)
    }

    @Test func stackTableAndAlignment() throws {
        let machine = long()
        machine.useStackTable(for: [6])
        let trapped = try #require(machine.execute([0x0F, 0x0B], [4: Place.userStack - 3]))
        #expect(machine.state.register(4) == Place.kernelStack - 40)
        #expect(trapped.rsp == Place.userStack - 3)
        // Without it the frame is aligned by 16 on the stack of the moment.
        let next = try #require(machine.execute([0xCC], [4: Place.userStack - 3]))
        #expect(machine.state.register(4) == (Place.userStack - 3) & ~15 - 40)
        #expect(next.flags & RFlags.resume == 0)
        #expect(trapped.flags & RFlags.resume != 0)
    }

    // MARK: Interrupt shadow

    private static let shadows: [([UInt8], UInt64)] = [
        // STI; NOP; NOP
        ([0xFB, 0x90, 0x90], 2),
        // STI; STI; NOP: only the first one that sets IF has a shadow.
        ([0xFB, 0xFB, 0x90], 2),
        // MOV SS, AX; NOP; NOP with interrupts on before.
        ([0xFB, 0x90, 0x8E, 0xD0, 0x90, 0x90], 2),
        // POPF that sets IF has none.
        ([0x9D, 0x90], 1),
    ]

    /// (code, offset at which an interrupt that waits from the start is taken)
    @Test(arguments: shadows) func interruptShadow(_ code: [UInt8], offset: UInt64) {
        let machine = long()
        machine.write(code + [0xCC], at: Place.code)
        machine.store(UInt64(0x202), at: Place.userStack)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.setRegister(0, UInt64(Selector.kernelData))
        s.pointee.rip = Place.code
        s.pointee.window_requested = 1
        #expect(machine.runProcessor() == .window)
        #expect(s.pointee.rip == Place.code + offset)
        #expect(machine.processor.canAcceptInterrupt)
        s.pointee.window_requested = 0
        machine.processor.deliverInterrupt(0x90)
        #expect(s.pointee.rip == Place.handlers + 0x900)
        #expect(s.pointee.rflags & RFlags.interrupt == 0)
    }

    /// A window behind MOV SS opens one instruction later.
    @Test func shadowOfStackSegment() {
        let machine = long()
        machine.write([0x8E, 0xD0, 0x90, 0x90, 0xCC], at: Place.code)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.setRegister(0, UInt64(Selector.kernelData))
        s.pointee.rip = Place.code
        s.setFlags(0x202)
        // As behind an STI: MOV SS runs in its shadow and casts its own.
        s.pointee.interrupt_shadow = 1
        s.pointee.window_requested = 1
        #expect(machine.runProcessor() == .window)
        #expect(s.pointee.rip == Place.code + 3)
    }

    /// An NMI comes although the trap flag is set, once, and others wait for IRET.
    @Test func nonMaskable() throws {
        let machine = long()
        machine.write([0x90, 0x90, 0xCC], at: Place.code)
        machine.write(Self.returnHandler, at: Place.handlers + 2 * 16)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        s.pointee.nmi_pending = 1
        #expect(machine.run()?.vector == 2)
        s.pointee.nmi_pending = 1
        s.pointee.rflags &= ~RFlags.trap
        #expect(machine.run()?.vector == 2)
        #expect(s.pointee.nmi_pending == 0)
        #expect(machine.run()?.vector == 3)
    }

    // MARK: Single-stepping

    /// Offsets of the instructions behind which #DB comes, until INT3.
    private func trace(_ code: [UInt8], _ cpl: UInt8 = 0, _ prepare: (TestMachine) -> Void = { _ in }) -> [Int64] {
        let machine = long(cpl)
        machine.write(Self.returnHandler, at: Place.handlers + 16)
        let start = cpl == 3 ? Pages.userCode : Place.code
        machine.write(code + [0xCC], at: Place.code)
        let s = machine.state
        s.setRegister(4, cpl == 3 ? Pages.address(21) - 256 : Place.userStack)
        s.setRegister(0, UInt64(Selector.kernelData))
        s.setRegister(1, 3)
        s.setRegister(6, Place.data)
        s.setRegister(7, Place.data + 256)
        s.pointee.rip = start
        s.setFlags(0x102)
        prepare(machine)
        var seen: [Int64] = []
        while seen.count < 20, let trapped = machine.run(), trapped.vector == 1 {
            #expect(martlet_debug_registers(s)[6] & 1 << 14 != 0)
            #expect((trapped.flags & RFlags.resume != 0) == (trapped.rip == start && code.first == 0xF3))
            seen.append(Int64(bitPattern: trapped.rip &- start))
        }
        return seen
    }

    private static let steps: [([UInt8], [Int64])] = [
        ([0x90, 0x90], [1, 2]),
        // Each element of REP MOVSB.
        ([0xF3, 0xA4, 0x90], [0, 0, 2, 3]),
        // JMP over an INT3.
        ([0xEB, 1, 0xCC, 0x90], [3, 4]),
        // Nothing between MOV SS and the next instruction.
        ([0x8E, 0xD0, 0x90, 0x90], [3, 4]),
        // STI holds interrupts off, not the trap.
        ([0xFB, 0x90], [1, 2]),
        // PUSHF; AND dword [rsp], ~TF; POPF: the trap behind POPF still comes.
        ([0x9C, 0x81, 0x24, 0x24, 0xFF, 0xFE, 0xFF, 0xFF, 0x9D, 0x90], [1, 8, 9]),
        // CALL and RET.
        ([0xE8, 1, 0, 0, 0, 0xCC, 0x90], [6, 7]),
        ([0x0F, 0xA2], [2]),
    ]

    @Test(arguments: steps) func singleStep(_ code: [UInt8], expected: [Int64]) { #expect(trace(code) == expected) }

    /// POPF that sets TF: the first trap is behind the instruction after it.
    @Test func popfBegins() {
        let seen = trace([0x9D, 0x90, 0x90]) { machine in
            machine.state.setFlags(0x2)
            machine.store(UInt64(0x102), at: Place.userStack)
        }
        #expect(seen == [2, 3])
    }

    /// The trap behind a jump comes before the page fault at its target.
    @Test func stepBeforeFetchFault() {
        let machine = long()
        machine.write(Self.returnHandler, at: Place.handlers + 16)
        machine.write([0xFF, 0xE3], at: Place.code)
        let s = machine.state
        s.setRegister(3, Pages.base)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        s.setFlags(0x102)
        #expect(machine.run()?.vector == 1)
        let second = machine.run()
        #expect(second?.vector == 14)
        #expect(second?.rip == Pages.base)
    }

    /// SYSCALL with TF in its mask is not followed by #DB; SYSRET to a stepped program is, at once.
    @Test func systemCalls() {
        let seen = trace([0x0F, 0x05, 0x90], 3) { machine in
            let s = machine.state
            s.pointee.star = UInt64(0x23) << 48 | UInt64(Selector.kernelCode64) << 32
            s.pointee.lstar = Place.data
            s.pointee.fmask = RFlags.trap
            machine.write([0x90, 0x48, 0x0F, 0x07], at: Place.data)
            machine.forgetCode()
        }
        #expect(seen == [2, 3])
    }

    /// INT n in a stepped program: no trap in the handler; one behind the instruction after it.
    @Test func softwareInterrupt() {
        let machine = long()
        machine.write(Self.returnHandler, at: Place.handlers + 16)
        machine.write([0x90, 0x48, 0xCF], at: Place.handlers + 0x800)
        machine.write([0xCD, 0x80, 0x90, 0xCC], at: Place.code)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        s.setFlags(0x102)
        #expect(machine.run()?.rip == Place.code + 3)
    }

    private static let gates: [([UInt8], UInt8)] = [
        ([0xF1], 1), ([0xCD, 1], 13), ([0xCC], 3), ([0xCD, 3], 3), ([0xCD, 0x21], 13),
    ]

    /// INT1 does not ask for the gate's privilege, INT 1 does.
    @Test(arguments: gates) func gatePrivilege(_ code: [UInt8], vector: UInt8) {
        let machine = long(3)
        let trapped = machine.execute(code, at: Pages.userCode, [4: Pages.address(21) - 256])
        #expect(trapped?.vector == vector)
        #expect(trapped?.cs == UInt64(Selector.userCode64))
    }

    /// A single step through a jump whose target the jump cache knows by a block that was dropped meanwhile.
    @Test func answeredAccessOnStalePage() {
        let machine = TestMachine()
        machine.enterPagedLong()
        // MOV [rdi], eax to a device; the page's code is dropped before the answer.
        machine.map(0, to: 0xFEE0_0000, 3)
        machine.write([0x89, 0x07, 0xFF, 0xC1, 0xCC], at: Place.code)
        let s = machine.state
        s.setRegister(7, Pages.base)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        #expect(machine.runProcessor() == .mmio)
        machine.processor.invalidateCode(page: Int(Place.code >> 12))
        s.pointee.mmio_count = 1
        s.pointee.mmio_pending = 0
        #expect(machine.run()?.vector == 3)
        #expect(s.register(1) == 1)
    }
}
