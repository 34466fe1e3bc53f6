// The rows of EVEX-encoded instructions (SDM vol. 2, the instruction pages). AVX-512 F, CD, BW, DQ and VL are one
// feature here: the engine offers all of them or none.

extension WideTable {
    mutating func addEVEX() {
        addArithmetic()
        addConversions()
        addScalarConversions()
        addMoves()
        addScalarMoves()
        addByteWordIntegers()
        addDoubleQuadIntegers()
        addShifts()
        addBroadcasts()
        addExtendingMoves()
        addMap38FloatingPoint()
        addMap38Integer()
        addPermutations()
        addPackedMemory()
        addMultiplyAdd()
        addMaskMoves()
        addMap3AFloatingPoint()
        addMap3AInteger()
        addLanes()
        addOptional()
    }

    private mutating func evex(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ tuple: MemoryTuple = .full,
        element: UInt8 = 0, w: WideW = .any, _ lengths: WideLengths = .all, _ traits: WideTraits = [],
        _ feature: VectorFeature = .avx512, extensions: UInt8 = 0xFF
    ) {
        add(
            .evex, map: map, prefix, opcodes,
            WideEntry(
                feature: feature, longFeature: feature, shape: shape, tuple: tuple, element: element, w: w,
                lengths: lengths, traits: traits, extensions: extensions))
    }

    private mutating func evex(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, _ tuple: MemoryTuple = .full,
        element: UInt8 = 0, w: WideW = .any, _ traits: WideTraits
    ) {
        evex(map: map, prefix, opcodes, shape, tuple, element: element, w: w, .all, traits)
    }

    private mutating func evex(
        map: Int = 1, _ prefix: VectorPrefix, _ opcodes: [Int], _ shape: WideShape, w: WideW = .any,
        _ traits: WideTraits
    ) {
        evex(map: map, prefix, opcodes, shape, .full, w: w, .all, traits)
    }

    /// PS (W0) and PD (W1) in map 0F.
    private mutating func packed(_ opcodes: [Int], _ shape: WideShape, _ traits: WideTraits) {
        evex(.none, opcodes, shape, w: .w0, traits)
        evex(.p66, opcodes, shape, w: .w1, traits)
    }

    /// SS (W0) and SD (W1) in map 0F.
    private mutating func scalar(_ opcodes: [Int], _ shape: WideShape, _ traits: WideTraits) {
        evex(.pF3, opcodes, shape, .scalar, w: .w0, [traits, .scalar])
        evex(.pF2, opcodes, shape, .scalar, w: .w1, [traits, .scalar])
    }

    private mutating func addArithmetic() {
        let rounded = [0x58, 0x59, 0x5C, 0x5E]
        packed(rounded, .rvm, [.mxcsr, .rounding])
        scalar(rounded + [0x51], .rvm, [.mxcsr, .rounding])
        packed([0x51], .rm, [.mxcsr, .rounding])
        packed([0x5D, 0x5F], .rvm, [.mxcsr, .suppressAll])
        scalar([0x5D, 0x5F], .rvm, [.mxcsr, .suppressAll])
        packed([0xC2], .maskFromVectors, [.mxcsr, .suppressAll, .immediate])
        scalar([0xC2], .maskFromVectors, [.mxcsr, .suppressAll, .immediate])
        packed([0x54, 0x55, 0x56, 0x57], .rvm, [])
        packed([0x14, 0x15], .rvm, .unsuppressed)
        packed([0xC6], .rvm, [.immediate, .unsuppressed])
        let compare: WideTraits = [
            .mxcsr, .suppressAll, .writesStatus, .keepsReg, .unmasked, .scalar, .unsuppressed,
        ]
        evex(.none, [0x2E, 0x2F], .rm, .scalar, w: .w0, compare)
        evex(.p66, [0x2E, 0x2F], .rm, .scalar, w: .w1, compare)
    }

    private mutating func addConversions() {
        let truncating: WideTraits = [.mxcsr, .suppressAll]
        let rounded: WideTraits = [.mxcsr, .rounding]
        evex(.none, [0x5A], .rm, .half, w: .w0, truncating)
        evex(.p66, [0x5A], .rm, w: .w1, rounded)
        evex(.none, [0x5B], .rm, rounded)
        evex(.p66, [0x5B], .rm, w: .w0, rounded)
        evex(.pF3, [0x5B], .rm, w: .w0, truncating)
        evex(.none, [0x78], .rm, truncating)
        evex(.none, [0x79], .rm, rounded)
        for (opcode, traits) in [(0x78, truncating), (0x79, rounded), (0x7A, truncating), (0x7B, rounded)] {
            evex(.p66, [opcode], .rm, .half, w: .w0, traits)
            evex(.p66, [opcode], .rm, w: .w1, traits)
        }
        // 32-bit integers always fit a double: EVEX.b says nothing.
        evex(.pF3, [0x7A, 0xE6], .rm, .half, w: .w0, .suppressAll)
        evex(.pF3, [0x7A, 0xE6], .rm, w: .w1, rounded)
        evex(.pF2, [0x7A], .rm, rounded)
        evex(.p66, [0xE6], .rm, w: .w1, truncating)
        evex(.pF2, [0xE6], .rm, w: .w1, rounded)
    }

    private mutating func addScalarConversions() {
        let common: WideTraits = [.mxcsr, .scalar, .unmasked, .unsuppressed]
        evex(.pF3, [0x5A], .rvm, .scalar, element: 4, w: .w0, [.mxcsr, .scalar, .suppressAll])
        evex(.pF2, [0x5A], .rvm, .scalar, element: 8, w: .w1, [.mxcsr, .scalar, .rounding])
        for (prefix, size) in [(VectorPrefix.pF3, UInt8(4)), (.pF2, 8)] {
            evex(
                prefix, [0x2C, 0x78], .generalFromVector, .scalar, element: size,
                [common, .suppressAll, .generalSize])
            evex(
                prefix, [0x2D, 0x79], .generalFromVector, .scalar, element: size, [common, .rounding, .generalSize])
        }
        let fromGeneral: WideTraits = [.scalar, .unmasked, .unsuppressed, .generalSize]
        evex(.pF3, [0x2A, 0x7B], .insertGeneral, .scalar, [fromGeneral, .mxcsr, .rounding])
        evex(.pF2, [0x2A, 0x7B], .insertGeneral, .scalar, w: .w0, [fromGeneral, .suppressAll])
        evex(.pF2, [0x2A, 0x7B], .insertGeneral, .scalar, w: .w1, [fromGeneral, .mxcsr, .rounding])
    }

    private mutating func addMoves() {
        for (prefix, w) in [(VectorPrefix.none, WideW.w0), (.p66, .w1)] {
            evex(prefix, [0x10], .rm, .fullMem, w: w, [])
            evex(prefix, [0x11], .rm, .fullMem, w: w, .writesRM)
            evex(prefix, [0x28], .rm, .fullMem, w: w, .aligned)
            evex(prefix, [0x29], .rm, .fullMem, w: w, [.aligned, .writesRM])
            evex(prefix, [0x2B], .rm, .fullMem, w: w, [.aligned, .writesRM, .memoryOnly, .unmasked])
        }
        evex(.p66, [0x6F], .rm, .fullMem, .aligned)
        evex(.p66, [0x7F], .rm, .fullMem, [.aligned, .writesRM])
        evex(.pF3, [0x6F], .rm, .fullMem, [])
        evex(.pF3, [0x7F], .rm, .fullMem, .writesRM)
        for (w, size) in [(WideW.w0, UInt8(1)), (.w1, 2)] {
            evex(.pF2, [0x6F], .rm, .fullMem, element: size, w: w, [])
            evex(.pF2, [0x7F], .rm, .fullMem, element: size, w: w, .writesRM)
        }
        evex(.p66, [0xE7], .rm, .fullMem, w: .w0, [.aligned, .writesRM, .memoryOnly, .unmasked])
        evex(map: 2, .p66, [0x2A], .rm, .fullMem, w: .w0, [.aligned, .memoryOnly, .unmasked])
        evex(.pF3, [0x12, 0x16], .rm, .fullMem, w: .w0, .unsuppressed)
        evex(.pF2, [0x12], .rm, .duplicate, w: .w1, .unsuppressed)
    }

    private mutating func addScalarMoves() {
        for (prefix, w) in [(VectorPrefix.pF3, WideW.w0), (.pF2, .w1)] {
            evex(prefix, [0x10], .rvm, .none, w: w, [.scalar, .registerOnly])
            evex(prefix, [0x10], .rm, .scalar, w: w, [.scalar, .memoryOnly])
            evex(prefix, [0x11], .rvm, .none, w: w, [.scalar, .registerOnly, .writesRM])
            evex(prefix, [0x11], .rm, .scalar, w: w, [.scalar, .memoryOnly, .writesRM])
        }
        evex(.none, [0x12, 0x16], .rvm, .scalar, element: 8, w: .w0, .l128, .unmasked)
        evex(.p66, [0x12, 0x16], .rvm, .scalar, w: .w1, .l128, [.unmasked, .memoryOnly])
        evex(.none, [0x13, 0x17], .rm, .scalar, element: 8, w: .w0, .l128, [.unmasked, .memoryOnly, .writesRM])
        evex(.p66, [0x13, 0x17], .rm, .scalar, w: .w1, .l128, [.unmasked, .memoryOnly, .writesRM])
        evex(.p66, [0x6E], .vectorFromGeneral, .scalar, .l128, [.unmasked, .generalSize])
        evex(.p66, [0x7E], .vectorFromGeneral, .scalar, .l128, [.unmasked, .writesRM, .generalSize])
        evex(.pF3, [0x7E], .rm, .scalar, w: .w1, .l128, .unmasked)
        evex(.p66, [0xD6], .rm, .scalar, w: .w1, .l128, [.unmasked, .writesRM])
        evex(.p66, [0xC4], .insertGeneral, .scalar, element: 2, .l128, [.unmasked, .immediate])
        evex(.p66, [0xC5], .generalFromVector, .none, .l128, [.unmasked, .immediate, .registerOnly])
    }

    /// Elements of 1 and 2 bytes: no broadcast, W ignored.
    private mutating func addByteWordIntegers() {
        func bytes(_ map: Int, _ opcodes: [Int], _ shape: WideShape, _ size: UInt8, _ traits: WideTraits = []) {
            evex(map: map, .p66, opcodes, shape, .fullMem, element: size, traits)
        }
        bytes(1, [0xD8, 0xDA, 0xDC, 0xDE, 0xE0, 0xE8, 0xEC, 0xF8, 0xFC], .rvm, 1)
        bytes(1, [0xD5, 0xD9, 0xDD, 0xE3, 0xE4, 0xE5, 0xE9, 0xEA, 0xED, 0xEE, 0xF9, 0xFD], .rvm, 2)
        bytes(1, [0x60, 0x68], .rvm, 1, .unsuppressed)
        bytes(1, [0x61, 0x69, 0x63, 0x67, 0xF5], .rvm, 2, .unsuppressed)
        bytes(1, [0xF6], .rvm, 1, [.unsuppressed, .unmasked])
        bytes(1, [0x64, 0x74], .maskFromVectors, 1)
        bytes(1, [0x65, 0x75], .maskFromVectors, 2)
        bytes(2, [0x00], .rvm, 1, .unsuppressed)
        bytes(2, [0x04], .rvm, 2, .unsuppressed)
        bytes(2, [0x0B, 0x3A, 0x3E], .rvm, 2)
        bytes(2, [0x38, 0x3C], .rvm, 1)
        bytes(2, [0x1C], .rm, 1)
        bytes(2, [0x1D], .rm, 2)
        for prefix in [VectorPrefix.pF3, .pF2] {
            evex(prefix, [0x70], .rm, .fullMem, element: 2, [.immediate, .unsuppressed])
        }
        evex(map: 2, .p66, [0x10, 0x11, 0x12], .rvm, .fullMem, element: 2, w: .w1, [])
        for (w, size) in [(WideW.w0, UInt8(1)), (.w1, 2)] {
            evex(map: 2, .p66, [0x66], .rvm, .fullMem, element: size, w: w, [])
            for prefix in [VectorPrefix.p66, .pF3] {
                evex(map: 2, prefix, [0x26], .maskFromVectors, .fullMem, element: size, w: w, [])
            }
            evex(map: 3, .p66, [0x3E, 0x3F], .maskFromVectors, .fullMem, element: size, w: w, .immediate)
        }
        evex(map: 3, .p66, [0x0F], .rvm, .fullMem, element: 1, [.immediate, .unsuppressed])
        evex(map: 3, .p66, [0x42], .rvm, .fullMem, element: 1, w: .w0, .immediate)
    }

    private mutating func addDoubleQuadIntegers() {
        evex(.p66, [0xDB, 0xDF, 0xEB, 0xEF], .rvm)
        evex(.p66, [0xFA, 0xFE], .rvm, w: .w0)
        evex(.p66, [0xD4, 0xF4, 0xFB], .rvm, w: .w1)
        evex(.p66, [0x62, 0x6A, 0x6B], .rvm, w: .w0, .unsuppressed)
        evex(.p66, [0x6C, 0x6D], .rvm, w: .w1, .unsuppressed)
        evex(.p66, [0x66, 0x76], .maskFromVectors, w: .w0)
        evex(.p66, [0x70], .rm, w: .w0, [.immediate, .unsuppressed])
    }

    private mutating func addShifts() {
        func byRegister(_ opcodes: [Int], _ w: WideW) {
            evex(.p66, opcodes, .rvm, .sixteen, w: w, .unsuppressed)
        }
        byRegister([0xD1, 0xE1, 0xF1, 0xE2], .any)
        byRegister([0xD2, 0xF2], .w0)
        byRegister([0xD3, 0xF3], .w1)
        let traits: WideTraits = [.immediate, .writesV]
        func immediate(
            _ opcode: Int, _ numbers: [UInt8], _ tuple: MemoryTuple, element: UInt8 = 0, _ w: WideW,
            _ more: WideTraits = []
        ) {
            evex(
                .p66, [opcode], .vm, tuple, element: element, w: w, .all, [traits, more],
                extensions: numbers.reduce(0) { $0 | 1 << $1 })
        }
        immediate(0x71, [2, 4, 6], .fullMem, element: 2, .any)
        immediate(0x72, [0, 1, 4], .full, .any)
        immediate(0x72, [2, 6], .full, .w0)
        immediate(0x73, [2, 6], .full, .w1)
        immediate(0x73, [3, 7], .fullMem, element: 1, .any, [.unmasked, .unsuppressed])
        evex(map: 2, .p66, [0x14, 0x15, 0x45, 0x46, 0x47], .rvm)
    }

    private mutating func addBroadcasts() {
        func add(
            _ opcode: Int, _ tuple: MemoryTuple, element: UInt8, _ w: WideW, _ lengths: WideLengths = .all,
            _ traits: WideTraits = []
        ) {
            evex(
                map: 2, .p66, [opcode], .rm, tuple, element: element, w: w, lengths, [traits, .broadcasts])
        }
        add(0x18, .scalar, element: 4, .w0)
        add(0x58, .scalar, element: 4, .w0)
        add(0x19, .pair, element: 4, .w0, .upper)
        add(0x59, .pair, element: 4, .w0)
        add(0x19, .scalar, element: 8, .w1, .upper)
        add(0x59, .scalar, element: 8, .w1)
        for opcode in [0x1A, 0x5A] {
            add(opcode, .quad, element: 4, .w0, .upper, .memoryOnly)
            add(opcode, .pair, element: 8, .w1, .upper, .memoryOnly)
            add(opcode + 1, .oct, element: 4, .w0, .l512, .memoryOnly)
            add(opcode + 1, .quad, element: 8, .w1, .l512, .memoryOnly)
        }
        add(0x78, .scalar, element: 1, .w0)
        add(0x79, .scalar, element: 2, .w0)
        evex(map: 2, .p66, [0x7A, 0x7B], .vectorFromGeneral, .none, w: .w0, .registerOnly)
        evex(map: 2, .p66, [0x7C], .vectorFromGeneral, .none, [.registerOnly, .generalSize])
    }

    /// VPMOVSX, VPMOVZX; and the truncating stores VPMOV, VPMOVS, VPMOVUS.
    private mutating func addExtendingMoves() {
        let forms: [(Int, MemoryTuple, UInt8)] = [
            (0, .halfMem, 1), (1, .quarterMem, 1), (2, .eighthMem, 1), (3, .halfMem, 2), (4, .quarterMem, 2),
            (5, .halfMem, 4),
        ]
        for (number, tuple, size) in forms {
            let w: WideW = number == 5 ? .w0 : .any
            evex(map: 2, .p66, [0x20 + number, 0x30 + number], .rm, tuple, element: size, w: w, [])
            for first in [0x10, 0x20, 0x30] {
                evex(map: 2, .pF3, [first + number], .rm, tuple, element: size, w: .w0, .writesRM)
            }
        }
    }

    private mutating func addMap38FloatingPoint() {
        evex(map: 2, .p66, [0x0C], .rvm, w: .w0, .unsuppressed)
        evex(map: 2, .p66, [0x0D], .rvm, w: .w1, .unsuppressed)
        evex(map: 2, .p66, [0x13], .rm, .halfMem, element: 2, w: .w0, [.mxcsr, .suppressAll])
        evex(map: 2, .p66, [0x2C], .rvm, [.mxcsr, .rounding])
        evex(map: 2, .p66, [0x2D], .rvm, .scalar, [.mxcsr, .rounding, .scalar])
        evex(map: 2, .p66, [0x42], .rm, [.mxcsr, .suppressAll])
        evex(map: 2, .p66, [0x43], .rvm, .scalar, [.mxcsr, .suppressAll, .scalar])
        // VRCP14, VRSQRT14 and VFPCLASS obey MXCSR (denormals) without raising anything.
        evex(map: 2, .p66, [0x4C, 0x4E], .rm, .mxcsr)
        evex(map: 2, .p66, [0x4D, 0x4F], .rvm, .scalar, [.scalar, .mxcsr])
        evex(map: 2, .p66, [0x65], .rvm)
    }

    private mutating func addMap38Integer() {
        evex(map: 2, .p66, [0x1E], .rm, w: .w0)
        evex(map: 2, .p66, [0x1F], .rm, w: .w1)
        evex(map: 2, .p66, [0x28], .rvm, w: .w1)
        evex(map: 2, .p66, [0x29, 0x37], .maskFromVectors, w: .w1)
        evex(map: 2, .p66, [0x2B], .rvm, w: .w0, .unsuppressed)
        evex(map: 2, .p66, [0x39, 0x3B, 0x3D, 0x3F, 0x40, 0x64], .rvm)
        evex(map: 2, .p66, [0x27], .maskFromVectors)
        evex(map: 2, .pF3, [0x27], .maskFromVectors)
        evex(map: 2, .p66, [0x44], .rm)
        evex(map: 2, .p66, [0xC4], .rm, .unsuppressed)
    }

    private mutating func addPermutations() {
        evex(map: 2, .p66, [0x16, 0x36], .rvm, .full, .upper, .unsuppressed)
        evex(map: 2, .p66, [0x76, 0x77, 0x7E, 0x7F], .rvm, .unsuppressed)
        evex(map: 2, .p66, [0x75, 0x7D, 0x8D], .rvm, .fullMem, element: 2, w: .w1, .unsuppressed)
        evex(
            map: 2, .p66, [0x75, 0x7D, 0x8D], .rvm, .fullMem, element: 1, w: .w0, .all, .unsuppressed, .vbmi)
        evex(map: 3, .p66, [0x00, 0x01], .rm, w: .w1, .upper, [.immediate, .unsuppressed])
        evex(map: 3, .p66, [0x03], .rvm, [.immediate, .unsuppressed])
        evex(map: 3, .p66, [0x04], .rm, w: .w0, [.immediate, .unsuppressed])
        evex(map: 3, .p66, [0x05], .rm, w: .w1, [.immediate, .unsuppressed])
        evex(map: 3, .p66, [0x23, 0x43], .rvm, .full, .upper, [.immediate, .unsuppressed])
    }

    /// Compressing, expanding, gathering and scattering.
    private mutating func addPackedMemory() {
        evex(map: 2, .p66, [0x88, 0x89], .rm, .fullMem, .packs)
        evex(map: 2, .p66, [0x8A, 0x8B], .rm, .fullMem, [.packs, .writesRM])
        for (w, size) in [(WideW.w0, UInt8(1)), (.w1, 2)] {
            evex(map: 2, .p66, [0x62], .rm, .fullMem, element: size, w: w, .all, .packs, .vbmi2)
            evex(map: 2, .p66, [0x63], .rm, .fullMem, element: size, w: w, .all, [.packs, .writesRM], .vbmi2)
        }
        let gather: WideTraits = [.gathers, .needsMask, .memoryOnly]
        evex(map: 2, .p66, [0x90, 0x92], .rm, .scalar, gather)
        evex(map: 2, .p66, [0x91, 0x93], .rm, .scalar, [gather, .quadIndex])
        evex(map: 2, .p66, [0xA0, 0xA2], .rm, .scalar, [gather, .writesRM])
        evex(map: 2, .p66, [0xA1, 0xA3], .rm, .scalar, [gather, .quadIndex, .writesRM])
    }

    private mutating func addMultiplyAdd() {
        for first in [0x90, 0xA0, 0xB0] {
            let packed = [6, 7, 8, 0xA, 0xC, 0xE].map { first + $0 }
            let scalar = [9, 0xB, 0xD, 0xF].map { first + $0 }
            evex(map: 2, .p66, packed, .rvm, [.mxcsr, .rounding])
            evex(map: 2, .p66, scalar, .rvm, .scalar, [.mxcsr, .rounding, .scalar])
        }
    }

    private mutating func addMaskMoves() {
        let traits: WideTraits = [.registerOnly, .unmasked]
        evex(map: 2, .pF3, [0x28, 0x38], .vectorFromMask, .none, traits)
        evex(map: 2, .pF3, [0x29, 0x39], .maskFromVector, .none, traits)
        evex(map: 2, .pF3, [0x2A], .vectorFromMask, .none, w: .w1, traits)
        evex(map: 2, .pF3, [0x3A], .vectorFromMask, .none, w: .w0, traits)
    }

    private mutating func addMap3AFloatingPoint() {
        let controlled: WideTraits = [.mxcsr, .suppressAll, .immediate]
        evex(map: 3, .p66, [0x08], .rm, w: .w0, controlled)
        evex(map: 3, .p66, [0x09], .rm, w: .w1, controlled)
        evex(map: 3, .p66, [0x0A], .rvm, .scalar, w: .w0, [controlled, .scalar])
        evex(map: 3, .p66, [0x0B], .rvm, .scalar, w: .w1, [controlled, .scalar])
        evex(map: 3, .p66, [0x1D], .rm, .halfMem, element: 2, w: .w0, [controlled, .writesRM])
        evex(map: 3, .p66, [0x26, 0x56], .rm, controlled)
        evex(map: 3, .p66, [0x50, 0x54], .rvm, controlled)
        evex(map: 3, .p66, [0x27, 0x51, 0x55, 0x57], .rvm, .scalar, [controlled, .scalar])
        evex(map: 3, .p66, [0x66], .maskFromVector, [.immediate, .mxcsr])
        evex(map: 3, .p66, [0x67], .maskFromVector, .scalar, [.immediate, .scalar, .mxcsr])
    }

    private mutating func addMap3AInteger() {
        evex(map: 3, .p66, [0x1E, 0x1F], .maskFromVectors, .immediate)
        evex(map: 3, .p66, [0x25], .rvm, .immediate)
        let store: WideTraits = [.immediate, .unmasked, .writesRM]
        evex(map: 3, .p66, [0x14], .vectorFromGeneral, .scalar, element: 1, .l128, store)
        evex(map: 3, .p66, [0x15], .vectorFromGeneral, .scalar, element: 2, .l128, store)
        evex(map: 3, .p66, [0x16], .vectorFromGeneral, .scalar, .l128, [store, .generalSize])
        evex(map: 3, .p66, [0x17], .vectorFromGeneral, .scalar, element: 4, .l128, store)
        evex(map: 3, .p66, [0x20], .insertGeneral, .scalar, element: 1, .l128, [.immediate, .unmasked])
        evex(map: 3, .p66, [0x21], .rvm, .scalar, element: 4, w: .w0, .l128, [.immediate, .unmasked])
        evex(map: 3, .p66, [0x22], .insertGeneral, .scalar, .l128, [.immediate, .unmasked, .generalSize])
    }

    /// Parts of 16 and 32 bytes: VINSERT, VEXTRACT.
    private mutating func addLanes() {
        let insert: WideTraits = [.immediate, .unsuppressed]
        let extract: WideTraits = [.immediate, .unsuppressed, .writesRM]
        for opcode in [0x18, 0x38] {
            evex(map: 3, .p66, [opcode], .rvm, .quad, element: 4, w: .w0, .upper, insert)
            evex(map: 3, .p66, [opcode], .rvm, .pair, element: 8, w: .w1, .upper, insert)
            evex(map: 3, .p66, [opcode + 1], .rm, .quad, element: 4, w: .w0, .upper, extract)
            evex(map: 3, .p66, [opcode + 1], .rm, .pair, element: 8, w: .w1, .upper, extract)
            evex(map: 3, .p66, [opcode + 2], .rvm, .oct, element: 4, w: .w0, .l512, insert)
            evex(map: 3, .p66, [opcode + 2], .rvm, .quad, element: 8, w: .w1, .l512, insert)
            evex(map: 3, .p66, [opcode + 3], .rm, .oct, element: 4, w: .w0, .l512, extract)
            evex(map: 3, .p66, [opcode + 3], .rm, .quad, element: 8, w: .w1, .l512, extract)
        }
    }

    /// Extensions that not every processor with AVX-512 has.
    private mutating func addOptional() {
        evex(map: 2, .p66, [0xB4, 0xB5], .rvm, .full, w: .w1, .all, [], .ifma)
        evex(map: 2, .p66, [0x83], .rvm, .full, w: .w1, .all, .unsuppressed, .vbmi)
        evex(map: 2, .p66, [0x70, 0x72], .rvm, .fullMem, element: 2, w: .w1, .all, [], .vbmi2)
        evex(map: 2, .p66, [0x71, 0x73], .rvm, .full, .all, [], .vbmi2)
        evex(map: 3, .p66, [0x70, 0x72], .rvm, .fullMem, element: 2, w: .w1, .all, .immediate, .vbmi2)
        evex(map: 3, .p66, [0x71, 0x73], .rvm, .full, .all, .immediate, .vbmi2)
        evex(map: 2, .p66, [0x50, 0x51, 0x52, 0x53], .rvm, .full, w: .w0, .all, [], .vnni)
        evex(map: 2, .p66, [0x55], .rm, .full, .all, [], .vpopcntdq)
        for (w, size) in [(WideW.w0, UInt8(1)), (.w1, 2)] {
            evex(map: 2, .p66, [0x54], .rm, .fullMem, element: size, w: w, .all, [], .bitalg)
        }
        evex(map: 2, .p66, [0x8F], .maskFromVectors, .fullMem, element: 1, w: .w0, .all, [], .bitalg)
        evex(map: 2, .p66, [0xCF], .rvm, .fullMem, element: 1, w: .w0, .all, [], .gfni)
        evex(map: 3, .p66, [0xCE, 0xCF], .rvm, .full, w: .w1, .all, .immediate, .gfni)
        let whole: WideTraits = [.unmasked, .unsuppressed]
        evex(map: 2, .p66, [0xDC, 0xDD, 0xDE, 0xDF], .rvm, .fullMem, .all, whole, .vaes)
        evex(map: 3, .p66, [0x44], .rvm, .fullMem, .all, [whole, .immediate], .vpclmulqdq)
        evex(map: 2, .pF3, [0x52], .rvm, .full, w: .w0, .all, [], .bf16)
        evex(map: 2, .pF3, [0x72], .rm, .full, w: .w0, .all, [], .bf16)
        evex(map: 2, .pF2, [0x72], .rvm, .full, w: .w0, .all, [], .bf16)
    }
}
