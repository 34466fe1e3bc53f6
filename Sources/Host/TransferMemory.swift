internal import CHost
internal import Glibc

/// Memory of its own that starts at a page boundary, so that every kind of input and output can use it. Numbers in it
/// are read and written big-endian, as image formats store them.
public final class PageBuffer: @unchecked Sendable {
    // SAFETY: the address is set once; whoever shares a buffer between threads orders their accesses.
    private let address: UnsafeMutableRawPointer
    public let count: Int

    /// `count` zero bytes.
    public init(count: Int) {
        precondition(count >= 0)
        self.count = count
        address = UnsafeMutableRawPointer.allocate(byteCount: max(count, 1), alignment: 4096)
        memset(address, 0, max(count, 1))
    }

    public convenience init(_ bytes: [UInt8]) {
        self.init(count: bytes.count)
        copy(bytes, to: 0)
    }

    deinit { address.deallocate() }

    /// All of it, or a part, as the memory of a transfer.
    public var memory: TransferMemory { memory(0..<count) }

    public func memory(_ range: Range<Int>) -> TransferMemory {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        return TransferMemory(address: address + range.lowerBound, count: range.count, owner: self)
    }

    public var bytes: [UInt8] { bytes(0..<count) }

    public func bytes(_ range: Range<Int>) -> [UInt8] {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        return [UInt8](UnsafeRawBufferPointer(start: address + range.lowerBound, count: range.count))
    }

    public subscript(index: Int) -> UInt8 {
        get { load(index) }
        set { store(newValue, at: index) }
    }

    /// The big-endian number whose first byte is at `offset`.
    public func load<Number: FixedWidthInteger>(_ offset: Int) -> Number {
        precondition(offset >= 0 && offset <= count - MemoryLayout<Number>.size)
        return Number(bigEndian: address.loadUnaligned(fromByteOffset: offset, as: Number.self))
    }

    public func store<Number: FixedWidthInteger>(_ value: Number, at offset: Int) {
        precondition(offset >= 0 && offset <= count - MemoryLayout<Number>.size)
        address.storeBytes(of: value.bigEndian, toByteOffset: offset, as: Number.self)
    }

    public func clear(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        memset(address + range.lowerBound, 0, range.count)
    }

    public func copy(_ bytes: [UInt8], to offset: Int) {
        precondition(offset >= 0 && offset <= count - bytes.count)
        bytes.withUnsafeBytes { source in
            if let base = source.baseAddress { memcpy(address + offset, base, source.count) }
        }
    }

    public func isZero(_ range: Range<Int>) -> Bool {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        return host_is_zero(address + range.lowerBound, range.count) == 1
    }
}

/// The memory that a transfer reads or writes, in pieces (an array of struct iovec). Whoever makes one from addresses
/// keeps them valid for as long as it is in use; guest memory may change under it, and nothing here relies on its bytes.
public struct TransferMemory: @unchecked Sendable {
    // SAFETY: addresses are only handed to the kernel and to memcpy, within their counts.
    var pieces: [iovec]
    public private(set) var count: Int
    private var owners: [AnyObject]

    public init(address: UnsafeMutableRawPointer, count: Int, owner: AnyObject? = nil) {
        precondition(count >= 0)
        pieces = count == 0 ? [] : [iovec(iov_base: address, iov_len: count)]
        self.count = count
        owners = owner.map { [$0] } ?? []
    }

    /// The segments of a device's request.
    public init(_ segments: IOSegments) {
        pieces = segments.buffers.compactMap { buffer in
            buffer.baseAddress.map { iovec(iov_base: $0, iov_len: buffer.count) }
        }
        count = segments.count
        owners = [segments.owner]
    }

    /// The pieces in a row.
    public init(joining parts: [TransferMemory]) {
        pieces = parts.flatMap(\.pieces)
        count = parts.reduce(0) { $0 + $1.count }
        owners = parts.flatMap(\.owners)
    }

    /// The part from `range.lowerBound` on.
    public func part(_ range: Range<Int>) -> TransferMemory {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        if range.count == count { return self }
        var result = self
        result.pieces = []
        result.count = range.count
        var skip = range.lowerBound
        var rest = range.count
        for piece in pieces where rest > 0 {
            let length = Int(piece.iov_len)
            if skip >= length {
                skip -= length
                continue
            }
            let taken = min(length - skip, rest)
            result.pieces.append(iovec(iov_base: piece.iov_base + skip, iov_len: taken))
            rest -= taken
            skip = 0
        }
        return result
    }

    /// Fills it with zeros.
    public func clear() {
        for piece in pieces { memset(piece.iov_base, 0, piece.iov_len) }
    }

    /// Overwrites it with as many bytes of `buffer` from `offset` on.
    public func copy(from buffer: PageBuffer, at offset: Int = 0) {
        buffer.memory(offset..<offset + count).copyBytes(to: self)
    }

    /// Copies it to `offset` in `buffer`.
    public func copy(to buffer: PageBuffer, at offset: Int = 0) {
        copyBytes(to: buffer.memory(offset..<offset + count))
    }

    private func copyBytes(to other: TransferMemory) {
        var target = 0
        var filled = 0
        for piece in pieces {
            var done = 0
            while done < piece.iov_len {
                let into = other.pieces[target]
                let step = min(Int(piece.iov_len) - done, Int(into.iov_len) - filled)
                memcpy(into.iov_base + filled, piece.iov_base + done, step)
                done += step
                filled += step
                if filled == into.iov_len {
                    target += 1
                    filled = 0
                }
            }
        }
    }

    public var isZero: Bool {
        pieces.allSatisfy { host_is_zero($0.iov_base, $0.iov_len) == 1 }
    }

    /// Whether every piece starts and ends on a multiple of `alignment`, as O_DIRECT wants it.
    func isAligned(to alignment: Int) -> Bool {
        pieces.allSatisfy { (Int(bitPattern: $0.iov_base) | Int($0.iov_len)) & (alignment - 1) == 0 }
    }

    /// Calls `transfer` with the pieces that are left until all are done; its result is how many bytes it moved. Ends
    /// early where it moves none. The number of bytes moved, or -errno.
    func transfer(_ transfer: (UnsafePointer<iovec>, Int, Int) -> Int) -> Int {
        var done = 0
        var rest = self
        while done < count {
            let result = rest.pieces.withUnsafeBufferPointer { pieces in
                guard let base = pieces.baseAddress else { return 0 }
                return retryingInterrupted { transfer(base, pieces.count, done) }
            }
            guard result > 0 else { return result < 0 ? result : done }
            done += result
            if done < count { rest = part(done..<count) }
        }
        return done
    }
}

extension PageBuffer {
    /// Calls `body` with the address and size of `input` and of this buffer, for a C function that turns one into the
    /// other; its result.
    public func fill(
        from input: PageBuffer, _ inputRange: Range<Int>,
        _ body: (
            _ source: UnsafeRawPointer, _ count: Int, _ target: UnsafeMutableRawPointer, _ capacity: Int
        ) -> Int
    ) -> Int {
        precondition(inputRange.lowerBound >= 0 && inputRange.upperBound <= input.count)
        return body(input.address + inputRange.lowerBound, inputRange.count, address, count)
    }
}
