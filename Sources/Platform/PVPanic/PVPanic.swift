public import DeviceModel

/// The port that a guest kernel's panic notifier writes to (QEMU docs/specs/pvpanic): bit 0 says that the guest
/// panicked, bit 1 that a crash kernel takes over. A read tells which of them are understood. It has no state.
public final class PVPanic: BoardDevice {
    public static let port: UInt64 = 0x505

    public enum Event: Sendable {
        case panicked
        case crashLoaded
    }

    static let panicked: UInt64 = 0x01
    static let crashLoaded: UInt64 = 0x02

    private let onEvent: @Sendable (Event) -> Void

    public init(onEvent: @escaping @Sendable (Event) -> Void) {
        self.onEvent = onEvent
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "pvpanic", base: Self.port, size: 1, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        return .value(Self.panicked | Self.crashLoaded)
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard width == .byte, offset == 0 else { return .rejected(.wrongWidth) }
        if value & Self.panicked != 0 { onEvent(.panicked) }
        if value & Self.crashLoaded != 0 { onEvent(.crashLoaded) }
        return .done
    }
}
