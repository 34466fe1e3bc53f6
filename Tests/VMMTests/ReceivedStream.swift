internal import Host
internal import HostNetwork
internal import Synchronization

/// One connection's bytes, and an answer as large as its sender's buffers are not.
final class ReceivedStream: Sendable {
    static let answer = [UInt8](repeating: 0x41, count: 3_000_000)
    private let bytes = Mutex<[UInt8]>([])
    var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }

    func serve(_ server: LoopbackSocket) {
        // On a busy host an interpreted guest may take longer to come than one wait lasts.
        guard let client = server.acceptOne() ?? server.acceptOne() else { return }
        guard let writer = try? HostThread(name: "answer", { _ = client.writeAll(Self.answer) }) else { return }
        while case let chunk = client.read(upTo: 65_536), !chunk.isEmpty { bytes.withLock { $0 += chunk } }
        writer.join()
        client.finishWriting()
    }
}
