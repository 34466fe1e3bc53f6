import DeviceModel
import Net
import Testing

@testable import Virtio

@Suite("Network device: features and commands")
struct CardControlTests {
    private typealias Frame = CardBackend.Frame

    private static let everything =
        NetFeature.checksum | NetFeature.guestOffloads | NetFeature.controlQueue
        | NetFeature.controlReceive | NetFeature.controlReceiveExtra | NetFeature.controlVLAN | NetFeature.controlMAC
        | NetFeature.controlGuestOffloads | NetFeature.guestAnnounce | NetFeature.mergeableBuffers

    @Test("What a driver reads", arguments: [1, 4])
    func configuration(pairs: Int) throws {
        let backend = CardBackend(mtu: 9000)
        let fixture = try CardFixture(features: NetFeature.status, queuePairs: pairs, backend: backend)
        let bytes = (0..<24).map { UInt8(fixture.driver.read(VirtioPCILayout.device + $0, .byte)) }
        #expect(Array(bytes[..<6]) == CardFixture.mac.bytes)
        #expect(bytes[6...] == [1, 0, UInt8(pairs), 0, 0x28, 0x23, 0x10, 0x27, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][...])
        #expect(fixture.driver.read(VirtioCommonRegister.queueCount, .word) == UInt64(2 * pairs + 1))
        #expect((fixture.driver.deviceFeatures & NetFeature.multiqueue != 0) == (pairs > 1))
        // Read-only for its driver.
        fixture.driver.write(VirtioPCILayout.device, .byte, 0xAA)
        #expect(fixture.driver.read(VirtioPCILayout.device, .byte) == 2)
        let unplugged = try CardFixture(backend: CardBackend(hasLink: false))
        #expect(unplugged.driver.read(VirtioPCILayout.device + 6, .word) == 0)
    }

    @Test("A lost link is a change of the configuration")
    func linkLoss() throws {
        let fixture = try CardFixture(features: NetFeature.status)
        try fixture.enableVectors()
        fixture.port.linkWasLost()
        #expect(fixture.takeInterrupts() == [0: 1])
        #expect(fixture.driver.read(VirtioPCILayout.device + 6, .word) == 0)
    }

    /// Every feature that needs another one, without it and with it.
    @Test("Features that need others", arguments: 0..<NetFeature.requirements.count)
    func dependencies(number: Int) throws {
        let (feature, needed) = NetFeature.requirements[number]
        let card = VirtioNet(
            try NetworkPort(CardBackend()), options: NetworkCardOptions(mac: CardFixture.mac, queuePairs: 2))
        let driver = try ModelDriver(card)
        #expect(card.features & feature != 0)
        #expect(!driver.start(features: feature))
        for bit in (0..<64).map({ UInt64(1) << $0 }) where needed & bit != 0 {
            // What the needed one needs itself.
            let base = bit & (NetFeature.guestTCP4 | NetFeature.guestTCP6) != 0 ? NetFeature.guestChecksum : 0
            let host = bit & (NetFeature.hostTCP4 | NetFeature.hostTCP6) != 0 ? NetFeature.checksum : 0
            #expect(driver.start(features: feature | bit | base | host))
        }
    }

    /// (features, what the back end is told)
    private static let offloadCases: [(UInt64, Offloads)] = [
        (0, []), (NetFeature.guestChecksum, .checksum),
        (NetFeature.guestChecksum | NetFeature.guestTCP4, [.checksum, .tcp4]),
        (NetFeature.guestChecksum | NetFeature.guestTCP6 | NetFeature.guestECN, [.checksum, .tcp6, .ecn]),
        (NetFeature.guestChecksum | NetFeature.guestUDP4, .checksum),
        (NetFeature.guestOffloads, .transmit),
    ]

    @Test("The back end leaves undone what the guest takes", arguments: 0..<offloadCases.count)
    func receiveOffloads(number: Int) throws {
        let (features, expected) = Self.offloadCases[number]
        let fixture = try CardFixture(
            features: features | NetFeature.controlQueue | NetFeature.controlGuestOffloads | NetFeature.mergeableBuffers
        )
        #expect(fixture.backend.offloads == expected)
        func set(_ wanted: UInt64) throws -> UInt8? {
            try fixture.command([5, 0] + (0..<8).map { UInt8(truncatingIfNeeded: wanted >> (8 * UInt64($0))) })
        }
        #expect(try set(0) == 0 && fixture.backend.offloads == [])
        #expect(try set(features) == 0 && fixture.backend.offloads == expected)
        // What was not negotiated, what is no offload, and one without what it needs.
        if features != NetFeature.guestOffloads { #expect(try set(NetFeature.guestOffloads) == 1) }
        #expect(try set(features | NetFeature.mac) == 1)
        if features & NetFeature.guestTCP4 != 0 { #expect(try set(NetFeature.guestTCP4) == 1) }
        #expect(fixture.backend.offloads == expected)
        fixture.driver.setStatus(0)
        #expect(fixture.backend.offloads == [])
    }

    @Test("Only undone work that was agreed on reaches the guest, and comes from it")
    func headers() throws {
        var header = VirtualNetworkHeader()
        header.flags = 1
        header.segmentation = 1
        header.segmentSize = 1400
        header.checksumStart = 34
        header.checksumOffset = 16
        let large = Frame(CardFixture.frame(1, 5000), header)
        let plain = Frame(CardFixture.frame(2, 60))
        for (features, passes) in [
            (NetFeature.mergeableBuffers, false), (NetFeature.mergeableBuffers | NetFeature.guestChecksum, false),
            (NetFeature.mergeableBuffers | NetFeature.guestChecksum | NetFeature.guestTCP4, true),
        ] {
            let fixture = try CardFixture(features: features)
            try fixture.refill([2000, 2000, 2000, 2000])
            fixture.backend.deliver([large, plain])
            let received = try fixture.received()
            #expect(received.map(\.bytes) == (passes ? [large.bytes] : []) + [plain.bytes])
            if passes {
                var expected = header
                expected.bufferCount = 3
                #expect(received.first?.header == expected)
            }
        }
        for (features, expected) in [
            (0, VirtualNetworkHeader()), (NetFeature.checksum | NetFeature.hostTCP4, header),
        ] {
            let fixture = try CardFixture(features: features)
            try fixture.send([large])
            let sent = try #require(fixture.backend.takeSent().first)
            #expect(sent.header.flags == expected.flags && sent.header.segmentation == expected.segmentation)
        }
    }

    /// (class, command and data; the answer)
    private static let commandCases: [([UInt8], UInt8)] = [
        ([0, 0, 1], 0), ([0, 1, 0], 0), ([0, 2, 1], 0), ([0, 3, 1], 0), ([0, 4, 1], 0), ([0, 5, 1], 0),
        ([0, 6, 1], 1), ([0, 0], 1), ([0, 0, 2], 1), ([0, 0, 1, 0], 1),
        ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0), ([1, 0, 0, 0, 0, 0], 1), ([1, 0, 1, 0, 0, 0, 0, 0, 0, 0], 1),
        ([1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 1, 0, 0, 0, 1, 0, 0x5E, 0, 0, 1], 0),
        // A group's address among those of hosts, and the other way.
        ([1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0], 1), ([1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1], 1),
        ([1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0], 1), ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], 1),
        ([1, 1, 2, 0, 0, 0, 0, 0x16], 0), ([1, 1, 3, 0, 0, 0, 0, 0x16], 1), ([1, 1, 0, 0, 0, 0, 0, 0], 1),
        ([1, 1, 2, 0, 0, 0, 0], 1), ([1, 2, 0], 1),
        ([2, 0, 5, 0], 0), ([2, 1, 5, 0], 0), ([2, 0, 0, 0x10], 1), ([2, 2, 5, 0], 1), ([2, 0, 5], 1),
        ([3, 0], 0), ([3, 1], 1), ([4, 0, 1, 0], 1), ([6, 0], 1), ([255, 255], 1),
    ]

    @Test("Commands are obeyed or refused", arguments: [false, true])
    func commands(isPacked: Bool) throws {
        let fixture = try CardFixture(style: DriverStyle(isPacked: isPacked), features: Self.everything)
        for (bytes, answer) in Self.commandCases { #expect(try fixture.command(bytes) == answer, "\(bytes)") }
        #expect(!fixture.driver.needsReset)
        // Nothing of it without having agreed to it.
        let bare = try CardFixture(style: DriverStyle(isPacked: isPacked), features: NetFeature.controlQueue)
        for (bytes, _) in Self.commandCases { #expect(try bare.command(bytes) == 1, "\(bytes)") }
        let pairs = try CardFixture(features: NetFeature.controlQueue | NetFeature.multiqueue, queuePairs: 3)
        for (count, answer) in [(0, 1), (1, 0), (3, 0), (4, 1), (0x80, 1)] as [(UInt8, UInt8)] {
            #expect(try pairs.command([4, 0, count, 0]) == answer)
        }
    }

    /// Without MQ the third queue is the control queue, however many pairs there are (§5.1.2).
    @Test func controlQueueWithoutPairs() throws {
        let fixture = try CardFixture(features: NetFeature.controlQueue | NetFeature.controlReceive, queuePairs: 3)
        #expect(try fixture.driver.request([.readable([0, 0, 1]), .writable(1)], queue: 2)?.bytes == [0])
    }

    private static let host: [UInt8] = [2, 0, 0, 0, 0, 0x15]
    private static let group: [UInt8] = [1, 0, 0x5E, 0, 0, 1]
    private static let stranger: [UInt8] = [2, 0, 0, 0, 0, 0x77]
    private static let all = [UInt8](repeating: 0xFF, count: 6)

    /// (commands; which of host, stranger, group, all pass)
    private static let filterCases: [([[UInt8]], [Bool])] = [
        ([], [true, true, true, true]),
        ([[0, 0, 0]], [true, false, false, true]),
        ([[0, 0, 0], [0, 1, 1]], [true, false, true, true]),
        ([[0, 0, 0], [0, 2, 1]], [true, true, false, true]),
        ([[0, 0, 0], [0, 1, 1], [0, 3, 1]], [true, false, false, true]),
        ([[0, 0, 0], [0, 4, 1]], [false, false, false, true]),
        ([[0, 0, 0], [0, 5, 1]], [true, false, false, false]),
        ([[0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 0, 0, 0] + group], [true, false, true, true]),
        ([[0, 0, 0], [1, 0, 1, 0, 0, 0] + stranger + [0, 0, 0, 0]], [true, true, false, true]),
        // More than is remembered: all of that kind.
        (
            [[0, 0, 0], [1, 0, 0, 0, 0, 0, 65, 0, 0, 0] + [UInt8](repeating: 1, count: 65 * 6)],
            [true, false, true, true]
        ),
        ([[0, 0, 0], [1, 1] + stranger], [false, true, false, true]),
    ]

    @Test("Which frames the guest gets", arguments: 0..<filterCases.count)
    func filters(number: Int) throws {
        let (commands, expected) = Self.filterCases[number]
        let fixture = try CardFixture(features: Self.everything)
        for command in commands { #expect(try fixture.command(command) == 0) }
        let frames = [Self.host, Self.stranger, Self.group, Self.all].enumerated().map {
            CardFixture.frame($0, 60, to: $1)
        }
        try fixture.refill([Int](repeating: 100, count: 4))
        fixture.backend.deliver(frames.map { Frame($0) })
        let passed = zip(frames, expected).filter(\.1).map(\.0)
        #expect(try fixture.received().map(\.bytes) == passed)
    }

    @Test("VLANs pass that the guest has named")
    func vlans() throws {
        let fixture = try CardFixture(features: Self.everything)
        func tagged(_ identifier: UInt16) -> [UInt8] {
            var bytes = CardFixture.frame(0, 60)
            bytes.replaceSubrange(12..<16, with: [0x81, 0, 0x60 | UInt8(identifier >> 8), UInt8(identifier & 0xFF)])
            return bytes
        }
        #expect(try fixture.command([2, 0, 5, 0]) == 0 && fixture.command([2, 0, 0xFF, 0x0F]) == 0)
        #expect(try fixture.command([2, 0, 6, 0]) == 0 && fixture.command([2, 1, 6, 0]) == 0)
        try fixture.refill([Int](repeating: 100, count: 6))
        let frames = [tagged(5), tagged(6), tagged(4095), tagged(69), CardFixture.frame(0, 60)]
        fixture.backend.deliver(frames.map { Frame($0) })
        #expect(try fixture.received().map(\.bytes) == [tagged(5), tagged(4095), CardFixture.frame(0, 60)])
        let unfiltered = try CardFixture()
        try unfiltered.refill([100])
        unfiltered.backend.deliver([Frame(tagged(7))])
        #expect(try unfiltered.received().count == 1)
    }

    @Test("An address of the guest's choice is in the configuration until a reset")
    func address() throws {
        let fixture = try CardFixture(features: Self.everything)
        #expect(try fixture.command([1, 1] + Self.stranger) == 0)
        #expect(fixture.driver.read(VirtioPCILayout.device + 5, .byte) == 0x77)
        fixture.driver.setStatus(0)
        #expect(fixture.driver.read(VirtioPCILayout.device + 5, .byte) == 0x15)
    }
}
