import GuestMemory
import Net
import Testing
import X86

@testable import Virtio

@Suite("Network device: frames")
struct CardTests {
    private typealias Frame = CardBackend.Frame

    private func frames(_ count: Int, from first: Int = 0) -> [Frame] {
        (first..<first + count).map { Frame(CardFixture.frame($0, 14 + ($0 &* 397) % 1500)) }
    }

    @Test("Frames are sent whole and in order, with one interrupt", arguments: DriverStyle.all)
    func transmit(style: DriverStyle) throws {
        let fixture = try CardFixture(style: style)
        try fixture.enableVectors()
        var next = 0
        for count in [1, 3, 7, 5, 1, 6, 7, 7] {
            let sent = frames(count, from: next)
            next += count
            try fixture.send(sent)
            #expect(fixture.backend.takeSent() == sent)
            #expect(try fixture.driver.queues[1].collect().map(\.written) == [UInt32](repeating: 0, count: count))
            #expect(fixture.takeInterrupts()[2, default: 0] <= 1)
        }
    }

    /// A frame in pieces, with its header cut anywhere.
    @Test("Pieces are joined, wherever they end", arguments: [false, true])
    func pieces(isPacked: Bool) throws {
        let fixture = try CardFixture(style: DriverStyle(isPacked: isPacked))
        let frame = CardFixture.frame(1, 300)
        let all = VirtualNetworkHeader().bytes + frame
        for cuts in [[0, 12], [1, 13], [5, 6, 7, 20], [11, 12, 13], [12, 26, 299], [100]] {
            var parts: [ModelQueue.Part] = []
            for (start, end) in zip([0] + cuts, cuts + [all.count]) where end > start {
                parts.append(.readable(Array(all[start..<end])))
            }
            _ = try #require(try fixture.driver.request(parts, queue: 1))
            #expect(fixture.backend.takeSent() == [Frame(frame)], "\(cuts)")
        }
    }

    @Test("A full back end keeps frames in the queue, and none is lost or changes place", arguments: [false, true])
    func transmitBackPressure(isPacked: Bool) throws {
        let fixture = try CardFixture(style: DriverStyle(isPacked: isPacked, hasEventIndex: true))
        let all = frames(12)
        fixture.backend.limit(3)
        try fixture.send(all)
        #expect(fixture.backend.takeSent() == Array(all[..<3]) && fixture.backend.refusals == 1)
        // Nobody asks again before the back end says so.
        fixture.driver.notify(1)
        fixture.driver.notify(1)
        #expect(fixture.backend.refusals == 1)
        fixture.backend.setRoom(4)
        #expect(fixture.backend.takeSent() == Array(all[3..<7]) && fixture.backend.refusals == 2)
        fixture.backend.setRoom(.max)
        #expect(fixture.backend.takeSent() == Array(all[7...]))
        #expect(try fixture.driver.queues[1].collect().count == 12)
    }

    /// (negotiated features, the driver's buffers, buffers that a frame of 1000 bytes takes)
    private static let buffers: [(UInt64, Int, UInt16)] = [
        (0, 1526, 1), (0, 1012, 1), (NetFeature.mergeableBuffers, 1526, 1), (NetFeature.mergeableBuffers, 1012, 1),
        (NetFeature.mergeableBuffers, 1011, 2), (NetFeature.mergeableBuffers, 506, 2),
        (NetFeature.mergeableBuffers, 100, 11), (NetFeature.mergeableBuffers, 64, 16),
    ]

    @Test("Frames are received into buffers of any size", arguments: DriverStyle.all)
    func receive(style: DriverStyle) throws {
        for (features, size, count) in Self.buffers {
            let fixture = try CardFixture(style: style, features: features)
            for number in 0..<20 {
                let frame = CardFixture.frame(number, 1000)
                try fixture.refill([Int](repeating: size, count: Int(count)))
                fixture.backend.deliver([Frame(frame)])
                let received = try fixture.received()
                #expect(received.map(\.bytes) == [frame], "\(features) \(size)")
                #expect(received.first?.header.bufferCount == count)
            }
            #expect(!fixture.driver.needsReset)
        }
    }

    @Test("Frames that come together are one interrupt", arguments: [false, true])
    func receiveInterrupts(isPacked: Bool) throws {
        let fixture = try CardFixture(style: DriverStyle(isPacked: isPacked))
        try fixture.enableVectors()
        try fixture.refill([Int](repeating: 2000, count: 16))
        fixture.backend.deliver(frames(9))
        #expect(fixture.takeInterrupts() == [1: 1])
        #expect(try fixture.received().map(\.bytes) == frames(9).map(\.bytes))
    }

    /// The back end's thread is between the frame and the end of its batch when the machine is told to stand still.
    @Test("What was delivered before a pause is told after it", arguments: [false, true])
    func pausedBatch(isPacked: Bool) throws {
        let fixture = try CardFixture(style: DriverStyle(isPacked: isPacked))
        try fixture.enableVectors()
        try fixture.refill([2000])
        let frame = CardFixture.frame(1, 100)
        let isTaken = fixture.card.receive(VirtualNetworkHeader(), frame.span.bytes)
        fixture.driver.transport.pause()
        fixture.card.batchHasEnded()
        #expect(isTaken && fixture.takeInterrupts() == [:])
        fixture.driver.transport.resume()
        #expect(fixture.takeInterrupts() == [1: 1])
        fixture.driver.transport.pause()
        fixture.driver.transport.resume()
        #expect(fixture.takeInterrupts() == [:])
    }

    @Test("Frames wait for buffers, in order, and also for the rest of what they need", arguments: DriverStyle.all)
    func receiveBackPressure(style: DriverStyle) throws {
        let fixture = try CardFixture(style: style)
        let all = (0..<10).map { Frame(CardFixture.frame($0, 900)) }
        fixture.backend.deliver(all)
        #expect(fixture.backend.waiting == 10)
        var received: [[UInt8]] = []
        // 912 bytes are needed: four buffers for a frame, that come one by one.
        for round in 0..<40 {
            try fixture.refill([230])
            let now = try fixture.received()
            received += now.map(\.bytes)
            #expect(now.count == (round % 4 == 3 ? 1 : 0), "\(round)")
        }
        #expect(received == all.map(\.bytes) && fixture.backend.waiting == 0)
    }

    @Test("Frames that no buffer of the driver can hold are dropped, and others come")
    func tooLarge() throws {
        let single = try CardFixture(features: 0)
        try single.refill([1526, 1526])
        single.backend.deliver([Frame(CardFixture.frame(1, 1600)), Frame(CardFixture.frame(2, 100))])
        #expect(try single.received().map(\.bytes) == [CardFixture.frame(2, 100)])
        let merging = try CardFixture()
        try merging.refill([Int](repeating: 64, count: 16))
        merging.backend.deliver([Frame(CardFixture.frame(1, 1100)), Frame(CardFixture.frame(2, 100))])
        #expect(try merging.received().map(\.bytes) == [CardFixture.frame(2, 100)])
        #expect(!single.driver.needsReset && !merging.driver.needsReset)
    }

    @Test("Without a driver frames are thrown away; a stopped one gets them when it goes on")
    func life() throws {
        let fixture = try CardFixture()
        fixture.driver.setStatus(0)
        fixture.backend.deliver(frames(3))
        #expect(fixture.backend.waiting == 0)
        try #require(fixture.driver.start(features: NetFeature.mergeableBuffers))
        try fixture.refill([2000, 2000])
        fixture.driver.transport.pause()
        fixture.backend.deliver(frames(2))
        #expect(fixture.backend.waiting == 2)
        fixture.driver.transport.resume()
        #expect(try fixture.received().map(\.bytes) == frames(2).map(\.bytes))
        fixture.driver.transport.shutDown()
        fixture.card.unplug()
        fixture.backend.deliver(frames(2))
        #expect(fixture.backend.waiting == 0)
    }

    /// (what is wrong, queue, the parts, whether the device is broken by it)
    private static let hostileCases: [(String, Int, [ModelQueue.Part], Bool)] = [
        ("a frame without a header", 1, [.readable([1, 2, 3])], true),
        ("nothing to send", 1, [.writable(100)], true),
        ("eleven bytes of header", 1, [.readable([UInt8](repeating: 0, count: 11))], true),
        ("a header alone", 1, [.readable([UInt8](repeating: 0, count: 12))], false),
        ("a frame and a writable part", 1, [.readable([UInt8](repeating: 0, count: 80)), .writable(9)], false),
        ("a receive buffer of eleven bytes", 0, [.writable(11)], true),
        ("a receive buffer that cannot be written", 0, [.readable([UInt8](repeating: 0, count: 99))], true),
        ("a command of one byte", 2, [.readable([1]), .writable(1)], true),
        ("a command without a place for its answer", 2, [.readable([0, 0, 1])], true),
        ("a command without bytes", 2, [.writable(1)], true),
        ("an unknown class", 2, [.readable([99, 0, 0]), .writable(1)], false),
        ("a command that is too long", 2, [.readable([UInt8](repeating: 0, count: 65_537)), .writable(1)], false),
    ]

    @Test("Buffers of every bad shape", arguments: 0..<hostileCases.count, [false, true])
    func hostile(number: Int, isPacked: Bool) throws {
        let (name, queue, parts, isBroken) = Self.hostileCases[number]
        let fixture = try CardFixture(
            style: DriverStyle(isPacked: isPacked), features: NetFeature.controlQueue | NetFeature.mergeableBuffers)
        try fixture.driver.queues[queue].submit(parts)
        fixture.driver.notify(queue)
        if queue == 0 { fixture.backend.deliver(frames(1)) }
        #expect(fixture.driver.needsReset == isBroken, "\(name)")
        #expect(fixture.backend.waiting == 0 && fixture.driver.transport.queues[queue].outstanding == 0)
        // A reset mends it.
        try #require(fixture.driver.start(features: NetFeature.mergeableBuffers))
        try fixture.refill([2000])
        try fixture.send(frames(1))
        fixture.backend.deliver(frames(1))
        #expect(try fixture.received().count == 1)
        #expect(fixture.backend.takeSent().last == frames(1).first)
    }

    @Test("Buffers outside the guest's memory", arguments: [0, 1, 2])
    func outside(queue: Int) throws {
        let fixture = try CardFixture(features: NetFeature.controlQueue)
        let place = 0x10000 + UInt64(queue) * 0x40000
        try fixture.driver.memory.store(UInt64(1) << 40, at: GuestPhysicalAddress(place))
        try fixture.driver.memory.store(UInt32(2000), at: GuestPhysicalAddress(place + 8))
        try fixture.driver.memory.store(UInt32(queue == 0 ? 2 : 0), at: GuestPhysicalAddress(place + 12))
        try fixture.driver.memory.store(UInt16(1), at: GuestPhysicalAddress(place + 0x4002))
        fixture.driver.notify(queue)
        if queue == 0 { fixture.backend.deliver(frames(1)) }
        #expect(fixture.driver.needsReset && fixture.driver.transport.queues[queue].outstanding == 0)
    }

    @Test("Two pairs of queues: answers come where the question went out")
    func steering() throws {
        let fixture = try CardFixture(
            features: NetFeature.controlQueue | NetFeature.multiqueue | NetFeature.mergeableBuffers, queuePairs: 2)
        #expect(try fixture.command([4, 0, 2, 0]) == 0)
        for queue in [0, 2] { try fixture.refill([Int](repeating: 2000, count: 16), queue: queue) }
        /// A TCP segment of flow `port`, to the outside or back.
        func segment(_ port: UInt8, isReply: Bool) -> Frame {
            var bytes = CardFixture.frame(0, 60)
            bytes.replaceSubrange(12..<14, with: [8, 0])
            bytes[14] = 0x45
            let ends: [[UInt8]] = [[10, 0, 2, 15], [192, 0, 2, 1]]
            bytes.replaceSubrange(26..<34, with: isReply ? ends[1] + ends[0] : ends[0] + ends[1])
            bytes.replaceSubrange(34..<38, with: isReply ? [0, 80, 200, port] : [200, port, 0, 80])
            return Frame(bytes)
        }
        for port in UInt8(0)..<6 {
            for (queue, receive) in [(1, 0), (3, 2)] {
                try fixture.send([segment(port, isReply: false)], queue: queue)
                _ = try fixture.driver.queues[queue].collect()
                fixture.backend.deliver([segment(port, isReply: true)])
                #expect(try fixture.received(queue: receive).count == 1)
                #expect(try fixture.received(queue: 2 - receive).isEmpty)
            }
        }
        // One pair alone again.
        #expect(try fixture.command([4, 0, 1, 0]) == 0)
        fixture.backend.deliver([segment(1, isReply: true)])
        #expect(try fixture.received(queue: 0).count == 1)
        #expect(fixture.backend.takeSent().count == 12)
    }
}
