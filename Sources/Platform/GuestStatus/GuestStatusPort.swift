public import DeviceModel
internal import Synchronization

/// The paravirtual way for the default guest's init to say how the command that it ran ended: one byte at port 0x5F0.
///
/// Written before power-off; the last byte written is the status that the process ends with. It reads back what was
/// written, and 0 before that; a guest can tell the port is there by writing and reading 0xA5 first. Any access width
/// but a byte is refused.
public final class GuestStatusPort: SavableDevice {
    public static let port: UInt64 = 0x5F0

    private let onStatus: @Sendable (UInt8) -> Void
    private let value: Mutex<UInt8?>

    public init(onStatus: @escaping @Sendable (UInt8) -> Void = { _ in }) {
        self.onStatus = onStatus
        value = Mutex(nil)
    }

    public init(
        restoring saved: GuestStatusPortSavedState, onStatus: @escaping @Sendable (UInt8) -> Void = { _ in }
    ) {
        self.onStatus = onStatus
        value = Mutex(saved.value)
    }

    /// What the guest wrote last; nil when it never did.
    public var status: UInt8? { value.withLock { $0 } }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "guest status port", base: Self.port, size: 1, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        return .value(UInt64(status ?? 0))
    }

    public func write(offset: UInt64, width: AccessWidth, value new: UInt64) -> WriteResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        let byte = UInt8(truncatingIfNeeded: new)
        value.withLock { $0 = byte }
        onStatus(byte)
        return .done
    }

    public func save() -> GuestStatusPortSavedState {
        GuestStatusPortSavedState(value: status)
    }
}

/// The guest status port's saved state, version 1.
public struct GuestStatusPortSavedState: DeviceSavedState {
    public static let identifier = "guest-status"
    public static let version: UInt32 = 1

    var value: UInt8?

    init(value: UInt8?) {
        self.value = value
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(value)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        value = try decoder.readOptional("value")
    }
}
