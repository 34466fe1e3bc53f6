import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Testing
import X86

@testable import Virtio

/// Hostile drivers: whatever they write, the process lives, each notification ends, and a reset makes the device work.
@Suite("Hostile virtio drivers")
struct FuzzTests {
    /// `test` makes the same seed another one for each test.
    private func run(test: UInt64, _ body: (inout SeededGenerator) throws -> Void) rethrows {
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed ^ test << 48)
            try body(&generator)
        }
    }

    /// Addresses and lengths that are more often wrong in an interesting way than random ones.
    private func address(_ generator: inout SeededGenerator) -> UInt64 {
        switch generator.next() % 8 {
        case 0: .max - generator.next() % 64
        case 1: UInt64(ModelDriver.memorySize) - generator.next() % 64
        case 2: generator.next()
        case 3: 0x10000 + generator.next() % 0x8000
        default: generator.next() % UInt64(ModelDriver.memorySize)
        }
    }

    private func length(_ generator: inout SeededGenerator) -> UInt32 {
        switch generator.next() % 6 {
        case 0: 0
        case 1: .max
        case 2: UInt32(truncatingIfNeeded: generator.next())
        default: UInt32(generator.next() % 2048)
        }
    }

    @Test("Rings full of noise", arguments: BlockPath.available, [false, true])
    func rings(path: BlockPath, isPacked: Bool) throws {
        let memory = try ModelDriver.makeMemory()
        try run(test: isPacked ? 1 : 2) { generator in
            let style = DriverStyle(
                isPacked: isPacked, usesIndirect: true, hasEventIndex: generator.next() & 1 == 0,
                isInOrder: generator.next() & 1 == 0)
            let bench = try BlockBench(path, try MemoryDisk(size: 64 << 10))
            let driver = try ModelDriver(bench.device, style: style, memory: memory)
            driver.attachments = [bench]
            try #require(driver.start(features: generator.next() & (BlockFeature.flush | BlockFeature.discard)))
            for index in 0..<UInt64(16) {
                let place = 0x10000 + index * 16
                try memory.store(address(&generator), at: GuestPhysicalAddress(place))
                try memory.store(length(&generator), at: GuestPhysicalAddress(place + 8))
                let flags = UInt16(truncatingIfNeeded: generator.next()) & 7 | (isPacked ? 1 << 7 : 0)
                let other = UInt16(generator.next() % 20)
                try memory.store(isPacked ? other : flags & 7, at: GuestPhysicalAddress(place + 12))
                try memory.store(isPacked ? flags : other, at: GuestPhysicalAddress(place + 14))
                // Headers of requests, where chains may find them.
                try memory.store(
                    UInt64(generator.next() % 16), at: GuestPhysicalAddress(generator.next() % 0x8000 * 16))
                try memory.store(UInt16(generator.next() % 18), at: GuestPhysicalAddress(0x14004 + index * 2))
            }
            try memory.store(UInt16(generator.next() % 18), at: GuestPhysicalAddress(0x14002))
            for _ in 0..<4 { driver.notify() }
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while driver.transport.queues[0].outstanding > 0, HostClock.monotonicNanoseconds < end {
                HostClock.sleep(nanoseconds: 20_000)
            }
            #expect(driver.transport.queues[0].outstanding == 0)
            driver.setStatus(0)
            try #require(driver.start())
            let used = try driver.request([.readable([UInt8](repeating: 0, count: 16)), .writable(512), .writable(1)])
            #expect(used?.bytes.last == 0)
        }
    }

    private final class NoiseSink: ConsoleSink {
        func write(_ bytes: [UInt8], port: Int) -> Int { bytes.count / (port + 1) }
        func inputSpaceAvailable(port: Int) {}
    }

    @Test("Consoles and balloons whose drivers send noise", arguments: [false, true])
    func consoleAndBalloon(isPacked: Bool) throws {
        let memory = try ModelDriver.makeMemory()
        try run(test: isPacked ? 4 : 5) { generator in
            let sink = NoiseSink()
            let console = VirtioConsole(
                ports: [.init(name: "a"), .init(isConsole: true), .init(name: "c")], sink: sink)
            let balloon = VirtioBalloon(targetPages: 9)
            let device: any VirtioDevice = generator.next() & 1 == 0 ? console : balloon
            let style = DriverStyle(isPacked: isPacked, hasEventIndex: generator.next() & 1 == 0)
            let driver = try ModelDriver(device, style: style, memory: memory)
            try #require(driver.start(features: device.features & generator.next() | 2))
            for _ in 0..<60 {
                let queue = Int(generator.next() % UInt64(device.queueSizes.count))
                // Often small numbers, as control messages and page numbers have them.
                let bytes = (0..<Int(generator.next() % 40)).map { _ in
                    UInt8(truncatingIfNeeded: generator.next() & 1 == 0 ? generator.next() % 8 : generator.next())
                }
                let size = Int(generator.next() % 64)
                try driver.queues[queue].submit(
                    generator.next() & 1 == 0 ? [.readable(bytes)] : [.readable(bytes), .writable(size)])
                driver.notify(queue)
                switch generator.next() % 8 {
                case 0: _ = console.receive(bytes, port: Int(generator.next() % 4))
                case 1: console.setConnected(generator.next() & 1 == 0, port: Int(generator.next() % 4))
                case 2: console.outputSpaceAvailable(port: Int(generator.next() % 4))
                case 3: console.resize(columns: UInt16(truncatingIfNeeded: generator.next()), rows: 1)
                case 4: _ = balloon.statistics()
                case 5: balloon.setTarget(pages: UInt32(truncatingIfNeeded: generator.next()))
                default: _ = try driver.queues[queue].collect()
                }
            }
            driver.transport.pause()
            let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
            if device === console {
                _ = try VirtioConsoleSavedState(encoded: saved.device)
            } else {
                _ = try VirtioBalloonSavedState(encoded: saved.device)
            }
            driver.setStatus(0)
            try #require(driver.start(features: device.features))
            driver.transport.shutDown()
        }
    }

    @Test("Registers and configuration space full of noise")
    func registers() throws {
        let memory = try ModelDriver.makeMemory()
        try run(test: 3) { generator in
            let device = EchoDevice(queueCount: 2)
            let driver = try ModelDriver(device, memory: memory)
            let function = driver.transport.function
            let widths: [AccessWidth] = [.byte, .word, .double, .quad]
            for _ in 0..<400 {
                let width = widths[Int(generator.next() % 4)]
                let value = generator.next() % 3 == 0 ? generator.next() : generator.next() % 16
                switch generator.next() % 6 {
                case 0:
                    let offset = Int(generator.next() % 1024) * 4
                    function.writeConfiguration(value & width.mask, at: offset, width: width)
                case 1: _ = function.readConfiguration(at: Int(generator.next() % 4096), width: width)
                case 2:
                    for region in driver.connection.regions {
                        let offset = generator.next() % region.size
                        _ = region.device.write(offset: offset, width: width, value: value & width.mask)
                        _ = region.device.read(offset: offset, width: width)
                    }
                case 3: driver.setStatus(UInt8(truncatingIfNeeded: value))
                default: driver.write(generator.next() % 0x40, width, value & width.mask)
                }
                if generator.next() % 8 == 0 { driver.notify(Int(generator.next() % 4)) }
            }
            driver.transport.pause()
            let saved = driver.transport.save()
            #expect(try VirtioPCISavedState(encoded: saved.encoded()) == saved)
            driver.transport.shutDown()
        }
    }
}
