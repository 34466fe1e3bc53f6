import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Testing
import X86

@testable import Virtio

@Suite("Virtqueues")
struct QueueTests {
    @Test("Every layout carries random buffers, in any order of completion", arguments: DriverStyle.all)
    func traffic(style: DriverStyle) throws {
        var generator = SeededGenerator(seed: 1)
        let device = EchoDevice()
        let driver = try ModelDriver(device, style: style)
        try #require(driver.start())
        let queue = driver.queues[0]
        var expected: [Int: [UInt8]] = [:]
        var sent = 0
        var received = 0
        while received < 600 {
            device.holds = Bool.random(using: &generator)
            for _ in 0..<Int.random(in: 1...5, using: &generator) where sent < 600 {
                let parts = (0..<Int.random(in: 1...3, using: &generator)).map { _ in
                    (0..<Int.random(in: 1...300, using: &generator)).map { _ in
                        UInt8.random(in: 0...255, using: &generator)
                    }
                }
                let count = parts.reduce(0) { $0 + $1.count }
                let split = Int.random(in: 0...count, using: &generator)
                let room = [split, count - split].filter { $0 > 0 }.map { ModelQueue.Part.writable($0) }
                guard try queue.submit(parts.map { .readable($0) } + room) else { break }
                expected[sent] = parts.flatMap { $0 }.reversed()
                sent += 1
            }
            driver.notify()
            device.release(using: &generator)
            let used = try queue.collect()
            if style.isInOrder { #expect(used.map(\.token) == Array(received..<received + used.count)) }
            for answer in used {
                #expect(answer.bytes == expected[answer.token])
                #expect(Int(answer.written) == answer.bytes.count)
            }
            received += used.count
        }
        #expect(!driver.needsReset && queue.freeCount == 16)
        #expect(driver.transport.queues[0].outstanding == 0)
    }

    private static let table: UInt64 = 0x10000
    private static let available: UInt64 = 0x14000

    /// One descriptor as the driver writes it.
    struct Raw: Sendable {
        var address: UInt64 = 0x20000
        var length: UInt32 = 16
        var flags: UInt16 = 0
        var next: UInt16 = 0
    }

    /// (what is wrong, the descriptors, available index, head)
    private static let broken: [(String, [Raw], UInt16, UInt16)] = [
        ("a loop of one", [Raw(flags: 1, next: 0)], 1, 0),
        ("a loop of two", [Raw(flags: 1, next: 1), Raw(flags: 1, next: 0)], 1, 0),
        ("a head beyond the table", [], 1, 16),
        ("a next beyond the table", [Raw(flags: 1, next: 0xFFFF)], 1, 0),
        ("more available than the ring holds", [Raw()], 17, 0),
        ("readable behind writable", [Raw(flags: 3, next: 1), Raw()], 1, 0),
        (
            "more than 4 GiB",
            [Raw(length: .max, flags: 1, next: 1), Raw(length: .max, flags: 0)], 1, 0
        ),
        ("an indirect table of no descriptors", [Raw(length: 0, flags: 4)], 1, 0),
        ("an indirect table that is not whole", [Raw(length: 17, flags: 4)], 1, 0),
        ("an indirect table that is too long", [Raw(length: 0xFFFF_FFF0, flags: 4)], 1, 0),
        ("an indirect table that is no memory", [Raw(address: 1 << 40, length: 16, flags: 4)], 1, 0),
        ("an indirect table at the end of addresses", [Raw(address: .max - 3, length: 32, flags: 4)], 1, 0),
        ("an indirect descriptor that goes on", [Raw(flags: 5, next: 1), Raw()], 1, 0),
    ]

    @Test("A broken split ring stops the device until a reset", arguments: broken)
    func brokenSplitRing(name: String, descriptors: [Raw], index: UInt16, head: UInt16) throws {
        let device = EchoDevice()
        let driver = try ModelDriver(device, style: DriverStyle(usesIndirect: true))
        try #require(driver.start())
        for (number, raw) in descriptors.enumerated() {
            let place = Self.table + UInt64(number) * 16
            try driver.memory.store(raw.address, at: GuestPhysicalAddress(place))
            try driver.memory.store(raw.length, at: GuestPhysicalAddress(place + 8))
            try driver.memory.store(raw.flags, at: GuestPhysicalAddress(place + 12))
            try driver.memory.store(raw.next, at: GuestPhysicalAddress(place + 14))
        }
        try driver.memory.store(head, at: GuestPhysicalAddress(Self.available + 4))
        try driver.memory.store(index, at: GuestPhysicalAddress(Self.available + 2))
        driver.notify()
        #expect(driver.needsReset, "\(name)")
        #expect(driver.connection.pin && driver.read(VirtioPCILayout.interruptStatus, .byte) & 2 != 0)
        // It stays silent, and works again after a reset.
        driver.notify()
        #expect(driver.transport.queues[0].next() == nil)
        driver.setStatus(0)
        #expect(driver.status == 0 && device.counts.resets >= 1)
        try #require(driver.start())
        #expect(try driver.request([.readable([1, 2, 3]), .writable(3)])?.bytes == [3, 2, 1])
    }

    @Test("A packed chain that never ends, and one with an indirect table inside")
    func brokenPackedRing() throws {
        for flags: UInt16 in [1 << 7 | 1, 1 << 7 | 1 | 4] {
            let driver = try ModelDriver(EchoDevice(), style: DriverStyle(isPacked: true, usesIndirect: true))
            try #require(driver.start())
            for number in 0..<UInt64(16) {
                try driver.memory.store(UInt32(16), at: GuestPhysicalAddress(Self.table + number * 16 + 8))
                try driver.memory.store(flags, at: GuestPhysicalAddress(Self.table + number * 16 + 14))
            }
            driver.notify()
            #expect(driver.needsReset)
        }
    }

    @Test("A ring that is not in memory stops the device", arguments: [false, true])
    func ringOutsideMemory(isPacked: Bool) throws {
        let driver = try ModelDriver(EchoDevice(), style: DriverStyle(isPacked: isPacked))
        driver.setStatus(3)
        driver.setFeatures(driver.style.features)
        driver.setStatus(11)
        for register in stride(from: VirtioCommonRegister.queueDescriptors, to: 0x38, by: 4) {
            driver.write(register, .double, 0xFFFF_FFF0)
        }
        driver.write(VirtioCommonRegister.queueEnable, .word, 1)
        driver.setStatus(15)
        driver.notify()
        #expect(driver.needsReset)
    }

    @Test("Descriptors of no length count for nothing", arguments: [false, true])
    func emptyDescriptors(isPacked: Bool) throws {
        let driver = try ModelDriver(EchoDevice(), style: DriverStyle(isPacked: isPacked))
        try #require(driver.start())
        let used = try driver.request([.readable([]), .readable([7]), .writable(0), .writable(1)])
        #expect(used?.bytes == [7] && used?.written == 1)
        #expect(try driver.request([.readable([])])?.written == 0)
    }

    @Test("One queue is reset while the other goes on", arguments: [false, true])
    func ringReset(isPacked: Bool) throws {
        let device = EchoDevice(queueCount: 2)
        let driver = try ModelDriver(device, style: DriverStyle(isPacked: isPacked))
        try #require(driver.start())
        device.holds = true
        try driver.queues[1].submit([.readable([1]), .writable(1)])
        driver.notify(1)
        device.holds = false
        driver.write(VirtioCommonRegister.queueSelect, .word, 1)
        driver.write(VirtioCommonRegister.queueReset, .word, 1)
        #expect(driver.read(VirtioCommonRegister.queueReset, .word) == 0)
        #expect(driver.read(VirtioCommonRegister.queueEnable, .word) == 0)
        #expect(driver.read(VirtioCommonRegister.queueSize, .word) == 64)
        driver.notify(1)
        #expect(try driver.queues[1].collect().isEmpty)
        #expect(try driver.request([.readable([1, 2]), .writable(2)])?.bytes == [2, 1])
    }
}

@Suite("Virtio PCI transport")
struct TransportTests {
    /// (features that the driver takes, whether the device accepts them)
    @Test(
        "Features are agreed on or not",
        arguments: [
            (VirtioFeature.version1, true), (VirtioFeature.version1 | 1, true), (0, false), (1, false),
            (VirtioFeature.version1 | 2, false), (VirtioFeature.version1 | 1 << 63, false),
            (VirtioFeature.version1 | VirtioFeature.packedRing, true),
        ] as [(UInt64, Bool)])
    func features(features: UInt64, isAccepted: Bool) throws {
        let device = EchoDevice()
        let driver = try ModelDriver(device)
        #expect(driver.deviceFeatures == VirtioFeature.offered | 1)
        driver.setStatus(3)
        driver.setFeatures(features)
        driver.setStatus(11)
        #expect(driver.status == (isAccepted ? 11 : 3))
        driver.setStatus(15)
        #expect(driver.status == (isAccepted ? 15 : 7 & ~4))
        #expect(device.counts.starts == (isAccepted ? 1 : 0))
        // Final once accepted.
        driver.setFeatures(0)
        driver.write(VirtioCommonRegister.driverFeatureSelect, .double, 1)
        let high = driver.read(VirtioCommonRegister.driverFeature, .double)
        #expect(high == (isAccepted ? features >> 32 : 0))
    }

    @Test("Nothing happens before DRIVER_OK")
    func notificationsBeforeDriverOK() throws {
        let driver = try ModelDriver(EchoDevice())
        driver.notify()
        driver.setStatus(3)
        driver.notify()
        #expect(!driver.needsReset && driver.status == 3)
    }

    @Test(
        "Queue registers", arguments: [(UInt64(16), UInt64(16)), (3, 64), (0, 64), (128, 64), (0xFFFF, 64), (64, 64)])
    func queueSize(written: UInt64, expected: UInt64) throws {
        let driver = try ModelDriver(EchoDevice())
        driver.write(VirtioCommonRegister.queueSize, .word, written)
        #expect(driver.read(VirtioCommonRegister.queueSize, .word) == expected)
        driver.write(VirtioCommonRegister.queueVector, .word, 2)
        #expect(driver.read(VirtioCommonRegister.queueVector, .word) == 0xFFFF, "vectors: one queue, one configuration")
        driver.write(VirtioCommonRegister.queueVector, .word, 1)
        #expect(driver.read(VirtioCommonRegister.queueVector, .word) == 1)
        driver.write(VirtioCommonRegister.queueSelect, .word, 1)
        #expect(driver.read(VirtioCommonRegister.queueSize, .word) == 0)
        #expect(driver.read(VirtioCommonRegister.queueSize, .byte) == .max)
    }

    @Test("Interrupts by pin, and by vector")
    func interrupts() throws {
        let driver = try ModelDriver(EchoDevice())
        let function = driver.transport.function
        try #require(driver.start())
        _ = try driver.request([.readable([1]), .writable(1)])
        #expect(driver.connection.pin && driver.connection.takeMessages().isEmpty)
        #expect(driver.read(VirtioPCILayout.interruptStatus, .byte) == 1)
        #expect(!driver.connection.pin && driver.read(VirtioPCILayout.interruptStatus, .byte) == 0)

        let control = try #require(findCapability(function, 0x11)) + 2
        let table = try #require(driver.connection.regions.last)
        function.writeConfiguration(0x8000, at: control, width: .word)
        _ = table.device.write(offset: 16, width: .quad, value: 0xFEE0_1000)
        _ = table.device.write(offset: 24, width: .quad, value: 0x41)
        driver.write(VirtioCommonRegister.queueVector, .word, 1)
        _ = try driver.request([.readable([1]), .writable(1)])
        #expect(driver.connection.takeMessages() == [PCIMessage(address: 0xFEE0_1000, data: 0x41)])
        // Masked it waits, and comes when it is unmasked.
        _ = table.device.write(offset: 28, width: .double, value: 1)
        _ = try driver.request([.readable([1]), .writable(1)])
        #expect(driver.connection.takeMessages().isEmpty)
        #expect(table.device.read(offset: 0x1000, width: .double) == .value(2))
        _ = table.device.write(offset: 28, width: .double, value: 0)
        #expect(driver.connection.takeMessages().count == 1)
        #expect(!driver.connection.pin)
    }

    private func findCapability(_ function: PCIFunction, _ identifier: UInt64) -> Int? {
        var offset = Int(function.readConfiguration(at: 0x34, width: .byte))
        while offset != 0 {
            if function.readConfiguration(at: offset, width: .byte) == identifier { return offset }
            offset = Int(function.readConfiguration(at: offset + 1, width: .byte))
        }
        return nil
    }

    @Test("The capabilities lead to every structure, also through configuration space")
    func capabilities() throws {
        let driver = try ModelDriver(EchoDevice())
        let function = driver.transport.function
        var types: [UInt64: Int] = [:]
        var offset = Int(function.readConfiguration(at: 0x34, width: .byte))
        while offset != 0 {
            if function.readConfiguration(at: offset, width: .byte) == 9 {
                types[function.readConfiguration(at: offset + 3, width: .byte)] = offset
            }
            offset = Int(function.readConfiguration(at: offset + 1, width: .byte))
        }
        #expect(types.keys.sorted() == [1, 2, 3, 4, 5])
        let access = try #require(types[5])
        function.writeConfiguration(VirtioPCILayout.device + 4, at: access + 8, width: .double)
        function.writeConfiguration(4, at: access + 12, width: .double)
        #expect(function.readConfiguration(at: access + 16, width: .double) == 0x0807_0605)
        function.writeConfiguration(VirtioCommonRegister.status, at: access + 8, width: .double)
        function.writeConfiguration(1, at: access + 12, width: .double)
        function.writeConfiguration(3, at: access + 16, width: .byte)
        #expect(driver.status == 3)
        // Beyond the BAR it is a stored value.
        function.writeConfiguration(0xFFFF_FFFF, at: access + 8, width: .double)
        _ = function.readConfiguration(at: access + 16, width: .byte)
    }

    @Test("A function-level reset is a reset of the device")
    func functionLevelReset() throws {
        let device = EchoDevice()
        let driver = try ModelDriver(device)
        try #require(driver.start())
        let express = try #require(findCapability(driver.transport.function, 0x10))
        driver.transport.function.writeConfiguration(0x8000, at: express + 8, width: .word)
        #expect(driver.status == 0 && device.counts.resets >= 1)
        #expect(driver.transport.function.readConfiguration(at: 4, width: .word) == 0)
        #expect(driver.connection.regions.isEmpty)
    }

    @Test("A saved device goes on in the middle of traffic", arguments: DriverStyle.all)
    func savedState(style: DriverStyle) throws {
        var generator = SeededGenerator(seed: 7)
        let device = EchoDevice()
        var driver = try ModelDriver(device, style: style)
        try #require(driver.start())
        var answers = 0
        for round in 0..<40 {
            // Some buffers are answered, some are held, some were never notified.
            let current = try #require(driver.transport.device as? EchoDevice)
            current.holds = round % 3 == 1
            for value in 0..<UInt8(2) {
                try driver.queues[0].submit([.readable([value, UInt8(round)]), .writable(2)])
            }
            if round % 4 != 3 { driver.notify() }
            driver.transport.pause()
            let saved = driver.transport.save()
            let bytes = saved.encoded()
            let decoded = try VirtioPCISavedState(encoded: bytes)
            #expect(decoded == saved && decoded.encoded() == bytes)
            let restored = try VirtioPCIDevice(restoring: decoded, EchoDevice(), memory: driver.memory)
            driver = ModelDriver(continuing: driver, with: restored)
            driver.transport.resume()
            for answer in try driver.queues[0].collect() {
                #expect(answer.bytes.count == 2 && answer.written == 2)
                answers += 1
            }
            _ = generator.next()
        }
        #expect(answers == 80 && !driver.needsReset)
    }

    @Test("A damaged saved state is refused")
    func damagedState() throws {
        let driver = try ModelDriver(EchoDevice(), style: DriverStyle(isPacked: true))
        try #require(driver.start())
        driver.transport.pause()
        let bytes = driver.transport.save().encoded()
        for count in 0..<min(bytes.count, 300) {
            #expect(throws: SavedStateError.self) { try VirtioPCISavedState(encoded: Array(bytes[..<count])) }
        }
        var generator = SeededGenerator(seed: 3)
        for _ in 0..<300 {
            var damaged = bytes
            damaged[Int.random(in: 4..<bytes.count, using: &generator)] ^= UInt8.random(in: 1...255, using: &generator)
            // Refused or not: nothing traps, and what was taken can be used.
            guard let state = try? VirtioPCISavedState(encoded: damaged),
                let restored = try? VirtioPCIDevice(restoring: state, EchoDevice(), memory: driver.memory)
            else { continue }
            restored.resume()
            restored.pause()
        }
    }
}
