public import DeviceModel

/// A block device's own saved state, version 1: which disk it was, by size, and the cache mode that the driver chose.
public struct VirtioBlockSavedState: DeviceSavedState {
    public static let identifier = "virtio-blk"
    public static let version: UInt32 = 1

    var size: UInt64
    var isWriteback: Bool

    init(size: UInt64, isWriteback: Bool) {
        self.size = size
        self.isWriteback = isWriteback
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(size)
        encoder.write(isWriteback)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        size = try decoder.read()
        isWriteback = try decoder.readBool("isWriteback")
    }
}
