internal import CHost
import Testing

@testable import CPU

/// Page faults, accessed and dirty bits, page sizes and the TLB (SDM vol. 3A ch. 4).
@Suite struct SystemPagingTests {
    enum Access { case read, write, fetch }

    struct Rights: CustomTestStringConvertible {
        var entry: UInt64
        var access: Access
        var isUser = false
        var smep = false
        var smap = false
        var ac = false
        var noWriteProtect = false
        var noNX = false
        /// Nil: allowed.
        var error: UInt64?
        var testDescription: String { "\(self)" }
    }

    private static let nx = PageBits.noExecute

    /// SDM vol. 3A §4.6.1 and §4.7. Entry bits: P 1, W 2, U 4, RSVD: an address bit beyond the processor's 40.
    static let table: [Rights] = [
        Rights(entry: 0, access: .read, error: 0), Rights(entry: 0, access: .write, error: 2),
        Rights(entry: 0, access: .fetch, error: 0x10), Rights(entry: 0, access: .read, isUser: true, error: 4),
        Rights(entry: 0, access: .write, isUser: true, error: 6),
        Rights(entry: 0, access: .fetch, isUser: true, error: 0x14),
        Rights(entry: 0, access: .fetch, noNX: true, error: 0),
        Rights(entry: 0, access: .fetch, smep: true, noNX: true, error: 0x10),
        Rights(entry: 1, access: .read), Rights(entry: 1, access: .write, error: 3),
        Rights(entry: 1, access: .write, noWriteProtect: true), Rights(entry: 1, access: .fetch),
        Rights(entry: 3, access: .write), Rights(entry: 3, access: .read, isUser: true, error: 5),
        Rights(entry: 3, access: .write, isUser: true, error: 7),
        Rights(entry: 3, access: .fetch, isUser: true, error: 0x15),
        Rights(entry: 5, access: .read, isUser: true), Rights(entry: 5, access: .write, isUser: true, error: 7),
        Rights(entry: 5, access: .write, isUser: true, noWriteProtect: true, error: 7),
        Rights(entry: 7, access: .write, isUser: true), Rights(entry: 7, access: .fetch, isUser: true),
        Rights(entry: 7 | nx, access: .fetch, isUser: true, error: 0x15),
        Rights(entry: 7 | nx, access: .read, isUser: true),
        Rights(entry: 3 | nx, access: .fetch, error: 0x11), Rights(entry: 3 | nx, access: .read, noNX: true, error: 9),
        Rights(entry: 3 | nx, access: .write, isUser: true, noNX: true, error: 0xF),
        Rights(entry: 1 << 45 | 3, access: .read, error: 9),
        Rights(entry: 1 << 45 | 7, access: .fetch, isUser: true, error: 0x1D),
        Rights(entry: 7, access: .fetch), Rights(entry: 7, access: .fetch, smep: true, error: 0x11),
        Rights(entry: 3, access: .fetch, smep: true), Rights(entry: 7, access: .read),
        Rights(entry: 7, access: .read, smap: true, error: 1), Rights(entry: 7, access: .write, smap: true, error: 3),
        Rights(entry: 7, access: .read, smap: true, ac: true), Rights(entry: 7, access: .write, smap: true, ac: true),
        Rights(entry: 5, access: .write, smap: true, ac: true, error: 3),
        Rights(entry: 3, access: .write, smap: true),
        Rights(entry: 7, access: .read, isUser: true, smep: true, smap: true),
    ]

    @Test(arguments: table) func rights(_ row: Rights) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        let s = machine.state
        if row.smep { s.pointee.cr4 |= Control.smep }
        if row.smap { s.pointee.cr4 |= Control.smap }
        if row.noWriteProtect { s.pointee.cr0 &= ~Control.writeProtect }
        if row.noNX { s.pointee.efer &= ~Control.noExecute }
        machine.write([0xCC], at: Pages.frame)
        machine.map(0, to: Pages.frame, row.entry)
        if row.isUser { machine.setPrivilege(3) }
        s.setFlags(0x2 | (row.ac ? RFlags.alignmentCheck : 0))
        updateContext(s)
        let code: [UInt8] =
            switch row.access {
            case .read: [0x48, 0x8B, 0x03]
            case .write: [0x48, 0x89, 0x03]
            case .fetch: [0xFF, 0xE3]
            }
        let start = row.isUser ? Pages.userCode : Place.code
        // Twice: the second time with whatever the TLB has kept.
        for _ in 0..<2 {
            let trapped = try #require(
                machine.execute(code, at: start, [3: Pages.base, 0: 0x1111_11CC, 4: Place.userStack]))
            #expect(trapped.vector == (row.error == nil ? 3 : 14))
            #expect(row.error == nil || trapped.error == row.error)
            if row.error != nil {
                #expect(s.pointee.cr2 == Pages.base)
                #expect(trapped.rip == (row.access == .fetch ? Pages.base : start))
            }
            let set = machine.entry(0) & (PageBits.accessed | PageBits.dirty)
            let expected = row.error != nil ? 0 : PageBits.accessed | (row.access == .write ? PageBits.dirty : 0)
            #expect(set == expected)
            if row.isUser { machine.setPrivilege(3) }
            s.setFlags(0x2 | (row.ac ? RFlags.alignmentCheck : 0))
            updateContext(s)
        }
    }

    /// A write behind a read sets the dirty bit although the translation is known.
    @Test func dirtyAfterRead() throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Pages.frame, 3)
        _ = try #require(machine.execute([0x8B, 0x03], [3: Pages.base]))
        #expect(machine.entry(0) & 0x60 == 0x20)
        _ = try #require(machine.execute([0x8B, 0x03, 0x89, 0x03], [3: Pages.base]))
        #expect(machine.entry(0) & 0x60 == 0x60)
    }

    /// Tables in read-only memory are walked, and not written.
    @Test func tablesInROM() throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        let rom = GuardedMemory(size: 4096)
        rom.bytes.storeBytes(of: Pages.frame | 3, as: UInt64.self)
        machine.addSlots([
            martlet_slot(
                guest_physical: 0x1000_0000, size: 4096, host: rom.bytes.assumingMemoryBound(to: UInt8.self),
                page_index: 0, identifier: 1, flags: slotReadOnly)
        ])
        machine.store(UInt64(0x1000_0000 | 3), at: Pages.directory)
        machine.processor.flushTLB()
        let trapped = try #require(machine.execute([0x89, 0x03], [3: Pages.base, 0: 5]))
        #expect(trapped.vector == 3)
        #expect(machine.load(Pages.frame, as: UInt32.self) == 5)
        #expect(rom.bytes.load(as: UInt64.self) == Pages.frame | 3)
    }

    private static let flushes: [(UInt64, [UInt8], Bool)] = [
        (3, [], false), (3, [0x0F, 0x20, 0xDA, 0x0F, 0x22, 0xDA], true), (3, [0x0F, 0x01, 0x3B], true),
        (0x103, [0x0F, 0x20, 0xDA, 0x0F, 0x22, 0xDA], false), (0x103, [0x0F, 0x01, 0x3B], true),
        // CR4.PGE off and on.
        (0x103, [0x0F, 0x20, 0xE2, 0x80, 0xF2, 0x80, 0x0F, 0x22, 0xE2, 0x80, 0xF2, 0x80, 0x0F, 0x22, 0xE2], true),
    ]

    /// (bits, instructions between two reads, whether the second one sees the changed table)
    @Test(arguments: flushes)
    func staleTranslations(bits: UInt64, between: [UInt8], isSeen: Bool) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.store(UInt32(1), at: Pages.frame)
        machine.store(UInt32(2), at: Pages.frame + 4096)
        machine.map(0, to: Pages.frame, bits)
        // Read, change the table itself, do something, read again.
        let code: [UInt8] = [0x8B, 0x03, 0x81, 0x07, 0, 0x10, 0, 0] + between + [0x8B, 0x0B]
        _ = try #require(machine.execute(code, [3: Pages.base, 7: Pages.table]))
        #expect(machine.state.register(0) == 1)
        #expect(machine.state.register(1) == (isSeen ? 2 : 1))
    }

    private static let large: [(Int, UInt64, UInt64?)] = [
        (1, 0, nil), (2, 0, nil), (1, 1 << 13, 9), (2, 1 << 21, 9), (1, 1 << 12, nil),
    ]

    /// (level of the leaf: 1 is 2 MiB, 2 is 1 GiB; extra bits; error)
    @Test(arguments: large)
    func largePages(level: Int, extra: UInt64, error: UInt64?) throws {
        let machine = TestMachine(size: 0x40_0000)
        machine.enterPagedLong()
        machine.store(
            UInt64(0x20_0000) * (level == 1 ? 1 : 0) | 0x83 | extra,
            at: level == 1 ? Pages.directory : Pages.pointerTable)
        machine.processor.flushTLB()
        let offset: UInt64 = level == 1 ? 0x12_3450 : 0x32_3450
        machine.store(UInt32(0xABCD), at: 0x32_3450)
        let trapped = try #require(machine.execute([0x8B, 0x03], [3: Pages.base + offset]))
        #expect(trapped.vector == (error == nil ? 3 : 14) && trapped.error == error)
        if error == nil { #expect(machine.state.register(0) == 0xABCD) }
    }

    /// 32-bit paging: 4 KiB, 4 MiB, PSE off; and PAE with 2 MiB.
    @Test(arguments: ["4K", "4M", "4M without PSE", "PAE"]) func legacyPaging(_ kind: String) throws {
        let machine = TestMachine(size: 0x80_0000)
        machine.enterProtected()
        let s = machine.state
        for index in UInt64(0)..<1024 { machine.store(UInt32(0), at: 0x2_0000 + index * 4) }
        machine.store(UInt32(0xABCD), at: 0x62_3450)
        var isMapped = true
        switch kind {
        case "PAE":
            machine.store(UInt64(0x2_1001), at: 0x2_0000)
            for index in UInt64(0)..<512 { machine.store(index << 21 | 0x83, at: 0x2_1000 + index * 8) }
            machine.store(UInt64(0x60_0083), at: 0x2_1000 + 8 * 64)
            s.pointee.cr4 |= Control.physicalAddressExtension
            machine.store(UInt32(0xABCD), at: 0x62_3450)
        default:
            for index in UInt64(0)..<1024 { machine.store(UInt32(index << 12) | 3, at: 0x2_1000 + index * 4) }
            machine.store(UInt32(0x2_1003), at: 0x2_0000)
            machine.store(UInt32(kind == "4K" ? 0x2_2003 : 0x40_0083), at: 0x2_0000 + 4 * 32)
            for index in UInt64(0)..<1024 { machine.store(UInt32(0), at: 0x2_2000 + index * 4) }
            machine.store(UInt32(0x62_3003), at: 0x2_2000 + 4 * 0x23)
            if kind == "4M" { s.pointee.cr4 |= Control.pageSizeExtensions }
            // Without PSE bit 7 means nothing, and the entry leads to a table of zeros.
            isMapped = kind != "4M without PSE"
        }
        s.pointee.cr3 = 0x2_0000
        s.pointee.cr0 |= Control.paging
        machine.processor.flushTLB()
        let linear: UInt64 = kind == "4K" || kind == "PAE" ? 0x802_3450 : 0x822_3450
        let trapped = try #require(machine.execute([0x8B, 0x03], [3: linear]))
        #expect(trapped.vector == (isMapped ? 3 : 14))
        if isMapped { #expect(s.register(0) == 0xABCD) } else { #expect(s.pointee.cr2 == linear && trapped.error == 0) }
    }

    // MARK: Accesses and instructions over page boundaries

    /// (code, whether it writes its own frame on the page)
    private static let crossing: [([UInt8], Bool)] = [
        ([0x48, 0x89, 0x03], false), ([0x48, 0x01, 0x03], false), ([0x48, 0x87, 0x03], false),
        ([0xF0, 0x48, 0x0F, 0xB1, 0x03], false), ([0x0F, 0x11, 0x03], false), ([0x48, 0xAB], false),
        ([0x48, 0x8D, 0x63, 8, 0x50], true), ([0x48, 0x8D, 0x63, 8, 0xE8, 0, 0, 0, 0], true),
    ]

    /// Nothing changes when the second page is missing; CR2 is where it starts.
    @Test(arguments: crossing) func missingSecondPage(_ code: [UInt8], usesStack: Bool) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Pages.frame, 3)
        machine.useStackTable(for: [14])
        machine.store(UInt64(0x7777_7777_7777_7777), at: Pages.frame + 4088)
        let place = Pages.address(1) - 5
        let trapped = try #require(machine.execute(code, [3: place, 7: place, 0: 0x7777, 4: Place.userStack]))
        #expect(trapped.vector == 14)
        #expect(trapped.error == 2)
        #expect(machine.state.pointee.cr2 == Pages.address(1))
        #expect(trapped.rsp == (usesStack ? place + 8 : Place.userStack))
        if !usesStack { #expect(machine.load(Pages.frame + 4088, as: UInt64.self) == 0x7777_7777_7777_7777) }
    }

    /// A fault in the middle of REP MOVS and REP STOS leaves the registers at the element that faulted, and the
    /// instruction goes on when the page is there. With SCAS the flags are of the last comparison.
    private static let repeats: [([UInt8], UInt64, UInt64)] = [
        ([0xF3, 0xA4], 1, 16), ([0xF3, 0x48, 0xA5], 8, 2), ([0xF3, 0xAA], 1, 16), ([0xF3, 0x48, 0xAB], 8, 2),
        ([0xF3, 0xAE], 1, 16),
    ]

    @Test(arguments: repeats) func faultInRepeat(_ code: [UInt8], size: UInt64, done: UInt64) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Pages.frame, 3)
        for offset in stride(from: UInt64(0), to: 8192, by: 8) { machine.store(UInt64(0), at: Pages.frame + offset) }
        // The handler drops the error code and returns.
        machine.write([0xF4, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF], at: Place.handlers + 14 * 16)
        let s = machine.state
        let start = Pages.address(1) - 16
        let trapped = try #require(
            machine.execute(code, [7: start, 6: Place.data, 1: 40, 0: 0, 4: Place.userStack]))
        #expect(trapped.vector == 14 && trapped.rip == Place.code && s.pointee.cr2 == Pages.address(1))
        #expect(s.register(7) == Pages.address(1) && s.register(1) == 40 - done)
        machine.map(1, to: Pages.frame + 4096, 3)
        let end = try #require(machine.run())
        #expect(end.vector == 3 && s.register(1) == 0 && s.register(7) == start + 40 * size)
    }

    /// An instruction over a boundary whose second page is missing, then another one.
    @Test func instructionOverBoundary() throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Pages.frame, 3)
        machine.map(1, to: Pages.frame + 4096, 2)
        machine.write([0xB8, 1, 2], at: Pages.frame + 4093)
        machine.write([3, 4, 0xCC], at: Pages.frame + 4096)
        machine.write([0xF4, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF], at: Place.handlers + 14 * 16)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Pages.base + 4093
        let trapped = try #require(machine.run())
        #expect(trapped.vector == 14 && trapped.error == 0x10 && trapped.rip == Pages.base + 4093)
        #expect(s.pointee.cr2 == Pages.address(1))
        machine.map(1, to: Pages.frame + 4096, 3)
        #expect(machine.run()?.vector == 3)
        #expect(s.register(0) == 0x0403_0201)
        // Its tail changes without a flush, by the host, and then by the guest, which changes its head too.
        machine.write([5, 6, 0xCC], at: Pages.frame + 4096)
        machine.processor.noteMemoryWritten(at: Pages.frame + 4096, count: 3)
        s.pointee.rip = Pages.base + 4093
        #expect(machine.run()?.vector == 3)
        #expect(s.register(0) == 0x0605_0201)
        // mov byte [rdi], cl; mov byte [rdi + 1], dl; mov byte [rsi], bl; jmp rsi
        let rewriting: [UInt8] = [0x88, 0x0F, 0x88, 0x57, 1, 0x88, 0x1E, 0xFF, 0xE6]
        for value in UInt64(7)..<12 {
            let opcode: UInt64 = value == 10 ? 0xBD : 0xB8
            let end = machine.execute(
                rewriting,
                [7: Pages.address(1), 6: Pages.base + 4093, 1: value, 2: value + 1, 3: opcode, 4: Place.userStack])
            #expect(end?.vector == 3)
            #expect(s.register(opcode == 0xBD ? 5 : 0) == (value + 1) << 24 | value << 16 | 0x0201)
        }
        // Its second page is another one now.
        machine.write([0x0C, 0x0D, 0xCC], at: Pages.frame + 8192)
        machine.map(1, to: Pages.frame + 8192, 3)
        // invlpg [rdi]; jmp rsi
        let mapped = machine.execute(
            [0x0F, 0x01, 0x3F, 0xFF, 0xE6], [7: Pages.address(1), 6: Pages.base + 4093, 4: Place.userStack])
        #expect(mapped?.vector == 3 && s.register(0) == 0x0D0C_0201)
    }

    private static let nonCanonicalForms: [([UInt8], UInt8)] = [
        ([0x48, 0x8B, 0x03], 13), ([0x48, 0x8B, 0x45, 0x00], 12), ([0x48, 0x89, 0x45, 0x00], 12),
        ([0x48, 0x8B, 0x04, 0x24], 12), ([0x50], 12), ([0x58], 12), ([0xC3], 12), ([0xC9], 12), ([0xFF, 0xE3], 13),
        ([0x48, 0xFF, 0x45, 0x00], 12), ([0x9C], 12), ([0xE8, 0, 0, 0, 0], 12),
    ]

    /// (instruction, exception): non-canonical addresses by DS are #GP, by SS #SS.
    @Test(arguments: nonCanonicalForms) func nonCanonical(_ code: [UInt8], vector: UInt8) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        let bad: UInt64 = 0x8000_0000_0000
        machine.useStackTable(for: [3, 12, 13])
        let trapped = try #require(machine.execute(code, [3: bad, 4: bad + 8, 5: bad]))
        #expect(trapped.vector == vector)
        #expect(trapped.error == 0)
        #expect(trapped.rip == Place.code)
    }
}
