internal import Disk
internal import FileShare
internal import Foundation
internal import Host
internal import HostNetwork
internal import Net
internal import SoftKVM
internal import Synchronization
internal import Testing
internal import Virtio

@testable internal import VMM

/// A machine with everything that it can have, replaced again and again while all of it is in use.
@Suite(
    "States of whole machines", .serialized,
    .enabled(if: StateTestGuest.isPresent, "no default guest: run ./scripts/default-guest"),
    .enabled(if: exists(StateTestGuest.tool), "no guest-tool: run scripts/build-guests"),
    .enabled(if: canMakeNetworks, "needs the right to make network namespaces, /dev/net/tun and ip(8)"))
struct WholeMachineStateTests {
    private static let lines = 300_000
    private static let portLines = 200_000
    private static let balloonPages: UInt32 = 16384
    private static let rounds = 5

    /// A file of the folder is written by one descriptor and another one read by another, a lock is held, all over every
    /// replacement; a port carries numbers both ways, a process answers on a socket, and what `MachineStateTests` has.
    private static let script = """
        cp /mnt/s/guest-tool /tmp/tool
        ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up
        (while :; do /tmp/tool echo 1234 >/dev/null; echo "vsock $?"; done) >/tmp/vsock 2>&1 </dev/null &
        vsock=$!
        (seq 1 $LINES | nc 10.9.0.1 $PORT >/tmp/answer) &
        sender=$!
        exec 8<>/dev/virtio-ports/agent
        seq 1 $WORDS >&8 &
        writer=$!
        head -n $WORDS <&8 >/tmp/port &
        reader=$!
        exec 5>>/mnt/s/log 6</mnt/s/pattern
        mkfifo /tmp/held
        /tmp/tool hold /mnt/s/locked </tmp/held &
        holder=$!
        exec 7>/tmp/held
        i=0
        while [ ! -e /mnt/s/over ]; do
            read up rest </proc/uptime; echo "t $up"
            echo "line $i" >&5 || echo bad log
            dd bs=65536 count=1 iflag=fullblock <&6 2>/dev/null >>/tmp/copy || echo bad copy
            seq $((i * 20000)) $((i * 20000 + 19999)) | head -c 65536 >/tmp/block
            dd if=/tmp/block of=/dev/vda bs=64k seek=$i count=1 conv=notrunc,fsync 2>/dev/null || echo bad write
            echo 1 >/proc/sys/vm/drop_caches
            dd if=/dev/vda bs=64k skip=$i count=1 2>/dev/null | cmp - /tmp/block || echo bad $i
            i=$((i + 1)); echo "turn $i"
            usleep 20000
        done
        wait $sender; echo "answer $(wc -c </tmp/answer)"
        wait $writer; wait $reader; echo "port $?"
        cat <&6 >>/tmp/copy || echo bad copy
        cp /tmp/copy /tmp/port /mnt/s/ || echo bad cp
        exec 7>&-
        wait $holder; echo "holder $?"
        kill $vsock; kill $(pidof tool)
        cat /tmp/vsock
        echo "turns $i"
        echo finished
        """

    private struct Folder {
        let path = temporaryPath("folder")
        let pattern = (0..<3 << 20).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 9 ^ $0 >> 16) }

        init() throws {
            mkdir(path, 0o755)
            try #require(shell("cp '\(StateTestGuest.tool)' '\(path)/guest-tool'").status == 0)
            try FileDescriptor.open(path + "/pattern", .append).write(pattern)
            try FileDescriptor.open(path + "/locked", .append).write([0x61])
        }

        func remove() { _ = shell("rm -rf '\(path)'") }

        func bytes(_ name: String) throws -> [UInt8] {
            try RandomAccessFile(path: path + "/" + name).readAll(limit: 64 << 20)
        }

        /// Whether somebody has a lock on the file.
        var isLocked: Bool {
            let file = open(path + "/locked", O_RDWR | O_CLOEXEC)
            defer { close(file) }
            return lockf(file, F_TEST, 0) != 0
        }
    }

    /// Connects to the guest's port and has a word sent back; nil when nobody does for three minutes.
    private func converse(_ guest: StateTestGuest, _ path: String, _ word: String) -> StreamSocket? {
        let end = HostClock.monotonicNanoseconds + 180_000_000_000
        while HostClock.monotonicNanoseconds < end {
            if let socket = StreamSocket(connectingTo: path) {
                _ = socket.send(Array("CONNECT 1234\n".utf8)[...])
                if read(socket, guest, until: "\n")?.hasPrefix("OK ") == true {
                    _ = socket.send(Array(word.utf8)[...])
                    if read(socket, guest, until: word) == word { return socket }
                }
            }
            // Nobody listens, or a process that is about to end because its first connection is over.
            guest.carry(milliseconds: 20)
        }
        return nil
    }

    /// What comes until it ends with `mark`; nil at the connection's end, and after a minute.
    private func read(_ socket: StreamSocket, _ guest: StateTestGuest, until mark: String) -> String? {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        var text = ""
        while HostClock.monotonicNanoseconds < end {
            if let bytes = socket.receive(limit: 1) {
                guard !bytes.isEmpty else { return nil }
                text += String(decoding: bytes, as: UTF8.self)
                if text.hasSuffix(mark) { return text }
            } else {
                guest.carry(milliseconds: 1)
            }
        }
        return nil
    }

    private static func turns(_ output: String) -> Int {
        output.split(separator: "\n").count { $0.hasPrefix("turn ") }
    }

    /// Whether a connection is over, or will be within two minutes.
    private func ends(_ socket: StreamSocket, _ guest: StateTestGuest) -> Bool {
        let end = HostClock.monotonicNanoseconds + 120_000_000_000
        while HostClock.monotonicNanoseconds < end {
            if socket.receive(limit: 100)?.isEmpty == true { return true }
            guest.carry(milliseconds: 1)
        }
        return false
    }

    @Test(
        "Disk, network, folder, sockets, port, balloon and clock go on in another machine", .timeLimit(.minutes(20)))
    func replace() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let path = temporaryPath("whole.qcow2")
        defer { unlink(path) }
        try DiskImage.createQCOW2(path, size: 64 << 20, QCOW2Options())
        let disk = ImageDisk(try DiskImage.open(path, .qcow2, .init(isWritable: true)))
        let sockets = try SocketEndpoint(path: temporaryPath("s"), guestCID: 3)
        let agentPath = temporaryPath("p")
        let agent = try ConsoleEndpoint(name: "agent", listeningAt: agentPath)
        defer {
            agent.close()
            sockets.close()
        }
        let isDone: Bool? = try inNewNetwork {
            try run(folder, disk, sockets, agent, PortClient(agentPath, lines: Self.portLines))
            return true
        }
        #expect(isDone == true)
        try disk.close()
        if has("qemu-img") { #expect(shell("qemu-img check '\(path)'").status == 0) }
    }

    private func run(
        _ folder: Folder, _ disk: ImageDisk, _ sockets: SocketEndpoint, _ agent: ConsoleEndpoint, _ client: PortClient
    ) throws {
        let set = shell("ip tuntap add dev mt0 mode tap && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up")
        precondition(set.status == 0, set.output)
        let port = try NetworkPort(NetworkConfiguration(.tap(.name("mt0"))).open(log: { _ in }))
        let server = LoopbackSocket(isUDP: false, address: 0x0A09_0001)
        let received = ReceivedStream()
        let thread = try HostThread(name: "server") { received.serve(server) }
        let balloon = BalloonControl(targetPages: Self.balloonPages)
        let text = Self.script.replacingOccurrences(of: "$LINES", with: "\(Self.lines)")
            .replacingOccurrences(of: "$PORT", with: "\(server.port)")
            .replacingOccurrences(of: "$WORDS", with: "\(Self.portLines)")
        var share: FileShare?
        func devices() throws -> [DeviceConfiguration] {
            // As in another process: nothing of the first one's files is left.
            share?.reset()
            let next = try FileShare(path: folder.path)
            share = next
            return [
                .disk(disk, BlockConfigurationOptions()),
                .network(port, NetworkCardOptions(mac: MACAddress(random: [1, 2, 3, 4, 5]))), .entropy,
                .fileSystem(next, tag: "s"), .socket(sockets), .ports([agent]), .balloon(balloon),
            ]
        }
        let guest = try StateTestGuest(
            text, append: "martlet.share=s martlet.port=agent", devices: try devices(), on: SoftSystem())
        defer {
            guest.stop()
            port.close()
            client.stop()
            thread.join()
        }
        #expect(guest.wait(for: "turn 2\n"), "\(guest.output)\(guest.console)")
        #expect(guest.waits(seconds: 120, until: { balloon.figures.actualPages == Self.balloonPages }))
        var socket = try #require(converse(guest, sockets.path, "hello"), "\(guest.output)")
        for round in 0..<Self.rounds {
            guest.carry(milliseconds: UInt64(240 + round * 37))
            #expect(folder.isLocked && balloon.figures.actualPages == Self.balloonPages)
            #expect(try guest.replaceMachine(pause: 300_000_000), "\(guest.output)")
            #expect(balloon.figures.actualPages == Self.balloonPages)
            #expect(folder.isLocked)
            // The connection is over at both ends, and the next one is as good as the first.
            #expect(ends(socket, guest))
            socket = try #require(converse(guest, sockets.path, "hello \(round)"), "\(guest.output)")
            // Each machine does some of the work.
            let turns = Self.turns(guest.output)
            #expect(guest.waits(seconds: 120, until: { Self.turns(guest.output) > turns }), "\(guest.output)")
        }
        client.hurry()
        balloon.setTarget(pages: 0)
        #expect(guest.waits(seconds: 120, until: { balloon.figures.actualPages == 0 }))
        try FileDescriptor.open(folder.path + "/over", .append).write([])
        #expect(guest.end() == .poweredOff, "\(guest.output)\(client.progress)")
        let longestLife = guest.longestLife
        thread.join()
        client.stop()
        try check(guest.output, longestLife, folder, client, received)
    }

    private func check(
        _ output: String, _ longestLife: Double, _ folder: Folder, _ client: PortClient, _ received: ReceivedStream
    ) throws {
        #expect(output.contains("finished\n") && !output.contains("bad"), "\(output)")
        let lines = output.split(separator: "\n")
        let times = lines.filter { $0.hasPrefix("t ") }.compactMap { Double($0.dropFirst(2)) }
        let steps = zip(times, times.dropFirst()).map { $1 - $0 }
        #expect(steps.count >= Self.rounds && steps.allSatisfy { $0 >= 0 }, "\(steps)")
        #expect((times.last ?? .infinity) <= longestLife * 1.01 + 0.1, "\(longestLife): \(times)")
        #expect(received.text == (1...Self.lines).map { "\($0)\n" }.joined())
        #expect(output.contains("answer \(ReceivedStream.answer.count)\n"), "\(output)")
        // The folder: nothing is written twice or not at all, and what was read is the file.
        let turns = try #require(lines.last { $0.hasPrefix("turns ") }.flatMap { Int($0.dropFirst(6)) })
        let log = (0..<turns).map { "line \($0)\n" }.joined()
        #expect(try String(decoding: folder.bytes("log"), as: UTF8.self) == log)
        #expect(try folder.bytes("copy") == folder.pattern)
        #expect(output.contains("locked\n") && output.contains("holder 0\n") && !folder.isLocked, "\(output)")
        // The port, both ways.
        let words = (1...Self.portLines).map { "\($0)\n" }.joined()
        #expect(client.text == words && output.contains("port 0\n"), "\(output)")
        #expect(try String(decoding: folder.bytes("port"), as: UTF8.self) == words)
        // Each machine's connection ended with an error that the guest's process saw.
        #expect(lines.filter { $0 == "vsock 1" }.count >= Self.rounds, "\(output)")
    }
}

/// A port's client, which is slow until it is told to hurry: numbers to the guest, and what comes from it.
private final class PortClient: Sendable {
    private let socket: StreamSocket
    private let isSlow = Atomic(true)
    private let isStopped = Atomic(false)
    private let bytes = Mutex<[UInt8]>([])
    private let threads = Mutex<[HostThread]>([])
    private let expected: Int

    init(_ path: String, lines: Int) throws {
        socket = try #require(StreamSocket(connectingTo: path))
        let words = Array((1...lines).map { "\($0)\n" }.joined().utf8)
        expected = words.count
        let writer = try HostThread(name: "port writer") { [self] in
            var rest = words[...]
            while !rest.isEmpty, !isStopped.load(ordering: .relaxed) {
                let count = waits(rest.count) ? 0 : max(0, socket.send(rest.prefix(1024)))
                rest = rest.dropFirst(count)
                pace(after: count)
            }
        }
        let reader = try HostThread(name: "port reader") { [self] in
            while !isStopped.load(ordering: .relaxed) {
                let left = expected - bytes.withLock { $0.count }
                let piece = waits(left) ? nil : socket.receive(limit: 1024)
                bytes.withLock { $0 += piece ?? [] }
                pace(after: piece?.count ?? 0)
            }
        }
        threads.withLock { $0 = [writer, reader] }
    }

    /// The last quarter is left until somebody says to hurry, so that the traffic is not over before.
    private func waits(_ left: Int) -> Bool { isSlow.load(ordering: .relaxed) && left < expected / 4 }

    private func pace(after count: Int) {
        if count == 0 || isSlow.load(ordering: .relaxed) { HostClock.sleep(nanoseconds: 8_000_000) }
    }

    var progress: String { "the port's client has \(text.utf8.count) of \(expected) bytes" }
    var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
    func hurry() { isSlow.store(false, ordering: .relaxed) }

    func stop() {
        isStopped.store(true, ordering: .relaxed)
        for thread in threads.withLock({ $0 }) { thread.join() }
        threads.withLock { $0 = [] }
    }
}
