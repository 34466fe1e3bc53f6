/// What `--trace` asks for: kinds of events, and which of them.
public struct TraceRequest: Equatable, Sendable {
    public enum Kind: String, CaseIterable, Sendable {
        /// Guest code that is decoded and translated and, if asked for, each time that it is entered.
        case blocks
        /// Why the processor stopped running guest code, with the access that it could not do itself.
        case exits
        /// Exceptions that are delivered to the guest.
        case faults
    }

    /// Any of these kinds. Of the filters below that are about an event all must hold, each by any of its ranges.
    public var kinds: Set<Kind>
    public var rips: [ClosedRange<UInt64>] = []
    /// cr2 of a page fault, guest-physical address of a memory-mapped exit.
    public var addresses: [ClosedRange<UInt64>] = []
    public var ports: [ClosedRange<UInt64>] = []
    public var vectors: [ClosedRange<UInt64>] = []
    /// nil: both.
    public var isUser: Bool?
    /// Blocks: tell of each entry. They are interpreted then.
    public var includesEntries = false

    public init(_ kinds: Set<Kind>) { self.kinds = kinds }
}

/// What can be said of an event before it becomes a line.
struct TraceEvent {
    var kind: TraceRequest.Kind
    var rip: UInt64
    var isUser: Bool
    var address: UInt64?
    var port: UInt64?
    var vector: UInt64?
}

extension TraceRequest {
    /// Each kind by the filters that are about it: `faults,exits:vector=14` shows page faults and all exits.
    func matches(_ event: TraceEvent) -> Bool {
        guard kinds.contains(event.kind), isUser == nil || isUser == event.isUser,
            rips.isEmpty || Self.contains(rips, event.rip)
        else { return false }
        switch event.kind {
        case .blocks: return true
        case .faults:
            return (vectors.isEmpty || Self.contains(vectors, event.vector))
                && (addresses.isEmpty || Self.contains(addresses, event.address))
        case .exits:
            // Two ways to say which accesses: none has both.
            if ports.isEmpty, addresses.isEmpty { return true }
            return Self.contains(ports, event.port) || Self.contains(addresses, event.address)
        }
    }

    private static func contains(_ ranges: [ClosedRange<UInt64>], _ value: UInt64?) -> Bool {
        guard let value else { return false }
        return ranges.contains { $0.contains(value) }
    }
}
