internal import CHost
import Testing

@testable import CPU

/// Accesses that user space answers, and code that changes under the processor.
@Suite struct SystemDeviceTests {
    /// A read or write of a device.
    struct Fragment: Equatable {
        var address: UInt64
        var size: UInt32
        /// Nil: a read.
        var value: UInt64?
    }

    private static let device: UInt64 = 0xFEE0_0000

    /// A machine with a device page behind page 0 of `Pages`, RAM on page 1, and another device page on page 2.
    private func machine() -> TestMachine {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.map(0, to: Self.device, 3)
        machine.map(1, to: Pages.frame, 3)
        machine.map(2, to: Self.device + 0x10000, 3)
        return machine
    }

    /// Runs to INT3, answering reads with bytes 1, 2, 3, … Returns what was asked.
    private func run(
        _ machine: TestMachine, _ code: [UInt8], _ registers: [Int: UInt64]
    ) -> (fragments: [Fragment], trapped: Trapped?) {
        let s = machine.state
        machine.write(code + [0xCC], at: Place.code)
        machine.forgetCode()
        s.setRegister(4, Place.userStack)
        for (number, value) in registers { s.setRegister(number, value) }
        s.pointee.rip = Place.code
        var fragments: [Fragment] = []
        var answer: UInt64 = 0x0807_0605_0403_0201
        while fragments.count < 100 {
            switch machine.runProcessor() {
            case .mmio:
                let fragment = s.mmioFragments + Int(s.pointee.mmio_count)
                let isWrite = fragment.pointee.is_write != 0
                let mask: UInt64 = fragment.pointee.size == 8 ? .max : 1 << UInt64(fragment.pointee.size * 8) - 1
                fragments.append(
                    Fragment(
                        address: fragment.pointee.address, size: fragment.pointee.size,
                        value: isWrite ? fragment.pointee.value & mask : nil))
                if !isWrite { fragment.pointee.value = answer & mask }
                answer &+= 0x1010_1010_1010_1010
                s.pointee.mmio_count += 1
                s.pointee.mmio_pending = 0
            case .portIO:
                let isWrite = s.pointee.port_is_write != 0
                fragments.append(
                    Fragment(
                        address: UInt64(s.pointee.port_number), size: UInt32(s.pointee.port_size),
                        value: isWrite ? UInt64(martlet_port_data(s)[0]) : nil))
                for index in 0..<Int(s.pointee.port_count) { martlet_port_data(s)[index] = 0x5A00 + UInt32(index) }
                s.pointee.port_answered = s.pointee.port_count
            case let stop: return (fragments, machine.trapped(after: stop))
            }
        }
        return (fragments, nil)
    }

    private static func read(_ offset: UInt64, _ size: UInt32) -> Fragment {
        Fragment(address: device + offset, size: size)
    }
    private static func write(_ offset: UInt64, _ size: UInt32, _ value: UInt64) -> Fragment {
        Fragment(address: device + offset, size: size, value: value)
    }

    struct Row: CustomTestStringConvertible {
        var what: String
        var code: [UInt8]
        var registers: [Int: UInt64]
        var fragments: [Fragment]
        /// Registers afterwards.
        var after: [Int: UInt64] = [:]
        var testDescription: String { what }
    }

    static let rows: [Row] = [
        Row(
            what: "load", code: [0x8B, 0x03], registers: [3: Pages.base + 0x20], fragments: [read(0x20, 4)],
            after: [0: 0x0403_0201]),
        Row(
            what: "byte load", code: [0x8A, 0x23], registers: [3: Pages.base, 0: 0], fragments: [read(0, 1)],
            after: [0: 0x100]),
        Row(
            what: "store", code: [0x48, 0x89, 0x03], registers: [3: Pages.base, 0: 0x55], fragments: [write(0, 8, 0x55)]
        ),
        Row(
            what: "read-modify-write", code: [0x01, 0x03], registers: [3: Pages.base, 0: 0x10],
            fragments: [read(0, 4), write(0, 4, 0x0403_0211)]),
        Row(
            what: "locked increment", code: [0xF0, 0xFF, 0x03], registers: [3: Pages.base],
            fragments: [read(0, 4), write(0, 4, 0x0403_0202)]),
        Row(
            what: "exchange", code: [0x87, 0x03], registers: [3: Pages.base, 0: 0x77],
            fragments: [read(0, 4), write(0, 4, 0x77)], after: [0: 0x0403_0201]),
        Row(
            what: "compare only", code: [0x39, 0x03], registers: [3: Pages.base, 0: 0x77], fragments: [read(0, 4)]),
        Row(
            what: "SSE load", code: [0x0F, 0x10, 0x03, 0x66, 0x48, 0x0F, 0x7E, 0xC0], registers: [3: Pages.base],
            fragments: [read(0, 8), read(8, 8)], after: [0: 0x0807_0605_0403_0201]),
        Row(
            what: "over the boundary to RAM", code: [0x8B, 0x03], registers: [3: Pages.address(1) - 1],
            fragments: [read(0xFFF, 1)], after: [0: 0xCCBB_AA01]),
        Row(
            what: "store from RAM to a device", code: [0x89, 0x03],
            registers: [3: Pages.address(2) - 1, 0: 0x4433_2211],
            fragments: [Fragment(address: device + 0x10000, size: 3, value: 0x44_3322)]),
        Row(
            what: "push from a device", code: [0xFF, 0x33, 0x58], registers: [3: Pages.base], fragments: [read(0, 8)],
            after: [0: 0x0807_0605_0403_0201, 4: Place.userStack]),
        Row(
            what: "REP MOVSD to a device", code: [0xF3, 0xA5], registers: [6: Pages.address(1), 7: Pages.base, 1: 2],
            fragments: [write(0, 4, 0xDDCC_BBAA), write(4, 4, 0x2211_FFEE)], after: [1: 0, 7: Pages.base + 8]),
        Row(
            what: "REP MOVSB from a device", code: [0xF3, 0xA4],
            registers: [6: Pages.base, 7: Pages.address(1) + 64, 1: 3],
            fragments: [read(0, 1), read(1, 1), read(2, 1)], after: [1: 0, 6: Pages.base + 3]),
        Row(
            what: "MOVSD from device to device", code: [0xA5], registers: [6: Pages.base, 7: Pages.base + 8],
            fragments: [read(0, 4), write(8, 4, 0x0403_0201)]),
        Row(
            what: "CMPSB of two devices", code: [0xA6, 0x0F, 0x92, 0xC0],
            registers: [6: Pages.base, 7: Pages.base + 8, 0: 0],
            fragments: [read(0, 1), read(8, 1)], after: [0: 1]),
        Row(
            what: "OUTSD from a device", code: [0x6F], registers: [6: Pages.base, 2: 0x80],
            fragments: [read(0, 4), Fragment(address: 0x80, size: 4, value: 0x0403_0201)], after: [6: Pages.base + 4]),
        Row(
            what: "INSB to a device", code: [0x6C], registers: [7: Pages.base, 2: 0x80],
            fragments: [Fragment(address: 0x80, size: 1), write(0, 1, 0)], after: [7: Pages.base + 1]),
        Row(
            what: "REP INSW to RAM", code: [0xF3, 0x66, 0x6D, 0x8B, 0x03],
            registers: [7: Pages.address(1) + 64, 2: 0x80, 1: 2, 3: Pages.address(1) + 64],
            fragments: [Fragment(address: 0x80, size: 2)], after: [0: 0x5A01_5A00, 1: 0]),
        Row(
            what: "REP OUTSB", code: [0xF3, 0x6E], registers: [6: Pages.address(1), 2: 0x3F8, 1: 2],
            fragments: [
                Fragment(address: 0x3F8, size: 1, value: 0xAA), Fragment(address: 0x3F8, size: 1, value: 0xBB),
            ],
            after: [1: 0, 6: Pages.address(1) + 2]),
        Row(
            what: "IN and OUT", code: [0xEC, 0xE6, 0x42], registers: [2: 0x60, 0: 0x1111],
            fragments: [Fragment(address: 0x60, size: 1), Fragment(address: 0x42, size: 1, value: 0)],
            after: [0: 0x1100]),
        Row(
            what: "REX.W does not widen ports", code: [0x48, 0x6D], registers: [7: Pages.address(1) + 64, 2: 0x80],
            fragments: [Fragment(address: 0x80, size: 4)], after: [7: Pages.address(1) + 68]),
    ]

    @Test(arguments: rows) func answered(_ row: Row) throws {
        let machine = machine()
        machine.store(UInt64(0x2211_FFEE_DDCC_BBAA), at: Pages.frame)
        let (fragments, trapped) = run(machine, row.code, row.registers)
        #expect(fragments == row.fragments)
        #expect(trapped?.vector == 3)
        for (number, value) in row.after {
            #expect((number == 4 ? trapped?.rsp : machine.state.register(number)) == value, "register \(number)")
        }
        if row.what == "store from RAM to a device" {
            #expect(machine.load(Pages.frame + 4095, as: UInt8.self) == 0x11)
        }
    }

    /// Attention and a pending interrupt do not come between an access and its answer.
    @Test func noInterruptInside() {
        let machine = machine()
        let s = machine.state
        machine.write([0x8B, 0x03, 0x90, 0xCC], at: Place.code)
        s.setRegister(3, Pages.base)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        s.setFlags(0x202)
        #expect(machine.runProcessor() == .mmio)
        #expect(!machine.processor.canAcceptInterrupt)
        s.mmioFragments.pointee.value = 9
        s.pointee.mmio_count = 1
        s.pointee.mmio_pending = 0
        s.pointee.window_requested = 1
        martlet_request_attention(s)
        let stop = machine.runProcessor()
        #expect(stop == .window || stop == .attention)
        #expect(s.pointee.rip == Place.code + 2)
        #expect(s.register(0) == 9)
    }

    /// An answer to another access than the restarted instruction makes is dropped.
    @Test func changedTranslation() throws {
        let machine = machine()
        let s = machine.state
        machine.write([0x8B, 0x03, 0xCC], at: Place.code)
        s.setRegister(3, Pages.base)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        #expect(machine.runProcessor() == .mmio)
        s.mmioFragments.pointee.value = 9
        s.pointee.mmio_count = 1
        s.pointee.mmio_pending = 0
        machine.map(0, to: Self.device + 0x5000, 3)
        #expect(machine.runProcessor() == .mmio)
        #expect(s.pointee.mmio_count == 0)
        #expect(s.mmioFragments.pointee.address == Self.device + 0x5000)
        s.mmioFragments.pointee.value = 8
        s.pointee.mmio_count = 1
        s.pointee.mmio_pending = 0
        #expect(machine.run()?.vector == 3)
        #expect(s.register(0) == 8)
    }

    // MARK: Code that changes

    private static let changes: [(String, [UInt8], UInt64)] = [
        // MOV byte [rip + 1], 7 changes the immediate of the MOV EAX behind it.
        ("next instruction", [0xC6, 0x05, 1, 0, 0, 0, 7, 0xB8, 1, 0, 0, 0], 7),
        // The same by the alias that user space has of this page.
        ("by an alias", [0xC6, 0x43, 5, 7, 0xB8, 1, 0, 0, 0], 7),
        // A loop that counts its own immediate up, three times round.
        ("own block", [0xB8, 1, 0, 0, 0, 0xFE, 0x05, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xC9, 0x75, 0xF1], 3),
        // REP STOSB over what comes next: four bytes of MOV EAX.
        ("by REP STOSB", [0xF3, 0xAA, 0xB8, 1, 1, 1, 1], 0x0909_0909),
        // LOCK ADD to the instruction behind.
        ("by LOCK ADD", [0xF0, 0x83, 0x05, 1, 0, 0, 0, 5, 0xB8, 1, 0, 0, 0], 6),
        // Data on the same page as code, written in a loop: the code stays as it is.
        ("data beside code", [0xFF, 0x05, 0x80, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xF6, 0x8B, 0x05, 0x76, 0, 0, 0], 3),
        // PUSH over it: RSP is set to just behind the immediate.
        ("by PUSH", [0x48, 0x89, 0xDC, 0x6A, 8, 0xB8, 1, 0, 0, 0, 0x90, 0x90, 0x90, 0x90], 8),
    ]

    @Test(arguments: changes) func selfModifying(_ what: String, code: [UInt8], expected: UInt64) throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.useStackTable(for: [3])
        machine.store(UInt64(0), at: Place.code + 0x86)
        var registers: [Int: UInt64] = [1: 3, 3: Pages.userCode]
        if what == "by REP STOSB" { registers = [0: 9, 1: 4, 7: Place.code + 3] }
        if what == "by PUSH" { registers = [3: Place.code + 14] }
        let trapped = try #require(machine.execute(code, registers))
        #expect(trapped.vector == 3)
        #expect(machine.state.register(0) == expected)
    }

    /// A store to one page changes a jump target decoded on another, reached by a cached link.
    @Test func changedTargetOfLink() throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        let other = Place.code + 0x1000
        machine.write([0xB8, 1, 0, 0, 0, 0xC3], at: other)
        // CALL other; MOV EBX, EAX; MOV byte [other + 1], 2; CALL other.
        let distance = IntegerEncoder.little(0x1000 - 5, 4)
        let second = IntegerEncoder.little(0x1000 - 19, 4)
        let store: [UInt8] = [0xC6, 0x07, 2, 0x90, 0x90, 0x90, 0x90]
        let trapped = try #require(
            machine.execute([0xE8] + distance + [0x89, 0xC3] + store + [0xE8] + second, [7: other + 1]))
        #expect(trapped.vector == 3)
        #expect(machine.state.register(3) == 1)
        #expect(machine.state.register(0) == 2)
    }

    /// Code that changes so often that the room for decoded code is used up many times over, in the middle of branches.
    @Test func roomForCodeUsedUp() throws {
        let machine = TestMachine()
        machine.enterPagedLong()
        let rounds: UInt64 = 75_000
        // again: ADD dword [rip + 1], 1 (the immediate behind it); MOV EAX, imm32; PADDD XMM0, XMM1; JMP +1; INT3;
        // a row of NOPs; DEC ECX; JNZ again.
        var code: [UInt8] = [0x83, 0x05, 1, 0, 0, 0, 1, 0xB8, 0, 0, 0, 0, 0x66, 0x0F, 0xFE, 0xC1, 0xEB, 1, 0xCC]
        code += [UInt8](repeating: 0x90, count: 30) + [0xFF, 0xC9]
        code += [0x0F, 0x85] + IntegerEncoder.little(0 &- UInt64(code.count + 6), 4)
        // MOVD EBX, XMM0.
        code += [0x66, 0x0F, 0x7E, 0xC3]
        let s = machine.state
        var fpu = machine.processor.fpu
        withUnsafeMutableBytes(of: &fpu.xmm) {
            $0.storeBytes(of: UInt32(0), as: UInt32.self)
            $0.storeBytes(of: UInt32(1), toByteOffset: 16, as: UInt32.self)
        }
        machine.processor.fpu = fpu
        let trapped = try #require(machine.execute(code, [1: rounds]))
        #expect(trapped.vector == 3)
        #expect(s.register(0) == rounds)
        #expect(s.register(3) == rounds)
        #expect(s.pointee.cache_flushes > 3)
    }
}
