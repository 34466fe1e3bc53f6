public import CHost
internal import Host
public import Hypervisor
internal import X86

/// The host kernel's hypervisor: `/dev/kvm`.
public struct KVMSystem: HypervisorSystem {
    static let path = "/dev/kvm"
    /// The only version there is; KVM promises not to change it (KVM API §4.1).
    static let apiVersion = 12

    let descriptor: KVMDescriptor

    public var name: String { "kvm" }

    /// Opens `/dev/kvm` and checks its version. The error says what is wrong and what to do.
    public init() throws(HypervisorError) {
        let file: FileDescriptor
        do {
            file = try FileDescriptor.open(KVMSystem.path, .readWrite)
        } catch {
            throw KVMProbe(openFailure: error.errorNumber).error
        }
        descriptor = KVMDescriptor(file)
        let version = try descriptor.call("KVM_GET_API_VERSION", kvm_ioctl_get_api_version)
        guard version == KVMSystem.apiVersion else {
            throw KVMProbe(availability: .wrongVersion(version), processorFlags: []).error
        }
    }

    public func supportedCPUID() throws(HypervisorError) -> [kvm_cpuid_entry2] {
        // KVM says E2BIG while the array is too small (KVM API §4.46).
        var capacity = 128
        while true {
            let entries = Array(repeating: kvm_cpuid_entry2(), count: capacity)
            let header = KVMEntriesHeader(count: UInt32(capacity))
            do {
                let answer = try descriptor.callWithEntries(
                    "KVM_GET_SUPPORTED_CPUID", kvm_ioctl_get_supported_cpuid, header: header, entries: entries)
                return Array(answer.entries.prefix(Int(answer.header.count)))
            } catch  where error.errorNumber == E2BIG && capacity < 4096 {
                capacity *= 2
            }
        }
    }

    public func createVirtualMachine() throws(HypervisorError) -> any VirtualMachine {
        let machine = try descriptor.call("KVM_CREATE_VM", kvm_ioctl_create_vm)
        let runSize = try descriptor.call("KVM_GET_VCPU_MMAP_SIZE", kvm_ioctl_get_vcpu_mmap_size)
        return KVMVirtualMachine(descriptor: KVMDescriptor(owning: machine), runSize: runSize)
    }
}

/// The head of kvm_cpuid2 and kvm_msrs: the number of entries, and padding to eight bytes.
struct KVMEntriesHeader: BitwiseCopyable {
    var count: UInt32
    var padding: UInt32 = 0
}
