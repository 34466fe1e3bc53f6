public import DeviceModel

/// The fw_cfg device's saved state, version 1. The items are configuration: the restorer brings them.
public struct FirmwareConfigurationSavedState: DeviceSavedState {
    public static let identifier = "fw-cfg"
    public static let version: UInt32 = 1

    var key: UInt16
    var position: UInt32
    var dmaHigh: UInt32

    init(_ state: FirmwareConfigurationState) {
        key = state.key
        position = state.position
        dmaHigh = state.dmaHigh
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(key)
        encoder.write(position)
        encoder.write(dmaHigh)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        key = try decoder.read()
        position = try decoder.read()
        dmaHigh = try decoder.read()
    }
}

extension FirmwareConfigurationState {
    init(_ saved: FirmwareConfigurationSavedState) {
        key = saved.key
        position = saved.position
        dmaHigh = saved.dmaHigh
    }
}
