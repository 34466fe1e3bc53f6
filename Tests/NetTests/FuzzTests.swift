import Fuzzing
import Glibc
import Host
import HostNetwork
import Testing

@testable import Net

/// Frames of every kind that the filter, the offloads and libslirp know, and what becomes of them when bytes change.
private struct FrameFuzzer {
    var random: SeededGenerator
    private static let hosts: [UInt32] = [
        0x0A00_0202, 0x0A00_0203, 0x0A00_020F, 0x7F00_0001, 0xC000_0201, .max, 0, 0xE000_00FB,
    ]
    private static let ports: [UInt16] = [53, 67, 68, 69, 7, 80, 0, .max]

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    mutating func frame() -> [UInt8] {
        var frame = whole()
        switch UInt.random(in: 0..<8, using: &random) {
        case 0: frame = Array(frame.prefix(Int.random(in: 0...frame.count, using: &random)))
        case 1: frame += bytes(200)
        default: break
        }
        for _ in 0..<Int.random(in: 0..<4, using: &random) where !frame.isEmpty {
            // Mostly in the headers, where it matters.
            let limit = Bool.random(using: &random) ? min(frame.count, 64) : frame.count
            frame[Int.random(in: 0..<limit, using: &random)] = UInt8.random(in: 0...255, using: &random)
        }
        if Bool.random(using: &random) { repairChecksum(&frame) }
        return frame
    }

    mutating func header() -> VirtualNetworkHeader {
        VirtualNetworkHeader(bytes(12, exactly: true)).map { header in
            var header = header
            if Bool.random(using: &random) {
                header.segmentation = [0, 1, 4, 5, 0x81, 0x84].randomElement(using: &random) ?? 0
                header.checksumStart = 34
                header.checksumOffset = [6, 16].randomElement(using: &random) ?? 6
                header.segmentSize = UInt16.random(in: 0...2000, using: &random)
            }
            return header
        } ?? VirtualNetworkHeader()
    }

    private mutating func bytes(_ limit: Int, exactly: Bool = false) -> [UInt8] {
        let count = exactly ? limit : Int.random(in: 0...limit, using: &random)
        return (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    }

    private mutating func whole() -> [UInt8] {
        let to = Self.hosts.randomElement(using: &random) ?? 0
        let port = Self.ports.randomElement(using: &random) ?? 0
        let ethernet = TestGuest.broadcast + TestGuest.mac
        let ports = big(UInt16.random(in: 1...2000, using: &random)) + big(port)
        let fragment: UInt16 = [0, 0, 0, 0x2000, 0x2001, 1, 0x1FFF, 0x4000, 0x8000].randomElement(using: &random) ?? 0
        switch UInt.random(in: 0..<10, using: &random) {
        case 0:
            return ethernet + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + TestGuest.mac + big(0x0A00_020F as UInt32) + [
                0, 0, 0, 0, 0, 0,
            ] + big(to)
        case 1, 2:
            let flags: UInt8 = [2, 0x10, 0x18, 0x11, 4, 0x12, 0xFF].randomElement(using: &random) ?? 2
            let body = ports + bytes(8, exactly: true) + [0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0] + bytes(1400)
            return TestGuest.ipv4(6, from: 0x0A00_020F, to: to, checked(body, 16, 6, to), fragment: fragment)
        case 3, 4:
            let payload = bytes(1400)
            let body = ports + big(UInt16(8 + payload.count)) + [0, 0] + payload
            return TestGuest.ipv4(17, from: 0x0A00_020F, to: to, checked(body, 6, 17, to), fragment: fragment)
        case 5:
            let query = TestGuest.query("host.martlet.internal")
            let body = big(UInt16(9)) + big(UInt16(53)) + big(UInt16(8 + query.count)) + [0, 0] + query
            return TestGuest.ipv4(17, from: 0x0A00_020F, to: 0x0A00_0203, body)
        case 6:
            let message: [UInt8] =
                [1, 1, 6, 0, 1, 2, 3, 4] + [UInt8](repeating: 0, count: 228) + [0x63, 0x82, 0x53, 0x63, 53, 1, 1]
                + bytes(60)
            let body = big(UInt16(68)) + big(UInt16(67)) + big(UInt16(8 + message.count)) + [0, 0] + message
            return TestGuest.ipv4(17, from: 0, to: .max, body)
        case 7: return TestGuest.ipv4(1, from: 0x0A00_020F, to: to, [8, 0, 0, 0] + bytes(1400), fragment: fragment)
        case 8:
            let next: UInt8 = [6, 17, 58, 0, 44].randomElement(using: &random) ?? 6
            let body =
                [[133, 0], [135, 0], [128, 0], [0, 9, 0, 53]].randomElement(using: &random).map { $0 + bytes(200) }
                ?? []
            let target: [UInt8] =
                [[0xFE, 0xC0], [0xFF, 2], [0xFE, 0x80], [0x20, 1]].randomElement(using: &random) ?? []
            return ethernet + [0x86, 0xDD, 0x60, 0, 0, 0] + big(UInt16(body.count)) + [next, 255, 0xFE, 0xC0]
                + [UInt8](repeating: 0, count: 13) + [15] + target + [UInt8](repeating: 0, count: 13) + [2] + body
        default: return ethernet + bytes(2, exactly: true) + bytes(100)
        }
    }

    private func checked(_ body: [UInt8], _ field: Int, _ number: UInt8, _ to: UInt32) -> [UInt8] {
        TestGuest.withChecksum(body, at: field, number, from: 0x0A00_020F, to: to)
    }

    /// So that what follows the IP header is looked at.
    private func repairChecksum(_ frame: inout [UInt8]) {
        guard frame.count >= 34, frame[12] == 8, frame[13] == 0 else { return }
        let size = Int(frame[14] & 0xF) * 4
        guard size >= 20, frame.count >= 14 + size else { return }
        frame[24] = 0
        frame[25] = 0
        let sum = onesComplement(Array(frame[14..<14 + size]))
        frame[24] = UInt8(sum >> 8)
        frame[25] = UInt8(sum & 0xFF)
    }
}

private func openDescriptors() -> Int {
    (0..<1024).filter { fcntl(Int32($0), F_GETFD) >= 0 }.count
}

/// Nothing that a guest sends may trap, pass the policy by a trick, or leave something behind.
@Suite(.serialized) struct FuzzTests {
    @Test func offloads() {
        for seed in FuzzSeeds(seconds: 2) {
            var fuzzer = FrameFuzzer(seed: seed)
            for _ in 0..<50 {
                let frame = fuzzer.frame()
                guard let frames = try? SoftwareOffload.frames(of: frame, fuzzer.header()) else { continue }
                let total = frames.reduce(0) { $0 + $1.count }
                #expect(
                    frames.count <= SoftwareOffload.maximumSegments && total <= frame.count * (frames.count + 1),
                    "\(seed)")
            }
        }
    }

    /// Under `none` only ARP and requests for a lease pass, whatever the rest of the frame says.
    @Test func policies() {
        for seed in FuzzSeeds(seconds: 2) {
            var fuzzer = FrameFuzzer(seed: seed)
            var none = EgressFilter(.none, hasIPv6: false, publishedUDPPorts: [], log: { _, _ in })
            var host = EgressFilter(.host, hasIPv6: true, publishedUDPPorts: [], log: { _, _ in })
            for _ in 0..<50 {
                var frame = fuzzer.frame()
                _ = host.examine(frame)
                host.noteInbound(fuzzer.frame())
                switch none.examine(frame) {
                case .forward: break
                case .forwardWhole(let whole): frame = whole
                default: continue
                }
                let isARP = frame.count >= 42 && frame[12] == 8 && frame[13] == 6
                let size = frame.count > 14 ? Int(frame[14] & 0xF) * 4 : 0
                let isLease =
                    frame.count >= 14 + size + 8 && frame[23] == 17 && frame.bigEndian16(at: 14 + size + 2) == 67
                    && frame.bigEndian16(at: 20) & 0xBFFF == 0
                    && [0x0A00_0202, UInt32.max].contains(frame.bigEndian32(at: 30))
                #expect(isARP || isLease, "seed \(seed): \(frame)")
            }
        }
    }

    /// libslirp itself, with every door open, in a network from which nothing can get out.
    @Test(.enabled(if: canMakeNetworks, "needs the right to make network namespaces")) func libslirp() throws {
        let before = openDescriptors()
        _ = try inNewNetwork { for seed in FuzzSeeds(seconds: 2) { try FuzzTests.useStack(seed) } }
        // Other tests run meanwhile and have some open; one for each of some thousand connections would stay.
        let end = HostClock.monotonicNanoseconds + 120_000_000_000
        while openDescriptors() >= before + 100, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 10_000_000)
        }
        #expect(openDescriptors() < before + 100)
    }

    /// In a process of its own, because descriptors are counted by process: nothing else has any there.
    @Test(.enabled(if: canMakeNetworks, "needs the right to make network namespaces"))
    func libslirpLeavesNothingOpen() async {
        await #expect(processExitsWith: .success) {
            // What is opened once stays.
            _ = try inNewNetwork { try FuzzTests.useStack(1) }
            let before = openDescriptors()
            _ = try inNewNetwork { for seed in UInt64(2)...31 { try FuzzTests.useStack(seed) } }
            let after = openDescriptors()
            #expect(after < before + 10, "\(before), then \(after)")
        }
    }

    private static func useStack(_ seed: UInt64) throws {
        var fuzzer = FrameFuzzer(seed: seed)
        // Each has a port of its own: a process that another test starts meanwhile holds this one's listener from its
        // fork to its exec, though it is closed here.
        let port = UInt16(1000 + seed % 30_000)
        let user = UserConfiguration(
            egress: .all, publishedPorts: [PublishedPort(hostPort: port, guestPort: 80)], hasIPv6: true)
        var output = 0
        let stack = try SlirpStack(user, mtu: 1500) { output += $0.count }
        var filter = EgressFilter(.all, hasIPv6: true, publishedUDPPorts: [], log: { _, _ in })
        for _ in 0..<300 {
            let frame = fuzzer.frame()
            switch filter.examine(frame) {
            case .forward: stack.input(frame)
            case .forwardWhole(let whole): stack.input(whole)
            default: break
            }
            var poll = PollSet()
            _ = stack.prepare(&poll)
            poll.wait(nanoseconds: 0)
            stack.advance(poll)
        }
        stack.close()
    }

    /// The whole back end: what it does not understand it counts. The guest's own lease comes first, as every guest's
    /// does: requests for others, of which there are some here by accident, can use up the rest
    /// (UserNetworkTests.sixteenLeases).
    @Test func backend() throws {
        let guest = try TestGuest(UserConfiguration(egress: .none))
        let lease = try #require(guest.lease())
        for seed in FuzzSeeds(seconds: 2) {
            var fuzzer = FrameFuzzer(seed: seed)
            for _ in 0..<50 { guest.send(fuzzer.frame(), fuzzer.header()) }
            while guest.waiting > 0 { _ = guest.next(seconds: 0.01) }
        }
        let counts = guest.backend.statistics
        #expect(counts.malformedFrames > 0 && counts.egress.refused > 0)
        #expect(guest.lease() == lease)
    }
}
