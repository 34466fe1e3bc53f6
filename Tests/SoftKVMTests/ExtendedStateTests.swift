internal import CHost
internal import Glibc
internal import Hypervisor
internal import Testing

@testable import SoftKVM

/// KVM_GET_XSAVE2 to KVM_SET_XCRS.
@Suite struct ExtendedStateTests {
    @Test func stateComesBackAsSet() throws {
        let machine = try RealModeMachine([0xf4])
        let cpu = machine.cpus[0]
        var area = try cpu.extendedState()
        // XMM1, SSE in XSTATE_BV.
        area[176] = 0x5a
        area[512] |= 2
        try cpu.setExtendedState(area)
        #expect(try cpu.extendedState()[176] == 0x5a)
        #expect(try cpu.fpu().xmm.1.0 == 0x5a)
        #expect(try cpu.extendedControlRegisters().map(\.value) == [1])
        try cpu.setExtendedControlRegisters([kvm_xcr(xcr: 0, reserved: 0, value: 3)])
        #expect(try cpu.extendedControlRegisters().map(\.value) == [3])
    }

    @Test func refusalsAreNamed() throws {
        let machine = try RealModeMachine([0xf4])
        let cpu = machine.cpus[0]
        var area = try cpu.extendedState()
        area[519] = 0x80
        func refused(_ text: String, _ body: () throws -> Void) {
            do {
                try body()
                Issue.record("taken, not refused: \(text)")
            } catch let error as HypervisorError {
                #expect(error.errorNumber == EINVAL && error.description.contains(text))
            } catch {
                Issue.record(error)
            }
        }
        refused("0x8000000000000000") { try cpu.setExtendedState(area) }
        refused("too short") { try cpu.setExtendedState([]) }
        area[519] = 0
        area[520] = 1
        refused("reserved") { try cpu.setExtendedState(area) }
        refused("XCR0 = 0x2") { try cpu.setExtendedControlRegisters([kvm_xcr(xcr: 0, reserved: 0, value: 2)]) }
    }
}
