internal import CHost
import Testing

@testable import CPU

/// 32-bit code on each way of executing: where translated code may take an offset for a linear address, and where not.
@Suite struct Flat32Tests {
    private static let executions: [Execution] = [.interpreter, .translator(threshold: 1), .lockstep(threshold: 1)]
    /// Guest-physical memory up to 4 GiB.
    private static let top: UInt64 = 0xFFFF_0000

    /// A machine in protected mode without paging, with memory at both ends of its 4 GiB.
    private func machine(_ execution: Execution, _ code: [UInt8], _ top: GuardedMemory) -> TestMachine {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.enterProtected()
        machine.write(code, at: Place.code)
        machine.addSlots([
            martlet_slot(
                guest_physical: Self.top, size: UInt64(top.size), host: top.bytes.assumingMemoryBound(to: UInt8.self),
                page_index: 0, identifier: 1, flags: 0)
        ])
        return machine
    }

    /// Runs `code` a few times on each way of executing, and looks at what it left.
    private func check(
        _ code: [UInt8], _ registers: [Int: UInt64] = [:], rounds: Int = 3,
        prepare: (TestMachine, GuardedMemory) -> Void = { _, _ in },
        _ look: (TestMachine, GuardedMemory, Trapped?) -> Void
    ) {
        for execution in Self.executions {
            let top = GuardedMemory(size: 0x1_0000)
            let machine = machine(execution, code, top)
            for _ in 0..<rounds {
                machine.state.setFlags(2)
                machine.state.setRegister(4, Place.userStack)
                for (number, value) in registers { machine.state.setRegister(number, value) }
                machine.state.pointee.rip = Place.code
                prepare(machine, top)
                let stop = machine.runProcessor()
                #expect(stop == .halt, "\(execution)")
                look(machine, top, machine.trapped(after: stop))
            }
            #expect(machine.processor.checkLockstep())
            if case .interpreter = execution { continue }
            #expect(machine.state.pointee.translated_blocks > 0, "nothing was translated: \(execution)")
        }
    }

    private func word(_ memory: GuardedMemory, _ address: UInt64) -> UInt32 {
        (memory.bytes + Int(address - Self.top)).loadUnaligned(as: UInt32.self)
    }

    private func set(_ memory: GuardedMemory, _ machine: TestMachine, _ address: UInt64, _ value: UInt32) {
        (memory.bytes + Int(address - Self.top)).storeBytes(of: value, as: UInt32.self)
        machine.processor.noteMemoryWritten(at: address, count: 4)
    }

    // MARK: Addresses wrap at 4 GiB

    @Test func wrapsByIndex() {
        // mov eax, [ebx + ecx*4]; mov edx, [ebx + esi]; mov edi, [esi + 0x50010]; hlt
        let code: [UInt8] = [0x8B, 0x04, 0x8B, 0x8B, 0x14, 0x33, 0x8B, 0xBE, 0x10, 0x00, 0x05, 0x00, 0xF4]
        check(code, [1: 0x4000_0001, 3: Place.data + 8, 6: 0xFFFF_FFFC]) { machine, _ in
            for offset in UInt64(0)..<8 { machine.store(UInt32(offset) + 100, at: Place.data + offset * 4) }
        } _: { machine, _, _ in
            #expect(machine.state.register(0) == 103)
            #expect(machine.state.register(2) == 101)
            #expect(machine.state.register(7) == 103)
        }
    }

    @Test func wrapsByDisplacement() {
        // mov eax, [ebx - 0x20]; mov edx, [ecx + 0x20]; mov [ebx - 0x1C], edx; mov edi, [esi - 0x40000000]; hlt
        let code: [UInt8] = [
            0x8B, 0x43, 0xE0, 0x8B, 0x51, 0x20, 0x89, 0x53, 0xE4, 0x8B, 0xBE, 0, 0, 0, 0xC0, 0xF4,
        ]
        check(code, [1: 0xFFFF_FFF0, 3: 0x10, 6: 0x4000_0000 + Place.data]) { machine, top in
            set(top, machine, 0xFFFF_FFF0, 0x1234_5678)
            machine.store(UInt32(0x9ABC_DEF0), at: 0x10)
            machine.store(UInt32(77), at: Place.data)
        } _: { machine, top, _ in
            #expect(machine.state.register(0) == 0x1234_5678)
            #expect(machine.state.register(2) == 0x9ABC_DEF0)
            #expect(machine.state.register(7) == 77)
            #expect(word(top, 0xFFFF_FFF4) == 0x9ABC_DEF0)
        }
    }

    /// One compare for both ends of 4 GiB would be wrong for one of them.
    @Test func aGroupThatWraps() {
        // mov eax, [ebx - 8]; mov edx, [ebx + 8]; mov [ebx - 4], edx; hlt
        check([0x8B, 0x43, 0xF8, 0x8B, 0x53, 0x08, 0x89, 0x53, 0xFC, 0xF4], [3: 4]) { machine, top in
            set(top, machine, 0xFFFF_FFFC, 0x1111)
            machine.store(UInt32(0x2222), at: 12)
        } _: { machine, _, _ in
            #expect(machine.state.register(0) == 0x1111)
            #expect(machine.state.register(2) == 0x2222)
            #expect(machine.load(0, as: UInt32.self) == 0x2222)
        }
    }

    /// The limit is there all the same: an access over it is #GP(0), by the stack #SS(0).
    @Test func accessesOverTheLimitFault() {
        // mov eax, [ebx]
        check([0x8B, 0x03, 0xF4], [3: 0xFFFF_FFFE]) { _, _, trapped in
            #expect(trapped?.vector == 13 && trapped?.rip == Place.code)
        }
        // mov eax, [ebp - 2]: its handler has another stack
        check([0x8B, 0x45, 0xFE, 0xF4], [5: 0]) { _, _, trapped in
            #expect(trapped?.vector == 12 && trapped?.rip == Place.code)
        }
    }

    @Test func upperHalvesOfRegistersDoNotMatter() {
        // mov eax, [ebx]; mov [ebx + 4], eax; push eax; pop edx; call 1f; 1: pop esi; mov ecx, 4; lea edi, [ebx + 8]
        // cld; rep stosb; hlt
        let code: [UInt8] = [
            0x8B, 0x03, 0x89, 0x43, 0x04, 0x50, 0x5A, 0xE8, 0, 0, 0, 0, 0x5E, 0xB9, 4, 0, 0, 0, 0x8D, 0x7B, 8, 0xFC,
            0xF3, 0xAA, 0xF4,
        ]
        let upper: UInt64 = 0xABCD_0000_0000_0000
        check(code, [3: upper | Place.data, 4: upper | Place.userStack]) { machine, _ in
            machine.store(UInt32(0x5555_1234), at: Place.data)
        } _: { machine, _, _ in
            #expect(machine.state.register(2) == 0x5555_1234)
            #expect(machine.load(Place.data + 4, as: UInt32.self) == 0x5555_1234)
            #expect(machine.load(Place.data + 8, as: UInt32.self) == 0x3434_3434)
            #expect(machine.state.register(4) == Place.userStack)
            #expect(machine.state.register(6) == Place.code + 12)
            #expect(machine.state.register(3) == upper | Place.data)
        }
        // rep movsd; hlt
        check([0xFC, 0xF3, 0xA5, 0xF4], [1: upper | 2, 6: upper | Place.data, 7: upper | (Place.data + 0x100)]) {
            machine, _ in
            machine.store(UInt64(0x0123_4567_89AB_CDEF), at: Place.data)
        } _: { machine, _, _ in
            #expect(machine.load(Place.data + 0x100, as: UInt64.self) == 0x0123_4567_89AB_CDEF)
            #expect(machine.state.register(7) & 0xFFFF_FFFF == Place.data + 0x108)
        }
    }

    /// In long mode a line of the TLB may be of an address that the sum would be without wrapping.
    @Test func whatLiesAbove4GiBIsNotReached() {
        for execution in Self.executions {
            let machine = TestMachine()
            machine.processor.execution = execution
            machine.enterLong()
            // 0x1_0000_0000 is page 0x70000.
            machine.store(UInt64(0x2_1007), at: Place.tables + 0x1000 + 4 * 8)
            machine.store(UInt64(0x2_2007), at: 0x2_1000)
            machine.store(UInt64(0x7_0007), at: 0x2_2000)
            machine.store(UInt32(0xBAD), at: 0x7_0010)
            machine.store(UInt32(0x600D), at: 0x10)
            // mov rbx, 0x1_0000_0000; mov eax, [rbx + 0x10]; hlt
            machine.write([0x48, 0xBB, 0, 0, 0, 0, 1, 0, 0, 0, 0x8B, 0x43, 0x10, 0xF4], at: Place.code)
            // 1: mov eax, [ebx + 0x20]; xchg ebx, esi; dec ecx; jnz 1b; mov ebx, edi; dec edx; jnz 2f; hlt
            // 2: mov ecx, 1; jmp 1b
            machine.write(
                [
                    0x8B, 0x43, 0x20, 0x87, 0xDE, 0x49, 0x75, 0xF8, 0x89, 0xFB, 0x4A, 0x75, 0x01, 0xF4, 0xB9, 1, 0, 0,
                    0, 0xEB, 0xEB,
                ], at: Place.code + 0x100)
            machine.forgetCode()
            for round in 0..<3 {
                machine.setPrivilege(0)
                machine.state.pointee.rip = Place.code
                #expect(machine.runProcessor() == .halt)
                #expect(machine.state.register(0) == 0xBAD)
                machine.setPrivilege(0, is32: true)
                // Two pages in turn, until that access looks at the TLB each time.
                machine.state.setRegister(1, round == 0 ? 1 : 5000)
                machine.state.setRegister(2, 2)
                machine.state.setRegister(3, Place.data)
                machine.state.setRegister(6, Place.data + 0x1000)
                machine.state.setRegister(7, 0xFFFF_FFF0)
                machine.state.pointee.rip = Place.code + 0x100
                #expect(machine.runProcessor() == .halt)
                #expect(machine.state.register(0) == 0x600D, "\(execution), round \(round)")
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    // MARK: The stack

    @Test func stackWraps() {
        // push eax; push ebx; push ecx; pop edx; pop esi; pop edi; hlt
        check([0x50, 0x53, 0x51, 0x5A, 0x5E, 0x5F, 0xF4], [0: 1, 1: 3, 3: 2, 4: 4]) { machine, top, _ in
            #expect(machine.state.register(2) == 3 && machine.state.register(6) == 2 && machine.state.register(7) == 1)
            #expect(machine.state.register(4) == 4)
            #expect(machine.load(0, as: UInt32.self) == 1)
            #expect(word(top, 0xFFFF_FFFC) == 2 && word(top, 0xFFFF_FFF8) == 3)
        }
    }

    /// The accesses are on one page, the stack pointer meanwhile is not.
    @Test func stackPointerWrapsBetweenAccesses() {
        // mov eax, [esp + 4]; sub esp, 0x100; mov edx, [esp + 0xC0]; add esp, 0x100; hlt
        let code: [UInt8] = [
            0x8B, 0x44, 0x24, 0x04, 0x81, 0xEC, 0, 1, 0, 0, 0x8B, 0x94, 0x24, 0xC0, 0, 0, 0, 0x81, 0xC4, 0, 1, 0, 0,
            0xF4,
        ]
        check(code, [4: 0x50]) { machine, _ in
            machine.store(UInt32(11), at: 0x54)
            machine.store(UInt32(22), at: 0x10)
        } _: { machine, _, _ in
            #expect(machine.state.register(0) == 11 && machine.state.register(2) == 22)
            #expect(machine.state.register(4) == 0x50)
        }
        // pop eax; mov edx, [esp - 4]; mov [esp - 8], edx; push eax; hlt
        check([0x58, 0x8B, 0x54, 0x24, 0xFC, 0x89, 0x54, 0x24, 0xF8, 0x50, 0xF4], [4: 0xFFFF_FFFC]) { machine, top in
            set(top, machine, 0xFFFF_FFFC, 33)
            set(top, machine, 0xFFFF_FFF8, 0)
        } _: { machine, top, _ in
            #expect(machine.state.register(0) == 33 && machine.state.register(2) == 33)
            #expect(machine.state.register(4) == 0xFFFF_FFFC)
            #expect(word(top, 0xFFFF_FFF8) == 33 && word(top, 0xFFFF_FFFC) == 33)
        }
    }

    @Test func pushesFromMemoryAndLeavesFrames() {
        // push [ebx]; push [esp]; push 0x7FFFFFFF; push -2; push esp; mov ebp, esp; sub esp, 0x40; leave; hlt
        let code: [UInt8] = [
            0xFF, 0x33, 0xFF, 0x34, 0x24, 0x68, 0xFF, 0xFF, 0xFF, 0x7F, 0x6A, 0xFE, 0x54, 0x89, 0xE5, 0x83, 0xEC, 0x40,
            0xC9, 0xF4,
        ]
        check(code, [3: Place.data]) { machine, _ in
            machine.store(UInt32(0x600D), at: Place.data)
        } _: { machine, _, _ in
            let stack = Place.userStack
            #expect(machine.load(stack - 4, as: UInt32.self) == 0x600D)
            #expect(machine.load(stack - 8, as: UInt32.self) == 0x600D)
            #expect(machine.load(stack - 12, as: UInt32.self) == 0x7FFF_FFFF)
            #expect(machine.load(stack - 16, as: UInt32.self) == 0xFFFF_FFFE)
            #expect(machine.load(stack - 20, as: UInt32.self) == UInt32(stack - 16))
            #expect(machine.state.register(4) == stack - 16 && machine.state.register(5) == stack - 16)
        }
    }

    // MARK: Calls, returns, branches

    @Test func callsReturn() {
        // fib of eax: cmp eax, 2; jb 9f; push ebx; lea ebx, [eax - 2]; dec eax; call fib; xchg eax, ebx; call fib
        // add eax, ebx; pop ebx; 9: ret
        let fib: [UInt8] = [
            0x83, 0xF8, 2, 0x72, 0x13, 0x53, 0x8D, 0x58, 0xFE, 0x48, 0xE8, 0xF1, 0xFF, 0xFF, 0xFF, 0x93, 0xE8, 0xEB,
            0xFF,
            0xFF, 0xFF, 0x01, 0xD8, 0x5B, 0xC3,
        ]
        // mov eax, 18; call fib (at + 0x20); hlt
        let code = [0xB8, 18, 0, 0, 0, 0xE8, 0x16, 0, 0, 0, 0xF4] + [UInt8](repeating: 0x90, count: 21) + fib
        check(code) { machine, _, _ in
            #expect(machine.state.register(0) == 2584)
            #expect(machine.state.register(4) == Place.userStack)
        }
    }

    /// Returns that the return stack does not expect, arguments that the callee takes away, calls through memory.
    @Test func returnsElsewhere() {
        // 0: push 5; push 6; call 20; 9: add ebx, eax; call [ecx]; 13: hlt
        // 20: mov eax, [esp + 8]; add eax, [esp + 4]; ret 8; 2B: add dword [esp], 1; ret
        var code = [UInt8](repeating: 0xF4, count: 0x40)
        code.replaceSubrange(0..<13, with: [0x6A, 5, 0x6A, 6, 0xE8, 0x17, 0, 0, 0, 0x01, 0xC3, 0xFF, 0x11])
        code.replaceSubrange(13..<16, with: [0xF4, 0x43, 0xF4])
        code.replaceSubrange(0x20..<0x2B, with: [0x8B, 0x44, 0x24, 8, 0x03, 0x44, 0x24, 4, 0xC2, 8, 0])
        code.replaceSubrange(0x2B..<0x30, with: [0x83, 0x04, 0x24, 1, 0xC3])
        check(code, [1: Place.data, 3: 100]) { machine, _ in
            machine.store(UInt32(Place.code) + 0x2B, at: Place.data)
        } _: { machine, _, _ in
            #expect(machine.state.register(3) == 112)
            #expect(machine.state.register(4) == Place.userStack)
            #expect(machine.state.pointee.rip == Place.code + 16)
        }
    }

    @Test func branchesWrapAt4GiB() {
        // At the code: jmp to 0xFFFFFFF0; there: inc eax; jmp forward to code + 0x40, by wrapping; there: inc ebx; jmp -
        // to 0xFFFFFFFD; there nops up to 0, where a hlt is.
        var code: [UInt8] = [UInt8](repeating: 0xF4, count: 0x60)
        func jump(from next: UInt64, to target: UInt64) -> [UInt8] {
            [0xE9] + IntegerEncoder.little(target &- next, 4)
        }
        code.replaceSubrange(0..<5, with: jump(from: Place.code + 5, to: 0xFFFF_FFF0))
        code.replaceSubrange(0x40..<0x46, with: [0x43] + jump(from: Place.code + 0x46, to: 0xFFFF_FFFD))
        check(code, [0: 0, 3: 0]) { machine, top in
            let bytes = [0x40] + jump(from: 0xFFFF_FFF6, to: Place.code + 0x40) + [UInt8](repeating: 0x90, count: 10)
            for (index, byte) in bytes.enumerated() {
                (top.bytes + 0xFFF0 + index).storeBytes(of: byte, as: UInt8.self)
            }
            machine.processor.noteMemoryWritten(at: 0xFFFF_FFF0, count: 16)
            machine.write([0x90, 0xF4], at: 0)
        } _: { machine, _, _ in
            #expect(machine.state.register(0) == 1 && machine.state.register(3) == 1)
            #expect(machine.state.pointee.rip == 2)
        }
    }

    @Test func codeThatChangesItself() {
        // mov ecx, 50; xor eax, eax; 1: add eax, 1 (imm32); inc dword [1b + 1]; dec ecx; jnz 1b; hlt
        let place = IntegerEncoder.little(Place.code + 8, 4)
        let code: [UInt8] =
            [0xB9, 50, 0, 0, 0, 0x31, 0xC0, 0x05, 1, 0, 0, 0, 0xFF, 0x05] + place + [0x49, 0x75, 0xF2, 0xF4]
        check(code) { machine, _ in
            machine.write(code, at: Place.code)
            machine.processor.noteMemoryWritten(at: Place.code, count: 64)
        } _: { machine, _, _ in
            #expect(machine.state.register(0) == 50 * 51 / 2)
        }
    }
}
