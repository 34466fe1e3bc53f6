internal import Testing

@testable internal import Virtio

/// A guest that keeps so many requests on their way, in its own time.
private struct ModelLoad {
    /// Requests that the guest can have on their way.
    var depth: Int
    /// Nanoseconds of the guest for each request, and for each interrupt.
    var perRequest: UInt64 = 40_000
    var perInterrupt: UInt64 = 30_000
    var now: UInt64 = 1_000_000_000
    var turns = BlockTurns()
    /// How often each had the turn, and requests in all.
    var counts: [BlockTurns.Turn: Int] = [:]
    var requests = 0

    /// One notification, and what comes of it.
    mutating func step() {
        let time = now
        let turn = turns.notified { time }
        counts[turn, default: 0] += 1
        switch turn {
        case .processor:
            now += perRequest + perInterrupt
            turns.took(1)
            requests += 1
        case .thread, .gatheringThread:
            // The guest makes requests until it has no more to make; then it waits.
            let pause = turn == .thread ? 10_000 : BlockTurns.gatheringTime
            let count = min(depth, 1 + Int(pause / perRequest))
            now += max(pause, UInt64(count) * perRequest) + perInterrupt
            let end = now
            turns.passed(count) { end }
            requests += count
        }
    }
}

@Suite("Whose turn a disk's queue is")
struct BlockTurnsTests {
    @Test("One request at a time, or a few, stay with the vCPU; tries become rare", arguments: [1, 2, 4, 6])
    func few(depth: Int) {
        var load = ModelLoad(depth: depth)
        for _ in 0..<100_000 { load.step() }
        let lost = load.now - 1_000_000_000 - UInt64(load.requests) * 70_000
        #expect(lost < UInt64(load.requests) * 70_000 / 50, "\(load.counts)")
        #expect(load.counts[.thread, default: 0] >= 4 * 90)
        #expect((90..<400).contains(load.counts[.gatheringThread, default: 0]), "\(load.counts)")
    }

    @Test("Many at a time gather, as long as that pays", arguments: [16, 32, 128])
    func many(depth: Int) {
        var load = ModelLoad(depth: depth)
        for _ in 0..<20_000 { load.step() }
        #expect(load.counts[.gatheringThread, default: 0] > 15_000, "\(load.counts)")
        load.depth = 1
        for _ in 0..<32 { load.step() }
        #expect(load.turns.turn == .processor)
        load.depth = depth
        for _ in 0..<4096 { load.step() }
        #expect(load.turns.turn == .gatheringThread)
    }

    @Test("Where gathering gains nothing it is not done")
    func cheapInterrupts() {
        var load = ModelLoad(depth: 32, perInterrupt: 1000)
        for _ in 0..<20_000 { load.step() }
        #expect(load.counts[.processor, default: 0] > 19_000, "\(load.counts)")
    }

    @Test("Several that are there when the thread looks stay with it until they become fewer", arguments: [2, 3, 32])
    func several(count: Int) {
        var turns = BlockTurns()
        while turns.notified(at: { 0 }) == .processor {}
        for _ in 0..<1000 { turns.passed(count) { 0 } }
        #expect(turns.turn == .thread)
        for _ in 0..<32 { turns.passed(1) { 0 } }
        #expect(turns.turn == .processor)
        var notifications = 1
        while turns.notified(at: { 0 }) == .processor { notifications += 1 }
        #expect(notifications == 512)
    }
}
