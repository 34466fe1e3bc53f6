public import Hypervisor
public import SoftKVM
internal import X86

/// How one power-on of a machine ended.
public enum MachineOutcome: Equatable, Sendable {
    /// The guest switched the machine off.
    case poweredOff
    /// The guest asked for a restart.
    case reset
    /// The default guest's command ended with this status, or the guest wrote it to the status port before power-off.
    case status(UInt8)
    /// The guest wrote to isa-debug-exit; the process status is computed already.
    case debugExit(Int32)
    /// The guest told the pvpanic device, or printed, that it panicked.
    case panicked(reason: String)
    /// An exception in an exception in an exception (SDM vol. 3A §6.15, "Double Fault"): a PC resets then.
    case tripleFault
    /// The engine cannot go on.
    case engineFailure(String)
    /// The software engine in lockstep found that its two ways of executing differ; the report has many lines.
    case enginesDiffer(report: String)
    /// Somebody outside asked for the end.
    case stopped

    var isDifference: Bool {
        if case .enginesDiffer = self { true } else { false }
    }
}

/// Where the processor was when its machine ended: for messages, not for logic.
public struct ProcessorTrace: Equatable, Sendable {
    public var rip: UInt64
    public var cr2: UInt64
    public var lastException: LastException?
    public var instructionCount: UInt64?
    /// What the software engine counted.
    public var statistics: VirtualCPUStatistics?

    public init(
        rip: UInt64, cr2: UInt64, lastException: LastException? = nil, instructionCount: UInt64? = nil,
        statistics: VirtualCPUStatistics? = nil
    ) {
        self.rip = rip
        self.cr2 = cr2
        self.lastException = lastException
        self.instructionCount = instructionCount
        self.statistics = statistics
    }

    /// "rip 0x…, cr2 0x…, last exception #PF (error code 0x2) at 0x…".
    public var description: String {
        var text = "rip \(hex(rip)), cr2 \(hex(cr2))"
        guard let lastException else { return text }
        text += ", last exception \(exceptionName(lastException.vector))"
        if let code = lastException.errorCode { text += " (error code \(hex(UInt64(code))))" }
        return text + " at \(hex(lastException.rip))"
    }
}

func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
