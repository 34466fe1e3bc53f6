public import DeviceModel

/// The keyboard controller's saved state, version 1.
public struct I8042SavedState: DeviceSavedState {
    public static let identifier = "i8042"
    public static let version: UInt32 = 1

    var memory: [UInt8]
    /// Two bytes for each output: data and status.
    var outputs: [UInt8]
    var outputPort: UInt8
    var pendingCommand: UInt8?
    var wasCommandLast: Bool

    init(_ state: I8042State) {
        memory = state.memory
        outputs = state.outputs.flatMap { [$0.byte, $0.status] }
        outputPort = state.outputPort
        pendingCommand = state.pendingCommand
        wasCommandLast = state.wasCommandLast
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(memory)
        encoder.write(outputs)
        encoder.write(outputPort)
        encoder.write(pendingCommand)
        encoder.write(wasCommandLast)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        memory = try decoder.readBytes("memory", limit: 32)
        outputs = try decoder.readBytes("outputs", limit: 2 * I8042State.outputLimit)
        outputPort = try decoder.read()
        pendingCommand = try decoder.readOptional("pendingCommand")
        wasCommandLast = try decoder.readBool("wasCommandLast")
    }
}

extension I8042State {
    init(_ saved: I8042SavedState) throws(SavedStateError) {
        func check(_ field: String, _ isValid: Bool) throws(SavedStateError) {
            guard isValid else { throw .invalid(identifier: I8042SavedState.identifier, field: field) }
        }
        try check("memory", saved.memory.count == 32)
        try check("outputs", saved.outputs.count.isMultiple(of: 2) && saved.outputs.count <= 2 * Self.outputLimit)
        memory = saved.memory
        outputs = stride(from: 0, to: saved.outputs.count, by: 2).map {
            Output(byte: saved.outputs[$0], status: saved.outputs[$0 + 1])
        }
        outputPort = saved.outputPort
        pendingCommand = saved.pendingCommand
        wasCommandLast = saved.wasCommandLast
    }
}
