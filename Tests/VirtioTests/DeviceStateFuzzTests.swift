import DeviceModel
import FileShare
import Fuzzing
import GuestMemory
import Host
import Net
import Testing
import X86

@testable import Virtio

/// A device that was saved amid its work, and what it takes to build it again.
private struct Victim {
    let driver: ModelDriver
    var features: UInt64 = 0
    /// Also keeps what the device needs.
    let restore: (VirtioPCISavedState) throws -> (any VirtioDevice, keeping: AnyObject?)
    /// What has to work after the driver's reset.
    var use: (ModelDriver) throws -> Void = { _ in }
    var end: () -> Void = {}
}

/// Saved states that were meddled with, of every device: refused, or a device whose driver can reset it and go on.
@Suite("Hostile saved states of devices")
struct DeviceStateFuzzTests {
    enum Kind: String, CaseIterable, Sendable { case heldDisk, disk, card, console, balloon, sockets, files, entropy }

    private final class Sink: ConsoleSink {
        func write(_ bytes: [UInt8], port: Int) -> Int { bytes.count / (port + 1) }
        func inputSpaceAvailable(port: Int) {}
    }

    private func disk(isHeld: Bool) throws -> Victim {
        let path: BlockPath = !isHeld && BlockPath.hasRing ? .ring : .threads
        let disk = try MemoryDisk(size: 64 << 10)
        let options = BlockConfigurationOptions(onError: isHeld ? .stop : .report)
        let bench = try BlockBench(path, disk, options: options)
        let driver = try ModelDriver(bench.device, style: DriverStyle(isPacked: isHeld, hasEventIndex: true))
        driver.attachments = [bench]
        try #require(driver.start(features: BlockFeature.flush))
        func parts(_ type: UInt32, _ sector: UInt64) -> [ModelQueue.Part] {
            var header = [UInt8](repeating: 0, count: 16)
            header.store(type, at: 0)
            header.store(sector, at: 8)
            let data: ModelQueue.Part = type == 0 ? .writable(512) : .readable([UInt8](repeating: 1, count: 512))
            return [.readable(header), data, .writable(1)]
        }
        if isHeld { disk.fail(BlockError("no room", isOutOfSpace: true)) }
        for sector in 0..<UInt64(3) { try driver.queues[0].submit(parts(1, sector)) }
        driver.notify()
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while isHeld, bench.device.heldRequestCount < 3, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 50_000)
        }
        return Victim(
            driver: driver, features: BlockFeature.flush,
            restore: { saved in
                disk.fail(nil)
                let bench = try BlockBench(
                    path, disk, options: options, restoring: VirtioBlockSavedState(encoded: saved.device))
                return (bench.device, bench)
            },
            use: { driver in
                let used = try driver.request(parts(0, 3))
                #expect(used?.bytes.last == 0)
            })
    }

    private func card() throws -> Victim {
        let port = try NetworkPort(CardBackend())
        let options = NetworkCardOptions(mac: CardFixture.mac, queuePairs: 2)
        let driver = try ModelDriver(
            VirtioNet(port, options: options), style: DriverStyle(usesIndirect: true))
        let features = NetFeature.controlQueue | NetFeature.mergeableBuffers | NetFeature.multiqueue
        try #require(driver.start(features: features))
        for _ in 0..<4 { try driver.queues[0].submit([.writable(1526)]) }
        try driver.queues[4].submit([.readable([1, 0, 1, 0, 0, 0]), .writable(1)])
        try driver.queues[1].submit([.readable(VirtualNetworkHeader().bytes + CardFixture.frame(1, 100))])
        for queue in 0..<5 { driver.notify(queue) }
        return Victim(driver: driver, features: features) { saved in
            (try VirtioNet(restoring: VirtioNetSavedState(encoded: saved.device), port, options: options), nil)
        } use: { driver in
            let frame = VirtualNetworkHeader().bytes + CardFixture.frame(2, 100)
            let used = try driver.request([.readable(frame)], queue: 1)
            #expect(used != nil)
        } end: {
            port.close()
        }
    }

    private func console() throws -> Victim {
        let ports: [VirtioConsole.PortDescription] = [.init(name: "a"), .init(isConsole: true), .init(name: "c")]
        let sink = Sink()
        let console = VirtioConsole(ports: ports, sink: sink)
        let driver = try ModelDriver(console)
        try #require(driver.start(features: VirtioConsole.Feature.multiport))
        for (port, event) in [(0, 0), (0, 3), (0, 6), (1, 3), (2, 3), (2, 6)] as [(UInt8, UInt8)] {
            try driver.queues[3].submit([.readable([port, 0, 0, 0, event, 0, 1, 0])])
        }
        driver.notify(3)
        _ = console.receive([UInt8](repeating: 0x61, count: 500), port: 0)
        _ = console.receive([UInt8](repeating: 0x62, count: 500), port: 2)
        try driver.queues[0].submit([.writable(100)])
        try driver.queues[7].submit([.readable([UInt8](repeating: 0x63, count: 1000))])
        for queue in [0, 7] { driver.notify(queue) }
        return Victim(driver: driver, features: VirtioConsole.Feature.multiport) { saved in
            let console = try VirtioConsole(
                restoring: VirtioConsoleSavedState(encoded: saved.device), ports: ports, sink: sink)
            for port in 0..<3 {
                console.setConnected(false, port: port)
                console.setConnected(true, port: port)
            }
            return (console, sink)
        } use: { driver in
            _ = (driver.transport.device as? VirtioConsole)?.receive([1, 2, 3], port: 1)
            let used = try driver.request([.writable(16)], queue: 4)
            #expect(used?.written == 3)
        }
    }

    private func balloon() throws -> Victim {
        let driver = try ModelDriver(VirtioBalloon(targetPages: 64))
        try #require(driver.start(features: VirtioBalloon.Feature.statistics))
        try driver.queues[0].submit([.readable([0, 2, 0, 0, 1, 2, 0, 0])])
        try driver.queues[2].submit([.readable([UInt8](repeating: 4, count: 40))])
        for queue in 0..<3 { driver.notify(queue) }
        return Victim(driver: driver, features: VirtioBalloon.Feature.statistics) { saved in
            (VirtioBalloon(restoring: try VirtioBalloonSavedState(encoded: saved.device)), nil)
        } use: { driver in
            let used = try driver.request([.readable([0, 2, 0, 0])])
            #expect(used != nil)
        }
    }

    private func entropy() throws -> Victim {
        let driver = try ModelDriver(VirtioEntropy())
        try #require(driver.start())
        try driver.queues[0].submit([.writable(16)])
        return Victim(driver: driver) { _ in
            (VirtioEntropy(), nil)
        } use: { driver in
            let used = try driver.request([.writable(16)])
            #expect(used?.written == 16)
        }
    }

    private func sockets() throws -> (Victim, SocketRig) {
        let rig = try SocketRig()
        _ = try rig.listen(port: 1)
        try rig.send(rig.header(.request, guest: 7, host: 1))
        try rig.send(rig.header(.data, guest: 7, host: 1), [1, 2, 3])
        try rig.send(rig.header(.request, guest: 8, host: 99))
        try rig.driver.queues[2].submit([.writable(4)])
        let endpoint = try #require(rig.endpoint)
        let victim = Victim(driver: rig.driver, features: VsockLayout.streamFeature) { saved in
            (try VirtioSocket(restoring: VirtioSocketSavedState(encoded: saved.device), endpoint), nil)
        } use: { driver in
            try driver.queues[0].submit([.writable(4096)])
            driver.notify(0)
            let header = rig.header(.request, guest: 9, host: 99)
            let used = try driver.request([.readable(header.bytes)], queue: 1)
            #expect(used != nil)
            #expect(driver.waitForUsed(0, count: 1).first?.written == 44)
        }
        return (victim, rig)
    }

    private func files() throws -> (Victim, FileSystemRig) {
        let rig = try FileSystemRig(runner: ImmediateRunner())
        let files = try (0..<4).map { try rig.open("file-\($0)") }
        _ = try rig.call(32, files[0].node, rig.lockArguments(files[0].handle, owner: 1, 1))
        try rig.driver.queues[1].submit([
            .readable(rig.request(3, 1, rig.fields([0, 0]) + rig.wide(0))), .writable(200),
        ])
        let victim = Victim(driver: rig.driver) { saved in
            let device = try VirtioFileSystem(
                restoring: VirtioFileSystemSavedState(encoded: saved.device), try FileShare(path: rig.directory),
                tag: FileSystemRig.tag, runner: ImmediateRunner())
            return (device, nil)
        } use: { driver in
            let hello = rig.fields([7, 38, 1 << 17, .max]) + [UInt8](repeating: 0, count: 48)
            let start = try rig.call(26, 0, hello, on: driver)
            #expect(start.error == 0)
            let node = try rig.call(1, 1, Array("file-9".utf8) + [0], on: driver)
            #expect(node.error == 0)
            let open = try rig.call(14, node.u64(0), rig.fields([2, 0]), on: driver)
            #expect(open.error == 0)
        }
        return (victim, rig)
    }

    private func victim(_ kind: Kind) throws -> (Victim, keeping: AnyObject?) {
        switch kind {
        case .heldDisk: (try disk(isHeld: true), nil)
        case .disk: (try disk(isHeld: false), nil)
        case .card: (try card(), nil)
        case .console: (try console(), nil)
        case .balloon: (try balloon(), nil)
        case .sockets: try sockets()
        case .files: try files()
        case .entropy: (try entropy(), nil)
        }
    }

    @Test("Refused, or a reset mends it", .timeLimit(.minutes(10)), arguments: Kind.allCases)
    func meddledWith(kind: Kind) throws {
        let (victim, keeping) = try victim(kind)
        victim.driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: victim.driver.transport.save().encoded())
        let memory = victim.driver.memory
        let start = GuestPhysicalAddress(0)
        let content = try memory.read(count: ModelDriver.memorySize, at: start)
        for count in 0..<saved.device.count {
            var cut = saved
            cut.device = Array(saved.device.prefix(count))
            if kind != .entropy { #expect(throws: SavedStateError.self) { try victim.restore(cut) } }
        }
        for seed in FuzzSeeds(seconds: 1) {
            var generator = SeededGenerator(seed: seed)
            var state = saved
            if generator.next() % 3 != 0 {
                // Behind the version, which would refuse it.
                state.device = Damage.done(to: saved.device, behind: min(4, saved.device.count), using: &generator)
            }
            if generator.next() % 2 == 0 {
                let bytes = Damage.done(to: state.encoded(), behind: 4, using: &generator)
                guard let decoded = try? VirtioPCISavedState(encoded: bytes) else { continue }
                state = decoded
            }
            guard let (device, kept) = try? victim.restore(state) else { continue }
            try memory.write(content, at: start)
            guard let transport = try? VirtioPCIDevice(restoring: state, device, memory: memory) else { continue }
            let driver = ModelDriver(continuing: victim.driver, with: transport)
            if let kept { driver.attachments = [kept] }
            transport.resume()
            for queue in device.queueSizes.indices { driver.notify(queue) }
            transport.pause()
            let again = transport.save()
            #expect(try VirtioPCISavedState(encoded: again.encoded()) == again, "seed \(seed)")
            transport.resume()
            try #require(driver.start(features: victim.features), "seed \(seed)")
            try victim.use(driver)
            #expect(!driver.needsReset, "seed \(seed)")
            transport.shutDown()
            (device as? VirtioNet)?.unplug()
        }
        (victim.driver.transport.device as? VirtioNet)?.unplug()
        victim.end()
        withExtendedLifetime(keeping) {}
    }
}
