import DeviceModel
import Fuzzing
import Glibc
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Net
@testable import Virtio

@Suite("vhost-net: frames between guest memory and a model of it", .serialized)
struct VhostTests {
    /// What the kernel's path takes: split rings, used in any order.
    private static let styles = DriverStyle.all.filter { !$0.isPacked && !$0.isInOrder }

    @Test("Frames cross whole and in order both ways", arguments: styles, [true, false])
    func traffic(style: DriverStyle, merges: Bool) throws {
        let fixture = try VhostFixture(style: style, features: merges ? NetFeature.mergeableBuffers : 0)
        #expect(fixture.usesVhost)
        let all = (0..<400).map { CardFixture.frame($0, 60 + $0 &* 397 % 1400) }
        var (sent, offered, left, received): (Int, Int, [[UInt8]], [[UInt8]]) = (0, 0, [], [])
        let done: Bool? = try eventually {
            if sent < all.count, try fixture.send(all[sent]) { sent += 1 }
            if offered < all.count, fixture.wire.send(all[offered]) { offered += 1 }
            try fixture.refill(merges ? 400 : 1526)
            while let frame = fixture.wire.receive() { left.append(frame) }
            received += try fixture.received()
            return left.count == all.count && received.count == all.count ? true : nil
        }
        #expect(done == true && left == all && received == all)
        // None of them came this way.
        #expect(fixture.port.statistics.sentFrames == 0 && fixture.port.statistics.receivedFrames == 0)
        #expect(fixture.port.wasHandedOver && fixture.log.lines == [])
        fixture.end()
    }

    @Test("The kernel's signal is the queue's interrupt, only where the driver wants it", arguments: styles)
    func interrupts(style: DriverStyle) throws {
        let fixture = try VhostFixture(style: style)
        try fixture.driver.enableVectors()
        func interrupt() -> UInt32? { eventually { fixture.driver.connection.takeMessages().first?.data } }
        for number in 0..<20 {
            try fixture.refill(1526)
            #expect(fixture.wire.send(CardFixture.frame(number, 200)))
            #expect(interrupt() == 1)
            #expect(try fixture.received().count == 1)
            #expect(try fixture.send(CardFixture.frame(number, 200)))
            #expect(interrupt() == 2)
        }
        fixture.end()
    }

    /// Not all of it: what was sent stays in the ring, what arrives on the wire, and what the driver refills in between.
    @Test("Moved between the paths amid traffic, no frame is lost or comes twice", arguments: styles, 0..<4)
    func moves(style: DriverStyle, seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let fixture = try VhostFixture(style: style, allowsVhost: seed % 2 == 0)
        var (sent, left, offered, received): ([[UInt8]], [[UInt8]], [[UInt8]], [[UInt8]]) = ([], [], [], [])
        var (paths, isVhost) = (Set<Int>(), seed % 2 == 0)
        func collect() throws {
            received += try fixture.received()
            while let frame = fixture.wire.receive() { left.append(frame) }
        }
        func arrive() {
            let frame = CardFixture.frame(offered.count, 60 + Int(generator.next() % 1400))
            if fixture.wire.send(frame) { offered.append(frame) }
        }
        for round in 0..<240 {
            switch generator.next() % 6 {
            case 0, 1:
                let frame = CardFixture.frame(round, 60 + Int(generator.next() % 1400))
                if try fixture.send(frame) { sent.append(frame) }
            case 2, 3: arrive()
            case 4: try fixture.refill(200 + Int(generator.next() % 1800))
            default:
                let next = generator.next() & 1 == 0
                paths.insert((isVhost ? 2 : 0) | (next ? 1 : 0))
                isVhost = next
                try fixture.move(allowsVhost: next) { arrive() }
                #expect(fixture.usesVhost == next)
            }
            if generator.next() & 1 == 0 { try collect() }
        }
        #expect(paths.count == 4)
        func lost() -> Int { Int(fixture.port.statistics.overrunFrames) }
        let done: Bool? = try eventually {
            try fixture.refill(2000)
            try collect()
            return left.count == sent.count && received.count + lost() >= offered.count ? true : nil
        }
        #expect(done == true && left == sent && !fixture.driver.needsReset)
        // The one frame that the back end held when there was no buffer for it.
        #expect(received.count + lost() == offered.count)
        var rest = offered[...]
        for frame in received {
            let place = try #require(rest.firstIndex(of: frame))
            rest = rest[(place + 1)...]
        }
        fixture.end()
    }

    @Test("The frame that waits in the back end comes before those that the kernel brings")
    func pending() throws {
        let fixture = try VhostFixture(allowsVhost: false)
        try fixture.refill(1526)
        let frames = (0..<3).map { CardFixture.frame($0, 500) }
        try fixture.move(allowsVhost: true) {
            for frame in frames { #expect(fixture.wire.send(frame)) }
            // The back end reads the first one, and has nobody to give it to.
            let rest = 2 * (VirtualNetworkHeader.size + 500)
            #expect(eventually { fixture.wire.unread == rest ? true : nil } == true)
        }
        var received: [[UInt8]] = []
        _ = try eventually { () -> Bool? in
            received += try fixture.received()
            return received.count == 3 ? true : nil
        }
        #expect(received == frames)
        #expect(fixture.port.statistics.receivedFrames == 1 && fixture.port.statistics.overrunFrames == 0)
        fixture.end()
    }

    /// The kernel's last signals may be anywhere between it and the driver.
    @Test("A card that stops has told its driver of all frames", arguments: styles)
    func lastInterrupts(style: DriverStyle) throws {
        let fixture = try VhostFixture(style: style)
        try fixture.driver.enableVectors()
        for round in 0..<50 {
            try fixture.refill(1526)
            #expect(fixture.wire.send(CardFixture.frame(round, 200)))
            #expect(try fixture.send(CardFixture.frame(round, 200)))
            #expect(eventually { fixture.wire.receive() } == CardFixture.frame(round, 200))
            #expect(try eventually { try fixture.received().first } == CardFixture.frame(round, 200))
            // As if the last ones had got stuck.
            _ = fixture.driver.connection.takeMessages()
            fixture.driver.transport.pause()
            let told = Set(fixture.driver.connection.takeMessages().map(\.data))
            #expect(told.isSuperset(of: [1, 2]), "\(round)")
            HostClock.sleep(nanoseconds: 200_000)
            #expect(fixture.driver.connection.takeMessages().isEmpty)
            fixture.driver.transport.resume()
        }
        fixture.end()
    }

    /// A driver without event indexes is not to be left with notifications off.
    @Test("What the kernel has switched off is on again", arguments: styles)
    func suppression(style: DriverStyle) throws {
        let fixture = try VhostFixture(style: style)
        try fixture.expectTraffic(0)
        fixture.driver.transport.pause()
        for queue in fixture.driver.queues.prefix(2) {
            #expect(try fixture.driver.memory.load(UInt16.self, at: GuestPhysicalAddress(queue.deviceArea)) == 0)
        }
        fixture.driver.transport.resume()
        try fixture.expectTraffic(2)
        fixture.end()
    }

    @Test("Resets, of the device and of each queue", arguments: styles, [0, 1])
    func resets(style: DriverStyle, queue: Int) throws {
        let fixture = try VhostFixture(style: style)
        try fixture.expectResets(of: queue)
        fixture.end()
        #expect(fixture.maker.alive == 0)
    }

    @Test("Notifications that come as register writes reach the kernel")
    func exits() throws {
        let fixture = try VhostFixture()
        try fixture.driver.queues[0].submit([.writable(1526)])
        fixture.driver.notify(0)
        #expect(fixture.wire.send(CardFixture.frame(1, 100)))
        #expect(try eventually { try fixture.received().first } == CardFixture.frame(1, 100))
        try fixture.driver.queues[1].submit([.readable(VirtualNetworkHeader().bytes + CardFixture.frame(2, 100))])
        fixture.driver.notify(1)
        #expect(eventually { fixture.wire.receive() } == CardFixture.frame(2, 100))
        fixture.end()
    }

    @Test("The control queue stays here")
    func control() throws {
        let fixture = try VhostFixture(features: NetFeature.mergeableBuffers | NetFeature.controlReceive)
        for _ in 0..<3 {
            try fixture.driver.queues[2].submit([.readable([0, 0, 1]), .writable(1)])
            try fixture.ringDoorbell(2)
            #expect(fixture.driver.waitForUsed(2, count: 1).first?.bytes == [0])
        }
        #expect(fixture.usesVhost && fixture.card.state.withLock { $0.filter.isPromiscuous })
        fixture.end()
    }

    @Test("A ring or buffer that the kernel cannot follow stops the device", arguments: [0, 1])
    func errors(queue: Int) throws {
        let fixture = try VhostFixture()
        try fixture.expectFailure(of: queue) {
            _ = fixture.wire.send(CardFixture.frame(0, 100))
            #expect(eventually { fixture.usesVhost ? nil : true } == true)
        }
        fixture.end()
    }
}
