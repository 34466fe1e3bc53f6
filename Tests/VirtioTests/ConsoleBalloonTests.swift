import DeviceModel
import GuestMemory
import Synchronization
import Testing
import X86

@testable import Virtio

private final class Sink: ConsoleSink {
    let state = Mutex<(bytes: [Int: [UInt8]], room: Int)>(([:], .max))

    func write(_ bytes: [UInt8], port: Int) -> Int {
        state.withLock { state in
            let taken = bytes.prefix(state.room)
            state.room -= taken.count
            state.bytes[port, default: []] += taken
            return taken.count
        }
    }

    func inputSpaceAvailable(port: Int) {}

    func text(_ port: Int) -> String { state.withLock { String(decoding: $0.bytes[port] ?? [], as: UTF8.self) } }
    func setRoom(_ room: Int) { state.withLock { $0.room = room } }
}

@Suite("Console device")
struct ConsoleTests {
    private let sink = Sink()
    private static let ports = [
        VirtioConsole.PortDescription(isConsole: true), VirtioConsole.PortDescription(name: "agent"),
    ]

    private func message(_ port: UInt32, _ event: UInt16, _ value: UInt16) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: 8)
        bytes.store(port, at: 0)
        bytes.store(event, at: 4)
        bytes.store(value, at: 6)
        return .readable(bytes)
    }

    private func start(_ console: VirtioConsole, style: DriverStyle = DriverStyle()) throws -> ModelDriver {
        let driver = try ModelDriver(console, style: style)
        try #require(driver.start(features: console.features))
        return driver
    }

    @Test("The control queue brings ports up", arguments: [false, true])
    func control(isPacked: Bool) throws {
        let console = VirtioConsole(ports: Self.ports, sink: sink, columns: 100, rows: 30)
        let driver = try start(console, style: DriverStyle(isPacked: isPacked, hasEventIndex: true))
        for _ in 0..<12 { try driver.queues[2].submit([.writable(32)]) }
        driver.notify(2)
        _ = try driver.request([message(0, 0, 1)], queue: 3)
        _ = try driver.request([message(0, 3, 1)], queue: 3)
        _ = try driver.request([message(1, 3, 1)], queue: 3)
        _ = try driver.request([message(7, 3, 1)], queue: 3)
        _ = try driver.request([message(1, 6, 1)], queue: 3)
        console.resize(columns: 132, rows: 50)
        let answers = try driver.queues[2].collect().map { Array($0.bytes.prefix(Int($0.written))) }
        #expect(
            answers == [
                [0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 4, 0, 1, 0],
                [0, 0, 0, 0, 5, 0, 0, 0, 100, 0, 30, 0], [0, 0, 0, 0, 6, 0, 1, 0],
                [1, 0, 0, 0, 7, 0, 1, 0] + Array("agent".utf8), [1, 0, 0, 0, 6, 0, 1, 0],
                [0, 0, 0, 0, 5, 0, 0, 0, 132, 0, 50, 0],
            ])
        #expect(console.isOpen(port: 1) && !console.isOpen(port: 0) && !console.isOpen(port: 9))
        #expect(driver.read(VirtioPCILayout.device, .double) == 132 | 50 << 16)
        #expect(driver.read(VirtioPCILayout.device + 4, .double) == 2)
        #expect(driver.read(VirtioCommonRegister.configurationGeneration, .byte) == 1)
    }

    @Test("Bytes go both ways, and wait where there is no room")
    func data() throws {
        let console = VirtioConsole(ports: Self.ports, sink: sink)
        let driver = try start(console)
        #expect(console.receive(Array("hello".utf8), port: 0) == 5)
        try driver.queues[0].submit([.writable(3)])
        driver.notify(0)
        try driver.queues[0].submit([.writable(3)])
        driver.notify(0)
        let used = try driver.queues[0].collect()
        #expect(used.map { Array($0.bytes.prefix(Int($0.written))) } == [Array("hel".utf8), Array("lo".utf8)])
        _ = try driver.request([message(1, 6, 1)], queue: 3)
        #expect(console.receive([UInt8](repeating: 0, count: 100_000), port: 1) == 65536)
        #expect(console.receive([1], port: 1) == 0 && console.receive([1], port: 5) == 0)

        sink.setRoom(4)
        try driver.queues[5].submit([.readable(Array("abcdef".utf8))])
        try driver.queues[5].submit([.readable(Array("ghi".utf8))])
        driver.notify(5)
        #expect(sink.text(1) == "abcd")
        #expect(try driver.queues[5].collect().isEmpty)
        sink.setRoom(100)
        console.outputSpaceAvailable(port: 1)
        #expect(sink.text(1) == "abcdefghi")
        #expect(try driver.queues[5].collect().count == 2)
    }

    @Test("A console without named ports has no control queues, and its size is in the configuration")
    func alone() throws {
        let console = VirtioConsole(ports: [.init(isConsole: true)], sink: sink)
        #expect(console.features == 1 && console.queueSizes.count == 2 && !console.isOpen(port: 0))
        let driver = try start(console)
        #expect(console.isOpen(port: 0) && !console.isOpen(port: 1))
        // A driver takes the first size from a change too.
        #expect(driver.read(VirtioCommonRegister.configurationGeneration, .byte) == 1)
        console.resize(columns: 132, rows: 50)
        console.setConnected(false, port: 0)
        #expect(driver.read(VirtioPCILayout.device, .double) == 132 | 50 << 16)
        #expect(driver.read(VirtioCommonRegister.configurationGeneration, .byte) == 2)
        #expect(driver.read(VirtioPCILayout.interruptStatus, .byte) & 2 != 0)
        try driver.queues[0].submit([.writable(8)])
        #expect(console.receive(Array("key".utf8), port: 0) == 3)
        #expect(try driver.queues[0].collect().first?.bytes.prefix(3) == Array("key".utf8)[...])
        driver.setStatus(0)
        #expect(!console.isOpen(port: 0))
        #expect(driver.read(VirtioPCILayout.device, .double) == 132 | 50 << 16, "of the terminal, not of the driver")
    }

    /// What came on the control queue since the last call.
    private func answers(_ driver: ModelDriver) throws -> [[UInt8]] {
        try driver.queues[2].collect().map { Array($0.bytes.prefix(Int($0.written))) }
    }

    @Test("Bytes wait for a port to be opened, and the end comes behind them", arguments: [false, true])
    func ports(isRestored: Bool) throws {
        let ports = [VirtioConsole.PortDescription(name: "a"), VirtioConsole.PortDescription(name: "b")]
        var console = VirtioConsole(ports: ports, sink: sink)
        var driver = try start(console)
        for _ in 0..<30 { try driver.queues[2].submit([.writable(32)]) }
        // Nobody is there before the guest knows the port: it is not told of what it does not know.
        console.setConnected(false, port: 1)
        _ = try driver.request([message(0, 0, 1)], queue: 3)
        #expect(try answers(driver).map { $0[4] } == [1, 1])
        _ = try driver.request([message(1, 3, 1)], queue: 3)
        #expect(try answers(driver) == [[1, 0, 0, 0, 7, 0, 1, 0, 0x62], [1, 0, 0, 0, 6, 0, 0, 0]])
        console.setConnected(true, port: 1)
        #expect(try answers(driver) == [[1, 0, 0, 0, 6, 0, 1, 0]])
        try driver.queues[4].submit([.writable(4)])
        driver.notify(4)
        #expect(console.receive(Array("hello".utf8), port: 1) == 0, "the guest has not opened it")
        _ = try driver.request([message(1, 6, 1)], queue: 3)
        #expect(console.receive(Array("hello".utf8), port: 1) == 5)
        #expect(try driver.queues[4].collect().first?.bytes == Array("hell".utf8))
        console.setConnected(false, port: 1)
        #expect(try answers(driver).isEmpty)
        if isRestored {
            driver.transport.pause()
            let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
            console = try VirtioConsole(
                restoring: VirtioConsoleSavedState(encoded: saved.device), ports: ports, sink: sink)
            driver = ModelDriver(
                continuing: driver, with: try VirtioPCIDevice(restoring: saved, console, memory: driver.memory))
            driver.transport.resume()
        }
        try driver.queues[4].submit([.writable(4)])
        driver.notify(4)
        #expect(try driver.queues[4].collect().first?.written == 1)
        #expect(try answers(driver) == [[1, 0, 0, 0, 6, 0, 0, 0]])
        // Of several changes that the guest has not heard, the last one is told.
        for _ in 0..<400 {
            console.setConnected(true, port: 1)
            console.setConnected(false, port: 1)
        }
        let told = try answers(driver)
        #expect(told.count <= 30 && told.allSatisfy { $0[4] == 6 })
        for _ in 0..<30 { try driver.queues[2].submit([.writable(32)]) }
        driver.notify(2)
        #expect(try (told + answers(driver)).last == [1, 0, 0, 0, 6, 0, 0, 0])
        #expect(!driver.needsReset)
    }

    @Test("A saved console goes on in the middle of a buffer")
    func savedState() throws {
        let console = VirtioConsole(ports: Self.ports, sink: sink)
        let driver = try start(console)
        sink.setRoom(2)
        try driver.queues[1].submit([.readable(Array("abcdef".utf8))])
        driver.notify(1)
        _ = console.receive(Array("xyz".utf8), port: 0)
        driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        let restored = try VirtioConsole(
            restoring: VirtioConsoleSavedState(encoded: saved.device), ports: Self.ports, sink: sink)
        let next = ModelDriver(
            continuing: driver, with: try VirtioPCIDevice(restoring: saved, restored, memory: driver.memory))
        sink.setRoom(100)
        next.transport.resume()
        #expect(sink.text(0) == "abcdef")
        #expect(try next.queues[1].collect().count == 1)
        try next.queues[0].submit([.writable(8)])
        next.notify(0)
        #expect(try next.queues[0].collect().first?.bytes.prefix(3) == Array("xyz".utf8)[...])
    }
}

@Suite("Balloon device")
struct BalloonTests {
    private func numbers(_ pages: [UInt32]) -> ModelQueue.Part {
        var bytes = [UInt8](repeating: 0, count: pages.count * 4)
        for (index, page) in pages.enumerated() { bytes.store(page, at: index * 4) }
        return .readable(bytes)
    }

    @Test("Pages that are given up read as zeroes, others stay")
    func inflate() throws {
        let balloon = VirtioBalloon(targetPages: 7)
        let driver = try ModelDriver(balloon)
        try #require(driver.start(features: balloon.features))
        #expect(driver.read(VirtioPCILayout.device, .double) == 7)
        for page in 768..<UInt64(772) { try driver.memory.store(page, at: GuestPhysicalAddress(page * 4096 + 8)) }
        // Pages that are no memory are the guest's mistake and harm nothing.
        _ = try driver.request([numbers([768, 770, 1 << 20, .max])], queue: 0)
        let left = try (768..<UInt64(772)).map {
            try driver.memory.load(UInt64.self, at: GuestPhysicalAddress($0 * 4096 + 8))
        }
        #expect(left == [0, 769, 0, 771])
        driver.write(VirtioPCILayout.device + 4, .double, 2)
        #expect(balloon.actualPages == 2)
        _ = try driver.request([numbers([768])], queue: 1)
        balloon.setTarget(pages: 9)
        #expect(driver.read(VirtioPCILayout.device, .double) == 9)
        #expect(driver.read(VirtioPCILayout.interruptStatus, .byte) & 2 != 0)
        #expect(!driver.needsReset)
    }

    @Test("Neighbours go together, and what is no memory spoils nothing")
    func runs() throws {
        let balloon = VirtioBalloon()
        let driver = try ModelDriver(balloon)
        try #require(driver.start(features: balloon.features))
        let last = UInt32(ModelDriver.memorySize / 4096 - 1)
        let pages = [last, 770, 769, 771, 769, 800, last + 1, last + 2, .max]
        for page in Set(pages.prefix(6)).union([768, 772]) {
            try driver.memory.store(UInt64(page), at: GuestPhysicalAddress(UInt64(page) * 4096 + 8))
        }
        _ = try driver.request([numbers(pages)], queue: 0)
        func value(_ page: UInt32) throws -> UInt64 {
            try driver.memory.load(at: GuestPhysicalAddress(UInt64(page) * 4096 + 8))
        }
        for page in pages.prefix(6) { #expect(try value(page) == 0, "page \(page)") }
        #expect(try value(768) == 768 && value(772) == 772)
        #expect(!driver.needsReset)
    }

    @Test("What is not offered has no queue and no bit")
    func options() throws {
        let plain = VirtioBalloon(options: BalloonOptions(deflatesOnOOM: false, reportsFreePages: false))
        #expect(plain.features == 2 && plain.queueSizes.count == 3)
        let control = BalloonControl(targetPages: 5)
        let driver = try ModelDriver(try control.makeBalloon())
        try #require(driver.start(features: 0x26))
        control.setTarget(pages: 8)
        #expect(driver.read(VirtioPCILayout.device, .double) == 8)
        driver.write(VirtioPCILayout.device + 4, .double, 3)
        _ = try driver.request([.writable(2 * 4096)], queue: 3)
        #expect(control.figures == .init(targetPages: 8, actualPages: 3, reportedBytes: 8192))
        control.unplug()
        #expect(control.figures.reportedBytes == 8192)
        // The next machine's balloon asks for the same.
        #expect(try control.makeBalloon().configuration[0] == 8)
    }

    @Test("Statistics are asked for with the guest's own buffer")
    func statistics() throws {
        let balloon = VirtioBalloon()
        let driver = try ModelDriver(balloon)
        try #require(driver.start(features: balloon.features))
        func send(_ free: UInt64) throws {
            var bytes = [UInt8](repeating: 0, count: 30)
            bytes.store(UInt16(4), at: 0)
            bytes.store(free, at: 2)
            bytes.store(UInt16(999), at: 10)
            try driver.queues[2].submit([.readable(bytes)])
            driver.notify(2)
        }
        try send(100)
        #expect(try driver.queues[2].collect().isEmpty, "kept")
        #expect(balloon.statistics().values[.free] == 100)
        #expect(try driver.queues[2].collect().count == 1)
        try send(200)
        driver.transport.pause()
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        let restored = VirtioBalloon(restoring: try VirtioBalloonSavedState(encoded: saved.device))
        let next = ModelDriver(
            continuing: driver, with: try VirtioPCIDevice(restoring: saved, restored, memory: driver.memory))
        next.transport.resume()
        #expect(restored.statistics().values[.free] == 200)
        #expect(try next.queues[2].collect().count == 1)
    }

    @Test("Free pages that are reported go back to the host")
    func reporting() throws {
        let balloon = VirtioBalloon()
        let driver = try ModelDriver(balloon)
        try #require(driver.start(features: balloon.features))
        let used = try driver.request([.writable(3 * 4096)], queue: 3)
        // Two whole pages lie in it wherever it begins.
        #expect(used?.bytes.count { $0 == 0 } ?? 0 >= 2 * 4096)
    }
}
