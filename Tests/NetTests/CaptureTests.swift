import Glibc
import Host
import HostNetwork
import Testing

@testable import Net

@Suite struct CaptureTests {
    private func guest(capturing path: String, _ log: EventLog = EventLog()) throws -> TestGuest {
        var configuration = NetworkConfiguration(.user(UserConfiguration(egress: .host)))
        configuration.capturePath = path
        configuration.name = "lan"
        return try TestGuest(configuration, log: log.append)
    }

    /// The bytes of one packet block, by the draft's own layout.
    @Test func blocksAreLaidOut() {
        let block = CaptureBlocks.packet([1, 2, 3, 4, 5], .outbound, nanoseconds: 0x0102_0304_0506_0708)
        let expected: [UInt8] =
            [6, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 5, 0, 0, 0]
            + [1, 2, 3, 4, 5, 0, 0, 0] + [2, 0, 4, 0, 2, 0, 0, 0] + [0, 0, 0, 0] + [52, 0, 0, 0]
        #expect(block == expected)
        #expect(
            CaptureBlocks.sectionHeader().prefix(12) == [0x0A, 0x0D, 0x0D, 0x0A, 44, 0, 0, 0, 0x4D, 0x3C, 0x2B, 0x1A])
    }

    @Test(.enabled(if: has("tshark") && has("capinfos"), "needs tshark and capinfos (Debian: tshark)"))
    func wiresharkReadsIt() throws {
        let path = temporaryPath("capture.pcapng")
        defer { unlink(path) }
        let before = HostClock.realtimeNanoseconds / 1_000_000_000
        let guest = try guest(capturing: path)
        #expect(guest.lease() != nil)
        #expect(guest.resolve("host.martlet.internal") != nil)
        guest.send(guest.udp(to: 0xC000_0201, port: 80, [0]))
        #expect(guest.icmp() != nil)
        guest.backend.close()
        let after = HostClock.realtimeNanoseconds / 1_000_000_000
        let info = shell("capinfos -M -c -I -t \(path)")
        #expect(info.status == 0, "\(info.output)")
        #expect(info.output.contains("pcapng") && info.output.contains("Name = lan"), "\(info.output)")
        #expect(info.output.contains("nanoseconds (9)"), "\(info.output)")
        let fields = shell(
            "tshark -r \(path) -T fields -e frame.time_epoch -e frame.packet_flags_direction -e _ws.col.Protocol 2>/dev/null"
        )
        let lines = fields.output.split(separator: "\n").sorted().map { $0.split(separator: "\t") }
        let protocols = lines.compactMap { $0.count == 3 ? String($0[2]) : nil }.filter { $0 != "ARP" }
        #expect(
            protocols == ["DHCP", "DHCP", "DHCP", "DHCP", "DNS", "DNS", "UDP", "ICMP"], "\(fields.output)")
        let first = try #require(lines.first?.first.flatMap { $0.split(separator: ".").first }.flatMap { UInt64($0) })
        #expect(first >= before && first <= after)
        #expect(!shell("tshark -r \(path) -V 2>&1").output.contains("Malformed"))
    }

    @Test func aDiskThatIsFullAtOnce() {
        #expect(throws: NetworkError.captureUnusable(path: "/dev/full", reason: "No space left on device")) {
            _ = try self.guest(capturing: "/dev/full")
        }
    }

    @Test(.enabled(if: getuid() == 0, "needs the right to mount a small file system"))
    func aFullDiskIsToldOnce() throws {
        let directory = temporaryPath("disk")
        guard shell("mkdir \(directory) && mount -t tmpfs -o size=8k none \(directory)").status == 0 else {
            rmdir(directory)
            try Test.cancel("cannot mount a small file system here")
        }
        defer { _ = shell("umount \(directory); rmdir \(directory)") }
        let log = EventLog()
        let path = "\(directory)/full.pcapng"
        let guest = try guest(capturing: path, log)
        for _ in 0..<40 { #expect(guest.lease() != nil) }
        #expect(
            log.all == [
                "lan: Capture into \(path) stopped: No space left on device. The machine goes on; free some space and "
                    + "capture again"
            ])
        // Only whole blocks are in it.
        if has("capinfos") {
            let info = shell("capinfos -c \(path)")
            #expect(info.status == 0, "\(info.output)")
        }
    }

    @Test func thePathIsNamed() {
        #expect(throws: NetworkError.captureUnusable(path: "/nonexistent/x", reason: "No such file or directory")) {
            _ = try self.guest(capturing: "/nonexistent/x")
        }
    }
}
