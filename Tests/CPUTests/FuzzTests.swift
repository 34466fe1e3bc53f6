internal import CHost
internal import Fuzzing
internal import Glibc
import Testing

@testable import CPU

/// Sets the attention word every millisecond, as timers and other vCPUs do.
final class AttentionThread {
    private struct Shared {
        var state: State
        var isDone: UInt32 = 0
    }
    private let shared: UnsafeMutablePointer<Shared>
    private var thread = pthread_t()

    init(_ state: State) {
        shared = .allocate(capacity: 1)
        shared.initialize(to: Shared(state: state))
        pthread_create(
            &thread, nil,
            { raw in
                guard let shared = raw?.assumingMemoryBound(to: Shared.self) else { return nil }
                while shared.pointee.isDone == 0 {
                    usleep(1000)
                    martlet_request_attention(shared.pointee.state)
                }
                return nil
            }, shared)
    }

    func stop() {
        shared.pointee.isDone = 1
        pthread_join(thread, nil)
        shared.deallocate()
    }
}

/// What hooks roll their dice with.
private final class HookContext {
    var dice: Dice
    init(_ dice: Dice) { self.dice = dice }
}

/// A machine full of random tables, code and registers.
private final class FuzzMachine {
    let machine = TestMachine()
    private let rom = GuardedMemory(size: 0x1_0000)
    private let hooks = HookContext(Dice(seed: 1))
    private let attention: AttentionThread
    private var dice = Dice(seed: 1)
    private var program = FuzzProgram(encoder: IntegerEncoder(dice: Dice(seed: 1)))

    init() {
        // What the guest may only read, the host cannot write either.
        mprotect(rom.bytes, rom.size, PROT_READ)
        attention = AttentionThread(machine.state)
        installHooks()
    }

    deinit { attention.stop() }

    private func installHooks() {
        let s = machine.state
        s.pointee.hooks.context = Unmanaged.passUnretained(hooks).toOpaque()
        s.pointee.hooks.mmio = { context, _, _, isWrite, value in
            guard let context else { return 1 }
            let hooks = Unmanaged<HookContext>.fromOpaque(context).takeUnretainedValue()
            if hooks.dice.chance(2) { return 1 }
            if isWrite == 0 { value.pointee = hooks.dice.next() }
            return 0
        }
        s.pointee.hooks.port = { context, _, _, isWrite, value in
            guard let context else { return 1 }
            let hooks = Unmanaged<HookContext>.fromOpaque(context).takeUnretainedValue()
            if hooks.dice.chance(2) { return 1 }
            if isWrite == 0 { value.pointee = UInt32(truncatingIfNeeded: hooks.dice.next()) }
            return 0
        }
        s.pointee.hooks.read_msr = { context, index, value in
            value.pointee = UInt64(index)
            return index & 1 == 0 ? 0 : 1
        }
        s.pointee.hooks.write_msr = { _, index, _ in index & 1 == 0 ? 0 : 1 }
    }

    /// In lockstep: the two processors differed and cannot go on.
    var isBroken: Bool { machine.processor.lockstepReport != nil }

    var counters: (instructions: UInt64, exceptions: UInt64) {
        (machine.state.pointee.instruction_count, machine.state.pointee.exceptions_delivered)
    }

    // MARK: Set-up

    private func setUp(_ seed: UInt64) {
        dice = Dice(seed: seed)
        hooks.dice = Dice(seed: seed ^ 0x5555)
        program = FuzzProgram(encoder: IntegerEncoder(dice: Dice(seed: seed ^ 0xAAAA)))
        martlet_clear_attention(machine.state)
        machine.addSlots([
            martlet_slot(
                guest_physical: 0xF_0000_0000, size: 0x1_0000, host: rom.bytes.assumingMemoryBound(to: UInt8.self),
                page_index: 0, identifier: 1, flags: 2)
        ])
        var is32 = true
        switch dice.below(8) {
        case 0: setReal()
        case 1: machine.enterProtected()
        case 2:
            machine.enterProtected()
            machine.setPrivilege(3)
        case 3: setPaging32()
        default:
            machine.enterLong()
            is32 = dice.chance(4)
            machine.setPrivilege(dice.chance(2) ? 3 : 0, is32: is32)
        }
        if dice.chance(8) { machine.state.pointee.rflags |= RFlags.virtual8086 }
        if is32, dice.chance(2) { setThreadSegments() }
        fillCode(is32: is32)
        spoilTables()
        setRegisters()
        machine.processor.flushTLB()
        updateContext(machine.state)
    }

    private func setReal() {
        machine.enterProtected()
        machine.processor.reset()
        let s = machine.state
        for number in 0..<6 { loadRealSegment(s, number, UInt16(dice.below(0x8000))) }
        setCodeSegment(
            s, martlet_segment(selector: 0x4000, attributes: 0x9B, limit: 0xFFFF, base: 0x4_0000), cpl: 0)
    }

    /// 32-bit paging, with and without PAE, over the tables that long mode has.
    private func setPaging32() {
        machine.enterLong()
        let isPAE = dice.chance(2)
        machine.enterProtected()
        let s = machine.state
        if isPAE {
            for entry in UInt64(0)..<4 { machine.store(Place.tables + 0x2001, at: Place.tables + 0x1000 + entry * 8) }
            s.pointee.cr3 = Place.tables + 0x1000
        } else {
            for entry in UInt64(0)..<1024 {
                machine.store(UInt32(truncatingIfNeeded: entry << 22) | 0x87, at: Place.tables + 0x3000 + entry * 4)
            }
            s.pointee.cr3 = Place.tables + 0x3000
        }
        s.pointee.cr4 |= isPAE ? 0x20 : 0x10
        s.pointee.cr0 |= Control.paging
        if dice.chance(2) { machine.setPrivilege(3) }
    }

    /// FS and GS with a base, as threads have them, and with a limit.
    private func setThreadSegments() {
        for number in [SegmentRegister.fs, SegmentRegister.gs] {
            setSegment(
                machine.state, number,
                martlet_segment(
                    selector: Selector.userData, attributes: dice.chance(6) ? 0xC0F1 : 0xC0F3,
                    limit: dice.chance(2) ? .max : UInt32(dice.below(0x2000)),
                    base: Place.data + UInt64(dice.below(64)) * 4))
        }
    }

    private func fillCode(is32: Bool) {
        var position = Place.code
        let isNoise = dice.chance(4)
        while position < Place.code + 0x1800 {
            let bytes =
                isNoise ? [dice.byte()] : program.instruction(is32: is32, address: 0x2000_0000)
            machine.write(bytes, at: position)
            position += UInt64(bytes.count)
        }
        for offset in stride(from: UInt64(0), to: 0x800, by: 8) {
            machine.store(pointer(), at: Place.data + offset)
            machine.store(pointer(), at: Place.userStack - 0x400 + offset)
        }
    }

    /// Random entries among the good ones.
    private func spoilTables() {
        for _ in 0..<dice.below(40) { machine.store(entry(), at: Place.tables + UInt64(dice.below(0x800)) * 8) }
        for _ in 0..<dice.below(12) { machine.store(dice.next(), at: Place.gdt + UInt64(dice.below(32)) * 8) }
        for _ in 0..<dice.below(12) { machine.store(dice.next(), at: Place.idt + UInt64(dice.below(512)) * 8) }
        for vector in 0..<32 where dice.chance(2) {
            // Handlers that go on instead of halting.
            let code: [UInt8] = dice.pick([[0x48, 0xCF], [0xCF], [0x90, 0xCF], [0x83, 0xC4, 4, 0xCF], [0xEB, 0xFE]])
            machine.write(code, at: Place.handlers + UInt64(vector) * 16)
        }
        if dice.chance(3) { machine.store(UInt16(104), at: Place.task + 102) }
    }

    private func entry() -> UInt64 {
        let frame: UInt64 =
            switch dice.below(5) {
            case 0: dice.next() & PageBits.frame
            case 1: 0xF_0000_0000
            case 2: 0xFEE0_0000
            default: UInt64(dice.below(256)) << 12
            }
        return frame | (dice.next() & 0xFFF) | (dice.chance(3) ? 0 : 3) | (dice.chance(5) ? PageBits.noExecute : 0)
    }

    private func pointer() -> UInt64 {
        switch dice.below(12) {
        case 0: return dice.next()
        case 1: return dice.operand()
        case 2: return 0xFEE0_0000 + UInt64(dice.below(0x2000))
        case 3: return 0xF_0000_0000 + UInt64(dice.below(0x2_0000))
        case 4: return Place.code + UInt64(dice.below(0x1800))
        case 5: return (UInt64(dice.below(256)) << 12) &- UInt64(dice.below(8))
        case 6: return UInt64(dice.below(0x10_2000))
        case 7: return UInt64(dice.below(64)) << 3
        case 8: return 0x7FFF_FFFF_FFFF &- UInt64(dice.below(8))
        default: return Place.data + UInt64(dice.below(0x1000))
        }
    }

    private func setRegisters() {
        let s = machine.state
        for number in 0..<16 { s.setRegister(number, pointer()) }
        s.setRegister(1, dice.chance(2) ? UInt64(dice.below(64)) : dice.operand())
        s.setRegister(4, dice.chance(8) ? pointer() : Place.userStack)
        s.pointee.rip = s.isProtected ? Place.code + UInt64(dice.below(0x1000)) : UInt64(dice.below(0x1000))
        let mask = RFlags.status | RFlags.direction | RFlags.interrupt | RFlags.ioPrivilege | RFlags.alignmentCheck
        s.setFlags((s.flags & RFlags.virtual8086) | (dice.next() & mask) | (dice.chance(8) ? RFlags.trap : 0))
        s.pointee.lstar = pointer()
        s.pointee.star = dice.chance(2) ? 0x0023_0008_0000_0000 : dice.next()
        s.pointee.sysenter_cs = 8
        s.pointee.sysenter_eip = pointer()
        s.pointee.sysenter_esp = pointer()
        if dice.chance(2) { s.pointee.cr4 |= dice.next() & supportedCR4 & ~Control.physicalAddressExtension }
    }

    // MARK: Running

    /// One machine until it ends or a few milliseconds have passed. Returns the exits seen.
    func scenario(_ seed: UInt64) -> Int {
        setUp(seed)
        let processor = machine.processor
        var exits = 0
        var attentions = 0
        while attentions < 3, exits < 3000 {
            exits += 1
            if dice.chance(6) { machine.state.pointee.window_requested = 1 }
            if dice.chance(50) { machine.state.pointee.nmi_pending = 1 }
            switch machine.runProcessor() {
            case .attention:
                martlet_clear_attention(machine.state)
                attentions += 1
                meddle()
            case .portIO: answerPort()
            case .mmio: answerMMIO()
            case .halt, .window:
                machine.state.pointee.window_requested = 0
                if processor.canAcceptInterrupt {
                    processor.deliverInterrupt(dice.byte())
                } else {
                    machine.state.pointee.rip = Place.code + UInt64(dice.below(0x1000))
                }
            case .shutdown, .difference: return exits
            }
        }
        return exits
    }

    private func answerPort() {
        let s = machine.state
        #expect([1, 2, 4].contains(s.pointee.port_size))
        guard s.pointee.port_count > 0, s.pointee.port_count <= UInt16(MARTLET_PORT_BATCH) else {
            Issue.record("a port exit for \(s.pointee.port_count) accesses")
            return
        }
        if s.pointee.port_is_write == 0 {
            for index in 0..<Int(s.pointee.port_count) {
                martlet_port_data(s)[index] = UInt32(truncatingIfNeeded: dice.next())
            }
        }
        s.pointee.port_answered = s.pointee.port_count
    }

    private func answerMMIO() {
        let s = machine.state
        let number = Int(s.pointee.mmio_count)
        guard number < Int(MARTLET_MMIO_FRAGMENTS) else {
            Issue.record("more device accesses than there is room for")
            return
        }
        let fragment = s.mmioFragments + number
        #expect((1...8).contains(fragment.pointee.size))
        if fragment.pointee.is_write == 0 { fragment.pointee.value = dice.next() }
        s.pointee.mmio_count += 1
        s.pointee.mmio_pending = 0
    }

    /// What user space may do between runs.
    private func meddle() {
        let processor = machine.processor
        switch dice.below(8) {
        case 0: processor.registers = processor.registers
        case 1: processor.specialRegisters = processor.specialRegisters
        case 2:
            var special = processor.specialRegisters
            special.cr0 ^= 1 << UInt64(dice.below(32))
            special.cr4 = dice.next()
            special.efer ^= 1 << UInt64(dice.below(12))
            special.cr3 = pointer()
            processor.specialRegisters = special
        case 3: processor.fpu = processor.fpu
        case 4: processor.flushTLB()
        default: break
        }
    }
}

func residentPages() -> Int {
    let file = open("/proc/self/statm", O_RDONLY)
    defer { close(file) }
    var text = [CChar](repeating: 0, count: 128)
    guard read(file, &text, 127) > 0 else { return 0 }
    var size = 0
    var resident = 0
    _ = withUnsafeMutablePointer(to: &size) { first in
        withUnsafeMutablePointer(to: &resident) { second in
            withVaList([first, second]) { vsscanf(text, "%ld %ld", $0) }
        }
    }
    return resident
}

/// No stream of instructions traps, hangs or corrupts the process that runs it.
///
/// MARTLET_FUZZ_VERBOSE names each seed first.
@Suite(.serialized) struct FuzzTests {
    @Test func randomStreams() {
        let isVerbose = getenv("MARTLET_FUZZ_VERBOSE") != nil
        var machine = FuzzMachine()
        var exits = 0
        var scenarios = 0
        var differences = 0
        var instructions: UInt64 = 0
        var exceptions: UInt64 = 0
        for seed in FuzzSeeds(seconds: 8) {
            if isVerbose { print("seed \(seed)") }
            let before = machine.counters
            exits += machine.scenario(seed)
            instructions &+= machine.counters.instructions &- before.instructions
            exceptions &+= machine.counters.exceptions &- before.exceptions
            scenarios += 1
            if machine.isBroken {
                Issue.record("seed \(seed)")
                differences += 1
                if differences == 3 { break }
            }
            if scenarios % 100 == 0 || machine.isBroken { machine = FuzzMachine() }
        }
        // Otherwise most machines ended at their first instruction, and nothing was tested.
        if scenarios > 50 { #expect(exits > scenarios && instructions > UInt64(scenarios) * 20) }
        print("\(scenarios) machines, \(exits) exits, \(exceptions) exceptions, \(instructions) instructions")
    }

    /// In a process of its own, because memory is counted by process.
    @Test func machinesLeaveNoMemoryBehind() async {
        await #expect(processExitsWith: .success) {
            var resident = 0
            for round in 0..<12 {
                let machine = FuzzMachine()
                for seed in 0..<50 { _ = machine.scenario(UInt64(round * 50 + seed + 1)) }
                if round == 3 { resident = residentPages() }
            }
            #expect(residentPages() - resident < 16384, "memory grew by more than 64 MiB")
        }
    }
}
