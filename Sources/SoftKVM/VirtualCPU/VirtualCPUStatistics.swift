internal import CHost
internal import CPU

/// What a vCPU of the software engine did since it was made: a snapshot of plain counters. Nothing counts in the run loop
/// or in translated code but what leaves them.
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

    /// nil where translated code does not count.
    public var instructions: UInt64?
    public var exceptions: UInt64 = 0
    /// By vector, those that there were.
    public var exceptionsByVector: [UInt8: UInt64] = [:]

    public var translation = Translation()

    /// From guest-virtual addresses to host memory, and from guest code to host code.
    public struct Translation: Equatable, Sendable {
        /// Walks of the guest's page tables for data and for code.
        public var tlbMisses: UInt64 = 0
        public var fetchMisses: UInt64 = 0
        /// Loads of CR3 that found the address space's translations still there, and those that dropped them.
        public var addressSpaceSwitches: UInt64 = 0
        public var addressSpaceFlushes: UInt64 = 0
        /// Blocks that the jump cache did not have.
        public var blockLookups: UInt64 = 0
        public var decodedBlocks: UInt64 = 0
        public var decodedInstructions: UInt64 = 0
        public var translatedBlocks: UInt64 = 0
        public var translatedInstructions: UInt64 = 0
        /// Pages whose code was dropped because something wrote there, and times that all code was dropped.
        public var invalidatedCodePages: UInt64 = 0
        public var codeCacheFlushes: UInt64 = 0
        /// Direct branches of translated code: how often one had no link, and how many got one.
        public var unlinkedBranches: UInt64 = 0
        public var linkedBranches: UInt64 = 0
        /// Indirect branches that went elsewhere than the last time, and data accesses that did.
        public var targetMisses: UInt64 = 0
        public var siteMisses: UInt64 = 0
        /// Host time-stamp counts.
        public var decodingCycles: UInt64 = 0
        public var translationCycles: UInt64 = 0
        public var cyclesPerSecond: UInt64 = 0
        /// What is in the caches, and what there is room for.
        public var codeBytes: UInt64 = 0
        public var codeCapacity: UInt64 = 0
        public var records: UInt64 = 0
        public var recordCapacity: UInt64 = 0
        public var cachedInstructions: UInt64 = 0
        public var cachedInstructionCapacity: UInt64 = 0
        /// Bytes of memory that code caches and tables take.
        public var residentBytes: UInt64 = 0

        public init() {}
    }

    public init() {}
}

extension SoftVirtualCPU {
    public var statistics: VirtualCPUStatistics {
        var result = counters
        result.instructions = instructionCount
        result.exceptions = state.pointee.exceptions_delivered
        let counts = martlet_exception_counts(state)
        for vector in 0..<Int(MARTLET_EXCEPTION_VECTORS) where counts[vector] != 0 {
            result.exceptionsByVector[UInt8(vector)] = counts[vector]
        }
        result.translation = VirtualCPUStatistics.Translation(state, processor.codeUsage)
        return result
    }
}

extension VirtualCPUStatistics.Translation {
    fileprivate init(_ state: UnsafeMutablePointer<martlet_cpu>, _ usage: CodeUsage) {
        self.init()
        let counters = state.pointee.counters
        tlbMisses = state.pointee.tlb_misses
        fetchMisses = counters.fetch_misses
        addressSpaceSwitches = state.pointee.space_switches
        addressSpaceFlushes = state.pointee.space_flushes
        blockLookups = counters.block_lookups
        decodedBlocks = counters.decoded_blocks
        decodedInstructions = state.pointee.decoded_instructions
        translatedBlocks = state.pointee.translated_blocks
        translatedInstructions = state.pointee.translated_instructions
        codeCacheFlushes = state.pointee.cache_flushes
        // The processor counts a flush as one of these too.
        invalidatedCodePages = state.pointee.invalidated_pages &- state.pointee.cache_flushes
        unlinkedBranches = counters.unlinked_branches
        linkedBranches = counters.linked_branches
        targetMisses = state.pointee.target_misses
        siteMisses = state.pointee.site_misses
        decodingCycles = counters.decoding_cycles
        translationCycles = counters.translation_cycles
        cyclesPerSecond = TimestampCounter.frequency
        codeBytes = UInt64(usage.translatedBytes)
        codeCapacity = UInt64(usage.translatedCapacity)
        records = UInt64(usage.records)
        recordCapacity = UInt64(usage.recordCapacity)
        cachedInstructions = UInt64(usage.decodedInstructions)
        cachedInstructionCapacity = UInt64(usage.decodedCapacity)
        residentBytes = UInt64(usage.residentBytes)
    }
}
