@testable import CPU

/// What stands behind the opcode of an instruction form.
enum TestImmediate {
    case none, byte, word
    /// As wide as the operand, at most four bytes.
    case full
    /// As wide as the operand, eight bytes too (MOV r, imm64).
    case whole
    /// A count for shifts: any byte.
    case enter
}

/// How ModRM is used.
enum TestModRM {
    case none
    /// ModRM.reg is a register operand.
    case register
    /// ModRM.reg extends the opcode.
    case digit(UInt8)
    /// The register is in the opcode's low bits.
    case inOpcode
}

/// Operand widths that a form has.
enum TestWidths {
    case byte
    case wide
    /// The stack's: 2 and 8 bytes in 64-bit mode, 2 and 4 elsewhere.
    case stack
    case fixed(Int)
}

/// One instruction form, as the tables of SDM vol. 2 appendix A list them.
struct TestForm {
    struct Traits: OptionSet {
        let rawValue: UInt32
        static let lockable = Traits(rawValue: 1)
        static let memoryOnly = Traits(rawValue: 2)
        static let registerOnly = Traits(rawValue: 4)
        /// Register bit offsets reach beyond the operand.
        static let bitOffset = Traits(rawValue: 8)
        static let string = Traits(rawValue: 16)
        static let repeats = Traits(rawValue: 32)
        static let legacyOnly = Traits(rawValue: 64)
        static let longOnly = Traits(rawValue: 128)
        static let aligned16 = Traits(rawValue: 256)
        static let stack = Traits(rawValue: 512)
        static let division = Traits(rawValue: 1024)
        static let compares = Traits(rawValue: 2048)
        static let flagsOnStack = Traits(rawValue: 4096)
        static let xlat = Traits(rawValue: 8192)
        /// Not with a 16-bit operand.
        static let no16 = Traits(rawValue: 1 << 14)
        /// The address is not accessed (LEA).
        static let noAccess = Traits(rawValue: 1 << 15)
        /// A selector that loads is in memory behind the offset.
        static let farPointer = Traits(rawValue: 1 << 16)
        static let moffs = Traits(rawValue: 1 << 17)
    }

    var name: String
    var opcode: [UInt8]
    var modrm: TestModRM = .register
    var immediate: TestImmediate = .none
    var widths: TestWidths = .wide
    var prefix: UInt8 = 0
    /// Flags that the manual leaves undefined and processors differ in.
    var undefined: UInt64 = 0
    var traits: Traits = []
}

private let status = RFlags.status
/// What MUL and IMUL leave undefined, which some processors leave alone.
private let multiplied = RFlags.sign | RFlags.zero | RFlags.adjust | RFlags.parity

private func arithmetic() -> [TestForm] {
    var forms: [TestForm] = []
    let names = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"]
    for (index, name) in names.enumerated() {
        let base = UInt8(index * 8)
        let lock: TestForm.Traits = name == "cmp" ? [] : .lockable
        forms += [
            TestForm(name: name, opcode: [base], widths: .byte, traits: lock),
            TestForm(name: name, opcode: [base + 1], traits: lock),
            TestForm(name: name, opcode: [base + 2], widths: .byte),
            TestForm(name: name, opcode: [base + 3]),
            TestForm(name: name, opcode: [base + 4], modrm: .none, immediate: .full, widths: .byte),
            TestForm(name: name, opcode: [base + 5], modrm: .none, immediate: .full),
            TestForm(
                name: name, opcode: [0x80], modrm: .digit(UInt8(index)), immediate: .byte, widths: .byte, traits: lock),
            TestForm(name: name, opcode: [0x81], modrm: .digit(UInt8(index)), immediate: .full, traits: lock),
            TestForm(name: name, opcode: [0x83], modrm: .digit(UInt8(index)), immediate: .byte, traits: lock),
            TestForm(
                name: name, opcode: [0x82], modrm: .digit(UInt8(index)), immediate: .byte, widths: .byte,
                traits: lock.union(.legacyOnly)),
        ]
    }
    for number in UInt8(0)..<8 {
        forms += [
            TestForm(
                name: "shift\(number) imm", opcode: [0xC0], modrm: .digit(number), immediate: .byte, widths: .byte),
            TestForm(name: "shift\(number) imm", opcode: [0xC1], modrm: .digit(number), immediate: .byte),
            TestForm(name: "shift\(number) 1", opcode: [0xD0], modrm: .digit(number), widths: .byte),
            TestForm(name: "shift\(number) 1", opcode: [0xD1], modrm: .digit(number)),
            TestForm(name: "shift\(number) cl", opcode: [0xD2], modrm: .digit(number), widths: .byte),
            TestForm(name: "shift\(number) cl", opcode: [0xD3], modrm: .digit(number)),
        ]
        let lock: TestForm.Traits = number == 2 || number == 3 ? .lockable : []
        let divides: TestForm.Traits = number >= 6 ? .division : []
        let undefined = number >= 6 ? status : (number >= 4 ? multiplied : 0)
        let immediate: TestImmediate = number < 2 ? .full : .none
        forms += [
            TestForm(
                name: "group3/\(number)", opcode: [0xF6], modrm: .digit(number), immediate: immediate, widths: .byte,
                undefined: undefined, traits: lock.union(divides)),
            TestForm(
                name: "group3/\(number)", opcode: [0xF7], modrm: .digit(number), immediate: immediate,
                undefined: undefined, traits: lock.union(divides)),
        ]
    }
    for number in UInt8(0)..<2 {
        forms += [
            TestForm(name: "inc/dec", opcode: [0xFE], modrm: .digit(number), widths: .byte, traits: .lockable),
            TestForm(name: "inc/dec", opcode: [0xFF], modrm: .digit(number), traits: .lockable),
            TestForm(name: "inc/dec short", opcode: [0x40 + number * 8], modrm: .inOpcode, traits: .legacyOnly),
        ]
    }
    forms += [
        TestForm(name: "test", opcode: [0x84], widths: .byte),
        TestForm(name: "test", opcode: [0x85]),
        TestForm(name: "test", opcode: [0xA8], modrm: .none, immediate: .full, widths: .byte),
        TestForm(name: "test", opcode: [0xA9], modrm: .none, immediate: .full),
        TestForm(name: "imul3", opcode: [0x69], immediate: .full, undefined: multiplied),
        TestForm(name: "imul3", opcode: [0x6B], immediate: .byte, undefined: multiplied),
        TestForm(name: "imul2", opcode: [0x0F, 0xAF], undefined: multiplied),
        TestForm(name: "cbw", opcode: [0x98], modrm: .none),
        TestForm(name: "cwd", opcode: [0x99], modrm: .none),
    ]
    let decimal: [(String, UInt8, UInt64)] = [
        ("daa", 0x27, RFlags.overflow), ("das", 0x2F, RFlags.overflow),
        ("aaa", 0x37, RFlags.overflow | RFlags.sign | RFlags.zero | RFlags.parity),
        ("aas", 0x3F, RFlags.overflow | RFlags.sign | RFlags.zero | RFlags.parity),
    ]
    for (name, opcode, undefined) in decimal {
        forms.append(
            TestForm(
                name: name, opcode: [opcode], modrm: .none, widths: .byte, undefined: undefined, traits: .legacyOnly))
    }
    let adjust = RFlags.overflow | RFlags.carry | RFlags.adjust
    forms += [
        TestForm(
            name: "aam", opcode: [0xD4], modrm: .none, immediate: .byte, widths: .byte, undefined: adjust,
            traits: .legacyOnly),
        TestForm(
            name: "aad", opcode: [0xD5], modrm: .none, immediate: .byte, widths: .byte, undefined: adjust,
            traits: .legacyOnly),
    ]
    return forms
}

private func transfers() -> [TestForm] {
    var forms: [TestForm] = [
        TestForm(name: "xchg", opcode: [0x86], widths: .byte, traits: .lockable),
        TestForm(name: "xchg", opcode: [0x87], traits: .lockable),
        TestForm(name: "mov", opcode: [0x88], widths: .byte),
        TestForm(name: "mov", opcode: [0x89]),
        TestForm(name: "mov", opcode: [0x8A], widths: .byte),
        TestForm(name: "mov", opcode: [0x8B]),
        TestForm(name: "mov imm", opcode: [0xC6], modrm: .digit(0), immediate: .full, widths: .byte),
        TestForm(name: "mov imm", opcode: [0xC7], modrm: .digit(0), immediate: .full),
        TestForm(name: "mov imm", opcode: [0xB0], modrm: .inOpcode, immediate: .full, widths: .byte),
        TestForm(name: "mov imm", opcode: [0xB8], modrm: .inOpcode, immediate: .whole),
        TestForm(name: "lea", opcode: [0x8D], traits: [.memoryOnly, .noAccess]),
        TestForm(name: "movsxd", opcode: [0x63], traits: .longOnly),
        TestForm(name: "xchg a", opcode: [0x90], modrm: .inOpcode),
        TestForm(name: "movzx 8", opcode: [0x0F, 0xB6]),
        TestForm(name: "movzx 16", opcode: [0x0F, 0xB7]),
        TestForm(name: "movsx 8", opcode: [0x0F, 0xBE]),
        TestForm(name: "movsx 16", opcode: [0x0F, 0xBF]),
        TestForm(name: "movnti", opcode: [0x0F, 0xC3], traits: [.memoryOnly, .no16]),
        TestForm(name: "bswap", opcode: [0x0F, 0xC8], modrm: .inOpcode, traits: .no16),
        TestForm(name: "movbe", opcode: [0x0F, 0x38, 0xF0], traits: .memoryOnly),
        TestForm(name: "movbe", opcode: [0x0F, 0x38, 0xF1], traits: .memoryOnly),
        TestForm(name: "xlat", opcode: [0xD7], modrm: .none, widths: .byte, traits: .xlat),
        TestForm(name: "lahf", opcode: [0x9F], modrm: .none, widths: .byte),
        TestForm(name: "sahf", opcode: [0x9E], modrm: .none, widths: .byte),
        TestForm(name: "nop", opcode: [0x0F, 0x1F], modrm: .digit(0)),
        TestForm(name: "pause", opcode: [0x90], modrm: .none, widths: .fixed(4), prefix: 0xF3),
        TestForm(name: "mov moffs", opcode: [0xA0], modrm: .none, widths: .byte, traits: .moffs),
        TestForm(name: "mov moffs", opcode: [0xA1], modrm: .none, traits: .moffs),
        TestForm(name: "mov moffs", opcode: [0xA2], modrm: .none, widths: .byte, traits: .moffs),
        TestForm(name: "mov moffs", opcode: [0xA3], modrm: .none, traits: .moffs),
    ]
    for condition in UInt8(0)..<16 {
        forms.append(TestForm(name: "cmov\(condition)", opcode: [0x0F, 0x40 + condition]))
        forms.append(
            TestForm(name: "set\(condition)", opcode: [0x0F, 0x90 + condition], modrm: .digit(0), widths: .byte))
    }
    for opcode in [UInt8(0xF5), 0xF8, 0xF9, 0xFC, 0xFD] {
        forms.append(TestForm(name: "flag \(opcode)", opcode: [opcode], modrm: .none, widths: .byte))
    }
    return forms
}

private func bits() -> [TestForm] {
    var forms: [TestForm] = [
        TestForm(name: "shld imm", opcode: [0x0F, 0xA4], immediate: .byte),
        TestForm(name: "shld cl", opcode: [0x0F, 0xA5]),
        TestForm(name: "shrd imm", opcode: [0x0F, 0xAC], immediate: .byte),
        TestForm(name: "shrd cl", opcode: [0x0F, 0xAD]),
        TestForm(name: "bsf", opcode: [0x0F, 0xBC]),
        TestForm(name: "bsr", opcode: [0x0F, 0xBD]),
        TestForm(name: "tzcnt", opcode: [0x0F, 0xBC], prefix: 0xF3),
        TestForm(name: "lzcnt", opcode: [0x0F, 0xBD], prefix: 0xF3),
        TestForm(name: "popcnt", opcode: [0x0F, 0xB8], prefix: 0xF3),
        TestForm(name: "crc32", opcode: [0x0F, 0x38, 0xF0], widths: .fixed(4), prefix: 0xF2),
        TestForm(name: "crc32", opcode: [0x0F, 0x38, 0xF1], prefix: 0xF2),
        TestForm(name: "xadd", opcode: [0x0F, 0xC0], widths: .byte, traits: .lockable),
        TestForm(name: "xadd", opcode: [0x0F, 0xC1], traits: .lockable),
        TestForm(name: "cmpxchg", opcode: [0x0F, 0xB0], widths: .byte, traits: [.lockable, .compares]),
        TestForm(name: "cmpxchg", opcode: [0x0F, 0xB1], traits: [.lockable, .compares]),
        TestForm(
            name: "cmpxchg8b", opcode: [0x0F, 0xC7], modrm: .digit(1), widths: .fixed(4),
            traits: [.memoryOnly, .lockable, .compares]),
        TestForm(
            name: "cmpxchg16b", opcode: [0x0F, 0xC7], modrm: .digit(1), widths: .fixed(8),
            traits: [.memoryOnly, .lockable, .compares, .aligned16, .longOnly]),
    ]
    if HostProcessor.hasADX {
        forms.append(TestForm(name: "adcx", opcode: [0x0F, 0x38, 0xF6], prefix: 0x66, traits: .no16))
        forms.append(TestForm(name: "adox", opcode: [0x0F, 0x38, 0xF6], prefix: 0xF3, traits: .no16))
    }
    for (index, opcode) in [UInt8(0xA3), 0xAB, 0xB3, 0xBB].enumerated() {
        let lock: TestForm.Traits = index == 0 ? [] : .lockable
        forms.append(TestForm(name: "bt\(index)", opcode: [0x0F, opcode], traits: lock.union(.bitOffset)))
        forms.append(
            TestForm(
                name: "bt\(index) imm", opcode: [0x0F, 0xBA], modrm: .digit(UInt8(4 + index)), immediate: .byte,
                traits: lock))
    }
    return forms
}

private func stackForms() -> [TestForm] {
    [
        TestForm(name: "push", opcode: [0x50], modrm: .inOpcode, widths: .stack, traits: .stack),
        TestForm(name: "pop", opcode: [0x58], modrm: .inOpcode, widths: .stack, traits: .stack),
        TestForm(name: "push", opcode: [0xFF], modrm: .digit(6), widths: .stack, traits: .stack),
        TestForm(name: "pop", opcode: [0x8F], modrm: .digit(0), widths: .stack, traits: .stack),
        TestForm(name: "push imm", opcode: [0x68], modrm: .none, immediate: .full, widths: .stack, traits: .stack),
        TestForm(name: "push imm", opcode: [0x6A], modrm: .none, immediate: .byte, widths: .stack, traits: .stack),
        TestForm(name: "pushf", opcode: [0x9C], modrm: .none, widths: .stack, traits: .stack),
        TestForm(name: "popf", opcode: [0x9D], modrm: .none, widths: .stack, traits: [.stack, .flagsOnStack]),
        TestForm(name: "enter", opcode: [0xC8], modrm: .none, immediate: .enter, widths: .stack, traits: .stack),
        TestForm(name: "leave", opcode: [0xC9], modrm: .none, widths: .stack, traits: .stack),
        TestForm(name: "pusha", opcode: [0x60], modrm: .none, widths: .stack, traits: [.stack, .legacyOnly]),
        TestForm(name: "popa", opcode: [0x61], modrm: .none, widths: .stack, traits: [.stack, .legacyOnly]),
        TestForm(name: "bound", opcode: [0x62], traits: [.memoryOnly, .legacyOnly]),
        TestForm(name: "into", opcode: [0xCE], modrm: .none, widths: .byte, traits: .legacyOnly),
        TestForm(name: "les", opcode: [0xC4], traits: [.memoryOnly, .legacyOnly, .farPointer]),
        TestForm(name: "lds", opcode: [0xC5], traits: [.memoryOnly, .legacyOnly, .farPointer]),
        TestForm(name: "arpl", opcode: [0x63], widths: .fixed(4), traits: .legacyOnly),
        TestForm(name: "mov from cs", opcode: [0x8C], modrm: .digit(1)),
        TestForm(name: "mov from ss", opcode: [0x8C], modrm: .digit(2)),
    ]
}

private func strings() -> [TestForm] {
    var forms: [TestForm] = []
    for (name, opcode) in [("movs", UInt8(0xA4)), ("cmps", 0xA6), ("stos", 0xAA), ("lods", 0xAC), ("scas", 0xAE)] {
        for prefix in [UInt8(0), 0xF3, 0xF2] {
            let traits: TestForm.Traits = prefix == 0 ? .string : [.string, .repeats]
            forms.append(
                TestForm(name: name, opcode: [opcode], modrm: .none, widths: .byte, prefix: prefix, traits: traits))
            forms.append(TestForm(name: name, opcode: [opcode + 1], modrm: .none, prefix: prefix, traits: traits))
        }
    }
    return forms
}

/// Every integer instruction form that user code can run, near branches apart.
let integerForms: [TestForm] = arithmetic() + transfers() + bits() + stackForms() + strings()
