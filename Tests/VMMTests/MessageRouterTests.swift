internal import CHost
internal import DeviceModel
internal import Host
internal import Hypervisor
internal import KernelKVM
internal import SoftKVM
internal import Testing

@testable internal import VMM

/// Messages of PCI functions into a vCPU's local APIC, which does not run: on both engines, both ways.
@Suite("Message routes", .serialized)
struct MessageRouterTests {
    enum Engine: CaseIterable {
        case soft, kernel

        static var available: [Engine] { KVMSystem.probe().availability == .usable ? [.soft, .kernel] : [.soft] }
    }

    private struct Rig {
        let machine: any VirtualMachine
        let cpu: any VirtualCPU

        init(_ engine: Engine) throws {
            let system: any HypervisorSystem = engine == .soft ? SoftSystem(engine: .interpreter) : try KVMSystem()
            machine = try system.createVirtualMachine()
            try machine.setTSSAddress(0xfffb_d000)
            try machine.setIdentityMapAddress(0xfffb_c000)
            try machine.createIRQChip()
            cpu = try machine.createVirtualCPU(id: 0)
            try cpu.setCPUID(try system.supportedCPUID())
            // The spurious-interrupt vector register: the APIC is on (SDM vol. 3A §11.9).
            var apic = try cpu.localAPIC()
            withUnsafeMutableBytes(of: &apic) { $0.storeBytes(of: 0x1ff, toByteOffset: 0xf0, as: UInt32.self) }
            try cpu.setLocalAPIC(apic)
        }

        /// The vectors that were requested since the last call (SDM vol. 3A §11.8.4: IRR at 0x200).
        func takeRequests() throws -> [Int] {
            var apic = try cpu.localAPIC()
            let requests = withUnsafeMutableBytes(of: &apic) { bytes in
                defer {
                    for word in 0..<8 { bytes.storeBytes(of: 0, toByteOffset: 0x200 + word * 16, as: UInt32.self) }
                }
                return (0..<256).filter { vector in
                    bytes.load(fromByteOffset: 0x200 + vector / 32 * 16, as: UInt32.self) & 1 << UInt32(vector % 32)
                        != 0
                }
            }
            try cpu.setLocalAPIC(apic)
            return requests
        }

        /// Once something is there; the software engine has a thread between.
        func waitForRequests() throws -> [Int] {
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while HostClock.monotonicNanoseconds < end {
                let requests = try takeRequests()
                if !requests.isEmpty { return requests }
                HostClock.sleep(nanoseconds: 1_000_000)
            }
            return []
        }
    }

    private func message(_ vector: UInt32, address: UInt64 = 0xfee0_0000) -> PCIMessage {
        PCIMessage(address: address, data: vector)
    }

    private func source(_ vector: Int, owner: Int = 1) -> MessageRouter.Source { .init(owner: owner, vector: vector) }

    @Test("A vector's message arrives, also after it was changed", arguments: Engine.available, [true, false])
    func messages(engine: Engine, usesEvents: Bool) throws {
        let rig = try Rig(engine)
        let router = MessageRouter(rig.machine, usesEvents: usesEvents)
        for (vector, data) in [(0, 0x41), (1, 0x42), (0, 0x41), (0, 0x51), (1, 0x42), (0, 0x41)] as [(Int, UInt32)] {
            router.send(message(data), from: source(vector))
            #expect(try rig.waitForRequests() == [Int(data)], "vector \(vector)")
        }
        router.send(message(0x61), from: source(0, owner: 2))
        #expect(try rig.waitForRequests() == [0x61])
        #expect(router.routeCount == (usesEvents ? 3 : 0))
    }

    @Test("What no engine routes spoils no other vector", arguments: Engine.available, [true, false])
    func nonsense(engine: Engine, usesEvents: Bool) throws {
        let rig = try Rig(engine)
        let router = MessageRouter(rig.machine, usesEvents: usesEvents)
        router.send(message(0x41), from: source(0))
        #expect(try rig.waitForRequests() == [0x41])
        let addresses: [UInt64] = [0, .max, 0xffff_ffff_fee0_0000, 0x1234_5678, 0xfeef_f000]
        for (index, address) in addresses.enumerated() {
            for data in [0, .max, 0x700] as [UInt32] {
                router.send(PCIMessage(address: address, data: data), from: source(index))
                router.send(PCIMessage(address: address, data: data), from: source(9))
            }
        }
        HostClock.sleep(nanoseconds: 20_000_000)
        _ = try rig.takeRequests()
        for vector in [0, 9, 1] {
            router.send(message(0x71), from: source(vector))
            #expect(try rig.waitForRequests() == [0x71], "vector \(vector)")
        }
    }

    @Test("More vectors than there are routes: the others go as they are")
    func many() throws {
        let rig = try Rig(.soft)
        let router = MessageRouter(rig.machine, usesEvents: true, routeLimit: 3)
        for vector in [0, 1, 2, 3, 4, 0, 4] {
            router.send(message(UInt32(0x41 + vector)), from: source(vector))
            #expect(try rig.waitForRequests() == [0x41 + vector])
        }
        #expect(router.routeCount == 3)
    }

    @Test("Only where the eventfd is the shorter way")
    func choice() throws {
        #expect(try !Rig(.soft).machine.takesIRQEventsDirectly)
        guard Engine.available.contains(.kernel) else { return }
        #expect(try Rig(.kernel).machine.takesIRQEventsDirectly)
    }
}
