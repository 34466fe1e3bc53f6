public import SoftKVM

/// The profile of a session, restarts included: folded stacks (the input of flamegraph programs) and the map by which
/// perf(1) names translated code.
public struct ProfileReport: Sendable {
    private var counts: [String: UInt64] = [:]
    private var blocks: [(block: GuestProfile.Block, name: String)] = []

    public init() {}

    /// Adds what one machine did. Its own symbols count before the kernel's.
    public mutating func add(_ profile: GuestProfile, symbols: SymbolTable, kernel: SymbolTable = SymbolTable()) {
        let tables = [symbols, kernel]
        for sample in profile.samples { counts[Self.stack(sample, tables), default: 0] += sample.count }
        if profile.lostCount > 0 { counts["lost", default: 0] += profile.lostCount }
        blocks = profile.blocks.map { ($0, Self.name($0, tables)) }
    }

    public var sampleCount: UInt64 { counts.values.reduce(0, +) }

    /// One line for each stack, "FRAME;FRAME;FRAME COUNT".
    public var folded: String {
        counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)\n" }.joined()
    }

    /// Lines of "START SIZE NAME" for the translated code of the last machine (Linux
    /// tools/perf/Documentation/jit-interface.txt).
    public var perfMap: String {
        blocks.map { block, name in
            "\(String(block.hostAddress, radix: 16)) \(String(block.size, radix: 16)) \(name)\n"
        }.joined()
    }

    // MARK: Names

    private static func stack(_ sample: GuestProfile.Sample, _ tables: [SymbolTable]) -> String {
        if sample.activity == .halted { return "halted" }
        let function = sample.isPage ? nil : tables.lazy.compactMap { $0.find(sample.address) }.first
        // Without symbols, pages: single addresses would be as many as there are instructions.
        let name = function.map { frame($0.name) } ?? hex(sample.address & ~4095)
        return "\(sample.isUser ? "user" : "kernel");\(name);\(sample.activity.frame)"
    }

    private static func name(_ block: GuestProfile.Block, _ tables: [SymbolTable]) -> String {
        let privilege = block.isUser ? "user" : "kernel"
        guard let function = tables.lazy.compactMap({ $0.find(block.guestAddress) }).first else {
            return "guest:\(privilege):\(hex(block.guestAddress))"
        }
        return "guest:\(privilege):\(frame(function.name))+\(hex(function.offset))"
    }

    /// What separates frames and fields cannot be in a name.
    private static func frame(_ name: String) -> String {
        String(name.map { $0 == ";" ? ":" : $0.isWhitespace ? "_" : $0 })
    }
}

extension GuestProfile.Activity {
    /// The last frame: what executed.
    fileprivate var frame: String {
        switch self {
        case .translated: "translated"
        case .interpreter: "interpreter"
        case .helper: "helper"
        case .pageWalk: "page walk"
        case .decoder: "decoder"
        case .translator: "translator"
        case .device: "engine's devices"
        case .engine: "engine"
        case .exit: "exit"
        case .halted: "halted"
        }
    }
}
