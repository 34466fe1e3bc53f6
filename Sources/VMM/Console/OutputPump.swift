internal import Host

/// Bytes on their way to a descriptor of the host that may be slow: written when it is ready, never more at once than a
/// ready pipe takes without blocking (pipe(7): PIPE_BUF), so that the session stays responsive.
struct OutputPump {
    private static let chunk = 4096

    let descriptor: BorrowedDescriptor
    private var pending: [UInt8] = []
    private var position = 0

    init(_ descriptor: BorrowedDescriptor) {
        self.descriptor = descriptor
    }

    var isEmpty: Bool { position == pending.count }

    mutating func add(_ bytes: [UInt8]) {
        if isEmpty {
            pending = bytes
            position = 0
        } else {
            pending += bytes
        }
    }

    /// Writes one chunk; call when the descriptor is ready.
    mutating func flush() throws(HostError) {
        guard !isEmpty else { return }
        let end = min(position + Self.chunk, pending.count)
        do {
            position += try descriptor.writeSome(pending[position..<end])
        } catch  where error.isTemporary {
            return
        }
        if isEmpty {
            pending = []
            position = 0
        }
    }
}

extension HostError {
    /// Later it may work.
    var isTemporary: Bool { errorNumber == Number.interrupted || errorNumber == Number.again }
}
