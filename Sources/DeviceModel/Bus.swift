/// The width of one device access, in bytes.
public enum AccessWidth: Int, Sendable {
    case byte = 1
    case word = 2
    case double = 4
    case quad = 8

    public var mask: UInt64 { self == .quad ? .max : (1 << UInt64(rawValue * 8)) - 1 }
}

/// Why an access had the wrong *shape* for the device. Faults of the device's own function are the device's business.
public enum AccessError: Error, Equatable, Sendable {
    case noSuchRegister
    case wrongWidth
    case unaligned
}

/// What a read comes to. The bus answers a rejected one with all ones, as an idle PC bus does.
public enum ReadResult: Equatable, Sendable {
    case value(UInt64)
    case rejected(AccessError)
}

/// What a write comes to. The bus drops a rejected one.
public enum WriteResult: Equatable, Sendable {
    case done
    case rejected(AccessError)
}

/// Something with registers. It gets offsets from the base that it was attached at and does not know that base.
/// Called from any vCPU thread: the state lives behind one `Mutex`, which is dropped before any line is raised.
public protocol BusDevice: AnyObject, Sendable {
    func read(offset: UInt64, width: AccessWidth) -> ReadResult
    func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult
}

/// An interrupt line that a device drives; `setLevel` may be called from any thread, repeated levels are harmless.
public protocol InterruptLine: Sendable {
    func setLevel(_ level: Bool)
}

/// What an address on a bus can already be taken by.
public struct BusConflict: Error, Equatable, CustomStringConvertible {
    public var name: String
    public var base: UInt64
    public var size: UInt64

    public var description: String {
        "\(name) at 0x\(String(base, radix: 16)), size \(size), overlaps a device that is already there"
    }
}

/// One address space of devices: the I/O ports, or memory-mapped registers. Built once, then only looked up, so that a
/// vCPU takes no lock on its way to a device.
public struct Bus: Sendable {
    private struct Entry: Sendable {
        var base: UInt64
        var size: UInt64
        var name: String
        var device: any BusDevice
    }

    /// Sorted by base, not overlapping.
    private var entries: [Entry] = []

    public init() {}

    public mutating func attach(
        _ device: some BusDevice, named name: String, at base: UInt64, size: UInt64
    ) throws(BusConflict) {
        try attach(any: device, named: name, at: base, size: size)
    }

    mutating func attach(
        any device: any BusDevice, named name: String, at base: UInt64, size: UInt64
    ) throws(BusConflict) {
        let index = entries.firstIndex { $0.base >= base } ?? entries.count
        let overlapsNext = index < entries.count && entries[index].base - base < size
        let overlapsPrevious = index > 0 && base - entries[index - 1].base < entries[index - 1].size
        guard size > 0, !overlapsNext, !overlapsPrevious else {
            throw BusConflict(name: name, base: base, size: size)
        }
        entries.insert(Entry(base: base, size: size, name: name, device: device), at: index)
    }

    private func find(_ address: UInt64) -> (device: any BusDevice, offset: UInt64)? {
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].base <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return nil }
        let offset = address - entries[low - 1].base
        return offset < entries[low - 1].size ? (entries[low - 1].device, offset) : nil
    }

    /// The value at `address`, or all ones of the width where no device answers.
    public func read(at address: UInt64, width: AccessWidth) -> UInt64 {
        guard let (device, offset) = find(address), case .value(let value) = device.read(offset: offset, width: width)
        else { return width.mask }
        return value & width.mask
    }

    /// False where no device took the write.
    @discardableResult
    public func write(at address: UInt64, width: AccessWidth, value: UInt64) -> Bool {
        guard let (device, offset) = find(address) else { return false }
        return device.write(offset: offset, width: width, value: value & width.mask) == .done
    }
}
