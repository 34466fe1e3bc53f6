internal import CHost
internal import Glibc
internal import Host
internal import Hypervisor
internal import Testing
internal import X86

@testable import SoftKVM

/// KVM_IOEVENTFD, KVM_IRQFD and KVM_SET_GSI_ROUTING in the software engine.
@Suite struct EventTests {
    /// mov ax, 0x2000; mov ds, ax; mov [0x10], ax; mov [0x10], al; mov [0x10], ax; mov dx, 0x5678; out dx, al; hlt
    private static let program: [UInt8] = [
        0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa3, 0x10, 0x00, 0xa2, 0x10, 0x00, 0xa3, 0x10, 0x00, 0xba, 0x78, 0x56, 0xee,
        0xf4,
    ]

    private static let memoryEvent = IOEvent(address: 0x2_0010, length: 2, descriptor: 0)

    @Test func writesThatMatchAreNoExits() throws {
        let machine = try RealModeMachine(Self.program)
        let (memory, port) = (try EventNotifier(), try EventNotifier())
        var event = Self.memoryEvent
        event.descriptor = memory.descriptor.rawValue
        try machine.machine.setIOEvent(event, isAssigned: true)
        let portEvent = IOEvent(
            address: 0x5678, length: 0, isPort: true, match: 0, descriptor: port.descriptor.rawValue)
        try machine.machine.setIOEvent(portEvent, isAssigned: true)
        let address = GuestPhysicalAddress(0x2_0010)
        #expect(try machine.run() == .mmio(address: address, size: 1, isWrite: true), "another width")
        #expect(memory.consume() == 1 && port.consume() == 0)
        #expect(try machine.run() == .halt)
        #expect(memory.consume() == 1 && port.consume() == 1)
    }

    @Test func otherValuesAndRemovedEventsAreExits() throws {
        let machine = try RealModeMachine(Self.program)
        let notifier = try EventNotifier()
        var event = Self.memoryEvent
        event.descriptor = notifier.descriptor.rawValue
        event.match = 7
        try machine.machine.setIOEvent(event, isAssigned: true)
        #expect(throws: HypervisorError.self) { try machine.machine.setIOEvent(event, isAssigned: true) }
        let exit = VirtualCPUExit.mmio(address: GuestPhysicalAddress(0x2_0010), size: 2, isWrite: true)
        #expect(try machine.run() == exit)
        try machine.machine.setIOEvent(event, isAssigned: false)
        #expect(throws: HypervisorError.self) { try machine.machine.setIOEvent(event, isAssigned: false) }
        _ = try machine.run()
        #expect(try machine.run() == exit)
        #expect(notifier.consume() == 0)
        event.length = 3
        #expect(throws: HypervisorError.self) { try machine.machine.setIOEvent(event, isAssigned: true) }
    }

    @Test func lockstepHasNoEventsBesideTheGuest() throws {
        let machine = SoftVirtualMachine(tscFrequency: TimestampCounter.frequency, engine: .lockstep)
        #expect(machine.writesOnlyInExits)
        #expect { try machine.setIOEvent(Self.memoryEvent, isAssigned: true) } throws: {
            ($0 as? HypervisorError)?.errorNumber == ENOTSUP
        }
    }

    @Test func signalsAreEdgesOfLines() throws {
        let machine = try RealModeMachine([0xf4], irqChip: true).machine
        let notifier = try EventNotifier()
        let number = notifier.descriptor.rawValue
        try machine.setIRQEvent(number, gsi: GSI(5), isAssigned: true)
        #expect(throws: HypervisorError.self) { try machine.setIRQEvent(number, gsi: GSI(5), isAssigned: true) }
        notifier.signal()
        let limit = HostClock.monotonicNanoseconds + 60_000_000_000
        var requests: UInt8 = 0
        while requests & 1 << 5 == 0, HostClock.monotonicNanoseconds < limit {
            var chip = try machine.irqChip(id: 0)
            requests = kvm_irqchip_pic(&chip).pointee.irr
            HostClock.sleep(nanoseconds: 100_000)
        }
        #expect(requests & 1 << 5 != 0)
        try machine.setIRQEvent(number, gsi: GSI(5), isAssigned: false)
        #expect(throws: HypervisorError.self) { try machine.setIRQEvent(number, gsi: GSI(5), isAssigned: false) }
    }

    @Test func routesOfMessages() throws {
        var fabric = InterruptFabric(tscFrequency: 1_000_000_000)
        fabric.isPresent = true
        _ = fabric.addAPIC(id: 0, tscOffset: 0)
        let now = HostInstant(nanoseconds: 1, tsc: 1)
        fabric.writeAPICPage(0, offset: 0xf0, size: 4, value: 0x1ff, at: now)
        fabric.messageRoutes = [30: InterruptMessage(msiAddress: 0xfee0_0000, data: 0x51)]
        fabric.pulse(31)
        #expect(!fabric.hasInterrupt(for: 0))
        fabric.pulse(30)
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x51)
        fabric.setLine(30, level: false)
        #expect(!fabric.hasInterrupt(for: 0))
        // KVM_IRQ_LINE on a message's GSI sends it, too.
        fabric.messageRoutes = [30: InterruptMessage(msiAddress: 0xfee0_0000, data: 0x61)]
        fabric.setLine(30, level: true)
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x61)
    }

    @Test func wiringOfLinesIsFixed() throws {
        let machine = SoftVirtualMachine(tscFrequency: TimestampCounter.frequency)
        try machine.setGSIRouting(
            GSIRoute.standard + [GSIRoute(gsi: GSI(24), target: .message(address: 0xfee0_0000, data: 0x40))])
        for route in [
            GSIRoute(gsi: GSI(5), target: .irqChip(GSIRoute.ioapic, pin: 6)),
            GSIRoute(gsi: GSI(5), target: .message(address: 0xfee0_0000, data: 0x40)),
        ] {
            #expect(throws: HypervisorError.self) { try machine.setGSIRouting([route]) }
        }
    }
}
