// The rows of VEX-encoded instructions (SDM vol. 2, the instruction pages).

extension WideTable {
    mutating func addVEX() {
        addVEXFloatingPoint()
        addVEXScalarMoves()
        addVEXMoves()
        addVEXInteger()
        addVEXMasks()
        addVEXMap38()
        addVEXExtensions()
        addVEXMultiplyAdd()
        addVEXGeneral()
        addVEXMap3A()
        addVEXElements()
    }

    private mutating func vex(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ tuple: MemoryTuple = .fullMem,
        element: UInt8 = 0, w: WideW = .any, _ lengths: WideLengths = .narrow, _ traits: WideTraits = [],
        _ feature: VectorFeature = .avx, long: VectorFeature? = nil, extensions: UInt8 = 0xFF
    ) {
        add(
            .vex, map: map, prefix, opcodes,
            WideEntry(
                feature: feature, longFeature: long ?? feature, shape: shape, tuple: tuple, element: element, w: w,
                lengths: lengths, traits: traits, extensions: extensions))
    }

    /// Integer operations: AVX with 16 bytes, AVX2 with 32.
    private mutating func integer(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ tuple: MemoryTuple = .fullMem,
        element: UInt8 = 4, _ traits: WideTraits = [], extensions: UInt8 = 0xFF
    ) {
        vex(
            map: map, prefix, opcodes, shape, tuple, element: element, .narrow, traits, .avx, long: .avx2,
            extensions: extensions)
    }

    private mutating func addVEXFloatingPoint() {
        let arithmetic = [0x58, 0x59, 0x5C, 0x5D, 0x5E, 0x5F]
        let scalar: WideTraits = [.mxcsr, .scalar]
        for prefix in [VectorPrefix.none, .p66] {
            vex(prefix, arithmetic, .rvm, .mxcsr)
            vex(prefix, [0x51], .rm, .mxcsr)
            vex(prefix, [0xC2], .rvm, [.mxcsr, .immediate])
            vex(prefix, [0x54, 0x55, 0x56, 0x57, 0x14, 0x15], .rvm)
            vex(prefix, [0xC6], .rvm, .immediate)
            vex(prefix, [0x50], .generalFromVector, .none, .registerOnly)
        }
        for (prefix, size) in [(VectorPrefix.pF3, UInt8(4)), (.pF2, 8)] {
            vex(prefix, arithmetic + [0x51, 0x5A], .rvm, .scalar, element: size, scalar)
            vex(prefix, [0xC2], .rvm, .scalar, element: size, [scalar, .immediate])
            vex(prefix, [0x2A], .insertGeneral, .scalar, [scalar, .generalSize])
            vex(prefix, [0x2C, 0x2D], .generalFromVector, .scalar, element: size, [scalar, .generalSize])
        }
        for (prefix, size) in [(VectorPrefix.none, UInt8(4)), (.p66, 8)] {
            vex(prefix, [0x2E, 0x2F], .rm, .scalar, element: size, [scalar, .writesStatus, .keepsReg])
        }
        vex(.none, [0x52, 0x53], .rm)
        vex(.pF3, [0x52, 0x53], .rvm, .scalar, element: 4, .scalar)
        for prefix in [VectorPrefix.p66, .pF2] { vex(prefix, [0x7C, 0x7D, 0xD0], .rvm, .mxcsr) }
        vex(.none, [0x5A], .rm, .halfMem, .mxcsr)
        vex(.p66, [0x5A, 0xE6], .rm, .mxcsr)
        vex(.pF2, [0xE6], .rm, .mxcsr)
        vex(.pF3, [0xE6], .rm, .halfMem)
        for prefix in [VectorPrefix.none, .p66, .pF3] { vex(prefix, [0x5B], .rm, .mxcsr) }
    }

    private mutating func vex(_ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ traits: WideTraits) {
        vex(prefix, opcodes, shape, .fullMem, .narrow, traits)
    }

    private mutating func vex(
        _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ tuple: MemoryTuple, element: UInt8 = 0,
        _ traits: WideTraits
    ) {
        vex(prefix, opcodes, shape, tuple, element: element, .narrow, traits)
    }

    /// MOVSS, MOVSD, and the moves of halves.
    private mutating func addVEXScalarMoves() {
        for (prefix, size) in [(VectorPrefix.pF3, UInt8(4)), (.pF2, 8)] {
            vex(prefix, [0x10], .rvm, .none, [.scalar, .registerOnly])
            vex(prefix, [0x10], .rm, .scalar, element: size, [.scalar, .memoryOnly])
            vex(prefix, [0x11], .rvm, .none, [.scalar, .registerOnly, .writesRM])
            vex(prefix, [0x11], .rm, .scalar, element: size, [.scalar, .memoryOnly, .writesRM])
        }
        vex(.none, [0x12, 0x16], .rvm, .scalar, element: 8, .l128)
        vex(.p66, [0x12, 0x16], .rvm, .scalar, element: 8, .l128, .memoryOnly)
        for prefix in [VectorPrefix.none, .p66] {
            vex(prefix, [0x13, 0x17], .rm, .scalar, element: 8, .l128, [.memoryOnly, .writesRM])
        }
        vex(.pF3, [0x12, 0x16], .rm)
        vex(.pF2, [0x12], .rm, .duplicate, element: 8)
        vex(.p66, [0x6E], .vectorFromGeneral, .scalar, .l128, .generalSize)
        vex(.p66, [0x7E], .vectorFromGeneral, .scalar, .l128, [.writesRM, .generalSize])
        vex(.pF3, [0x7E], .rm, .scalar, element: 8, .l128)
        vex(.p66, [0xD6], .rm, .scalar, element: 8, .l128, .writesRM)
    }

    private mutating func addVEXMoves() {
        for prefix in [VectorPrefix.none, .p66] {
            vex(prefix, [0x10], .rm)
            vex(prefix, [0x11], .rm, .writesRM)
            vex(prefix, [0x28], .rm, .aligned)
            vex(prefix, [0x29], .rm, [.aligned, .writesRM])
            vex(prefix, [0x2B], .rm, [.aligned, .writesRM, .memoryOnly])
        }
        vex(.p66, [0x6F], .rm, .aligned)
        vex(.p66, [0x7F], .rm, [.aligned, .writesRM])
        vex(.pF3, [0x6F], .rm)
        vex(.pF3, [0x7F], .rm, .writesRM)
        vex(.p66, [0xE7], .rm, [.aligned, .writesRM, .memoryOnly])
        vex(.pF2, [0xF0], .rm, .memoryOnly)
        vex(.p66, [0xF7], .rm, .none, .l128, [.special, .registerOnly])
        vex(.none, [0x77], .memory, .none, .special)
        vex(.none, [0xAE], .memory, .scalar, element: 4, .l128, [.special, .memoryOnly], extensions: 1 << 2 | 1 << 3)
        integer(map: 2, .p66, [0x2A], .rm, [.aligned, .memoryOnly])
    }

    private mutating func integer(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ traits: WideTraits
    ) {
        integer(map: map, prefix, opcodes, shape, .fullMem, traits)
    }

    private mutating func addVEXInteger() {
        integer(.p66, Array(0x60...0x6D) + [0x74, 0x75, 0x76, 0xD4, 0xD5], .rvm)
        integer(.p66, Array(0xD8...0xDF) + [0xE0, 0xE3, 0xE4, 0xE5], .rvm)
        integer(.p66, Array(0xE8...0xEF) + [0xF4, 0xF5, 0xF6] + Array(0xF8...0xFE), .rvm)
        // The count is in 16 bytes.
        integer(.p66, [0xD1, 0xD2, 0xD3, 0xE1, 0xE2, 0xF1, 0xF2, 0xF3], .rvm, .sixteen)
        for prefix in [VectorPrefix.p66, .pF3, .pF2] { integer(prefix, [0x70], .rm, .immediate) }
        let shift: WideTraits = [.immediate, .writesV, .registerOnly]
        integer(.p66, [0x71, 0x72], .vm, .none, shift, extensions: 1 << 2 | 1 << 4 | 1 << 6)
        integer(.p66, [0x73], .vm, .none, shift, extensions: 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7)
        integer(.p66, [0xD7], .generalFromVector, .none, .registerOnly)
        vex(.p66, [0xC4], .insertGeneral, .scalar, element: 2, .l128, .immediate)
        vex(.p66, [0xC5], .generalFromVector, .none, .l128, [.immediate, .registerOnly])
    }

    /// Instructions on opmasks (SDM vol. 2, K…): all of AVX-512 F, DQ or BW.
    private mutating func addVEXMasks() {
        for prefix in [VectorPrefix.none, .p66] {
            vex(prefix, [0x41, 0x42, 0x45, 0x46, 0x47, 0x4A], .masks, .none, .l256, .registerOnly, .avx512)
            vex(prefix, [0x44], .maskToMask, .none, .l128, .registerOnly, .avx512)
            vex(
                prefix, [0x98, 0x99], .maskToMask, .none, .l128, [.registerOnly, .keepsReg, .writesStatus], .avx512)
        }
        vex(.none, [0x4B], .masks, .none, .l256, .registerOnly, .avx512)
        vex(.p66, [0x4B], .masks, .none, w: .w0, .l256, .registerOnly, .avx512)
        let sizes: [(VectorPrefix, WideW, UInt8)] = [(.none, .w0, 2), (.none, .w1, 8), (.p66, .w0, 1), (.p66, .w1, 4)]
        for (prefix, w, size) in sizes {
            vex(prefix, [0x90], .maskToMask, .scalar, element: size, w: w, .l128, [], .avx512)
            vex(prefix, [0x91], .maskToMask, .scalar, element: size, w: w, .l128, [.writesRM, .memoryOnly], .avx512)
        }
        for (prefix, w) in [(VectorPrefix.none, WideW.w0), (.p66, .w0), (.pF2, .any)] {
            let traits: WideTraits = prefix == .pF2 ? [.registerOnly, .generalSize] : .registerOnly
            vex(prefix, [0x92], .maskFromGeneral, .none, w: w, .l128, traits, .avx512)
            vex(prefix, [0x93], .generalFromMask, .none, w: w, .l128, traits, .avx512)
        }
        vex(
            map: 3, .p66, [0x30, 0x31, 0x32, 0x33], .maskToMask, .none, .l128, [.registerOnly, .immediate], .avx512)
    }

    private mutating func addVEXMap38() {
        integer(map: 2, .p66, Array(0x00...0x0B) + [0x28, 0x29, 0x2B] + Array(0x37...0x40), .rvm)
        integer(map: 2, .p66, [0x1C, 0x1D, 0x1E], .rm)
        vex(map: 2, .p66, [0x0C, 0x0D], .rvm, w: .w0)
        vex(map: 2, .p66, [0x0E, 0x0F], .rm, w: .w0, .narrow, [.keepsReg, .writesStatus])
        vex(map: 2, .p66, [0x17], .rm, .fullMem, .narrow, [.keepsReg, .writesStatus])
        vex(map: 2, .p66, [0x16, 0x36], .rvm, w: .w0, .l256, [], .avx2)
        vex(map: 2, .p66, [0x18], .rm, .scalar, element: 4, w: .w0, .narrow, [.broadcasts, .memoryOnly])
        vex(map: 2, .p66, [0x19], .rm, .scalar, element: 8, w: .w0, .l256, [.broadcasts, .memoryOnly])
        vex(map: 2, .p66, [0x18], .rm, .none, w: .w0, .narrow, .registerOnly, .avx2)
        vex(map: 2, .p66, [0x19], .rm, .none, w: .w0, .l256, .registerOnly, .avx2)
        vex(map: 2, .p66, [0x1A], .rm, .sixteen, w: .w0, .l256, [.broadcasts, .memoryOnly])
        vex(map: 2, .p66, [0x5A], .rm, .sixteen, w: .w0, .l256, [.broadcasts, .memoryOnly], .avx2)
        let broadcasts: [(Int, UInt8)] = [(0x58, 4), (0x59, 8), (0x78, 1), (0x79, 2)]
        for (opcode, size) in broadcasts {
            vex(map: 2, .p66, [opcode], .rm, .scalar, element: size, w: .w0, .narrow, .broadcasts, .avx2)
        }
        for first in [0x20, 0x30] {
            integer(map: 2, .p66, [first, first + 3, first + 5], .rm, .halfMem)
            integer(map: 2, .p66, [first + 1, first + 4], .rm, .quarterMem)
            integer(map: 2, .p66, [first + 2], .rm, .eighthMem)
        }
        vex(map: 2, .p66, [0x41], .rm, .fullMem, .l128)
        vex(map: 2, .p66, [0x2C], .rvm, element: 4, w: .w0, .narrow, [.maskedByV, .memoryOnly])
        vex(map: 2, .p66, [0x2D], .rvm, element: 8, w: .w0, .narrow, [.maskedByV, .memoryOnly])
        vex(map: 2, .p66, [0x2E], .rvm, element: 4, w: .w0, .narrow, [.maskedByV, .memoryOnly, .writesRM])
        vex(map: 2, .p66, [0x2F], .rvm, element: 8, w: .w0, .narrow, [.maskedByV, .memoryOnly, .writesRM])
        vex(map: 2, .p66, [0x8C], .rvm, .fullMem, .narrow, [.maskedByV, .memoryOnly], .avx2)
        vex(map: 2, .p66, [0x8E], .rvm, .fullMem, .narrow, [.maskedByV, .memoryOnly, .writesRM], .avx2)
        vex(map: 2, .p66, [0x45, 0x47], .rvm, .fullMem, .narrow, [], .avx2)
        vex(map: 2, .p66, [0x46], .rvm, w: .w0, .narrow, [], .avx2)
    }

    private mutating func addVEXExtensions() {
        vex(map: 2, .p66, [0x13], .rm, .halfMem, element: 2, w: .w0, .narrow, .mxcsr, .f16c)
        vex(map: 3, .p66, [0x1D], .rm, .halfMem, element: 2, w: .w0, .narrow, [.mxcsr, .immediate, .writesRM], .f16c)
        vex(map: 2, .p66, [0xDB], .rm, .fullMem, .l128, [], .aes)
        vex(map: 2, .p66, [0xDC, 0xDD, 0xDE, 0xDF], .rvm, .fullMem, .narrow, [], .aes, long: .vaes)
        vex(map: 3, .p66, [0xDF], .rm, .fullMem, .l128, .immediate, .aes)
        vex(map: 3, .p66, [0x44], .rvm, .fullMem, .narrow, .immediate, .pclmulqdq, long: .vpclmulqdq)
        vex(map: 2, .p66, [0xCF], .rvm, w: .w0, .narrow, [], .gfni)
        vex(map: 3, .p66, [0xCE, 0xCF], .rvm, w: .w1, .narrow, .immediate, .gfni)
        vex(map: 2, .p66, [0x50, 0x51, 0x52, 0x53], .rvm, w: .w0, .narrow, [], .avxVNNI)
        // vvvv is the mask.
        vex(map: 2, .p66, [0x90, 0x92], .rvm, .scalar, .narrow, [.gathers, .memoryOnly], .avx2)
        vex(map: 2, .p66, [0x91, 0x93], .rvm, .scalar, .narrow, [.gathers, .quadIndex, .memoryOnly], .avx2)
    }

    private mutating func addVEXMultiplyAdd() {
        for first in [0x90, 0xA0, 0xB0] {
            let packed = [6, 7, 8, 0xA, 0xC, 0xE].map { first + $0 }
            let scalar = [9, 0xB, 0xD, 0xF].map { first + $0 }
            vex(map: 2, .p66, packed, .rvm, .fullMem, .narrow, .mxcsr, .fma)
            vex(map: 2, .p66, scalar, .rvm, .scalar, .narrow, [.mxcsr, .scalar], .fma)
        }
    }

    /// BMI1 and BMI2 on general registers.
    private mutating func addVEXGeneral() {
        let flags: WideTraits = [.generalSize, .readsStatus, .writesStatus]
        vex(map: 2, .none, [0xF2], .general, .scalar, .l128, flags, .bmi1)
        vex(
            map: 2, .none, [0xF3], .generalVM, .scalar, .l128, [flags, .writesV], .bmi1,
            extensions: 1 << 1 | 1 << 2 | 1 << 3)
        vex(map: 2, .none, [0xF7], .general, .scalar, .l128, flags, .bmi1)
        vex(map: 2, .none, [0xF5], .general, .scalar, .l128, flags, .bmi2)
        for prefix in [VectorPrefix.pF3, .pF2] {
            vex(map: 2, prefix, [0xF5], .general, .scalar, .l128, .generalSize, .bmi2)
        }
        for prefix in [VectorPrefix.p66, .pF3, .pF2] {
            vex(map: 2, prefix, [0xF7], .general, .scalar, .l128, .generalSize, .bmi2)
        }
        vex(map: 2, .pF2, [0xF6], .general, .scalar, .l128, [.generalSize, .readsRDX], .bmi2)
        vex(map: 3, .pF2, [0xF0], .generalRM, .scalar, .l128, [.generalSize, .immediate], .bmi2)
    }

    private mutating func addVEXMap3A() {
        vex(map: 3, .p66, [0x00, 0x01], .rm, w: .w1, .l256, .immediate, .avx2)
        vex(map: 3, .p66, [0x02], .rvm, w: .w0, .narrow, .immediate, .avx2)
        vex(map: 3, .p66, [0x04, 0x05], .rm, w: .w0, .narrow, .immediate)
        vex(map: 3, .p66, [0x06], .rvm, w: .w0, .l256, .immediate)
        vex(map: 3, .p66, [0x46], .rvm, w: .w0, .l256, .immediate, .avx2)
        vex(map: 3, .p66, [0x08, 0x09], .rm, .fullMem, .narrow, [.immediate, .mxcsr])
        vex(map: 3, .p66, [0x0A], .rvm, .scalar, element: 4, .narrow, [.immediate, .mxcsr, .scalar])
        vex(map: 3, .p66, [0x0B], .rvm, .scalar, element: 8, .narrow, [.immediate, .mxcsr, .scalar])
        vex(map: 3, .p66, [0x0C, 0x0D], .rvm, .fullMem, .narrow, .immediate)
        integer(map: 3, .p66, [0x0E, 0x0F, 0x42], .rvm, .immediate)
        vex(map: 3, .p66, [0x40], .rvm, .fullMem, .narrow, [.immediate, .mxcsr])
        vex(map: 3, .p66, [0x41], .rvm, .fullMem, .l128, [.immediate, .mxcsr])
        vex(map: 3, .p66, [0x4A, 0x4B], .rvm, w: .w0, .narrow, [.immediate, .registerImmediate])
        vex(map: 3, .p66, [0x4C], .rvm, w: .w0, .narrow, [.immediate, .registerImmediate], .avx, long: .avx2)
        let strings: WideTraits = [.immediate, .writesStatus, .keepsReg]
        let lengths: WideTraits = [strings, .readsLengths, .generalSize]
        vex(map: 3, .p66, [0x60], .rm, .fullMem, .l128, [lengths, .writesXMM0])
        vex(map: 3, .p66, [0x61], .rm, .fullMem, .l128, [lengths, .writesRCX])
        vex(map: 3, .p66, [0x62], .rm, .fullMem, .l128, [strings, .writesXMM0])
        vex(map: 3, .p66, [0x63], .rm, .fullMem, .l128, [strings, .writesRCX])
    }

    /// Moves of one element, or of half a register.
    private mutating func addVEXElements() {
        let store: WideTraits = [.immediate, .writesRM]
        vex(map: 3, .p66, [0x14], .vectorFromGeneral, .scalar, element: 1, .l128, store)
        vex(map: 3, .p66, [0x15], .vectorFromGeneral, .scalar, element: 2, .l128, store)
        vex(map: 3, .p66, [0x16], .vectorFromGeneral, .scalar, .l128, [store, .generalSize])
        vex(map: 3, .p66, [0x17], .vectorFromGeneral, .scalar, element: 4, .l128, store)
        vex(map: 3, .p66, [0x18], .rvm, .sixteen, w: .w0, .l256, .immediate)
        vex(map: 3, .p66, [0x38], .rvm, .sixteen, w: .w0, .l256, .immediate, .avx2)
        vex(map: 3, .p66, [0x19], .rm, .sixteen, w: .w0, .l256, store)
        vex(map: 3, .p66, [0x39], .rm, .sixteen, w: .w0, .l256, store, .avx2)
        vex(map: 3, .p66, [0x20], .insertGeneral, .scalar, element: 1, .l128, .immediate)
        vex(map: 3, .p66, [0x21], .rvm, .scalar, element: 4, .l128, .immediate)
        vex(map: 3, .p66, [0x22], .insertGeneral, .scalar, .l128, [.immediate, .generalSize])
    }
}
