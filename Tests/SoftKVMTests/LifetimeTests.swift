internal import Glibc
internal import Host
internal import Hypervisor
internal import Testing
internal import X86

@testable import SoftKVM

/// Machines that are made, run and dropped leave nothing behind: no object, no memory, no descriptor, no thread.
@Suite struct LifetimeTests {
    private struct Parts {
        weak var machine: SoftVirtualMachine?
        weak var cpu: SoftVirtualCPU?
        weak var memory: HostMapping?

        var isGone: Bool { machine == nil && cpu == nil && memory == nil }
    }

    private func live() throws -> Parts {
        // mov al, 1; out 0x80, al; hlt
        let machine = try RealModeMachine([0xb0, 0x01, 0xe6, 0x80, 0xf4], irqChip: true, cpus: 2)
        #expect(try machine.run() == .io(port: IOPort(0x80), size: 1, count: 1, isWrite: true))
        return Parts(machine: machine.machine, cpu: machine.cpus[0], memory: machine.mapping)
    }

    private func entries(of directory: String) -> Int {
        guard let stream = opendir(directory) else { return 0 }
        defer { closedir(stream) }
        var count = 0
        while readdir(stream) != nil { count += 1 }
        return count
    }

    @Test func nothingIsLeftOfAMachine() throws { #expect(try live().isGone) }

    @Test func manyMachinesTakeNoMoreThanOne() throws {
        for _ in 0..<3 { _ = try live() }
        let before = (entries(of: "/proc/self/fd"), entries(of: "/proc/self/task"))
        for _ in 0..<100 { _ = try live() }
        // Other tests run at the same time.
        #expect(entries(of: "/proc/self/fd") - before.0 < 50)
        #expect(entries(of: "/proc/self/task") - before.1 < 50)
    }
}
