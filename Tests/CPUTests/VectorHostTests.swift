internal import CHost
import Testing

@testable import CPU

/// The engine against the host's own processor: the same instruction on the same random state.
@Suite struct VectorHostTests {
    private static let prefixes: [UInt8] = [0, 0x66, 0xF3, 0xF2]
    /// Not RSP and R14 (used by the native side), nor RDI and R15 (addresses).
    private static let registers: [UInt8] = [0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13]

    /// Forms of one row of the table.
    private func cases(_ map: UInt8, _ prefix: UInt8, _ opcode: UInt8, _ random: inout Random) -> [VectorCase] {
        var cases: [VectorCase] = []
        for isMemory in [false, true] {
            for extensionNumber in UInt8(0)..<8 {
                let modrm: UInt8 = (isMemory ? 0 : 0xC0) | extensionNumber << 3
                guard let entry = vectorEntry(map: map, opcode: opcode, prefix: prefix, modrm: modrm) else { continue }
                if entry.move == .fxsave || entry.move == .fxrstor { continue }
                let isExtension = entry.reg == .none
                if !isExtension, extensionNumber > 0 { continue }
                for rexW in [false, true] {
                    for _ in 0..<(entry.traits.contains(.immediate) ? 3 : 2) {
                        var c = VectorCase(map: map, prefix: prefix, opcode: opcode, rexW: rexW)
                        c.reg = isExtension ? extensionNumber : number(entry.reg, &random)
                        c.rm = isMemory ? nil : number(entry.rm, &random)
                        if entry.traits.contains(.immediate) { c.immediate = UInt8(truncatingIfNeeded: random.next()) }
                        cases.append(c)
                    }
                }
            }
        }
        return cases
    }

    private func number(_ operand: VectorOperand, _ random: inout Random) -> UInt8 {
        switch operand {
        case .xmm: UInt8(random.below(16))
        case .mm: UInt8(random.below(8))
        case .general, .none, .mask: random.pick(Self.registers)
        }
    }

    /// Bytes of the image that an instruction decides: not the pointers, which differ, nor reserved bytes.
    private func compared(_ image: [UInt8]) -> [UInt8] {
        var bytes = Array(image[0..<5]) + image[24..<28] + image[160..<416]
        for register in 0..<8 { bytes += image[(32 + register * 16)..<(42 + register * 16)] }
        return bytes
    }

    private func differences(_ engine: VectorMachine, _ native: VectorMachine) -> [String] {
        var found: [String] = []
        if engine.gpr != native.gpr { found.append("registers \(engine.gpr) \(native.gpr)") }
        if engine.flags != native.flags { found.append("flags \(engine.flags) \(native.flags)") }
        if engine.memory != native.memory { found.append("memory") }
        let (ours, theirs) = (compared(engine.image), compared(native.image))
        for index in ours.indices where ours[index] != theirs[index] {
            found.append("image byte \(index): \(ours[index]) \(theirs[index])")
        }
        return found
    }

    /// The offset of the operand: any, unless the instruction wants it aligned.
    private func offset(_ entry: VectorEntry?, _ random: inout Random) -> Int {
        entry?.traits.contains(.aligned) == true ? 16 * random.below(8) : random.below(64)
    }

    private func check(
        _ bench: VectorBench, _ c: VectorCase, _ random: inout Random, rounds: Int, aligned: VectorEntry? = nil,
        prepare: (inout VectorMachine, Int, inout Random) -> Void = { _, _, _ in }
    ) -> Bool {
        guard let native = bench.native(c) else {
            Issue.record("no room for \(c)")
            return false
        }
        for _ in 0..<rounds {
            var machine = random.machine()
            let place = offset(aligned, &random)
            prepare(&machine, place, &random)
            let expected = native(machine, place)
            let outcome = bench.engine(c, machine, offset: place)
            let wrong = outcome.exception.map { ["exception \($0)"] } ?? differences(outcome.machine, expected)
            if !wrong.isEmpty {
                Issue.record("\(c) at \(place), mxcsr \(machine.mxcsr): \(wrong.prefix(4).joined(separator: "; "))")
                return false
            }
        }
        return true
    }

    @Test(arguments: [UInt8(1), 2, 3]) func everyVectorInstruction(map: UInt8) {
        let bench = VectorBench()
        var random = Random(seed: UInt64(map))
        var count = 0
        var failures = 0
        for prefix in Self.prefixes {
            for opcode in UInt8(0)...255 {
                for c in cases(map, prefix, opcode, &random) {
                    let entry = vectorEntry(map: map, opcode: opcode, prefix: prefix, modrm: c.modrm)
                    let loadsMXCSR = entry?.move == .loadMXCSR
                    let passed = check(bench, c, &random, rounds: 8, aligned: entry) { machine, place, random in
                        // Processors differ in whether CVTPI2PS from memory enters MMX state.
                        if map == 1, opcode == 0x2A {
                            machine.image[3] &= 0xC7
                            machine.image[4] = 0xFF
                        }
                        guard loadsMXCSR else { return }
                        let value = 0x1F80 | UInt32(truncatingIfNeeded: random.next()) & 0xE07F
                        for byte in 0..<4 {
                            machine.memory[place + byte] = UInt8(truncatingIfNeeded: value >> UInt32(byte * 8))
                        }
                    }
                    count += 1
                    if !passed { failures += 1 }
                    if failures > 20 { return }
                }
            }
        }
        #expect(count > 20)
    }

    /// The decoder finds each form's end and gives it to the vector unit as the tests above do.
    @Test(arguments: [UInt8(1), 2, 3]) func decoderAgrees(map: UInt8) {
        var random = Random(seed: UInt64(map))
        let bench = VectorBench()
        let decoded = Insn.allocate(capacity: 1)
        decoded.initialize(to: martlet_insn())
        defer { decoded.deallocate() }
        for prefix in Self.prefixes {
            for opcode in UInt8(0)...255 {
                for c in cases(map, prefix, opcode, &random) {
                    let bytes = c.bytes + [UInt8](repeating: 0x90, count: 16)
                    let result = bytes.withUnsafeBufferPointer { buffer in
                        var decoder = Decoder(
                            bytes: buffer.baseAddress!, available: 15, mode: CodeMode.bits64, tables: .shared)
                        return decoder.decode(into: decoded)
                    }
                    #expect(result == .done, "\(c)")
                    #expect(decoded.pointee.mnemonic == Mnemonic.vector.rawValue, "\(c)")
                    let expected = bench.prepare(c).pointee
                    let found = decoded.pointee
                    #expect(found.length == expected.length, "\(c)")
                    #expect(found.immediate == expected.immediate, "\(c)")
                    #expect(found.prefixes == expected.prefixes && found.rex == expected.rex, "\(c)")
                    if opcode == 0x77 { continue }
                    #expect(found.modrm == expected.modrm && found.flags & 1 == expected.flags & 1, "\(c)")
                    #expect(c.rm != nil || found.base == expected.base, "\(c)")
                    checkEncoding(c, decoded)
                }
            }
        }
    }

    /// What the translator asks about an instruction: its bytes again, and its operands as the table has them.
    private func checkEncoding(_ c: VectorCase, _ decoded: Insn) {
        guard let encoding = VectorEncoding(decoded) else {
            Issue.record("no encoding of \(c)")
            return
        }
        var code = StubAssembler(origin: 0)
        encoding.emit(to: &code, reg: encoding.regNumber, rm: c.rm == nil ? .pointer(15) : .register(encoding.rmNumber))
        #expect(code.bytes == c.bytes, "\(c)")
        #expect((encoding.access == .none) == (encoding.memorySize == 0) || !encoding.isPlain, "\(c)")
        let entry = vectorEntry(map: c.map, opcode: c.opcode, prefix: c.prefix, modrm: c.modrm)
        #expect(encoding.alignment == (c.rm == nil && entry?.traits.contains(.aligned) == true ? 16 : 0), "\(c)")
    }

    /// Every base register, whose ModRM forms differ (SDM vol. 2 table 2-2).
    @Test func encodingOfPointers() throws {
        let decoded = Insn.allocate(capacity: 1)
        decoded.initialize(to: martlet_insn())
        defer { decoded.deallocate() }
        decoded.pointee.mnemonic = Mnemonic.vector.rawValue
        decoded.pointee.map = 1
        decoded.pointee.opcode = 0x58
        decoded.pointee.modrm = 0x07
        let encoding = try #require(VectorEncoding(decoded))
        let expected: [(UInt8, [UInt8])] = [
            (0, [0x44, 0x0F, 0x58, 0x08]), (4, [0x44, 0x0F, 0x58, 0x0C, 0x24]), (5, [0x44, 0x0F, 0x58, 0x4D, 0]),
            (12, [0x45, 0x0F, 0x58, 0x0C, 0x24]), (13, [0x45, 0x0F, 0x58, 0x4D, 0]), (14, [0x45, 0x0F, 0x58, 0x0E]),
        ]
        for (base, bytes) in expected {
            var code = StubAssembler(origin: 0)
            encoding.emit(to: &code, reg: 9, rm: .pointer(base))
            #expect(code.bytes == bytes, "base \(base)")
        }
    }

    /// x87 instructions that read or write whole environments are compared field by field below.
    @Test func everyX87Instruction() {
        let bench = VectorBench()
        var random = Random(seed: 87)
        var failures = 0
        for opcode in UInt8(0xD8)...0xDF {
            for modrm in UInt8(0)...255 where modrm >= 0xC0 || modrm & 7 == 7 && modrm < 0x40 {
                guard let operation = x87Operation(opcode, modrm) else { continue }
                switch operation.kind {
                case .loadEnvironment, .storeEnvironment, .restore, .save: continue
                default: break
                }
                let c = VectorCase(
                    map: 0, opcode: opcode, reg: (modrm >> 3) & 7, rm: modrm < 0xC0 ? nil : modrm & 7)
                let passed = check(bench, c, &random, rounds: 40) { machine, place, _ in
                    if operation.kind == .loadControl { machine.memory[place] |= 0x3F }
                }
                if !passed { failures += 1 }
                if failures > 20 { return }
            }
        }
    }

    /// FLDENV and FRSTOR with all exceptions masked; FNSTENV and FNSAVE but for the pointers.
    @Test(arguments: [(UInt8(0xD9), UInt8(4)), (0xD9, 6), (0xDD, 4), (0xDD, 6)], [false, true])
    func environments(_ opcode: (UInt8, UInt8), isShort: Bool) throws {
        let bench = VectorBench()
        var random = Random(seed: 0xE0 + UInt64(opcode.1))
        let c = VectorCase(map: 0, opcode: opcode.0, reg: opcode.1, isShort: isShort)
        let native = try #require(bench.native(c))
        let pointers = isShort ? 6..<14 : 12..<28
        for _ in 0..<200 {
            var machine = random.machine()
            machine.memory[16] |= 0x3F
            var expected = native(machine, 16)
            let outcome = bench.engine(c, machine, offset: 16)
            #expect(outcome.exception == nil)
            for index in pointers { expected.memory[16 + index] = outcome.machine.memory[16 + index] }
            let wrong = differences(outcome.machine, expected)
            #expect(wrong.isEmpty, "\(c): \(wrong.prefix(4)) \(machine.memory[16..<24])")
            if !wrong.isEmpty { return }
        }
    }

    /// FXSAVE and FXRSTOR with and without REX.W.
    @Test(arguments: [UInt8(0), 1], [false, true]) func wholeImages(number: UInt8, rexW: Bool) throws {
        let bench = VectorBench()
        var random = Random(seed: 0xF0 + UInt64(number))
        let c = VectorCase(opcode: 0xAE, rexW: rexW, reg: number)
        for _ in 0..<20 {
            let (source, target) = (random.machine(), random.machine())
            let i = bench.prepare(c)
            #expect(bench.bind(i))
            let memory = bench.ram + 1024
            bench.load(number == 0 ? source : target, offset: 1024)
            source.image.withUnsafeBytes { memory.copyMemory(from: $0.baseAddress!, byteCount: 512) }
            if number == 0 { memory.initializeMemory(as: UInt8.self, repeating: 0xA5, count: 512) }
            #expect(bench.execute(i) == i + 1)
            let result =
                number == 0
                ? Array(UnsafeRawBufferPointer(start: memory, count: 512)) : bench.current(target).image
            #expect(compared(result) == compared(source.image))
            if number == 0 { #expect(result[416..<512].allSatisfy { $0 == 0xA5 }) }
        }
    }
}
