internal import CHost
import Testing

@testable import CPU

/// What lockstep found, one test each.
@Suite struct LockstepFindingTests {
    private static let executions: [Execution] = [.interpreter, .translator(threshold: 1), .lockstep(threshold: 1)]

    /// Runs `code` up to its HLT a few times on each way of executing, and looks at what it left.
    private func check(
        _ code: [UInt8], _ registers: [Int: UInt64], _ look: (TestMachine) -> Void
    ) {
        for execution in Self.executions {
            let machine = TestMachine()
            machine.processor.execution = execution
            machine.enterLong()
            machine.useStackTable(for: [13])
            machine.write(code, at: Place.code)
            machine.forgetCode()
            for _ in 0..<3 {
                machine.state.setFlags(2)
                machine.state.setRegister(4, Place.userStack)
                for (number, value) in registers { machine.state.setRegister(number, value) }
                machine.state.pointee.rip = Place.code
                #expect(machine.runProcessor() == .halt, "\(execution)")
                look(machine)
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    @Test func xaddOfARegisterWithItself() {
        // xadd r12, r12; hlt
        check([0x4D, 0x0F, 0xC1, 0xE4, 0xF4], [12: 0x1234]) { #expect($0.state.register(12) == 0x2468) }
    }

    /// SF, ZF, AF and PF are undefined behind MUL and IMUL, which on Intel's processors means unchanged: what one way of
    /// executing leaves in them the other must too.
    @Test func flagsThatMultiplicationLeaves() {
        // xor eax, eax; mov ecx, [rbx]; imul ecx, ecx, 3; setz al; pushfq; pop rdx; hlt
        let code: [UInt8] = [0x31, 0xC0, 0x8B, 0x0B, 0x6B, 0xC9, 3, 0x0F, 0x94, 0xC0, 0x9C, 0x5A, 0xF4]
        var seen: Set<UInt64> = []
        check(code, [3: Place.data]) { seen.insert($0.state.register(2)) }
        #expect(seen.count == 1)
        // The same with MUL, whose handler must be given the guest's flags.
        // mov rax, [rbx + 8]; or ecx, -1; mul dl; pushfq; pop rdx; hlt
        let wide: [UInt8] = [0x48, 0x8B, 0x43, 8, 0x83, 0xC9, 0xFF, 0xF6, 0xE2, 0x9C, 0x5A, 0xF4]
        seen = []
        check(wide, [2: 7, 3: Place.data]) { seen.insert($0.state.register(2)) }
        #expect(seen.count == 1)
    }

    /// MXCSR_MASK in the image is the guest's, also when the host's FXSAVE was used for x87 instructions before.
    @Test func maskInTheImage() {
        // fninit; fld1; fxsave [rbx]; hlt
        check([0xDB, 0xE3, 0xD9, 0xE8, 0x0F, 0xAE, 0x03, 0xF4], [3: Place.data]) {
            #expect($0.load(Place.data + 28, as: UInt32.self) == FXImage.mxcsrBits)
        }
    }

    @Test func indirectCallOutOfTheAddressSpacePushesNothing() {
        let sentinel: UInt64 = 0x5A5A_5A5A_5A5A_5A5A
        for target in [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x1234_0000_0000_0000] as [UInt64] {
            // mov [rsp - 8], rdx; call rax
            check([0x48, 0x89, 0x54, 0x24, 0xF8, 0xFF, 0xD0], [0: target, 2: sentinel]) {
                #expect($0.trapped(after: .halt)?.rip == Place.code + 5)
                #expect($0.load(Place.userStack - 8, as: UInt64.self) == sentinel)
            }
        }
        // Those at the edges are calls like any other.
        for target in [0x7FFF_FFFF_F000, 0xFFFF_8000_0000_0000] as [UInt64] {
            check([0xFF, 0xD0], [0: target]) {
                #expect($0.load(Place.userStack - 8, as: UInt64.self) == Place.code + 2)
            }
        }
    }

    /// A breakpoint on the first instruction of the handler of breakpoints: the guest does nothing else any more, and
    /// attention is seen all the same.
    @Test(arguments: executions) func attentionAmongBreakpoints(execution: Execution) {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.enterProtected()
        martlet_debug_registers(machine.state)[0] = Place.handlers + 16
        martlet_debug_registers(machine.state)[7] = 0x402
        updateBreakpoints(machine.state)
        machine.state.setRegister(4, Place.userStack)
        machine.state.pointee.rip = Place.handlers + 16
        martlet_request_attention(machine.state)
        #expect(machine.runProcessor() == .attention)
    }

    /// A direct branch out of the address space faults itself, before it has pushed anything.
    @Test func directBranchOutOfTheAddressSpace() {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.useStackTable(for: [13])
        let top: UInt64 = 0x7FFF_FFFF_F000
        let tables: [(UInt64, UInt64, UInt64)] = [
            (Place.tables, 255, 0x3_1003), (0x3_1000, 511, 0x3_2003), (0x3_2000, 511, 0x3_3003),
            (0x3_3000, 511, Place.code | 3),
        ]
        for (table, index, entry) in tables { machine.store(entry, at: table + index * 8) }
        machine.processor.flushTLB()
        for code in [[0xE9, 0, 0x10, 0, 0], [0xE8, 0, 0x10, 0, 0], [0x0F, 0x84, 0, 0x10, 0, 0]] as [[UInt8]] {
            machine.write(code + [0xF4], at: Place.code)
            machine.forgetCode()
            machine.store(UInt64(0x77), at: Place.userStack - 8)
            machine.state.setFlags(RFlags.zero)
            machine.state.setRegister(4, Place.userStack)
            machine.state.pointee.rip = top
            let trapped = machine.run()
            #expect(trapped?.vector == 13 && trapped?.rip == top && trapped?.rsp == Place.userStack, "\(code)")
            if machine.processor.execution == .interpreter {
                #expect(machine.load(Place.userStack - 8, as: UInt64.self) == 0x77)
            }
        }
    }
}

extension LockstepFindingTests {
    /// Behind STI at the end of a block attention is looked at before the next instruction: the shadow must be there,
    /// or HLT sleeps through the interrupt that was to wake it.
    @Test func shadowBehindSTI() throws {
        let machine = TestMachine(isAlone: true)
        machine.enterLong()
        let s = machine.state
        let rows: [(offset: UInt64, shadow: UInt8)] = [(0, 0), (0xFFF, 1)]
        for row in rows {
            machine.write([0xFB, 0xF4], at: Place.code + row.offset)
            machine.forgetCode()
            s.setFlags(2)
            s.pointee.interrupt_shadow = 0
            s.pointee.rip = Place.code + row.offset
            let i = try #require(machine.processor.lookup())
            _ = unsafeBitCast(i.pointee.interpreted, to: Handler.self)(s, i)
            #expect(s.pointee.interrupt_shadow == row.shadow, "at page offset \(row.offset)")
        }
    }
}
