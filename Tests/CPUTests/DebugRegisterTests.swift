import CHost
import Testing

@testable import CPU

/// Breakpoints of the debug registers (SDM vol. 3B §17.2, §17.3).
@Suite struct DebugRegisterTests {
    private static let idle: UInt64 = 0xFFFF_0FF0
    private static let handler = Place.handlers
    private static let returnHandler: [UInt8] = [0xF4, 0x48, 0xCF]

    /// One enabled breakpoint of DR7.
    struct Breakpoint {
        enum Kind: UInt64 { case instruction, write, port, readWrite }
        var number = 0
        var kind: Kind
        var address: UInt64
        var length: UInt64 = 1
        var isGlobal = false

        var control: UInt64 {
            let lengthField: UInt64 = [1: 0, 2: 1, 8: 2, 4: 3][length] ?? 0
            let enable: UInt64 = isGlobal ? 2 : 1
            return enable << UInt64(number * 2) | kind.rawValue << UInt64(16 + number * 4)
                | lengthField << UInt64(18 + number * 4)
        }
    }

    private func long() -> TestMachine {
        let machine = TestMachine()
        machine.enterPagedLong()
        machine.write(Self.returnHandler, at: Self.handler + 16)
        return machine
    }

    private func set(_ machine: TestMachine, _ breakpoints: [Breakpoint], extra: UInt64 = 0, dr6: UInt64 = idle) {
        var addresses: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        var control: UInt64 = 0x400 | extra
        for breakpoint in breakpoints {
            control |= breakpoint.control
            switch breakpoint.number {
            case 0: addresses.0 = breakpoint.address
            case 1: addresses.1 = breakpoint.address
            case 2: addresses.2 = breakpoint.address
            default: addresses.3 = breakpoint.address
            }
        }
        machine.processor.setDebugRegisters(addresses, dr6: dr6, dr7: control)
    }

    private func status(_ machine: TestMachine) -> UInt64 { martlet_debug_registers(machine.state)[6] }

    /// Sets RF in the frame of the exception that was just taken, as a debugger does to go on.
    private func resume(_ machine: TestMachine) {
        let place = machine.state.register(4) + 16
        machine.store(machine.load(place, as: UInt64.self) | RFlags.resume, at: place)
    }

    // MARK: Data

    private static let stores: [(UInt64, [UInt8])] = [
        (1, [0x88, 0x07]), (2, [0x66, 0x89, 0x07]), (4, [0x89, 0x07]), (8, [0x48, 0x89, 0x07]),
        (16, [0x0F, 0x11, 0x07]),
    ]
    private static let loads: [(UInt64, [UInt8])] = [
        (1, [0x8A, 0x07]), (2, [0x66, 0x8B, 0x07]), (4, [0x8B, 0x07]), (8, [0x48, 0x8B, 0x07]),
        (16, [0x0F, 0x10, 0x07]),
    ]

    /// Every position of an access against watched bytes, over a page boundary too: it traps exactly where a byte is in
    /// both, the watched address rounded down to its length.
    @Test(arguments: [UInt64(1), 2, 4, 8], [Breakpoint.Kind.write, .readWrite])
    func positions(length: UInt64, kind: Breakpoint.Kind) {
        let machine = long()
        machine.state.pointee.cr4 |= Control.fxsaveSupport
        let base = Place.data + 0x1000 - 16
        for watched in [base + 3, base + 8, base + 14, base + 17] {
            set(machine, [Breakpoint(number: 1, kind: kind, address: watched, length: length)])
            let bytes = Set((watched / length * length)..<(watched / length * length + length))
            for (isStore, forms) in [(true, Self.stores), (false, Self.loads)] {
                for (size, code) in forms {
                    for place in stride(from: base - 4, to: base + 28, by: 3) {
                        let touches = !bytes.isDisjoint(with: place..<place + size)
                        let expected = touches && (isStore || kind == .readWrite)
                        let trapped = machine.execute(code, [7: place, 0: 0])
                        #expect(trapped?.vector == (expected ? 1 : 3), "\(watched) \(place) \(code)")
                        #expect(trapped?.rip == Place.code + UInt64(code.count) + (expected ? 0 : 1))
                        if expected { #expect(status(machine) & 0xF == 2) }
                    }
                }
            }
        }
    }

    struct Form: CustomTestStringConvertible {
        var testDescription: String
        var code: [UInt8]
        var reads = false
        var writes = false
        var rsp = Place.userStack
        /// Of the watched quad from `Place.data`.
        var offset: UInt64 = 0
    }

    private static let stackForms: [Form] = [
        Form(testDescription: "push", code: [0x50], writes: true, rsp: Place.data + 8),
        Form(testDescription: "pop", code: [0x58], reads: true, rsp: Place.data),
        Form(testDescription: "call", code: [0xE8, 0, 0, 0, 0], writes: true, rsp: Place.data + 8),
        Form(testDescription: "enter", code: [0xC8, 0, 0, 0], writes: true, rsp: Place.data + 8),
        Form(testDescription: "leave", code: [0x48, 0x89, 0xDD, 0xC9], reads: true),
        Form(testDescription: "pushf", code: [0x9C], writes: true, rsp: Place.data + 8),
        Form(testDescription: "popf", code: [0x9D], reads: true, rsp: Place.data),
        Form(testDescription: "push [mem]", code: [0xFF, 0x33], reads: true),
    ]
    private static let memoryForms: [Form] = [
        Form(testDescription: "cmp", code: [0x48, 0x39, 0x03], reads: true),
        Form(testDescription: "add", code: [0x48, 0x01, 0x03], reads: true, writes: true),
        Form(testDescription: "lock xadd", code: [0xF0, 0x48, 0x0F, 0xC1, 0x03], reads: true, writes: true),
        Form(testDescription: "xchg", code: [0x48, 0x87, 0x03], reads: true, writes: true),
        Form(testDescription: "failing cmpxchg", code: [0x48, 0x0F, 0xB1, 0x0B], reads: true, writes: true),
        Form(testDescription: "bt", code: [0x48, 0x0F, 0xA3, 0x13], reads: true),
        Form(testDescription: "bts", code: [0x48, 0x0F, 0xAB, 0x13], reads: true, writes: true),
        Form(testDescription: "sgdt", code: [0x0F, 0x01, 0x03], writes: true),
        Form(testDescription: "fld", code: [0xDD, 0x03], reads: true),
        Form(testDescription: "fnstenv", code: [0xD9, 0x33], writes: true, offset: 24),
        Form(testDescription: "fxsave", code: [0x0F, 0xAE, 0x03], writes: true, offset: 0x98),
        Form(testDescription: "movs from", code: [0x48, 0x89, 0xDE, 0xA4], reads: true),
        Form(testDescription: "stos", code: [0x48, 0x89, 0xDF, 0x48, 0xAB], writes: true),
        Form(testDescription: "lea", code: [0x48, 0x8D, 0x03]),
        Form(testDescription: "nop [mem]", code: [0x0F, 0x1F, 0x03]),
        Form(testDescription: "prefetch", code: [0x0F, 0x18, 0x0B]),
        Form(testDescription: "invlpg", code: [0x0F, 0x01, 0x3B]),
    ]

    @Test(arguments: stackForms + memoryForms, [Breakpoint.Kind.write, .readWrite])
    func form(_ form: Form, kind: Breakpoint.Kind) {
        let machine = long()
        machine.store(UInt64(2), at: Place.data)
        let place = Place.data + form.offset
        set(machine, [Breakpoint(number: 3, kind: kind, address: place, length: 8, isGlobal: true)])
        let registers: [Int: UInt64] = [
            0: 1, 1: 5, 2: 0, 3: Place.data, 4: form.rsp, 5: Place.data, 6: Place.data + 0x200, 7: Place.data + 0x300,
        ]
        let trapped = machine.execute(form.code, registers)
        let hits = form.writes || (form.reads && kind == .readWrite)
        #expect(trapped?.vector == (hits ? 1 : 3))
        if hits {
            #expect(trapped?.rip == Place.code + UInt64(form.code.count))
            #expect(status(machine) == Self.idle | 8)
            #expect(trapped.map { $0.flags & RFlags.resume } == 0)
        }
    }

    /// Two breakpoints on one instruction are one exception; what is not enabled does not show.
    @Test func several() {
        let machine = long()
        let watched = Place.data
        set(
            machine,
            [
                Breakpoint(number: 0, kind: .readWrite, address: watched),
                Breakpoint(number: 2, kind: .write, address: watched + 3, length: 4),
                Breakpoint(number: 3, kind: .write, address: watched + 8),
            ], dr6: Self.idle | 0x400B)
        #expect(machine.execute([0x89, 0x07, 0x90], [7: watched])?.rip == Place.code + 2)
        // B0-B3 are new, BS is kept.
        #expect(status(machine) == Self.idle | 0x4005)
        set(machine, [])
        #expect(!machine.processor.needsSingleStep)
        #expect(machine.execute([0x89, 0x07, 0x90], [7: watched])?.vector == 3)
    }

    /// An access that faults does not trap, and its repetition does.
    @Test func faultingAccess() {
        let machine = long()
        machine.write([0xF4, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF], at: Self.handler + 14 * 16)
        set(machine, [Breakpoint(kind: .readWrite, address: Pages.base, length: 8)])
        #expect(machine.execute([0x48, 0x8B, 0x03], [3: Pages.base])?.vector == 14)
        #expect(status(machine) == Self.idle)
        machine.map(0, to: Pages.frame, 3)
        let trapped = machine.run()
        #expect(trapped?.vector == 1 && trapped?.rip == Place.code + 3)
    }

    /// A device's register: one trap, behind the answered access.
    @Test func deviceAccess() {
        let machine = long()
        let device: UInt64 = 0xFEE0_0000
        machine.map(0, to: device, 3)
        set(machine, [Breakpoint(kind: .readWrite, address: Pages.base + 4, length: 4)])
        machine.write([0x8B, 0x03, 0xCC], at: Place.code)
        let s = machine.state
        s.setRegister(3, Pages.base + 4)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        #expect(machine.runProcessor() == .mmio)
        s.mmioFragments.pointee.value = 77
        s.pointee.mmio_count = 1
        s.pointee.mmio_pending = 0
        let trapped = machine.run()
        #expect(trapped?.vector == 1 && trapped?.rip == Place.code + 2 && s.register(0) == 77)
        #expect(machine.run()?.vector == 3)
    }

    /// (offset of the watched byte, iterations left, whether the instruction is done)
    private static let iterations: [(UInt64, UInt64, Bool)] = [(0, 3, false), (2, 1, false), (3, 0, true)]

    /// REP MOVS traps behind the iteration; RF is set in the frame unless it was the last.
    @Test(arguments: iterations) func repetition(offset: UInt64, left: UInt64, isDone: Bool) {
        let machine = long()
        set(machine, [Breakpoint(kind: .write, address: Place.data + 0x100 + offset)])
        let trapped = machine.execute([0xF3, 0xA4], [1: 4, 6: Place.data, 7: Place.data + 0x100])
        #expect(trapped?.vector == 1)
        #expect(machine.state.register(1) == left)
        #expect(trapped?.rip == Place.code + (isDone ? 2 : 0))
        #expect(trapped.map { $0.flags & RFlags.resume } == (isDone ? 0 : RFlags.resume))
        let next = machine.run()
        #expect(next?.vector == 3 && machine.state.register(1) == 0)
        #expect(next.map { $0.flags & RFlags.resume } == 0)
    }

    private static let events: [([UInt8], UInt64)] = [([0xCC], 3), ([0x0F, 0x0B], 6), ([0xCD, 0x80], 0x80)]

    /// The frame of an exception is data: the trap comes before the handler's first instruction.
    @Test(arguments: events) func frame(_ code: [UInt8], vector: UInt64) {
        let machine = long()
        set(machine, [Breakpoint(kind: .write, address: Place.userStack - 8, length: 8)])
        let trapped = machine.execute(code)
        #expect(trapped?.vector == 1 && trapped?.rip == Self.handler + vector * 16)
        #expect(status(machine) == Self.idle | 1)
    }

    @Test func frameOfInterrupt() {
        let machine = long()
        set(machine, [Breakpoint(kind: .write, address: Place.userStack - 40, length: 8)])
        machine.write(Self.returnHandler, at: Self.handler + 2 * 16)
        machine.state.setRegister(4, Place.userStack)
        machine.state.pointee.rip = Place.code
        machine.processor.deliverInterrupt(0x90)
        // The trap comes before the next interrupt, which then comes before the trap's handler.
        #expect(!machine.processor.canAcceptInterrupt)
        machine.state.pointee.nmi_pending = 1
        let first = machine.run()
        #expect(first?.vector == 2 && first?.rip == Self.handler + 16)
        let trapped = machine.run()
        #expect(trapped?.vector == 1 && trapped?.rip == Self.handler + 0x900)
    }

    /// #DB whose own frame is watched never ends; the outside can still stop the processor.
    @Test func endlessTraps() {
        let machine = TestMachine(isAlone: true)
        machine.enterPagedLong()
        machine.useStackTable(for: [1])
        set(machine, [Breakpoint(kind: .write, address: Place.kernelStack - 8, length: 8)])
        machine.write([0xF1], at: Place.code)
        machine.state.setRegister(4, Place.userStack)
        machine.state.pointee.rip = Place.code
        let attention = AttentionThread(machine.state)
        defer { attention.stop() }
        for _ in 0..<100 where machine.state.pointee.rip == Place.code {
            martlet_clear_attention(machine.state)
            #expect(machine.runProcessor() == .attention)
        }
        #expect(machine.state.pointee.rip == Self.handler + 16)
    }

    // MARK: Instructions

    /// #DB instead of the instruction, each time unless RF is set; RF holds for one instruction.
    @Test func instruction() {
        let machine = long()
        // INC EAX; JMP -4
        set(machine, [Breakpoint(number: 2, kind: .instruction, address: Place.code)])
        machine.write([0xFF, 0xC0, 0xEB, 0xFC], at: Place.code)
        let s = machine.state
        s.setRegister(0, 0)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        for count in UInt64(0)..<3 {
            let trapped = machine.run()
            #expect(trapped?.vector == 1 && trapped?.rip == Place.code)
            #expect(trapped.map { $0.flags & RFlags.resume } == 0)
            #expect(s.register(0) == count && status(machine) == Self.idle | 4)
            resume(machine)
        }
        // Without RF it comes again at once.
        let before = machine.run()
        let again = machine.run()
        #expect(before?.rip == again?.rip && s.register(0) == 3)
    }

    /// RF stays over the fault of its instruction, and goes with POPF.
    @Test func resumeFlag() {
        let machine = long()
        machine.write([0xF4, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF], at: Self.handler + 14 * 16)
        set(machine, [Breakpoint(kind: .instruction, address: Place.code)])
        #expect(machine.execute([0x48, 0x8B, 0x03], [3: Pages.base])?.vector == 1)
        resume(machine)
        let faulted = machine.run()
        #expect(faulted?.vector == 14 && faulted.map { $0.flags & RFlags.resume } == RFlags.resume)
        machine.map(0, to: Pages.frame, 3)
        #expect(machine.run()?.vector == 3)
        // PUSH imm32 with RF; POPF; then the watched instruction.
        set(machine, [Breakpoint(kind: .instruction, address: Place.code + 6)])
        let trapped = machine.execute([0x68, 2, 0, 1, 0, 0x9D, 0x90])
        #expect(trapped?.vector == 1 && trapped?.rip == Place.code + 6)
    }

    /// A guest that enables a breakpoint on the next instruction, and disables it.
    @Test func guestEnables() {
        let machine = long()
        let control = Breakpoint(kind: .instruction, address: 0).control
        // MOV DR0, RBX; MOV DR7, RAX; NOP
        let code: [UInt8] = [0x0F, 0x23, 0xC3, 0x0F, 0x23, 0xF8, 0x90]
        let trapped = machine.execute(code, [0: control, 3: Place.code + 6])
        #expect(trapped?.vector == 1 && trapped?.rip == Place.code + 6)
        #expect(machine.processor.needsSingleStep)
        resume(machine)
        #expect(machine.run()?.vector == 3)
        #expect(machine.execute(code, [0: 0x400, 3: Place.code + 6])?.vector == 3)
        #expect(!machine.processor.needsSingleStep)
    }

    /// Code that is single-stepped for a breakpoint elsewhere still sees attention.
    @Test func attention() {
        let machine = TestMachine(isAlone: true)
        machine.enterPagedLong()
        set(machine, [Breakpoint(kind: .instruction, address: Place.data)])
        machine.write([0xEB, 0xFE], at: Place.code)
        machine.state.pointee.rip = Place.code
        let attention = AttentionThread(machine.state)
        defer { attention.stop() }
        #expect(machine.runProcessor() == .attention)
        #expect(machine.state.pointee.rip == Place.code)
    }

    // MARK: Priorities (SDM vol. 3A table 6-2)

    @Test func priorities() {
        let machine = long()
        // With TF the step and the data breakpoint are one exception; the instruction breakpoint behind is the next.
        set(
            machine,
            [
                Breakpoint(number: 0, kind: .write, address: Place.data),
                Breakpoint(number: 1, kind: .instruction, address: Place.code + 2),
            ])
        machine.state.setFlags(0x102)
        #expect(machine.execute([0x89, 0x07, 0x90], [7: Place.data])?.rip == Place.code + 2)
        #expect(status(machine) == Self.idle | 0x4001)
        #expect(machine.run()?.rip == Place.code + 2)
        #expect(status(machine) == Self.idle | 0x4002)
    }

    /// A breakpoint on an instruction that cannot be fetched comes before the fault.
    @Test func beforeFetch() {
        let machine = long()
        set(machine, [Breakpoint(kind: .instruction, address: Pages.base)])
        let trapped = machine.execute([0xFF, 0xE3], [3: Pages.base])
        #expect(trapped?.vector == 1 && trapped?.rip == Pages.base)
        resume(machine)
        #expect(machine.run()?.vector == 14)
    }

    /// Data trap, then NMI, then the instruction breakpoint.
    @Test func aroundNMI() {
        let machine = long()
        machine.write(Self.returnHandler, at: Self.handler + 2 * 16)
        set(
            machine,
            [
                Breakpoint(number: 0, kind: .write, address: Place.data),
                Breakpoint(number: 1, kind: .instruction, address: Place.code + 2),
            ])
        #expect(machine.execute([0x89, 0x07, 0x90], [7: Place.data])?.vector == 1)
        machine.state.pointee.nmi_pending = 1
        let trapped = machine.run()
        #expect(trapped?.vector == 2 && trapped?.rip == Self.handler + 17)
        #expect(machine.run()?.vector == 1)
        #expect(status(machine) == Self.idle | 2)
    }

    // MARK: Stack switches (SDM vol. 3A §6.8.3)

    /// (code behind MOV SS, [RBX]; vector; rip)
    private static let shadows: [([UInt8], UInt8, UInt64)] = [
        ([0x90, 0x90], 1, Place.code + 3),
        ([0xCC], 1, handler + 3 * 16),
        ([0xCD, 0x80], 1, handler + 0x800),
        // A fault takes the pending trap along.
        ([0x0F, 0x0B], 6, Place.code + 2),
        // A second load has its own shadow.
        ([0x8E, 0xD0, 0x90, 0x90], 1, Place.code + 5),
    ]

    @Test(arguments: shadows) func stackSwitch(_ code: [UInt8], vector: UInt8, rip: UInt64) {
        let machine = long()
        machine.store(Selector.kernelData, at: Place.data)
        set(
            machine,
            [
                Breakpoint(number: 0, kind: .readWrite, address: Place.data, length: 2),
                Breakpoint(number: 1, kind: .instruction, address: Place.code + 2),
            ])
        let trapped = machine.execute([0x8E, 0x13] + code, [0: UInt64(Selector.kernelData), 3: Place.data])
        #expect(trapped?.vector == vector && trapped?.rip == rip)
        #expect(status(machine) == Self.idle | (vector == 1 ? 1 : 0))
    }

    // MARK: General detect and the registers themselves

    /// (code, DR7.GD, CR4.DE, CPL, vector): #UD and #GP come before general detect.
    private static let accesses: [([UInt8], Bool, Bool, UInt8, UInt8)] = [
        ([0x0F, 0x21, 0xF8], true, false, 0, 1),
        ([0x0F, 0x23, 0xC0], true, false, 0, 1),
        ([0x0F, 0x21, 0xE0], true, false, 0, 1),
        ([0x0F, 0x21, 0xE0], true, true, 0, 6),
        ([0x0F, 0x21, 0xE0], false, false, 0, 3),
        ([0x0F, 0x23, 0xC0], false, false, 0, 3),
        ([0x0F, 0x21, 0xF8], true, false, 3, 13),
    ]

    @Test(arguments: accesses)
    func generalDetect(_ code: [UInt8], detects: Bool, extensions: Bool, cpl: UInt8, vector: UInt8) {
        let machine = long()
        if extensions { machine.state.pointee.cr4 |= Control.debuggingExtensions }
        if cpl == 3 {
            machine.setPrivilege(3)
            machine.map(20, to: Place.userStack - 4096, 7)
        }
        set(machine, [], extra: detects ? 1 << 13 : 0)
        let start = cpl == 3 ? Pages.userCode : Place.code
        let trapped = machine.execute(code, at: start, cpl == 3 ? [4: Pages.address(21) - 256] : [:])
        #expect(trapped?.vector == vector)
        guard vector == 1 else { return }
        #expect(trapped?.rip == start && trapped.map { $0.flags & RFlags.resume } == 0)
        #expect(status(machine) == Self.idle | 1 << 13)
        #expect(martlet_debug_registers(machine.state)[7] & (1 << 13) == 0)
        #expect(machine.run()?.vector == 3)
    }

    /// INT1 sets no bit of DR6, and its handler may use the registers.
    @Test func interruptOne() {
        let machine = long()
        set(machine, [], extra: 1 << 13)
        #expect(machine.execute([0xF1])?.rip == Place.code + 1)
        #expect(status(machine) == Self.idle && martlet_debug_registers(machine.state)[7] == 0x400)
    }

    // MARK: Ports

    struct PortRow: CustomTestStringConvertible {
        var testDescription: String
        var code: [UInt8]
        var watched: UInt64
        var length: UInt64 = 1
        var extensions = true
        var hits = true
    }

    private static let ports: [PortRow] = [
        PortRow(testDescription: "in al", code: [0xEC], watched: 0x502),
        PortRow(testDescription: "out al", code: [0xEE], watched: 0x502),
        PortRow(testDescription: "in eax, its last byte", code: [0xED], watched: 0x505),
        PortRow(testDescription: "in eax, behind it", code: [0xED], watched: 0x506, hits: false),
        PortRow(testDescription: "in al, four ports", code: [0xEC], watched: 0x503, length: 4),
        PortRow(testDescription: "in al, other ports", code: [0xEC], watched: 0x506, length: 4, hits: false),
        PortRow(testDescription: "without CR4.DE", code: [0xEC], watched: 0x502, extensions: false, hits: false),
    ]

    /// Runs to an exception, answering ports.
    private func answering(_ machine: TestMachine) -> Trapped? {
        for _ in 0..<20 {
            let stop = machine.runProcessor()
            guard stop == .portIO else { return machine.trapped(after: stop) }
            machine.state.pointee.port_answered = machine.state.pointee.port_count
        }
        return nil
    }

    @Test(arguments: ports) func port(_ row: PortRow) {
        let machine = long()
        let s = machine.state
        if row.extensions { s.pointee.cr4 |= Control.debuggingExtensions }
        set(machine, [Breakpoint(number: 1, kind: .port, address: row.watched, length: row.length)])
        machine.write(row.code + [0xCC], at: Place.code)
        s.setRegister(2, 0x502)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        let trapped = answering(machine)
        #expect(trapped?.vector == (row.hits ? 1 : 3))
        if row.hits { #expect(trapped?.rip == Place.code + 1 && status(machine) == Self.idle | 2) }
    }

    /// REP INS and OUTS trap behind each element.
    @Test(arguments: [UInt8(0x6C), 0x6E]) func portRepetition(opcode: UInt8) {
        let machine = long()
        let s = machine.state
        s.pointee.cr4 |= Control.debuggingExtensions
        set(machine, [Breakpoint(kind: .port, address: 0x502)])
        machine.write([0xF3, opcode, 0xCC], at: Place.code)
        s.setRegister(1, 2)
        s.setRegister(2, 0x502)
        s.setRegister(4, Place.userStack)
        s.setRegister(6, Place.data)
        s.setRegister(7, Place.data)
        s.pointee.rip = Place.code
        for (left, rip) in [(UInt64(1), Place.code), (0, Place.code + 2)] {
            let trapped = answering(machine)
            #expect(trapped?.vector == 1 && trapped?.rip == rip && s.register(1) == left)
        }
        #expect(answering(machine)?.vector == 3)
    }

    /// CR4.DE turns a port breakpoint on that DR7 had already.
    @Test func guestSetsExtensions() {
        let machine = long()
        let s = machine.state
        set(machine, [Breakpoint(kind: .port, address: 0x502)])
        #expect(!machine.processor.needsSingleStep)
        // MOV CR4, RAX; IN AL, DX
        machine.write([0x0F, 0x22, 0xE0, 0xEC, 0xCC], at: Place.code)
        s.setRegister(0, s.pointee.cr4 | Control.debuggingExtensions)
        s.setRegister(2, 0x502)
        s.setRegister(4, Place.userStack)
        s.pointee.rip = Place.code
        let trapped = answering(machine)
        #expect(trapped?.vector == 1 && trapped?.rip == Place.code + 4)
    }

    // MARK: Protected mode

    @Test func protectedMode() {
        let machine = TestMachine()
        machine.enterProtected()
        let s = machine.state
        // MOV [EDI], EAX; NOP, in a code segment whose base counts.
        machine.setDescriptor(
            Selector.free, TestMachine.descriptor(base: UInt32(Place.code), rights: 0x9B, flags: 0xC))
        machine.write([0x89, 0x07, 0x90, 0xCC], at: Place.code)
        func start() {
            s.setRegister(4, Place.userStack)
            s.setRegister(7, Place.data)
            s.pointee.rip = 0
            s.pointee.cpl = 0
            let code = Descriptor(low: machine.load(Place.gdt + UInt64(Selector.free), as: UInt64.self))
            setCodeSegment(s, code.segment(Selector.free), cpl: 0)
        }
        start()
        set(machine, [Breakpoint(kind: .write, address: Place.data + 2, length: 2)])
        #expect(machine.run()?.rip == 2)
        start()
        set(machine, [Breakpoint(kind: .instruction, address: Place.code + 2)])
        #expect(machine.run()?.rip == 2)
        #expect(status(machine) == Self.idle | 1)
        // The frame of INT3.
        start()
        set(machine, [Breakpoint(kind: .write, address: Place.userStack - 4, length: 4)])
        #expect(machine.run()?.rip == Self.handler + 48)
    }
}
