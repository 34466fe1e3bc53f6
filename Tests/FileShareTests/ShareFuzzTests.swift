import Fuzzing
import Host
import Testing

@testable import FileShare

#if canImport(Glibc)
    import Glibc
#endif

@Suite("Hostile guests of a share")
struct ShareFuzzTests {
    private static let names = [
        "..", ".", "../secret", "/etc/passwd", "a", "b", "dir", "dir/..", "link", "up", "fifo", "deep", "secret",
        "outside",
        "", "a\u{0}b", String(repeating: "n", count: 255), String(repeating: "n", count: 300), "\u{FF}\u{FE}", "user.x",
        "security.capability", "../../../../../../etc/passwd",
    ]

    /// What is likely to be something.
    private static func field(_ generator: inout SeededGenerator) -> UInt64 {
        switch generator.next() % 10 {
        case 0: .max - generator.next() % 8
        case 1: generator.next()
        case 2: UInt64(Int64.max) - generator.next() % 8
        case 3: 1 << (generator.next() % 64)
        default: generator.next() % 40
        }
    }

    private static func request(_ generator: inout SeededGenerator) -> [UInt8] {
        var opcode = UInt32(generator.next() % 53)
        // Much is found, made and moved; little begins anew.
        if generator.next() % 3 == 0 { opcode = [1, 6, 9, 14, 35, 44, 45, 12][Int(generator.next() % 8)] }
        if opcode == 26 || opcode == 38, generator.next() % 8 != 0 { opcode = 1 }
        var body: [UInt8] = []
        for _ in 0..<(generator.next() % 9) {
            let value = field(&generator)
            let size = generator.next() % 2 == 0 ? 4 : 8
            for index in 0..<size { body.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
        }
        // What makes most operations whole: their numbers, then names.
        let sizes: [UInt32: Int] = [8: 16, 9: 8, 12: 8, 13: 8, 35: 16, 45: 16, 1: 0, 6: 0, 10: 0, 11: 0, 21: 8, 22: 8]
        if let size = sizes[opcode], generator.next() % 4 != 0 {
            body = Array((body + [UInt8](repeating: 0, count: size)).prefix(size))
            if opcode == 12 || opcode == 45 || opcode == 13 { body[0] = UInt8(generator.next() % 12) }
            if size >= 8, opcode != 8 { for index in 1..<8 { body[index] = 0 } }
        }
        for _ in 0..<(generator.next() % 3) {
            body += Array(names[Int(generator.next() % UInt64(names.count))].utf8) + [0]
        }
        if generator.next() % 8 == 0 { body += [UInt8](repeating: 0x41, count: Int(generator.next() % 3000)) }
        let node = generator.next() % 4 == 0 ? field(&generator) : generator.next() % 12
        let length = generator.next() % 12 == 0 ? field(&generator) : UInt64(40 + body.count)
        let header = Arguments().u32(UInt32(truncatingIfNeeded: length), opcode).u64(generator.next(), node)
            .u32(0, 0, 1, 0).bytes
        let whole = header + body
        return generator.next() % 20 == 0 ? Array(whole.prefix(Int(generator.next() % 60))) : whole
    }

    @Test("Requests full of noise reach nothing outside", .timeLimit(.minutes(10)))
    func requests() throws {
        for seed in FuzzSeeds(seconds: 2) {
            var generator = SeededGenerator(seed: seed)
            let folder = Folder()
            mkdir(folder.host("dir"), 0o755)
            mkdir(folder.host("dir/deep"), 0o755)
            folder.make("a", "content")
            symlink("../outside", folder.host("link"))
            symlink("..", folder.host("up"))
            mkfifo(folder.host("fifo"), 0o644)
            let share = try FileShare(
                path: folder.path, isReadOnly: generator.next() % 4 == 0, nodeLimit: 200, descriptorLimit: 20,
                handleLimit: 30)
            _ = ShareClient(share).initialize()
            let secret = Array(Folder.secret.utf8)
            for _ in 0..<600 {
                let limit = generator.next() % 6 == 0 ? Int(generator.next() % 64) : 4096
                let buffers = TestBuffers(Self.request(&generator), replyLimit: limit)
                switch share.serve(buffers) {
                case .done(let written):
                    #expect(written <= limit)
                    let bytes = buffers.bytes(written)
                    if written > 0 { #expect(number(bytes, 0, 4) == UInt64(written)) }
                    #expect(!bytes.contains(sequence: secret))
                case .waits(let wait): wait.whenDone { _ in }
                case .malformed: break
                }
            }
            let snapshot = share.save()
            #expect(share.nodes.counts.descriptors <= 25 && share.handles.count <= 30)
            share.reset()
            #expect(share.restore(snapshot) != nil)
            #expect(folder.isOutsideUntouched)
        }
    }
}

extension [UInt8] {
    fileprivate func contains(sequence: [UInt8]) -> Bool {
        guard count >= sequence.count, let first = sequence.first else { return false }
        return indices.dropLast(sequence.count - 1).contains { self[$0] == first && self[$0...].starts(with: sequence) }
    }
}
