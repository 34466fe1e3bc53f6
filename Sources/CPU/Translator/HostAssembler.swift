internal import CHost

/// Host registers by encoding, with the roles that translated code gives them (CHost/translated.S).
enum HostRegister {
    static let rax = 0
    static let rcx = 1
    static let rdx = 2
    static let rbx = 3
    static let guestRSP = 12
    static let scratch = 13
    static let scratch2 = 14
    static let state = 15
}

/// Condition codes (SDM vol. 2, appendix B.1.4).
enum HostCondition {
    static let aboveOrEqual = 3
    static let zero = 4
    static let notZero = 5
    static let belowOrEqual = 6
    static let above = 7
}

/// The rm operand of a host instruction.
enum HostOperand {
    case register(Int)
    /// [scratch]: a guest memory operand whose host address is known.
    case pointer
    /// [base + scratch + displacement]: a guest memory operand with its site's addend in scratch.
    case based(Int, Int)
    /// A place in the vCPU state.
    case state(Int)
    /// A field of a line of the TLB: the register that has the line, and the field's offset.
    case line(Int, Int)
    /// A place in the records behind the code.
    case record(UInt64)
}

/// Writes host instructions into the code arena's writable mapping.
struct HostAssembler {
    let base: UnsafeMutablePointer<UInt8>
    let capacity: Int
    /// Where position 0 will execute.
    let origin: UInt64
    private(set) var position = 0

    init(base: UnsafeMutablePointer<UInt8>, capacity: Int, origin: UInt64) {
        self.base = base
        self.capacity = capacity
        self.origin = origin
    }

    /// Nothing is written beyond the arena; the caller drops what did not fit.
    var isFull: Bool { position >= capacity }

    mutating func byte(_ value: Int) {
        if position < capacity { base[position] = UInt8(truncatingIfNeeded: value) }
        position += 1
    }

    mutating func bytes(_ first: Int, _ second: Int) {
        byte(first)
        byte(second)
    }

    mutating func bytes(_ first: Int, _ second: Int, _ third: Int) {
        byte(first)
        byte(second)
        byte(third)
    }

    mutating func bytes(_ first: Int, _ second: Int, _ third: Int, _ fourth: Int) {
        bytes(first, second)
        bytes(third, fourth)
    }

    mutating func word32(_ value: Int) {
        for shift in 0..<4 { byte(value >> (shift * 8)) }
    }

    mutating func word64(_ value: UInt64) {
        for shift in 0..<8 { byte(Int(truncatingIfNeeded: value >> UInt64(shift * 8))) }
    }

    mutating func patch32(at place: Int, to target: Int) {
        guard place + 4 <= capacity else { return }
        let distance = target - (place + 4)
        for shift in 0..<4 { base[place + shift] = UInt8(truncatingIfNeeded: distance >> (shift * 8)) }
    }

    mutating func patch8(at place: Int, to target: Int) {
        if place < capacity { base[place] = UInt8(truncatingIfNeeded: target - (place + 1)) }
    }

    /// One instruction with ModRM. `size` 2 takes the operand-size prefix, 8 REX.W; `byteRegisters` says that a register
    /// operand is a byte, which needs REX for SPL to DIL. A RIP-relative operand must not be followed by an immediate.
    mutating func operation(
        map: Int = 0, _ opcode: Int, size: Int, reg: Int, _ rm: HostOperand, byteReg: Bool = false,
        byteRM: Bool = false, prefix: Int = 0, lock: Bool = false
    ) {
        if lock { byte(0xF0) }
        if size == 2 { byte(0x66) }
        if prefix != 0 { byte(prefix) }
        var rex = size == 8 ? 8 : 0
        if reg >= 8 { rex |= 4 }
        var force = byteReg && reg >= 4
        switch rm {
        case .register(let number):
            if number >= 8 { rex |= 1 }
            force = force || (byteRM && number >= 4)
        case .pointer, .state: rex |= 1
        case .based(let base, _): rex |= 2 | (base >= 8 ? 1 : 0)
        case .line(let base, _): rex |= base >= 8 ? 1 : 0
        case .record: break
        }
        if rex != 0 || force { byte(0x40 | rex) }
        if map >= 1 { byte(0x0F) }
        if map == 2 { byte(0x38) }
        if map == 3 { byte(0x3A) }
        byte(opcode)
        modRM(reg, rm)
    }

    private mutating func modRM(_ reg: Int, _ rm: HostOperand) {
        let field = (reg & 7) << 3
        switch rm {
        case .register(let number): byte(0xC0 | field | (number & 7))
        case .pointer: bytes(0x45 | field, 0)
        case .state(let offset):
            let isSmall = offset < 128
            byte((isSmall ? 0x47 : 0x87) | field)
            if isSmall { byte(offset) } else { word32(offset) }
        case .based(let base, let displacement):
            let isSmall = displacement >= -128 && displacement <= 127
            bytes((isSmall ? 0x44 : 0x84) | field, (HostRegister.scratch & 7) << 3 | (base & 7))
            if isSmall { byte(displacement) } else { word32(displacement) }
        case .line(let base, let offset):
            byte((offset < 128 ? 0x40 : 0x80) | field | (base & 7))
            if offset < 128 { byte(offset) } else { word32(offset) }
        case .record(let address):
            byte(0x05 | field)
            word32(Int(truncatingIfNeeded: address &- (origin &+ UInt64(position + 4))))
        }
    }

    mutating func load(_ register: Int, fromState offset: Int) {
        operation(0x8B, size: 8, reg: register, .state(offset))
    }

    mutating func store(_ register: Int, toState offset: Int) {
        operation(0x89, size: 8, reg: register, .state(offset))
    }

    mutating func move(_ target: Int, _ source: Int) {
        operation(0x89, size: 8, reg: source, .register(target))
    }

    /// lea target, [base + index << scale + displacement]; an index of nil is none.
    mutating func lea(_ target: Int, base: Int, index: Int? = nil, scale: Int = 0, displacement: Int, size: Int = 8) {
        var rex = size == 8 ? 0x48 : 0x40
        if size == 2 { byte(0x66) }
        if target >= 8 { rex |= 4 }
        if base >= 8 { rex |= 1 }
        if let index, index >= 8 { rex |= 2 }
        bytes(rex, 0x8D)
        let isSmall = displacement >= -128 && displacement <= 127
        let mod = displacement == 0 && base & 7 != 5 ? 0 : isSmall ? 0x40 : 0x80
        if index != nil || base & 7 == 4 {
            bytes(mod | (target & 7) << 3 | 4, scale << 6 | ((index ?? 4) & 7) << 3 | (base & 7))
        } else {
            byte(mod | (target & 7) << 3 | (base & 7))
        }
        if mod == 0 { return }
        if isSmall { byte(displacement) } else { word32(displacement) }
    }

    /// lea target, [index << scale + displacement32].
    mutating func leaScaled(_ target: Int, index: Int, scale: Int, displacement: Int, size: Int = 8) {
        bytes((size == 8 ? 0x48 : 0x40) | (target >= 8 ? 4 : 0) | (index >= 8 ? 2 : 0), 0x8D, (target & 7) << 3 | 4)
        byte(scale << 6 | (index & 7) << 3 | 5)
        word32(displacement)
    }

    /// lea target, [record].
    mutating func leaRecord(_ target: Int, _ address: UInt64) {
        operation(0x8D, size: 8, reg: target, .record(address))
    }

    /// shrx target, source, count: the flags stay.
    mutating func shiftRight(_ target: Int, _ source: Int, by count: Int) {
        bytes(0xC4, (target >= 8 ? 0 : 0x80) | 0x40 | (source >= 8 ? 0 : 0x20) | 2, 0x80 | (~count & 15) << 3 | 3, 0xF7)
        byte(0xC0 | (target & 7) << 3 | (source & 7))
    }

    /// bextr target, source, control: the bits of `source` that `control` says (SDM vol. 2A, BEXTR).
    mutating func extract(_ target: Int, _ source: Int, control: Int) {
        bytes(0xC4, (target >= 8 ? 0 : 0x80) | 0x40 | (source >= 8 ? 0 : 0x20) | 2, 0x80 | (~control & 15) << 3, 0xF7)
        byte(0xC0 | (target & 7) << 3 | (source & 7))
    }

    /// rorx register, register, count: the flags stay.
    mutating func rotateRight(_ register: Int, by count: Int) {
        bytes(0xC4, (register >= 8 ? 0x43 : 0xE3), 0xFB, 0xF0)
        bytes(0xC0 | (register & 7) << 3 | (register & 7), count)
    }

    mutating func moveImmediate64(_ target: Int, _ value: UInt64) {
        if value <= 0xFFFF_FFFF {
            if target >= 8 { byte(0x41) }
            byte(0xB8 | target & 7)
            word32(Int(value))
            return
        }
        bytes(0x48 | (target >= 8 ? 1 : 0), 0xB8 | target & 7)
        word64(value)
    }

    /// mov target, sign-extended 32-bit immediate.
    mutating func moveSigned32(_ target: Int, _ value: Int) {
        bytes(0x48 | (target >= 8 ? 1 : 0), 0xC7, 0xC0 | target & 7)
        word32(value)
    }

    /// Leaves for `place` with a number on the stack: little code, for there is much of it.
    mutating func leave(_ number: Int, to place: UInt64) {
        byte(0x68)
        word32(number)
        jump(toAddress: place)
    }

    mutating func jump(toAddress place: UInt64) {
        byte(0xE9)
        word32(Int(truncatingIfNeeded: place &- (origin &+ UInt64(position + 4))))
    }

    /// jmp register.
    mutating func jump(throughRegister register: Int) {
        operation(0xFF, size: 4, reg: 4, .register(register))
    }

    mutating func jumpThroughState(_ offset: Int) { operation(0xFF, size: 4, reg: 4, .state(offset)) }
    mutating func callThroughState(_ offset: Int) { operation(0xFF, size: 4, reg: 2, .state(offset)) }

    /// At most one NOP, of up to five bytes (SDM vol. 2, NOP).
    mutating func emptySpace(_ count: Int) {
        switch count {
        case 1: byte(0x90)
        case 2: bytes(0x66, 0x90)
        case 3: bytes(0x0F, 0x1F, 0x00)
        case 4: bytes(0x0F, 0x1F, 0x40, 0x00)
        case 5:
            bytes(0x0F, 0x1F, 0x44, 0x00)
            byte(0x00)
        default: break
        }
    }

    /// A conditional jump (or, with nil, an unconditional one) to be patched; returns the place of its distance.
    mutating func jump(_ condition: Int?) -> Int {
        if let condition { bytes(0x0F, 0x80 | condition) } else { byte(0xE9) }
        word32(0)
        return position - 4
    }

    /// JRCXZ with a short distance to be patched.
    mutating func jumpIfRCXIsZero() -> Int {
        bytes(0xE3, 0)
        return position - 1
    }
}
