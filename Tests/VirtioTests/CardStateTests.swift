import DeviceModel
import Fuzzing
import Glibc
import GuestMemory
import Host
import Net
import Synchronization
import Testing
import X86

@testable import Virtio

@Suite("Network device: saved state and hostile drivers", .serialized)
struct CardStateTests {
    private typealias Frame = CardBackend.Frame

    private static let features =
        NetFeature.checksum | NetFeature.guestChecksum | NetFeature.guestTCP4
        | NetFeature.controlQueue | NetFeature.controlReceive | NetFeature.controlVLAN | NetFeature.controlMAC
        | NetFeature.controlGuestOffloads | NetFeature.guestAnnounce | NetFeature.mergeableBuffers
        | NetFeature.multiqueue | NetFeature.status

    /// Stops, saves as bytes, and goes on with a card that was made of them.
    private func moved(_ driver: ModelDriver, _ port: NetworkPort) throws -> (ModelDriver, VirtioNet) {
        driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        let state = try VirtioNetSavedState(encoded: saved.device)
        let card = try VirtioNet(
            restoring: state, port, options: NetworkCardOptions(mac: CardFixture.mac, queuePairs: 2))
        let next = ModelDriver(
            continuing: driver, with: try VirtioPCIDevice(restoring: saved, card, memory: driver.memory))
        next.transport.resume()
        return (next, card)
    }

    @Test("Moved again and again amid traffic both ways, no frame is lost or comes twice", arguments: DriverStyle.all)
    func roundTrips(style: DriverStyle) throws {
        var generator = SeededGenerator(seed: 7)
        let fixture = try CardFixture(style: style, features: Self.features, queuePairs: 2)
        var driver = fixture.driver
        let backend = fixture.backend
        var (sent, left, offered, received): ([[UInt8]], [[UInt8]], [[UInt8]], [[UInt8]]) = ([], [], [], [])
        func collect() throws {
            _ = try driver.queues[1].collect()
            var used = try driver.queues[0].collect()[...]
            while let first = used.popFirst() {
                var bytes = Array(first.bytes.prefix(Int(first.written)))
                let header = try #require(VirtualNetworkHeader(bytes))
                for _ in 1..<max(Int(header.bufferCount), 1) {
                    let next = used.removeFirst()
                    bytes += next.bytes.prefix(Int(next.written))
                }
                received.append(Array(bytes.dropFirst(12)))
            }
        }
        for round in 0..<80 {
            switch generator.next() % 5 {
            case 0:
                let frame = CardFixture.frame(round, 60 + Int(generator.next() % 1400))
                if try driver.queues[1].submit([.readable(VirtualNetworkHeader().bytes + frame)]) {
                    sent.append(frame)
                }
                driver.notify(1)
            case 1:
                let frame = CardFixture.frame(round, 60 + Int(generator.next() % 1400))
                offered.append(frame)
                backend.deliver([Frame(frame)])
            case 2:
                try driver.queues[0].submit([.writable(200 + Int(generator.next() % 1800))])
                driver.notify(0)
            case 3: backend.setRoom(Int(generator.next() % 3))
            default: driver = try moved(driver, fixture.port).0
            }
            try collect()
            left += backend.takeSent().map(\.bytes)
        }
        backend.setRoom(.max)
        while received.count < offered.count {
            try #require(try driver.queues[0].submit([.writable(2000)]))
            driver.notify(0)
            try collect()
        }
        left += backend.takeSent().map(\.bytes)
        #expect(left == sent && received == offered && !driver.needsReset)
    }

    @Test("What the driver chose stays, and it is asked to announce itself")
    func choices() throws {
        let fixture = try CardFixture(features: Self.features, queuePairs: 2)
        for command: [UInt8] in [
            [0, 0, 0], [0, 1, 0], [1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 1, 0, 0, 0, 1, 0, 0x5E, 0, 0, 1],
            [1, 1, 2, 0, 0, 0, 0, 0x33], [2, 0, 9, 0], [4, 0, 2, 0], [5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        ] { #expect(try fixture.command(command) == 0, "\(command)") }
        try fixture.enableVectors()
        _ = fixture.takeInterrupts()
        let before = fixture.card.state.withLock { $0 }
        let (driver, card) = try moved(fixture.driver, fixture.port)
        let after = card.state.withLock { $0 }
        #expect(after.mac == before.mac && after.filter == before.filter && after.activePairs == 2)
        #expect(after.guestOffloads == NetFeature.guestChecksum && fixture.backend.offloads == .checksum)
        // Status: link up and announce, told by an interrupt; until the driver has done so.
        #expect(driver.connection.takeMessages().map(\.data) == [0])
        #expect(driver.read(VirtioPCILayout.device + 6, .word) == 3)
        let answer = try driver.request([.readable([3, 0]), .writable(1)], queue: 4)
        #expect(answer?.bytes == [0] && driver.read(VirtioPCILayout.device + 6, .word) == 1)
    }

    @Test("Damaged states and other ports are refused")
    func damage() throws {
        let fixture = try CardFixture(features: Self.features, queuePairs: 2)
        let bytes = fixture.card.saveState()
        #expect(try VirtioNetSavedState(encoded: bytes).encoded() == bytes)
        for count in 0..<bytes.count {
            #expect(throws: SavedStateError.self) { try VirtioNetSavedState(encoded: Array(bytes.prefix(count))) }
        }
        let state = try VirtioNetSavedState(encoded: bytes)
        let options = NetworkCardOptions(mac: CardFixture.mac)
        let jumbo = try NetworkPort(CardBackend(mtu: 9000))
        #expect(throws: SavedStateError.invalid(identifier: "virtio-net", field: "mtu")) {
            try VirtioNet(restoring: state, jumbo, options: options)
        }
        var pairs = state
        for count: UInt16 in [0, 2, .max] {
            pairs.activePairs = count
            #expect(throws: SavedStateError.invalid(identifier: "virtio-net", field: "activePairs")) {
                try VirtioNet(restoring: pairs, fixture.port, options: options)
            }
        }
    }

    /// Two cards on real back ends, with their threads, and a cable between them.
    @Test("Threads: frames of two cards cross a cable, whole and in order", arguments: [false, true])
    func cable(isPacked: Bool) throws {
        let path = "/tmp/martlet-card-test-\(getpid())-\(isPacked)"
        func port(_ own: String, _ other: String) throws -> NetworkPort {
            try NetworkPort(
                try NetworkConfiguration(.socket(SocketConfiguration(path: path + own, peer: path + other))).open {
                    _ in
                })
        }
        let ports = [try port("a", "b"), try port("b", "a")]
        let drivers = try ports.map { port in
            let card = VirtioNet(port, options: NetworkCardOptions(mac: CardFixture.mac))
            let driver = try ModelDriver(card, style: DriverStyle(isPacked: isPacked, hasEventIndex: true))
            try #require(driver.start(features: NetFeature.mergeableBuffers))
            return driver
        }
        var (sent, received) = ([0, 0], [0, 0])
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while received != [400, 400], HostClock.monotonicNanoseconds < end {
            for (side, driver) in drivers.enumerated() {
                _ = try driver.queues[1].collect()
                if sent[side] < 400, driver.queues[1].freeCount > 0 {
                    let frame = CardFixture.frame(sent[side], 60 + sent[side] % 1400)
                    if try driver.queues[1].submit([.readable(VirtualNetworkHeader().bytes + frame)]) {
                        sent[side] += 1
                    }
                    driver.notify(1)
                }
                while driver.queues[0].freeCount > 0 { try driver.queues[0].submit([.writable(1526)]) }
                driver.notify(0)
                for used in try driver.queues[0].collect() {
                    let number = received[side]
                    #expect(
                        used.bytes.prefix(Int(used.written)).dropFirst(12)
                            == CardFixture.frame(number, 60 + number % 1400)[...])
                    received[side] += 1
                }
            }
        }
        #expect(received == [400, 400])
        for driver in drivers { driver.transport.shutDown() }
        for port in ports { port.close() }
    }

    /// Rings, headers and commands full of noise: the process lives, nothing stays outstanding, a reset mends it.
    @Test("Hostile drivers", arguments: [false, true])
    func hostile(isPacked: Bool) throws {
        let memory = try ModelDriver.makeMemory()
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed << 1 | (isPacked ? 1 : 0))
            let backend = CardBackend()
            let port = try NetworkPort(backend)
            let card = VirtioNet(port, options: NetworkCardOptions(mac: CardFixture.mac, queuePairs: 2))
            let style = DriverStyle(
                isPacked: isPacked, usesIndirect: true, hasEventIndex: generator.next() & 1 == 0,
                isInOrder: generator.next() & 1 == 0)
            let driver = try ModelDriver(card, style: style, memory: memory)
            let features = NetFeature.controlQueue | NetFeature.mergeableBuffers | card.features & generator.next()
            if !driver.start(features: card.accepts(features: features) ? features : NetFeature.controlQueue) {
                Issue.record("seed \(seed): features")
            }
            for queue in 0..<5 { try fill(queue, isPacked, memory, &generator) }
            for _ in 0..<20 {
                switch generator.next() % 4 {
                case 0: backend.deliver([noise(&generator)])
                case 1: backend.setRoom(Int(generator.next() % 4))
                default: driver.notify(Int(generator.next() % 5))
                }
            }
            driver.transport.pause()
            let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
            #expect(try VirtioNetSavedState(encoded: saved.device).encoded() == saved.device)
            driver.transport.resume()
            #expect(driver.transport.queues.allSatisfy { $0.outstanding == 0 }, "seed \(seed)")
            driver.setStatus(0)
            backend.setRoom(.max)
            try #require(driver.start(features: 0))
            _ = backend.takeSent()
            let frame = CardFixture.frame(1, 100)
            _ = try driver.request([.readable(VirtualNetworkHeader().bytes + frame)], queue: 1)
            #expect(backend.takeSent() == [Frame(frame)], "seed \(seed)")
            driver.transport.shutDown()
            card.unplug()
            port.close()
        }
    }

    private func noise(_ generator: inout SeededGenerator) -> Frame {
        var header = VirtualNetworkHeader()
        header.flags = UInt8(generator.next() % 4)
        header.segmentation = [0, 0, 1, 4, 5, 0x81, 3][Int(generator.next() % 7)]
        return Frame(CardFixture.frame(Int(generator.next() % 9), 14 + Int(generator.next() % 3000)), header)
    }

    /// Descriptors, indexes and what chains may find, more often wrong in an interesting way than random.
    private func fill(
        _ queue: Int, _ isPacked: Bool, _ memory: GuestMemory, _ generator: inout SeededGenerator
    ) throws {
        let base = 0x10000 + UInt64(queue) * 0x40000
        func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, _ address: UInt64) throws {
            try memory.store(value, at: GuestPhysicalAddress(address))
        }
        for index in 0..<UInt64(16) {
            let address: UInt64 =
                switch generator.next() % 8 {
                case 0: .max - generator.next() % 64
                case 1: UInt64(ModelDriver.memorySize) - generator.next() % 64
                case 2: base + generator.next() % 0x8000
                default: generator.next() % UInt64(ModelDriver.memorySize)
                }
            let length: UInt32 =
                switch generator.next() % 8 {
                case 0: 0
                case 1: .max
                case 2: UInt32(generator.next() % 24)
                default: UInt32(generator.next() % 4096)
                }
            try store(address, base + index * 16)
            try store(length, base + index * 16 + 8)
            // Writable ones where frames come in.
            let wanted: UInt16 = queue % 2 == 0 && queue < 4 ? 2 : 0
            var flags = generator.next() % 3 == 0 ? UInt16(truncatingIfNeeded: generator.next()) & 7 : wanted
            if isPacked { flags |= 1 << 7 }
            let other = UInt16(generator.next() % 20)
            try store(isPacked ? other : flags, base + index * 16 + 12)
            try store(isPacked ? flags : other, base + index * 16 + 14)
            try store(UInt16(generator.next() % 18), base + 0x4004 + index * 2)
            try store(generator.next() & 0x0101_0101_0705_0105, generator.next() % 0x40000 * 8)
        }
        try store(UInt16(generator.next() % 18), base + 0x4002)
    }
}
