import Glibc
import Testing

@testable import KernelKVM

@Suite struct KVMProbeTests {
    @Test(arguments: [
        (ENOENT, KVMProbe.Availability.missing), (EACCES, .noPermission), (EPERM, .noPermission),
        (ENODEV, .unusable(errorNumber: ENODEV)),
    ])
    func failureToOpen(errorNumber: Int32, availability: KVMProbe.Availability) {
        let probe = KVMProbe(openFailure: errorNumber)
        #expect(probe.availability == availability)
        #expect(!probe.canRunUnmodifiedKernels)
        // What, why, what to do, in one line.
        #expect(probe.reason.contains("/dev/kvm") && !probe.advice.isEmpty)
        #expect(!"\(probe.error)".contains("\n"))
    }

    @Test(
        arguments: [
            (["fpu", "vmx"], true), (["svm"], true), (["fpu", "hypervisor"], false), ([], false),
        ] as [(Set<String>, Bool)])
    func hardware(flags: Set<String>, isPresent: Bool) {
        let probe = KVMProbe(availability: .usable, processorFlags: flags)
        #expect(probe.canRunUnmodifiedKernels == isPresent)
        #expect(probe.reason.contains("emulator") == !isPresent)
        #expect(probe.advice.isEmpty == isPresent)
    }

    @Test func wrongVersion() {
        let probe = KVMProbe(availability: .wrongVersion(11), processorFlags: ["vmx"])
        #expect(!probe.canRunUnmodifiedKernels)
        #expect(probe.reason == "/dev/kvm speaks API version 11, not 12")
    }

    @Test func probeAgreesWithOpening() {
        #expect((KVMSystem.probe().availability == .usable) == ((try? KVMSystem()) != nil))
    }
}
