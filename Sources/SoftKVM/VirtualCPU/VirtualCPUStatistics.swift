/// What a vCPU of the software engine did since it was made: a snapshot of plain counters.
public struct VirtualCPUStatistics: Equatable, Sendable {
    /// Returns of `run()` by kind.
    public var portExits: UInt64 = 0
    public var memoryMappedExits: UInt64 = 0
    public var haltExits: UInt64 = 0
    public var interruptedExits: UInt64 = 0
    public var windowExits: UInt64 = 0
    public var shutdownExits: UInt64 = 0

    /// Accesses that the engine's own devices answered without a return of `run()`.
    public var enginePortAccesses: UInt64 = 0
    public var engineMemoryMappedAccesses: UInt64 = 0
    public var engineRegisterAccesses: UInt64 = 0

    /// External interrupts given to the processor, HLT instructions waited out, and looks at the interrupt controllers.
    public var interruptsInjected: UInt64 = 0
    public var halts: UInt64 = 0
    public var attentions: UInt64 = 0

    /// The processor's own counters.
    public var instructions: UInt64 = 0
    public var exceptions: UInt64 = 0
    public var tlbMisses: UInt64 = 0
    public var decodedInstructions: UInt64 = 0
    public var invalidatedCodePages: UInt64 = 0
    public var codeCacheFlushes: UInt64 = 0

    public init() {}
}
