public import DeviceModel
internal import Synchronization

/// System control port A at 0x92: bit 0 resets the processor when it rises, bit 1 is a second A20 gate
/// (IBM PS/2 Hardware Interface Technical Reference, 1988, "System Control Port A"). A20 itself is always open here.
public final class SystemControlPortA: SavableDevice {
    static let reset: UInt8 = 0x01
    static let a20: UInt8 = 0x02

    private let onReset: @Sendable () -> Void
    private let value: Mutex<UInt8>

    public init(onReset: @escaping @Sendable () -> Void) {
        self.onReset = onReset
        value = Mutex(Self.a20)
    }

    public init(restoring saved: SystemControlPortASavedState, onReset: @escaping @Sendable () -> Void) {
        self.onReset = onReset
        value = Mutex(saved.value)
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "system control port A", base: 0x92, size: 1, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        return .value(UInt64(value.withLock { $0 }))
    }

    public func write(offset: UInt64, width: AccessWidth, value new: UInt64) -> WriteResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        let byte = UInt8(truncatingIfNeeded: new)
        let resets = value.withLock { value in
            let rises = byte & ~value & Self.reset != 0
            value = byte
            return rises
        }
        if resets { onReset() }
        return .done
    }

    public func save() -> SystemControlPortASavedState {
        SystemControlPortASavedState(value: value.withLock { $0 })
    }
}

/// System control port A's saved state, version 1.
public struct SystemControlPortASavedState: DeviceSavedState {
    public static let identifier = "system-control-port-a"
    public static let version: UInt32 = 1

    var value: UInt8

    init(value: UInt8) {
        self.value = value
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(value)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        value = try decoder.read()
    }
}
