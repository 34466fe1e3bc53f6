public import DeviceModel

/// A balloon's own saved state, version 1: what is asked for and what the guest has given. Which pages those are, the
/// memory itself shows; statistics are asked for again.
public struct VirtioBalloonSavedState: DeviceSavedState {
    public static let identifier = "virtio-balloon"
    public static let version: UInt32 = 1

    var targetPages: UInt32
    var actualPages: UInt32

    init(targetPages: UInt32, actualPages: UInt32) {
        self.targetPages = targetPages
        self.actualPages = actualPages
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(targetPages)
        encoder.write(actualPages)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        targetPages = try decoder.read()
        actualPages = try decoder.read()
    }
}
