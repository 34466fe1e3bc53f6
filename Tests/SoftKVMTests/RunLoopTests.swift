internal import CHost
internal import Glibc
internal import Host
internal import Hypervisor
internal import Synchronization
internal import Testing
internal import X86

@testable import SoftKVM

private let spin: [UInt8] = [0xeb, 0xfe]  // jmp itself

@Suite struct RunLoopTests {
    // MARK: Exits

    @Test func portExits() throws {
        let machine = try RealModeMachine([
            0xb8, 0x34, 0x12,  // mov ax, 0x1234
            0xba, 0xf8, 0x03,  // mov dx, 0x3f8
            0xee,  // out dx, al
            0xef,  // out dx, ax
            0xe4, 0x60,  // in al, 0x60
            0xa2, 0x00, 0x05,  // mov [0x500], al
            0xf4,  // hlt
        ])
        let cpu = machine.cpus[0]
        #expect(try machine.run() == .io(port: IOPort(0x3f8), size: 1, count: 1, isWrite: true))
        #expect(cpu.exitData(0) == 0x34)
        #expect(try machine.run() == .io(port: IOPort(0x3f8), size: 2, count: 1, isWrite: true))
        #expect(cpu.exitData(0) == 0x1234)
        #expect(try machine.run() == .io(port: IOPort(0x60), size: 1, count: 1, isWrite: false))
        cpu.setExitData(0xabcd, at: 0)
        #expect(try machine.run() == .halt)
        #expect(machine.word(0x500) == 0xcd)
        #expect(try cpu.registers().rip == 0x100e)
        #expect(try cpu.registers().rax == 0x12cd)
        #expect(cpu.statistics.portExits == 3)
        #expect(cpu.statistics.haltExits == 1)
        let translation = cpu.statistics.translation
        #expect(translation.decodedBlocks >= 1 && translation.decodedInstructions >= 7)
        #expect(translation.translatedBlocks == 0)
        #expect(translation.cachedInstructions > 0 && translation.cachedInstructions < 100)
        #expect(translation.residentBytes > 4096 && translation.residentBytes < 64 << 20)
        #expect(translation.cyclesPerSecond > 1_000_000)
    }

    /// REP INS asks for all that it can store at once, as KVM does.
    @Test func stringReadIsOneExit() throws {
        let machine = try RealModeMachine([
            0xb9, 0x03, 0x00, 0xbf, 0x00, 0x06, 0xba, 0x60, 0x00,  // cx = 3, di = 0x600, dx = 0x60
            0xfc, 0xf3, 0x6c, 0xf4,  // cld; rep insb; hlt
        ])
        let cpu = machine.cpus[0]
        #expect(try machine.run() == .io(port: IOPort(0x60), size: 1, count: 3, isWrite: false))
        for index in 0..<3 { cpu.setExitData(0x100 + UInt64(index) + 7, at: index) }
        // Beyond the exit's elements there is nothing.
        cpu.setExitData(0xff, at: 3)
        cpu.setExitData(0xff, at: -1)
        #expect(cpu.exitData(3) == 0)
        #expect(try machine.run() == .halt)
        #expect(machine.quad(0x600) == 0x09_0807)
        #expect(try cpu.registers().rcx == 0)
    }

    @Test func memoryMappedExits() throws {
        let machine = try RealModeMachine([
            0xb8, 0x00, 0xf0,  // mov ax, 0xf000
            0x8e, 0xd8,  // mov ds, ax
            0x8b, 0x1e, 0x10, 0x00,  // mov bx, [0x10]
            0x43,  // inc bx
            0x89, 0x1e, 0x20, 0x00,  // mov [0x20], bx
            0xfe, 0x06, 0x30, 0x00,  // inc byte [0x30]
            0xf4,
        ])
        let cpu = machine.cpus[0]
        func access(_ address: UInt64, _ size: Int, isWrite: Bool) -> VirtualCPUExit {
            .mmio(address: GuestPhysicalAddress(address), size: size, isWrite: isWrite)
        }
        // Only 64 KiB are RAM; the segment 0xf000 begins at 0xf0000.
        #expect(try machine.run() == access(0xf0010, 2, isWrite: false))
        cpu.setExitData(0xfffe, at: 0)
        #expect(try machine.run() == access(0xf0020, 2, isWrite: true))
        #expect(cpu.exitData(0) == 0xffff)
        #expect(try machine.run() == access(0xf0030, 1, isWrite: false))
        cpu.setExitData(0x41, at: 0)
        #expect(try machine.run() == access(0xf0030, 1, isWrite: true))
        #expect(cpu.exitData(0) == 0x42)
        #expect(try machine.run() == .halt)
        #expect(cpu.statistics.memoryMappedExits == 4)
    }

    @Test func tripleFault() throws {
        let machine = try RealModeMachine([0x0f, 0x0b])  // ud2
        var special = try machine.cpus[0].specialRegisters()
        special.idt.limit = 0
        try machine.cpus[0].setSpecialRegisters(special)
        #expect(try machine.run() == .shutdown)
        #expect(machine.cpus[0].lastException?.vector == 8)
    }

    // MARK: Requests from outside

    @Test func requestBeforeRun() throws {
        let machine = try RealModeMachine(spin)
        machine.cpus[0].requestExit()
        #expect(try machine.run() == .interrupted)
        #expect(try machine.cpus[0].registers().rip == 0x1000)
    }

    @Test(arguments: [false, true])
    func requestEndsGuestCode(isHalted: Bool) throws {
        // A loop, or HLT with IF = 0 that nothing but a request ends.
        let machine = try RealModeMachine(isHalted ? [0xf4] : spin, irqChip: isHalted)
        let cpu = machine.cpus[0]
        let expected = UInt32(isHalted ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE)
        try machine.runWithRequests { try cpu.multiprocessingState() == expected }
        #expect(try cpu.multiprocessingState() == expected)
    }

    /// As KVM with immediate_exit: the answered access completes, nothing behind it runs.
    @Test func requestCompletesTheAnsweredAccess() throws {
        let machine = try RealModeMachine([0xe4, 0x60, 0x40, 0x40, 0xf4])  // in al, 0x60; inc ax twice; hlt
        let cpu = machine.cpus[0]
        #expect(try machine.run() == .io(port: IOPort(0x60), size: 1, count: 1, isWrite: false))
        cpu.setExitData(0x77, at: 0)
        cpu.requestExit()
        #expect(try machine.run() == .interrupted)
        #expect(try cpu.registers().rip == 0x1002)
        #expect(try cpu.registers().rax == 0x77)
        #expect(try machine.run() == .halt)
        #expect(try cpu.registers().rax == 0x79)
    }

    /// User space that moves rip at an exit (a reset) does not leave an answer for the next access.
    @Test func movedInstructionPointerDropsTheAnswer() throws {
        let machine = try RealModeMachine([0xe4, 0x60, 0xf4, 0xe4, 0x61, 0xf4])
        let cpu = machine.cpus[0]
        _ = try machine.run()
        var registers = try cpu.registers()
        registers.rip = 0x1003
        try cpu.setRegisters(registers)
        #expect(try machine.run() == .io(port: IOPort(0x61), size: 1, count: 1, isWrite: false))
    }

    /// Another thread replaces the memory behind a page that the guest reads all the time.
    @Test func memoryCanChangeWhileTheGuestRuns() throws {
        let machine = try RealModeMachine([
            0xb8, 0x00, 0x80, 0x8e, 0xd8,  // ds = 0x8000
            0xa1, 0x00, 0x00,  // mov ax, [0]
            0x26, 0xa3, 0x00, 0x05,  // mov es:[0x500], ax
            0xeb, 0xf7,  // and so on
        ])
        let cpu = machine.cpus[0]
        let page = try HostMapping(size: 0x2000)
        for number in 0..<2 as Range<UInt16> {
            page.address.storeBytes(of: 0x1111 * (number + 1), toByteOffset: Int(number) << 12, as: UInt16.self)
        }
        let missed = Mutex<[UInt16]>([])
        let thread = try HostThread(name: "slots") {
            for round in 0..<20 as Range<Int> where missed.withLock({ $0.isEmpty }) {
                var region = machine.region()
                region.slot = 1
                region.guest_phys_addr = 0x8_0000
                region.memory_size = 0x1000
                region.userspace_addr = UInt64(UInt(bitPattern: page.address)) + UInt64(round & 1) << 12
                try? machine.machine.setUserMemoryRegion(region)
                let expected = UInt16(0x1111 * (round & 1 + 1))
                let until = HostClock.monotonicNanoseconds + 60_000_000_000
                while machine.word(RealModeMachine.result) != expected {
                    guard HostClock.monotonicNanoseconds < until else {
                        missed.withLock { $0.append(expected) }
                        break
                    }
                }
                region.memory_size = 0
                try? machine.machine.setUserMemoryRegion(region)
            }
            cpu.requestExit()
        }
        // Between the slots the page is device memory.
        var exit = try machine.run(seconds: 600)
        while case .mmio = exit { exit = try machine.run(seconds: 600) }
        #expect(exit == .interrupted)
        thread.join()
        #expect(missed.withLock { $0 } == [])
    }

    // MARK: Interrupts without an irqchip

    @Test func injectionThroughTheWindow() throws {
        let machine = try RealModeMachine([
            0xfa,  // cli
            0xe6, 0xf4,  // out 0xf4, al
            0x90, 0xfb, 0x90, 0x90,  // nop; sti; nop; nop
            0xe6, 0xf5,  // out 0xf5, al
            0xf4,
        ])
        machine.setVector(0x41, to: RealModeMachine.handler)
        machine.load([0xff, 0x06, 0x00, 0x05, 0xcf], at: RealModeMachine.handler)  // inc word [0x500]; iret
        let cpu = machine.cpus[0]
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        #expect(!cpu.isReadyForInterruptInjection)
        cpu.setInterruptWindowRequested(true)
        #expect(try machine.run() == .interruptWindowOpen)
        #expect(cpu.isReadyForInterruptInjection)
        // Behind the STI and its shadow.
        #expect(try cpu.registers().rip == 0x1006)
        cpu.setInterruptWindowRequested(false)
        try cpu.injectInterrupt(vector: 0x41)
        #expect(throws: HypervisorError.self) { try cpu.injectInterrupt(vector: 0x42) }
        #expect(try machine.run() == .io(port: IOPort(0xf5), size: 1, count: 1, isWrite: true))
        #expect(machine.word(0x500) == 1)
        #expect(cpu.statistics.interruptsInjected == 1)
    }

    // MARK: The irqchip

    /// PIT in mode 2 at about 1 kHz, through PIC and ExtINT, waited for in HLT.
    @Test func timerTicksWakeHalt() throws {
        let machine = try RealModeMachine(
            [
                0xb0, 0x11, 0xe6, 0x20,  // ICW1–4: vectors from 0x20
                0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
                0xb0, 0xfe, 0xe6, 0x21,  // only IRQ 0
                0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40,  // 1193 counts
                0xfb, 0xf4, 0xfa,  // sti; hlt; cli
                0x83, 0x3e, 0x00, 0x05, 0x14,  // cmp word [0x500], 20
                0x72, 0xf6,  // jb
                0xe6, 0xf4, 0xf4,  // out 0xf4, al; hlt
            ], irqChip: true)
        machine.setVector(0x20, to: RealModeMachine.handler)
        machine.load([0xff, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], at: RealModeMachine.handler)
        let start = HostClock.monotonicNanoseconds
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        let elapsed = HostClock.monotonicNanoseconds - start
        // More where the host is so busy that the next tick is due before CLI.
        let ticks = machine.word(0x500)
        #expect(ticks >= 20)
        #expect(elapsed >= 19_500_000)
        #expect(machine.cpus[0].statistics.halts > 0)
        #expect(machine.cpus[0].statistics.interruptsInjected == UInt64(ticks))
    }

    /// A guest that never leaves guest code is interrupted by its TSC deadlines (x2APIC, real mode).
    @Test func timerInterruptsBusyGuest() throws {
        // rdtsc; add eax, 2000000; adc edx, 0; mov ecx, 0x6e0; wrmsr
        let arm: [UInt8] = [
            0x0f, 0x31, 0x66, 0x05, 0x80, 0x84, 0x1e, 0x00, 0x66, 0x83, 0xd2, 0x00, 0x66, 0xb9, 0xe0, 0x06, 0x00, 0x00,
            0x0f, 0x30,
        ]
        let machine = try RealModeMachine(
            enableX2APIC + [
                0x66, 0xb9, 0x32, 0x08, 0x00, 0x00,  // mov ecx, 0x832
                0x66, 0xb8, 0x30, 0x00, 0x04, 0x00,  // mov eax, 0x40030: TSC-deadline, vector 0x30
                0x66, 0x31, 0xd2, 0x0f, 0x30,  // xor edx, edx; wrmsr
            ] + arm + [
                0xfb,  // sti
                0x83, 0x3e, 0x00, 0x05, 0x05,  // cmp word [0x500], 5
                0x72, 0xf9,  // jb
                0xfa, 0xe6, 0xf4, 0xf4,  // cli; out 0xf4, al; hlt
            ], irqChip: true)
        machine.setVector(0x30, to: RealModeMachine.handler)
        let count: [UInt8] = [
            0xff, 0x06, 0x00, 0x05,  // inc word [0x500]
            0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30,  // EOI
            0x83, 0x3e, 0x00, 0x05, 0x05,  // cmp word [0x500], 5
            0x73, UInt8(arm.count),  // jae, to the end: on a busy host a sixth one could come before CLI
        ]
        machine.load(count + arm + [0xcf], at: RealModeMachine.handler)
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        #expect(machine.word(0x500) == 5)
        #expect(machine.cpus[0].statistics.interruptsInjected == 5)
        #expect(machine.cpus[0].statistics.halts == 0)
    }

    private let enableX2APIC: [UInt8] = [
        0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32,  // mov ecx, 0x1b; rdmsr
        0x66, 0x0d, 0x00, 0x0c, 0x00, 0x00, 0x0f, 0x30,  // or eax, 0xc00; wrmsr
        0x66, 0xb9, 0x0f, 0x08, 0x00, 0x00,  // mov ecx, 0x80f
        0x66, 0xb8, 0xff, 0x01, 0x00, 0x00,  // mov eax, 0x1ff
        0x66, 0x31, 0xd2, 0x0f, 0x30,  // xor edx, edx; wrmsr
    ]

    @Test func lineFromAnotherThreadWakesHalt() throws {
        let machine = try RealModeMachine(
            [
                0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
                0xfb, 0xf4, 0xe6, 0xf4,  // sti; hlt; out 0xf4, al
            ], irqChip: true)
        machine.setVector(0x24, to: RealModeMachine.handler)
        machine.load([0xff, 0x06, 0x00, 0x05, 0xcf], at: RealModeMachine.handler)
        let isAwake = Atomic<Bool>(false)
        let thread = try HostThread(name: "device") {
            // Edges, since one before the controller is initialized is lost; the handler keeps it in service.
            while !isAwake.load(ordering: .relaxed) {
                HostClock.sleep(nanoseconds: 20_000_000)
                try? machine.machine.setIRQLine(GSI(4), level: false)
                try? machine.machine.setIRQLine(GSI(4), level: true)
            }
        }
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        isAwake.store(true, ordering: .relaxed)
        thread.join()
        #expect(machine.word(0x500) == 1)
    }

    @Test func anotherProcessorStarts() throws {
        let machine = try RealModeMachine(
            enableX2APIC + [
                0x66, 0xb9, 0x30, 0x08, 0x00, 0x00,  // mov ecx, 0x830
                0x66, 0xb8, 0x00, 0x45, 0x00, 0x00,  // INIT
                0x66, 0xba, 0x01, 0x00, 0x00, 0x00, 0x0f, 0x30,  // to APIC 1
                0x66, 0xb8, 0x03, 0x46, 0x00, 0x00, 0x0f, 0x30,  // SIPI, page 3
                0x80, 0x3e, 0x00, 0x05, 0x5a, 0x75, 0xf9,  // until [0x500] is 0x5a
                0xe6, 0xf4, 0xf4,
            ], irqChip: true, cpus: 2)
        machine.load(
            [
                0x31, 0xc0, 0x8e, 0xd8,  // ds = 0
                0x8c, 0xcb,  // mov bx, cs
                0xc6, 0x06, 0x00, 0x05, 0x5a,  // mov byte [0x500], 0x5a
                0x89, 0xd8, 0xe7, 0xf5, 0xf4,  // mov ax, bx; out 0xf5, ax; hlt
            ], at: 0x3000)
        #expect(try machine.cpus[1].multiprocessingState() == UInt32(KVM_MP_STATE_UNINITIALIZED))
        let other = machine.cpus[1]
        let result = Mutex<VirtualCPUExit?>(nil)
        let thread = try HostThread(name: "vcpu 1") {
            let exit = try? machine.run(1)
            result.withLock { $0 = exit }
        }
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        thread.join()
        #expect(result.withLock { $0 } == .io(port: IOPort(0xf5), size: 2, count: 1, isWrite: true))
        #expect(other.exitData(0) == 0x300)
        #expect(try other.multiprocessingState() == UInt32(KVM_MP_STATE_RUNNABLE))
    }

    // MARK: kvmclock

    @Test func clockPages() throws {
        let machine = try RealModeMachine(
            [
                0x66, 0xb9, 0x01, 0x4d, 0x56, 0x4b, 0x66, 0xb8, 0x01, 0x60, 0x00, 0x00, 0x66, 0x31, 0xd2, 0x0f, 0x30,
                0x66, 0xb9, 0x00, 0x4d, 0x56, 0x4b, 0x66, 0xb8, 0x00, 0x61, 0x00, 0x00, 0x0f, 0x30,
                0xe6, 0xf4, 0xf4,
            ], logsDirtyPages: true)
        let cpu = machine.cpus[0]
        #expect(try machine.run() == .io(port: IOPort(0xf4), size: 1, count: 1, isWrite: true))
        #expect(machine.word(0x6000) == 2)
        #expect(machine.word(0x601d) & 0xff == 1)
        #expect(machine.word(0x6100) & 1 == 0)
        let wall = machine.quad(0x6104) & 0xffff_ffff
        #expect(UInt64(time(nil)) - wall < 60)
        #expect(try machine.machine.dirtyLog(slot: 0)[0] & (1 << 6) != 0)
        #expect(try machine.machine.dirtyLog(slot: 0)[0] & (1 << 6) == 0)

        // What a guest computes from the page is what KVM_GET_CLOCK says, before and after.
        let tolerance: UInt64 = 1_000_000
        let before = try machine.machine.clock().clock
        let tsc = try cpu.modelSpecificRegisters([0x10])[0].data
        let after = try machine.machine.clock().clock
        let shown = guestTime(machine, atTSC: tsc)
        #expect(shown + tolerance >= before && shown <= after + tolerance)

        // KVM_SET_CLOCK reaches the page before the guest runs on.
        let start = HostClock.monotonicNanoseconds
        var data = kvm_clock_data()
        data.clock = 5_000_000_000_000
        try machine.machine.setClock(data)
        #expect(try machine.run() == .halt)
        let later = guestTime(machine, atTSC: try cpu.modelSpecificRegisters([0x10])[0].data)
        let end = try machine.machine.clock().clock
        #expect(later + tolerance >= data.clock && later <= end + tolerance)
        // It goes on as fast as the host's, whose counter's frequency is measured better than to a hundredth.
        let elapsed = HostClock.monotonicNanoseconds - start
        #expect(end >= data.clock && end - data.clock <= elapsed + elapsed / 100 + tolerance)
        #expect(machine.word(0x6000) % 2 == 0)
        #expect(try cpu.modelSpecificRegisters([0x4b56_4d01])[0].data == 0x6001)
    }

    private func guestTime(_ machine: RealModeMachine, atTSC tsc: UInt64) -> UInt64 {
        var scale = ParavirtualClock.Scale(tscFrequency: 1)
        scale.multiplier = UInt32(truncatingIfNeeded: machine.quad(0x6018))
        scale.shift = Int8(truncatingIfNeeded: machine.quad(0x6018) >> 32)
        return machine.quad(0x6010) &+ scale.nanoseconds(forTicks: tsc &- machine.quad(0x6008))
    }

    // MARK: State

    @Test func stateRoundTrips() throws {
        let cpu = try RealModeMachine(spin, irqChip: true).cpus[0]
        var events = try cpu.events()
        events.nmi.masked = 1
        events.interrupt.injected = 1
        events.interrupt.nr = 0x77
        try cpu.setEvents(events)
        #expect(try cpu.events().nmi.masked == 1)
        #expect(try cpu.events().interrupt.nr == 0x77)
        #expect(try cpu.specialRegisters().interrupt_bitmap.1 == 1 << 0x37)
        var debug = try cpu.debugRegisters()
        debug.db.2 = 0x1234
        debug.dr7 = 0x455
        try cpu.setDebugRegisters(debug)
        #expect(try cpu.debugRegisters().db.2 == 0x1234)
        #expect(try cpu.debugRegisters().dr7 == 0x455)
        #expect(throws: HypervisorError.self) { try cpu.setMultiprocessingState(77) }

        var special = try cpu.specialRegisters()
        #expect(special.apic_base == 0xfee0_0900)
        special.cr8 = 5
        special.apic_base = 0xfee0_0d00
        try cpu.setSpecialRegisters(special)
        #expect(try cpu.specialRegisters().cr8 == 5)
        #expect(try cpu.modelSpecificRegisters([0x1b, 0x808, 0x802]).map(\.data) == [0xfee0_0d00, 0x50, 0])
        try cpu.setModelSpecificRegisters([
            kvm_msr_entry(index: 0x832, reserved: 0, data: 0x4_0040),
            kvm_msr_entry(index: 0x6e0, reserved: 0, data: .max),
        ])
        #expect(try cpu.modelSpecificRegisters([0x6e0])[0].data == .max)
        let apic = try cpu.localAPIC()
        try cpu.setLocalAPIC(apic)
        #expect(try cpu.modelSpecificRegisters([0x6e0])[0].data == .max)
        #expect(throws: HypervisorError.self) { try cpu.modelSpecificRegisters([0xdead]) }

        // User space moves the time-stamp counter and the guest's adjustment of it one without the other.
        func write(_ index: UInt32, _ value: UInt64) throws {
            try cpu.setModelSpecificRegisters([kvm_msr_entry(index: index, reserved: 0, data: value)])
        }
        try write(0x3b, 77)
        try write(0x10, 1 << 50)
        let moved = try cpu.modelSpecificRegisters([0x10, 0x3b]).map(\.data)
        #expect(moved[0] >> 50 == 1 && moved[1] == 77)
        try write(0x3b, 0)
        #expect(try cpu.modelSpecificRegisters([0x10])[0].data >> 50 == 1)
    }

    /// IA32_APIC_BASE takes the x2APIC mode only where CPUID has it: #GP, to the handler at 0:2000H.
    @Test(arguments: [true, false]) func extendedModeNeedsItsFeature(isThere: Bool) throws {
        // MOV ECX, 1BH; RDMSR; OR AH, 4; WRMSR; HLT, and in the handler MOV BYTE [500H], 1; HLT
        let machine = try RealModeMachine(
            [0x66, 0xB9, 0x1B, 0, 0, 0, 0x0F, 0x32, 0x80, 0xCC, 4, 0x0F, 0x30, 0xC6, 0x06, 0, 5, 2, 0xF4], irqChip: true
        )
        machine.setVector(13, to: RealModeMachine.handler)
        machine.load([0xC6, 0x06, 0, 5, 1, 0xF4], at: RealModeMachine.handler)
        let cpu = machine.cpus[0]
        if !isThere {
            let leaves = try SoftSystem().supportedCPUID().map { entry in
                var entry = entry
                if entry.function == 1 { entry.ecx &= ~(1 << 21) }
                return entry
            }
            try cpu.setCPUID(leaves)
        }
        // HLT waits in the engine.
        try machine.runWithRequests { machine.word(RealModeMachine.result) & 0xFF != 0 }
        #expect(machine.word(RealModeMachine.result) & 0xFF == (isThere ? 2 : 1))
        #expect(try cpu.specialRegisters().apic_base & 0x400 == (isThere ? 0x400 : 0))
    }

    @Test func machineRefusesWhatKVMRefuses() throws {
        let plain = SoftVirtualMachine(tscFrequency: 1_000_000_000)
        #expect(throws: HypervisorError.self) { try plain.createPIT(speakerDummy: false) }
        #expect(throws: HypervisorError.self) { try plain.setIRQLine(GSI(1), level: true) }
        #expect(throws: HypervisorError.self) { try plain.irqChip(id: 0) }
        #expect(throws: HypervisorError.self) { try plain.dirtyLog(slot: 3) }
        _ = try plain.createVirtualCPU(id: 0)
        #expect(throws: HypervisorError.self) { try plain.createVirtualCPU(id: 0) }
        #expect(throws: HypervisorError.self) { try plain.createVirtualCPU(id: 4096) }
        #expect(throws: HypervisorError.self) { try plain.createIRQChip() }

        let machine = try RealModeMachine(spin, irqChip: true)
        #expect(throws: HypervisorError.self) { try machine.machine.createIRQChip() }
        #expect(throws: HypervisorError.self) { try machine.machine.irqChip(id: 3) }
        var region = machine.region()
        region.slot = 1
        #expect(throws: HypervisorError.self) { try machine.machine.setUserMemoryRegion(region) }
        // What a slot is made of cannot change, only where it is and whether it is logged.
        region.slot = 0
        region.memory_size = 0x1000
        #expect(throws: HypervisorError.self) { try machine.machine.setUserMemoryRegion(region) }
        region.slot = 1
        region.guest_phys_addr = 0x10_0001
        #expect(throws: HypervisorError.self) { try machine.machine.setUserMemoryRegion(region) }
        region.guest_phys_addr = .max & ~0xfff
        #expect(throws: HypervisorError.self) { try machine.machine.setUserMemoryRegion(region) }
        for id in 0..<3 as Range<UInt32> {
            let chip = try machine.machine.irqChip(id: id)
            #expect(chip.chip_id == id)
            try machine.machine.setIRQChip(chip)
        }
        try machine.machine.setPITState(try machine.machine.pitState())
    }
}
