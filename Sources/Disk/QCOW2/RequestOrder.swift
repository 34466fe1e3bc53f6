internal import Host

/// Keeps requests that would disturb each other apart: several may read or write data in place in the same range, but
/// who changes what belongs to a range has it alone. Who waits is overtaken by nobody that would disturb it, so that
/// reads without end do not keep a write waiting. Used under a lock.
struct RequestOrder {
    struct Ticket: Sendable {
        fileprivate var number: UInt64
    }

    private struct Request {
        var number: UInt64
        var range: Range<UInt64>
        var isExclusive: Bool

        func disturbs(_ other: Request) -> Bool {
            (isExclusive || other.isExclusive) && range.overlaps(other.range)
        }
    }

    private var running: [Request] = []
    /// In the order in which they came.
    private var waiting: [Request] = []
    private var nextNumber: UInt64 = 0

    /// A request that starts at once; nil where it would have to wait.
    mutating func tryEnter(_ range: Range<UInt64>, exclusive: Bool) -> Ticket? {
        let request = request(range, exclusive)
        guard !running.contains(where: request.disturbs), !waiting.contains(where: request.disturbs) else { return nil }
        running.append(request)
        return Ticket(number: request.number)
    }

    /// A request that starts when `tryStart` says so.
    mutating func queue(_ range: Range<UInt64>, exclusive: Bool) -> Ticket {
        let request = request(range, exclusive)
        waiting.append(request)
        return Ticket(number: request.number)
    }

    mutating func tryStart(_ ticket: Ticket) -> Bool {
        guard let index = waiting.firstIndex(where: { $0.number == ticket.number }) else { return true }
        let request = waiting[index]
        guard !running.contains(where: request.disturbs), !waiting[..<index].contains(where: request.disturbs) else {
            return false
        }
        running.append(waiting.remove(at: index))
        return true
    }

    mutating func leave(_ ticket: Ticket) {
        guard let index = running.firstIndex(where: { $0.number == ticket.number }) else { return }
        running.swapAt(index, running.count - 1)
        running.removeLast()
    }

    private mutating func request(_ range: Range<UInt64>, _ isExclusive: Bool) -> Request {
        nextNumber &+= 1
        return Request(number: nextNumber, range: range, isExclusive: isExclusive)
    }
}
