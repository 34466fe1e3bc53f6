import Glibc
import Host
import HostNetwork
import Synchronization
import Testing

@testable import Net

/// The events of a back end as lines.
final class EventLog: Sendable {
    private let lines = Mutex<[String]>([])

    func append(_ event: NetworkEvent) { lines.withLock { $0.append("\(event)") } }

    var all: [String] { lines.withLock { $0 } }

    func waitForOne() -> String? {
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while all.isEmpty, HostClock.monotonicNanoseconds < end { HostClock.sleep(nanoseconds: 1_000_000) }
        return all.count == 1 ? all[0] : nil
    }
}

@Suite struct SocketTests {
    private func pair() throws -> (TestGuest, TestGuest) {
        let (a, b) = (temporaryPath("a"), temporaryPath("b"))
        return (
            try TestGuest(NetworkConfiguration(.socket(SocketConfiguration(path: a, peer: b)))),
            try TestGuest(NetworkConfiguration(.socket(SocketConfiguration(path: b, peer: a))))
        )
    }

    private func frame(_ count: Int, _ value: UInt8) -> [UInt8] { [UInt8](repeating: value, count: count) }

    @Test func framesGoBothWays() throws {
        let (left, right) = try pair()
        left.send(frame(60, 1))
        #expect(right.next() == frame(60, 1))
        right.send(frame(65_549, 2))
        #expect(left.next() == frame(65_549, 2))
        #expect(left.backend.statistics.sentBytes == 60)
        // Counted once the card has the frame.
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while left.backend.statistics.receivedBytes == 0, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 1_000_000)
        }
        #expect(left.backend.statistics.receivedBytes == 65_549)
    }

    @Test func aFullPeerHoldsTheSenderBack() throws {
        let (left, right) = try pair()
        right.setRoom(4)
        let sender = try HostThread(name: "sender") {
            for value in 0..<2000 { left.send(self.frame(1000, UInt8(truncatingIfNeeded: value))) }
        }
        for value in 0..<2000 { #expect(right.next() == frame(1000, UInt8(truncatingIfNeeded: value))) }
        sender.join()
        #expect(left.sendWakeups > 0 && right.refusals > 0)
    }

    @Test func largeSegmentsAreCut() throws {
        let (left, right) = try pair()
        left.address = 0x0A00_0001
        var header = VirtualNetworkHeader()
        header.segmentation = VirtualNetworkHeader.Segmentation.udp
        header.segmentSize = 100
        left.send(left.udp(to: 0x0A00_0002, port: 9, frame(250, 5)), header)
        #expect((0..<3).map { _ in right.next()?.count } == [142, 142, 92])
    }

    @Test func thePeerMayComeLaterAndComeBack() throws {
        let (a, b) = (temporaryPath("a"), temporaryPath("b"))
        let left = try TestGuest(NetworkConfiguration(.socket(SocketConfiguration(path: a, peer: b))))
        #expect(left.backend.send(frame(60, 1)) == .dropped)
        #expect(left.backend.statistics.undeliverableFrames == 1)
        for value: UInt8 in [2, 3] {
            let right = try TestGuest(NetworkConfiguration(.socket(SocketConfiguration(path: b, peer: a))))
            var received: [UInt8]?
            for _ in 0..<600 where received == nil {
                _ = left.backend.send(frame(60, value))
                received = right.next(seconds: 0.1)
            }
            #expect(received == frame(60, value))
            right.backend.close()
            #expect(!exists(b))
        }
    }

    @Test func aStrangerIsRefused() throws {
        let (left, right) = try pair()
        left.send(frame(60, 1))
        #expect(right.next() == frame(60, 1))
        right.send(frame(60, 2))
        #expect(left.next() == frame(60, 2))
        let path = temporaryPath("c")
        guard left.backend.name.hasPrefix("socket ") else { return }
        let target = String(left.backend.name.dropFirst(7))
        let stranger = try TestGuest(NetworkConfiguration(.socket(SocketConfiguration(path: path, peer: target))))
        #expect(stranger.backend.send(frame(60, 3)) == .dropped)
        #expect(left.next(seconds: 0.2) == nil)
    }

    @Test func pathsInUseAreNamed() throws {
        let (a, b) = (temporaryPath("a"), temporaryPath("b"))
        let configuration = NetworkConfiguration(.socket(SocketConfiguration(path: a, peer: b)))
        let first = try TestGuest(configuration)
        #expect(throws: NetworkError.socketUnusable(path: a, reason: "Address already in use")) {
            _ = try configuration.open { _ in }
        }
        var mode = stat()
        #expect(stat(a, &mode) == 0 && mode.st_mode & 0o777 == 0o600)
        withExtendedLifetime(first) {}
        // A file that is no socket is nobody's to remove.
        try FileDescriptor.open(b, .create).write([1])
        defer { unlink(b) }
        #expect(throws: NetworkError.socketUnusable(path: b, reason: "Address already in use")) {
            _ = try NetworkConfiguration(.socket(SocketConfiguration(path: b, peer: a))).open { _ in }
        }
        #expect(exists(b))
    }

    @Test func noneTakesEverythingAndGivesNothing() throws {
        let guest = try TestGuest(NetworkConfiguration(.none))
        #expect(guest.backend.send(frame(60, 1)) == .dropped)
        #expect(guest.backend.statistics.undeliverableFrames == 1)
        #expect(guest.next(seconds: 0.05) == nil)
    }
}
