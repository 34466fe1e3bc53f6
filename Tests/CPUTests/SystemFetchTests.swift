internal import CHost
import Testing

@testable import CPU

/// Code that is reached through the jump cache after the address space changed (SDM vol. 3A §4.10.2.4, §4.10.4.1).
@Suite("Fetch after CR3 loads")
struct SystemFetchTests {
    /// mov cr3, rax; hlt. Then the page at `target` is run: mov ebx, imm32; hlt.
    private static let target: UInt64 = 0x4_0000
    private static let physicalPages: [UInt64] = [0x5_0000, 0x6_0000]

    /// Two address spaces that differ in where `target` leads; both map it global or both not.
    private func machine(isGlobal: Bool) throws -> (TestMachine, [UInt64]) {
        let machine = TestMachine(isAlone: true)
        var roots: [UInt64] = []
        for (number, physical) in Self.physicalPages.enumerated() {
            let code: [UInt8] = [0xBB, UInt8(number + 1), 0, 0, 0, 0xF4]
            for (offset, byte) in code.enumerated() {
                machine.ram.bytes.storeBytes(of: byte, toByteOffset: Int(physical) + offset, as: UInt8.self)
            }
            roots.append(tables(machine, at: 0x8_0000 + UInt64(number) * 0x8000, target: physical, isGlobal: isGlobal))
        }
        let entry: [UInt8] = [0x0F, 0x22, 0xD8, 0xFF, 0xE1]
        for (offset, byte) in entry.enumerated() {
            machine.ram.bytes.storeBytes(of: byte, toByteOffset: 0x1000 + offset, as: UInt8.self)
        }
        enterLongMode(machine, root: roots[0])
        return (machine, roots)
    }

    /// Four levels that map the first MiB to itself, all global but `target` as asked.
    private func tables(_ machine: TestMachine, at base: UInt64, target: UInt64, isGlobal: Bool) -> UInt64 {
        let ram = machine.ram.bytes
        for level in 0..<3 {
            ram.storeBytes(
                of: (base + UInt64(level + 1) * 0x1000) | 3, toByteOffset: Int(base) + level * 0x1000, as: UInt64.self)
        }
        for page in 0..<256 {
            let address = UInt64(page) << 12
            let isTarget = address == Self.target
            let entry = (isTarget ? target : address) | 3 | (!isTarget || isGlobal ? PageBits.global : 0)
            ram.storeBytes(of: entry, toByteOffset: Int(base) + 0x3000 + page * 8, as: UInt64.self)
        }
        return base
    }

    private func enterLongMode(_ machine: TestMachine, root: UInt64) {
        var special = machine.processor.specialRegisters
        special.cr0 = 0x8000_0011
        special.cr3 = root
        special.cr4 = Control.physicalAddressExtension | Control.globalPages
        special.efer = Control.longModeEnable | Control.longModeActive
        special.cs.base = 0
        special.cs.limit = .max
        special.cs.selector = 8
        special.cs.type = 0xB
        special.cs.l = 1
        special.cs.db = 0
        special.cs.g = 1
        special.ss.dpl = 0
        machine.processor.specialRegisters = special
    }

    /// Loads CR3 with `root` and jumps to `target`; what the code there left in RBX.
    private func run(_ machine: TestMachine, _ root: UInt64) -> UInt64 {
        var registers = machine.processor.registers
        registers.rip = 0x1000
        registers.rax = root
        registers.rcx = Self.target
        registers.rflags = 2
        machine.processor.registers = registers
        #expect(machine.runProcessor() == .halt)
        return machine.processor.registers.rbx
    }

    @Test("A page that is not global is found anew in each address space", arguments: [false, true])
    func local(invalidatesBetween: Bool) throws {
        let (machine, roots) = try machine(isGlobal: false)
        for round in 0..<8 {
            // INVLPG of another page must not make what is left look global.
            if invalidatesBetween { flushPage(machine.state, 0x9000) }
            #expect(run(machine, roots[round & 1]) == UInt64(round & 1) + 1)
        }
    }

    @Test("A global page stays until INVLPG")
    func global() throws {
        let (machine, roots) = try machine(isGlobal: true)
        #expect(run(machine, roots[0]) == 1)
        #expect(run(machine, roots[1]) == 1)
        flushPage(machine.state, Self.target)
        #expect(run(machine, roots[1]) == 2)
        #expect(run(machine, roots[0]) == 2)
        machine.processor.flushTLB()
        #expect(run(machine, roots[0]) == 1)
    }
}
