public import Hypervisor
internal import KernelKVM
public import SoftKVM

/// Which engine a machine gets, and why: what `--verbose` says.
public struct EngineChoice: Sendable {
    public let system: any HypervisorSystem
    public let reason: String
    public var name: String { system.name }

    /// `auto` takes `/dev/kvm` only where it can run an unmodified kernel; some hosts offer one that cannot.
    /// Only the software engine can be observed.
    public init(
        _ accelerator: Accelerator, software: SoftwareEngine = .translator, observation: Observation = Observation()
    ) throws(MachineError) {
        let soft = SoftSystem(engine: software, observation: observation)
        switch accelerator {
        case .auto where observation.isOn:
            self.init(soft, because: "only it has what --profile and --trace look at")
        case .kvm where observation.isOn:
            throw MachineError(
                "--profile and --trace look into the software engine, and --accel kvm runs the guest on the processor. "
                    + "Use --accel soft, or perf kvm on the host."
            )
        case .soft:
            self.init(soft, because: "asked for with --accel soft")
        case .kvm:
            do {
                self.init(try KVMSystem(), because: "asked for with --accel kvm")
            } catch {
                let probe = KVMSystem.probe()
                throw MachineError(
                    "--accel kvm is not possible here: \(Self.sentence(probe.reason)) Use --accel soft, or see: martlet doctor"
                )
            }
        case .auto:
            let probe = KVMSystem.probe()
            guard probe.availability == .usable, probe.canRunUnmodifiedKernels else {
                self.init(soft, because: probe.reason)
                return
            }
            do {
                self.init(try KVMSystem(), because: probe.reason)
            } catch {
                self.init(soft, because: error.description)
            }
        }
    }

    private init(_ system: some HypervisorSystem, because reason: String) {
        self.system = system
        self.reason = reason
    }

    private static func sentence(_ text: String) -> String { text.hasSuffix(".") ? text : text + "." }
}
