internal import CHost
import Testing

@testable import CPU

/// 32-bit code whose segments change under it, on each way of executing.
@Suite struct Flat32SegmentTests {
    private static let executions: [Execution] = [.interpreter, .translator(threshold: 1), .lockstep(threshold: 1)]
    private static let moved = Selector.free
    private static let short = Selector.free + 8
    private static let readOnly = Selector.free + 16

    private func machine(_ execution: Execution, _ code: [UInt8]) -> TestMachine {
        let machine = TestMachine()
        machine.processor.execution = execution
        machine.enterProtected()
        machine.setDescriptor(Self.moved, TestMachine.descriptor(base: 0x5_1000, rights: 0xF3, flags: 0xC))
        machine.setDescriptor(
            Self.short, TestMachine.descriptor(base: 0x5_1000, limit: 0xFFF, rights: 0xF3, flags: 0x4))
        machine.setDescriptor(Self.readOnly, TestMachine.descriptor(base: 0x5_1000, rights: 0xF1, flags: 0xC))
        machine.write(code, at: Place.code)
        machine.forgetCode()
        for offset in UInt64(0)..<0x1000 { machine.store(UInt32(offset), at: Place.data + offset * 4) }
        return machine
    }

    private func run(_ machine: TestMachine, _ registers: [Int: UInt64]) -> Trapped? {
        machine.state.setFlags(2)
        machine.state.setRegister(4, Place.userStack)
        for (number, value) in registers { machine.state.setRegister(number, value) }
        machine.state.pointee.rip = Place.code
        let stop = machine.runProcessor()
        #expect(stop == .halt)
        return machine.trapped(after: stop)
    }

    /// The same code with flat segments, with a base, with a limit, and flat again.
    @Test func oneProgramUnderManySegments() {
        for execution in Self.executions {
            // mov ds, dx; mov eax, [ebx]; mov [ebx + 8], eax; hlt
            let machine = machine(execution, [0x8E, 0xDA, 0x8B, 0x03, 0x89, 0x43, 8, 0xF4])
            for _ in 0..<3 {
                for (selector, base) in [(Selector.kernelData, 0), (Self.moved, 0x5_1000), (Self.short, 0x5_1000)] {
                    let offset = Place.data + 0x1010 - UInt64(base)
                    #expect(run(machine, [2: UInt64(selector), 3: offset]) == nil)
                    #expect(machine.state.register(0) == 0x404, "\(execution), selector \(selector)")
                    #expect(machine.load(Place.data + 0x1018, as: UInt32.self) == 0x404)
                }
                let beyond = run(machine, [2: UInt64(Self.short), 3: 0xFFD])
                #expect(beyond?.vector == 13 && beyond?.rip == Place.code + 2, "\(execution)")
                let written = run(machine, [2: UInt64(Self.readOnly), 3: 0x10])
                #expect(written?.vector == 13 && written?.rip == Place.code + 4, "\(execution)")
                let none = run(machine, [2: 0, 3: Place.data])
                #expect(none?.vector == 13 && none?.rip == Place.code + 2, "\(execution)")
            }
            #expect(machine.processor.checkLockstep())
            if case .interpreter = execution { continue }
            #expect(machine.state.pointee.translated_blocks > 0)
        }
    }

    /// A hot loop that loads a segment each time round, and another kind each second time.
    @Test(arguments: [0xDA, 0xC2, 0xD2] as [UInt8]) func segmentsLoadedInALoop(modrm: UInt8) {
        for execution in Self.executions {
            // 1: mov ds/es/ss, dx; add eax, [ebx]; es: add eax, [ebx]; push [ebx]; pop edi; xchg edx, esi; dec ecx; jnz 1b
            // mov edx, ebp; mov ss, dx; hlt
            let code: [UInt8] = [
                0x8E, modrm, 0x03, 0x03, 0x26, 0x03, 0x03, 0xFF, 0x33, 0x5F, 0x87, 0xD6, 0x49, 0x75, 0xF1, 0x89, 0xEA,
                0x8E,
                0xD2, 0xF4,
            ]
            let machine = machine(execution, code)
            // A stack segment of this privilege, with a base.
            machine.setDescriptor(
                Self.moved, TestMachine.descriptor(base: 0x1000, rights: 0x93, flags: 0xC))
            for _ in 0..<3 {
                let flat = UInt64(Selector.kernelData)
                for number in [SegmentRegister.ds, SegmentRegister.es] {
                    #expect(loadSegment(machine.state, number, Selector.kernelData))
                }
                let registers = [0: 0, 1: 1000, 2: flat, 3: Place.data + 16, 5: flat, 6: UInt64(Self.moved)]
                #expect(run(machine, registers) == nil)
                let moved: UInt64 = modrm == 0xD2 ? 0 : 500 * 0x400
                #expect(machine.state.register(0) == 1000 * 4 * 2 + moved, "\(execution)")
                #expect(machine.state.register(4) == Place.userStack)
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    // MARK: FS and GS

    /// Thread-local storage: a base, the whole of 4 GiB, and variables below the base.
    @Test func threadLocalStorage() {
        for execution in Self.executions {
            // mov gs, dx; mov eax, gs:[4]; add eax, gs:[-4]; mov esi, -8; add eax, gs:[esi]; mov gs:[esi + 12], eax
            // mov edi, gs:[esi + 12]; push gs:[0]; pop ebp; mov cl, gs:[-1]; hlt
            let code: [UInt8] =
                [0x8E, 0xEA, 0x65, 0xA1, 4, 0, 0, 0, 0x65, 0x03, 0x05, 0xFC, 0xFF, 0xFF, 0xFF]
                + [0xBE, 0xF8, 0xFF, 0xFF, 0xFF, 0x65, 0x03, 0x06, 0x65, 0x89, 0x46, 12, 0x65, 0x8B, 0x7E, 12]
                + [0x65, 0xFF, 0x35, 0, 0, 0, 0, 0x5D, 0x65, 0x8A, 0x0D, 0xFF, 0xFF, 0xFF, 0xFF, 0xF4]
            let machine = machine(execution, code)
            for _ in 0..<3 {
                machine.store(UInt32(0x401), at: Place.data + 0x1004)
                #expect(run(machine, [1: 0, 2: UInt64(Self.moved)]) == nil)
                #expect(machine.state.register(0) == 0x401 + 0x3FF + 0x3FE, "\(execution)")
                #expect(machine.state.register(7) == machine.state.register(0))
                #expect(machine.state.register(5) == 0x400)
                #expect(machine.load(Place.data + 0x1004, as: UInt32.self) == UInt32(machine.state.register(0)))
                #expect(machine.state.register(1) == 0)
            }
            #expect(machine.processor.checkLockstep())
            if case .interpreter = execution { continue }
            #expect(machine.state.pointee.translated_blocks > 0)
        }
    }

    /// What FS's limit, rights and presence forbid, before and after the same code was allowed it.
    @Test func limitsOfFS() {
        for execution in Self.executions {
            // mov fs, dx; mov eax, fs:[ebx]; mov fs:[ebx], ecx; hlt
            let machine = machine(execution, [0x8E, 0xE2, 0x64, 0x8B, 0x03, 0x64, 0x89, 0x0B, 0xF4])
            let rows: [(selector: UInt16, offset: UInt64, fault: UInt64?)] = [
                (Self.moved, 0x20, nil), (Self.short, 0x20, nil), (Self.short, 0xFFC, nil), (Self.short, 0xFFD, 2),
                (Self.short, 0x1000, 2), (Self.short, 0xFFFF_FFFC, 2), (Self.moved, 0xFFFF_FFFC, nil),
                (Self.moved, 0xFFFF_FFFD, 2), (Self.moved, 0xFFFF_FFFF, 2), (Self.readOnly, 0x20, 5), (0, 0x20, 2),
            ]
            for _ in 0..<3 {
                for row in rows {
                    let trapped = run(machine, [1: 7, 2: UInt64(row.selector), 3: row.offset])
                    #expect(trapped?.rip == row.fault.map { Place.code + $0 }, "\(execution), \(row)")
                    if row.fault != nil { #expect(trapped?.vector == 13 && trapped?.error == 0) }
                    if row.fault == nil {
                        let address = (0x5_1000 + row.offset) & 0xFFFF_FFFF
                        #expect(machine.load(address, as: UInt32.self) == 7, "\(execution), \(row)")
                        machine.store(UInt32(9), at: address)
                    }
                }
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    // MARK: Repetitions

    /// Over 4 GiB element by element; an element over it is beyond the limit.
    @Test func repetitionsAt4GiB() {
        for execution in Self.executions {
            let top = GuardedMemory(size: 0x1_0000)
            // cld; rep movsb; hlt
            let machine = machine(execution, [0xFC, 0xF3, 0xA4, 0xF4])
            machine.addSlots([
                martlet_slot(
                    guest_physical: 0xFFFF_0000, size: 0x1_0000,
                    host: top.bytes.assumingMemoryBound(to: UInt8.self), page_index: 0, identifier: 1, flags: 0)
            ])
            for opcode in [0xA4, 0xA5, 0xAA, 0xAB] as [UInt8] {
                machine.write([0xFC, 0xF3, opcode, 0xF4], at: Place.code)
                machine.forgetCode()
                let size: UInt64 = opcode & 1 != 0 ? 4 : 1
                let count = 32 / size
                let isCopy = opcode < 0xAA
                for _ in 0..<3 {
                    machine.store(UInt64(0), at: 0)
                    let value: UInt64 = 0x1122_3344
                    var registers = [0: value, 1: count, 6: Place.data + 4, 7: 0xFFFF_FFF0]
                    #expect(run(machine, registers) == nil)
                    #expect(machine.state.register(7) == 0x10 && machine.state.register(1) == 0)
                    #expect(machine.state.register(6) == Place.data + 4 + (isCopy ? 32 : 0))
                    let expected: UInt32 = isCopy ? 5 : (size == 4 ? 0x1122_3344 : 0x4444_4444)
                    #expect(machine.load(0, as: UInt32.self) == expected, "\(execution), \(opcode)")
                    // Up to 4 GiB and no further.
                    registers[1] = 16 / size
                    #expect(run(machine, registers) == nil)
                    #expect(machine.state.register(7) == 0)
                    // From there.
                    registers = [0: value, 1: count, 6: 0xFFFF_FFF0, 7: Place.data + 0x2000]
                    #expect(run(machine, registers) == nil)
                    #expect(machine.state.register(6) == (isCopy ? 0x10 : 0xFFFF_FFF0))
                    if size == 1 { continue }
                    registers = [0: value, 1: count, 6: Place.data, 7: 0xFFFF_FFF2]
                    let trapped = run(machine, registers)
                    #expect(trapped?.vector == 13 && trapped?.rip == Place.code + 1, "\(execution)")
                    #expect(machine.state.register(7) == 0xFFFF_FFFE && machine.state.register(1) == count - 3)
                }
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    /// The string instructions with a segment that is not flat go by elements, with its rules.
    @Test func repetitionsWithOtherSegments() {
        for execution in Self.executions {
            // mov es, dx; rep stosd; mov fs, si; mov esi, ebp; fs: rep movsd; hlt
            let code: [UInt8] = [0x8E, 0xC2, 0xF3, 0xAB, 0x8E, 0xE6, 0x89, 0xEE, 0xB1, 2, 0x64, 0xF3, 0xA5, 0xF4]
            let machine = machine(execution, code)
            for _ in 0..<3 {
                #expect(
                    run(
                        machine,
                        [0: 77, 1: 4, 2: UInt64(Self.moved), 5: 0, 6: UInt64(Self.short), 7: 0x800]) == nil)
                #expect(machine.load(Place.data + 0x180C, as: UInt32.self) == 77)
                #expect(machine.load(Place.data + 0x1810, as: UInt32.self) == 0x400)
                let beyond = run(
                    machine, [0: 77, 1: 4, 2: UInt64(Self.short), 5: 0, 6: UInt64(Self.short), 7: 0xFF8])
                #expect(beyond?.vector == 13 && machine.state.register(1) == 2 && machine.state.register(7) == 0x1000)
                for offset in [0x1810, 0x1814] as [UInt64] { machine.store(UInt32(0), at: Place.data + offset) }
            }
            #expect(machine.processor.checkLockstep())
        }
    }

    // MARK: Under a 64-bit kernel

    /// A 32-bit program that calls a 64-bit kernel, as Linux's compatibility mode has it.
    @Test func programUnderA64BitKernel() {
        for execution in Self.executions {
            let machine = TestMachine()
            machine.processor.execution = execution
            machine.enterLong()
            // The kernel: lea rax, [rax + rax * 2]; push rax; pop rax; iretq.
            machine.write([0x48, 0x8D, 0x04, 0x40, 0x50, 0x58, 0x48, 0xCF], at: Place.handlers + 0x80 * 16)
            // 1: call 2f; dec ecx; jnz 1b; int 0x81; 2: push eax; pop eax; and eax, 0xFFFF; int 0x80; add ebx, eax; ret
            let code: [UInt8] = [
                0xE8, 5, 0, 0, 0, 0x49, 0x75, 0xF8, 0xCD, 0x81, 0x50, 0x58, 0x25, 0xFF, 0xFF, 0, 0, 0xCD, 0x80, 0x01,
                0xC3,
                0xC3,
            ]
            machine.write(code, at: Place.code)
            machine.forgetCode()
            for _ in 0..<3 {
                machine.setPrivilege(3, is32: true)
                machine.state.setFlags(2)
                for (number, value) in [(0, 1), (1, 100), (3, 0), (4, Place.userStack)] as [(Int, UInt64)] {
                    machine.state.setRegister(number, value)
                }
                machine.state.pointee.rip = Place.code
                let trapped = machine.run()
                #expect(trapped?.vector == 0x81 && trapped?.rip == Place.code + 10, "\(execution)")
                var (value, sum): (UInt64, UInt64) = (1, 0)
                for _ in 0..<100 {
                    value = (value & 0xFFFF) * 3
                    sum += value
                }
                #expect(machine.state.register(3) == sum)
                #expect(trapped?.rsp == Place.userStack)
            }
            #expect(machine.processor.checkLockstep())
            if case .interpreter = execution { continue }
            #expect(machine.state.pointee.translated_blocks > 2)
        }
    }
}
