public import DeviceModel

/// The PCI host bridge's saved state, version 1.
public struct PCIHostBridgeSavedState: DeviceSavedState {
    public static let identifier = "pci-host-bridge"
    public static let version: UInt32 = 1

    var address: UInt32
    var resetControl: UInt8

    init(_ state: PCIHostBridgeState) {
        address = state.address
        resetControl = state.resetControl
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(address)
        encoder.write(resetControl)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        address = try decoder.read()
        resetControl = try decoder.read()
    }
}

extension PCIHostBridgeState {
    init(_ saved: PCIHostBridgeSavedState) throws(SavedStateError) {
        guard saved.address & ~PCIConfigurationAddress.writable == 0 else {
            throw .invalid(identifier: PCIHostBridgeSavedState.identifier, field: "address")
        }
        address = saved.address
        resetControl = saved.resetControl & ResetControl.writable
    }
}
