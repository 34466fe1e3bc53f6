public import CHost
internal import CPU
public import Hypervisor

/// How the software engine executes guest code.
public enum SoftwareEngine: String, CaseIterable, Sendable {
    /// Each instruction by itself: the reference.
    case interpreter
    /// Hot 64-bit code, and 32-bit code with flat segments, as host code.
    case translator
    /// The same with the status flags exact in every frame of a fault or an interrupt, which costs time.
    case exact
    /// Both at once on the same guest, compared: for finding faults in either.
    case lockstep

    /// Cold code is cheaper to interpret than to translate.
    private static let translationThreshold: Int32 = 16

    var execution: Execution {
        switch self {
        case .interpreter: .interpreter
        case .translator: .translator(threshold: Self.translationThreshold)
        case .exact: .translator(threshold: Self.translationThreshold, exactFlags: true)
        case .lockstep: .lockstep(threshold: Self.translationThreshold)
        }
    }
}

/// KVM in software: needs neither VT-x nor AMD-V, nor any privilege.
public struct SoftSystem: HypervisorSystem {
    private let engine: SoftwareEngine
    private let observation: Observation

    public init(engine: SoftwareEngine = .translator, observation: Observation = Observation()) {
        self.engine = engine
        self.observation = observation
        // The measurement of the TSC runs while its caller prepares the machine.
        _ = TimestampCounter.origin
    }

    public var name: String { "soft" }

    public func supportedCPUID() throws(HypervisorError) -> [kvm_cpuid_entry2] {
        CPUIDLeaves.complete(Processor.supportedCPUID(), tscFrequency: TimestampCounter.frequency)
    }

    public func createVirtualMachine() throws(HypervisorError) -> any VirtualMachine {
        SoftVirtualMachine(tscFrequency: TimestampCounter.frequency, engine: engine, observation: observation)
    }
}
