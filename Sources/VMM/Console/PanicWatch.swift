/// Reads along on the console for a Linux kernel's last words (kernel/panic.c).
public struct PanicWatch: Sendable {
    private static let marker = Array("Kernel panic - not syncing: ".utf8)
    private static let endMarker = Array("---[ end Kernel panic".utf8)
    private static let maximumLine = 400

    private var line: [UInt8] = []

    /// Why the kernel panicked, in its own words.
    public private(set) var reason: String?
    /// The kernel has printed everything and hangs: nothing more will come.
    public private(set) var hasEnded = false

    public init() {}

    public mutating func receive(_ bytes: some Sequence<UInt8>) {
        for byte in bytes {
            if byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r") {
                endLine()
            } else if line.count < Self.maximumLine {
                line.append(byte)
            }
        }
    }

    private mutating func endLine() {
        defer { line.removeAll(keepingCapacity: true) }
        if reason == nil, let start = Self.end(of: Self.marker, in: line) {
            reason = String(decoding: line[start...].filter { $0 >= 0x20 && $0 != 0x7f }, as: UTF8.self)
        } else if reason != nil, Self.end(of: Self.endMarker, in: line) != nil {
            hasEnded = true
        }
    }

    /// Where the first `needle` in `line` ends.
    private static func end(of needle: [UInt8], in line: [UInt8]) -> Int? {
        guard line.count >= needle.count else { return nil }
        for start in 0...(line.count - needle.count) where line[start..<start + needle.count].elementsEqual(needle) {
            return start + needle.count
        }
        return nil
    }
}
