/// A one-shot timer that the host side gives a device. `arm` may be called from any thread.
public protocol DeviceTimer: Sendable {
    /// Fires once when the device's own clock reaches `deadline`; nil disarms. Replaces the deadline before it.
    func arm(at deadline: Duration?)
}
