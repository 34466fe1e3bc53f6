import CHost
import Glibc
import Host
import HostNetwork
import Synchronization
import Testing

@testable import Net

private let kernel: UInt32 = 0x0A09_0001
private let guestAddress: UInt32 = 0x0A09_0002

/// A tap in a namespace of the test's own, its back end, and a socket of the kernel's stack behind it.
private struct TapRig: Sendable {
    let guest: TestGuest
    let datagrams: LoopbackSocket
    /// The tap itself, as the kernel's data path would have it.
    let descriptor: Int32

    static func make() throws -> TapRig? {
        try inNewNetwork {
            var name = [CChar](repeating: 0, count: 16)
            let descriptor = Int32(host_tap_open("mt0", &name))
            let guest = try TestGuest(NetworkConfiguration(.tap(.descriptor(descriptor))))
            guest.address = guestAddress
            guest.setPeerMAC([0x02, 0, 0, 0, 9, 1])
            let set = shell(
                "ip link set mt0 address 02:00:00:00:09:01 && ip addr add 10.9.0.1/24 dev mt0 && ip link set mt0 up "
                    + "&& ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:15 dev mt0 nud permanent")
            precondition(set.status == 0, set.output)
            return TapRig(
                guest: guest, datagrams: LoopbackSocket(isUDP: true, address: kernel), descriptor: descriptor)
        }
    }

    private static let marker: [UInt8] = Array("martlet hand-over".utf8)

    func sendToGuest(_ number: UInt8) {
        #expect(datagrams.sendDatagram(TapRig.marker + [number], to: guestAddress, port: 7))
    }

    /// The number of one of those datagrams.
    static func number(_ frame: [UInt8]) -> UInt8? {
        let offset = 42
        guard frame.count == offset + marker.count + 1, Array(frame[offset..<offset + marker.count]) == marker else {
            return nil
        }
        return frame.last
    }

    /// The numbers of what the guest has got.
    func guestNumbers(_ count: Int) -> [UInt8] {
        (0..<count).compactMap { _ in guest.next { TapRig.number($0) != nil }.flatMap(TapRig.number) }
    }

    /// The numbers of what lies in the tap.
    func tapNumbers(_ count: Int) -> [UInt8] {
        var numbers: [UInt8] = []
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while numbers.count < count, HostClock.monotonicNanoseconds < end {
            var bytes = [UInt8](repeating: 0, count: 2000)
            let result = read(descriptor, &bytes, bytes.count)
            guard result > VirtualNetworkHeader.size else {
                HostClock.sleep(nanoseconds: 100_000)
                continue
            }
            if let number = TapRig.number(Array(bytes[VirtualNetworkHeader.size..<result])) { numbers.append(number) }
        }
        return numbers
    }
}

@Suite(
    .serialized, .enabled(if: canMakeNetworks, "needs the right to make network namespaces, /dev/net/tun and ip(8)"))
struct HandOverTests {
    @Test("Between hand-over and taking back nothing here touches the tap")
    func traffic() throws {
        let rig = try #require(try TapRig.make())
        let backend = rig.guest.backend
        for round in UInt8(0)..<20 {
            for number in UInt8(0)..<4 { rig.sendToGuest(round * 12 + number) }
            #expect(rig.guestNumbers(4) == (0..<4).map { round * 12 + $0 })
            backend.handOver { _, _ in
                Issue.record("nothing waited")
                return true
            }
            for number in UInt8(4)..<8 { rig.sendToGuest(round * 12 + number) }
            #expect(rig.tapNumbers(4) == (4..<8).map { round * 12 + $0 }, "\(round)")
            let before = backend.statistics
            #expect(backend.send(CardFrame.broadcast) == .dropped)
            #expect(backend.statistics.undeliverableFrames == before.undeliverableFrames + 1)
            backend.takeBack()
            for number in UInt8(8)..<12 { rig.sendToGuest(round * 12 + number) }
            #expect(rig.guestNumbers(4) == (8..<12).map { round * 12 + $0 })
        }
        #expect(backend.send(CardFrame.broadcast) == .sent)
    }

    @Test("The frame that waits for room is handed to the card, or counted as lost", arguments: [true, false])
    func pending(isTaken: Bool) throws {
        let rig = try #require(try TapRig.make())
        let backend = rig.guest.backend
        rig.guest.setRoom(0)
        rig.sendToGuest(1)
        rig.sendToGuest(2)
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while rig.guest.refusals == 0, HostClock.monotonicNanoseconds < end { HostClock.sleep(nanoseconds: 100_000) }
        let before = backend.statistics
        let seen = Mutex<[UInt8?]>([])
        backend.handOver { _, frame in
            let bytes = frame.withUnsafeBytes { Array($0) }
            seen.withLock { $0.append(TapRig.number(bytes)) }
            return isTaken
        }
        // What came before the datagrams may have been the one that waits.
        let first = seen.withLock { $0 }
        #expect(first.count == 1)
        let after = backend.statistics
        #expect(after.receivedFrames - before.receivedFrames == (isTaken ? 1 : 0))
        #expect(after.overrunFrames - before.overrunFrames == (isTaken ? 0 : 1))
        let rest: [UInt8] = first == [1] ? [2] : [1, 2]
        #expect(rig.tapNumbers(rest.count) == rest)
        backend.takeBack()
        rig.guest.setRoom(.max)
        backend.resumeReceiving()
        rig.sendToGuest(3)
        #expect(rig.guestNumbers(1) == [3])
    }

    /// Under a flood, with the thread in its turn most of the time.
    @Test("A busy back end lets go at once")
    func busy() throws {
        let rig = try #require(try TapRig.make())
        let isOver = Atomic<Bool>(false)
        // How many frames the guest got during each hand-over.
        let frames = try withoutActuallyEscaping({ @Sendable () -> Void in
            while !isOver.load(ordering: .relaxed) {
                for number in UInt8(0)..<16 { rig.sendToGuest(number) }
                HostClock.sleep(nanoseconds: 1_000_000)
            }
        }) { body -> [UInt64] in
            let thread = try HostThread(name: "flood", body)
            defer {
                isOver.store(true, ordering: .relaxed)
                thread.join()
            }
            let end = HostClock.monotonicNanoseconds + 60_000_000_000
            while rig.guest.waiting == 0, HostClock.monotonicNanoseconds < end { HostClock.sleep(nanoseconds: 100_000) }
            let backend = rig.guest.backend
            let begin = HostClock.monotonicNanoseconds
            defer { #expect(HostClock.monotonicNanoseconds - begin < 10_000_000_000) }
            return (0..<200).map { _ in
                let before = backend.statistics.receivedFrames
                backend.handOver { _, _ in true }
                let after = backend.statistics.receivedFrames
                backend.takeBack()
                return after - before
            }
        }
        #expect(rig.guest.waiting > 0)
        // No more than what is left of one turn (TapTransport.framesPerTurn). Not each time: a busy host may stop this
        // thread between the look and the call.
        let atOnce = frames.count { $0 <= 64 }
        #expect(atOnce >= 100, "\(frames)")
    }

    @Test("vhost=on without the device says so, and auto goes on without it")
    func unavailable() throws {
        guard !exists(VhostNet.path) else { return }
        let outcome = try inNewNetwork {
            let error = #expect(throws: NetworkError.self) {
                _ = try NetworkConfiguration(.tap(TapConfiguration(.name("mt0"), vhost: .required))).open { _ in }
            }
            #expect(error == .vhostUnavailable(name: "mt0", reason: "No such file or directory"))
            let backend = try NetworkConfiguration(.tap(.name("mt0"))).open { _ in }
            defer { backend.close() }
            return backend.vhost == nil
        }
        #expect(outcome == true)
    }

    @Test("vhost=on with what it would pass by")
    func excluded() throws {
        var configuration = NetworkConfiguration(.tap(TapConfiguration(.name("mt0"), vhost: .required)))
        configuration.capturePath = "/nowhere/x"
        let error = #expect(throws: NetworkError.self) { _ = try configuration.open { _ in } }
        #expect(
            error?.description
                == "vhost=on does not go with a capture: frames in the kernel do not pass here; leave out one of the two"
        )
    }
}

private enum CardFrame {
    static let broadcast = TestGuest.broadcast + TestGuest.mac + [0x88, 0xB5] + [UInt8](repeating: 7, count: 50)
}
