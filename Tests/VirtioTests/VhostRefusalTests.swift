import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Net
@testable import Virtio

@Suite("vhost-net: where it cannot be used, and what fails", .serialized)
struct VhostRefusalTests {
    /// What of it a fixture needs, and the words that tell why.
    private static let refusals: [(String, @Sendable () throws -> VhostFixture)] = [
        ("several pairs of queues", { try VhostFixture(isRequired: true, queuePairs: 2) }),
        ("has to see each write", { try VhostFixture(isRequired: true, allowsVhost: false) }),
        (
            "has to see each write",
            {
                let memory = try ModelDriver.makeMemory()
                memory.observeWrites { _, _ in }
                return try VhostFixture(memory: memory, isRequired: true)
            }
        ),
        ("no doorbells", { try VhostFixture(isRequired: true, hasDoorbells: false) }),
        (
            "does not cut frames",
            {
                try VhostFixture(
                    features: NetFeature.checksum | NetFeature.hostTCP4, isRequired: true,
                    nativeOffloads: [.checksum])
            }
        ),
        (
            "features that it has not (0x20000000)",
            {
                let fixture = try VhostFixture(
                    style: DriverStyle(hasEventIndex: true), isRequired: true, startsDriver: false)
                fixture.maker.record.withLock { $0.offered &= ~VirtioFeature.eventIndex }
                try fixture.start()
                return fixture
            }
        ),
        ("features that it has not (0x400000000)", { try movedFrom(DriverStyle(isPacked: true)) }),
        ("features that it has not (0x800000000)", { try movedFrom(DriverStyle(isInOrder: true)) }),
    ]

    /// A card whose driver chose what the kernel has not, on a machine where nothing had offered the kernel's path.
    private static func movedFrom(_ style: DriverStyle) throws -> VhostFixture {
        let fixture = try VhostFixture(style: style, isRequired: true, allowsVhost: false)
        fixture.log.clear()
        try fixture.move(allowsVhost: true)
        return fixture
    }

    @Test("Reasons", arguments: 0..<refusals.count)
    func reasons(number: Int) throws {
        let (reason, make) = Self.refusals[number]
        let fixture = try make()
        #expect(!fixture.usesVhost && !fixture.driver.needsReset)
        fixture.driver.transport.pause()
        fixture.driver.transport.resume()
        // The user asked for it, and is told once for each card.
        #expect(fixture.log.lines.count == 1 && fixture.log.lines.first?.contains(reason) == true)
        #expect(fixture.maker.alive == 0)
        if !fixture.driver.style.isPacked, fixture.driver.queues.count == 3 {
            try fixture.driver.queues[0].submit([.writable(1526)])
            fixture.driver.notify(0)
            #expect(fixture.wire.send(CardFixture.frame(1, 100)))
            #expect(try eventually { try fixture.received().first } == CardFixture.frame(1, 100))
        }
        fixture.end()
    }

    @Test("Nobody who did not ask for it hears of it")
    func silence() throws {
        let memory = try ModelDriver.makeMemory()
        memory.observeWrites { _, _ in }
        let fixture = try VhostFixture(memory: memory)
        #expect(!fixture.usesVhost && fixture.log.lines == [])
        try fixture.expectTraffic(1)
        fixture.end()
    }

    /// A driver takes packed rings where it finds them, and the kernel has none.
    @Test("What the kernel has not is not offered, where it may be used")
    func offers() throws {
        let foreign = VirtioFeature.packedRing | VirtioFeature.inOrder
        for (allowsVhost, pairs, expected) in [(true, 1, 0), (false, 1, foreign), (true, 2, foreign)] {
            let fixture = try VhostFixture(allowsVhost: allowsVhost, startsDriver: false, queuePairs: pairs)
            #expect(fixture.driver.deviceFeatures & foreign == expected)
            #expect(fixture.driver.deviceFeatures & VirtioFeature.ringReset != 0)
            fixture.end()
        }
    }

    /// In a process of its own, because descriptors and threads are counted by process.
    @Test("Whichever step fails, all is undone, and frames pass here")
    func steps() async {
        await #expect(processExitsWith: .success) { try VhostRefusalTests.failAtEachStep() }
    }

    private static func failAtEachStep() throws {
        let probe = try VhostFixture()
        let calls = probe.maker.record.withLock { $0.calls }
        probe.end()
        #expect(calls > 15)
        let before = VhostCard.Belongings()
        for (round, step) in (0..<10).flatMap({ round in (0..<calls).map { (round, $0) } }) {
            let fixture = try VhostFixture(startsDriver: false)
            fixture.maker.record.withLock { $0.failure = step }
            try fixture.start()
            #expect(!fixture.usesVhost && fixture.maker.alive == 0, "step \(step)")
            #expect(fixture.log.lines.count == 1 && fixture.log.lines[0].contains("Input/output error"), "\(step)")
            if round == 0 {
                try fixture.expectTraffic(step)
                fixture.driver.transport.pause()
                fixture.driver.transport.resume()
                #expect(fixture.usesVhost && fixture.log.lines.count == 1)
                try fixture.expectTraffic(step + 2)
            }
            fixture.end()
        }
        before.expectKept(within: (10, 10))
    }

    /// The back ends of both rings, and where each has stopped.
    @Test("A kernel that does not let go", arguments: 0..<4)
    func letting(step: Int) throws {
        let fixture = try VhostFixture()
        try fixture.expectTraffic(1)
        fixture.maker.record.withLock { $0.failure = step }
        fixture.driver.transport.pause()
        fixture.driver.transport.resume()
        #expect(fixture.driver.needsReset && fixture.maker.alive == (fixture.usesVhost ? 1 : 0))
        fixture.driver.setStatus(0)
        #expect(fixture.maker.alive == 0)
        try fixture.start()
        #expect(fixture.usesVhost)
        try fixture.expectTraffic(4)
        fixture.end()
    }

    // MARK: Hostile drivers

    /// Part of the ring, and where it is said to be.
    private static let places: [(part: Int, address: UInt64)] = (0..<3).flatMap { part in
        [
            .max, .max - 15, .max << 12, 1 << 63, 1 << 40, UInt64(ModelDriver.memorySize),
            UInt64(ModelDriver.memorySize) - 16, 0x10001, 0x10002, 0x1FFFF0,
        ].map { (part, $0) }
    }

    /// Two regions side by side are not one.
    private static func cutMemory() throws -> GuestMemory {
        GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: 0x200000)),
            MemoryRegion(
                base: GuestPhysicalAddress(0x200000), mapping: try HostMapping(size: ModelDriver.memorySize - 0x200000)),
        ])
    }

    @Test("Rings that are nowhere", arguments: 0..<places.count, [0, 1])
    func rings(number: Int, queue: Int) throws {
        let (part, address) = Self.places[number]
        let fixture = try VhostFixture(memory: try Self.cutMemory())
        #expect(fixture.usesVhost)
        let driver = fixture.driver
        driver.setStatus(0)
        driver.setStatus(VirtioStatus.acknowledge | VirtioStatus.driver)
        driver.setFeatures(driver.style.features | NetFeature.mergeableBuffers)
        driver.setStatus(VirtioStatus.acknowledge | VirtioStatus.driver | VirtioStatus.featuresOK)
        for index in driver.queues.indices {
            if index == queue {
                driver.enable(index, part: part, at: address)
            } else {
                driver.enable(index)
            }
        }
        let all = VirtioStatus.acknowledge | VirtioStatus.driver | VirtioStatus.featuresOK | VirtioStatus.driverOK
        driver.setStatus(all)
        // An available ring may be at any even place.
        if part != 1 || address != 0x10002 { #expect(!fixture.usesVhost, "\(part) \(address)") }
        _ = fixture.wire.send(CardFixture.frame(1, 100))
        for index in driver.queues.indices { driver.notify(index) }
        driver.transport.pause()
        driver.transport.resume()
        driver.setStatus(0)
        try fixture.start()
        #expect(fixture.usesVhost)
        fixture.end()
    }

    @Test("A queue that is not there", arguments: [0, 1])
    func missing(queue: Int) throws {
        let fixture = try VhostFixture(isRequired: true, startsDriver: false)
        let driver = fixture.driver
        driver.setStatus(VirtioStatus.acknowledge | VirtioStatus.driver)
        driver.setFeatures(driver.style.features)
        let all = VirtioStatus.acknowledge | VirtioStatus.driver | VirtioStatus.featuresOK
        driver.setStatus(all)
        driver.setStatus(all | VirtioStatus.driverOK)
        #expect(!fixture.usesVhost && fixture.log.lines.first?.contains("queue 0 is no ring") == true)
        fixture.end()
    }

    /// Registers, rings and notifications full of noise, both paths in turn: the process lives, and a reset mends it.
    @Test("Hostile drivers")
    func noise() throws {
        let memory = try ModelDriver.makeMemory()
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let style = DriverStyle(
                usesIndirect: generator.next() & 1 == 0, hasEventIndex: generator.next() & 1 == 0)
            let fixture = try VhostFixture(style: style, memory: memory)
            for _ in 0..<60 {
                switch generator.next() % 12 {
                case 0: fixture.driver.setStatus(UInt8(truncatingIfNeeded: generator.next()))
                case 1: try fixture.start()
                case 2: try fixture.move(allowsVhost: generator.next() & 1 == 0)
                case 3: fixture.driver.write(generator.next() % 0x40, .word, generator.next() % 4)
                case 4: fixture.driver.write(generator.next() % 0x40 & ~3, .double, generator.next())
                case 5: try fixture.resetQueue(Int(generator.next() % 3))
                case 6: _ = fixture.wire.send(CardFixture.frame(1, 60 + Int(generator.next() % 3000)))
                case 7: fixture.driver.notify(Int(generator.next() % 4))
                case 8: try fixture.ringDoorbell(Int(generator.next() % 3))
                default:
                    let base = 0x10000 + generator.next() % 2 * 0x40000
                    let place = base + [0, 0x4000, 0x6000][Int(generator.next() % 3)] + generator.next() % 40 * 2
                    let value = generator.next() % 3 == 0 ? generator.next() : generator.next() % 20
                    try memory.store(UInt16(truncatingIfNeeded: value), at: GuestPhysicalAddress(place))
                }
            }
            try fixture.move(allowsVhost: true)
            fixture.driver.setStatus(0)
            while fixture.wire.receive() != nil {}
            try fixture.start()
            #expect(fixture.usesVhost, "seed \(seed)")
            #expect(try fixture.send(CardFixture.frame(2, 100)))
            #expect(eventually { fixture.wire.receive() } == CardFixture.frame(2, 100), "seed \(seed)")
            fixture.end()
        }
    }
}
