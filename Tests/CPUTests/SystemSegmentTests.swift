internal import CHost
import Testing

@testable import CPU

/// Segments, gates and the ways between privileges (SDM vol. 3A ch. 5; vol. 2).
@Suite struct SystemSegmentTests {
    private func protected(_ cpl: UInt8 = 0) -> TestMachine {
        let machine = TestMachine()
        machine.enterProtected()
        machine.setPrivilege(cpl)
        return machine
    }

    // MARK: Loading and using data segments

    struct Load: CustomTestStringConvertible {
        var what: String
        var rights: UInt8
        var flags: UInt8 = 4
        var limit: UInt32 = 0xFFF
        /// Segment register by encoding.
        var register: UInt8 = 3
        var cpl: UInt8 = 0
        var rpl: UInt16 = 0
        /// Offset and whether the access through the segment writes; nil: the load alone.
        var offset: UInt64?
        var writes = false
        var vector: UInt8 = 3
        var hasSelectorError = false
        var testDescription: String { what }
    }

    static let loads: [Load] = [
        Load(what: "writable data", rights: 0x93, offset: 0xFFC),
        Load(what: "beyond the limit", rights: 0x93, offset: 0xFFD, vector: 13),
        Load(what: "beyond the limit by granularity", rights: 0x93, flags: 0xC, limit: 1, offset: 0x1FFD, vector: 13),
        Load(what: "inside the limit by granularity", rights: 0x93, flags: 0xC, limit: 1, offset: 0x1FFC),
        Load(what: "write to read-only data", rights: 0x91, offset: 0, writes: true, vector: 13),
        Load(what: "read of read-only data", rights: 0x91, offset: 0),
        Load(what: "read of readable code", rights: 0x9B, offset: 0),
        Load(what: "write to code", rights: 0x9B, offset: 0, writes: true, vector: 13),
        Load(what: "execute-only code", rights: 0x99, vector: 13, hasSelectorError: true),
        Load(what: "not present", rights: 0x13, vector: 11, hasSelectorError: true),
        Load(what: "system descriptor", rights: 0x82, vector: 13, hasSelectorError: true),
        Load(what: "inner data for user code", rights: 0x93, cpl: 3, rpl: 3, vector: 13, hasSelectorError: true),
        Load(what: "user data for inner code", rights: 0xF3, offset: 0),
        Load(what: "requested privilege too low", rights: 0x93, rpl: 3, vector: 13, hasSelectorError: true),
        Load(what: "conforming code for user code", rights: 0x9F, cpl: 3, rpl: 3, offset: 0),
        Load(what: "expand-down, below", rights: 0x97, offset: 0xFFC, vector: 13),
        Load(what: "expand-down, above", rights: 0x97, offset: 0x1000),
        Load(what: "expand-down, top of 64 KiB", rights: 0x97, flags: 0, offset: 0xFFFD, vector: 13),
        Load(what: "stack: writable data", rights: 0x93, flags: 0xC, limit: 0xF_FFFF, register: 2),
        Load(what: "stack: read-only", rights: 0x91, register: 2, vector: 13, hasSelectorError: true),
        Load(what: "stack: code", rights: 0x9B, register: 2, vector: 13, hasSelectorError: true),
        Load(what: "stack: not present", rights: 0x13, register: 2, vector: 12, hasSelectorError: true),
        Load(what: "stack: other privilege", rights: 0xF3, register: 2, vector: 13, hasSelectorError: true),
        Load(what: "stack: other request", rights: 0x93, register: 2, rpl: 1, vector: 13, hasSelectorError: true),
    ]

    @Test(arguments: loads) func loadAndUse(_ row: Load) throws {
        let machine = protected(row.cpl)
        let selector = Selector.free | row.rpl
        machine.setDescriptor(selector, TestMachine.descriptor(limit: row.limit, rights: row.rights, flags: row.flags))
        // MOV sreg, AX, then MOV ECX, [EBX] or MOV [EBX], ECX by DS.
        var code: [UInt8] = [0x8E, 0xC0 | row.register << 3]
        if row.offset != nil { code += [row.writes ? 0x89 : 0x8B, 0x0B] }
        let trapped = try #require(machine.execute(code, [0: UInt64(selector), 3: row.offset ?? 0]))
        #expect(trapped.vector == row.vector)
        if row.vector != 3 { #expect(trapped.error == (row.hasSelectorError ? UInt64(selector & 0xFFFC) : 0)) }
        let isLoaded = row.vector == 3 || row.offset != nil
        #expect(machine.state.segment(Int(row.register)).pointee.selector == selector || !isLoaded)
        // The accessed bit is in memory.
        let rights = machine.load(Place.gdt + UInt64(Selector.free) + 5, as: UInt8.self)
        #expect(rights & 1 == (isLoaded ? 1 : row.rights & 1))
    }

    @Test func nullSelectors() throws {
        let machine = protected()
        #expect(machine.execute([0x8E, 0xD8], [0: 3])?.vector == 3)
        let used = try #require(machine.execute([0x8B, 0x03], [3: Place.data]))
        #expect(used.vector == 13)
        #expect(machine.execute([0x8E, 0xD0], [0: 0])?.vector == 13)
        #expect(machine.execute([0x8E, 0xC8], [0: 8])?.vector == 6)
        // Beyond the table.
        let beyond = try #require(machine.execute([0x8E, 0xD8], [0: 0x100]))
        #expect(beyond.vector == 13)
        #expect(beyond.error == 0x100)
    }

    // MARK: Gates

    /// A call gate from ring 3 to ring 0 with two parameters, and the far return that drops them.
    @Test func callGate32() throws {
        let machine = protected(3)
        let selector = Selector.free | 3
        machine.setDescriptor(
            selector,
            UInt64(Place.data & 0xFFFF) | UInt64(Selector.kernelCode32) << 16 | 2 << 32 | 0xEC << 40
                | (Place.data >> 16) << 48)
        // MOV EAX, [ESP+8]; MOV EDX, CS; RETF 8.
        machine.write([0x8B, 0x44, 0x24, 8, 0x8C, 0xCA, 0xCA, 8, 0], at: Place.data)
        // PUSH 7; PUSH 9; CALL FAR; MOV ECX, CS.
        let code: [UInt8] =
            [0x6A, 7, 0x6A, 9, 0x9A, 0, 0, 0, 0, UInt8(selector & 0xFF), 0, 0x8C, 0xC9]
        let trapped = try #require(machine.execute(code))
        let s = machine.state
        #expect(trapped.vector == 3)
        #expect(trapped.rsp == Place.userStack)
        #expect(trapped.cs == UInt64(Selector.userCode32))
        #expect(s.register(0) == 9)
        #expect(s.register(2) == UInt64(Selector.kernelCode32))
        #expect(s.register(1) == UInt64(Selector.userCode32))
    }

    /// (gate's rights, target selector, vector, error code)
    private static let badGates: [(UInt64, UInt16, UInt8, UInt64)] = [
        (0x8C, Selector.kernelCode32, 13, 0x60), (0x6C, Selector.kernelCode32, 11, 0x60), (0xEC, 0, 13, 0),
        (0xEC, Selector.kernelData, 13, 0x10), (0xE5, 0x40, 13, 0x60), (0xEC, 0xF8, 13, 0xF8),
    ]

    @Test(arguments: badGates) func badCallGate(rights: UInt64, target: UInt16, vector: UInt8, error: UInt64) throws {
        let machine = protected(3)
        machine.setDescriptor(Selector.free, UInt64(target) << 16 | rights << 40)
        machine.setDescriptor(0xF8, 0)
        let trapped = try #require(machine.execute([0x9A, 0, 0, 0, 0, UInt8(Selector.free | 3), 0]))
        #expect(trapped.vector == vector)
        #expect(trapped.error == error)
        #expect(trapped.rip == Place.code)
        #expect(trapped.rsp == Place.userStack)
    }

    /// A 64-bit call gate from ring 3, and RETFQ back.
    @Test func callGate64() throws {
        let machine = TestMachine()
        machine.enterLong()
        machine.setPrivilege(3)
        let low = (Place.data & 0xFFFF) | UInt64(Selector.kernelCode64) << 16 | 0xEC << 40 | (Place.data >> 16) << 48
        machine.setDescriptor(Selector.free, low)
        machine.setDescriptor(Selector.free + 8, 0)
        machine.write([0x8C, 0xC8, 0x8C, 0xD2, 0x48, 0xCB], at: Place.data)
        machine.store(UInt64(Selector.free | 3) << 32, at: Place.data + 64)
        let trapped = try #require(machine.execute([0xFF, 0x1B], [3: Place.data + 64]))
        #expect(trapped.vector == 3)
        #expect(trapped.rsp == Place.userStack)
        #expect(machine.state.register(0) == UInt64(Selector.kernelCode64))
        #expect(machine.state.register(2) == 0)
        #expect(trapped.cs == UInt64(Selector.userCode64))
    }

    /// Far jumps: (descriptor's rights, requested privilege, vector).
    private static let farJumps: [(UInt8, UInt16, UInt8)] = [
        (0x9B, 0, 3), (0x9B, 3, 13), (0xFB, 3, 13), (0x9F, 3, 3), (0x1B, 0, 11), (0x93, 0, 13),
    ]

    @Test(arguments: farJumps) func farJump(rights: UInt8, rpl: UInt16, vector: UInt8) throws {
        let machine = protected()
        let selector = Selector.free | rpl
        machine.setDescriptor(selector, TestMachine.descriptor(rights: rights, flags: 0xC))
        machine.write([0xCC], at: Place.data)
        let code: [UInt8] =
            [0xEA] + IntegerEncoder.little(Place.data, 4) + [UInt8(selector & 0xFF), 0]
        let trapped = try #require(machine.execute(code))
        #expect(trapped.vector == vector)
        #expect(trapped.rip == (vector == 3 ? Place.data + 1 : Place.code))
        if vector != 3 { #expect(trapped.error == UInt64(selector & 0xFFFC)) }
    }

    /// IRET to user code takes away segments that it must not have.
    @Test func returnToUser() throws {
        let machine = protected()
        let frame: [UInt32] = [
            UInt32(Place.data), UInt32(Selector.userCode32), 0x202, UInt32(Place.userStack), UInt32(Selector.userData),
        ]
        for (index, value) in frame.enumerated() { machine.store(value, at: Place.userStack - 64 + UInt64(index) * 4) }
        // MOV EAX, DS; INT3.
        machine.write([0x8C, 0xD8, 0xCC], at: Place.data)
        let trapped = try #require(machine.execute([0xCF], [4: Place.userStack - 64]))
        #expect(trapped.vector == 3)
        #expect(trapped.cs == UInt64(Selector.userCode32))
        #expect(trapped.rsp == Place.userStack)
        #expect(machine.state.register(0) == 0)
    }

    @Test func nestedTaskInLongMode() throws {
        let machine = TestMachine()
        machine.enterLong()
        machine.write([0x48, 0xCF], at: Place.code)
        let s = machine.state
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        s.setFlags(2 | RFlags.nestedTask)
        let trapped = try #require(machine.run())
        #expect(trapped.vector == 13)
        #expect(trapped.error == 0)
    }

    // MARK: Fast system calls

    @Test func syscallAndReturn() throws {
        let machine = TestMachine()
        machine.enterLong()
        machine.setPrivilege(3)
        let s = machine.state
        s.pointee.star = UInt64(0x23) << 48 | UInt64(Selector.kernelCode64) << 32
        s.pointee.lstar = Place.data
        s.pointee.fmask = RFlags.interrupt | RFlags.direction
        s.setFlags(0x602)
        // MOV EAX, CS; MOV EDX, SS; PUSHFQ is not possible on this stack; SYSRETQ.
        machine.write([0x8C, 0xC8, 0x8C, 0xD2, 0x48, 0x0F, 0x07], at: Place.data)
        let trapped = try #require(machine.execute([0x0F, 0x05]))
        #expect(trapped.vector == 3)
        #expect(trapped.rip == Place.code + 3)
        #expect(trapped.cs == UInt64(Selector.userCode64))
        #expect(trapped.flags & 0x600 == 0x600)
        #expect(s.register(0) == UInt64(Selector.kernelCode64))
        #expect(s.register(2) == UInt64(Selector.kernelData))
        #expect(s.register(1) == Place.code + 2)
        #expect(s.register(11) == 0x602)
    }

    @Test(arguments: [true, false]) func sysenterAndExit(is64: Bool) throws {
        let machine = TestMachine()
        if is64 { machine.enterLong() } else { machine.enterProtected() }
        // SYSENTER's segments follow each other: code, stack, user code and stack at fixed distances.
        let rights: [UInt8] = [0x9B, 0x93, 0xFB, 0xF3, 0xFB, 0xF3]
        for (index, right) in rights.enumerated() {
            let flags: UInt8 = right & 8 == 0 ? 0xC : (is64 && index != 2 ? 0xA : 0xC)
            machine.setDescriptor(
                Selector.free + UInt16(index * 8), TestMachine.descriptor(rights: right, flags: flags))
        }
        machine.setPrivilege(3)
        let s = machine.state
        s.pointee.sysenter_cs = UInt64(Selector.free)
        s.pointee.sysenter_esp = Place.kernelStack - 256
        s.pointee.sysenter_eip = Place.data
        // MOV EAX, CS; SYSEXIT to EDX with the stack in ECX.
        machine.write([0x8C, 0xC8] + (is64 ? [0x48] : []) + [0x0F, 0x35], at: Place.data)
        let trapped = try #require(
            machine.execute([0x0F, 0x34], [1: Place.userStack - 16, 2: Place.code + 2]))
        #expect(trapped.vector == 3)
        #expect(trapped.rip == Place.code + 3)
        #expect(trapped.rsp == Place.userStack - 16)
        #expect(s.register(0) == UInt64(Selector.free))
        #expect(trapped.cs == UInt64(Selector.free) + (is64 ? 32 : 16) + 3)
    }

    /// Code of one segment base is not taken for code of another at the same offset after a visit to 64-bit mode.
    @Test func segmentBaseBehindLongMode() throws {
        let machine = TestMachine()
        machine.enterLong()
        machine.setDescriptor(Selector.free, TestMachine.descriptor(base: 0x1000, rights: 0x9B, flags: 0xC))
        let s = machine.state
        let target = UInt64(0x4_0100)
        // At the same offset: with base 1000h, MOV EBX, 1; with base 0, MOV EBX, 2. Both back to 64-bit code.
        for (place, value) in [(target + 0x1000, UInt8(1)), (target, 2)] {
            machine.write(
                [0xBB, value, 0, 0, 0, 0xEA] + IntegerEncoder.little(Place.data, 4) + [
                    UInt8(Selector.kernelCode64), 0,
                ],
                at: place)
        }
        machine.write([0xCC], at: Place.data)
        for (selector, value) in [(Selector.free, UInt64(1)), (Selector.kernelCode32, 2)] {
            machine.store(UInt32(target), at: Place.data + 64)
            machine.store(selector, at: Place.data + 68)
            machine.write([0xFF, 0x2E], at: Place.code)
            s.setRegister(6, Place.data + 64)
            s.setRegister(4, Place.userStack)
            s.pointee.rip = Place.code
            #expect(machine.run()?.vector == 3)
            #expect(s.register(3) == value)
            // Back to the start as IRET would go there: the kernel's 64-bit segment again.
            machine.setPrivilege(0)
        }
    }

    // MARK: Ports

    /// (IOPL, bitmap base, denied port, port asked, bytes, allowed)
    private static let ports: [(UInt64, UInt16, Int?, UInt16, Int, Bool)] = [
        (3, 0xFFFF, nil, 0x80, 1, true), (0, 0xFFFF, nil, 0x80, 1, false), (0, 0x68, nil, 0x80, 1, true),
        (0, 0x68, 0x80, 0x80, 1, false), (0, 0x68, 0x81, 0x80, 1, true), (0, 0x68, 0x81, 0x80, 2, false),
        (0, 0x68, 0x83, 0x80, 4, false), (0, 0x68, 0x88, 0x87, 2, false), (0, 0x68, nil, 0xFFF, 1, true),
        (0, 0x2FF8, nil, 0x80, 1, false),
    ]

    @Test(arguments: ports)
    func ioBitmap(iopl: UInt64, base: UInt16, denied: Int?, port: UInt16, size: Int, allowed: Bool) {
        let machine = protected(3)
        machine.store(base, at: Place.task + 102)
        for offset in stride(from: UInt64(104), to: 0x400, by: 8) { machine.store(UInt64(0), at: Place.task + offset) }
        if let denied {
            machine.store(UInt8(1 << (denied & 7)), at: Place.task + UInt64(base) + UInt64(denied >> 3))
        }
        let s = machine.state
        s.setFlags(2 | iopl << 12)
        machine.write((size == 2 ? [0x66] : []) + [size == 1 ? 0xEC : 0xED], at: Place.code)
        s.setRegister(2, UInt64(port))
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        let stop = machine.runProcessor()
        if allowed {
            #expect(stop == .portIO)
            #expect(s.pointee.port_number == port)
            #expect(Int(s.pointee.port_size) == size)
        } else {
            #expect(machine.trapped(after: stop)?.vector == 13)
        }
    }

    // MARK: Virtual 8086 and real mode

    /// 16-bit code in VM86: addressing by segment × 16, and what traps to the monitor.
    @Test func virtual8086() throws {
        let machine = protected()
        let s = machine.state
        // To VM86 by IRET: EIP CS EFLAGS ESP SS ES DS FS GS.
        let frame: [UInt32] = [0, 0x4000, 0x2_0202, 0x1000, 0x5000, 0, 0x5000, 0, 0]
        for (index, value) in frame.enumerated() { machine.store(value, at: 0x6_0000 + UInt64(index) * 4) }
        // MOV AX, [10h]; PUSH AX; CLI.
        machine.write([0xA1, 0x10, 0, 0x50, 0xFA], at: 0x4_0000)
        machine.write([0xCF], at: Place.data + 0x8000)
        machine.store(UInt16(0x1234), at: 0x5_0010)
        s.setRegister(4, 0x6_0000)
        s.pointee.rip = Place.data + 0x8000
        let trapped = try #require(machine.run())
        #expect(trapped.vector == 13)
        #expect(trapped.error == 0)
        #expect(trapped.rip == 4)
        #expect(trapped.cs == 0x4000)
        #expect(trapped.flags & RFlags.virtual8086 != 0)
        #expect(machine.load(0x5_0FFE, as: UInt16.self) == 0x1234)
        // The frame has the data segments too (GS on top, then FS, DS, ES), and they are null now.
        #expect(machine.load(Place.kernelStack - 12, as: UInt32.self) == 0x5000)
        #expect(s.segment(SegmentRegister.ds).pointee.selector == 0)
    }

    /// A real-mode program: a loop, a far call, an interrupt through the vector table, string instructions.
    @Test func realMode() {
        let machine = TestMachine()
        let s = machine.state
        machine.processor.reset()
        setCodeSegment(s, martlet_segment(selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0), cpl: 0)
        machine.store(UInt16(0x2000), at: 0x21 * 4)
        machine.store(UInt16(0x0100), at: 0x21 * 4 + 2)
        // INT 21h at 0100:2000: ADD BX, 5; IRET.
        machine.write([0x83, 0xC3, 5, 0xCF], at: 0x3000)
        // Far procedure at 0200:0000: INC BX; RETF.
        machine.write([0x43, 0xCB], at: 0x2000)
        let program: [UInt8] = [
            0xB8, 0x00, 0x03, 0x8E, 0xD8, 0x8E, 0xC0,  // MOV AX, 300h; MOV DS, AX; MOV ES, AX
            0xBC, 0x00, 0x70, 0x31, 0xDB,  // MOV SP, 7000h; XOR BX, BX
            0xB9, 0x05, 0x00, 0x43, 0xE2, 0xFD,  // MOV CX, 5; again: INC BX; LOOP again
            0x9A, 0x00, 0x00, 0x00, 0x02,  // CALL 0200:0000
            0xCD, 0x21,  // INT 21h
            0xFC, 0x31, 0xFF, 0xB0, 0x41, 0xB9, 0x10, 0x00, 0xF3, 0xAA,  // CLD; XOR DI, DI; MOV AL, 'A'; REP STOSB ×16
            0x89, 0x1E, 0x20, 0x00,  // MOV [20h], BX
            0xF4,
        ]
        machine.write(program, at: 0x1000)
        s.pointee.rip = 0x1000
        #expect(machine.runProcessor() == .halt)
        #expect(s.register(3) == 11)
        #expect(machine.load(0x3020, as: UInt16.self) == 11)
        #expect(machine.load(0x300F, as: UInt8.self) == 0x41)
        #expect(machine.load(0x3010, as: UInt8.self) == 0)
        #expect(s.register(4) & 0xFFFF == 0x7000)
        // Over the end of the segment: #GP by the vector table; MOV AX, [FFFFh].
        machine.store(UInt32(0x0100_3000), at: 13 * 4)
        machine.write([0xF4], at: 0x4000)
        machine.write([0xA1, 0xFF, 0xFF], at: 0x1800)
        s.pointee.rip = 0x1800
        #expect(machine.runProcessor() == .halt)
        #expect(s.pointee.rip == 0x3001)
    }
}
