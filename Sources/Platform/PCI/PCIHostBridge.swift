public import DeviceModel
internal import Synchronization

/// The PCI host bridge's ports: configuration mechanism #1 at 0xCF8–0xCFF, and the reset control register that a PC has
/// at 0xCF9 among them.
public final class PCIHostBridge: SavableDevice {
    // Glue
    private let hierarchy: PCIHierarchy
    private let onReset: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<PCIHostBridgeState>

    public init(hierarchy: PCIHierarchy = PCIHierarchy(), onReset: @escaping @Sendable () -> Void) {
        self.hierarchy = hierarchy
        self.onReset = onReset
        state = Mutex(PCIHostBridgeState())
    }

    public init(
        restoring saved: PCIHostBridgeSavedState, hierarchy: PCIHierarchy = PCIHierarchy(),
        onReset: @escaping @Sendable () -> Void
    ) throws(SavedStateError) {
        self.hierarchy = hierarchy
        self.onReset = onReset
        state = Mutex(try PCIHostBridgeState(saved))
    }

    public var attachments: [BusAttachment] {
        [BusAttachment(name: "PCI host bridge", base: 0xCF8, size: 8, device: self)]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        guard offset < 8, offset + UInt64(width.rawValue) <= 8 else { return .rejected(.noSuchRegister) }
        let current = state.withLock { $0 }
        switch (offset, width) {
        case (0, .double): return .value(UInt64(current.address))
        case (1, .byte): return .value(UInt64(current.resetControl))
        case (4..., _):
            guard offset % UInt64(width.rawValue) == 0 else { return .rejected(.unaligned) }
            // All ones where no function answers (PCI 3.0 §3.2.2.3.4).
            guard let target = current.target else { return .value(width.mask) }
            return .value(hierarchy.read(target.address, at: target.register + Int(offset - 4), width: width))
        default: return .rejected(.wrongWidth)
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
        case (4..<8, _):
            guard offset % UInt64(width.rawValue) == 0, width != .quad else { return .rejected(.unaligned) }
            if let target = state.withLock({ $0.target }) {
                hierarchy.write(value, target.address, at: target.register + Int(offset - 4), width: width)
            }
            return .done
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

    /// The function and the register that the data ports are at; nil while they are disabled.
    var target: (address: PCIAddress, register: Int)? {
        guard address & PCIConfigurationAddress.enable != 0 else { return nil }
        let function = PCIAddress(
            bus: UInt8(truncatingIfNeeded: address >> 16), device: UInt8(truncatingIfNeeded: address >> 11 & 31),
            function: UInt8(truncatingIfNeeded: address >> 8 & 7))
        return (function, Int(address & 0xFC))
    }

    /// True when the machine must reset.
    mutating func writeResetControl(_ value: UInt8) -> Bool {
        let rises = value & ~resetControl & ResetControl.resetCPU != 0
        resetControl = value & ResetControl.writable
        return rises
    }
}
