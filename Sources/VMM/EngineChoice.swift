public import Hypervisor
internal import KernelKVM
public import SoftKVM

/// Which engine a machine gets, and why: what `--verbose` says.
public struct EngineChoice: Sendable {
    public let system: any HypervisorSystem
    public let reason: String
    public var name: String { system.name }

    /// `auto` takes `/dev/kvm` only where it can run an unmodified kernel; some hosts offer one that cannot.
    public init(_ accelerator: Accelerator, software: SoftwareEngine = .translator) throws(MachineError) {
        let soft = SoftSystem(engine: software)
        switch accelerator {
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
