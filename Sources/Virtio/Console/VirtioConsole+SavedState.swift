public import DeviceModel

/// A console's own saved state, version 1: its size, each port's bytes on the way to the guest, and what waits to be
/// said on the control queue. Who is at the host's end says so again when it is restored.
public struct VirtioConsoleSavedState: DeviceSavedState {
    public static let identifier = "virtio-console"
    public static let version: UInt32 = 1

    var columns: UInt16
    var rows: UInt16
    var ports: [ConsoleState.Port]
    var control: [[UInt8]]

    init(_ state: ConsoleState) {
        columns = state.columns
        rows = state.rows
        ports = state.ports
        control = state.control
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(columns)
        encoder.write(rows)
        encoder.write(UInt8(clamping: ports.count))
        for port in ports {
            encoder.write(port.input)
            encoder.write(port.isReady)
            encoder.write(port.isOpen)
            encoder.write(port.isConnected)
            encoder.write(port.endsAfterInput)
            encoder.write(UInt64(clamping: port.outputOffset))
        }
        encoder.write(UInt16(clamping: control.count))
        for message in control { encoder.write(message) }
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        columns = try decoder.read()
        rows = try decoder.read()
        ports = []
        for _ in 0..<(try decoder.read(UInt8.self)) {
            var port = ConsoleState.Port()
            port.input = try decoder.readBytes("input", limit: VirtioConsole.inputLimit)
            port.isReady = try decoder.readBool("isReady")
            port.isOpen = try decoder.readBool("isOpen")
            port.isConnected = try decoder.readBool("isConnected")
            port.endsAfterInput = try decoder.readBool("endsAfterInput")
            let offset: UInt64 = try decoder.read()
            guard offset <= 1 << 32 else { throw .invalid(identifier: Self.identifier, field: "outputOffset") }
            port.outputOffset = Int(offset)
            ports.append(port)
        }
        control = []
        let count: UInt16 = try decoder.read()
        guard count <= ConsoleState.controlLimit else { throw .invalid(identifier: Self.identifier, field: "control") }
        for _ in 0..<count { control.append(try decoder.readBytes("message", limit: 4096)) }
    }
}
