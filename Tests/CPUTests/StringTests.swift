internal import CHost
internal import Fuzzing
internal import Glibc
import Testing

@testable import CPU

/// MOVS, STOS, CMPS, SCAS and LODS with and without REP, against a model that goes by elements: page boundaries, pages
/// that are one frame, overlaps in both directions, faults in the middle, single bytes and whole pages.
@Suite struct StringTests {
    /// Pages 0–7 of `Pages`: their frames, nil for none. Pages 1 and 4 are one frame; so are 2 and 6.
    private static let frames: [UInt64?] = [0, 1, 2, 3, 1, nil, 2, 5]

    private struct Form {
        var opcode: UInt8
        var size: UInt64
        /// 0, F2 or F3.
        var prefix: UInt8

        var code: [UInt8] {
            var result: [UInt8] = prefix == 0 ? [] : [prefix]
            if size == 2 { result.append(0x66) }
            if size == 8 { result.append(0x48) }
            return result + [size == 1 ? opcode : opcode + 1]
        }
    }

    private struct Registers: Equatable {
        var rax: UInt64
        var rcx: UInt64
        var rsi: UInt64
        var rdi: UInt64
        /// CF PF AF ZF SF OF.
        var flags: UInt64
    }

    /// Memory as the guest sees it, and what one string instruction does to it.
    private struct Model {
        var memory: [UInt8]
        var registers: Registers
        var isDownward: Bool
        /// CR2 of the page fault that ended it.
        var fault: UInt64?

        func index(_ address: UInt64) -> Int? {
            let page = (address &- Pages.base) >> 12
            guard page < 8, let frame = StringTests.frames[Int(page)] else { return nil }
            return Int(frame << 12 | address & 4095)
        }

        mutating func read(_ address: UInt64, _ size: UInt64) -> UInt64? {
            var value: UInt64 = 0
            for offset in 0..<size {
                guard let index = index(address &+ offset) else {
                    fault = address &+ offset
                    return nil
                }
                value |= UInt64(memory[index]) << (offset * 8)
            }
            return value
        }

        mutating func write(_ address: UInt64, _ value: UInt64, _ size: UInt64) -> Bool {
            for offset in 0..<size where index(address &+ offset) == nil {
                fault = address &+ offset
                return false
            }
            for offset in 0..<size {
                if let index = index(address &+ offset) {
                    memory[index] = UInt8(truncatingIfNeeded: value >> (offset * 8))
                }
            }
            return true
        }

        mutating func element(_ form: Form) -> Bool {
            let step = isDownward ? 0 &- form.size : form.size
            let mask: UInt64 = form.size == 8 ? .max : 1 << (form.size * 8) - 1
            switch form.opcode {
            case 0xA4:
                guard let value = read(registers.rsi, form.size), write(registers.rdi, value, form.size) else {
                    return false
                }
                registers.rsi &+= step
                registers.rdi &+= step
            case 0xA6:
                guard let left = read(registers.rsi, form.size), let right = read(registers.rdi, form.size) else {
                    return false
                }
                compare(left, right, form.size)
                registers.rsi &+= step
                registers.rdi &+= step
            case 0xAA:
                guard write(registers.rdi, registers.rax, form.size) else { return false }
                registers.rdi &+= step
            case 0xAC:
                guard let value = read(registers.rsi, form.size) else { return false }
                registers.rax = form.size == 4 ? value : registers.rax & ~mask | value
                registers.rsi &+= step
            default:
                guard let right = read(registers.rdi, form.size) else { return false }
                compare(registers.rax & mask, right, form.size)
                registers.rdi &+= step
            }
            return true
        }

        /// SDM vol. 1 §3.4.3.1.
        private mutating func compare(_ left: UInt64, _ right: UInt64, _ size: UInt64) {
            let top = size * 8 - 1
            let result = (left &- right) & (size == 8 ? .max : 1 << (size * 8) - 1)
            var flags: UInt64 = left < right ? RFlags.carry : 0
            if (result & 0xFF).nonzeroBitCount.isMultiple(of: 2) { flags |= RFlags.parity }
            if left & 15 < right & 15 { flags |= RFlags.adjust }
            if result == 0 { flags |= RFlags.zero }
            if result >> top & 1 == 1 { flags |= RFlags.sign }
            if ((left ^ right) & (left ^ result)) >> top & 1 == 1 { flags |= RFlags.overflow }
            registers.flags = flags
        }

        mutating func run(_ form: Form) {
            guard form.prefix != 0 else {
                _ = element(form)
                return
            }
            let compares = form.opcode == 0xA6 || form.opcode == 0xAE
            while registers.rcx != 0, element(form) {
                registers.rcx -= 1
                let isEqual = registers.flags & RFlags.zero != 0
                if compares, isEqual != (form.prefix == 0xF3) { return }
            }
        }
    }

    private static let status = RFlags.status

    /// An address on or near the pages; often near a boundary.
    private func place(_ dice: inout Dice) -> UInt64 {
        let page = UInt64(dice.below(8))
        let offset: UInt64 =
            switch dice.below(4) {
            case 0: UInt64(dice.below(16))
            case 1: 4096 - UInt64(dice.below(40))
            default: UInt64(dice.below(4096))
            }
        return Pages.address(page) &+ offset
    }

    private func count(_ dice: inout Dice) -> UInt64 {
        switch dice.below(8) {
        case 0: UInt64(dice.below(3))
        case 1: UInt64(dice.below(6000))
        case 2: dice.pick([512, 1024, 2048, 4096, 4097])
        case 3: UInt64.max - UInt64(dice.below(3))
        default: UInt64(dice.below(80))
        }
    }

    private func form(_ dice: inout Dice) -> Form {
        Form(
            opcode: dice.pick([0xA4, 0xA4, 0xAA, 0xA6, 0xAE, 0xAC]), size: dice.pick([1, 2, 4, 8]),
            prefix: dice.pick([0, 0xF3, 0xF3, 0xF3, 0xF2]))
    }

    @Test func random() throws {
        for seed in FuzzSeeds(count: 8) { try random(seed) }
    }

    private func random(_ seed: UInt64) throws {
        var dice = Dice(seed: seed)
        let machine = TestMachine()
        machine.enterPagedLong()
        for (page, frame) in Self.frames.enumerated() {
            machine.map(UInt64(page), to: Pages.frame + (frame ?? 0) * 4096, frame == nil ? 0 : 3)
        }
        machine.useStackTable(for: [3, 14])
        for number in 0..<1000 {
            // Mostly equal bytes, so that comparisons go far.
            if number.isMultiple(of: 50) {
                for offset in 0..<UInt64(6 * 4096) {
                    machine.store(dice.chance(900) ? dice.byte() : 7, at: Pages.frame + offset)
                }
            }
            try step(machine, &dice, number)
        }
    }

    private func step(_ machine: TestMachine, _ dice: inout Dice, _ number: Int) throws {
        let form = form(&dice)
        let s = machine.state
        var registers = Registers(
            rax: dice.chance(2) ? 0x0707_0707_0707_0707 : dice.next(), rcx: count(&dice), rsi: place(&dice),
            rdi: place(&dice), flags: dice.next() & Self.status)
        if dice.chance(4) { registers.rdi = registers.rsi &+ UInt64(dice.below(32)) }
        let isDownward = dice.chance(5)
        var model = Model(
            memory: (0..<6 * 4096).map { machine.load(Pages.frame + UInt64($0)) }, registers: registers,
            isDownward: isDownward)
        // Code of its own each time: the TLB stays as warm as it is.
        let code = Place.code + UInt64(number) * 64
        machine.write(form.code + [0xCC], at: code)
        s.setRegister(0, registers.rax)
        s.setRegister(1, registers.rcx)
        s.setRegister(6, registers.rsi)
        s.setRegister(7, registers.rdi)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = code
        s.setFlags(registers.flags | (isDownward ? RFlags.direction : 0))
        let trapped = try #require(machine.run())
        model.run(form)
        let what: Comment = "\(form), step \(number)"
        #expect(trapped.vector == (model.fault == nil ? 3 : 14), what)
        if let fault = model.fault { #expect(s.pointee.cr2 == fault && trapped.rip == code, what) }
        let after = Registers(
            rax: s.register(0), rcx: s.register(1), rsi: s.register(6), rdi: s.register(7),
            flags: trapped.flags & Self.status)
        #expect(after == model.registers, what)
        let isSame = model.memory.withUnsafeBytes {
            memcmp(machine.ram.bytes + Int(Pages.frame), $0.baseAddress!, $0.count) == 0
        }
        #expect(isSame, what)
    }
}
