/// The default guest's control line, COM2: the guest writes one line for each event or request, and gets its command's
/// standard input in frames of a decimal length, a newline and that many bytes (scripts/guest/init).
public struct ControlChannel: Sendable {
    public enum Message: Equatable, Sendable {
        /// The interactive shell starts.
        case ready
        /// The guest wants the next frame of standard input.
        case wantsInput
        /// The command ended with this status.
        case exited(UInt8)
    }

    /// A frame this large fits the guest's tty buffers even if nobody reads there (drivers/tty/tty_buffer.c: 64 KiB).
    public static let maximumFrame = 32 << 10
    /// The longest line that has a meaning; the rest of a longer one is dropped.
    private static let maximumLine = 32

    private var line: [UInt8] = []

    public init() {}

    public mutating func receive(_ bytes: some Sequence<UInt8>) -> [Message] {
        var messages: [Message] = []
        for byte in bytes {
            if byte == UInt8(ascii: "\n") {
                if let message = Self.message(line) { messages.append(message) }
                line.removeAll(keepingCapacity: true)
            } else if byte != UInt8(ascii: "\r"), line.count < Self.maximumLine {
                line.append(byte)
            }
        }
        return messages
    }

    private static func message(_ line: [UInt8]) -> Message? {
        let text = String(decoding: line, as: UTF8.self)
        if text == "ready" { return .ready }
        if text == "more" { return .wantsInput }
        guard text.hasPrefix("exit "), let status = UInt8(text.dropFirst(5)) else { return nil }
        return .exited(status)
    }

    /// `bytes` as a frame; an empty one says that the input has ended.
    public static func frame(_ bytes: [UInt8]) -> [UInt8] {
        Array("\(bytes.count)\n".utf8) + bytes
    }
}
