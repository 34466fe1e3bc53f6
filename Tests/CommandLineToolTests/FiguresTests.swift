internal import SoftKVM
internal import Testing

@testable internal import CommandLineTool

/// The lines that `--verbose` ends with; scripts/lib/bench-machine.sh reads some of them.
@Suite("Figures")
struct FiguresTests {
    private func line(_ name: String, _ statistics: VirtualCPUStatistics) -> String? {
        Figures.lines(statistics).first { $0.hasPrefix(name + ": ") }.map { String($0.dropFirst(name.count + 2)) }
    }

    @Test("Nothing counted, nothing divided by")
    func empty() {
        let lines = Figures.lines(VirtualCPUStatistics())
        #expect(lines.contains("exits: none"))
        #expect(lines.contains("exceptions: none"))
        #expect(!lines.contains { $0.hasPrefix("translat") })
        for line in lines { #expect(line.contains(": "), "\(line)") }
    }

    @Test("Exceptions, the most frequent first")
    func exceptions() {
        var statistics = VirtualCPUStatistics()
        statistics.exceptionsByVector = [14: 7, 6: 1, 13: 1, 31: 9]
        #expect(line("exceptions", statistics) == "9 vector 31, 7 #PF, 1 #UD, 1 #GP")
    }

    @Test("The cost of translation, as the benchmark reads it")
    func cost() {
        var statistics = VirtualCPUStatistics()
        statistics.translation.translatedBlocks = 10
        statistics.translation.translatedInstructions = 100
        statistics.translation.translationCycles = 123_450
        statistics.translation.cyclesPerSecond = 1_000_000
        #expect(line("translation cost", statistics) == "1234 host cycles for each guest instruction")
        #expect(line("translated", statistics) == "10 blocks with 100 instructions, 123 ms")
    }

    @Test(
        "Memory in MiB, as the benchmark reads it",
        arguments: [
            (0, "0.0"), (1 << 20, "1.0"), (1_600_000, "1.5"), ((64 << 20) - 1, "64.0"), (60_000 << 20, "60000.0"),
        ] as [(UInt64, String)])
    func memory(bytes: UInt64, text: String) {
        var statistics = VirtualCPUStatistics()
        statistics.translation.residentBytes = bytes
        #expect(line("code cache and tables", statistics) == "\(text) MiB of memory")
    }
}
