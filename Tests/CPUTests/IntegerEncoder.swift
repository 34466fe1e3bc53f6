@testable import CPU

/// The registers and memory that a case starts from.
struct IntegerInput {
    var gpr: [UInt64]
    var flags: UInt64
}

/// One encoding of a form, and how to prepare operands for it.
struct IntegerCase {
    var form: TestForm
    var bytes: [UInt8] = []
    var width = 4
    var is32: Bool
    var addressIs32 = false
    /// The memory operand: base + index << scale + displacement.
    var isMemory = false
    var base: Int?
    var index: Int?
    var scale = 0
    var displacement: Int64 = 0
    var fixedTarget: UInt64?
    /// ModRM.reg and ModRM.rm as registers.
    var reg = 0
    var rm = 0

    init(_ form: TestForm, is32: Bool) {
        self.form = form
        self.is32 = is32
    }
}

/// The scratch regions, at the same addresses natively and in the guest.
enum Scratch {
    static let base: UInt64 = 0x2000_0000
    static let data: UInt64 = base
    static let stack: UInt64 = base + 0x4000
    static let code: UInt64 = base + 0x10_0000
    static let dataSize = 0x4000
    static let size = 0x20_0000
}

struct IntegerEncoder {
    var dice: Dice

    /// A random encoding of a form, for code at `address`.
    mutating func encode(_ form: TestForm, is32: Bool, address: UInt64) -> IntegerCase {
        var c = IntegerCase(form, is32: is32)
        chooseWidth(&c)
        var rex: UInt8 = 0
        let stackDefault = isStack(form) && c.width == 8
        if c.width == 8, !stackDefault, !is32 { rex |= 0x48 }
        var body = form.opcode
        var tail: [UInt8] = []
        switch form.modrm {
        case .none: break
        case .inOpcode:
            c.rm = register(&rex, bit: 1, is32)
            // XCHG with itself is NOP and PAUSE.
            body[body.count - 1] |= UInt8(c.rm & 7)
        case .register, .digit:
            c.isMemory =
                form.traits.contains(.memoryOnly) || (!form.traits.contains(.registerOnly) && dice.chance(2))
            if case .digit(let number) = form.modrm {
                c.reg = Int(number)
            } else {
                c.reg = register(&rex, bit: 4, is32)
            }
            if c.isMemory {
                tail = memory(&c, &rex)
            } else {
                c.rm = register(&rex, bit: 1, is32)
                tail = [0xC0 | UInt8(c.reg & 7) << 3 | UInt8(c.rm & 7)]
            }
        }
        if !is32, rex == 0, dice.chance(4) { rex = 0x40 }
        let immediate = immediateBytes(&c)
        var prefixes: [UInt8] = []
        if c.addressIs32, !is32 { prefixes.append(0x67) }
        if usesNarrowAddress(&c) { prefixes.append(0x67) }
        if c.width == 2 { prefixes.append(0x66) }
        if c.isMemory, form.traits.contains(.lockable), dice.chance(3) { prefixes.append(0xF0) }
        if form.prefix != 0 { prefixes.append(form.prefix) }
        if dice.chance(8), form.prefix == 0, !is32 { prefixes.append(dice.pick([0x26, 0x2E, 0x36, 0x3E])) }
        c.bytes = prefixes + (rex == 0 || is32 ? [] : [rex]) + body + tail + immediate
        if c.base == -1 { patchRIP(&c, immediateCount: immediate.count, address: address) }
        return c
    }

    private func isStack(_ form: TestForm) -> Bool {
        if case .stack = form.widths { return true }
        return false
    }

    private mutating func chooseWidth(_ c: inout IntegerCase) {
        switch c.form.widths {
        case .byte: c.width = 1
        case .wide:
            var widths = c.is32 ? [2, 4] : [2, 4, 8]
            if c.form.traits.contains(.no16) { widths.removeFirst() }
            c.width = dice.pick(widths)
        case .stack: c.width = dice.pick(c.is32 ? [2, 4] : [2, 8])
        case .fixed(let width): c.width = width
        }
    }

    private mutating func register(_ rex: inout UInt8, bit: UInt8, _ is32: Bool) -> Int {
        let number = dice.below(is32 ? 8 : 16)
        if number >= 8 { rex |= 0x40 | bit }
        return number
    }

    /// String instructions and XLAT with a cut address.
    private mutating func usesNarrowAddress(_ c: inout IntegerCase) -> Bool {
        guard !c.is32, c.form.traits.contains(.string) || c.form.traits.contains(.xlat), dice.chance(4) else {
            return false
        }
        c.addressIs32 = true
        return true
    }

    /// ModRM, SIB and displacement of a random address.
    private mutating func memory(_ c: inout IntegerCase, _ rex: inout UInt8) -> [UInt8] {
        c.addressIs32 = c.is32 || dice.chance(5)
        let regBits = UInt8(c.reg & 7) << 3
        switch dice.below(8) {
        case 0:
            // Absolute, or relative to RIP.
            c.fixedTarget = target(c)
            if c.is32 || dice.chance(2) {
                let sib: [UInt8] = c.is32 && dice.chance(2) ? [regBits | 5] : [regBits | 4, 0x25]
                return sib + Self.little(c.fixedTarget ?? 0, 4)
            }
            c.base = -1
            return [regBits | 5, 0, 0, 0, 0]
        case 1...3: return simpleMemory(&c, &rex, regBits)
        default: return indexedMemory(&c, &rex, regBits)
        }
    }

    private mutating func baseRegister(_ c: IntegerCase, _ rex: inout UInt8) -> Int {
        while true {
            let base = dice.below(c.is32 ? 8 : 16)
            // A bit offset and an address have no room in one register.
            if c.form.traits.contains(.bitOffset), base == c.reg { continue }
            if base >= 8 { rex |= 0x41 }
            return base
        }
    }

    private mutating func displacement(_ c: inout IntegerCase, base: Int) -> (mod: UInt8, bytes: [UInt8]) {
        var mod = UInt8(dice.below(3))
        if mod == 0, base & 7 == 5 { mod = 1 }
        switch mod {
        case 1:
            let value = Int8(truncatingIfNeeded: dice.next())
            c.displacement = Int64(value)
            return (0x40, [UInt8(bitPattern: value)])
        case 2:
            let value = Int64(dice.below(0x4000)) - 0x2000
            c.displacement = value
            return (0x80, Self.little(UInt64(bitPattern: value), 4))
        default: return (0, [])
        }
    }

    private mutating func simpleMemory(_ c: inout IntegerCase, _ rex: inout UInt8, _ regBits: UInt8) -> [UInt8] {
        let base = baseRegister(c, &rex)
        c.base = base
        let (mod, bytes) = displacement(&c, base: base)
        let sib: [UInt8] = base & 7 == 4 ? [0x24] : []
        return [mod | regBits | UInt8(base & 7)] + sib + bytes
    }

    private mutating func indexedMemory(_ c: inout IntegerCase, _ rex: inout UInt8, _ regBits: UInt8) -> [UInt8] {
        let base = baseRegister(c, &rex)
        c.base = base
        var index = dice.below(c.is32 ? 8 : 16)
        while index == 4 || index == base || (c.form.traits.contains(.bitOffset) && index == c.reg) {
            index = dice.below(c.is32 ? 8 : 16)
        }
        if index >= 8 { rex |= 0x42 }
        c.index = index
        c.scale = dice.below(4)
        let (mod, bytes) = displacement(&c, base: base)
        return [mod | regBits | 4, UInt8(c.scale << 6) | UInt8(index & 7) << 3 | UInt8(base & 7)] + bytes
    }

    private func patchRIP(_ c: inout IntegerCase, immediateCount: Int, address: UInt64) {
        let offset = c.bytes.count - immediateCount - 4
        let distance = (c.fixedTarget ?? 0) &- (address &+ UInt64(c.bytes.count))
        c.bytes.replaceSubrange(offset..<(offset + 4), with: Self.little(distance, 4))
        c.base = nil
    }

    private mutating func immediateBytes(_ c: inout IntegerCase) -> [UInt8] {
        if c.form.traits.contains(.moffs) {
            let address = target(c)
            c.fixedTarget = address
            c.isMemory = true
            if !c.is32, dice.chance(3) { c.addressIs32 = true }
            return Self.little(address, c.is32 || c.addressIs32 ? 4 : 8)
        }
        switch c.form.immediate {
        case .none: return []
        case .byte: return [dice.byte()]
        case .word: return Self.little(dice.next(), 2)
        case .full: return Self.little(dice.operand(), min(c.width, 4))
        case .whole: return Self.little(dice.operand(), c.width)
        case .enter: return Self.little(UInt64(dice.below(0x400)), 2) + [dice.chance(2) ? 0 : UInt8(dice.below(256))]
        }
    }

    static func little(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }

    // MARK: Operands

    /// An address in the middle of the data: often aligned, sometimes over a page boundary.
    mutating func target(_ c: IntegerCase) -> UInt64 {
        let address = Scratch.data + 0x1000 + UInt64(dice.below(0x1F00))
        if c.form.traits.contains(.aligned16) { return dice.chance(6) ? address : address & ~15 }
        switch dice.below(4) {
        case 0: return address
        case 1: return Scratch.data + 0x2000 - UInt64(dice.below(9))
        default: return address & ~7
        }
    }

    mutating func input(_ c: IntegerCase) -> IntegerInput {
        var input = IntegerInput(gpr: (0..<16).map { _ in dice.operand() }, flags: 0x202)
        input.flags |= dice.next() & RFlags.status
        if dice.chance(2), c.form.traits.contains(.string) { input.flags |= RFlags.direction }
        input.gpr[4] = Scratch.stack + 0x2000 + UInt64(dice.below(64))
        if c.form.traits.contains(.flagsOnStack) { input.gpr[4] &= ~7 }
        if c.form.traits.contains(.stack) { input.gpr[5] = Scratch.stack + 0x2400 + UInt64(dice.below(512)) }
        if c.form.traits.contains(.string) { setStrings(&input, c) }
        if c.form.traits.contains(.xlat) { input.gpr[3] = garbage(target(c), c) }
        if c.form.traits.contains(.division), dice.below(4) != 0 { makeDivisible(&input, c) }
        setAddress(&input, c)
        if c.is32 { input.gpr = input.gpr.enumerated().map { $0.offset < 8 ? $0.element & 0xFFFF_FFFF : $0.element } }
        return input
    }

    /// A 32-bit address in a 64-bit register has anything above it.
    private mutating func garbage(_ value: UInt64, _ c: IntegerCase) -> UInt64 {
        c.addressIs32 && !c.is32 ? (value & 0xFFFF_FFFF) | dice.next() << 32 : value
    }

    private mutating func setAddress(_ input: inout IntegerInput, _ c: IntegerCase) {
        guard c.isMemory, !c.form.traits.contains(.noAccess) else { return }
        if c.form.traits.contains(.bitOffset) {
            let bit = Int64(dice.below(0x2000)) - 0x1000
            let cut = UInt64(bitPattern: bit) & (c.width == 8 ? .max : (1 << UInt64(c.width * 8)) - 1)
            input.gpr[c.reg] = c.width == 8 ? cut : cut | dice.next() << UInt64(c.width * 8)
        }
        guard let base = c.base else { return }
        var place = target(c)
        if let index = c.index {
            let value = UInt64(dice.below(64))
            input.gpr[index] = garbage(value, c)
            place = place &- value << UInt64(c.scale)
        }
        input.gpr[base] = garbage(place &- UInt64(bitPattern: c.displacement), c)
    }

    private mutating func setStrings(_ input: inout IntegerInput, _ c: IntegerCase) {
        let source = target(c)
        let isNear = dice.chance(2)
        let destination = isNear ? source &+ UInt64(dice.below(40)) &- 20 : target(c)
        input.gpr[6] = garbage(source, c)
        input.gpr[7] = garbage(destination, c)
        var count = dice.chance(6) ? UInt64(dice.below(0x1000 / c.width)) : UInt64(dice.below(24))
        // Processors differ in whether no repetition at all cuts the registers to 32 bits.
        if c.addressIs32, !c.is32 { count = max(count, 1) }
        input.gpr[1] = garbage(c.form.traits.contains(.repeats) ? count : dice.operand(), c)
    }

    /// Most quotients do not fit: make some that do.
    private mutating func makeDivisible(_ input: inout IntegerInput, _ c: IntegerCase) {
        let isSigned = if case .digit(7) = c.form.modrm { true } else { false }
        switch c.width {
        case 1:
            input.gpr[0] =
                isSigned ? UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: input.gpr[0]))) : input.gpr[0] & 0x7F
        case 2: input.gpr[2] = isSigned ? UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: input.gpr[0])) >> 63) : 0
        case 4: input.gpr[2] = isSigned ? UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: input.gpr[0])) >> 63) : 0
        default: input.gpr[2] = isSigned ? UInt64(bitPattern: Int64(bitPattern: input.gpr[0]) >> 63) : 0
        }
    }
}
