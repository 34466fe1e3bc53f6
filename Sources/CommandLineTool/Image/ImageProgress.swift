internal import Disk
internal import Host

/// A bar on standard error if that is a terminal, and the signals that end an operation in order.
final class ImageProgress {
    private let isShown = BorrowedDescriptor.standardError.isTerminal
    private let signals: SignalSource?
    private var lastShown: UInt64 = 0
    private var hasBar = false
    private(set) var signal: Signal?

    init() {
        signals = try? SignalSource([.interrupt, .terminate, .hangUp])
    }

    /// For the operation: false once a signal came.
    func callAsFunction(_ done: UInt64, _ total: UInt64) -> Bool {
        if let next = signals?.next() { signal = next }
        if isShown { show(done, total) }
        return signal == nil
    }

    private func show(_ done: UInt64, _ total: UInt64) {
        let now = HostClock.monotonicNanoseconds
        guard done == total || now &- lastShown > 100_000_000 else { return }
        lastShown = now
        hasBar = true
        let percent = total == 0 ? 100 : Int(Double(done) / Double(total) * 100)
        let width = max(10, min((TerminalSize(of: .standardError)?.columns ?? 80) - 8, 60))
        let filled = width * percent / 100
        let bar = String(repeating: "=", count: filled) + String(repeating: " ", count: width - filled)
        let number = String(repeating: " ", count: 3 - min(String(percent).count, 3)) + String(percent)
        try? BorrowedDescriptor.standardError.write(Array("\r[\(bar)] \(number)%".utf8))
    }

    /// Takes the bar away.
    func finish() {
        guard hasBar else { return }
        hasBar = false
        try? BorrowedDescriptor.standardError.write(Array("\r\u{1b}[K".utf8))
    }

    /// Runs an operation that says how far it is; a signal's end has the signal's exit status and no message.
    func run(_ operation: (DiskProgress) throws(DiskError) -> Void) throws {
        var ended: ExitStatus?
        try reportingDiskErrors { () throws(DiskError) in
            do throws(DiskError) {
                try operation { self($0, $1) }
                finish()
            } catch {
                finish()
                guard error.kind == .cancelled, let signal else { throw error }
                ended = .signal(signal.rawValue)
            }
        }
        if let ended { throw ended }
    }
}

/// A new image under a name of its own until it is whole: what fails or is stopped leaves nothing behind, and whoever
/// has the old file keeps it.
struct UnfinishedImage {
    let path: String
    let temporaryPath: String
    /// The file that will be replaced, locked until then.
    private let former: FileStorage?

    init(_ path: String) throws(DiskError) {
        self.path = path
        let bits = HostRandom.bytes(count: 6).map { byte in String(byte, radix: 36) }.joined()
        temporaryPath = "\(path).\(bits).part"
        // An image in use is not replaced, and what cannot be written is said before the work.
        former = HostPath.exists(path) ? try FileStorage(path: path, isWritable: true) : nil
    }

    var isBlockDevice: Bool { former?.isBlockDevice ?? false }

    /// Where to write: a block device is written itself.
    var workPath: String { isBlockDevice ? path : temporaryPath }

    func complete(_ body: () throws(DiskError) -> Void) throws(DiskError) {
        if isBlockDevice {
            former?.close()
            return try body()
        }
        do throws(DiskError) {
            try body()
            do throws(HostError) {
                try HostPath.rename(temporaryPath, to: path)
            } catch {
                throw DiskError(.host(error.errorNumber), "Cannot put the image at \(path): \(error.reason)")
            }
        } catch {
            try? HostPath.remove(temporaryPath)
            former?.close()
            throw error
        }
        former?.close()
    }
}
