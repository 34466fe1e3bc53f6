public import CHost
internal import CPU
public import Hypervisor

/// KVM in software: needs neither VT-x nor AMD-V, nor any privilege.
public struct SoftSystem: HypervisorSystem {
    public init() {
        // The measurement of the TSC runs while its caller prepares the machine.
        _ = TimestampCounter.origin
    }

    public var name: String { "soft" }

    public func supportedCPUID() throws(HypervisorError) -> [kvm_cpuid_entry2] {
        CPUIDLeaves.complete(Processor.supportedCPUID(), tscFrequency: TimestampCounter.frequency)
    }

    public func createVirtualMachine() throws(HypervisorError) -> any VirtualMachine {
        SoftVirtualMachine(tscFrequency: TimestampCounter.frequency)
    }
}
