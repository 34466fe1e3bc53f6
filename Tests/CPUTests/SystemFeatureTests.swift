internal import CHost
import Testing
internal import X86

@testable import CPU

/// What a guest loses together with a feature of its CPUID leaves.
@Suite struct SystemFeatureTests {
    /// The processor's leaves without one bit.
    private func leaves(
        without leaf: UInt32, _ register: CPUIDRegister, bit: UInt32
    ) -> [kvm_cpuid_entry2] {
        Processor.supportedCPUID().map { entry in
            var entry = entry
            guard entry.function == leaf, entry.index == 0 else { return entry }
            switch register {
            case .eax: entry.eax &= ~(1 << bit)
            case .ebx: entry.ebx &= ~(1 << bit)
            case .ecx: entry.ecx &= ~(1 << bit)
            case .edx: entry.edx &= ~(1 << bit)
            }
            return entry
        }
    }

    private static let rdmsr: [UInt8] = [0x0F, 0x32]
    private static let wrmsr: [UInt8] = [0x0F, 0x30]
    private static let registers: [(msr: UInt32, code: [UInt8], leaf: UInt32, register: CPUIDRegister, bit: UInt32)] = [
        (0x3B, rdmsr, 7, .ebx, 1), (0x48, rdmsr, 7, .edx, 26), (0x48, wrmsr, 7, .edx, 26),
        (0x49, wrmsr, 7, .edx, 26), (0x10A, rdmsr, 7, .edx, 29),
    ]

    /// MSRs: #GP without their feature; the engine itself still reaches them (KVM_GET_MSRS).
    @Test(arguments: registers)
    func modelSpecific(msr: UInt32, code: [UInt8], leaf: UInt32, register: CPUIDRegister, bit: UInt32) throws {
        for isThere in [true, false] {
            let machine = TestMachine()
            machine.enterLong(userFrom: .max)
            if !isThere { machine.processor.setCPUID(leaves(without: leaf, register, bit: bit)) }
            let trapped = try #require(machine.execute(code, [0: 0, 1: UInt64(msr), 2: 0]))
            #expect(trapped.vector == (isThere ? 3 : 13))
            #expect(msr == 0x49 || machine.processor.readMSR(msr) != nil)
        }
    }

    /// The registers of a processor that needs no mitigations (SDM vol. 4, IA32_ARCH_CAPABILITIES, IA32_SPEC_CTRL).
    @Test func immunity() throws {
        let machine = TestMachine()
        machine.enterLong(userFrom: .max)
        _ = try #require(machine.execute(Self.rdmsr, [1: 0x10A]))
        let value = machine.state.register(0) | machine.state.register(2) << 32
        // RDCL_NO, IBRS_ALL, MDS_NO, TAA_NO, GDS_NO, RFDS_NO, ITS_NO.
        for bit in [0, 1, 5, 8, 26, 27, 62] { #expect(value >> UInt64(bit) & 1 == 1, "\(bit)") }
        // IBRS and BHI_DIS_S are taken, a reserved bit is not.
        #expect(try #require(machine.execute(Self.wrmsr, [0: 0x401, 1: 0x48, 2: 0])).vector == 3)
        #expect(machine.processor.readMSR(0x48) == 0x401)
        #expect(try #require(machine.execute(Self.wrmsr, [0: 0x8, 1: 0x48, 2: 0])).vector == 13)
        #expect(machine.processor.cpuid(7, 2).3 & 1 << 4 != 0 && machine.processor.cpuid(7, 0).0 >= 2)
    }

    private static let controls: [(cr4: UInt64, leaf: UInt32, register: CPUIDRegister, bit: UInt32)] = [
        (Control.userModeInstructionPrevention, 7, .ecx, 2), (Control.fsgsbase, 7, .ebx, 0),
        (Control.processContextIdentifiers, 1, .ecx, 17), (Control.extendedStateEnable, 1, .ecx, 26),
        (Control.smep, 7, .ebx, 7), (Control.smap, 7, .ebx, 20),
    ]

    /// Bits of CR4: reserved without their feature, for MOV and for KVM_SET_SREGS.
    @Test(arguments: controls)
    func controlRegister(cr4: UInt64, leaf: UInt32, register: CPUIDRegister, bit: UInt32) throws {
        for isThere in [true, false] {
            let machine = TestMachine()
            machine.enterLong(userFrom: .max)
            if !isThere { machine.processor.setCPUID(leaves(without: leaf, register, bit: bit)) }
            let old = machine.state.pointee.cr4
            let trapped = try #require(machine.execute([0x0F, 0x22, 0xE0], [0: old | cr4]))
            #expect(trapped.vector == (isThere ? 3 : 13))
            #expect(machine.state.pointee.cr4 == (isThere ? old | cr4 : old))
            var special = machine.processor.specialRegisters
            special.cr4 = old | cr4
            machine.processor.specialRegisters = special
            #expect(machine.processor.specialRegisters.cr4 == (isThere ? old | cr4 : old))
        }
    }
}
