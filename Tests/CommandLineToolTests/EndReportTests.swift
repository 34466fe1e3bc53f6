internal import ArgumentParser
internal import Testing
internal import VMM

@testable internal import CommandLineTool

@Suite struct EndReportTests {
    /// What ended the machine and the process's status (RunCommand's help), where the guest has no say in it.
    static let rows: [(MachineOutcome, Int32)] = [
        (.poweredOff, 0), (.panicked(reason: "test"), 120), (.tripleFault, 121), (.engineFailure("test"), 122),
        (.enginesDiffer(report: "lockstep: a test of the report"), 123),
    ]

    @Test(arguments: rows) func statusOfAnEnd(outcome: MachineOutcome, status: Int32) throws {
        let options = try RunCommand.parse([])
        let report = EndReport(
            end: .machine(outcome, nil), trace: nil, engineName: "soft", options: options, isTyping: false)
        #expect(report.tell().rawValue == status)
    }
}
