import HostNetwork
import Testing

@testable import Net

@Suite struct OffloadTests {
    /// RFC 1071 §3's own example, and a well-known IPv4 header.
    @Test(
        arguments: [
            ([0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7], UInt16(0x220D)),
            ([0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xC0, 0xA8, 0, 1, 0xC0, 0xA8, 0, 0xC7], 0xB861),
            ([], 0xFFFF), ([0xFF], 0x00FF), ([0xFF, 0xFF], 0),
        ] as [([UInt8], UInt16)])
    func checksums(bytes: [UInt8], expected: UInt16) {
        var sum = InternetChecksum()
        sum.add(bytes[...])
        #expect(sum.value == expected)
        #expect(onesComplement(bytes) == expected)
    }

    private func partialDatagram(_ payload: [UInt8]) -> (frame: [UInt8], header: VirtualNetworkHeader) {
        let body = big(UInt16(1)) + big(UInt16(2)) + big(UInt16(8 + payload.count)) + [0, 0] + payload
        var header = VirtualNetworkHeader()
        header.flags = VirtualNetworkHeader.Flag.needsChecksum
        header.checksumStart = 34
        header.checksumOffset = 6
        let udp = TestGuest.withPseudoChecksum(body, at: 6, 17, from: 1 << 24, to: 2 << 24)
        return (TestGuest.ipv4(17, from: 1 << 24, to: 2 << 24, udp), header)
    }

    @Test(arguments: [0, 1, 2, 999, 1400])
    func checksumsAreCompleted(count: Int) throws {
        let payload = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        let (frame, header) = partialDatagram(payload)
        // With padding behind the packet, which is not summed.
        let result = try SoftwareOffload.frames(of: frame + [9, 9, 9], header)
        let body = big(UInt16(1)) + big(UInt16(2)) + big(UInt16(8 + count)) + [0, 0] + payload
        let expected = TestGuest.withChecksum(body, at: 6, 17, from: 1 << 24, to: 2 << 24)
        #expect(result == [TestGuest.ipv4(17, from: 1 << 24, to: 2 << 24, expected) + [9, 9, 9]])
    }

    @Test func aZeroChecksumIsWrittenAsOnes() throws {
        // The payload that makes the sum FFFF.
        let (probe, header) = partialDatagram([0, 0])
        let sum = try SoftwareOffload.frames(of: probe, header)[0].bigEndian16(at: 40)
        let (frame, _) = partialDatagram(big(sum))
        #expect(try SoftwareOffload.frames(of: frame, header)[0].bigEndian16(at: 40) == 0xFFFF)
    }

    @Test(
        arguments: [
            (13, 0), (0, 6), (34, 2000), (1500, 0), (65_535, 65_535), (41, 7),
        ] as [(UInt16, UInt16)])
    func placesOutsideTheFrame(start: UInt16, offset: UInt16) {
        var (frame, header) = partialDatagram([1])
        header.checksumStart = start
        header.checksumOffset = offset
        if Int(start) + Int(offset) + 2 <= frame.count, start >= 14 { frame.removeLast(20) }
        #expect(throws: OffloadError.checksumOutsideFrame) { _ = try SoftwareOffload.frames(of: frame, header) }
    }

    @Test func impossibleSegmentations() {
        let (frame, _) = partialDatagram([UInt8](repeating: 0, count: 4000))
        func error(_ segmentation: UInt8, _ size: UInt16, _ frame: [UInt8]) -> OffloadError? {
            var header = VirtualNetworkHeader()
            header.segmentation = segmentation
            header.segmentSize = size
            do {
                _ = try SoftwareOffload.frames(of: frame, header)
                return nil
            } catch { return error }
        }
        #expect(error(VirtualNetworkHeader.Segmentation.udp, 0, frame) == .segmentSize(0))
        #expect(error(VirtualNetworkHeader.Segmentation.udp, 1, frame) == .segmentSize(1))
        #expect(error(VirtualNetworkHeader.Segmentation.udp, 3, frame) == nil)
        #expect(error(VirtualNetworkHeader.Segmentation.tcp4, 1000, frame) == .notSegmentable)
        #expect(error(VirtualNetworkHeader.Segmentation.tcp6, 1000, frame) == .notSegmentable)
        // UFO, the fragmentation that nobody offers any more.
        #expect(error(3, 1000, frame) == .unknownSegmentation(3))
        let fragment = TestGuest.ipv4(17, from: 1, to: 2, [UInt8](repeating: 0, count: 100), fragment: 0x2000)
        #expect(error(VirtualNetworkHeader.Segmentation.udp, 50, fragment) == .notSegmentable)
        #expect(error(VirtualNetworkHeader.Segmentation.udp, 50, []) == .notSegmentable)
    }

    @Test func headersAreReadAsWritten() throws {
        var header = VirtualNetworkHeader()
        header.flags = 1
        header.segmentation = 0x81
        header.headerLength = 0x1122
        header.segmentSize = 0x3344
        header.checksumStart = 0x5566
        header.checksumOffset = 0x7788
        header.bufferCount = 0x99AA
        #expect(header.bytes == [1, 0x81, 0x22, 0x11, 0x44, 0x33, 0x66, 0x55, 0x88, 0x77, 0xAA, 0x99])
        #expect(VirtualNetworkHeader(header.bytes) == header)
        #expect(VirtualNetworkHeader([UInt8](repeating: 0, count: 11)) == nil)
    }
}

@Suite struct SegmentCoalescerTests {
    /// A segment of a stream, as libslirp sends them.
    private func segment(
        _ sequence: UInt32, _ payload: [UInt8], flags: UInt8 = TCPFlag.ack, acknowledged: UInt32 = 7,
        identification: UInt16 = 0
    ) -> [UInt8] {
        let body =
            big(UInt16(80)) + big(UInt16(40_000)) + big(sequence) + big(acknowledged) + [0x50, flags]
            + big(UInt16.max) + [0, 0, 0, 0] + payload
        var frame = TestGuest.ipv4(
            6, from: 0x0A00_0202, to: 0x0A00_020F,
            TestGuest.withChecksum(body, at: 16, 6, from: 0x0A00_0202, to: 0x0A00_020F))
        frame.setBigEndian(identification, at: 18)
        frame.setBigEndian(UInt16(0), at: 24)
        frame.setBigEndian(onesComplement(Array(frame[14..<34])), at: 24)
        return frame
    }

    /// A stream in full segments and a rest, from just below the end of sequence numbers on: joined it is one frame, which
    /// cut again (by what is compared with Scapy) is what it was.
    @Test(arguments: [2, 3, 17, 44], [1, 1000, 1460])
    func joinedAndCutAgain(count: Int, rest: Int) throws {
        var frames: [[UInt8]] = []
        for index in 0..<count {
            let size = index == count - 1 ? rest : 1460
            let payload = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ index) }
            frames.append(
                segment(
                    4_294_967_000 &+ UInt32(index * 1460), payload,
                    flags: index == count - 1 ? TCPFlag.ack | TCPFlag.psh : TCPFlag.ack,
                    identification: UInt16(truncatingIfNeeded: 65_530 + index)))
        }
        var joined = SegmentCoalescer(frames[0], header: VirtualNetworkHeader())
        for frame in frames.dropFirst() {
            let isJoined = joined.append(frame)
            #expect(isJoined)
        }
        joined.finish()
        #expect(joined.header.segmentation == VirtualNetworkHeader.Segmentation.tcp4)
        #expect(try SoftwareOffload.frames(of: joined.frame, joined.header) == frames)
        // As a guest that does not cut completes it, and what libslirp would be given.
        var completed = joined.frame
        try SoftwareOffload.completeChecksum(of: &completed, start: 34, offset: 16)
        #expect(SoftwareOffload.whole(joined.frame, joined.header) == completed)
    }

    @Test func whatDoesNotFollowIsNotJoined() {
        let full = [UInt8](repeating: 1, count: 100)
        let first = segment(1000, full)
        var strangers = [
            segment(1100, full, flags: TCPFlag.ack | TCPFlag.fin), segment(1099, full), segment(1200, full),
            segment(1100, []), segment(1100, full + [1]), segment(1100, full, acknowledged: 8), Array(first.prefix(54)),
            Array(first.prefix(20)), segment(1100, full) + [0],
        ]
        // One byte of its headers is another one: all but lengths, checksums and identification count.
        for offset in 0..<54 where ![16, 17, 18, 19, 24, 25, 50, 51].contains(offset) {
            var other = segment(1100, full)
            other[offset] ^= 0x20
            strangers.append(other)
        }
        for (index, stranger) in strangers.enumerated() {
            var segment = SegmentCoalescer(first, header: VirtualNetworkHeader())
            let isJoined = segment.append(stranger)
            #expect(!isJoined, "\(index)")
            segment.finish()
            #expect(segment.frame == first && segment.header == VirtualNetworkHeader())
        }
        // A short one and one with PSH are the last of theirs, and 64 KiB are the end.
        for last in [segment(1100, Array(full.dropLast())), segment(1100, full, flags: TCPFlag.ack | TCPFlag.psh)] {
            var joined = SegmentCoalescer(first, header: VirtualNetworkHeader())
            let outcomes = [joined.append(last), joined.append(segment(1200, full))]
            #expect(outcomes == [true, false])
        }
        var large = SegmentCoalescer(segment(0, [UInt8](repeating: 0, count: 1460)), header: VirtualNetworkHeader())
        var count = 1
        while large.append(segment(UInt32(count * 1460), [UInt8](repeating: 0, count: 1460))) { count += 1 }
        #expect(count == 44)
    }
}

/// Segmentation against Scapy, which builds each segment from nothing but its fields.
@Suite(.enabled(if: hasScapy, "needs Scapy (Debian: python3-scapy)")) struct ScapyTests {
    private struct Case {
        var name: String
        /// A Scapy packet without payload.
        var headers: String
        var segmentation: UInt8
        /// What the last header of each segment gets, in Python, with i, last and offset.
        var change: String
    }

    private static let tcpChange =
        "p[TCP].seq=(big[TCP].seq+offset)%2**32; p[TCP].flags=FlagValue(int(big[TCP].flags)&~(0 if last else 9)"
        + "&~(0x80 if i else 0),p[TCP].flags.names)"

    private static let cases = [
        Case(
            name: "tcp4",
            headers: "IP(src='10.0.0.1',dst='10.0.0.2',id=65535,flags='DF')/TCP(sport=1,dport=2,seq=4294967000,ack=7,"
                + "flags='FPAC',window=500)",
            segmentation: VirtualNetworkHeader.Segmentation.tcp4 | VirtualNetworkHeader.Segmentation.ecn,
            change: "p[IP].id=(big[IP].id+i)%65536; " + tcpChange),
        Case(
            name: "tcp4 with options",
            headers:
                "IP(src='10.0.0.1',dst='10.0.0.2',id=3,options=IPOption_NOP())/TCP(sport=1,dport=2,seq=5,flags='PA',"
                + "options=[('Timestamp',(1,2)),('NOP',None),('NOP',None)])",
            segmentation: VirtualNetworkHeader.Segmentation.tcp4,
            change: "p[IP].id=(big[IP].id+i)%65536; " + tcpChange),
        Case(
            name: "tcp6", headers: "IPv6(src='fd00::1',dst='fd00::2')/TCP(sport=80,dport=2,seq=9,flags='A')",
            segmentation: VirtualNetworkHeader.Segmentation.tcp6, change: tcpChange),
        Case(
            name: "udp4", headers: "IP(src='10.0.0.1',dst='10.0.0.2',id=9)/UDP(sport=1,dport=2)",
            segmentation: VirtualNetworkHeader.Segmentation.udp,
            change: "p[IP].id=(big[IP].id+i)%65536"),
        Case(
            name: "udp6", headers: "IPv6(src='fd00::1',dst='fd00::2')/UDP(sport=1,dport=2)",
            segmentation: VirtualNetworkHeader.Segmentation.udp, change: "pass"),
    ]

    private static let sizes = [(1, 1000), (1000, 1000), (1001, 1000), (20_001, 1448), (60_000, 1460), (500, 7)]

    /// One program for all cases, because Scapy takes a second to start: for each the large frame, its segments, and an
    /// empty line.
    private static var program: String {
        var program = """
            from scapy.all import *
            from scapy.fields import FlagValue
            def show(head, count, size, change):
                data=bytes((i*7+i//251)%256 for i in range(count))
                head=Ether(src='02:00:00:00:00:01',dst='02:00:00:00:00:02')/head
                big=head.copy()/data
                print(bytes(big).hex())
                chunks=[data[o:o+size] for o in range(0,len(data),size)]
                for i,c in enumerate(chunks):
                    p=head.copy()
                    change(p,big,i,i*size,i==len(chunks)-1)
                    print(bytes(p/c).hex())
                print()

            """
        for entry in cases {
            program += "def change(p,big,i,offset,last): \(entry.change)\n"
            for (payload, size) in sizes { program += "show(\(entry.headers),\(payload),\(size),change)\n" }
        }
        return program
    }

    @Test func segmentsAreScapys() throws {
        let result = shell("\(scapyPython) - <<'PROGRAM'\n\(Self.program)\nPROGRAM\n")
        try #require(result.status == 0, "\(result.output)")
        var groups = result.output.split(separator: "\n\n").map {
            $0.split(separator: "\n").compactMap { bytes(hexadecimal: $0) }
        }[...]
        for entry in Self.cases {
            for (payload, size) in Self.sizes {
                let group = groups.popFirst()
                let frames = try #require(group)
                try #require(frames.count > 1)
                var header = VirtualNetworkHeader()
                header.flags = VirtualNetworkHeader.Flag.needsChecksum
                header.segmentation = entry.segmentation
                header.segmentSize = UInt16(size)
                let segments = try SoftwareOffload.frames(of: frames[0], header)
                #expect(segments == Array(frames.dropFirst()), "\(entry.name), \(payload) in \(size)")
            }
        }
    }
}

private let scapyPython =
    ["/usr/bin/python3", "python3"].first { shell("\($0) -c 'import scapy.all'").status == 0 } ?? ""
private let hasScapy = !scapyPython.isEmpty

private func bytes(hexadecimal text: Substring) -> [UInt8]? {
    let digits = Array(text.utf8)
    guard digits.count.isMultiple(of: 2), digits.count >= 40 else { return nil }
    var result: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
        guard let byte = UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) else {
            return nil
        }
        result.append(byte)
    }
    return result
}
