public import DeviceModel
internal import Synchronization

/// The PCI host bridge as far as a guest without PCI devices asks: configuration mechanism #1 at ports 0xCF8–0xCFF
/// with the bridge's own function on bus 0, and the reset control register that a PC has at 0xCF9 among them.
public final class PCIHostBridge: SavableDevice {
    // Glue
    private let onReset: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<PCIHostBridgeState>

    public init(onReset: @escaping @Sendable () -> Void) {
        self.onReset = onReset
        state = Mutex(PCIHostBridgeState())
    }

    public init(
        restoring saved: PCIHostBridgeSavedState, onReset: @escaping @Sendable () -> Void
    ) throws(SavedStateError) {
        self.onReset = onReset
        state = Mutex(try PCIHostBridgeState(saved))
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "PCI host bridge", base: 0xCF8, size: 8, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard offset < 8, offset + UInt64(width.rawValue) <= 8 else { return .rejected(.noSuchRegister) }
        return state.withLock { state in
            switch (offset, width) {
            case (0, .double): return .value(UInt64(state.address))
            case (1, .byte): return .value(UInt64(state.resetControl))
            case (4..., _):
                guard offset % UInt64(width.rawValue) == 0 else { return .rejected(.unaligned) }
                return .value(UInt64(state.data) >> ((offset - 4) * 8) & width.mask)
            default: return .rejected(.wrongWidth)
            }
        }
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        switch (offset, width) {
        case (0, .double):
            let address = UInt32(truncatingIfNeeded: value) & PCIConfigurationAddress.writable
            state.withLock { $0.address = address }
            return .done
        case (1, .byte):
            let resets = state.withLock { $0.writeResetControl(UInt8(truncatingIfNeeded: value)) }
            if resets { onReset() }
            return .done
        case (4..<8, _): return .done  // every register of the only function is read-only
        default: return .rejected(.wrongWidth)
        }
    }

    public func save() -> PCIHostBridgeSavedState {
        state.withLock { PCIHostBridgeSavedState($0) }
    }
}

struct PCIHostBridgeState: Sendable {
    var address: UInt32 = 0
    var resetControl: UInt8 = 0

    /// What a read of all of 0xCFC–0xCFF gives: all ones where no function answers (PCI 3.0 §3.2.2.3.4).
    var data: UInt32 {
        let function = address >> 8 & 0xFFFF
        guard address & PCIConfigurationAddress.enable != 0, function == 0 else { return .max }
        return PCIHostBridgeHeader.register(address & 0xFC)
    }

    /// True when the machine must reset.
    mutating func writeResetControl(_ value: UInt8) -> Bool {
        let rises = value & ~resetControl & ResetControl.resetCPU != 0
        resetControl = value & ResetControl.writable
        return rises
    }
}
