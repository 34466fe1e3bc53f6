public import DeviceModel

/// The 16550A's saved state, version 1.
public struct UART16550SavedState: DeviceSavedState {
    public static let identifier = "uart-16550a"
    public static let version: UInt32 = 1

    var interruptEnable: UInt8
    var lineControl: UInt8
    var modemControl: UInt8
    var scratch: UInt8
    var divisor: UInt16
    var isFIFOEnabled: Bool
    var triggerIndex: UInt8
    var received: [UInt8]
    var unsent: [UInt8]
    var lineErrors: UInt8
    var modemDeltas: UInt8
    var isTransmitterInterruptPending: Bool
    var hasCarrier: Bool

    init(_ state: UARTState) {
        interruptEnable = state.interruptEnable.rawValue
        lineControl = state.lineControl
        modemControl = state.modemControl.rawValue
        scratch = state.scratch
        divisor = state.divisor
        isFIFOEnabled = state.isFIFOEnabled
        triggerIndex = UInt8(truncatingIfNeeded: state.triggerIndex)
        received = state.received.bytes
        unsent = state.unsent.bytes
        lineErrors = state.lineErrors
        modemDeltas = state.modemDeltas
        isTransmitterInterruptPending = state.isTransmitterInterruptPending
        hasCarrier = state.hasCarrier
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(interruptEnable)
        encoder.write(lineControl)
        encoder.write(modemControl)
        encoder.write(scratch)
        encoder.write(divisor)
        encoder.write(isFIFOEnabled)
        encoder.write(triggerIndex)
        encoder.write(received)
        encoder.write(unsent)
        encoder.write(lineErrors)
        encoder.write(modemDeltas)
        encoder.write(isTransmitterInterruptPending)
        encoder.write(hasCarrier)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        interruptEnable = try decoder.read()
        lineControl = try decoder.read()
        modemControl = try decoder.read()
        scratch = try decoder.read()
        divisor = try decoder.read()
        isFIFOEnabled = try decoder.readBool("isFIFOEnabled")
        triggerIndex = try decoder.read()
        received = try decoder.readBytes("received", limit: UARTFIFOControl.depth)
        unsent = try decoder.readBytes("unsent", limit: UARTFIFOControl.depth)
        lineErrors = try decoder.read()
        modemDeltas = try decoder.read()
        isTransmitterInterruptPending = try decoder.readBool("isTransmitterInterruptPending")
        hasCarrier = try decoder.readBool("hasCarrier")
    }
}

extension UARTState {
    init(_ saved: UART16550SavedState) throws(SavedStateError) {
        self.init()
        let depth = saved.isFIFOEnabled ? UARTFIFOControl.depth : 1
        try Self.check("interruptEnable", saved.interruptEnable & ~UARTInterruptEnable.writable == 0)
        try Self.check("modemControl", saved.modemControl & ~UARTModemControl.writable == 0)
        try Self.check("triggerIndex", saved.triggerIndex < 4)
        try Self.check("received", saved.received.count <= depth)
        try Self.check("unsent", saved.unsent.count <= depth)
        try Self.check("lineErrors", saved.lineErrors & ~UARTLineStatus.errors == 0)
        try Self.check("modemDeltas", saved.modemDeltas & 0xF0 == 0)
        interruptEnable = UARTInterruptEnable(rawValue: saved.interruptEnable)
        lineControl = saved.lineControl
        modemControl = UARTModemControl(rawValue: saved.modemControl)
        scratch = saved.scratch
        divisor = saved.divisor
        isFIFOEnabled = saved.isFIFOEnabled
        triggerIndex = Int(saved.triggerIndex)
        for byte in saved.received { _ = received.push(byte) }
        for byte in saved.unsent { _ = unsent.push(byte) }
        lineErrors = saved.lineErrors
        modemDeltas = saved.modemDeltas
        isTransmitterInterruptPending = saved.isTransmitterInterruptPending
        hasCarrier = saved.hasCarrier
    }

    private static func check(_ field: String, _ isValid: Bool) throws(SavedStateError) {
        guard isValid else { throw .invalid(identifier: UART16550SavedState.identifier, field: field) }
    }
}
