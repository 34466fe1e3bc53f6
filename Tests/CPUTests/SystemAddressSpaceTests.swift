internal import CHost
internal import Fuzzing
import Testing

@testable import CPU

/// Process-context identifiers: the rules of CR3 and CR4, INVPCID, and what each flush must take (SDM vol. 3A §4.10).
@Suite struct SystemAddressSpaceTests {
    private static let pcide = Control.processContextIdentifiers
    private static let noFlush: UInt64 = 1 << 63

    // Instructions by hand: RAX to and from control registers, the page at RBX, type in RDX and descriptor at RSI.
    private static let toCR0: [UInt8] = [0x0F, 0x22, 0xC0]
    private static let toCR3: [UInt8] = [0x0F, 0x22, 0xD8]
    private static let toCR4: [UInt8] = [0x0F, 0x22, 0xE0]
    private static let fromCR3: [UInt8] = [0x0F, 0x20, 0xD9]
    private static let invpcid: [UInt8] = [0x66, 0x0F, 0x38, 0x82, 0x16]
    private static let invlpg: [UInt8] = [0x0F, 0x01, 0x3B]

    private func machine(identifiers: Bool = true) -> TestMachine {
        let machine = TestMachine(size: 4 << 20, isAlone: true)
        machine.enterPagedLong()
        if identifiers { machine.state.pointee.cr4 |= Self.pcide }
        machine.processor.flushTLB()
        return machine
    }

    // MARK: Faults

    struct Write: CustomTestStringConvertible {
        var register: String
        var identifiers: Bool
        var cr3: UInt64 = Place.tables
        var value: UInt64
        var faults: Bool
        var is32 = false
        var testDescription: String { "\(register) \(String(value, radix: 16)), PCIDE \(identifiers)" }
    }

    private static let cr4: UInt64 = 0x6A0
    static let writes: [Write] = [
        Write(register: "cr3", identifiers: false, value: Place.tables | noFlush, faults: true),
        Write(register: "cr3", identifiers: true, value: Place.tables | noFlush | 5, faults: false),
        Write(register: "cr3", identifiers: true, value: Place.tables | 0xFFF, faults: false),
        Write(register: "cr3", identifiers: true, value: Place.tables | 1 << 62, faults: true),
        Write(register: "cr3", identifiers: true, value: Place.tables | noFlush | 1 << 45, faults: true),
        Write(register: "cr4", identifiers: false, value: cr4 | pcide, faults: false),
        Write(register: "cr4", identifiers: false, cr3: Place.tables | 0x18, value: cr4 | pcide, faults: true),
        Write(register: "cr4", identifiers: false, value: cr4 | pcide, faults: false, is32: true),
        Write(register: "cr4", identifiers: true, value: cr4, faults: false),
        // It may stay while the low bits of CR3 are a PCID.
        Write(register: "cr4", identifiers: true, cr3: Place.tables | 7, value: cr4 | pcide | 4, faults: false),
        Write(register: "cr0", identifiers: true, value: 0x0005_0033, faults: true, is32: true),
        Write(register: "cr0", identifiers: true, value: 0x8005_0033, faults: false, is32: true),
    ]

    @Test(arguments: writes) func controlRegisters(_ row: Write) throws {
        let machine = machine(identifiers: row.identifiers)
        let s = machine.state
        s.pointee.cr3 = row.cr3
        machine.processor.flushTLB()
        if row.is32 { machine.setPrivilege(0, is32: true) }
        let before = [s.pointee.cr0, s.pointee.cr3, s.pointee.cr4]
        let code = ["cr0": Self.toCR0, "cr3": Self.toCR3, "cr4": Self.toCR4][row.register] ?? []
        let trapped = try #require(machine.execute(code, [0: row.value]))
        #expect(trapped.vector == (row.faults ? 13 : 3))
        if row.faults {
            #expect(trapped.error == 0 && trapped.rip == Place.code)
            #expect([s.pointee.cr0, s.pointee.cr3, s.pointee.cr4] == before)
        } else if row.register == "cr3" {
            #expect(s.pointee.cr3 == row.value & ~Self.noFlush)
        }
    }

    /// Outside long mode there are no PCIDs.
    @Test func protectedMode() throws {
        let machine = TestMachine(isAlone: true)
        machine.enterProtected()
        let trapped = try #require(machine.execute(Self.toCR4, [0: 0x600 | Self.pcide]))
        #expect(trapped.vector == 13 && machine.state.pointee.cr4 == 0x600)
    }

    /// Bit 63 is not read back, and without the feature CR4.PCIDE is reserved.
    @Test func featureBits() throws {
        let machine = machine()
        _ = try #require(machine.execute(Self.toCR3 + Self.fromCR3, [0: Place.tables | Self.noFlush | 9]))
        #expect(machine.state.register(1) == Place.tables | 9)
        let other = self.machine(identifiers: false)
        other.processor.setCPUID(Self.leaves { $0 == 1 ? (ecx: 1 << 17, ebx: 0) : (0, 0) })
        #expect(try #require(other.execute(Self.toCR4, [0: Self.cr4 | Self.pcide])).vector == 13)
    }

    /// What this processor has, without some bits.
    private static func leaves(without bits: (UInt32) -> (ecx: UInt32, ebx: UInt32)) -> [kvm_cpuid_entry2] {
        Processor.supportedCPUID().map { entry in
            var entry = entry
            entry.ecx &= ~bits(entry.function).ecx
            entry.ebx &= ~bits(entry.function).ebx
            return entry
        }
    }

    struct Invalidation: CustomTestStringConvertible {
        var type: UInt64
        var identifier: UInt64 = 0
        var address: UInt64 = 0
        var identifiers = true
        var cpl: UInt8 = 0
        var code = SystemAddressSpaceTests.invpcid
        var vector: UInt8 = 3
        var testDescription: String { "\(self)" }
    }

    /// SDM vol. 2, INVPCID: the exceptions.
    static let invalidations: [Invalidation] = [
        Invalidation(type: 0, identifier: 0xFFF, address: 0xFFFF_8000_0000_0000), Invalidation(type: 1, identifier: 5),
        Invalidation(type: 2), Invalidation(type: 3), Invalidation(type: 4, vector: 13),
        Invalidation(type: 1 << 32, vector: 13), Invalidation(type: .max, vector: 13),
        Invalidation(type: 0, identifier: 0x1000, vector: 13), Invalidation(type: 2, identifier: 1 << 63, vector: 13),
        Invalidation(type: 3, identifier: 0x1005, vector: 13),
        Invalidation(type: 0, address: 0x8000_0000_0000, vector: 13), Invalidation(type: 1, address: 0x8000_0000_0000),
        Invalidation(type: 2, address: 0x8000_0000_0000),
        Invalidation(type: 0, identifier: 1, identifiers: false, vector: 13),
        Invalidation(type: 1, identifier: 1, identifiers: false, vector: 13),
        Invalidation(type: 0, identifiers: false), Invalidation(type: 1, identifiers: false),
        Invalidation(type: 2, identifier: 1, identifiers: false), Invalidation(type: 3, identifiers: false),
        Invalidation(type: 2, cpl: 3, vector: 13), Invalidation(type: 9, cpl: 3, vector: 13),
        Invalidation(type: 2, code: [0x0F, 0x38, 0x82, 0x16], vector: 6),
        Invalidation(type: 2, code: [0xF3, 0x66, 0x0F, 0x38, 0x82, 0x16], vector: 6),
        Invalidation(type: 2, code: [0xF0, 0x66, 0x0F, 0x38, 0x82, 0x16], vector: 6),
        Invalidation(type: 2, code: [0x66, 0x0F, 0x38, 0x82, 0xD6], vector: 6),
        // REX.W changes nothing.
        Invalidation(type: 2, code: [0x66, 0x48, 0x0F, 0x38, 0x82, 0x16]),
        // The descriptor is read from RSI + 32 MiB: not mapped.
        Invalidation(type: 2, code: [0x66, 0x0F, 0x38, 0x82, 0x96, 0, 0, 0, 0x70], vector: 14),
    ]

    @Test(arguments: invalidations) func invalidationFaults(_ row: Invalidation) throws {
        let machine = machine(identifiers: row.identifiers)
        machine.store(row.identifier, at: Place.data)
        machine.store(row.address, at: Place.data + 8)
        let isUser = row.cpl == 3
        if isUser { machine.setPrivilege(3) }
        let trapped = try #require(
            machine.execute(row.code, at: isUser ? Pages.userCode : Place.code, [2: row.type, 6: Place.data]))
        #expect(trapped.vector == row.vector)
        if row.vector != 3 { #expect(trapped.rip == (isUser ? Pages.userCode : Place.code)) }
    }

    @Test func invalidationWithoutFeature() throws {
        let machine = machine()
        machine.processor.setCPUID(Self.leaves { $0 == 7 ? (ecx: 0, ebx: 1 << 10) : (0, 0) })
        // Also at privilege 3: #UD comes first.
        #expect(try #require(machine.execute(Self.invpcid, [2: 2, 6: Place.data])).vector == 6)
        machine.setPrivilege(3)
        #expect(try #require(machine.execute(Self.invpcid, at: Pages.userCode, [2: 2])).vector == 6)
    }

    // MARK: What flushes take

    /// Address spaces with tables of their own for `Pages`; all else is shared.
    private enum Spaces {
        static func top(_ number: UInt64) -> UInt64 { 0x10_0000 + number * 0x4000 }
        static func table(_ number: UInt64) -> UInt64 { top(number) + 0x3000 }

        static func build(_ machine: TestMachine, _ number: UInt64) {
            for offset in stride(from: UInt64(0), to: 0x4000, by: 8) {
                machine.store(UInt64(0), at: top(number) + offset)
            }
            machine.store(machine.load(Place.tables, as: UInt64.self), at: top(number))
            machine.store(top(number) + 0x1000 | 7, at: top(number) + 8)
            machine.store(top(number) + 0x2000 | 7, at: top(number) + 0x1000)
            machine.store(table(number) | 7, at: top(number) + 0x2000)
        }

        /// Maps page `page` of one of them, without a flush.
        static func map(_ machine: TestMachine, _ number: UInt64, _ page: UInt64, _ frame: UInt64, _ bits: UInt64 = 7) {
            machine.store(frame | bits, at: table(number) + page * 8)
        }
    }

    private static func frame(_ number: UInt64) -> UInt64 { 0x20_0000 + number * 0x1000 }

    /// A machine with address spaces 0..<count, and frames that hold their own numbers.
    private func spaces(_ count: UInt64) -> TestMachine {
        let machine = machine()
        for number in 0..<count { Spaces.build(machine, number) }
        for number in UInt64(0)..<512 { machine.store(UInt32(number), at: Self.frame(number)) }
        enter(machine, 0, flushes: true)
        return machine
    }

    /// PCID n + 1 for address space n.
    private func enter(_ machine: TestMachine, _ number: UInt64, flushes: Bool) {
        #expect(writeCR3(machine.state, Spaces.top(number) | number + 1 | (flushes ? 0 : Self.noFlush)))
    }

    private func read(_ machine: TestMachine, _ page: UInt64) -> UInt32? {
        machine.state.pointee.stop = UInt32(MARTLET_STOP_NONE)
        return load(machine.state, Pages.address(page), UInt32.self)
    }

    /// Each sees its own pages, and a return that flushes nothing costs no walk.
    @Test func separateSpaces() {
        let machine = spaces(4)
        for number in UInt64(0)..<4 { Spaces.map(machine, number, 0, Self.frame(number)) }
        for number in UInt64(0)..<4 {
            enter(machine, number, flushes: false)
            #expect(read(machine, 0) == UInt32(number))
        }
        let misses = machine.state.pointee.tlb_misses
        for number in [UInt64(2), 0, 3, 1, 1, 2] {
            enter(machine, number, flushes: false)
            #expect(read(machine, 0) == UInt32(number))
        }
        #expect(machine.state.pointee.tlb_misses == misses)
        // A load that flushes is of its own PCID only.
        Spaces.map(machine, 1, 0, Self.frame(9))
        enter(machine, 1, flushes: true)
        #expect(read(machine, 0) == 9 && machine.state.pointee.tlb_misses == misses + 1)
        enter(machine, 3, flushes: false)
        #expect(read(machine, 0) == 3 && machine.state.pointee.tlb_misses == misses + 1)
    }

    /// More PCIDs than there is room for: each sees its own, in any order.
    @Test func manySpaces() {
        let machine = spaces(40)
        var dice = Dice(seed: 5)
        for number in UInt64(0)..<40 { Spaces.map(machine, number, 0, Self.frame(number)) }
        for _ in 0..<2000 {
            let number = UInt64(dice.below(40))
            enter(machine, number, flushes: dice.chance(3))
            #expect(read(machine, 0) == UInt32(number))
        }
    }

    /// (instruction, type of INVPCID, whether it takes a page of PCID 1, and a global page), executed in PCID 2.
    private static let flushes: [([UInt8], UInt64, Bool, Bool)] = [
        (invpcid, 0, true, false), (invpcid, 1, true, false), (invpcid, 2, true, true), (invpcid, 3, true, false),
        (invlpg, 0, false, true),
        // CR4.PGE off and on; CR4.PCIDE cannot go while CR3 has a PCID that is not 0 … but it can be cleared.
        ([0x0F, 0x20, 0xE0, 0x34, 0x80, 0x0F, 0x22, 0xE0, 0x34, 0x80, 0x0F, 0x22, 0xE0], 0, true, true),
        ([0x0F, 0x20, 0xE0, 0x0F, 0xBA, 0xF0, 17, 0x0F, 0x22, 0xE0], 0, true, true),
        // MOV to CR3 of the same PCID.
        ([0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8], 0, false, false),
    ]

    /// What must be gone is gone; what may stay is not looked at.
    @Test(arguments: flushes) func flushesOfOthers(_ code: [UInt8], type: UInt64, takes: Bool, takesGlobal: Bool) throws
    {
        for isGlobal in [false, true] where isGlobal ? takesGlobal : takes {
            let machine = spaces(2)
            let bits: UInt64 = isGlobal ? 0x107 : 7
            Spaces.map(machine, 0, 0, Self.frame(1), bits)
            #expect(read(machine, 0) == 1)
            enter(machine, 1, flushes: false)
            Spaces.map(machine, 0, 0, Self.frame(2), bits)
            machine.store(UInt64(1), at: Place.data)
            machine.store(Pages.base, at: Place.data + 8)
            #expect(try #require(run(machine, code, [2: type, 3: Pages.base, 6: Place.data])).vector == 3)
            if machine.state.pointee.cr4 & Self.pcide == 0 { machine.state.pointee.cr3 = Spaces.top(0) }
            if machine.state.pointee.cr4 & Self.pcide != 0 { enter(machine, 0, flushes: false) }
            #expect(read(machine, 0) == 2)
        }
    }

    /// `execute` without throwing all translations away first.
    private func run(_ machine: TestMachine, _ code: [UInt8], _ registers: [Int: UInt64] = [:]) -> Trapped? {
        // Code of its own for every call: what is there was never decoded.
        let place = Place.code + nextCode
        nextCodeOffset.value += 64
        machine.write(code + [0xCC], at: place)
        machine.state.setRegister(4, Place.userStack)
        for (number, value) in registers { machine.state.setRegister(number, value) }
        machine.state.pointee.rip = place
        return machine.run()
    }

    private final class Counter { var value: UInt64 = 0 }
    private let nextCodeOffset = Counter()
    private var nextCode: UInt64 { nextCodeOffset.value }

    /// A global page filled in one address space is one of all; INVLPG anywhere takes it everywhere.
    @Test func globalPages() throws {
        let machine = spaces(3)
        for number in UInt64(0)..<3 { Spaces.map(machine, number, 0, Self.frame(1), 0x103) }
        for number in UInt64(0)..<3 {
            enter(machine, number, flushes: false)
            #expect(read(machine, 0) == 1)
        }
        for number in UInt64(0)..<3 { Spaces.map(machine, number, 0, Self.frame(2), 0x103) }
        _ = try #require(run(machine, Self.invlpg, [3: Pages.base]))
        for number in [UInt64(0), 2, 1] {
            enter(machine, number, flushes: false)
            #expect(read(machine, 0) == 2)
        }
        // They outlive a flush of their address space.
        let misses = machine.state.pointee.tlb_misses
        enter(machine, 1, flushes: true)
        #expect(read(machine, 0) == 2 && machine.state.pointee.tlb_misses == misses)
    }

    // MARK: Large pages

    private static let large: [(Int, UInt64)] = [(1, 0x83), (1, 0x183), (2, 0x83), (2, 0x183)]

    /// INVLPG with any address of a large page takes all of it (SDM vol. 3A §4.10.2.3), its code too.
    @Test(arguments: large) func largePages(level: Int, bits: UInt64) throws {
        let machine = TestMachine(size: 8 << 20, isAlone: true)
        machine.enterPagedLong()
        // From frame 2 MiB on to 4 MiB: as a page of 2 MiB, or by the same offset inside one of 1 GiB.
        let first: UInt64 = 0x20_0000
        let entry = level == 1 ? Pages.directory : Pages.pointerTable
        let base = Pages.base + (level == 1 ? 0 : first)
        for page in UInt64(0)..<512 {
            machine.store(UInt32(page), at: first + page * 4096)
            machine.store(UInt32(page + 1000), at: 0x40_0000 + page * 4096)
            // MOV EAX, page; RET
            machine.write([0xB8, UInt8(page & 255), 1, 0, 0, 0xC3], at: first + page * 4096 + 64)
            machine.write([0xB8, UInt8(page & 255), 2, 0, 0, 0xC3], at: 0x40_0000 + page * 4096 + 64)
        }
        machine.store((level == 1 ? first : 0) | bits, at: entry)
        machine.processor.flushTLB()
        let pages: [UInt64] = [0, 1, 77, 300, 511]
        for page in pages {
            #expect(read(machine, page, base) == UInt32(page))
            #expect(call(machine, base + page * 4096 + 64) == 0x100 | page & 255)
        }
        // 1 GiB pages cannot start at 4 MiB: the new mapping of that size goes through 2 MiB pages.
        if level == 1 {
            machine.store(0x40_0000 | bits, at: entry)
        } else {
            machine.store(0x40_0000 | bits, at: Pages.directory + 8)
            machine.store(Pages.directory | 7, at: entry)
        }
        _ = try #require(run(machine, Self.invlpg, [3: base + 0x12_3456]))
        for page in pages {
            #expect(read(machine, page, base) == UInt32(page + 1000))
            #expect(call(machine, base + page * 4096 + 64) == 0x200 | page & 255)
        }
    }

    private func read(_ machine: TestMachine, _ page: UInt64, _ base: UInt64) -> UInt32? {
        machine.state.pointee.stop = UInt32(MARTLET_STOP_NONE)
        return load(machine.state, base + page * 4096, UInt32.self)
    }

    // MARK: Code

    private let caller: [UInt8] = [0xFF, 0xD3, 0xCC]

    /// What CALL to an address leaves in RAX. The call itself is always the same instruction.
    private func call(_ machine: TestMachine, _ address: UInt64) -> UInt64? {
        let place = Place.code + 0x2000
        if machine.load(place, as: UInt8.self) != 0xFF { machine.write(caller, at: place) }
        machine.state.setRegister(4, Place.userStack)
        machine.state.setRegister(3, address)
        machine.state.setRegister(0, .max)
        machine.state.pointee.rip = place
        guard let trapped = machine.run(), trapped.vector == 3 else { return nil }
        return machine.state.register(0)
    }

    private func writeCode(_ machine: TestMachine, frame: UInt64, value: UInt8) {
        machine.write([0xB8, value, 0, 0, 0, 0xC3], at: frame)
    }

    /// The same address leads to other code in each address space, also by what was remembered of jumps.
    @Test func codeOfSpaces() {
        let machine = spaces(3)
        for number in UInt64(0)..<3 {
            writeCode(machine, frame: Self.frame(number), value: UInt8(10 + number))
            Spaces.map(machine, number, 0, Self.frame(number), 3)
        }
        for _ in 0..<3 {
            for number in UInt64(0)..<3 {
                enter(machine, number, flushes: false)
                for _ in 0..<3 { #expect(call(machine, Pages.base) == 10 + number) }
            }
        }
        // And after a change, by each flush that must show it.
        writeCode(machine, frame: Self.frame(8), value: 88)
        Spaces.map(machine, 2, 0, Self.frame(8), 3)
        flushPage(machine.state, Pages.base)
        #expect(call(machine, Pages.base) == 88)
        Spaces.map(machine, 1, 0, Self.frame(8), 3)
        flushPage(machine.state, pcid: 2, Pages.base)
        enter(machine, 1, flushes: false)
        #expect(call(machine, Pages.base) == 88)
        Spaces.map(machine, 0, 0, Self.frame(8), 3)
        enter(machine, 0, flushes: true)
        #expect(call(machine, Pages.base) == 88)
    }

    /// Code that is written through a line of another address space, and executed in this one.
    @Test func codeWrittenElsewhere() {
        let machine = spaces(2)
        let s = machine.state
        Spaces.map(machine, 0, 0, Self.frame(1), 3)
        Spaces.map(machine, 1, 1, Self.frame(1), 3)
        for round in UInt8(1)...20 {
            enter(machine, 0, flushes: false)
            #expect(store(s, Pages.base, UInt64(0xC300_0000_00B8) | UInt64(round) << 8))
            enter(machine, 1, flushes: false)
            #expect(call(machine, Pages.address(1)) == UInt64(round))
            #expect(store(s, Pages.address(1) + 1, round &+ 100))
            #expect(call(machine, Pages.address(1)) == UInt64(round) + 100)
        }
    }

    /// A page fault takes along what is cached of its page (SDM vol. 3A §4.10.4.1).
    @Test func faultFlushesItsPage() throws {
        let machine = spaces(1)
        Spaces.map(machine, 0, 0, Self.frame(1), 1)
        #expect(read(machine, 0) == 1)
        Spaces.map(machine, 0, 0, Self.frame(2), 1)
        #expect(!store(machine.state, Pages.base, UInt32(5)))
        #expect(read(machine, 0) == 2)
    }

    /// KVM_SET_SREGS with PCIDs: nothing of before stays.
    @Test func specialRegisters() {
        let machine = spaces(2)
        for number in UInt64(0)..<2 { Spaces.map(machine, number, 0, Self.frame(number), 0x107) }
        #expect(read(machine, 0) == 0)
        var special = machine.processor.specialRegisters
        #expect(special.cr3 == Spaces.top(0) | 1 && special.cr4 & Self.pcide != 0)
        special.cr3 = Spaces.top(1) | 2
        machine.processor.specialRegisters = special
        #expect(read(machine, 0) == 1)
        #expect(machine.processor.specialRegisters.cr3 == Spaces.top(1) | 2)
        Spaces.map(machine, 0, 0, Self.frame(3), 7)
        enter(machine, 0, flushes: false)
        #expect(read(machine, 0) == 3)
        // And out of PCIDs, by an older state.
        special.cr4 &= ~Self.pcide
        special.cr3 = Spaces.top(1)
        machine.processor.specialRegisters = special
        #expect(read(machine, 0) == 1)
    }

    // MARK: At random

    /// Pages of five address spaces are mapped anew and flushed by whatever must do; all reads, writes and calls must
    /// then see the tables as they are.
    @Test func random() {
        for seed in FuzzSeeds(count: 4) { random(seed) }
    }

    private func random(_ seed: UInt64) {
        var dice = Dice(seed: seed)
        let spaceCount: UInt64 = seed % 2 == 0 ? 5 : 11
        let machine = spaces(spaceCount)
        let s = machine.state
        for number in UInt64(0)..<64 { writeCode(machine, frame: Self.frame(number), value: UInt8(number)) }
        var frames = [[UInt64?]](repeating: [UInt64?](repeating: nil, count: 8), count: Int(spaceCount))
        var current = 0
        func check(_ page: Int) {
            let expected = frames[current][page]
            let address = Pages.address(UInt64(page))
            guard let expected else {
                #expect(read(machine, UInt64(page)) == nil, "seed \(seed)")
                return
            }
            if dice.chance(2) {
                #expect(call(machine, address) == expected, "seed \(seed)")
            } else {
                s.pointee.stop = UInt32(MARTLET_STOP_NONE)
                #expect(load(s, address, UInt64.self) == 0xC300_0000_00B8 | expected << 8, "seed \(seed)")
            }
        }
        for _ in 0..<6000 {
            let space = dice.below(Int(spaceCount))
            let page = dice.below(8)
            switch dice.below(4) {
            case 0:
                let frame: UInt64? = dice.chance(8) ? nil : UInt64(dice.below(64))
                frames[space][page] = frame
                Spaces.map(machine, UInt64(space), UInt64(page), frame.map(Self.frame) ?? 0, frame == nil ? 0 : 3)
                switch dice.below(5) {
                case 0: flushPage(s, pcid: UInt32(space + 1), Pages.address(UInt64(page)))
                case 1: flushSpace(s, pcid: UInt32(space + 1))
                case 2: flushAllButGlobal(s)
                case 3:
                    enter(machine, UInt64(space), flushes: true)
                    current = space
                default:
                    enter(machine, UInt64(space), flushes: false)
                    current = space
                    flushPage(s, Pages.address(UInt64(page)) + 8)
                }
            case 1:
                enter(machine, UInt64(space), flushes: dice.chance(6))
                current = space
            default: check(page)
            }
        }
    }
}
