import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Net
import Testing
import X86

@testable import Virtio

/// A driver from before Virtio 1.0: ports in the first BAR, page numbers, no FEATURES_OK.
final class LegacyDriver {
    let memory: GuestMemory
    let transport: VirtioPCIDevice
    let connection = RecordingConnection()
    private(set) var queues: [ModelQueue] = []

    init(_ device: any VirtioDevice) throws {
        memory = try ModelDriver.makeMemory()
        transport = try VirtioPCIDevice(device, memory: memory, isTransitional: true)
        connect()
    }

    /// Goes on where `other` was, with a device that was restored.
    init(continuing other: LegacyDriver, with transport: VirtioPCIDevice) {
        memory = other.memory
        queues = other.queues
        self.transport = transport
        connect()
    }

    private func connect() {
        transport.function.connect(transport, to: connection)
        transport.function.writeConfiguration(
            UInt64(PCICommand.ioSpace | PCICommand.memorySpace | PCICommand.busMaster), at: PCIRegister.command,
            width: .word)
    }

    func read(_ register: UInt64, _ width: AccessWidth) -> UInt64 {
        guard case .value(let value) = transport.readRegister(bar: 0, offset: register, width: width) else {
            return .max
        }
        return value
    }

    func write(_ register: UInt64, _ width: AccessWidth, _ value: UInt64) {
        _ = transport.writeRegister(bar: 0, offset: register, width: width, value: value)
    }

    var status: UInt8 { UInt8(truncatingIfNeeded: read(VirtioLegacyRegister.status, .byte)) }

    /// Until before DRIVER_OK.
    func begin(features: UInt64, queueCount: Int) {
        write(VirtioLegacyRegister.status, .byte, 0)
        write(VirtioLegacyRegister.status, .byte, 1)
        write(VirtioLegacyRegister.status, .byte, 3)
        write(VirtioLegacyRegister.driverFeatures, .double, features)
        queues = []
        for index in 0..<queueCount {
            let base = UInt64(0x10000 + index * 0x40000)
            write(VirtioLegacyRegister.queueSelect, .word, UInt64(index))
            let size = UInt16(truncatingIfNeeded: read(VirtioLegacyRegister.queueSize, .word))
            let addresses = VirtioLegacyLayout.addresses(page: UInt32(base >> 12), size: size)
            queues.append(
                ModelQueue(
                    index: index, base: base, size: size, style: DriverStyle(), memory: memory, addresses: addresses))
            write(VirtioLegacyRegister.queueAddress, .double, base >> 12)
        }
    }

    func finish() { write(VirtioLegacyRegister.status, .byte, 7) }
    func notify(_ queue: Int) { write(VirtioLegacyRegister.queueNotify, .word, UInt64(queue)) }

    func request(_ parts: [ModelQueue.Part], queue: Int = 0) throws -> ModelQueue.Used? {
        try queues[queue].submit(parts)
        notify(queue)
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while HostClock.monotonicNanoseconds < end {
            if let used = try queues[queue].collect().first { return used }
            HostClock.sleep(nanoseconds: 50_000)
        }
        return nil
    }
}

@Suite("Legacy virtio drivers")
struct LegacyTests {
    private func makeDisk() throws -> VirtioBlock {
        VirtioBlock(try MemoryDisk(size: 64 << 10), runner: ImmediateRunner(), parallelism: 1)
    }

    /// A request as the first drivers cut it: header, data, status.
    private func blockRequest(_ type: UInt32, sector: UInt64, _ data: ModelQueue.Part) -> [ModelQueue.Part] {
        var header = [UInt8](repeating: 0, count: 16)
        header.store(type, at: 0)
        header.store(sector, at: 8)
        return [.readable(header), data, .writable(1)]
    }

    @Test("Disks and cards have it, other devices do not")
    func identity() throws {
        func identity(_ device: any VirtioDevice) throws -> (UInt64, UInt64, UInt64, UInt64) {
            let function = try LegacyDriver(device).transport.function
            return (
                function.readConfiguration(at: PCIRegister.deviceID, width: .word),
                function.readConfiguration(at: PCIRegister.revision, width: .byte),
                function.readConfiguration(at: PCIRegister.subsystemID, width: .word),
                function.readConfiguration(at: PCIRegister.baseAddress, width: .double) & 1
            )
        }
        #expect(try identity(try makeDisk()) == (0x1001, 0, 2, 1))
        let card = VirtioNet(try NetworkPort(CardBackend()), options: NetworkCardOptions(mac: CardFixture.mac))
        #expect(try identity(card) == (0x1000, 0, 1, 1))
        #expect(try identity(VirtioEntropy()) == (0x1044, 1, 0x1044, 0))
    }

    /// Virtio 1.2 §2.7.2, by its own formula.
    @Test(
        "The rings lie one behind the other",
        arguments: [(4, 0x1000), (256, 0x2000), (1024, 0x5000)] as [(UInt16, UInt64)])
    func layout(size: UInt16, used: UInt64) {
        let addresses = VirtioLegacyLayout.addresses(page: 0xFFFF_FFFF, size: size)
        #expect(addresses.descriptors == 0xFFFF_FFFF_000)
        #expect(addresses.driver == addresses.descriptors + 16 * UInt64(size))
        #expect(addresses.device == addresses.descriptors + used)
    }

    @Test("A disk, used before the driver says that it is ready and afterwards, and again after a reset")
    func disk() throws {
        let driver = try LegacyDriver(try makeDisk())
        let features = driver.read(VirtioLegacyRegister.deviceFeatures, .double)
        #expect(features & (BlockFeature.flush | 1 << 27) == BlockFeature.flush | 1 << 27 && features < 1 << 32)
        for _ in 0..<2 {
            driver.begin(features: BlockFeature.flush, queueCount: 1)
            #expect(driver.status == 3)
            let data = (0..<1024).map { UInt8(truncatingIfNeeded: $0 &* 3) }
            #expect(try driver.request(blockRequest(1, sector: 2, .readable(data)))?.bytes == [0])
            #expect(driver.status == 3, "it has not said it")
            driver.finish()
            #expect(driver.status == 7)
            let used = try driver.request(blockRequest(0, sector: 2, .writable(1024)))
            #expect(used?.bytes == data + [0])
            // Without MSI-X the pin tells, and the configuration begins at 0x14.
            #expect(driver.connection.pin)
            #expect(driver.read(VirtioLegacyRegister.interruptStatus, .byte) == 1)
            #expect(!driver.connection.pin)
            #expect(driver.read(0x14, .double) == 128)
            // A queue that is given back.
            driver.write(VirtioLegacyRegister.queueAddress, .double, 0)
            #expect(driver.read(VirtioLegacyRegister.queueAddress, .double) == 0)
        }
        driver.write(VirtioLegacyRegister.status, .byte, 0)
        #expect(driver.status == 0)
        driver.transport.shutDown()
    }

    @Test("A saved disk goes on", arguments: [false, true])
    func savedState(isEarly: Bool) throws {
        let disk = try MemoryDisk(size: 64 << 10)
        let driver = try LegacyDriver(VirtioBlock(disk, runner: ImmediateRunner(), parallelism: 1))
        driver.begin(features: BlockFeature.flush, queueCount: 1)
        if !isEarly { driver.finish() }
        let data = [UInt8](repeating: 0x5A, count: 512)
        #expect(try driver.request(blockRequest(1, sector: 7, .readable(data)))?.bytes == [0])
        driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        func restored(isTransitional: Bool) throws -> VirtioPCIDevice {
            let device = VirtioBlock(disk, runner: ImmediateRunner(), parallelism: 1)
            return try VirtioPCIDevice(
                restoring: saved, device, memory: driver.memory, isTransitional: isTransitional)
        }
        #expect(throws: SavedStateError.self) { try restored(isTransitional: false) }
        let next = LegacyDriver(continuing: driver, with: try restored(isTransitional: true))
        next.transport.resume()
        #expect(next.status == (isEarly ? 3 : 7))
        #expect(try next.request(blockRequest(0, sector: 7, .writable(512)))?.bytes == data + [0])
        next.finish()
        #expect(try next.request(blockRequest(0, sector: 7, .writable(512)))?.bytes == data + [0])
        next.transport.shutDown()
    }

    @Test("A card's header has ten bytes unless the driver merges buffers", arguments: [false, true])
    func card(merges: Bool) throws {
        let backend = CardBackend()
        let card = VirtioNet(try NetworkPort(backend), options: NetworkCardOptions(mac: CardFixture.mac))
        let driver = try LegacyDriver(card)
        driver.begin(features: NetFeature.mac | (merges ? NetFeature.mergeableBuffers : 0), queueCount: 2)
        driver.finish()
        let size = merges ? 12 : 10
        let frame = CardFixture.frame(1, 60)
        _ = try driver.request([.readable([UInt8](repeating: 0, count: size)), .readable(frame)], queue: 1)
        #expect(backend.takeSent().map(\.bytes) == [frame])
        try driver.queues[0].submit([.writable(size), .writable(1514)])
        driver.notify(0)
        backend.deliver([.init(frame)])
        let used = try driver.queues[0].collect()
        #expect(used.count == 1 && Int(used[0].written) == size + frame.count)
        #expect(Array(used[0].bytes.dropFirst(size).prefix(frame.count)) == frame)
        // The address, which such drivers read and write in the configuration.
        let mac: [UInt8] = [2, 0, 0, 0, 0, 0x77]
        for (index, byte) in mac.enumerated() { driver.write(0x14 + UInt64(index), .byte, UInt64(byte)) }
        #expect((0..<6).map { UInt8(truncatingIfNeeded: driver.read(0x14 + $0, .byte)) } == mac)
        driver.transport.shutDown()
    }

    @Test("Vectors have registers while MSI-X is on, and the configuration begins behind them")
    func vectors() throws {
        let driver = try LegacyDriver(try makeDisk())
        let function = driver.transport.function
        var capability = Int(function.readConfiguration(at: 0x34, width: .byte))
        while function.readConfiguration(at: capability, width: .byte) != 0x11 {
            capability = Int(function.readConfiguration(at: capability + 1, width: .byte))
        }
        function.writeConfiguration(0x8000, at: capability + 2, width: .word)
        _ = driver.connection.regions.first { $0.size == VirtioPCILayout.msixBarSize }.map { table in
            _ = table.device.write(offset: 16, width: .quad, value: 0xFEE0_0000)
            _ = table.device.write(offset: 24, width: .quad, value: 0x41)
        }
        driver.begin(features: 0, queueCount: 1)
        driver.write(VirtioLegacyRegister.queueVector, .word, 1)
        driver.write(VirtioLegacyRegister.configurationVector, .word, 99)
        #expect(driver.read(VirtioLegacyRegister.queueVector, .word) == 1)
        #expect(driver.read(VirtioLegacyRegister.configurationVector, .word) == 0xFFFF)
        driver.finish()
        #expect(driver.read(0x18, .double) == 128)
        _ = try driver.request(blockRequest(0, sector: 0, .writable(512)))
        #expect(driver.connection.waitForMessages(1).map(\.data) == [0x41] && !driver.connection.pin)
        driver.transport.shutDown()
    }

    @Test("A driver of today finds its own interface in another BAR, and a legacy one cannot take it away")
    func modern() throws {
        let driver = try LegacyDriver(try makeDisk())
        func write(_ register: UInt64, _ width: AccessWidth, _ value: UInt64) {
            _ = driver.transport.writeRegister(bar: 4, offset: register, width: width, value: value)
        }
        write(VirtioCommonRegister.driverFeatureSelect, .double, 1)
        write(VirtioCommonRegister.driverFeature, .double, 1)
        for status in [1, 3, 11] as [UInt64] { write(VirtioCommonRegister.status, .byte, status) }
        #expect(driver.status == 11)
        driver.write(VirtioLegacyRegister.driverFeatures, .double, 0)
        driver.write(VirtioLegacyRegister.queueAddress, .double, 5)
        driver.finish()
        #expect(driver.status == 11 && driver.read(VirtioLegacyRegister.queueAddress, .double) == 0)
        write(VirtioCommonRegister.status, .byte, 15)
        #expect(driver.status == 15)
        // And the other way round.
        driver.begin(features: 0, queueCount: 1)
        driver.finish()
        write(VirtioCommonRegister.status, .byte, 11)
        #expect(driver.status == 7)
        driver.transport.shutDown()
    }

    /// What a seed tries: a disk, or a card with the back end that it keeps and is kept by until it is closed.
    private func driver(_ seed: UInt64) throws -> (LegacyDriver, end: () -> Void) {
        if seed % 2 == 0 {
            let driver = try LegacyDriver(try makeDisk())
            return (driver, { driver.transport.shutDown() })
        }
        let port = try NetworkPort(CardBackend())
        let card = VirtioNet(port, options: NetworkCardOptions(mac: CardFixture.mac))
        let driver = try LegacyDriver(card)
        return (
            driver,
            {
                driver.transport.shutDown()
                card.unplug()
                port.close()
            }
        )
    }

    @Test("Registers of both interfaces full of noise", .timeLimit(.minutes(10)))
    func noise() throws {
        let widths: [AccessWidth] = [.byte, .word, .double, .quad]
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let (driver, end) = try driver(seed)
            defer { end() }
            for _ in 0..<300 {
                let width = widths[Int(generator.next() % 4)]
                let value = generator.next() % 3 == 0 ? generator.next() : generator.next() % 16
                switch generator.next() % 5 {
                case 0:
                    _ = driver.transport.writeRegister(
                        bar: 4, offset: generator.next() % 0x40, width: width, value: value & width.mask)
                case 1: _ = driver.read(generator.next() % VirtioLegacyLayout.barSize, width)
                case 2: driver.write(VirtioLegacyRegister.status, .byte, value & 0xFF)
                case 3: driver.notify(Int(generator.next() % 4))
                default: driver.write(generator.next() % VirtioLegacyLayout.barSize, width, value & width.mask)
                }
            }
            driver.transport.pause()
            let saved = driver.transport.save()
            #expect(try VirtioPCISavedState(encoded: saved.encoded()) == saved)
            driver.transport.resume()
            try expectLife(driver, seed)
        }
    }

    /// After a reset the disk answers.
    private func expectLife(_ driver: LegacyDriver, _ seed: UInt64) throws {
        guard seed % 2 == 0 else { return }
        driver.begin(features: 0, queueCount: 1)
        driver.finish()
        #expect(
            try driver.request(blockRequest(0, sector: 0, .writable(512)))?.bytes.last == 0, "seed \(seed)")
    }

    @Test("Rings full of noise, at any page", .timeLimit(.minutes(10)))
    func noisyRings() throws {
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let (driver, end) = try driver(seed)
            defer { end() }
            driver.begin(features: generator.next() & 0x3FFF_FFFF, queueCount: seed % 2 == 0 ? 1 : 2)
            for queue in driver.queues {
                for index in 0..<UInt64(24) {
                    let place = queue.descriptors + index * 16
                    let address = generator.next() % 4 == 0 ? generator.next() : generator.next() % 0x40_0000
                    let length = generator.next() % 4 == 0 ? generator.next() : generator.next() % 2048
                    try driver.memory.store(address, at: GuestPhysicalAddress(place))
                    try driver.memory.store(
                        UInt32(truncatingIfNeeded: length), at: GuestPhysicalAddress(place + 8))
                    try driver.memory.store(UInt16(generator.next() % 8), at: GuestPhysicalAddress(place + 12))
                    try driver.memory.store(UInt16(generator.next() % 28), at: GuestPhysicalAddress(place + 14))
                    try driver.memory.store(
                        UInt16(generator.next() % 26), at: GuestPhysicalAddress(queue.driverArea + 4 + index * 2))
                }
                try driver.memory.store(
                    UInt16(generator.next() % 26), at: GuestPhysicalAddress(queue.driverArea + 2))
            }
            if generator.next() % 4 == 0 {
                driver.write(VirtioLegacyRegister.queueAddress, .double, generator.next() & 0xFFFF_FFFF)
            }
            if generator.next() % 2 == 0 { driver.finish() }
            for queue in [0, 1, 0] { driver.notify(queue) }
            driver.transport.pause()
            let saved = driver.transport.save()
            #expect(try VirtioPCISavedState(encoded: saved.encoded()) == saved)
            driver.transport.resume()
            try expectLife(driver, seed)
        }
    }
}
