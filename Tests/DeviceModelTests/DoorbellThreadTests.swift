import Host
import Synchronization
import Testing

@testable import DeviceModel

@Suite("Doorbells")
struct DoorbellThreadTests {
    private final class Count: Sendable {
        private let value = Atomic<Int>(0)

        func add() { value.add(1, ordering: .sequentiallyConsistent) }

        /// Once it is so much, or after a minute.
        func reaching(_ count: Int) -> Int {
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while value.load(ordering: .sequentiallyConsistent) < count, HostClock.monotonicNanoseconds < end {
                HostClock.sleep(nanoseconds: 50_000)
            }
            return value.load(ordering: .sequentiallyConsistent)
        }
    }

    @Test("A doorbell that nobody listens to keeps its signals for the next one")
    func changes() throws {
        let thread = try DoorbellThread()
        let (first, other) = (try EventNotifier(), try EventNotifier())
        let (heard, otherHeard) = (Count(), Count())
        try thread.listen(to: first) { heard.add() }
        try thread.listen(to: other) { otherHeard.add() }
        first.signal()
        #expect(heard.reaching(1) == 1)
        thread.stopListening(to: first)
        // Whatever the thread had begun is over when it has heard of the other one twice.
        for count in 1...2 {
            other.signal()
            #expect(otherHeard.reaching(count) == count)
        }
        first.signal()
        other.signal()
        #expect(otherHeard.reaching(3) == 3 && heard.reaching(0) == 1)
        try thread.listen(to: first) { heard.add() }
        #expect(heard.reaching(2) == 2)
        thread.stop()
        try thread.listen(to: other) { otherHeard.add() }
        other.signal()
        #expect(otherHeard.reaching(0) == 3)
    }
}
