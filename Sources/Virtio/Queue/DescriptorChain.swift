public import GuestMemory
internal import X86

/// What a driver can do to a queue that makes it unusable until a reset (Virtio 1.2 §2.1.1, DEVICE_NEEDS_RESET).
public enum QueueFault: Error, Equatable, CustomStringConvertible {
    case memory(GuestMemoryFault)
    /// More buffers are available than the ring has entries (§2.7.6).
    case tooManyAvailable(UInt16)
    /// A descriptor's number is outside the table.
    case descriptorOutOfRange(UInt16)
    /// A loop, or more descriptors than a queue may chain (§2.7.5.3.1).
    case chainTooLong
    /// More than 2³² bytes (§2.7.5).
    case chainTooLarge
    /// An indirect table inside another or behind a chain, or of a size that no table has (§2.7.5.3).
    case badIndirectTable
    /// A buffer for the driver behind one for the device (§2.7.4.2).
    case readableBehindWritable
    /// The device has used what it never got: our own mistake, or a restored state's.
    case notOutstanding(UInt16)

    public var description: String {
        switch self {
        case .memory(let fault): "\(fault)"
        case .tooManyAvailable(let count): "\(count) buffers are available in a smaller ring"
        case .descriptorOutOfRange(let index): "there is no descriptor \(index)"
        case .chainTooLong: "a descriptor chain is too long or loops"
        case .chainTooLarge: "a descriptor chain has more than 4 GiB"
        case .badIndirectTable: "an indirect descriptor table is malformed"
        case .readableBehindWritable: "a device-readable descriptor follows a device-writable one"
        case .notOutstanding(let identifier): "buffer \(identifier) is not outstanding"
        }
    }
}

/// A buffer that the driver made available: what the device may read of it and what it may write, in order. The
/// descriptors were read once; what the driver does to them meanwhile changes nothing.
public struct DescriptorChain: Sendable, Equatable {
    /// The longest chain that a device of ours takes, indirect or not.
    public static let limit = 1024

    /// The number by which the driver knows the buffer.
    let identifier: UInt16
    /// How many ring entries it takes in a packed ring.
    let ringEntries: UInt16
    /// Counts the buffers of this queue since it was enabled.
    let sequence: UInt64
    /// Which enabling of the queue it belongs to.
    let epoch: UInt64

    public let readable: BufferList
    public let writable: BufferList
}

/// A buffer that goes back to its driver, with how many bytes of its writable part were written, from the first on.
public struct UsedBuffer: Sendable {
    let chain: DescriptorChain
    let written: UInt32

    public init(_ chain: DescriptorChain, written: Int) {
        self.chain = chain
        self.written = UInt32(clamping: min(max(written, 0), chain.writable.count))
    }
}

/// A sequence of ranges of guest memory that is used like one buffer.
public struct BufferList: Sendable, Equatable {
    public private(set) var ranges: [GuestMemoryRange] = []
    /// Bytes; a chain has at most 2³².
    public private(set) var count = 0

    public init(_ ranges: [GuestMemoryRange] = []) {
        for range in ranges { append(range) }
    }

    mutating func append(_ range: GuestMemoryRange) {
        guard range.count > 0 else { return }
        ranges.append(range)
        count += range.count
    }

    /// The part from `offset`, of at most `limit` bytes.
    public func slice(from offset: Int, limit: Int = .max) -> BufferList {
        var result = BufferList()
        var skip = max(offset, 0)
        for range in ranges where result.count < limit {
            guard skip < range.count else {
                skip -= range.count
                continue
            }
            result.append(
                GuestMemoryRange(
                    base: range.base + UInt64(skip), count: min(range.count - skip, limit - result.count)))
            skip = 0
        }
        return result
    }

    /// Up to `limit` bytes from `offset`.
    public func read(from memory: GuestMemory, at offset: Int = 0, limit: Int) throws(GuestMemoryFault) -> [UInt8] {
        var bytes: [UInt8] = []
        for range in slice(from: offset, limit: limit).ranges {
            bytes += try memory.read(count: range.count, at: range.base)
        }
        return bytes
    }

    /// Writes as much of `bytes` as there is room for, and returns how much that was.
    @discardableResult
    public func write(_ bytes: [UInt8], to memory: GuestMemory, at offset: Int = 0) throws(GuestMemoryFault) -> Int {
        var done = 0
        for range in slice(from: offset, limit: bytes.count).ranges {
            try memory.write(bytes[done..<done + range.count], at: range.base)
            done += range.count
        }
        return done
    }
}

/// One descriptor as either ring has it: 16 bytes, address and length in the same place.
struct Descriptor: Sendable {
    static let size: UInt64 = 16

    // §2.7.5, §2.8.5: the same values in both layouts.
    static let next: UInt16 = 1
    static let write: UInt16 = 2
    static let indirect: UInt16 = 4

    var address: UInt64
    var length: UInt32
    /// Split: flags, then next. Packed: identifier, then flags.
    var third: UInt16
    var fourth: UInt16

    init(at address: UInt64, in memory: GuestMemory) throws(QueueFault) {
        do throws(GuestMemoryFault) {
            // Two loads, each of which sees its half once.
            self.address = try memory.load(at: GuestPhysicalAddress(address))
            let rest = try memory.load(UInt64.self, at: GuestPhysicalAddress(address &+ 8))
            length = UInt32(truncatingIfNeeded: rest)
            third = UInt16(truncatingIfNeeded: rest >> 32)
            fourth = UInt16(truncatingIfNeeded: rest >> 48)
        } catch {
            throw .memory(error)
        }
    }
}

/// Collects a chain's ranges and holds them to the rules that both rings have.
struct ChainBuilder {
    private(set) var readable = BufferList()
    private(set) var writable = BufferList()
    private var descriptors = 0

    mutating func add(_ descriptor: Descriptor, isWritable: Bool) throws(QueueFault) {
        descriptors += 1
        guard descriptors <= DescriptorChain.limit else { throw .chainTooLong }
        guard UInt64(readable.count + writable.count) + UInt64(descriptor.length) <= 1 << 32 else {
            throw .chainTooLarge
        }
        let range = GuestMemoryRange(
            base: GuestPhysicalAddress(descriptor.address), count: Int(descriptor.length))
        if isWritable {
            writable.append(range)
        } else {
            guard writable.ranges.isEmpty else { throw .readableBehindWritable }
            readable.append(range)
        }
    }

    /// How many descriptors an indirect table has.
    static func indirectCount(_ table: Descriptor) throws(QueueFault) -> Int {
        let count = Int(table.length / 16)
        guard table.length % 16 == 0, count > 0, count <= DescriptorChain.limit else { throw .badIndirectTable }
        return count
    }
}
