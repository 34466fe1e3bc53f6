internal import CHost
import Testing

@testable import CPU

/// XSAVE and its family (SDM vol. 1 ch. 13), against a model of the area written from the manual's tables.
@Suite struct ExtendedStateTests {
    private static let area = Pages.address(0)
    private static let headerOffset = 512
    private static let all = VectorUnit.supportedComponents

    /// REX.W 0F AE or 0F C7 with [RDI].
    private static func code(_ opcode: UInt8, _ number: UInt8, isWide: Bool = true) -> [UInt8] {
        (isWide ? [0x48] : []) + [0x0F, opcode, 0x07 | number << 3]
    }
    private static let xsave = code(0xAE, 4)
    private static let xrstor = code(0xAE, 5)
    private static let xsaveopt = code(0xAE, 6)
    private static let xsavec = code(0xC7, 4)

    /// The places of a component's bytes in a standard area, and its size for `registers` registers.
    private static func ranges(_ component: Int, registers: Int) -> [Range<Int>] {
        switch component {
        case 0: [0..<24, 32..<160]
        case 1: [160..<(160 + registers * 16)]
        case 2: [576..<(576 + registers * 16)]
        case 5: [1088..<1152]
        case 6: [1152..<(1152 + registers * 32)]
        default: registers == 16 ? [1664..<2688] : []
        }
    }

    /// A machine in long mode with two pages for the area, XCR0 all set.
    private func machine(components: UInt64 = all) -> TestMachine {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Pages.frame, 3)
        machine.map(1, to: Pages.frame + 0x1000, 3)
        machine.state.pointee.cr4 |= Control.extendedStateEnable
        machine.state.pointee.xcr0 = components
        updateContext(machine.state)
        return machine
    }

    private func memory(_ machine: TestMachine) -> [UInt8] {
        Array(UnsafeRawBufferPointer(start: machine.ram.bytes + Int(Pages.frame), count: 4096))
    }

    /// Random registers; each component stays initial by the flip of a coin.
    private func randomize(_ machine: TestMachine, _ dice: inout Dice) {
        let s = machine.state
        s.powerOnVectorState()
        var image = [UInt8](repeating: 0, count: 4096)
        var stored: UInt64 = 0
        for component in [0, 1, 2, 5, 6, 7] where Self.all >> UInt64(component) & 1 != 0 && !dice.chance(3) {
            stored |= 1 << UInt64(component)
            for range in Self.ranges(component, registers: 16) {
                for offset in range { image[offset] = dice.byte() }
            }
        }
        image[24] = 0x80 | dice.byte() & 0x3F
        image[25] = dice.chance(2) ? 0x1F : 0x7F
        image[512] = UInt8(stored)
        // No pending x87 exception: nothing here is about that.
        image[0] = 0x7F
        image[1] = 0x03
        #expect(machine.processor.setExtendedState(image) == nil)
        if dice.chance(2) { s.mxcsr = 0x1F80 }
    }

    private func run(_ machine: TestMachine, _ code: [UInt8], mask: UInt64 = .max, at address: UInt64 = area)
        -> Trapped?
    {
        machine.execute(code, [0: mask & 0xFFFF_FFFF, 2: mask >> 32, 7: address])
    }

    private func header(_ bytes: [UInt8], _ word: Int = 0) -> UInt64 {
        (0..<8).reduce(0) { $0 | UInt64(bytes[512 + word * 8 + $1]) << UInt64($1 * 8) }
    }

    /// Where a component is in a compacted area.
    private func compacted(_ component: Int, _ layout: UInt64) -> Int {
        var place = 576
        let sizes: [(Int, Int)] = [(2, 256), (5, 64), (6, 512), (7, 1024)]
        for (other, size) in sizes where other < component && layout >> UInt64(other) & 1 != 0 { place += size }
        return place
    }

    // MARK: Saving and restoring

    @Test(arguments: [xsave, xsaveopt]) func savesStandard(_ code: [UInt8]) throws {
        let machine = machine()
        var dice = Dice(seed: 13)
        for _ in 0..<200 {
            randomize(machine, &dice)
            let state = machine.processor.extendedState()
            let mask = dice.next() | (dice.chance(2) ? .max : 0)
            let requested = mask & Self.all
            let old = UInt64(dice.byte()) << 8 | 0x100
            let pattern = [UInt8](repeating: 0xA5, count: 4096)
            machine.write(pattern, at: Pages.frame)
            machine.store(old, at: Pages.frame + 512)
            #expect(try #require(run(machine, code, mask: mask)).vector == 3)
            let found = memory(machine)
            var expected = pattern
            let inUse = header(state) & (machine.state.componentsInUse | ~3)
            let saved = code == Self.xsaveopt ? requested & inUse : requested
            for component in [0, 1, 2, 5, 6, 7] where saved >> UInt64(component) & 1 != 0 {
                for range in Self.ranges(component, registers: 16) { expected[range] = state[range] }
            }
            if requested & 6 != 0 { expected[24..<32] = state[24..<32] }
            let word = old & ~requested | inUse & requested
            for byte in 0..<8 { expected[512 + byte] = UInt8(truncatingIfNeeded: word >> UInt64(byte * 8)) }
            #expect(
                found == expected,
                "mask \(mask), first at \(zip(found, expected).enumerated().first { $1.0 != $1.1 }?.offset ?? -1)")
        }
    }

    @Test func savesCompacted() throws {
        let machine = machine()
        var dice = Dice(seed: 14)
        for _ in 0..<200 {
            randomize(machine, &dice)
            let state = machine.processor.extendedState()
            let mask = dice.next() | (dice.chance(2) ? .max : 0)
            let requested = mask & Self.all
            let pattern = [UInt8](repeating: 0x5A, count: 4096)
            machine.write(pattern, at: Pages.frame)
            #expect(try #require(run(machine, Self.xsavec, mask: mask)).vector == 3)
            let found = memory(machine)
            let inUse = machine.state.componentsInUse | (machine.state.mxcsr != 0x1F80 ? 2 : 0)
            let saved = requested & inUse
            #expect(header(found) == saved)
            #expect(header(found, 1) == requested | 1 << 63)
            #expect(found[528..<576] == pattern[528..<576])
            for component in [0, 1, 2, 5, 6, 7] {
                let isSaved = saved >> UInt64(component) & 1 != 0
                for range in Self.ranges(component, registers: 16) {
                    let place = component < 2 ? range.lowerBound : compacted(component, requested)
                    if component >= 2, requested >> UInt64(component) & 1 == 0 { continue }
                    let there = found[place..<(place + range.count)]
                    #expect(there.elementsEqual(isSaved ? state[range] : pattern[range]), "component \(component)")
                }
            }
            #expect(found[24..<32] == (saved & 2 != 0 ? state[24..<32] : pattern[24..<32]))
        }
    }

    /// What was saved comes back, by either format; components that were not asked for stay.
    @Test(arguments: [xsave, xsaveopt, xsavec]) func restores(_ code: [UInt8]) throws {
        let machine = machine()
        var dice = Dice(seed: 15)
        for _ in 0..<200 {
            randomize(machine, &dice)
            let source = machine.processor.extendedState()
            machine.write([UInt8](repeating: 0, count: 4096), at: Pages.frame)
            #expect(run(machine, code)?.vector == 3)
            randomize(machine, &dice)
            let target = machine.processor.extendedState()
            let mask = dice.next()
            #expect(try #require(run(machine, Self.xrstor, mask: mask)).vector == 3)
            let found = machine.processor.extendedState()
            for component in [0, 1, 2, 5, 6, 7] where Self.all >> UInt64(component) & 1 != 0 {
                let from = mask >> UInt64(component) & 1 != 0 ? source : target
                for range in Self.ranges(component, registers: 16) {
                    #expect(found[range] == from[range], "component \(component), mask \(mask)")
                }
            }
            // The standard form restores MXCSR with either of SSE and AVX state, the compacted one with SSE state.
            let mxcsrMask: UInt64 = code == Self.xsavec ? 2 : 6
            #expect(found[24..<28] == (mask & Self.all & mxcsrMask != 0 ? source : target)[24..<28])
        }
    }

    /// Outside 64-bit mode there are eight registers, and neither instruction touches more (SDM vol. 1 §13.5.2).
    @Test func thirtyTwoBitMode() throws {
        let machine = TestMachine()
        machine.enterProtected()
        machine.state.pointee.cr4 |= Control.extendedStateEnable
        machine.state.pointee.xcr0 = Self.all
        updateContext(machine.state)
        var dice = Dice(seed: 16)
        func execute(_ code: [UInt8]) -> Trapped? { machine.execute(code, [0: 0xFFFF_FFFF, 2: 0, 7: Pages.frame]) }
        for _ in 0..<50 {
            randomize(machine, &dice)
            let state = machine.processor.extendedState()
            let pattern = [UInt8](repeating: 0, count: 4096)
            machine.write(pattern, at: Pages.frame)
            #expect(try #require(execute(Self.code(0xAE, 4, isWide: false))).vector == 3)
            let found = memory(machine)
            for component in [1, 2, 5, 6, 7] where Self.all >> UInt64(component) & 1 != 0 {
                let used = Self.ranges(component, registers: 8)
                for range in used { #expect(found[range] == state[range], "component \(component)") }
                for range in Self.ranges(component, registers: 16) {
                    for offset in range where !used.contains(where: { $0.contains(offset) }) {
                        #expect(found[offset] == 0)
                    }
                }
            }
            #expect(header(found) & 0x80 == 0)
            // Cleared by an empty area: only the eight.
            machine.write(pattern, at: Pages.frame)
            machine.store(UInt32(0x1F80), at: Pages.frame + 24)
            #expect(try #require(execute(Self.code(0xAE, 5, isWide: false))).vector == 3)
            let after = machine.processor.extendedState()
            for component in [1, 2, 6] where Self.all >> UInt64(component) & 1 != 0 {
                let used = Self.ranges(component, registers: 8)[0]
                let whole = Self.ranges(component, registers: 16)[0]
                #expect(after[used].allSatisfy { $0 == 0 })
                #expect(after[used.upperBound..<whole.upperBound] == state[used.upperBound..<whole.upperBound])
            }
            #expect(after[1664..<2688] == state[1664..<2688])
        }
    }

    // MARK: Faults

    struct Refusal: CustomTestStringConvertible {
        var what: String
        var code: [UInt8] = xrstor
        var prepare: @Sendable (TestMachine) -> Void = { _ in }
        var address = area
        var mask: UInt64 = .max
        var vector: UInt8
        var testDescription: String { what }
    }

    private static func header(_ offset: UInt64, _ value: UInt64) -> @Sendable (TestMachine) -> Void {
        { $0.store(value, at: Pages.frame + 512 + offset) }
    }
    private static let compactedBit: UInt64 = 1 << 63

    static let refusals: [Refusal] = [
        Refusal(what: "no OSXSAVE, XSAVE", code: xsave, prepare: { $0.state.pointee.cr4 &= ~(1 << 18) }, vector: 6),
        Refusal(what: "no OSXSAVE, XRSTOR", prepare: { $0.state.pointee.cr4 &= ~(1 << 18) }, vector: 6),
        Refusal(what: "no OSXSAVE, XSAVEC", code: xsavec, prepare: { $0.state.pointee.cr4 &= ~(1 << 18) }, vector: 6),
        Refusal(
            what: "no OSXSAVE, XGETBV", code: [0x0F, 0x01, 0xD0], prepare: { $0.state.pointee.cr4 &= ~(1 << 18) },
            vector: 6),
        Refusal(what: "TS, XSAVE", code: xsave, prepare: { $0.state.pointee.cr0 |= 8 }, vector: 7),
        Refusal(what: "TS, XRSTOR", prepare: { $0.state.pointee.cr0 |= 8 }, vector: 7),
        Refusal(what: "TS, misaligned", prepare: { $0.state.pointee.cr0 |= 8 }, address: area + 1, vector: 7),
        Refusal(what: "EM is no matter", prepare: { $0.state.pointee.cr0 |= 4 }, vector: 3),
        Refusal(what: "misaligned XSAVE", code: xsave, address: area + 32, vector: 13),
        Refusal(what: "misaligned XSAVEC", code: xsavec, address: area + 8, vector: 13),
        Refusal(what: "misaligned XRSTOR", address: area + 16, vector: 13),
        Refusal(what: "LOCK", code: [0xF0] + xsave, vector: 6),
        Refusal(what: "operand-size prefix", code: [0x66] + xrstor, vector: 6),
        Refusal(what: "XSAVES", code: code(0xC7, 5), vector: 6),
        Refusal(what: "XRSTORS", code: code(0xC7, 3), vector: 6),
        Refusal(what: "register form of XSAVEC", code: [0x0F, 0xC7, 0xE0], vector: 6),
        Refusal(what: "component beyond XCR0", prepare: header(0, 1 << 9), vector: 13),
        Refusal(
            what: "XCR0 without AVX",
            prepare: {
                header(0, 4)($0); $0.state.pointee.xcr0 = 3
            }, vector: 13),
        Refusal(what: "standard form, second word", prepare: header(8, 1), vector: 13),
        Refusal(what: "standard form, third word", prepare: header(16, 1), vector: 13),
        Refusal(what: "standard form, fourth word is not looked at", prepare: header(24, 1), vector: 3),
        Refusal(what: "compacted, component beyond XCR0", prepare: header(8, compactedBit | 1 << 9), vector: 13),
        Refusal(
            what: "compacted, component not laid out",
            prepare: {
                header(8, compactedBit | 1)($0); header(0, 2)($0)
            }, vector: 13),
        Refusal(
            what: "compacted, third word",
            prepare: {
                header(8, compactedBit | 3)($0); header(16, 1)($0)
            }, vector: 13),
        Refusal(
            what: "compacted, last word",
            prepare: {
                header(8, compactedBit | 3)($0); header(56, 1)($0)
            }, vector: 13),
        Refusal(
            what: "MXCSR with reserved bits", prepare: { $0.store(UInt32(0x1_1F80), at: Pages.frame + 24) }, vector: 13),
        Refusal(
            what: "MXCSR with reserved bits, neither SSE nor AVX asked for",
            prepare: { $0.store(UInt32(0x1_1F80), at: Pages.frame + 24) }, mask: 1, vector: 3),
        Refusal(
            what: "compacted: MXCSR is not looked at where SSE state is not stored",
            prepare: {
                header(8, compactedBit | 3)($0); $0.store(UInt32(0x1_1F80), at: Pages.frame + 24)
            }, vector: 3),
        Refusal(what: "page not present", address: Pages.address(2), vector: 14),
        Refusal(what: "XGETBV of an unknown register", code: [0xB9, 2, 0, 0, 0, 0x0F, 0x01, 0xD0], vector: 13),
        Refusal(what: "XGETBV with a prefix", code: [0x66, 0x0F, 0x01, 0xD0], vector: 6),
    ]

    @Test(arguments: refusals) func faults(_ row: Refusal) throws {
        let machine = machine()
        var dice = Dice(seed: 17)
        randomize(machine, &dice)
        machine.write([UInt8](repeating: 0, count: 4096), at: Pages.frame)
        machine.store(UInt32(0x1F80), at: Pages.frame + 24)
        row.prepare(machine)
        updateContext(machine.state)
        let before = machine.processor.extendedState()
        let trapped = try #require(run(machine, row.code, mask: row.mask, at: row.address))
        #expect(trapped.vector == row.vector)
        if trapped.vector == 13 { #expect(trapped.error == 0) }
        if row.vector != 3 { #expect(machine.processor.extendedState() == before) }
    }

    /// XRSTOR changes nothing when the second half of its area is not there.
    @Test func faultInTheMiddle() throws {
        guard Self.all & 4 != 0 else { return }
        let machine = machine()
        machine.map(1, to: 0, 0)
        var dice = Dice(seed: 18)
        randomize(machine, &dice)
        let before = machine.processor.extendedState()
        // The header is in the first page, AVX state begins in the second.
        let address = Pages.address(1) - 576
        machine.write([UInt8](repeating: 0, count: 4096), at: Pages.frame)
        machine.store(UInt64(7), at: Pages.frame + 4096 - 64)
        let trapped = try #require(run(machine, Self.xrstor, at: address))
        #expect(trapped.vector == 14)
        #expect(machine.state.pointee.cr2 == Pages.address(1))
        #expect(machine.processor.extendedState() == before)
    }

    // MARK: XCR0

    @Test func extendedControl() throws {
        let hasAVX512 = Self.all & 0xE0 != 0
        let hasAVX = Self.all & 4 != 0
        let rows: [(value: UInt64, isValid: Bool)] = [
            (1, true), (3, true), (0, false), (2, false), (7, hasAVX), (5, false), (6, false), (0xE7, hasAVX512),
            (0x27, false), (0x67, false), (0xC7, false), (0xE3, false), (0x207, false), (1 << 63 | 1, false),
        ]
        // XSETBV, then XGETBV.
        let code: [UInt8] = [0x0F, 0x01, 0xD1, 0x0F, 0x01, 0xD0]
        for row in rows {
            let machine = machine(components: 1)
            let trapped = machine.execute(code, [0: row.value & 0xFFFF_FFFF, 2: row.value >> 32, 1: 0])
            #expect(trapped?.vector == (row.isValid ? 3 : 13), "\(row.value)")
            #expect(machine.state.pointee.xcr0 == (row.isValid ? row.value : 1))
            if row.isValid { #expect(machine.state.register(0) == row.value) }
        }
        let machine = machine(components: 1)
        #expect(machine.execute([0x0F, 0x01, 0xD1], [0: 3, 2: 0, 1: 1])?.vector == 13)
        machine.setPrivilege(3)
        #expect(machine.execute([0x0F, 0x01, 0xD1], at: Pages.userCode, [0: 3, 2: 0, 1: 0])?.vector == 13)
        machine.setPrivilege(3)
        #expect(machine.execute([0x0F, 0x01, 0xD0], at: Pages.userCode, [1: 0])?.vector == 3)
        #expect(machine.state.register(0) == 1)
    }

    @Test func componentsInUse() throws {
        let machine = machine()
        machine.state.powerOnVectorState()
        func inUse() throws -> UInt64 {
            let trapped = try #require(machine.execute([0x0F, 0x01, 0xD0], [1: 1]))
            #expect(trapped.vector == 3)
            return machine.state.register(0)
        }
        #expect(try inUse() == 0)
        machine.state.mxcsr = 0x1FA0
        #expect(try inUse() == 2)
        machine.state.mxcsr = 0x1F80
        let places: [(Int, Int, UInt64)] = [(3, 0, 2), (15, 16, 4), (2, 40, 0x40), (31, 0, 0x80), (16, 63, 0x80)]
        for (number, offset, bit) in places {
            machine.state.vectorRegister(number).storeBytes(of: 1, toByteOffset: offset, as: UInt8.self)
            #expect(try inUse() == bit & Self.all, "register \(number)")
            machine.state.powerOnVectorState()
        }
        martlet_opmask(machine.state)[7] = 1
        #expect(try inUse() == 0x20 & Self.all)
    }

    @Test func cpuidLeaf() throws {
        let machine = machine(components: 3)
        func leaf(_ number: UInt32, _ subleaf: UInt32) -> (UInt32, UInt32, UInt32, UInt32) {
            machine.processor.cpuid(number, subleaf)
        }
        #expect(leaf(1, 0).2 >> 26 & 3 == 3)
        machine.state.pointee.cr4 &= ~Control.extendedStateEnable
        #expect(leaf(1, 0).2 >> 26 & 3 == 1)
        #expect(leaf(0xD, 0).1 == 576)
        #expect(leaf(0xD, 1).0 == 7)
        if Self.all & 4 != 0 {
            machine.state.pointee.xcr0 = 7
            #expect(leaf(0xD, 0).1 == 832)
            #expect(leaf(0xD, 2).0 == 256 && leaf(0xD, 2).1 == 576)
        }
        if Self.all & 0xE0 != 0 {
            machine.state.pointee.xcr0 = 0xE7
            #expect(leaf(0xD, 0).0 == 0xE7 && leaf(0xD, 0).1 == 2688 && leaf(0xD, 0).2 == 2688)
            #expect(leaf(0xD, 1).1 == 576 + 256 + 64 + 512 + 1024)
            let rows: [(UInt32, UInt32, UInt32)] = [(5, 64, 1088), (6, 512, 1152), (7, 1024, 1664)]
            for (number, size, offset) in rows { #expect(leaf(0xD, number).0 == size && leaf(0xD, number).1 == offset) }
        }
        #expect(leaf(0xD, 3) == (0, 0, 0, 0))
    }

    // MARK: KVM's forms

    @Test func areaFromOutside() {
        let processor = Processor(apicID: 0)
        var area = processor.extendedState()
        #expect(area.count == 4096)
        #expect(processor.setExtendedState(area) == nil)
        #expect(processor.setExtendedState(Array(area.prefix(500))) == .tooShort(500))
        area[513] = 0x80
        #expect(processor.setExtendedState(area) == .unsupportedComponents(0x8000))
        area[513] = 0
        for offset in [520, 527, 528, 575] {
            area[offset] = 1
            #expect(processor.setExtendedState(area) == .reservedBits)
            area[offset] = 0
        }
        area[26] = 1
        #expect(processor.setExtendedState(area) == .reservedBits)
        #expect(processor.setExtendedControl(3))
        #expect(!processor.setExtendedControl(2))
        #expect(processor.extendedControl == 3)
    }
}
