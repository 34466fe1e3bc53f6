internal import CHost
import Testing

@testable import CPU

/// Accesses that share a compare (CPU/Translator/AccessPlan.swift): random straight code over registers that move by
/// known amounts, near the ends of pages, on the translator beside the interpreter.
@Suite struct AccessGroupTests {
    private static let firstByte: UInt64 = 0x8_0000
    private static let span = 0x1_0000

    /// One instruction on RSI, RDI or RSP, whose encodings are 6, 7 and 4.
    private static func instruction(_ dice: inout Dice) -> [UInt8] {
        let base = dice.pick([6, 7, 4] as [UInt8])
        let displacement = UInt8(truncatingIfNeeded: dice.below(160) - 80)
        // ModRM with an 8-bit displacement, and the SIB that RSP needs.
        func memory(_ reg: UInt8) -> [UInt8] {
            [0x40 | reg << 3 | base] + (base == 4 ? [0x24] : []) + [displacement]
        }
        let step = UInt8(truncatingIfNeeded: dice.pick([1, 4, 8, 16, 24, 64, -8, -16, -32]))
        switch dice.below(14) {
        case 0: return [0x8B] + memory(0)  // mov eax, [m]
        case 1: return [0x48, 0x89] + memory(3)  // mov [m], rbx
        case 2: return [0x00] + memory(2)  // add [m], dl
        case 3: return [0x48, 0x03] + memory(1)  // add rcx, [m]
        case 4: return [0x0F, 0x28] + memory(1)  // movaps xmm1, [m]
        case 5: return [0x0F, 0x29] + memory(2)  // movaps [m], xmm2
        case 6: return [0x0F, 0x10] + memory(3)  // movups xmm3, [m]
        case 7: return [0x66, 0x0F, 0xFE] + memory(2)  // paddd xmm2, [m]
        case 8: return [0x48, 0x83, 0xC0 | base, step]  // add base, step
        case 9: return [0x48, 0x83, 0xE8 | base, step]  // sub base, step
        case 10: return [0x48, 0x8D] + memory(base)  // lea base, [base + displacement]
        case 11: return base == 4 ? [0x50] : [0x48, 0xFF, 0xC0 | base]  // push rax; inc base
        case 12: return base == 4 ? [0x5B] : [0x48, 0xFF, 0xC8 | base]  // pop rbx; dec base
        default: return [0x83, 0xF8, step]  // cmp eax, step
        }
    }

    /// An address near the end of a page, aligned more often than not.
    private static func address(_ dice: inout Dice) -> UInt64 {
        let page = UInt64(dice.below(8) + 3) << 12
        let offset = UInt64(bitPattern: Int64(dice.below(512) - 256))
        return firstByte &+ page &+ (dice.chance(4) ? offset : offset & ~15)
    }

    @Test func randomCode() throws {
        var dice = Dice(seed: 0xACCE55)
        for program in 0..<400 {
            let machine = TestMachine(isAlone: true)
            machine.processor.execution = .lockstep(threshold: 1, exactFlags: program % 4 == 0)
            machine.enterLong()
            machine.useStackTable(for: [13])
            machine.state.pointee.cr4 |= 1 << 9
            var code: [UInt8] = []
            for _ in 0..<dice.below(30) + 4 { code += Self.instruction(&dice) }
            machine.write(code + [0xF4], at: Place.code)
            for offset in stride(from: 0, to: Self.span, by: 8) {
                machine.store(dice.next(), at: Self.firstByte + UInt64(offset))
            }
            machine.forgetCode()
            for _ in 0..<12 {
                machine.state.setFlags(2)
                for register in [0, 1, 2, 3] { machine.state.setRegister(register, dice.next()) }
                for register in [4, 6, 7] { machine.state.setRegister(register, Self.address(&dice)) }
                machine.state.pointee.rip = Place.code
                try #require(machine.runProcessor() == .halt, "program \(program)")
            }
            try #require(machine.processor.checkLockstep(), "program \(program)")
        }
    }

    /// A register that moves further than a displacement reaches begins a group of its own.
    @Test func distantGroups() {
        // mov eax, [rsi]; add rsi, 0x7FFFFFFF (four times), sub likewise; mov ebx, [rsi + 4]; hlt
        var code: [UInt8] = [0x8B, 0x06]
        for _ in 0..<4 { code += [0x48, 0x81, 0xC6, 0xFF, 0xFF, 0xFF, 0x7F] }
        for _ in 0..<4 { code += [0x48, 0x81, 0xEE, 0xFF, 0xFF, 0xFF, 0x7F] }
        code += [0x8B, 0x5E, 4, 0xF4]
        for execution in [.interpreter, .translator(threshold: 1), .lockstep(threshold: 1)] as [Execution] {
            let machine = TestMachine(isAlone: true)
            machine.processor.execution = execution
            machine.enterLong()
            machine.write(code, at: Place.code)
            machine.store(0x1111_2222_3333_4444 as UInt64, at: Place.data)
            machine.forgetCode()
            for _ in 0..<3 {
                machine.state.setRegister(6, Place.data)
                machine.state.pointee.rip = Place.code
                #expect(machine.runProcessor() == .halt)
                #expect(machine.state.register(0) == 0x3333_4444 && machine.state.register(3) == 0x1111_2222)
            }
        }
    }
}

/// CHost/cpu_copy.c beside a loop over bytes.
@Suite struct WideCopyTests {
    @Test func copies() {
        var dice = Dice(seed: 7)
        for round in 0..<4000 {
            let size = Int(MARTLET_WIDE_COPY) + dice.below(900)
            // Below the source it may overlap, above only behind its end.
            let source = 1500
            let target = round % 2 == 0 ? dice.below(source) : source + size + dice.below(64)
            var bytes = (0..<4096).map { _ in dice.byte() }
            var expected = bytes
            for index in 0..<size { expected[target + index] = expected[source + index] }
            let done = bytes.withUnsafeMutableBytes { memory in
                memory.baseAddress.map { martlet_copy_wide($0 + target, $0 + source, UInt64(size)) } ?? 0
            }
            if done == 0 { break }
            #expect(bytes == expected, "\(size) bytes from \(source) to \(target)")
        }
    }

    @Test func fills() {
        var dice = Dice(seed: 8)
        for size in [1, 2, 4, 8] {
            for _ in 0..<500 {
                let count = Int(MARTLET_WIDE_COPY) / size + dice.below(300)
                let target = dice.below(64)
                let value = dice.next()
                var bytes = [UInt8](repeating: 0xA5, count: 8192)
                var expected = bytes
                for index in 0..<count * size {
                    expected[target + index] = UInt8(truncatingIfNeeded: value >> UInt64(index % size * 8))
                }
                let done = bytes.withUnsafeMutableBytes { memory in
                    memory.baseAddress.map {
                        martlet_fill_wide($0 + target, value, UInt64(count * size), UInt8(size))
                    } ?? 0
                }
                if done == 0 { return }
                #expect(bytes == expected, "\(count) of \(size) bytes at \(target)")
            }
        }
    }

    /// REP MOVS of more than a part of a page, also where the destination begins inside the source.
    @Test(arguments: [1, 2, 8, 31, 255, 256, 4095, -1, -8, -300, 15_000])
    func repeatedMoves(distance: Int) {
        for (size, code) in [(1, [0xF3, 0xA4, 0xF4]), (8, [0xF3, 0x48, 0xA5, 0xF4])] as [(Int, [UInt8])] {
            for execution in [.interpreter, .translator(threshold: 1)] as [Execution] {
                let machine = TestMachine(isAlone: true)
                machine.processor.execution = execution
                machine.enterLong()
                machine.write(code, at: Place.code)
                let first: UInt64 = 0x8_0000
                var expected = (0..<0x8000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
                machine.write(expected, at: first)
                machine.forgetCode()
                let source = 0x1003
                let count = 9000 / size
                for element in 0..<count {
                    let from = source + element * size
                    let value = Array(expected[from..<from + size])
                    expected.replaceSubrange(from + distance..<from + distance + size, with: value)
                }
                machine.state.setRegister(1, UInt64(count))
                machine.state.setRegister(6, first + UInt64(source))
                machine.state.setRegister(7, first + UInt64(source + distance))
                machine.state.pointee.rip = Place.code
                #expect(machine.runProcessor() == .halt)
                let found = (0..<0x8000).map { machine.load(first + UInt64($0), as: UInt8.self) }
                #expect(found == expected, "\(size) bytes, \(execution)")
                #expect(machine.state.register(1) == 0)
                #expect(machine.state.register(7) == first + UInt64(source + distance + count * size))
            }
        }
    }
}

/// Loops that are laid out several times in a row: each way out of each copy, beside the interpreter.
@Suite struct LoopTests {
    /// `body`; dec r9; jnz to the body; hlt
    private static func loop(_ body: [UInt8]) -> [UInt8] {
        body + [0x49, 0xFF, 0xC9, 0x75, UInt8(truncatingIfNeeded: -(body.count + 5)), 0xF4]
    }

    private static let bodies: [(name: String, code: [UInt8])] = [
        // add rax, [rsi]; add rsi, 8
        ("sum", [0x48, 0x03, 0x06, 0x48, 0x83, 0xC6, 8]),
        // mov al, [rsi]; mov [rdi], al; inc rsi; inc rdi
        ("copy", [0x8A, 0x06, 0x88, 0x07, 0x48, 0xFF, 0xC6, 0x48, 0xFF, 0xC7]),
        // add [rsp + 8], r9; movaps xmm1, [rdi]; paddd xmm1, [rdi + 16]; movaps [rdi], xmm1; sub rdi, 16
        (
            "vectors",
            [
                0x4C, 0x01, 0x4C, 0x24, 8, 0x0F, 0x28, 0x0F, 0x66, 0x0F, 0xFE, 0x4F, 16, 0x0F, 0x29, 0x0F, 0x48, 0x83,
                0xEF, 16,
            ]
        ),
        // adc rax, [rsi + r9 * 8]; the flags go around the loop through DEC, which keeps the carry
        ("carry", [0x4A, 0x13, 0x04, 0xCE]),
    ]

    private struct Outcome: Equatable {
        var stop: Stop
        var registers: [UInt64]
        var rip: UInt64
        var flags: UInt64
        var memory: [UInt64]
    }

    private func outcome(_ execution: Execution, _ code: [UInt8], _ passes: UInt64, rsi: UInt64, rdi: UInt64) -> Outcome
    {
        let machine = TestMachine(isAlone: true)
        machine.processor.execution = execution
        machine.enterLong()
        machine.useStackTable(for: [13, 14])
        machine.state.pointee.cr4 |= 1 << 9
        machine.write(code, at: Place.code)
        for offset in stride(from: UInt64(0), to: 0x4000, by: 8) {
            machine.store(offset &* 0x9E37_79B9_7F4A_7C15, at: 0x8_0000 + offset)
        }
        machine.forgetCode()
        // Twice: the second time the code is there and its branches are linked.
        var stop = Stop.attention
        for _ in 0..<2 {
            machine.state.setFlags(3)
            for (number, value) in [0: 1, 4: 0x8_1800, 6: rsi, 7: rdi, 9: passes] as [Int: UInt64] {
                machine.state.setRegister(number, value)
            }
            machine.state.pointee.rip = Place.code
            stop = machine.runProcessor()
        }
        #expect(machine.processor.checkLockstep())
        return Outcome(
            stop: stop, registers: (0..<16).map { machine.state.register($0) }, rip: machine.state.pointee.rip,
            flags: machine.state.flags, memory: (0..<0x800).map { machine.load(0x8_0000 + UInt64($0) * 8) })
    }

    /// Ends in each copy, over a page boundary, and in a fault: beyond the end of memory, or of a misaligned operand.
    @Test func waysOut() {
        let places: [(rsi: UInt64, rdi: UInt64)] = [
            (0x8_0100, 0x8_2800), (0x8_0FC0, 0x8_2030), (0x8_0100, 0x8_2808), (0xF_FFE8, 0x8_2800),
        ]
        for body in Self.bodies {
            for passes in [1, 2, 3, 4, 5, 7, 8, 9, 30] as [UInt64] {
                for place in places {
                    let code = Self.loop(body.code)
                    let expected = outcome(.interpreter, code, passes, rsi: place.rsi, rdi: place.rdi)
                    for execution in [
                        .translator(threshold: 1), .translator(threshold: 1, exactFlags: true),
                        .lockstep(threshold: 1, exactFlags: true),
                    ] as [Execution] {
                        var found = outcome(execution, code, passes, rsi: place.rsi, rdi: place.rdi)
                        // At a fault or an exit, flags that the guest overwrites unread may be others in the default way.
                        if !execution.exactFlags, found.stop == .mmio || found.rip < Place.code {
                            found.flags &= ~0x8D5
                            found.flags |= expected.flags & 0x8D5
                        }
                        #expect(found == expected, "\(body.name), \(passes) passes, \(place), \(execution)")
                    }
                }
            }
        }
    }
}
