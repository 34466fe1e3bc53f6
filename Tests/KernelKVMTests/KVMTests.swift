import CHost
import GuestMemory
import Host
import Hypervisor
import Testing
import X86

@testable import KernelKVM

/// The contract's methods on the real `/dev/kvm`; guests that run are GuestTests' business.
@Suite(.serialized, .enabled(if: KVMSystem.probe().availability == .usable, "/dev/kvm is not usable"))
struct KVMTests {
    private func makeMachine(irqchip: Bool = false) throws -> (GuestMemory, any VirtualMachine, any VirtualCPU) {
        let memory = GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: 1 << 20))
        ])
        let machine = try KVMSystem().createVirtualMachine()
        try machine.setTSSAddress(0xfffb_d000)
        try machine.setIdentityMapAddress(0xfffb_c000)
        if irqchip {
            try machine.createIRQChip()
            try machine.createPIT(speakerDummy: true)
        }
        var region = kvm_userspace_memory_region()
        region.flags = 1  // KVM_MEM_LOG_DIRTY_PAGES
        region.memory_size = 1 << 20
        region.userspace_addr = memory.regions[0].hostAddress
        try machine.setUserMemoryRegion(region)
        let cpu = try machine.createVirtualCPU(id: 0)
        try cpu.setCPUID(try KVMSystem().supportedCPUID())
        return (memory, machine, cpu)
    }

    /// Real mode at 0x1000.
    private func load(_ code: [UInt8], _ memory: GuestMemory, _ cpu: any VirtualCPU) throws {
        try memory.write(code, at: GuestPhysicalAddress(0x1000))
        var special = try cpu.specialRegisters()
        special.cs.base = 0
        special.cs.selector = 0
        try cpu.setSpecialRegisters(special)
        var registers = kvm_regs()
        registers.rip = 0x1000
        registers.rflags = 2
        try cpu.setRegisters(registers)
    }

    @Test func supportedCPUIDHasTheBasicLeaves() throws {
        let leaves = Set(try KVMSystem().supportedCPUID().map(\.function))
        #expect(leaves.isSuperset(of: [0, 1, 0x4000_0000, 0x8000_0000, 0x8000_0001]))
    }

    /// SDM vol. 3A table 10-1.
    @Test func resetState() throws {
        let (memory, _, cpu) = try makeMachine()
        try withExtendedLifetime(memory) {
            let registers = try cpu.registers()
            #expect(registers.rip == 0xfff0)
            #expect(registers.rflags == 2)
            let special = try cpu.specialRegisters()
            #expect(special.cs.base == 0xffff_0000)
            #expect(special.cs.selector == 0xf000)
            #expect(special.cr0 == 0x6000_0010)
        }
    }

    @Test func stateComesBackAsSet() throws {
        let (memory, machine, cpu) = try makeMachine(irqchip: true)
        try withExtendedLifetime(memory) {
            var registers = try cpu.registers()
            registers.r15 = 0x1234_5678_9abc_def0
            try cpu.setRegisters(registers)
            #expect(try cpu.registers().r15 == 0x1234_5678_9abc_def0)

            var fpu = try cpu.fpu()
            fpu.fcw = 0x27f
            fpu.mxcsr = 0x1f80
            try cpu.setFPU(fpu)
            #expect(try cpu.fpu().fcw == 0x27f)

            var area = try cpu.extendedState()
            #expect(area.count >= 4096)
            // XMM1, and SSE state in XSTATE_BV.
            area[176] = 0x5a
            area[512] |= 2
            try cpu.setExtendedState(area)
            #expect(try cpu.extendedState()[176] == 0x5a)
            #expect(throws: HypervisorError.self) { try cpu.setExtendedState([0]) }
            #expect(try cpu.extendedControlRegisters().map(\.value) == [1])

            try cpu.setModelSpecificRegisters([kvm_msr_entry(index: 0x174, reserved: 0, data: 0x55)])
            #expect(try cpu.modelSpecificRegisters([0x174]).map(\.data) == [0x55])

            try cpu.setMultiprocessingState(3)
            #expect(try cpu.multiprocessingState() == 3)
            var debug = try cpu.debugRegisters()
            debug.db.0 = 0x4000
            try cpu.setDebugRegisters(debug)
            #expect(try cpu.debugRegisters().db.0 == 0x4000)
            try cpu.setEvents(try cpu.events())
            try cpu.setLocalAPIC(try cpu.localAPIC())

            for id in UInt32(0)..<3 { try machine.setIRQChip(try machine.irqChip(id: id)) }
            try machine.setPITState(try machine.pitState())
            var clock = kvm_clock_data()
            clock.clock = 5_000_000_000
            try machine.setClock(clock)
            #expect((5_000_000_000..<65_000_000_000).contains(try machine.clock().clock))
        }
    }

    @Test func unknownMSRIsNamed() throws {
        let (memory, _, cpu) = try makeMachine()
        _ = withExtendedLifetime(memory) {
            #expect {
                try cpu.setModelSpecificRegisters([
                    kvm_msr_entry(index: 0x174, reserved: 0, data: 0),
                    kvm_msr_entry(index: 0x4bad_f00d, reserved: 0, data: 0),
                ])
            } throws: {
                "\($0)".contains("0x4badf00d")
            }
        }
    }

    @Test func errorsCarryCallAndErrno() throws {
        let (memory, machine, _) = try makeMachine()
        withExtendedLifetime(memory) {
            #expect {
                _ = try machine.createVirtualCPU(id: 0)
            } throws: {
                ($0 as? HypervisorError)?.operation == "KVM_CREATE_VCPU"
                    && ($0 as? HypervisorError)?.errorNumber == EEXIST
            }
            #expect(throws: HypervisorError.self) { _ = try machine.dirtyLog(slot: 7) }
        }
    }

    @Test func dirtyLogNamesTheWrittenPage() throws {
        let (memory, machine, cpu) = try makeMachine()
        // mov byte [0x5000], al; hlt
        try load([0xa2, 0x00, 0x50, 0xf4], memory, cpu)
        #expect(try cpu.run() == .halt)
        #expect(try machine.dirtyLog(slot: 0)[0] == 1 << 5)
        #expect(try machine.dirtyLog(slot: 0).allSatisfy { $0 == 0 })
    }

    /// struct kvm_irq_routing, with an entry of each kind.
    @Test func routesAndEvents() throws {
        let table = KVMVirtualMachine.routingTable([
            GSIRoute(gsi: GSI(5), target: .irqChip(GSIRoute.ioapic, pin: 6)),
            GSIRoute(gsi: GSI(24), target: .message(address: 0x1_fee0_0000, data: 0x40)),
        ])
        #expect(table.count == 8 + 2 * 48 && table[0] == 2)
        #expect(Array(table[8..<32]) == [5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0])
        #expect(Array(table[56..<64]) == [24, 0, 0, 0, 2, 0, 0, 0])
        #expect(Array(table[72..<84]) == [0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0x40, 0, 0, 0])
        let (memory, machine, _) = try makeMachine(irqchip: true)
        try withExtendedLifetime(memory) {
            try machine.setGSIRouting(
                GSIRoute.standard + [GSIRoute(gsi: GSI(24), target: .message(address: 0xfee0_0000, data: 0x40))])
            let notifier = try EventNotifier()
            let number = notifier.descriptor.rawValue
            try machine.setIRQEvent(number, gsi: GSI(24), isAssigned: true)
            try machine.setIRQEvent(number, gsi: GSI(24), isAssigned: false)
            let event = IOEvent(address: 0xc000_0000, length: 2, descriptor: number)
            try machine.setIOEvent(event, isAssigned: true)
            #expect(throws: HypervisorError.self) { try machine.setIOEvent(event, isAssigned: true) }
            try machine.setIOEvent(event, isAssigned: false)
        }
    }

    @Test func requestBeforeRunInterruptsItOnce() throws {
        let (memory, _, cpu) = try makeMachine()
        try load([0xf4], memory, cpu)
        cpu.requestExit()
        #expect(try cpu.run() == .interrupted)
        #expect(try cpu.registers().rip == 0x1000)
        #expect(try cpu.run() == .halt)
    }

    /// `jmp .`: only a request can end it.
    @Test func requestFromAnotherThreadEndsALoop() throws {
        let (memory, _, cpu) = try makeMachine()
        try load([0xeb, 0xfe], memory, cpu)
        // SAFETY: requestExit is for any thread, and the thread is joined below.
        nonisolated(unsafe) let shared = cpu
        let thread = try HostThread(name: "requester") {
            HostClock.sleep(nanoseconds: 20_000_000)
            shared.requestExit()
        }
        #expect(try cpu.run() == .interrupted)
        thread.join()
    }

    @Test func timerEndsALoop() throws {
        let (memory, _, cpu) = try makeMachine()
        try load([0xeb, 0xfe], memory, cpu)
        let timer = try ThreadTimer(kicking: .current)
        timer.arm(everyNanoseconds: 20_000_000)
        #expect(try cpu.run() == .interrupted)
        timer.disarm()
    }

    @Test func exitDataOutOfRangeIsHarmless() throws {
        let (memory, _, cpu) = try makeMachine()
        // in al, 0x10; hlt
        try load([0xe4, 0x10, 0xf4], memory, cpu)
        #expect(try cpu.run() == .io(port: IOPort(0x10), size: 1, count: 1, isWrite: false))
        cpu.setExitData(0x1ff, at: 0)
        cpu.setExitData(0x55, at: 1)
        cpu.setExitData(0x55, at: -1)
        #expect(cpu.exitData(0) == 0xff)
        #expect(cpu.exitData(1) == 0 && cpu.exitData(.max) == 0 && cpu.exitData(.min) == 0)
        #expect(try cpu.run() == .halt)
        #expect(try cpu.registers().rax == 0xff)
        cpu.setExitData(1, at: 0)
        #expect(cpu.exitData(0) == 0)
    }
}
