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

    /// In a process of its own, because descriptors and threads are counted by process.
    @Test func manyMachinesTakeNoMoreThanOne() async {
        await #expect(processExitsWith: .success) {
            let tests = LifetimeTests()
            for _ in 0..<3 { _ = try tests.live() }
            let descriptors = tests.entries(of: "/proc/self/fd")
            let threads = tests.entries(of: "/proc/self/task")
            for _ in 0..<100 { _ = try tests.live() }
            #expect(tests.entries(of: "/proc/self/fd") - descriptors < 5)
            // The kernel has a thread a moment longer than who joins it, and the test library has some of its own.
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while tests.entries(of: "/proc/self/task") - threads >= 10, HostClock.monotonicNanoseconds < end {
                HostClock.sleep(nanoseconds: 10_000_000)
            }
            #expect(tests.entries(of: "/proc/self/task") - threads < 10)
        }
    }
}
