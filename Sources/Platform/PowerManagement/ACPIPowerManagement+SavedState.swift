public import DeviceModel

/// The power-management block's saved state, version 1. Its timer goes on from where it was.
public struct ACPIPowerManagementSavedState: DeviceSavedState {
    public static let identifier = "acpi-power-management"
    public static let version: UInt32 = 1

    var status: UInt16
    var enable: UInt16
    var control: UInt16
    var timer: UInt32

    init(_ state: PowerManagementState, ticks: UInt32) {
        status = state.status
        enable = state.enable
        control = state.control
        timer = ticks &+ state.timerOffset
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(status)
        encoder.write(enable)
        encoder.write(control)
        encoder.write(timer)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        status = try decoder.read()
        enable = try decoder.read()
        control = try decoder.read()
        timer = try decoder.read()
    }
}

extension PowerManagementState {
    init(_ saved: ACPIPowerManagementSavedState, ticks: UInt32) throws(SavedStateError) {
        func check(_ field: String, _ isValid: Bool) throws(SavedStateError) {
            guard isValid else { throw .invalid(identifier: ACPIPowerManagementSavedState.identifier, field: field) }
        }
        try check("status", saved.status & ~PM1Event.powerButton == 0)
        try check("enable", saved.enable & ~PM1Event.enableWritable == 0)
        try check("control", saved.control & ~PM1Control.writable == 0)
        self.init(timerOffset: saved.timer &- ticks)
        status = saved.status
        enable = saved.enable
        control = saved.control
    }
}
