internal import Host
internal import Synchronization

/// Where traced events go, as lines: for all vCPUs of a session, restarts included. It ends by itself after its limit.
public final class Trace: Sendable {
    public let requests: [TraceRequest]
    private let limit: UInt64
    private let startedAt: UInt64
    private let write: @Sendable ([UInt8]) -> Void
    private let state: Mutex<State>

    private struct State: Sendable {
        var rest: UInt64
        var buffer: [UInt8] = []
    }

    /// Written at once when it grows beyond this, else when the vCPU leaves guest code.
    private static let bufferSize = 16 << 10

    /// At most `limit` lines, given to `write` some at a time. Times are since `startedAt` (HostClock's monotonic time).
    public init(
        _ requests: [TraceRequest], limit: UInt64, startedAt: UInt64, write: @escaping @Sendable ([UInt8]) -> Void
    ) {
        self.requests = requests
        self.limit = limit
        self.startedAt = startedAt
        self.write = write
        state = Mutex(State(rest: limit))
    }

    func wants(_ kind: TraceRequest.Kind) -> Bool { requests.contains { $0.kinds.contains(kind) } }
    func wants(_ event: TraceEvent) -> Bool { requests.contains { $0.matches(event) } }
    func wantsEntries(_ event: TraceEvent) -> Bool { requests.contains { $0.includesEntries && $0.matches(event) } }

    /// Writes a line; false once the limit is reached.
    func add(_ event: TraceEvent, _ text: String) -> Bool {
        let line = "\(prefix)\(event.kind.name) \(text) rip \(hex(event.rip)) \(event.isUser ? "user" : "kernel")\n"
        return state.withLock { state in
            guard state.rest > 0 else { return false }
            state.rest -= 1
            state.buffer += line.utf8
            if state.rest == 0 {
                state.buffer += "\(prefix)ends: these are \(limit) lines; --trace-limit sets how many\n".utf8
            }
            if state.rest == 0 || state.buffer.count >= Self.bufferSize { flush(&state) }
            return state.rest > 0
        }
    }

    public func flush() { state.withLock { flush(&$0) } }

    private func flush(_ state: inout State) {
        guard !state.buffer.isEmpty else { return }
        write(state.buffer)
        state.buffer.removeAll(keepingCapacity: true)
    }

    /// "trace 1.234567 ".
    private var prefix: String {
        let microseconds = HostClock.monotonicNanoseconds.saturatingSubtract(startedAt) / 1000
        let fraction = String(microseconds % 1_000_000)
        let zeroes = String(repeating: "0", count: 6 - fraction.count)
        return "trace \(microseconds / 1_000_000).\(zeroes)\(fraction) "
    }
}

extension TraceRequest.Kind {
    /// In a line: one of them.
    fileprivate var name: String {
        switch self {
        case .blocks: "block"
        case .exits: "exit"
        case .faults: "fault"
        }
    }
}

func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
