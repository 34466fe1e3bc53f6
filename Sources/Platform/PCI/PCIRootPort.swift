public import DeviceModel
internal import Synchronization

/// Offsets of the type 1 header (PCIe 5.0 §7.5.1.3).
enum PCIBridgeRegister {
    static let primaryBus = 0x18
    static let secondaryBus = 0x19
    static let subordinateBus = 0x1A
    static let ioBase = 0x1C
    static let memoryBase = 0x20
    static let prefetchableBase = 0x24
    static let prefetchableUpper = 0x28
    static let bridgeControl = 0x3E
    static let headerType: UInt8 = 1
    /// §7.5.1.3.13: a rising edge resets what is behind the bridge.
    static let secondaryReset: UInt16 = 1 << 6
    static let bridgeControlWritable: UInt16 = 0x0043
}

/// A root port: a bridge to a bus of its own with one device on it.
public final class PCIRootPort: PCIConfigurable {
    // Configuration
    let child: (any PCIConfigurable)?
    private let onSecondaryReset: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<PCIConfigurationSpace>

    /// The identity of a generic root port that guests know; drivers go by its class.
    private static let vendorID: UInt16 = 0x1B36
    private static let deviceID: UInt16 = 0x000C

    /// `onSecondaryReset` resets the child; the port has no lock then.
    public init(
        slotNumber: Int, child: (any PCIConfigurable)?, onSecondaryReset: @escaping @Sendable () -> Void = {}
    ) {
        self.child = child
        self.onSecondaryReset = onSecondaryReset
        state = Mutex(Self.initialSpace(slotNumber: slotNumber))
    }

    private static func initialSpace(slotNumber: Int) -> PCIConfigurationSpace {
        var space = PCIConfigurationSpace()
        space.set(vendorID, at: PCIRegister.vendorID)
        space.set(deviceID, at: PCIRegister.deviceID)
        space.set(UInt16(0), at: PCIRegister.command, writable: PCICommand.writable)
        space.setWriteOneToClear(PCIStatus.errors, at: PCIRegister.status)
        space.set(UInt16(0x0400), at: PCIRegister.classCode)  // PCI-to-PCI bridge
        space.set(UInt8(0x06), at: PCIRegister.classCode + 2)
        space.set(PCIBridgeRegister.headerType, at: PCIRegister.headerType)
        space.set(UInt8(0), at: 0x0C, writable: .max)
        space.set(UInt32(0), at: PCIBridgeRegister.primaryBus, writable: 0x00FF_FFFF)
        space.set(UInt16(0x0101), at: PCIBridgeRegister.ioBase, writable: 0xF0F0)
        space.set(UInt32(0), at: PCIBridgeRegister.memoryBase, writable: 0xFFF0_FFF0)
        space.set(UInt32(0x0001_0001), at: PCIBridgeRegister.prefetchableBase, writable: 0xFFF0_FFF0)
        space.set(UInt64(0), at: PCIBridgeRegister.prefetchableUpper, writable: .max)
        space.set(UInt32(0), at: 0x30, writable: .max)  // I/O base and limit, upper halves
        space.set(UInt8(0), at: PCIRegister.interruptLine, writable: .max)
        space.set(UInt8(1), at: PCIRegister.interruptPin)
        space.set(UInt16(0), at: PCIBridgeRegister.bridgeControl, writable: PCIBridgeRegister.bridgeControlWritable)
        _ = space.addExpressCapability(.rootPort, slotNumber: slotNumber)
        return space
    }

    /// 0 until the guest has given it a number.
    var secondaryBus: UInt8 {
        state.withLock { $0.value(UInt8.self, at: PCIBridgeRegister.secondaryBus) }
    }

    public func readConfiguration(at offset: Int, width: AccessWidth) -> UInt64 {
        state.withLock { $0.read(at: offset, width: width) }
    }

    public func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {
        let resets = state.withLock { space in
            let before: UInt16 = space.value(at: PCIBridgeRegister.bridgeControl)
            space.write(value, at: offset, width: width)
            let after: UInt16 = space.value(at: PCIBridgeRegister.bridgeControl)
            return after & ~before & PCIBridgeRegister.secondaryReset != 0
        }
        if resets { onSecondaryReset() }
    }

    public func save() -> PCIRootPortSavedState { state.withLock { PCIRootPortSavedState(space: $0.bytes) } }

    public init(
        restoring saved: PCIRootPortSavedState, slotNumber: Int, child: (any PCIConfigurable)?,
        onSecondaryReset: @escaping @Sendable () -> Void = {}
    ) throws(SavedStateError) {
        self.child = child
        self.onSecondaryReset = onSecondaryReset
        var space = Self.initialSpace(slotNumber: slotNumber)
        guard space.restore(saved.space) else {
            throw .invalid(identifier: PCIRootPortSavedState.identifier, field: "space")
        }
        state = Mutex(space)
    }
}

/// A root port's saved state, version 1.
public struct PCIRootPortSavedState: DeviceSavedState {
    public static let identifier = "pci-root-port"
    public static let version: UInt32 = 1

    var space: [UInt8]

    init(space: [UInt8]) { self.space = space }

    public func encode(into encoder: inout StateEncoder) { encoder.write(space) }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        space = try decoder.readBytes("space", limit: PCIConfigurationSpace.size)
    }
}
