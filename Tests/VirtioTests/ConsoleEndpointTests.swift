import DeviceModel
import Host
import Testing

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// A console's ports with real files and sockets behind them.
@Suite("Ends of console ports", .serialized)
struct ConsoleEndpointTests {
    /// A folder that goes with its owner.
    private final class Folder {
        let path: String
        init() throws {
            var template = Array("/tmp/martlet-port-XXXXXX".utf8CString)
            path = String(cString: try #require(mkdtemp(&template)))
        }
        deinit {
            for name in ["s", "f"] { unlink(path + "/" + name) }
            rmdir(path)
        }
    }

    private let folder: Folder
    init() throws { folder = try Folder() }

    private func start(_ endpoint: ConsoleEndpoint, buffers: Int = 8) throws -> (VirtioConsole, ModelDriver) {
        let console = VirtioConsole(ports: [.init(name: "agent")], sink: ConsoleEndpoints([endpoint]))
        let driver = try ModelDriver(console)
        try #require(driver.start(features: console.features))
        for _ in 0..<12 { try driver.queues[2].submit([.writable(32)]) }
        for _ in 0..<buffers { try driver.queues[0].submit([.writable(1024)]) }
        endpoint.plug(into: console, port: 0)
        for (event, value) in [(0, 1), (3, 1), (6, 1)] {
            var bytes = [UInt8](repeating: 0, count: 8)
            bytes.store(UInt16(event), at: 4)
            bytes.store(UInt16(value), at: 6)
            _ = try driver.request([.readable(bytes)], queue: 3)
        }
        return (console, driver)
    }

    private func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while HostClock.monotonicNanoseconds < end {
            if try condition() { return true }
            HostClock.sleep(nanoseconds: 1_000_000)
        }
        return false
    }

    /// The guest's view of whether somebody is there, as told last.
    private final class View {
        var isConnected: Bool?
        var hellos = 0
        func update(_ driver: ModelDriver) throws {
            for used in try driver.queues[2].collect() where used.bytes[4] == 6 {
                isConnected = used.bytes[6] == 1
                if used.bytes[6] == 1 { hellos += 1 }
            }
        }
    }

    private func received(_ driver: ModelDriver, count: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        _ = try eventually {
            for used in try driver.queues[0].collect() {
                bytes += used.bytes.prefix(Int(used.written))
                try driver.queues[0].submit([.writable(1024)])
                driver.notify(0)
            }
            return bytes.count >= count
        }
        return bytes
    }

    @Test("A client comes, speaks, ends what it says, hears the answer and goes; the next one waits for that")
    func socket() throws {
        let path = folder.path + "/s"
        let endpoint = try ConsoleEndpoint(name: "agent", listeningAt: path)
        let (_, driver) = try start(endpoint)
        let view = View()
        #expect(
            try eventually {
                try view.update(driver); return view.isConnected == false
            })
        var first = StreamSocket(connectingTo: path)
        let second = StreamSocket(connectingTo: path)
        #expect(second != nil)
        let data = (0..<200_000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 8) }
        var sent = 0
        var got: [UInt8] = []
        #expect(
            try eventually {
                if sent < data.count { sent += max(first?.send(data[sent...]) ?? 0, 0) }
                got += try received(driver, count: 1)
                return got.count == data.count
            })
        #expect(got == data)
        try view.update(driver)
        #expect(view.isConnected == true && view.hellos == 1)
        first?.shut(.sending)
        try driver.queues[1].submit([.readable(Array("answer".utf8))])
        driver.notify(1)
        var answer: [UInt8] = []
        #expect(
            eventually {
                answer += first?.receive(limit: 100) ?? []; return answer.count == 6
            })
        first = nil
        #expect(
            try eventually {
                try view.update(driver); return view.hellos == 2 && view.isConnected == true
            })
        #expect(second?.send(Array("x".utf8)[...]) == 1)
        #expect(try received(driver, count: 1) == Array("x".utf8))
        driver.transport.shutDown()
        endpoint.unplug()
        endpoint.close()
        #expect(access(path, F_OK) != 0)
    }

    @Test("A client that does not read holds the guest's bytes; without a client they go nowhere")
    func slowClient() throws {
        let path = folder.path + "/s"
        let endpoint = try ConsoleEndpoint(name: "agent", listeningAt: path)
        let (_, driver) = try start(endpoint)
        let view = View()
        try driver.queues[1].submit([.readable(Array("nobody".utf8))])
        driver.notify(1)
        #expect(driver.waitForUsed(1, count: 1).count == 1)
        var client = StreamSocket(connectingTo: path)
        #expect(
            try eventually {
                try view.update(driver); return view.isConnected == true
            })
        // More than a socket takes.
        var submitted = 0
        while submitted < 600, try driver.queues[1].collect().count >= 0 {
            guard try driver.queues[1].submit([.readable([UInt8](repeating: 7, count: 4096))]) else { break }
            driver.notify(1)
            submitted += 1
        }
        #expect(submitted < 600, "the guest's buffers are held")
        var total = 0
        #expect(
            try eventually {
                total += client?.receive(limit: 1 << 16)?.count ?? 0
                _ = try driver.queues[1].collect()
                return total == submitted * 4096
            }, "\(total) of \(submitted * 4096)")
        // Full again, and then it goes: nothing waits any more.
        while try driver.queues[1].submit([.readable([UInt8](repeating: 7, count: 4096))]) {
            driver.notify(1)
            _ = try driver.queues[1].collect()
        }
        client = nil
        #expect(
            try eventually {
                _ = try driver.queues[1].collect(); return driver.queues[1].freeCount == 16
            })
        #expect(
            try eventually {
                try view.update(driver); return view.isConnected == false
            })
        driver.transport.shutDown()
        endpoint.close()
    }

    @Test("A client stays through a restart")
    func restart() throws {
        let path = folder.path + "/s"
        let endpoint = try ConsoleEndpoint(name: "agent", listeningAt: path)
        var (_, driver) = try start(endpoint)
        let client = StreamSocket(connectingTo: path)
        #expect(client?.send(Array("one".utf8)[...]) == 3)
        #expect(try received(driver, count: 3) == Array("one".utf8))
        driver.transport.shutDown()
        endpoint.unplug()
        #expect(client?.send(Array("two".utf8)[...]) == 3)
        (_, driver) = try start(endpoint)
        #expect(try received(driver, count: 3) == Array("two".utf8))
        let view = View()
        #expect(
            try eventually {
                try view.update(driver); return view.isConnected == true
            })
        driver.transport.shutDown()
        endpoint.close()
    }

    @Test("A client stays through a save, and the guest never hears that it went")
    func saved() throws {
        let path = folder.path + "/s"
        let endpoint = try ConsoleEndpoint(name: "agent", listeningAt: path)
        var (_, driver) = try start(endpoint)
        let client = StreamSocket(connectingTo: path)
        let view = View()
        #expect(
            try eventually {
                try view.update(driver); return view.isConnected == true
            })
        for round in 0..<20 {
            driver.transport.pause()
            let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
            driver.transport.shutDown()
            endpoint.unplug()
            let console = try VirtioConsole(
                restoring: VirtioConsoleSavedState(encoded: saved.device), ports: [.init(name: "agent")],
                sink: ConsoleEndpoints([endpoint]))
            endpoint.plug(into: console, port: 0)
            let state = try VirtioConsoleSavedState(encoded: console.saveState())
            #expect(state.ports[0].isConnected && !state.ports[0].endsAfterInput && state.control.isEmpty)
            let transport = try VirtioPCIDevice(restoring: saved, console, memory: driver.memory)
            driver = ModelDriver(continuing: driver, with: transport)
            transport.resume()
            let word = Array("word \(round)".utf8)
            #expect(client?.send(word[...]) == word.count)
            #expect(try received(driver, count: word.count) == word)
            try view.update(driver)
            #expect(view.hellos == 1 && view.isConnected == true)
        }
        driver.transport.shutDown()
        endpoint.close()
    }

    @Test("What a client sends while the device stands still is not taken by one that was saved already")
    func sentAfterSave() throws {
        let path = folder.path + "/s"
        let endpoint = try ConsoleEndpoint(name: "agent", listeningAt: path)
        var (_, driver) = try start(endpoint)
        let client = StreamSocket(connectingTo: path)
        #expect(client?.send(Array("first".utf8)[...]) == 5)
        #expect(try received(driver, count: 5) == Array("first".utf8))
        for round in 0..<10 {
            driver.transport.pause()
            let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
            let word = Array("word \(round)".utf8)
            #expect(client?.send(word[...]) == word.count)
            HostClock.sleep(nanoseconds: 5_000_000)
            if round % 2 == 0 {
                driver.transport.shutDown()
                endpoint.unplug()
                let console = try VirtioConsole(
                    restoring: VirtioConsoleSavedState(encoded: saved.device), ports: [.init(name: "agent")],
                    sink: ConsoleEndpoints([endpoint]))
                endpoint.plug(into: console, port: 0)
                let transport = try VirtioPCIDevice(restoring: saved, console, memory: driver.memory)
                driver = ModelDriver(continuing: driver, with: transport)
            }
            driver.transport.resume()
            #expect(try received(driver, count: word.count) == word)
        }
        driver.transport.shutDown()
        endpoint.close()
    }

    @Test("A file gets what the guest writes, behind what it has")
    func file() throws {
        let path = folder.path + "/f"
        for (text, expected) in [("one", "one"), ("two", "onetwo")] {
            let endpoint = try ConsoleEndpoint(name: "agent", appendingTo: path)
            let (_, driver) = try start(endpoint)
            _ = try driver.request([.readable(Array(text.utf8))], queue: 1)
            driver.transport.shutDown()
            endpoint.close()
            #expect(try RandomAccessFile(path: path).readAll(limit: 100) == Array(expected.utf8))
        }
        for bad in ["/dev/null", folder.path, folder.path + "/missing/f"] {
            #expect(throws: HostError.self) { try ConsoleEndpoint(name: "a", appendingTo: bad) }
        }
        #expect(throws: HostError.self) { try ConsoleEndpoint(name: "a", listeningAt: path) }
    }
}
