internal import CHost

/// How much of its room for decoded and translated code a processor uses.
public struct CodeUsage: Equatable, Sendable {
    /// Translated code in bytes, and the records of its data accesses and indirect branches.
    public var translatedBytes = 0
    public var translatedCapacity = 0
    public var records = 0
    public var recordCapacity = 0
    /// Decoded instructions and blocks of them.
    public var decodedInstructions = 0
    public var decodedCapacity = 0
    public var decodedBlocks = 0
    public var decodedBlockCapacity = 0
    /// Code for single vector and x87 instructions.
    public var stubBytes = 0
    /// Bytes of memory behind all of these, the vCPU's state with its translation tables included.
    public var residentBytes = 0
}

extension Processor {
    public var codeUsage: CodeUsage {
        CodeUsage(
            translatedBytes: arena.used, translatedCapacity: CodeArena.size, records: arena.usedRecords,
            recordCapacity: CodeArena.recordCapacity, decodedInstructions: cache.instructionCount,
            decodedCapacity: cache.instructionLimit, decodedBlocks: cache.blockCount - 1,
            decodedBlockCapacity: cache.blockLimit - 1, stubBytes: stubs.usedBytes,
            residentBytes: arena.residentSize + cache.residentSize + stubs.residentSize + residentTables)
    }
}
