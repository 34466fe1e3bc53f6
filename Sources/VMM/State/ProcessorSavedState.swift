internal import CHost
internal import DeviceModel
internal import Glibc
internal import Host
internal import Hypervisor

/// A vCPU between two instructions, version 1: KVM's own structures, which are the same on both engines.
struct ProcessorSavedState: DeviceSavedState {
    static let identifier = "vcpu"
    static let version: UInt32 = 1

    struct Register: Equatable, Sendable {
        var index: UInt32
        var value: UInt64
    }

    /// kvm_regs, kvm_sregs, kvm_lapic_state, kvm_vcpu_events, kvm_debugregs.
    var general: [UInt8]
    var special: [UInt8]
    var localAPIC: [UInt8]
    var events: [UInt8]
    var debug: [UInt8]
    /// An XSAVE area in the standard format.
    var extendedState: [UInt8]
    var extendedControl: [Register]
    var modelSpecific: [Register]
    /// KVM_MP_STATE_*.
    var multiprocessing: UInt32

    /// The time-stamp counter comes first and its deadline last: what is between them may depend on the one, and the
    /// deadline on all of them.
    private static let firstRegisters: [UInt32] = [ModelRegister.tsc, ModelRegister.tscAdjust]
    private static let lastRegisters: [UInt32] = [ModelRegister.tscDeadline]
    private static let otherRegisters: [UInt32] =
        [
            0x48,  // IA32_SPEC_CTRL
            0x174, 0x175, 0x176,  // IA32_SYSENTER_CS, _ESP, _EIP
            0x1A0,  // IA32_MISC_ENABLE
            0x1D9,  // IA32_DEBUGCTL
            0x277, 0x2FF,  // IA32_PAT, IA32_MTRR_DEF_TYPE
            0xDA0,  // IA32_XSS
            0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084,  // IA32_STAR, _LSTAR, _CSTAR, _FMASK
            0xC000_0102, 0xC000_0103,  // IA32_KERNEL_GS_BASE, IA32_TSC_AUX
            0x4B56_4D00, 0x4B56_4D01,  // MSR_KVM_WALL_CLOCK_NEW, _SYSTEM_TIME_NEW
            0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D04, 0x4B56_4D05,  // _ASYNC_PF_EN, _STEAL_TIME, _EOI_EN, _POLL_CONTROL
            0x4B56_4D06,  // _ASYNC_PF_INT
        ] + (0x200...0x20F)  // variable MTRRs
        + [0x250, 0x258, 0x259] + (0x268...0x26F)  // fixed MTRRs

    /// On the vCPU's thread, after `run()` has returned `.interrupted`.
    init(of cpu: any VirtualCPU) throws(HypervisorError) {
        general = StructureBytes.of(try cpu.registers())
        special = StructureBytes.of(try cpu.specialRegisters())
        localAPIC = StructureBytes.of(try cpu.localAPIC())
        events = StructureBytes.of(try cpu.events())
        debug = StructureBytes.of(try cpu.debugRegisters())
        extendedState = try cpu.extendedState()
        extendedControl = try cpu.extendedControlRegisters().map { Register(index: $0.xcr, value: $0.value) }
        multiprocessing = try cpu.multiprocessingState()
        modelSpecific = []
        for index in Self.firstRegisters + Self.otherRegisters + Self.lastRegisters {
            // Each by itself: an engine or a processor that has not got one refuses it, and there is nothing to keep.
            guard let entry = try? cpu.modelSpecificRegisters([index]).first else { continue }
            modelSpecific.append(Register(index: index, value: entry.data))
        }
    }

    /// Onto a vCPU that has its CPUID and has not run yet.
    func apply(to cpu: any VirtualCPU) throws(HypervisorError) {
        try cpu.setSpecialRegisters(try Self.structure(kvm_sregs(), special, "special"))
        try cpu.setRegisters(try Self.structure(kvm_regs(), general, "general"))
        try cpu.setExtendedControlRegisters(
            extendedControl.map { kvm_xcr(xcr: $0.index, reserved: 0, value: $0.value) })
        try cpu.setExtendedState(extendedState)
        try cpu.setLocalAPIC(try Self.structure(kvm_lapic_state(), localAPIC, "localAPIC"))
        try cpu.setModelSpecificRegisters(
            modelSpecific.map { kvm_msr_entry(index: $0.index, reserved: 0, data: $0.value) })
        try cpu.setEvents(try Self.structure(kvm_vcpu_events(), events, "events"))
        try cpu.setDebugRegisters(try Self.structure(kvm_debugregs(), debug, "debug"))
        try cpu.setMultiprocessingState(multiprocessing)
    }

    /// With the time-stamp counter of another moment.
    mutating func setTime(_ time: StoppedTime) {
        for register in time.registers {
            guard let place = modelSpecific.firstIndex(where: { $0.index == register.index }) else { continue }
            modelSpecific[place] = register
        }
    }

    private static func structure<T>(
        _ zero: T, _ bytes: [UInt8], _ field: String
    ) throws(HypervisorError) -> T {
        guard let value = StructureBytes.value(zero, from: bytes) else {
            throw HypervisorError(
                "Restoring a vCPU", errorNumber: EINVAL,
                detail: "its saved state has \(bytes.count) bytes for \(field), not \(MemoryLayout<T>.size)")
        }
        return value
    }

    // MARK: As bytes

    func encode(into encoder: inout StateEncoder) {
        for structure in [general, special, localAPIC, events, debug, extendedState] { encoder.write(structure) }
        for registers in [extendedControl, modelSpecific] {
            encoder.write(UInt16(clamping: registers.count))
            for register in registers {
                encoder.write(register.index)
                encoder.write(register.value)
            }
        }
        encoder.write(multiprocessing)
    }

    private static let structureLimit = 64 << 10
    private static let registerLimit = 1024

    init(from decoder: inout StateDecoder) throws(SavedStateError) {
        general = try decoder.readBytes("general", limit: Self.structureLimit)
        special = try decoder.readBytes("special", limit: Self.structureLimit)
        localAPIC = try decoder.readBytes("localAPIC", limit: Self.structureLimit)
        events = try decoder.readBytes("events", limit: Self.structureLimit)
        debug = try decoder.readBytes("debug", limit: Self.structureLimit)
        extendedState = try decoder.readBytes("extendedState", limit: Self.structureLimit)
        extendedControl = try Self.registers("extendedControl", &decoder)
        modelSpecific = try Self.registers("modelSpecific", &decoder)
        multiprocessing = try decoder.read()
    }

    private static func registers(
        _ field: String, _ decoder: inout StateDecoder
    ) throws(SavedStateError) -> [Register] {
        let count = Int(try decoder.read(UInt16.self))
        guard count <= registerLimit else { throw .invalid(identifier: identifier, field: field) }
        var registers: [Register] = []
        for _ in 0..<count { registers.append(Register(index: try decoder.read(), value: try decoder.read())) }
        return registers
    }
}

/// Model-specific registers that a machine's pauses have to do with (SDM vol. 4 §2.1).
enum ModelRegister {
    static let tsc: UInt32 = 0x10
    static let tscAdjust: UInt32 = 0x3B
    static let tscDeadline: UInt32 = 0x6E0
}

/// What a guest's clocks showed when its processor stopped.
struct StoppedTime: Sendable {
    /// The time-stamp counter and the deadline on it; nil where the processor has none.
    let registers: [ProcessorSavedState.Register]

    /// On the vCPU's thread.
    init(of cpu: any VirtualCPU) {
        registers = [ModelRegister.tsc, ModelRegister.tscDeadline].compactMap { index in
            (try? cpu.modelSpecificRegisters([index]).first).map { .init(index: index, value: $0.data) }
        }
    }

    /// The time-stamp counter goes on from where it stood.
    func apply(to cpu: any VirtualCPU) throws(HypervisorError) {
        try cpu.setModelSpecificRegisters(registers.map { kvm_msr_entry(index: $0.index, reserved: 0, data: $0.value) })
    }
}
