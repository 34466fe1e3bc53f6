import Glibc
import Host
import Hypervisor
import KernelKVM
import Testing

/// Our own guests on every engine. Each engine's recording must equal the expected one line by line, so that the
/// engines equal each other too. `MARTLET_RECORD=kernel` or `soft` writes that engine's recordings as the expected ones;
/// they are to be read before they are committed.
@Suite(.serialized)
struct GuestTests {
    @Test(
        "on /dev/kvm", .enabled(if: KVMSystem.probe().availability == .usable, "/dev/kvm is not usable"),
        arguments: GuestProgram.simple)
    func kernel(program: GuestProgram) throws {
        try check(program, on: .kernel)
    }

    @Test(
        "on /dev/kvm with hardware virtualization",
        .enabled(if: KVMSystem.probe().canRunUnmodifiedKernels, "no /dev/kvm on vmx or svm"),
        arguments: GuestProgram.complete)
    func kernelOnHardware(program: GuestProgram) throws {
        try check(program, on: .kernel)
    }

    @Test("in software", arguments: GuestProgram.all)
    func soft(program: GuestProgram) throws {
        try check(program, on: .soft)
    }

    @Test("translated", arguments: GuestProgram.all)
    func translated(program: GuestProgram) throws {
        try check(program, on: .translated)
    }

    @Test("in lockstep", arguments: GuestProgram.all)
    func lockstep(program: GuestProgram) throws {
        try check(program, on: .lockstep)
    }

    private func check(_ program: GuestProgram, on engine: Engine) throws {
        let system = try #require(try engine.makeSystem())
        let text = try GuestMachine(system: system, program: program).run()
        if let recorded = getenv("MARTLET_RECORD"), String(cString: recorded) == engine.rawValue {
            try program.record(text)
            return
        }
        let expected = try #require(try program.expectation(), "nothing is recorded for \(program.name)")
        let difference = text.split(separator: "\n").difference(from: expected.split(separator: "\n"))
        #expect(
            difference.isEmpty,
            "\(program.name) on \(engine):\n\(describe(difference))")
    }

    private func describe(_ difference: CollectionDifference<Substring>) -> String {
        difference.map { change in
            switch change {
            case .insert(_, let line, _): "got      \(line)"
            case .remove(_, let line, _): "expected \(line)"
            }
        }.joined(separator: "\n")
    }
}
