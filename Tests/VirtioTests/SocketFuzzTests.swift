import Fuzzing
import Host
import Testing
import X86

@testable import Virtio

#if canImport(Glibc)
    import Glibc
#endif

@Suite("Hostile guests of the socket device")
struct SocketFuzzTests {
    @Test("Packets full of noise, with a host that speaks as well", .timeLimit(.minutes(10)))
    func packets() throws {
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let rig = try SocketRig()
            let listener = try rig.listen(port: 1)
            var ends: [Int32] = []
            defer { for end in ends + [listener] { close(end) } }
            _ = fcntl(listener, F_SETFL, O_NONBLOCK)
            for _ in 0..<300 {
                func any(_ usual: UInt64) -> UInt64 {
                    switch generator.next() % 12 {
                    case 0: generator.next()
                    case 1: .max
                    case 2: 0
                    default: usual
                    }
                }
                var packet = rig.header(
                    VsockOperation(rawValue: UInt16(generator.next() % 7 + 1)) ?? .reset,
                    guest: UInt32(generator.next() % 4), host: UInt32(generator.next() % 2 + 1))
                if generator.next() % 6 == 0 {
                    packet.targetPort = UInt32(truncatingIfNeeded: (1 << 30) + generator.next() % 9)
                }
                packet.sourceCID = any(packet.sourceCID)
                packet.targetCID = any(packet.targetCID)
                packet.type = UInt16(truncatingIfNeeded: any(1))
                packet.operation = UInt16(truncatingIfNeeded: any(UInt64(packet.operation)))
                packet.flags = UInt32(generator.next() % 4)
                packet.bufferSize = UInt32(truncatingIfNeeded: any(generator.next() % 5000))
                packet.forwarded = UInt32(truncatingIfNeeded: any(generator.next() % 5000))
                let data = [UInt8](repeating: 0x61, count: Int(generator.next() % 9000))
                packet.length = UInt32(truncatingIfNeeded: any(UInt64(data.count)))
                try rig.send(raw: Array((packet.bytes + data).prefix(Int(any(9044) % 9045))))
                let end = SocketRig.acceptOne(listener)
                if end >= 0 { ends.append(end) }
                if let end = ends.randomElement(using: &generator) {
                    switch generator.next() % 5 {
                    case 0: _ = Glibc.send(end, data, data.count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT))
                    case 1: shutdown(end, Int32(generator.next() % 3))
                    case 2:
                        ends.removeAll { $0 == end }
                        close(end)
                    default:
                        var buffer = [UInt8](repeating: 0, count: 5000)
                        _ = recv(end, &buffer, buffer.count, Int32(MSG_DONTWAIT))
                    }
                }
                if generator.next() % 20 == 0 {
                    let client = rig.connect()
                    SocketRig.write(client, "CONNECT \(generator.next() % 4)\n")
                    ends.append(client)
                }
                let used = try rig.driver.queues[0].collect()
                for packet in used { #expect(packet.written >= 44 && packet.written <= 4096) }
                if rig.driver.needsReset { try #require(rig.driver.start(features: VsockLayout.streamFeature)) }
                try rig.offer(min(used.count, rig.driver.queues[0].freeCount))
            }
            rig.driver.setStatus(0)
            try #require(rig.driver.start(features: VsockLayout.streamFeature))
            try rig.offer(4)
            try rig.send(rig.header(.request, guest: 7, host: 99))
            // A client that had to wait may come first.
            var packet = try rig.next()
            while packet.operation == .request { packet = try rig.next() }
            #expect(packet.operation == .reset && packet.header.targetPort == 7)
        }
    }
}
