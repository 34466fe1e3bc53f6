public import DeviceModel

/// A block device's own saved state, version 2: which disk it was, by size, the cache mode that the driver chose, and the
/// requests that it holds (version 1 had none).
public struct VirtioBlockSavedState: DeviceSavedState {
    public static let identifier = "virtio-blk"
    public static let version: UInt32 = 2

    var size: UInt64
    var isWriteback: Bool
    var held: [BlockState.Held]

    init(size: UInt64, isWriteback: Bool, held: [BlockState.Held] = []) {
        self.size = size
        self.isWriteback = isWriteback
        self.held = held
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(size)
        encoder.write(isWriteback)
        encoder.write(UInt32(clamping: held.count))
        for request in held {
            encoder.write(UInt16(clamping: request.queue))
            request.chain.encode(into: &encoder)
        }
    }

    /// 16 queues of 256 entries.
    private static let heldLimit: UInt32 = 4096

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        size = try decoder.read()
        isWriteback = try decoder.readBool("isWriteback")
        held = []
        let count: UInt32 = try decoder.read()
        guard count <= Self.heldLimit else { throw .invalid(identifier: Self.identifier, field: "held") }
        for _ in 0..<count {
            let queue: UInt16 = try decoder.read()
            held.append(BlockState.Held(queue: Int(queue), chain: try DescriptorChain(from: &decoder)))
        }
    }
}
