internal import SoftKVM
internal import X86

/// What the software engine counted, for people and for scripts/bench: lines of "NAME: VALUE".
enum Figures {
    static func lines(_ statistics: VirtualCPUStatistics) -> [String] {
        exits(statistics) + events(statistics) + misses(statistics.translation) + translation(statistics.translation)
            + memory(statistics.translation)
    }

    private static func exits(_ statistics: VirtualCPUStatistics) -> [String] {
        let exits = list([
            (statistics.portExits, "port"), (statistics.memoryMappedExits, "memory-mapped"),
            (statistics.haltExits, "halt"), (statistics.interruptedExits, "interrupted"),
            (statistics.windowExits, "interrupt window"), (statistics.shutdownExits, "shutdown"),
        ])
        let engine = list([
            (statistics.enginePortAccesses, "port"), (statistics.engineMemoryMappedAccesses, "memory-mapped"),
            (statistics.engineRegisterAccesses, "MSR"), (statistics.halts, "halt"),
            (statistics.attentions, "attention"),
        ])
        return ["exits: \(exits)", "handled in the engine: \(engine)"]
    }

    private static func events(_ statistics: VirtualCPUStatistics) -> [String] {
        let exceptions = list(
            statistics.exceptionsByVector.sorted { ($1.value, $0.key) < ($0.value, $1.key) }.map {
                ($0.value, exceptionName($0.key))
            })
        return ["exceptions: \(exceptions)", "interrupts: \(statistics.interruptsInjected)"]
    }

    private static func misses(_ counts: VirtualCPUStatistics.Translation) -> [String] {
        let spaces = list([(counts.addressSpaceSwitches, "kept"), (counts.addressSpaceFlushes, "flushed")])
        return [
            "TLB misses: " + list([(counts.tlbMisses, "data"), (counts.fetchMisses, "code")]),
            "TLB switches of address space: \(spaces)",
            "table misses: "
                + list([
                    (counts.siteMisses, "data access sites"), (counts.targetMisses, "branch targets"),
                    (counts.blockLookups, "jump cache"),
                ]),
            "chain: "
                + list([(counts.linkedBranches, "branches linked"), (counts.unlinkedBranches, "looked up")]),
        ]
    }

    private static func translation(_ counts: VirtualCPUStatistics.Translation) -> [String] {
        let decoded = cost(counts.decodingCycles, counts.decodedInstructions, counts.cyclesPerSecond)
        var result = [
            "blocks decoded: \(counts.decodedBlocks) with \(counts.decodedInstructions) instructions\(decoded)",
            "blocks invalidated: "
                + list([(counts.invalidatedCodePages, "pages written to"), (counts.codeCacheFlushes, "flushes of all")]),
        ]
        guard counts.translatedInstructions > 0 else { return result }
        result.append(
            "translated: \(counts.translatedBlocks) blocks with \(counts.translatedInstructions) instructions, "
                + milliseconds(counts.translationCycles, counts.cyclesPerSecond))
        result.append(
            "translation cost: \(counts.translationCycles / counts.translatedInstructions) host cycles for each "
                + "guest instruction")
        return result
    }

    private static func memory(_ counts: VirtualCPUStatistics.Translation) -> [String] {
        [
            "code cache: \(mebibytes(counts.codeBytes)) of \(mebibytes(counts.codeCapacity)) MiB, "
                + "\(counts.records) of \(counts.recordCapacity) records, "
                + "\(counts.cachedInstructions) of \(counts.cachedInstructionCapacity) decoded instructions",
            "code cache and tables: \(mebibytes(counts.residentBytes)) MiB of memory",
        ]
    }

    /// "3 port, 4 halt": what there was.
    private static func list(_ counts: [(UInt64, String)]) -> String {
        let present = counts.filter { $0.0 != 0 }.map { "\($0.0) \($0.1)" }
        return present.isEmpty ? "none" : present.joined(separator: ", ")
    }

    private static func cost(_ cycles: UInt64, _ count: UInt64, _ frequency: UInt64) -> String {
        count == 0 ? "" : ", \(cycles / count) host cycles for each, \(milliseconds(cycles, frequency))"
    }

    private static func milliseconds(_ cycles: UInt64, _ frequency: UInt64) -> String {
        "\(frequency < 1000 ? 0 : cycles / (frequency / 1000)) ms"
    }

    /// With one digit behind the point.
    private static func mebibytes(_ bytes: UInt64) -> String {
        let tenths = (bytes &* 10 &+ (1 << 19)) >> 20
        return "\(tenths / 10).\(tenths % 10)"
    }
}
