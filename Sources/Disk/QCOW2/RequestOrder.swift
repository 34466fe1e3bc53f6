internal import Host

/// Keeps requests that would disturb each other apart: several may read or write data in place in the same range, but
/// who changes what belongs to a range has it alone. Used under a lock.
struct RequestOrder {
    struct Ticket: Sendable {
        fileprivate var number: UInt64
    }

    private struct Request {
        var number: UInt64
        var range: Range<UInt64>
        var isExclusive: Bool
    }

    private var running: [Request] = []
    private var nextNumber: UInt64 = 0

    func isFree(_ range: Range<UInt64>, exclusive: Bool) -> Bool {
        !running.contains { (exclusive || $0.isExclusive) && $0.range.overlaps(range) }
    }

    mutating func enter(_ range: Range<UInt64>, exclusive: Bool) -> Ticket {
        nextNumber &+= 1
        running.append(Request(number: nextNumber, range: range, isExclusive: exclusive))
        return Ticket(number: nextNumber)
    }

    mutating func leave(_ ticket: Ticket) {
        guard let index = running.firstIndex(where: { $0.number == ticket.number }) else { return }
        running.swapAt(index, running.count - 1)
        running.removeLast()
    }
}
