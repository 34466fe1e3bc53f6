internal import CHost
public import Host
internal import Synchronization
public import X86

/// What an access to guest-physical memory can fail with: some byte of it is not RAM.
public struct GuestMemoryFault: Error, Equatable, CustomStringConvertible {
    public var address: GuestPhysicalAddress
    public var length: Int

    public var description: String { "guest address \(address) (length \(length)) is not RAM" }
}

/// Some bytes of guest memory.
public struct GuestMemoryRange: Hashable, Sendable {
    public var base: GuestPhysicalAddress
    /// Bytes, not negative.
    public var count: Int

    public init(base: GuestPhysicalAddress, count: Int) {
        self.base = base
        self.count = count
    }
}

/// One contiguous range of guest-physical RAM or ROM backed by host memory.
public struct MemoryRegion: Sendable {
    public let base: GuestPhysicalAddress
    /// Bytes, a multiple of 4096.
    public let size: UInt64
    public let isReadOnly: Bool
    public let mapping: HostMapping

    public init(base: GuestPhysicalAddress, isReadOnly: Bool = false, mapping: HostMapping) {
        self.base = base
        self.size = UInt64(mapping.size)
        self.isReadOnly = isReadOnly
        self.mapping = mapping
    }

    /// The host address of the first byte, in the form that KVM_SET_USER_MEMORY_REGION takes.
    public var hostAddress: UInt64 { UInt64(UInt(bitPattern: mapping.address)) }
}

/// Guest-physical RAM as the devices and boot loaders see it. The only place that turns a guest-physical address into
/// a host pointer. Guest memory changes under our feet: it is copied in and out, never lent.
public final class GuestMemory: Sendable {
    /// Called behind each write from this side.
    public typealias WriteObserver = @Sendable (GuestPhysicalAddress, _ count: Int) -> Void
    /// In a structure: a bare closure would be wrapped anew by each access through the generic lock, without end.
    private struct Observer: Sendable {
        let note: WriteObserver
    }

    private let observer = Mutex<Observer?>(nil)

    /// Sorted by base, not overlapping.
    public let regions: [MemoryRegion]

    public init(regions: [MemoryRegion]) {
        self.regions = regions.sorted { $0.base < $1.base }
    }

    /// The end of the highest writable region.
    public var end: GuestPhysicalAddress {
        regions.last { !$0.isReadOnly }.map { $0.base + $0.size } ?? GuestPhysicalAddress(0)
    }

    /// Bytes of writable RAM.
    public var size: UInt64 {
        regions.reduce(0) { $1.isReadOnly ? $0 : $0 &+ $1.size }
    }

    /// The host pointer for `length` bytes at `address` inside one region.
    private func pointer(
        at address: GuestPhysicalAddress, length: Int, forWriting: Bool
    ) throws(GuestMemoryFault) -> UnsafeMutableRawPointer {
        for region in regions where address >= region.base && !(forWriting && region.isReadOnly) {
            let offset = address.rawValue &- region.base.rawValue
            if offset < region.size, length >= 0, UInt64(length) <= region.size &- offset {
                return region.mapping.address + Int(offset)
            }
        }
        throw GuestMemoryFault(address: address, length: length)
    }

    /// Reads one little-endian integer; a naturally aligned one in a single access.
    public func load<T: FixedWidthInteger & BitwiseCopyable>(
        _ type: T.Type = T.self, at address: GuestPhysicalAddress
    ) throws(GuestMemoryFault) -> T {
        try pointer(at: address, length: MemoryLayout<T>.size, forWriting: false).loadUnaligned(as: T.self)
    }

    public func store<T: FixedWidthInteger & BitwiseCopyable>(
        _ value: T, at address: GuestPhysicalAddress
    ) throws(GuestMemoryFault) {
        try pointer(at: address, length: MemoryLayout<T>.size, forWriting: true).storeBytes(of: value, as: T.self)
        noteWrite(at: address, count: MemoryLayout<T>.size)
    }

    /// Copies `count` bytes out of guest memory.
    public func read(count: Int, at address: GuestPhysicalAddress) throws(GuestMemoryFault) -> [UInt8] {
        let source = try pointer(at: address, length: count, forWriting: false)
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if count > 0, let base = buffer.baseAddress {
                UnsafeMutableRawPointer(base).copyMemory(from: source, byteCount: count)
            }
            initialized = count
        }
    }

    /// Copies `bytes` into guest memory, all inside one region.
    public func write(_ bytes: some Sequence<UInt8>, at address: GuestPhysicalAddress) throws(GuestMemoryFault) {
        let array = Array(bytes)
        let target = try pointer(at: address, length: array.count, forWriting: true)
        array.withUnsafeBytes { source in
            if let base = source.baseAddress { target.copyMemory(from: base, byteCount: source.count) }
        }
        noteWrite(at: address, count: array.count)
    }

    /// Copies all of `bytes` into guest memory, all inside one region.
    public func write(_ bytes: borrowing RawSpan, at address: GuestPhysicalAddress) throws(GuestMemoryFault) {
        let count = bytes.byteCount
        let target = try pointer(at: address, length: count, forWriting: true)
        bytes.withUnsafeBytes { source in
            if let base = source.baseAddress { target.copyMemory(from: base, byteCount: source.count) }
        }
        noteWrite(at: address, count: count)
    }

    // MARK: Rings

    /// A ring's index or flags, which a guest's processor writes at the same time. `address` must be even.
    public func loadAcquire(at address: GuestPhysicalAddress) throws(GuestMemoryFault) -> UInt16 {
        guard address.rawValue & 1 == 0 else { throw GuestMemoryFault(address: address, length: 2) }
        return host_load_acquire_16(try pointer(at: address, length: 2, forWriting: false))
    }

    /// Everything that was stored before is seen by whoever sees this value. `address` must be even.
    public func storeRelease(_ value: UInt16, at address: GuestPhysicalAddress) throws(GuestMemoryFault) {
        guard address.rawValue & 1 == 0 else { throw GuestMemoryFault(address: address, length: 2) }
        host_store_release_16(try pointer(at: address, length: 2, forWriting: true), value)
        noteWrite(at: address, count: 2)
    }

    // MARK: Transfers

    /// The host memory behind ranges, each inside one region, for a system call to fill or to send. After it has filled
    /// them, `noteTransfer` must be told the same ranges.
    public func segments(
        _ ranges: some Sequence<GuestMemoryRange>, forWriting: Bool
    ) throws(GuestMemoryFault) -> IOSegments {
        var buffers: [UnsafeMutableRawBufferPointer] = []
        for range in ranges {
            let start = try pointer(at: range.base, length: range.count, forWriting: forWriting)
            buffers.append(UnsafeMutableRawBufferPointer(start: start, count: range.count))
        }
        return IOSegments(buffers, owner: self)
    }

    /// Where a range of RAM, in one region, is in this process: for the kernel, which checks it again. The memory must
    /// be kept as long as the kernel may use it.
    public func hostAddress(of range: GuestMemoryRange) throws(GuestMemoryFault) -> UInt64 {
        UInt64(UInt(bitPattern: try pointer(at: range.base, length: range.count, forWriting: true)))
    }

    public func noteTransfer(into ranges: some Sequence<GuestMemoryRange>) {
        for range in ranges { noteWrite(at: range.base, count: range.count) }
    }

    /// Gives the pages that lie wholly in a range back to the host; the guest finds zeroes there.
    public func release(_ range: GuestMemoryRange) throws(GuestMemoryFault) {
        let pageSize: UInt64 = 4096
        let first = (range.base.rawValue &+ (pageSize - 1)) & ~(pageSize - 1)
        let end = (range.base.rawValue &+ UInt64(clamping: range.count)) & ~(pageSize - 1)
        guard first >= range.base.rawValue, end > first else { return }
        let count = Int(clamping: end - first)
        let start = try pointer(at: GuestPhysicalAddress(first), length: count, forWriting: true)
        _ = host_release_pages(start, count)
        noteWrite(at: GuestPhysicalAddress(first), count: count)
    }

    /// An engine that keeps what it derived from guest memory wants to know of each write.
    public func observeWrites(_ observer: @escaping WriteObserver) {
        self.observer.withLock { $0 = Observer(note: observer) }
    }

    /// Whether each write has to be made from here.
    public var isObserved: Bool { observer.withLock { $0 != nil } }

    private func noteWrite(at address: GuestPhysicalAddress, count: Int) {
        guard count > 0, let observer = observer.withLock({ $0 }) else { return }
        observer.note(address, count)
    }
}
