internal import CHost
internal import DeviceModel
internal import Glibc
internal import Host
internal import Hypervisor

/// What the engine has beside its vCPUs, version 1: the interrupt controllers, the PIT, and the guest's clock, in KVM's
/// structures.
struct ControllerSavedState: DeviceSavedState {
    static let identifier = "controllers"
    static let version: UInt32 = 1

    /// kvm_irqchip of the two PICs and of the I/O APIC (KVM_IRQCHIP_*).
    var chips: [[UInt8]]
    /// kvm_pit_state2.
    var timer: [UInt8]
    /// kvm_clock_data.clock: nanoseconds of the guest's life.
    var clock: UInt64

    private static let chipCount: UInt32 = 3

    init(of machine: any VirtualMachine) throws(HypervisorError) {
        clock = try machine.clock().clock
        timer = StructureBytes.of(try machine.pitState())
        chips = []
        for id in 0..<Self.chipCount { chips.append(StructureBytes.of(try machine.irqChip(id: id))) }
    }

    /// Onto a machine with an irqchip and a PIT, before its first vCPU runs.
    func apply(to machine: any VirtualMachine) throws(HypervisorError) {
        for (id, bytes) in chips.enumerated() {
            guard let chip = StructureBytes.value(kvm_irqchip(), from: bytes), chip.chip_id == UInt32(id) else {
                throw Self.damaged("an interrupt controller")
            }
            try machine.setIRQChip(chip)
        }
        guard let state = StructureBytes.value(kvm_pit_state2(), from: timer) else { throw Self.damaged("the PIT") }
        try machine.setPITState(state)
        try setClock(of: machine)
    }

    /// The guest's clock goes on from where it stood.
    func setClock(of machine: any VirtualMachine) throws(HypervisorError) {
        var data = kvm_clock_data()
        data.clock = clock
        try machine.setClock(data)
    }

    private static func damaged(_ what: String) -> HypervisorError {
        HypervisorError("Restoring a machine", errorNumber: EINVAL, detail: "the saved state of \(what) is damaged")
    }

    // MARK: As bytes

    func encode(into encoder: inout StateEncoder) {
        for chip in chips { encoder.write(chip) }
        encoder.write(timer)
        encoder.write(clock)
    }

    private static let structureLimit = 4096

    init(from decoder: inout StateDecoder) throws(SavedStateError) {
        chips = []
        for _ in 0..<Self.chipCount { chips.append(try decoder.readBytes("chips", limit: Self.structureLimit)) }
        timer = try decoder.readBytes("timer", limit: Self.structureLimit)
        clock = try decoder.read()
    }
}
