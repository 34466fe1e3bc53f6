internal import Testing

@testable internal import Virtio

@Suite("Whose turn a disk's queue is")
struct BlockTurnsTests {
    /// Notifications until the thread is asked.
    private func notificationsUntilThread(_ turns: inout BlockTurns) -> Int {
        for count in 1...10_000 where turns.notified() { return count }
        return 0
    }

    @Test("One request at a time comes back to the vCPU, and is tried again")
    func alone() {
        var turns = BlockTurns()
        for _ in 0..<3 {
            #expect(notificationsUntilThread(&turns) == 512)
            for pass in 1...16 {
                #expect(turns.isThreads, "pass \(pass)")
                let isThreads = turns.notified()
                #expect(isThreads)
                turns.passed(1)
            }
            #expect(!turns.isThreads)
        }
    }

    @Test("Several at a time stay with the thread until they become fewer", arguments: [2, 3, 32])
    func several(count: Int) {
        var turns = BlockTurns()
        #expect(notificationsUntilThread(&turns) == 512)
        for _ in 0..<1000 { turns.passed(count) }
        #expect(turns.isThreads)
        for _ in 0..<32 { turns.passed(1) }
        #expect(!turns.isThreads)
        #expect(notificationsUntilThread(&turns) == 512)
    }
}
