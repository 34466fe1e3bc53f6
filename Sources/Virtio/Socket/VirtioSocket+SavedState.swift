public import DeviceModel

/// A socket device's own saved state, version 1: the guest's number, and whether its driver was there. Connections are
/// not part of it: sockets of the host cannot be saved, and the driver closes its own ends (§5.10.6.7).
public struct VirtioSocketSavedState: DeviceSavedState {
    public static let identifier = "virtio-vsock"
    public static let version: UInt32 = 1

    var guestCID: UInt64
    var hadDriver: Bool

    init(guestCID: UInt64, hadDriver: Bool) {
        self.guestCID = guestCID
        self.hadDriver = hadDriver
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(guestCID)
        encoder.write(hadDriver)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        guestCID = try decoder.read()
        hadDriver = try decoder.readBool("hadDriver")
    }
}
