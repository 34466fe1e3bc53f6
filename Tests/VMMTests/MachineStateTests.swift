internal import Disk
internal import Foundation
internal import Host
internal import HostNetwork
internal import Net
internal import SoftKVM
internal import Synchronization
internal import Testing
internal import Virtio

@testable internal import VMM

/// A Linux guest that is stopped, and that goes on in another machine, in the middle of its work.
@Suite(
    "Machine states", .serialized,
    .enabled(if: StateTestGuest.isPresent, "no default guest: run ./scripts/default-guest"))
struct MachineStateTests {
    /// Seconds of the guest's life, as it has printed them in whole lines that begin with `mark`.
    private static func times(_ output: String, _ mark: String = "t ") -> [Double] {
        let lines = output[..<(output.lastIndex(of: "\n") ?? output.startIndex)].split(separator: "\n")
        return lines.filter { $0.hasPrefix(mark) }.compactMap { Double($0.dropFirst(mark.count)) }
    }

    /// The guest's uptime, which it read at some moment between two of the host's, in nanoseconds.
    private struct Reading {
        let uptime: Double
        let asked: UInt64
        let answered: UInt64

        init(of guest: StateTestGuest) throws {
            let count = MachineStateTests.times(guest.output, "asked ").count
            asked = HostClock.monotonicNanoseconds
            guest.give(line: "?")
            _ = guest.waits(seconds: 120) { MachineStateTests.times(guest.output, "asked ").count > count }
            answered = HostClock.monotonicNanoseconds
            let all = MachineStateTests.times(guest.output, "asked ")
            try #require(all.count == count + 1, "\(guest.output)\(guest.console)")
            uptime = all[count]
        }
    }

    @Test(
        "Time stands still while the machine does", .timeLimit(.minutes(15)),
        arguments: [SoftwareEngine.interpreter, .translator])
    func pause(engine: SoftwareEngine) throws {
        let guest = try StateTestGuest(
            """
            exec 5<&0
            (while read question <&5 && [ "$question" != over ]; do read up rest </proc/uptime; echo "asked $up"; done
            echo >/tmp/over) &
            i=0
            while [ ! -e /tmp/over ]; do
                read up rest </proc/uptime; echo "t $up"; sleep 0.05; i=$((i + 1))
            done
            echo "lines $i"
            """, on: SoftSystem(engine: engine))
        defer { guest.stop() }
        #expect(guest.wait(for: "t "), "\(guest.console)")
        var last = try Reading(of: guest)
        for _ in 0..<3 {
            guest.carry(milliseconds: 120)
            #expect(try guest.machine.standStill())
            let stopped = HostClock.monotonicNanoseconds
            let before = guest.machine.clock.nanoseconds
            guest.carry(milliseconds: 20)
            let printed = guest.output
            guest.carry(milliseconds: 1500)
            #expect(guest.output == printed)
            #expect(guest.machine.clock.nanoseconds == before)
            let pause = HostClock.monotonicNanoseconds - stopped
            try guest.machine.resume()
            // None of the pause has passed for the guest, however long its answers take.
            let next = try Reading(of: guest)
            let longest = Double(next.answered - last.asked - pause) / 1e9
            #expect(next.uptime - last.uptime <= longest * 1.01 + 0.1, "\(last), \(next), \(pause)")
            last = next
        }
        guest.give(line: "over")
        #expect(guest.end() == .poweredOff, "\(guest.console)")
        let times = Self.times(guest.output)
        #expect(guest.output.contains("lines \(times.count)\n"), "\(guest.output)")
        let steps = zip(times, times.dropFirst()).map { $1 - $0 }
        #expect(!steps.isEmpty && steps.allSatisfy { $0 >= 0 }, "\(steps)")
        #expect(!guest.console.contains("clocksource: ") || !guest.console.contains("unstable"), "\(guest.console)")
    }

    /// Each number's lines are written, read back past the guest's page cache, and compared.
    private static let work = """
        ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up
        (while :; do read up rest </proc/uptime; echo "t $up"; sleep 0.1; done) &
        ticker=$!
        (seq 1 $LINES | nc 10.9.0.1 $PORT >/tmp/answer; echo sent) &
        sender=$!
        i=0
        while [ $i -lt 24 ]; do
            seq $((i * 60000)) $((i * 60000 + 59999)) | head -c 262144 >/tmp/block
            dd if=/tmp/block of=/dev/vda bs=256k seek=$i count=1 conv=notrunc,fsync 2>/dev/null || echo bad write
            echo 1 >/proc/sys/vm/drop_caches
            dd if=/dev/vda bs=256k skip=$i count=1 2>/dev/null | cmp - /tmp/block || echo bad $i
            i=$((i + 1)); echo "block $i"
        done
        wait $sender
        echo "answer $(wc -c </tmp/answer)"
        kill $ticker
        echo finished
        """

    @Test(
        "A disk's writes, a TCP connection over tap, and the clock go on in another machine", .timeLimit(.minutes(20)),
        .enabled(if: canMakeNetworks, "needs the right to make network namespaces, /dev/net/tun and ip(8)"),
        arguments: [SoftwareEngine.interpreter, .translator])
    func replace(engine: SoftwareEngine) throws {
        let lines = engine == .interpreter ? 200_000 : 1_000_000
        let path = temporaryPath("state.qcow2")
        defer { unlink(path) }
        try DiskImage.createQCOW2(path, size: 64 << 20, QCOW2Options())
        let disk = ImageDisk(try DiskImage.open(path, .qcow2, .init(isWritable: true)))
        let isDone: Bool? = try inNewNetwork {
            let set = shell(
                "ip tuntap add dev mt0 mode tap && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up")
            precondition(set.status == 0, set.output)
            let port = try NetworkPort(
                NetworkConfiguration(.tap(.name("mt0"))).open(log: { _ in }))
            let server = LoopbackSocket(isUDP: false, address: 0x0A09_0001)
            let received = ReceivedStream()
            let thread = try HostThread(name: "server") { received.serve(server) }
            let script = Self.work.replacingOccurrences(of: "$LINES", with: "\(lines)")
                .replacingOccurrences(of: "$PORT", with: "\(server.port)")
            let guest = try StateTestGuest(
                script,
                devices: [
                    .disk(disk, BlockConfigurationOptions()),
                    .network(port, NetworkCardOptions(mac: MACAddress(random: [1, 2, 3, 4, 5]))), .entropy,
                ], on: SoftSystem(engine: engine))
            defer {
                guest.stop()
                port.close()
                thread.join()
            }
            #expect(guest.wait(for: "block 2\n"), "\(guest.output)\(guest.console)")
            for round in 0..<5 {
                // Other moments each time.
                guest.carry(milliseconds: UInt64(40 + round * 37))
                #expect(try guest.replaceMachine(pause: 300_000_000), "\(guest.output)")
            }
            #expect(guest.end() == .poweredOff, "\(guest.output)\(guest.console)")
            let longestLife = guest.longestLife
            #expect(guest.output.contains("finished\n"))
            #expect(!guest.output.contains("bad"), "\(guest.output)")
            let times = Self.times(guest.output)
            let steps = zip(times, times.dropFirst()).map { $1 - $0 }
            #expect(!steps.isEmpty && steps.allSatisfy { $0 >= 0 }, "\(steps)")
            #expect((times.last ?? .infinity) <= longestLife * 1.01 + 0.1, "\(longestLife): \(times)")
            #expect(received.text == (1...lines).map { "\($0)\n" }.joined())
            #expect(guest.output.contains("answer \(ReceivedStream.answer.count)\n"), "\(guest.output)")
            return true
        }
        #expect(isDone == true)
        try disk.close()
        let image = try DiskImage.open(path, .qcow2, .init(isWritable: false))
        for block in 0..<24 {
            let expected = (block * 60_000..<block * 60_000 + 60_000).map { "\($0)\n" }.joined().utf8.prefix(262_144)
            #expect(try image.read(count: 262_144, at: UInt64(block) << 18) == Array(expected), "block \(block)")
        }
        try image.close()
        if has("qemu-img") { #expect(shell("qemu-img check '\(path)'").status == 0) }
    }
}

extension MachineStateTests {
    @Test(
        "A write that the host has no room for waits, also in another machine", .timeLimit(.minutes(15)),
        arguments: [false, true])
    func held(isReplaced: Bool) throws {
        let path = temporaryPath("held.raw")
        defer { unlink(path) }
        try DiskImage.createRaw(path, size: 8 << 20)
        let image = try DiskImage.open(path, .raw, .init(isWritable: true))
        let disk = FullDisk(ImageDisk(image))
        let guest = try StateTestGuest(
            """
            seq 1 200000 | head -c 1048576 >/tmp/block
            for i in 0 1 2 3; do dd if=/tmp/block of=/dev/vda bs=1M seek=$i conv=notrunc,fsync 2>/dev/null || echo bad $i; done
            echo written
            echo 1 >/proc/sys/vm/drop_caches
            for i in 0 1 2 3; do dd if=/dev/vda bs=1M skip=$i count=1 2>/dev/null | cmp - /tmp/block || echo bad $i; done
            echo finished
            """, devices: [.disk(disk, BlockConfigurationOptions(onError: .stopWhenFull))], on: SoftSystem())
        defer { guest.stop() }
        var reason: String?
        _ = guest.waits(seconds: 120) {
            reason = reason ?? guest.machine.takeHoldReason()
            return reason != nil
        }
        #expect(reason?.hasPrefix("virtio-blk ") == true && reason?.hasSuffix("no room") == true)
        #expect(try guest.machine.standStill())
        try guest.machine.resume()
        // Nothing has changed, and it is in the same trouble again.
        reason = nil
        _ = guest.waits(seconds: 120) {
            reason = reason ?? guest.machine.takeHoldReason()
            return reason != nil
        }
        #expect(reason != nil && !guest.output.contains("written"))
        disk.makeRoom()
        if isReplaced {
            #expect(try guest.replaceMachine(pause: 0))
        } else {
            #expect(try guest.machine.standStill())
            try guest.machine.resume()
        }
        #expect(guest.end() == .poweredOff, "\(guest.console)")
        #expect(guest.output.contains("written\nfinished\n") && !guest.output.contains("bad"), "\(guest.output)")
        let block = (1...200_000).map { "\($0)\n" }.joined().utf8.prefix(1 << 20)
        #expect(try image.read(count: 4 << 20, at: 0) == Array([block, block, block, block].joined()))
        try image.close()
    }
}

/// A disk whose host has no room behind its first megabyte until somebody makes some.
private final class FullDisk: BlockBackend {
    private let image: ImageDisk
    private let hasRoom = Mutex(false)
    let isReadOnly = false
    var size: UInt64 { image.size }
    func makeRoom() { hasRoom.withLock { $0 = true } }

    init(_ image: ImageDisk) { self.image = image }

    func read(into segments: IOSegments, at offset: UInt64) throws(BlockError) {
        try image.read(into: segments, at: offset)
    }

    func write(from segments: IOSegments, at offset: UInt64) throws(BlockError) {
        guard offset < 1 << 20 || hasRoom.withLock({ $0 }) else { throw BlockError("no room", isOutOfSpace: true) }
        try image.write(from: segments, at: offset)
    }

    func flush() throws(BlockError) { try image.flush() }
    func discard(at offset: UInt64, count: UInt64) throws(BlockError) {}
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) throws(BlockError) {
        try image.writeZeroes(at: offset, count: count, mayUnmap: mayUnmap)
    }
}
