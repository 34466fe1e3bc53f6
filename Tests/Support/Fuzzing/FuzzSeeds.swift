internal import Glibc

/// The seeds that a fuzz test tries: always the same few where all tests run, one after the other for a time where
/// `scripts/fuzz` runs one.
///
/// MARTLET_FUZZ_SECONDS is how long (0: one seed), MARTLET_FUZZ_SEED where to begin. The seed being tried is in the file
/// that MARTLET_FUZZ_NOTE names, and is known after a crash.
public struct FuzzSeeds: Sequence, IteratorProtocol {
    private var seed: UInt64
    /// Nil: as many as `left` says.
    private let end: Int?
    private var left: Int
    private let note: Int32?

    private init(count: Int, seconds: Int?) {
        seed = Self.setting("MARTLET_FUZZ_SEED") ?? 1
        let duration = Self.setting("MARTLET_FUZZ_SECONDS").map { Int(truncatingIfNeeded: $0 & 0xFFFF_FFFF) } ?? seconds
        end = duration.map { time(nil) + $0 }
        left = count
        note = Self.note
    }

    /// Seeds 1 to `count` where all tests run.
    public init(count: Int) { self.init(count: count, seconds: nil) }

    /// Seeds from 1 on for so many seconds where all tests run.
    public init(seconds: Int) { self.init(count: 1, seconds: seconds) }

    /// At least one.
    public mutating func next() -> UInt64? {
        if left <= 0, end.map({ time(nil) >= $0 }) ?? true { return nil }
        left -= 1
        writeNote()
        defer { seed &+= 1 }
        return seed
    }

    // MARK: For after a crash

    /// Never closed: for the whole process.
    private static let note: Int32? = getenv("MARTLET_FUZZ_NOTE").flatMap {
        let file = open($0, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
        return file < 0 ? nil : file
    }

    private func writeNote() {
        guard let note else { return }
        var text = Array("\(seed)".utf8)
        while text.count < 20 { text.append(0x20) }
        text.append(0x0A)
        _ = pwrite(note, text, text.count, 0)
    }

    private static func setting(_ name: String) -> UInt64? { getenv(name).map { UInt64(strtoull($0, nil, 0)) } }
}
