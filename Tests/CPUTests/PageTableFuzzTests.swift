internal import CHost
internal import Fuzzing
internal import Glibc
import Testing

@testable import CPU

/// A machine whose page tables are random, and a program that reads, writes, calls and flushes through them.
///
/// Three entries of the top table lead to five pages of random entries, which lead to each other, to data, code,
/// devices and nowhere; one entry leads to the top table itself. The program runs at privilege 0 or 3 from a mapping
/// of its own; each exception goes on with its next slot of 16 bytes, whose address it keeps in R15.
private final class PageTableMachine {
    enum Layout {
        static let roots: [UInt64] = [Place.tables, 0x7_C000]
        /// Tables of the program's user mapping, by 2 MiB pages.
        static let userPointers: UInt64 = 0x7_0000
        static let userDirectory: UInt64 = 0x7_1000
        static let tables: UInt64 = 0x8_0000
        static let tableCount = 5
        static let data: UInt64 = 0x9_0000
        static let functions: UInt64 = 0xA_0000
        static let readOnly: UInt64 = 0xF_0000_0000
        static let values: UInt64 = Place.code + 0x8000
        static let valueCount = 256
        static let slotCount = 60
    }

    let machine = TestMachine(size: 2 << 20)
    private let rom = GuardedMemory(size: 0x4000)
    private var dice = Dice(seed: 1)
    private var isUser = false
    private(set) var counters: (instructions: UInt64, faults: UInt64) = (0, 0)

    init(_ execution: Execution) {
        machine.processor.execution = execution
        machine.state.pointee.counts_instructions = 1
        mprotect(rom.bytes, rom.size, PROT_READ)
        // A device that answers with its address: the same for both.
        machine.state.pointee.hooks.mmio = { _, address, _, isWrite, value in
            if isWrite == 0 { value.pointee = address &* 0x9E37_79B9_7F4A_7C15 }
            return 0
        }
    }

    private func setUp(_ seed: UInt64) {
        dice = Dice(seed: seed)
        isUser = dice.chance(3)
        machine.addSlots([
            martlet_slot(
                guest_physical: Layout.readOnly, size: 0x4000, host: rom.bytes.assumingMemoryBound(to: UInt8.self),
                page_index: 0, identifier: 1, flags: 2)
        ])
        machine.enterLong(userFrom: .max)
        fillTables()
        fillHandlers()
        fillFunctions()
        fillValues()
        let start = fillProgram()
        let s = machine.state
        for number in 0..<16 { s.setRegister(number, dice.pick(pointers)) }
        s.setRegister(14, 60)
        s.setRegister(4, isUser ? alias(Place.userStack) : Place.userStack)
        s.setFlags(2 | (dice.chance(2) ? RFlags.alignmentCheck : 0) | RFlags.interrupt)
        s.pointee.cr4 |= dice.next() & flagsOfCR4
        machine.setPrivilege(isUser ? 3 : 0)
        s.pointee.rip = start
        updateContext(s)
        machine.processor.flushTLB()
    }

    private let flagsOfCR4 = Control.globalPages | Control.smep | Control.smap

    /// An address of the first 2 MiB in the program's mapping.
    private func alias(_ address: UInt64) -> UInt64 { isUser ? (2 << 39) + address : address }

    // MARK: Tables

    private func entry() -> UInt64 {
        let table = Layout.tables + UInt64(dice.below(Layout.tableCount)) << 12
        let data = Layout.data + UInt64(dice.below(16)) << 12
        let frame: UInt64 =
            switch dice.below(40) {
            case 0...13: table
            case 14...23: data
            case 24...33: Layout.functions + UInt64(dice.below(4)) << 12
            case 34: 0xFEE0_0000 + UInt64(dice.below(4)) << 12
            case 35: Layout.readOnly + UInt64(dice.below(6)) << 12
            case 36: Place.code
            case 37: dice.pick(Layout.roots)
            case 38: UInt64(dice.below(3)) << 21
            default: dice.next() & PageBits.frame
            }
        var bits = dice.next() & 0xE78 | PageBits.present | PageBits.writable | PageBits.user
        if dice.chance(16) { bits &= ~PageBits.present }
        if dice.chance(8) { bits &= ~PageBits.writable }
        if dice.chance(isUser ? 12 : 2) { bits &= ~PageBits.user }
        if dice.chance(12) { bits |= PageBits.large }
        if dice.chance(6) { bits |= PageBits.global }
        if dice.chance(12) { bits |= PageBits.noExecute }
        if dice.chance(40) { bits |= 1 << UInt64(40 + dice.below(12)) }
        return frame | bits
    }

    private func fillTables() {
        for index in UInt64(0)..<UInt64(Layout.tableCount * 512) {
            machine.store(entry(), at: Layout.tables + index * 8)
        }
        for index in UInt64(0)..<512 {
            machine.store(index == 0 ? Layout.userDirectory | 7 : 0, at: Layout.userPointers + index * 8)
            machine.store(index < 1 ? index << 21 | 0x87 : 0, at: Layout.userDirectory + index * 8)
        }
        for root in Layout.roots {
            for index in UInt64(1)..<512 { machine.store(UInt64(0), at: root + index * 8) }
            if root != Place.tables { machine.store(machine.load(Place.tables, as: UInt64.self), at: root) }
            machine.store(Layout.userPointers | 7, at: root + 2 * 8)
            for window in Self.windows { machine.store(entry() | 1, at: root + (window >> 39 & 511) * 8) }
            machine.store(root | 7, at: root + 510 * 8)
        }
    }

    private static let windows: [UInt64] = [1 << 39, 0xFFFF_8000_0000_0000, 0xFFFF_FF80_0000_0000]

    /// An address in a window: only few indexes, so that pages are met again, and share lines of the TLB.
    private func windowAddress() -> UInt64 {
        let window = dice.chance(10) ? 0xFFFF_FF00_0000_0000 : dice.pick(Self.windows)
        let last = UInt64(dice.pick([0, 1, 2, 511]))
        let page = window | UInt64(dice.below(2)) << 30 | UInt64(dice.pick([0, 8])) << 21 | last << 12
        return page &+ (dice.chance(3) ? 0x1000 - UInt64(dice.below(16)) : UInt64(dice.below(0x1000)))
    }

    private var pointers: [UInt64] {
        [
            windowAddress(), windowAddress(), windowAddress(), windowAddress(), alias(Layout.data), Layout.tables,
            0x7FFF_FFFF_FFFC, 0xFFFF_7FFF_FFFF_FFFE,
        ]
    }

    // MARK: Code

    private static let faultsWithError: Set<UInt64> = [8, 10, 11, 12, 13, 14, 17]

    private func fillHandlers() {
        for vector in UInt64(0)..<256 {
            // mov [rsp], r15; iretq, behind the error code where there is one.
            var code: [UInt8] = [0x4C, 0x89, 0x3C, 0x24, 0x48, 0xCF]
            if Self.faultsWithError.contains(vector) { code = [0x48, 0x83, 0xC4, 8] + code }
            if vector == 3 { code = [0xF4] }
            if vector == 0x50 { code = [0x48, 0xCF] }
            machine.write(code, at: Place.handlers + vector * 16)
        }
    }

    private func fillFunctions() {
        let pieces: [[UInt8]] = [
            [0x48, 0xFF, 0xC0], [0x48, 0x01, 0xD8], [0x48, 0x8B, 0x13], [0x48, 0x89, 0x06], [0xC3], [0xC3],
            [0x48, 0x8D, 0x05, 0, 0, 0, 0], [0xB8, 1, 2, 3, 4], [0x0F, 0x10, 0x03], [0x90],
        ]
        var address = Layout.functions
        while address < Layout.functions + 0x4000 - 16 {
            let piece = dice.pick(pieces)
            machine.write(piece, at: address)
            address += UInt64(piece.count)
        }
    }

    /// What the program takes into registers: pointers, entries, roots, values of CR4, descriptors of INVPCID.
    private func fillValues() {
        for index in 0..<Layout.valueCount {
            let value: UInt64 =
                switch index % 8 {
                case 0, 1, 2, 3: windowAddress()
                case 4: entry()
                case 5:
                    dice.pick(Layout.roots) | (dice.chance(2) ? UInt64(dice.below(12)) : 0) | UInt64(dice.below(2))
                        << 63
                case 6: 0x620 | dice.next() & (flagsOfCR4 | Control.processContextIdentifiers)
                default: UInt64(dice.below(12))
                }
            machine.store(value, at: Layout.values + UInt64(index) * 8)
        }
    }

    /// One slot's instructions at `address`, at most nine bytes.
    private func piece(at address: UInt64) -> [UInt8] {
        let register = UInt8(dice.pick([0, 1, 2, 3, 6, 7]))
        let pointer = UInt8(dice.pick([3, 6, 7]))
        let small = dice.byte() & 0x7F
        func value(_ kind: Int, into register: UInt8) -> [UInt8] {
            let index = dice.below(Layout.valueCount / 8) * 8 + kind
            let target = Layout.values + UInt64(index) * 8
            return [0x48, 0x8B, register << 3 | 5] + IntegerEncoder.little(target &- (address &+ 7), 4)
        }
        switch dice.below(24) {
        case 0...4: return value(dice.below(4), into: pointer)
        case 5: return value(4, into: 0)
        case 6: return value(5, into: 1)
        case 7: return value(6, into: 2)
        case 8, 9: return [0x48, 0x8B, 0x40 | register << 3 | pointer, small]
        case 10: return [0x48, 0x89, 0x40 | register << 3 | pointer, small]
        case 11: return [0x01, 0x40 | register << 3 | pointer, small]
        case 12: return [0x0F, 0x11, 0x40 | pointer, small, 0x0F, 0x10, 0x40 | pointer, small &+ 8]
        case 13: return [0xFF, 0xD0 | pointer]
        // mov [a random entry's place], rax
        case 14, 15:
            let index = UInt64(dice.pick([0, 1, 2, 8, 511]))
            let place = Layout.tables + UInt64(dice.below(Layout.tableCount)) << 12 + index * 8
            return [0x48, 0x89, 0x04, 0x25] + IntegerEncoder.little(place, 4)
        case 16: return [0x0F, 0x01, 0x38 | pointer]
        case 17: return [0x0F, 0x22, 0xD9]
        case 18: return [0x0F, 0x22, 0xE2]
        case 19: return [0x0F, 0x01, dice.chance(2) ? 0xCA : 0xCB]
        // mov ecx, a few; rep movsb or stosb
        case 20: return [0xB9, small, 0, 0, 0, 0xF3, dice.pick([0xA4, 0xAA])]
        // mov eax, 0 to 3; invpcid rax, [rbx]
        case 21: return [0x6A, small & 3, 0x58, 0x66, 0x0F, 0x38, 0x82, 0x03]
        case 22: return [0xFF, 0x70 | pointer, small, 0x58]
        default: return [0xF0, 0x48, 0x0F, 0xB1, 0x40 | register << 3 | pointer, small]
        }
    }

    /// Returns where it begins.
    private func fillProgram() -> UInt64 {
        for slot in 0..<Layout.slotCount {
            let place = Place.code + UInt64(slot) * 16
            // lea r15, [the next slot]
            var bytes: [UInt8] = [0x4C, 0x8D, 0x3D, 9, 0, 0, 0]
            bytes += piece(at: place + 7)
            while bytes.count < 16 { bytes.append(0x90) }
            machine.write(Array(bytes.prefix(16)), at: place)
        }
        // lea rsp, [its place]; dec r14; jnz; int3
        let end = Place.code + UInt64(Layout.slotCount) * 16
        machine.write([0x48, 0x8D, 0x25], at: end)
        machine.store(UInt32(truncatingIfNeeded: Place.userStack &- (end + 7)), at: end + 3)
        machine.write([0x49, 0xFF, 0xCE, 0x0F, 0x85], at: end + 7)
        machine.store(UInt32(truncatingIfNeeded: Place.code &- (end + 16)), at: end + 12)
        machine.write([0xCC], at: end + 16)
        return alias(Place.code)
    }

    // MARK: Running

    /// True: it ran to its end.
    func scenario(_ seed: UInt64) -> Bool {
        setUp(seed)
        let s = machine.state
        let before = (s.pointee.instruction_count, s.pointee.exceptions_delivered)
        defer {
            counters.instructions &+= s.pointee.instruction_count &- before.0
            counters.faults &+= s.pointee.exceptions_delivered &- before.1
        }
        var rounds = 0
        // An end for guests that come to none; a slow host (under AddressSanitizer, or busy) gets little done in a round.
        while rounds < 40 || (rounds < 1000 && s.pointee.instruction_count &- before.0 < 40_000) {
            rounds += 1
            switch machine.runProcessor() {
            case .attention:
                martlet_clear_attention(s)
                if machine.processor.canAcceptInterrupt { machine.processor.deliverInterrupt(0x50) }
            case .halt: return s.pointee.rip == Place.handlers + 3 * 16 + 1
            default: return false
            }
        }
        return false
    }
}

/// Random page tables, in lockstep: both ways of executing see the same translations, faults, accessed and dirty bits,
/// also where the guest changes tables without a flush. With MARTLET_TEST_TRANSLATOR or MARTLET_TEST_INTERPRETER one of
/// them alone: no table leads it out of its memory.
@Suite(.serialized) struct PageTableFuzzTests {
    private static func execution(threshold: Int32) -> Execution {
        if getenv("MARTLET_TEST_INTERPRETER") != nil { return .interpreter }
        return getenv("MARTLET_TEST_TRANSLATOR") != nil
            ? .translator(threshold: threshold) : .lockstep(threshold: threshold)
    }

    @Test func randomTables() {
        var machine = PageTableMachine(Self.execution(threshold: 1))
        var ender = AttentionThread(machine.machine.state)
        var (scenarios, completed, differences) = (0, 0, 0)
        var totals: (instructions: UInt64, faults: UInt64) = (0, 0)
        func change() {
            ender.stop()
            totals.instructions &+= machine.counters.instructions
            totals.faults &+= machine.counters.faults
            machine = PageTableMachine(Self.execution(threshold: scenarios / 100 % 2 == 0 ? 1 : 4))
            ender = AttentionThread(machine.machine.state)
        }
        for seed in FuzzSeeds(seconds: 4) {
            if machine.scenario(seed) { completed += 1 }
            if !machine.machine.processor.checkLockstep() {
                Issue.record("seed \(seed): \(machine.machine.processor.lockstepReport ?? "")")
                differences += 1
                if differences == 3 { break }
                change()
            }
            scenarios += 1
            if scenarios % 100 == 0 { change() }
        }
        change()
        ender.stop()
        // Otherwise it tests nothing.
        if scenarios > 50 {
            #expect(completed > scenarios / 4)
            #expect(totals.faults > UInt64(scenarios) * 20 && totals.instructions > UInt64(scenarios) * 500)
        }
        print(
            "\(scenarios) machines, \(completed) to the end, \(totals.faults) faults, \(totals.instructions) instructions"
        )
    }
}
