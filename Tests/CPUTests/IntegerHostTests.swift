internal import CHost
internal import CTestHost
internal import Glibc
import Testing

@testable import CPU

/// What an execution left behind.
private struct Outcome {
    var vector: UInt64
    var rip: UInt64
    var flags: UInt64
    var gpr: [UInt64]
    var cr2: UInt64
}

/// The same code, registers and memory on the host's processor and on ours.
private final class IntegerBench {
    let machine = TestMachine()
    /// The host's view of the scratch regions is at the guest's addresses; the guest has a copy of its own.
    let native: UnsafeMutableRawPointer
    let guest = GuardedMemory(size: Scratch.size)
    private var nextCode = Scratch.code

    init?() {
        // MAP_FIXED_NOREPLACE, which Glibc's Swift overlay does not have.
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | 0x10_0000
        let place = UnsafeMutableRawPointer(bitPattern: UInt(Scratch.base))
        let memory = mmap(place, Scratch.size, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0)
        guard memory != MAP_FAILED, let memory else { return nil }
        native = memory
        machine.addSlots([
            martlet_slot(
                guest_physical: Scratch.base, size: UInt64(Scratch.size),
                host: guest.bytes.assumingMemoryBound(to: UInt8.self), page_index: 0, identifier: 1, flags: 0)
        ])
        machine.enterLong(userFrom: Scratch.base)
        // Alignment checks, as the host has them; RDTSC and the like are not run.
        machine.state.pointee.cr4 |= 0x600
        test_host_begin()
    }

    deinit {
        test_host_end()
        munmap(native, Scratch.size)
    }

    /// Where `count` bytes of new code may go.
    func reserveCode(_ count: Int) -> UInt64 {
        if nextCode + UInt64(count) > Scratch.base + UInt64(Scratch.size) {
            nextCode = Scratch.code
            machine.forgetCode()
        }
        defer { nextCode += UInt64(count) }
        return nextCode
    }

    func put(_ bytes: [UInt8], at address: UInt64) {
        bytes.withUnsafeBytes {
            (native + Int(address - Scratch.base)).copyMemory(from: $0.baseAddress!, byteCount: bytes.count)
            (guest.bytes + Int(address - Scratch.base)).copyMemory(from: $0.baseAddress!, byteCount: bytes.count)
        }
        machine.processor.lockstep?.noteHostWrite(address, count: UInt64(bytes.count))
    }

    /// New random contents of data and stack.
    func fill(_ dice: inout Dice, stackFlags: Bool) {
        let isPlain = dice.chance(2)
        for offset in stride(from: 0x1000, to: 0x3100, by: 8) {
            let value = isPlain ? 0x1111_1111_1111_1111 &* UInt64(dice.below(2)) : dice.operand()
            native.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
        }
        for offset in stride(from: 0x6000 - 0x200, to: 0x6700, by: 8) {
            var value = dice.operand()
            // What POPF takes: not TF, NT nor AC, which would live on in the host's handler.
            if stackFlags { value &= ~0x7_4100 }
            native.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
        }
        copyToGuest()
    }

    func copyToGuest() {
        guest.bytes.copyMemory(from: native, byteCount: 0x8000)
        machine.processor.lockstep?.noteHostWrite(Scratch.base, count: 0x8000)
    }

    func firstDifference() -> Int? {
        if memcmp(native, guest.bytes, 0x8000) == 0 { return nil }
        return (0..<0x8000).first {
            native.load(fromByteOffset: $0, as: UInt8.self) != guest.bytes.load(fromByteOffset: $0, as: UInt8.self)
        }
    }

    func onHost(_ input: IntegerInput, rip: UInt64, is32: Bool) -> Outcome {
        var registers = test_host_registers()
        withUnsafeMutableBytes(of: &registers.gpr) { bytes in
            for (index, value) in input.gpr.enumerated() {
                bytes.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self)
            }
        }
        registers.rip = rip
        registers.rflags = input.flags
        test_host_run(&registers, is32 ? 1 : 0)
        let gpr = withUnsafeBytes(of: registers.gpr) { bytes in
            (0..<16).map { bytes.load(fromByteOffset: $0 * 8, as: UInt64.self) }
        }
        return Outcome(
            vector: registers.vector, rip: registers.rip, flags: registers.rflags, gpr: gpr, cr2: registers.cr2)
    }

    func onEngine(_ input: IntegerInput, rip: UInt64, is32: Bool) -> Outcome? {
        let s = machine.state
        for (index, value) in input.gpr.enumerated() { s.setRegister(index, value) }
        s.pointee.rip = rip
        s.setFlags(input.flags)
        machine.setPrivilege(3, is32: is32)
        guard let trapped = machine.run() else { return nil }
        var gpr = (0..<16).map { s.register($0) }
        gpr[4] = trapped.rsp
        return Outcome(
            vector: UInt64(trapped.vector), rip: trapped.rip, flags: trapped.flags, gpr: gpr, cr2: s.pointee.cr2)
    }
}

/// Every integer instruction against the host's own processor.
@Suite(.serialized) struct IntegerHostTests {
    /// RF is what the exception did, not the instruction.
    private static let compared = RFlags.status | RFlags.direction | RFlags.identification

    private func differences(_ engine: Outcome?, _ host: Outcome, _ c: IntegerCase) -> [String] {
        guard let engine else { return ["the engine did not come to an exception"] }
        var found: [String] = []
        if engine.vector != host.vector { found.append("exception \(engine.vector), host \(host.vector)") }
        if engine.rip != host.rip { found.append("rip \(hex(engine.rip)), host \(hex(host.rip))") }
        for number in 0..<(c.is32 ? 8 : 16) where engine.gpr[number] != host.gpr[number] {
            found.append("register \(number) \(hex(engine.gpr[number])), host \(hex(host.gpr[number]))")
        }
        let mask = Self.compared & ~c.form.undefined
        if (engine.flags ^ host.flags) & mask != 0 {
            found.append("flags \(hex(engine.flags & mask)), host \(hex(host.flags & mask))")
        }
        if host.vector == 14, engine.cr2 != host.cr2 { found.append("cr2 \(hex(engine.cr2)), host \(hex(host.cr2))") }
        return found
    }

    private func check(
        _ bench: IntegerBench, _ c: IntegerCase, at address: UInt64, _ encoder: inout IntegerEncoder, rounds: Int
    ) -> String? {
        for _ in 0..<rounds {
            var input = encoder.input(c)
            prepareMemory(bench, c, &input, &encoder)
            let host = bench.onHost(input, rip: address, is32: c.is32)
            let engine = bench.onEngine(input, rip: address, is32: c.is32)
            var wrong = differences(engine, host, c)
            if let place = bench.firstDifference() { wrong.append("memory at \(hex(Scratch.base + UInt64(place)))") }
            if !wrong.isEmpty {
                let bytes = c.bytes.map { String($0, radix: 16) }.joined(separator: " ")
                let before = input.gpr.enumerated().map { "\($0.offset)=\(hex($0.element))" }.joined(separator: " ")
                return "\(c.form.name) [\(bytes)] \(c.is32 ? "32" : "64")-bit, flags \(hex(input.flags)) \(before): "
                    + wrong.joined(separator: "; ")
            }
        }
        return nil
    }

    /// Contents that the form depends on.
    private func prepareMemory(
        _ bench: IntegerBench, _ c: IntegerCase, _ input: inout IntegerInput, _ encoder: inout IntegerEncoder
    ) {
        if encoder.dice.chance(3) || c.form.traits.contains(.flagsOnStack) {
            bench.fill(&encoder.dice, stackFlags: c.form.traits.contains(.flagsOnStack))
        } else {
            bench.copyToGuest()
        }
        guard c.form.traits.contains(.compares) || c.form.traits.contains(.farPointer) else { return }
        guard c.isMemory, let base = c.base, base >= 0 else {
            if !c.isMemory, encoder.dice.chance(2) { input.gpr[0] = input.gpr[c.rm] }
            return
        }
        var address = input.gpr[base] &+ UInt64(bitPattern: c.displacement)
        if let index = c.index { address = address &+ input.gpr[index] << UInt64(c.scale) }
        if c.addressIs32 { address &= 0xFFFF_FFFF }
        let offset = Int(truncatingIfNeeded: address &- Scratch.base)
        guard offset >= 0, offset < 0x3F00 else { return }
        if c.form.traits.contains(.farPointer) {
            bench.native.storeBytes(of: encoder.dice.pick([0x2B, 0]), toByteOffset: offset + c.width, as: UInt16.self)
            bench.copyToGuest()
        } else if encoder.dice.chance(2), base != 0, c.index != 0, base != 2, c.index != 2 {
            input.gpr[0] = bench.native.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
            let isWide = c.form.name == "cmpxchg16b"
            input.gpr[2] = bench.native.loadUnaligned(fromByteOffset: offset + (isWide ? 8 : 4), as: UInt64.self)
        }
    }

    /// Encodings of each form, more by MARTLET_TEST_ENCODINGS.
    private static let encodings = getenv("MARTLET_TEST_ENCODINGS").map { Int(atoi($0)) } ?? 48

    /// Near branches: each ends at one of two places that leave different values in RBX.
    @Test(arguments: [false, true]) func branches(is32: Bool) throws {
        let bench = try #require(IntegerBench(), "the scratch region is taken in this process")
        var encoder = IntegerEncoder(dice: Dice(seed: 7))
        bench.fill(&encoder.dice, stackFlags: false)
        let set1: [UInt8] = [0xBB, 1, 0, 0, 0, 0xCC]
        let set2: [UInt8] = [0xBB, 2, 0, 0, 0, 0xCC]
        var programs: [(String, [UInt8])] = []
        for condition in UInt8(0)..<16 {
            programs.append(("jcc8", [0x70 + condition, 6] + set1 + set2))
            programs.append(("jcc32", [0x0F, 0x80 + condition, 6, 0, 0, 0] + set1 + set2))
        }
        for opcode in UInt8(0xE0)...0xE3 {
            programs.append(("loop", [opcode, 6] + set1 + set2))
            programs.append(("loop, narrow counter", [0x67, opcode, 6] + set1 + set2))
            // Backwards over an INC until the counter or the condition ends it.
            programs.append(("loop back", [0xFE, 0xC2, opcode, 0xFC] + set1))
        }
        programs += [
            ("jmp8", [0xEB, 6] + set1 + set2), ("jmp32", [0xE9, 6, 0, 0, 0] + set1 + set2),
            ("jmp back", [0xEB, 6] + set1 + [0xEB, 0xF8] + set2),
            ("call, ret", [0xE8, 6, 0, 0, 0] + set1 + [0xFF, 0xC3, 0xC3]),
            ("call, ret n", [0xE8, 6, 0, 0, 0] + set1 + [0xFF, 0xC3, 0xC2, 8, 0]),
            ("call, pop, jmp", [0xE8, 6, 0, 0, 0] + set1 + [0x58, 0xFF, 0xE0]),
            ("call, pop, call", [0xE8, 6, 0, 0, 0] + set1 + [0x58, 0xFF, 0xD0]),
            ("call, jmp memory", [0xE8, 6, 0, 0, 0] + set1 + [0xFF, 0x24, 0x24]),
            ("call, call memory", [0xE8, 6, 0, 0, 0] + set1 + [0xFF, 0x14, 0x24]),
        ]
        for (name, bytes) in programs {
            for round in 0..<40 {
                let address = bench.reserveCode(48)
                bench.put(bytes, at: address)
                var c = IntegerCase(TestForm(name: name, opcode: []), is32: is32)
                c.bytes = bytes
                var input = encoder.input(c)
                input.gpr[1] = round % 3 == 0 ? encoder.dice.operand() & ~0xFFFF : UInt64(encoder.dice.below(5))
                if name == "loop back" { input.gpr[1] = UInt64(encoder.dice.below(400)) + 1 }
                if is32 { input.gpr[1] &= 0xFFFF_FFFF }
                bench.copyToGuest()
                let host = bench.onHost(input, rip: address, is32: is32)
                let engine = bench.onEngine(input, rip: address, is32: is32)
                let wrong = differences(engine, host, c)
                #expect(wrong.isEmpty && bench.firstDifference() == nil, "\(name) \(bytes): \(wrong)")
            }
        }
    }

    @Test(arguments: [false, true]) func everyForm(is32: Bool) throws {
        let bench = try #require(IntegerBench(), "the scratch region is taken in this process")
        var encoder = IntegerEncoder(dice: Dice(seed: is32 ? 32 : 64))
        bench.fill(&encoder.dice, stackFlags: false)
        var failures = 0
        var count = 0
        for form in integerForms {
            if form.traits.contains(is32 ? .longOnly : .legacyOnly) { continue }
            for _ in 0..<Self.encodings {
                let address = bench.reserveCode(48)
                let c = encoder.encode(form, is32: is32, address: address)
                // 64-bit code has no room for a legacy form's opcode, 32-bit code none for REX.
                bench.put(c.bytes + [0xCC], at: address)
                count += 1
                if let failure = check(bench, c, at: address, &encoder, rounds: 6) {
                    Issue.record("\(failure)")
                    failures += 1
                    break
                }
            }
            if failures > 40 { return }
        }
        #expect(count > 150 * Self.encodings)
    }
}
