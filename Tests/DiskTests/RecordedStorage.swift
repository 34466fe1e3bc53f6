internal import Disk
internal import Foundation
internal import Host
internal import Synchronization

/// A file in memory that remembers what was done to it, and fails when told to.
final class RecordedStorage: ImageStorage {
    enum Action: Sendable {
        case write(offset: Int, bytes: [UInt8])
        case zero(Range<Int>)
        case truncate(Int)
        case flush
    }

    struct State: Sendable {
        var bytes: [UInt8]
        var actions: [Action] = []
        /// Writes from now on fail with ENOSPC once the file would be larger.
        var largest = Int.max
        /// How many actions are left until every one fails with EIO; -1: none fails.
        var actionsUntilFailure = -1
        var readsFail = false
    }

    let state: Mutex<State>
    let path = "memory"
    let isWritable = true
    let descriptor: BorrowedDescriptor? = nil
    let identity: BlockFile.Identity? = nil
    let logicalBlockSize = 512

    init(_ bytes: [UInt8] = []) { state = Mutex(State(bytes: bytes)) }

    static func apply(_ action: Action, to bytes: inout [UInt8]) {
        switch action {
        case .write(let offset, let data):
            if bytes.count < offset + data.count {
                bytes += [UInt8](repeating: 0, count: offset + data.count - bytes.count)
            }
            bytes.replaceSubrange(offset..<offset + data.count, with: data)
        case .zero(let range):
            if bytes.count < range.upperBound { bytes += [UInt8](repeating: 0, count: range.upperBound - bytes.count) }
            bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
        case .truncate(let size):
            if bytes.count < size {
                bytes += [UInt8](repeating: 0, count: size - bytes.count)
            } else {
                bytes.removeLast(bytes.count - size)
            }
        case .flush: return
        }
    }

    private func perform(_ action: Action, end: Int = 0) throws(DiskError) {
        let failure: DiskError? = state.withLock { state in
            if state.actionsUntilFailure == 0 {
                return DiskError(.host(EIO), "Cannot write memory: Input/output error")
            }
            if end > state.largest { return DiskError(.host(ENOSPC), "Cannot write memory: No space left on device") }
            if state.actionsUntilFailure > 0 { state.actionsUntilFailure -= 1 }
            state.actions.append(action)
            RecordedStorage.apply(action, to: &state.bytes)
            return nil
        }
        if let failure { throw failure }
    }

    func currentSize() throws(DiskError) -> UInt64 { state.withLock { UInt64($0.bytes.count) } }
    func allocatedSize() throws(DiskError) -> UInt64 { try currentSize() }

    func read(into memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        let (fails, bytes): (Bool, [UInt8]) = state.withLock { state in
            let start = min(Int(clamping: offset), state.bytes.count)
            return (state.readsFail, Array(state.bytes[start..<min(start + memory.count, state.bytes.count)]))
        }
        if fails { throw DiskError(.host(EIO), "Cannot read memory: Input/output error") }
        memory.clear()
        if !bytes.isEmpty { memory.part(0..<bytes.count).copy(from: PageBuffer(bytes)) }
    }

    func write(_ memory: TransferMemory, at offset: UInt64) throws(DiskError) {
        let buffer = PageBuffer(count: memory.count)
        memory.copy(to: buffer)
        try perform(.write(offset: Int(offset), bytes: buffer.bytes), end: Int(offset) + memory.count)
    }

    func flush() throws(DiskError) { try perform(.flush) }
    func truncate(to size: UInt64) throws(DiskError) { try perform(.truncate(Int(size)), end: Int(size)) }
    func allocate(_ range: Range<UInt64>) throws(DiskError) {}
    func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(DiskError) {
        try perform(.zero(Int(range.lowerBound)..<Int(range.upperBound)), end: Int(range.upperBound))
    }
    func discard(_ range: Range<UInt64>) throws(DiskError) {
        try perform(.zero(Int(range.lowerBound)..<Int(range.upperBound)))
    }
    func extent(at offset: UInt64) -> (isData: Bool, end: UInt64) { (true, .max) }
    func close() {}
}

/// An empty image in memory.
func imageInMemory(size: UInt64, _ options: QCOW2Options) throws -> [UInt8] {
    let scratch = try Scratch()
    try DiskImage.createQCOW2(scratch.path("image"), size: size, options)
    return Array(try Data(contentsOf: scratch.file("image")))
}
