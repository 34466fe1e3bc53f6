public import DeviceModel

/// The way out of bare-metal test programs: a write of `value` ends the process with `(value << 1) | 1`, of which a
/// process keeps eight bits (QEMU's isa-debug-exit). It has no state, and reads as 0.
public final class ISADebugExit: BoardDevice {
    private let base: UInt16
    private let size: UInt16
    private let onExit: @Sendable (Int32) -> Void

    /// `onExit` gets the process status, already computed. A size of 0 counts as 1.
    public init(base: UInt16 = 0xF4, size: UInt16 = 4, onExit: @escaping @Sendable (Int32) -> Void) {
        self.base = base
        self.size = max(1, size)
        self.onExit = onExit
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "isa-debug-exit", base: UInt64(base), size: UInt64(size), device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult { .value(0) }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        onExit(Int32(truncatingIfNeeded: ((value << 1) | 1) & 0xFF))
        return .done
    }
}
