internal import DeviceModel
internal import GuestMemory
internal import X86

/// A buffer that a device has taken and not given back, in its saved state. The ring may have forgotten it: a packed
/// ring's entries are used again in another order.
extension DescriptorChain {
    func encode(into encoder: inout StateEncoder) {
        encoder.write(identifier)
        encoder.write(ringEntries)
        encoder.write(sequence)
        for list in [readable, writable] {
            encoder.write(UInt16(clamping: list.ranges.count))
            for range in list.ranges {
                encoder.write(range.base.rawValue)
                encoder.write(UInt32(clamping: range.count))
            }
        }
    }

    /// Addresses are checked when they are used, as a driver's are.
    init(from decoder: inout StateDecoder) throws(SavedStateError) {
        identifier = try decoder.read()
        ringEntries = try decoder.read()
        sequence = try decoder.read()
        epoch = 0
        readable = try Self.list(from: &decoder)
        writable = try Self.list(from: &decoder)
        guard ringEntries > 0, Int(ringEntries) <= Self.limit, readable.count + writable.count <= 1 << 32 else {
            throw .invalid(identifier: decoder.identifier, field: "chain")
        }
    }

    private static func list(from decoder: inout StateDecoder) throws(SavedStateError) -> BufferList {
        let count: UInt16 = try decoder.read()
        guard count <= limit else { throw .invalid(identifier: decoder.identifier, field: "ranges") }
        var list = BufferList()
        for _ in 0..<count {
            let base: UInt64 = try decoder.read()
            list.append(
                GuestMemoryRange(base: GuestPhysicalAddress(base), count: Int(try decoder.read(UInt32.self))))
        }
        return list
    }

    /// The same buffer in another life of its queue.
    func moved(to sequence: UInt64, epoch: UInt64) -> DescriptorChain {
        DescriptorChain(
            identifier: identifier, ringEntries: ringEntries, sequence: sequence, epoch: epoch, readable: readable,
            writable: writable)
    }
}
