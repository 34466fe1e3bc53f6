import Hypervisor
import KernelKVM
import SoftKVM
import Testing

/// An engine under test, where the host has what it needs.
enum Engine: String, CustomTestStringConvertible {
    case kernel
    case soft
    case translated
    case lockstep

    var testDescription: String { rawValue }

    /// nil where this host cannot run the engine.
    func makeSystem() throws -> (any HypervisorSystem)? {
        switch self {
        case .kernel: KVMSystem.probe().availability == .usable ? try KVMSystem() : nil
        case .soft: SoftSystem(engine: .interpreter)
        case .translated: SoftSystem(engine: .translator)
        case .lockstep: SoftSystem(engine: .lockstep)
        }
    }
}
