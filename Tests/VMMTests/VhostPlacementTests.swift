internal import GuestMemory
internal import Host
internal import Hypervisor
internal import KernelKVM
internal import Net
internal import SoftKVM
internal import Synchronization
internal import Testing
internal import Virtio
internal import X86

@testable internal import VMM

@Suite("vhost-net: on which machines")
struct VhostPlacementTests {
    /// A back end without a network, that the kernel's data path is said to be able to take over.
    private final class OfferingBackend: NetworkBackend {
        let vhost: VhostOffer?
        let name = "tap test"
        let mtu: UInt16 = 1500
        let nativeOffloads: Offloads = .transmit
        let statistics = NetworkStatistics()

        init(isRequired: Bool) {
            vhost = VhostOffer(tap: BorrowedDescriptor(-1), isRequired: isRequired) { () throws(HostError) in
                throw HostError("no device", errorNumber: 2)
            }
        }

        func start(_ receiver: any FrameReceiver) throws(NetworkError) {}
        func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {}
        func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome { .sent }
        func resumeReceiving() {}
        func close() {}
    }

    private func machine(_ system: any HypervisorSystem, isRequired: Bool) throws -> Machine {
        let port = try NetworkPort(OfferingBackend(isRequired: isRequired))
        let options = NetworkCardOptions(mac: MACAddress(random: [1, 2, 3, 4, 5]))
        let configuration = MachineConfiguration(
            memorySize: 4 << 20, kernel: BusyKernel(), devices: [.network(port, options)])
        return try Machine(configuration, on: system, activity: try EventNotifier())
    }

    @Test("The software engine sees each write, and so has no such path", arguments: [SoftwareEngine.interpreter])
    func software(engine: SoftwareEngine) throws {
        let error = #expect(throws: MachineError.self) { try machine(SoftSystem(engine: engine), isRequired: true) }
        #expect(
            error?.description
                == "The software engine has no vhost=on (tap test): it has to see each write to the guest's memory. "
                + "Leave it out or use --accel kvm.")
        let other = try machine(SoftSystem(engine: engine), isRequired: false)
        #expect(other.memory.isObserved)
        other.pci.shutDown()
    }

    @Test(
        "The host's KVM sees by itself who writes",
        .enabled(if: KVMSystem.probe().availability == .usable, "no usable /dev/kvm"))
    func kernel() throws {
        let machine = try machine(try KVMSystem(), isRequired: true)
        #expect(!machine.memory.isObserved)
        machine.pci.shutDown()
    }
}
