internal import CHost
internal import Host
internal import Hypervisor

/// What the host's KVM is good for, found without starting a guest.
public struct KVMProbe: Equatable, Sendable {
    public enum Availability: Equatable, Sendable {
        case missing
        case noPermission
        case unusable(errorNumber: Int32)
        case wrongVersion(Int)
        case usable
    }

    public let availability: Availability
    /// Whether the processor shows hardware virtualization. Without it a `/dev/kvm` (as PVM hosts have) runs ordinary
    /// kernels only through its instruction emulator, which is slow and incomplete.
    public let hasHardwareVirtualization: Bool

    /// Opens `/dev/kvm`, looks at /proc/cpuinfo, closes again.
    public init() {
        self.init(availability: KVMProbe.tryToOpen(), processorFlags: HostProcessor().flags)
    }

    init(availability: Availability, processorFlags: Set<String>) {
        self.availability = availability
        hasHardwareVirtualization = !processorFlags.isDisjoint(with: ["vmx", "svm"])
    }

    init(openFailure errorNumber: Int32) {
        self.init(availability: KVMProbe.availability(ofOpenFailure: errorNumber), processorFlags: [])
    }

    private static func tryToOpen() -> Availability {
        do {
            let file = try FileDescriptor.open(KVMSystem.path, .readWrite)
            let version = host_ioctl_value(file.rawValue, kvm_ioctl_get_api_version, 0)
            if version < 0 { return .unusable(errorNumber: Int32(truncatingIfNeeded: -version)) }
            return version == KVMSystem.apiVersion ? .usable : .wrongVersion(version)
        } catch {
            return availability(ofOpenFailure: error.errorNumber)
        }
    }

    private static func availability(ofOpenFailure errorNumber: Int32) -> Availability {
        switch errorNumber {
        case ENOENT: .missing
        case EACCES, EPERM: .noPermission
        default: .unusable(errorNumber: errorNumber)
        }
    }

    /// Whether an unmodified operating system can be expected to run well.
    public var canRunUnmodifiedKernels: Bool { availability == .usable && hasHardwareVirtualization }

    /// What was found, in one line.
    public var reason: String {
        switch availability {
        case .missing: "\(KVMSystem.path) does not exist: this kernel offers no KVM"
        case .noPermission: "\(KVMSystem.path) exists, but this user may not open it"
        case .unusable(let errorNumber): "\(HostError("\(KVMSystem.path) does not work", errorNumber: errorNumber))"
        case .wrongVersion(let version):
            "\(KVMSystem.path) speaks API version \(version), not \(KVMSystem.apiVersion)"
        case .usable where !hasHardwareVirtualization:
            "\(KVMSystem.path) opens, but the processor shows neither vmx nor svm: "
                + "ordinary kernels would run in KVM's instruction emulator, which is slow and incomplete"
        case .usable: "\(KVMSystem.path) is usable"
        }
    }

    /// What to do about it; empty where nothing needs doing.
    public var advice: String {
        switch availability {
        case .missing:
            "enable virtualization in the firmware or the cloud instance and load kvm_intel or kvm_amd, "
                + "or use --accel soft"
        case .noPermission:
            "add the user to the group kvm (usermod -aG kvm USER, then log in again), or use --accel soft"
        case .unusable, .wrongVersion: "use --accel soft"
        case .usable: canRunUnmodifiedKernels ? "" : "use --accel soft"
        }
    }

    /// The same as an error that a person can act on.
    var error: HypervisorError {
        let errorNumber =
            switch availability {
            case .missing: ENOENT
            case .noPermission: EACCES
            case .unusable(let errorNumber): errorNumber
            case .wrongVersion, .usable: ENOTSUP
            }
        return HypervisorError("Opening \(KVMSystem.path)", errorNumber: errorNumber, detail: "\(reason); \(advice)")
    }
}

extension KVMSystem {
    /// What the host's KVM is good for, for `martlet doctor` and for the choice of the engine.
    public static func probe() -> KVMProbe { KVMProbe() }
}
