internal import CHost
import Testing

@testable import CPU

/// Accesses that change their page each time get code that looks into the TLB (CPU/Translator/BlockTranslator+Memory.swift):
/// random loops over a list of addresses, on the translator beside the interpreter.
@Suite struct HoppingSiteTests {
    private static let firstByte: UInt64 = 0x8_0000
    private static let span = 0x1_0000
    private static let list: UInt64 = 0xA_0000
    private static let rounds = 6000

    /// One instruction on [rsi + displacement], or one that makes or takes flags.
    private static func instruction(_ dice: inout Dice) -> [UInt8] {
        let near = UInt8(truncatingIfNeeded: dice.pick([0, 0, 8, 24, 64, -8, -40]))
        let aligned = UInt8(truncatingIfNeeded: dice.pick([0, 16, 48, -32]))
        switch dice.below(13) {
        case 0: return [0x8B, 0x46, near]  // mov eax, [m]
        case 1: return [0x48, 0x8B, 0x06]  // mov rax, [rsi]
        case 2: return [0x48, 0x89, 0x5E, near]  // mov [m], rbx
        case 3: return [0x00, 0x56, near]  // add [m], dl
        case 4: return [0x48, 0x03, 0x4E, near]  // add rcx, [m]
        case 5: return [0x48, 0x13, 0x4E, near]  // adc rcx, [m]
        case 6: return [0x42, 0x8B, 0x04, 0xAE]  // mov eax, [rsi + r13 * 4]
        case 7: return [0x0F, 0x28, 0x4E, aligned]  // movaps xmm1, [m]
        case 8: return [0x0F, 0x29, 0x56, aligned]  // movaps [m], xmm2
        case 9: return [0x66, 0x0F, 0xFE, 0x56, aligned]  // paddd xmm2, [m]
        case 10: return [0x48, 0x8B, 0x86, near, 2, 0, 0]  // mov rax, [rsi + 512 + near]
        case 11: return [0x48, 0x01, 0xD8]  // add rax, rbx
        default: return [0x0F, 0x92, 0xC3]  // setc bl
        }
    }

    private static func program(_ dice: inout Dice) -> [UInt8] {
        // next: mov rsi, [rbp + r12 * 8]; …; dec r12; jnz next; hlt
        var code: [UInt8] = [0x4A, 0x8B, 0x74, 0xE5, 0]
        for _ in 0..<dice.below(4) + 1 { code += instruction(&dice) }
        code += [0x49, 0xFF, 0xCC, 0x0F, 0x85]
        let distance = UInt32(bitPattern: -Int32(code.count + 4))
        return code + (0..<4).map { UInt8(truncatingIfNeeded: distance >> ($0 * 8)) } + [0xF4]
    }

    /// A machine that has run the program, and what its data came to.
    private static func run(_ execution: Execution, _ code: [UInt8], _ seed: UInt64) -> (TestMachine, [UInt64]) {
        let machine = TestMachine(isAlone: true)
        machine.processor.execution = execution
        machine.enterLong()
        machine.state.pointee.cr4 |= 1 << 9
        machine.write(code, at: Place.code)
        var dice = Dice(seed: seed)
        for offset in stride(from: 0, to: span, by: 8) { machine.store(dice.next(), at: firstByte + UInt64(offset)) }
        for index in 0...rounds {
            // Now and then where a page ends among the accesses, or one of them does.
            let offset = dice.chance(16) ? 4096 - 16 * dice.below(4) : 16 * (dice.below(180) + 16)
            machine.store(firstByte + UInt64(dice.below(13) + 1) << 12 + UInt64(offset), at: list + UInt64(index) * 8)
        }
        machine.forgetCode()
        for register in 0..<4 { machine.state.setRegister(register, dice.next()) }
        machine.state.setRegister(5, list)
        machine.state.setRegister(12, UInt64(rounds))
        machine.state.setRegister(13, 3)
        machine.state.setFlags(2)
        machine.state.pointee.rip = Place.code
        #expect(machine.runProcessor() == .halt)
        let data = stride(from: 0, to: span, by: 8).map { machine.load(firstByte + UInt64($0), as: UInt64.self) }
        return (machine, data + (0..<16).map { machine.state.register($0) } + [machine.state.pointee.rip])
    }

    @Test func randomLoops() {
        var dice = Dice(seed: 0x40BB1E)
        var missed = 0
        for program in 0..<60 {
            let code = Self.program(&dice)
            let seed = dice.next()
            let (_, expected) = Self.run(.interpreter, code, seed)
            let (machine, data) = Self.run(.translator(threshold: 1, exactFlags: program % 4 == 0), code, seed)
            #expect(data == expected, "program \(program): \(code)")
            missed += Int(machine.state.pointee.site_misses)
        }
        // Two accesses a round miss in each program otherwise. On a busy machine some loops are too slow to be noticed.
        #expect(missed < 30 * Self.rounds, "\(missed) misses of sites")
    }
}
