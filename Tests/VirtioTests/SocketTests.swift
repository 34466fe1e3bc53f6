import DeviceModel
import GuestMemory
import Host
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

/// The driver's side of a socket device, and real Unix sockets on the other.
final class SocketRig {
    static let cid: UInt64 = 42
    let path: String
    let driver: ModelDriver
    private let directory: String
    private(set) var endpoint: SocketEndpoint?
    /// Packets that came with others.
    private var waiting: [Packet] = []

    struct Packet: Equatable {
        var header: VsockHeader
        var data: [UInt8]

        var operation: VsockOperation? { VsockOperation(rawValue: header.operation) }
    }

    init(receiveBuffers: Int = 12, style: DriverStyle = DriverStyle()) throws {
        var template = Array("/tmp/martlet-vsock-XXXXXX".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        path = directory + "/s"
        let endpoint = try SocketEndpoint(path: path, guestCID: UInt32(Self.cid))
        self.endpoint = endpoint
        driver = try ModelDriver(VirtioSocket(endpoint), style: style)
        try #require(driver.start(features: VsockLayout.streamFeature))
        try offer(receiveBuffers)
    }

    deinit {
        driver.transport.shutDown()
        endpoint?.close()
        for name in ["s", "s_1", "s_9", "s_80", "s_99", "s-file", "s-stale"] { unlink(directory + "/" + name) }
        rmdir(directory)
    }

    func offer(_ count: Int, size: Int = 4096) throws {
        for _ in 0..<count { try driver.queues[0].submit([.writable(size)]) }
        driver.notify(0)
    }

    func send(_ packet: VsockHeader, _ data: [UInt8] = []) throws {
        var packet = packet
        packet.length = UInt32(data.count)
        try send(raw: packet.bytes + data)
    }

    func send(raw bytes: [UInt8]) throws {
        try driver.queues[1].submit([.readable(bytes)])
        driver.notify(1)
        _ = driver.waitForUsed(1, count: 1)
    }

    /// From the guest.
    func header(
        _ operation: VsockOperation, guest: UInt32, host: UInt32, buffer: UInt32 = 1 << 16, forwarded: UInt32 = 0,
        flags: UInt32 = 0
    ) -> VsockHeader {
        var header = VsockHeader(operation, to: 0, VsockPorts(guest: guest, host: host))
        header.sourceCID = Self.cid
        header.targetCID = 2
        header.sourcePort = guest
        header.targetPort = host
        header.bufferSize = buffer
        header.forwarded = forwarded
        header.flags = flags
        return header
    }

    /// The next packets for the guest; its buffers are offered again.
    func receive(_ count: Int) throws -> [Packet] {
        let used = driver.waitForUsed(0, count: count)
        try offer(used.count)
        return used.compactMap { used in
            guard let header = VsockHeader(Array(used.bytes.prefix(44))) else { return nil }
            #expect(Int(used.written) == 44 + Int(header.length))
            return Packet(header: header, data: Array(used.bytes.dropFirst(44).prefix(Int(header.length))))
        }
    }

    func next() throws -> Packet {
        if waiting.isEmpty { waiting = try receive(1) }
        try #require(!waiting.isEmpty, "no packet came")
        return waiting.removeFirst()
    }

    /// Whether nothing comes within a while.
    func receiveNothing() throws -> Bool {
        HostClock.sleep(nanoseconds: 30_000_000)
        return try waiting.isEmpty && driver.queues[0].collect().isEmpty
    }

    // MARK: The host's side

    /// A program that another test starts holds none of it.
    private static let streamType = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)

    func listen(port: UInt32) throws -> Int32 {
        let socket = socket(AF_UNIX, Self.streamType, 0)
        #expect(withAddress("\(path)_\(port)") { bind(socket, $0, $1) } == 0 && Glibc.listen(socket, 5) == 0)
        return socket
    }

    /// The next one who has connected; -1: nobody.
    static func acceptOne(_ listener: Int32) -> Int32 {
        let end = accept(listener, nil, nil)
        if end >= 0 { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        return end
    }

    func connect() -> Int32 {
        let socket = socket(AF_UNIX, Self.streamType, 0)
        #expect(withAddress(path) { Glibc.connect(socket, $0, $1) } == 0)
        return socket
    }

    private func withAddress(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
    }

    static func text(_ socket: Int32, upTo count: Int = 100) -> String {
        var buffer = [UInt8](repeating: 0, count: count)
        let result = recv(socket, &buffer, count, 0)
        return String(decoding: buffer.prefix(max(result, 0)), as: UTF8.self)
    }

    static func write(_ socket: Int32, _ text: String) {
        #expect(Glibc.send(socket, text, text.utf8.count, Int32(MSG_NOSIGNAL)) == text.utf8.count)
    }

    /// A connection that the guest has opened: the host's end of it.
    func guestConnects(guest: UInt32 = 1000, port: UInt32 = 80, buffer: UInt32 = 1 << 16) throws -> Int32 {
        let listener = try listen(port: port)
        defer { close(listener) }
        try send(header(.request, guest: guest, host: port, buffer: buffer))
        #expect(try next().operation == .response)
        return Self.acceptOne(listener)
    }
}

@Suite("The socket device")
struct SocketTests {
    @Test("A guest connects, speaks, half-closes and closes", arguments: DriverStyle.all)
    func guestConnects(style: DriverStyle) throws {
        let rig = try SocketRig(style: style)
        let host = try rig.guestConnects()
        defer { close(host) }
        try rig.send(rig.header(.data, guest: 1000, host: 80), Array("hello".utf8))
        #expect(SocketRig.text(host) == "hello")
        SocketRig.write(host, "answer")
        let answer = try rig.next()
        #expect(answer.operation == .data && answer.data == Array("answer".utf8))
        #expect(answer.header.sourcePort == 80 && answer.header.targetPort == 1000 && answer.header.sourceCID == 2)
        #expect(answer.header.forwarded == 5 && answer.header.bufferSize == VsockConnection.bufferSize)
        try rig.send(rig.header(.shutdown, guest: 1000, host: 80, flags: VsockLayout.sendsNoMore))
        #expect(SocketRig.text(host) == "")
        SocketRig.write(host, "still there")
        #expect(try rig.next().data == Array("still there".utf8))
        try rig.send(rig.header(.shutdown, guest: 1000, host: 80, flags: 3))
        #expect(try rig.next().operation == .reset)
        try rig.send(rig.header(.data, guest: 1000, host: 80), [1])
        #expect(try rig.next().operation == .reset)
    }

    @Test("A client of the host connects with a line, and what follows the line is the guest's")
    func hostConnects() throws {
        let rig = try SocketRig()
        let host = rig.connect()
        defer { close(host) }
        SocketRig.write(host, "CONNECT 52\nearly")
        let request = try rig.next()
        #expect(request.operation == .request && request.header.targetPort == 52 && request.header.sourceCID == 2)
        let port = request.header.sourcePort
        try rig.send(rig.header(.response, guest: 52, host: port))
        #expect(SocketRig.text(host) == "OK \(port)\n")
        #expect(try rig.next().data == Array("early".utf8))
        try rig.send(rig.header(.data, guest: 52, host: port), Array("to the host".utf8))
        #expect(SocketRig.text(host) == "to the host")
        shutdown(host, Int32(SHUT_WR))
        let half = try rig.next()
        #expect(half.operation == .shutdown && half.header.flags == VsockLayout.sendsNoMore)
        try rig.send(rig.header(.data, guest: 52, host: port), Array("last".utf8))
        #expect(SocketRig.text(host) == "last")
        // The end goes, its number stays taken until it is closed, once: it could be another test's by then.
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        dup2(null, host)
        close(null)
        let whole = try rig.next()
        #expect(whole.operation == .shutdown && whole.header.flags == 3)
        try rig.send(rig.header(.reset, guest: 52, host: port))
    }

    @Test(
        "Lines that are none close the client",
        arguments: [
            "CONNECT\n", "CONNECT x\n", "connect 5\n", "CONNECT 4294967296\n", "CONNECT 5 6\n", "\n",
            String(repeating: "C", count: 64),
        ])
    func badLines(line: String) throws {
        let rig = try SocketRig()
        let host = rig.connect()
        defer { close(host) }
        SocketRig.write(host, line)
        #expect(SocketRig.text(host) == "")
    }

    @Test("A guest that nobody listens for is refused, and one that refuses closes its client")
    func refusals() throws {
        let rig = try SocketRig()
        try rig.send(rig.header(.request, guest: 7, host: 99))
        #expect(try rig.next().header == refusal(guest: 7, host: 99))
        let host = rig.connect()
        defer { close(host) }
        SocketRig.write(host, "CONNECT 1\n")
        let request = try rig.next()
        try rig.send(rig.header(.reset, guest: 1, host: request.header.sourcePort))
        #expect(SocketRig.text(host) == "")
    }

    private func refusal(guest: UInt32, host: UInt32) -> VsockHeader {
        VsockHeader(.reset, to: SocketRig.cid, VsockPorts(guest: guest, host: host))
    }

    @Test("The guest gets no more than it has room for, and goes on when it says so")
    func creditToGuest() throws {
        let rig = try SocketRig()
        let host = try rig.guestConnects(buffer: 10)
        defer { close(host) }
        SocketRig.write(host, "0123456789abcdefghij")
        #expect(try rig.next().data == Array("0123456789".utf8))
        #expect(try rig.next().operation == .creditRequest)
        #expect(try rig.receiveNothing())
        try rig.send(rig.header(.creditUpdate, guest: 1000, host: 80, buffer: 10, forwarded: 4))
        #expect(try rig.next().data == Array("abcd".utf8))
        #expect(try rig.next().operation == .creditRequest)
        // A guest that claims to have got more than it was sent has no room at all.
        try rig.send(rig.header(.creditUpdate, guest: 1000, host: 80, buffer: 10, forwarded: 1 << 31))
        #expect(try rig.receiveNothing())
        try rig.send(rig.header(.creditUpdate, guest: 1000, host: 80, buffer: 1 << 20, forwarded: 14))
        #expect(try rig.next().data == Array("efghij".utf8))
    }

    @Test("The host's room is kept to, and told in time")
    func creditFromGuest() throws {
        let rig = try SocketRig()
        let host = try rig.guestConnects()
        defer { close(host) }
        var small: Int32 = 4096
        setsockopt(host, SOL_SOCKET, SO_RCVBUF, &small, 4)
        let chunk = (0..<16384).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8) }
        var sent: UInt32 = 0
        var forwarded: UInt32 = 0
        var received: [UInt8] = []
        // As long as the guest keeps to what it is told, nothing is lost or refused. Nobody waits for the other's next
        // step: the credit may come behind the last of the data.
        let limit = HostClock.monotonicNanoseconds + 60_000_000_000
        func receive() {
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            let count = recv(host, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            received += buffer.prefix(max(count, 0))
            if count <= 0 { HostClock.sleep(nanoseconds: 1_000_000) }
        }
        while sent < 1 << 20, HostClock.monotonicNanoseconds < limit {
            while sent &- forwarded + 16384 <= VsockConnection.bufferSize, sent < 1 << 20 {
                try rig.send(rig.header(.data, guest: 1000, host: 80), chunk)
                sent += 16384
            }
            receive()
            for used in try rig.driver.queues[0].collect() {
                let header = try #require(VsockHeader(Array(used.bytes.prefix(44))))
                #expect(header.operation == VsockOperation.creditUpdate.rawValue)
                forwarded = header.forwarded
                try rig.offer(1)
            }
        }
        while received.count < 1 << 20, HostClock.monotonicNanoseconds < limit { receive() }
        #expect(received == Array((0..<64).map { _ in chunk }.joined()))
    }

    @Test("A guest that sends more than there is room for is refused")
    func creditLie() throws {
        let rig = try SocketRig()
        let host = try rig.guestConnects()
        defer { close(host) }
        let chunk = [UInt8](repeating: 1, count: 32768)
        var refused = false
        for _ in 0..<40 where !refused {
            try rig.send(rig.header(.data, guest: 1000, host: 80), chunk)
            refused = try rig.driver.queues[0].collect().contains { used in
                VsockHeader(Array(used.bytes.prefix(44)))?.operation == VsockOperation.reset.rawValue
            }
        }
        #expect(refused)
    }

    @Test("A guest that takes nothing keeps others' memory small, and gets all when it does")
    func noBuffers() throws {
        let rig = try SocketRig(receiveBuffers: 0)
        for port in 0..<1000 as Range<UInt32> {
            try rig.driver.queues[1].submit([.readable(rig.header(.request, guest: port, host: 9).bytes)])
            rig.driver.notify(1)
            if port < 256 { #expect(rig.driver.waitForUsed(1, count: 1).count == 1) } else { break }
        }
        // The 257th waits until the guest has taken some.
        #expect(try rig.driver.queues[1].collect().isEmpty)
        try rig.offer(12)
        let packets = try rig.receive(12)
        #expect(packets.count == 12 && packets.allSatisfy { $0.operation == .reset })
        #expect(rig.driver.waitForUsed(1, count: 1).count == 1)
    }

    @Test("Packets that cannot be")
    func malformed() throws {
        let rig = try SocketRig()
        let host = try rig.guestConnects()
        defer { close(host) }
        // Another sender: nothing is said to it.
        var packet = rig.header(.request, guest: 5, host: 80)
        packet.sourceCID = 77
        try rig.send(packet)
        #expect(try rig.receiveNothing())
        // Another receiver, another type, an operation that there is not: refused by the same name.
        packet = rig.header(.request, guest: 5, host: 80)
        packet.targetCID = 9
        try rig.send(packet)
        #expect(try rig.next().header.sourceCID == 9)
        packet = rig.header(.request, guest: 5, host: 80)
        packet.type = 2
        try rig.send(packet)
        let typed = try rig.next()
        #expect(typed.header.type == 2 && typed.operation == .reset)
        for operation in [0, 8, 999] as [UInt16] {
            packet = rig.header(.request, guest: 5, host: 80)
            packet.operation = operation
            try rig.send(packet)
            #expect(try rig.next().operation == .reset)
        }
        // A reset that means nobody, and one of those, are not answered.
        try rig.send(rig.header(.reset, guest: 5, host: 6))
        #expect(try rig.receiveNothing())
        // A length that is not there ends the connection.
        packet = rig.header(.data, guest: 1000, host: 80)
        packet.length = 5000
        try rig.send(raw: packet.bytes + [1, 2, 3])
        #expect(try rig.next().operation == .reset)
        #expect(SocketRig.text(host) == "")
        try rig.send(raw: [1, 2, 3])
        #expect(rig.driver.needsReset)
        try #require(rig.driver.start(features: VsockLayout.streamFeature))
        try rig.offer(4)
        try rig.send(rig.header(.request, guest: 7, host: 99))
        #expect(try rig.next().operation == .reset)
    }

    @Test("Connections are bounded")
    func bounds() throws {
        let rig = try SocketRig()
        let listener = try rig.listen(port: 80)
        defer { close(listener) }
        var ends: [Int32] = []
        defer { for end in ends { close(end) } }
        for guest in 0..<UInt32(SocketState.connectionLimit) {
            try rig.send(rig.header(.request, guest: guest, host: 80))
            let packet = try rig.next()
            #expect(packet.operation == .response, "\(guest): \(packet.header)")
            ends.append(SocketRig.acceptOne(listener))
        }
        try rig.send(rig.header(.request, guest: 9999, host: 80))
        #expect(try rig.next().operation == .reset)
        close(ends.removeLast())
        #expect(try rig.next().operation == .shutdown)
        try rig.send(rig.header(.request, guest: 9999, host: 80))
        #expect(try rig.next().operation == .response)
    }

    @Test("The socket's file is ours alone, replaces only what nobody listens on, and goes with the machine")
    func socketFile() throws {
        let rig = try SocketRig()
        var status = stat()
        #expect(lstat(rig.path, &status) == 0 && status.st_mode & 0o777 == 0o600)
        #expect(throws: HostError.self) { try SocketEndpoint(path: rig.path, guestCID: 5) }
        let other = rig.path + "-file"
        close(open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0o644))
        #expect(throws: HostError.self) { try SocketEndpoint(path: other, guestCID: 5) }
        #expect(access(other, F_OK) == 0)
        #expect(throws: HostError.self) {
            try SocketEndpoint(path: "/tmp/" + String(repeating: "x", count: 100), guestCID: 5)
        }
        let stale = rig.path + "-stale"
        let old = try SocketEndpoint(path: stale, guestCID: 5)
        // Its process has died: the file is there, and nobody listens.
        rename(stale, stale + "-kept")
        old.close()
        rename(stale + "-kept", stale)
        _ = consume old
        let new = try SocketEndpoint(path: stale, guestCID: 5)
        new.close()
        #expect(access(stale, F_OK) != 0)
    }

    @Test("After a restore the driver is told that its connections are gone, and new ones work")
    func restore() throws {
        let rig = try SocketRig()
        let host = try rig.guestConnects()
        defer { close(host) }
        SocketRig.write(host, "in the middle")
        try rig.driver.queues[2].submit([.writable(4)])
        rig.driver.notify(2)
        #expect(try rig.driver.queues[2].collect().isEmpty)
        _ = try rig.receive(1)
        rig.driver.transport.pause()
        let saved = rig.driver.transport.save()
        let state = try VirtioSocketSavedState(encoded: saved.device)
        #expect(state == VirtioSocketSavedState(guestCID: SocketRig.cid, hadDriver: true))

        let endpoint = try SocketEndpoint(path: rig.path + "-2", guestCID: 43)
        defer { endpoint.close() }
        let transport = try VirtioPCIDevice(
            restoring: try VirtioPCISavedState(encoded: saved.encoded()), VirtioSocket(restoring: state, endpoint),
            memory: rig.driver.memory)
        let driver = ModelDriver(continuing: rig.driver, with: transport)
        transport.resume()
        defer { transport.shutDown() }
        let event = try #require(driver.waitForUsed(2, count: 1).first)
        #expect(event.bytes == [0, 0, 0, 0] && event.written == 4)
        #expect(driver.read(UInt64(VirtioPCILayout.device), .double) == 43)
        var packet = rig.header(.request, guest: 7, host: 99)
        packet.sourceCID = 43
        try driver.queues[1].submit([.readable(packet.bytes)])
        driver.notify(1)
        let used = try #require(driver.waitForUsed(0, count: 1).first)
        #expect(VsockHeader(Array(used.bytes.prefix(44)))?.operation == VsockOperation.reset.rawValue)
    }

    @Test("After a restore the driver hears of the reset first, also where a client has been waiting")
    func resetComesFirst() throws {
        for _ in 0..<20 {
            let rig = try SocketRig()
            try rig.driver.queues[2].submit([.writable(4)])
            try rig.driver.enableVectors()
            rig.driver.transport.pause()
            let saved = rig.driver.transport.save()
            let endpoint = try SocketEndpoint(path: rig.path + "-2", guestCID: 43)
            defer { endpoint.close() }
            let client = try #require(StreamSocket(connectingTo: rig.path + "-2"))
            #expect(client.send(Array("CONNECT 7\n".utf8)[...]) == 10)
            let state = try VirtioSocketSavedState(encoded: saved.device)
            let transport = try VirtioPCIDevice(
                restoring: saved, VirtioSocket(restoring: state, endpoint), memory: rig.driver.memory)
            let driver = ModelDriver(continuing: rig.driver, with: transport)
            transport.resume()
            let used = try #require(driver.waitForUsed(0, count: 1).first)
            #expect(VsockHeader(Array(used.bytes.prefix(44)))?.operation == VsockOperation.request.rawValue)
            // The vectors of the event queue and of the receive queue.
            #expect(driver.connection.waitForMessages(2).map(\.data) == [3, 1])
            transport.shutDown()
        }
    }
}
