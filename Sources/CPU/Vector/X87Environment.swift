internal import CHost

// The memory formats of FSTENV, FLDENV, FSAVE and FRSTOR (SDM vol. 1 figures 8-9 to 8-12).

/// The operand in memory: seven fields of 2 or 4 bytes, then eight registers of 10 bytes.
private struct X87Environment {
    /// At most 28 + 80 bytes.
    var words: martlet_fx_image
    let isWide: Bool
    /// Real-address and virtual-8086 mode: linear addresses instead of selector and offset.
    let isReal: Bool

    init(_ s: State, _ i: Insn) {
        words = martlet_fx_image()
        isWide = i.pointee.size != 2
        isReal = !s.isProtected || s.isVirtual8086
    }

    var size: Int { isWide ? 28 : 14 }

    subscript(field: Int) -> UInt32 {
        mutating get {
            let isWide = isWide
            return withUnsafeBytes(of: &words) {
                isWide
                    ? $0.loadUnaligned(fromByteOffset: field &* 4, as: UInt32.self)
                    : UInt32($0.loadUnaligned(fromByteOffset: field &* 2, as: UInt16.self))
            }
        }
        set {
            let isWide = isWide
            withUnsafeMutableBytes(of: &words) {
                if isWide {
                    $0.storeBytes(of: newValue, toByteOffset: field &* 4, as: UInt32.self)
                } else {
                    let low = UInt16(truncatingIfNeeded: newValue)
                    $0.storeBytes(of: low, toByteOffset: field &* 2, as: UInt16.self)
                }
            }
        }
    }
}

/// The two-bit tags, from the abridged ones and the registers' contents (SDM vol. 1 §8.1.7, §10.5.1.1).
func fullX87Tags(_ s: State) -> UInt16 {
    let abridged = s.fxImage.load(fromByteOffset: FXImage.tags, as: UInt8.self)
    let top = Int(s.x87StatusWord >> 11) & 7
    var tags: UInt16 = 0
    for physical in 0..<8 {
        var tag: UInt16 = 3
        if abridged >> UInt8(physical) & 1 != 0 { tag = x87Tag(s, stack: (physical &- top) & 7) }
        tags |= tag << UInt16(physical &* 2)
    }
    return tags
}

/// Valid 0, zero 1, special 2.
private func x87Tag(_ s: State, stack: Int) -> UInt16 {
    let register = s.fxImage + (FXImage.x87Registers &+ stack &* 16)
    let significand = register.load(as: UInt64.self)
    let exponent = register.load(fromByteOffset: 8, as: UInt16.self) & 0x7FFF
    if exponent == 0, significand == 0 { return 1 }
    if exponent == 0 || exponent == 0x7FFF || significand >> 63 == 0 { return 2 }
    return 0
}

/// Writes the environment, and the registers after it. False: fault or exit recorded.
func storeX87Environment(_ s: State, _ i: Insn, withRegisters: Bool) -> Bool {
    var environment = X87Environment(s, i)
    let size = environment.size + (withRegisters ? 80 : 0)
    guard let address = operandAddress(s, i, size, AccessKind.write) else { return false }
    let image = s.fxImage
    let upper: UInt32 = 0xFFFF_0000
    environment[0] = UInt32(image.load(fromByteOffset: FXImage.controlWord, as: UInt16.self)) | upper
    environment[1] = UInt32(s.x87StatusWord) | upper
    environment[2] = UInt32(fullX87Tags(s)) | upper
    let code = UInt32(image.load(fromByteOffset: FXImage.opcode, as: UInt16.self))
    let instruction = image.load(fromByteOffset: FXImage.instructionPointer, as: UInt32.self)
    let data = image.load(fromByteOffset: FXImage.dataPointer, as: UInt32.self)
    switch (environment.isReal, environment.isWide) {
    case (false, let isWide):
        // Selectors are not kept: zero.
        environment[3] = instruction
        environment[4] = isWide ? code << 16 : 0
        environment[5] = data
        environment[6] = isWide ? upper : 0
    case (true, true):
        environment[3] = instruction & 0xFFFF | upper
        environment[4] = (instruction >> 16) << 12 | code
        environment[5] = data & 0xFFFF | upper
        environment[6] = (data >> 16) << 12
    case (true, false):
        environment[3] = instruction
        environment[4] = (instruction >> 4) & 0xF000 | code
        environment[5] = data
        environment[6] = (data >> 4) & 0xF000
    }
    let start = environment.size
    return withUnsafeMutableBytes(of: &environment.words) { bytes in
        guard let base = bytes.baseAddress else { return false }
        if withRegisters {
            for register in 0..<8 {
                let source = image + (FXImage.x87Registers &+ register &* 16)
                (base + (start &+ register &* 10)).copyMemory(from: source, byteCount: 10)
            }
        }
        return writeBytes(s, i, address, size, from: base)
    }
}

/// Reads the environment, and the registers after it. False: fault or exit recorded.
func loadX87Environment(_ s: State, _ i: Insn, withRegisters: Bool) -> Bool {
    var environment = X87Environment(s, i)
    let start = environment.size
    let size = start + (withRegisters ? 80 : 0)
    guard let address = operandAddress(s, i, size, AccessKind.read) else { return false }
    let read = withUnsafeMutableBytes(of: &environment.words) {
        guard let base = $0.baseAddress else { return false }
        return readBytes(s, i, address, size, into: base)
    }
    guard read else { return false }
    let image = s.fxImage
    image.storeBytes(of: UInt16(truncatingIfNeeded: environment[0]), toByteOffset: FXImage.controlWord, as: UInt16.self)
    // The registers that FLDENV keeps are the physical ones.
    s.setX87Top(Int(environment[1] >> 11) & 7)
    s.x87StatusWord = UInt16(truncatingIfNeeded: environment[1])
    image.storeBytes(of: abridgedTags(environment[2]), toByteOffset: FXImage.tags, as: UInt8.self)
    loadPointers(s, &environment)
    if withRegisters {
        withUnsafeBytes(of: &environment.words) { bytes in
            guard let base = bytes.baseAddress else { return }
            for register in 0..<8 {
                let target = image + (FXImage.x87Registers &+ register &* 16)
                target.copyMemory(from: base + (start &+ register &* 10), byteCount: 10)
            }
        }
    }
    s.sanitizeFXImage()
    return true
}

private func loadPointers(_ s: State, _ environment: inout X87Environment) {
    var instruction = environment[3]
    var data = environment[5]
    var code = environment[4] >> 16
    if environment.isReal {
        code = environment[4]
        let mask: UInt32 = environment.isWide ? 0xFFFF_0000 : 0x000F_0000
        instruction = instruction & 0xFFFF | (environment[4] << 4) & mask
        data = data & 0xFFFF | (environment[6] << 4) & mask
    } else if !environment.isWide {
        // The 16-bit protected-mode format has no opcode.
        code = 0
    }
    let image = s.fxImage
    image.storeBytes(of: UInt64(instruction), toByteOffset: FXImage.instructionPointer, as: UInt64.self)
    image.storeBytes(of: UInt64(data), toByteOffset: FXImage.dataPointer, as: UInt64.self)
    image.storeBytes(of: UInt16(truncatingIfNeeded: code & 0x7FF), toByteOffset: FXImage.opcode, as: UInt16.self)
}

private func abridgedTags(_ tags: UInt32) -> UInt8 {
    var abridged: UInt8 = 0
    for register in 0..<8 where (tags >> UInt32(register &* 2)) & 3 != 3 { abridged |= 1 << UInt8(register) }
    return abridged
}
