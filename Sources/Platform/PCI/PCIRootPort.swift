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
    static let ioUpper = 0x30
    static let bridgeControl = 0x3E
    static let headerType: UInt8 = 1
    /// §7.5.1.1.9: the slot has more functions than this one.
    static let multifunction: UInt8 = 0x80
    /// §7.5.1.3.13: a rising edge resets what is behind the bridge.
    static let secondaryReset: UInt16 = 1 << 6
    static let bridgeControlWritable: UInt16 = 0x0043
}

/// A root port: a bridge to a bus of its own with one device on it. Of what the device decodes it lets through what lies
/// in its windows, and messages where it may master the bus. It has no interrupts of its own: nothing happens to it.
public final class PCIRootPort: PCIConfigurable {
    // Configuration
    let child: (any PCIConfigurable)?
    private let onSecondaryReset: @Sendable () -> Void
    // Volatile state
    private let state: Mutex<PCIConfigurationSpace>
    // Glue. Lock order: this one, then `state`.
    private let link = Mutex(Link())

    /// What a memory window is made of (§7.5.1.3.8).
    public static let windowGranularity: UInt64 = 1 << 20

    /// The identity of a generic root port that guests know; drivers go by its class.
    private static let vendorID: UInt16 = 0x1B36
    private static let deviceID: UInt16 = 0x000C

    /// What the device wants, and the way on.
    private struct Link: Sendable {
        var upstream: (any PCIConnection)?
        var regions: [PCIRegion] = []
    }

    /// `onSecondaryReset` resets the child; the port has no lock then. Of several functions in one slot each says so.
    public init(
        slotNumber: Int, isMultifunction: Bool = false, child: (any PCIConfigurable)?,
        onSecondaryReset: @escaping @Sendable () -> Void = {}
    ) {
        self.child = child
        self.onSecondaryReset = onSecondaryReset
        state = Mutex(Self.initialSpace(slotNumber: slotNumber, isMultifunction: isMultifunction))
    }

    private static func initialSpace(slotNumber: Int, isMultifunction: Bool) -> PCIConfigurationSpace {
        var space = PCIConfigurationSpace()
        space.set(vendorID, at: PCIRegister.vendorID)
        space.set(deviceID, at: PCIRegister.deviceID)
        space.set(UInt16(0), at: PCIRegister.command, writable: PCICommand.writable)
        space.setWriteOneToClear(PCIStatus.errors, at: PCIRegister.status)
        space.set(UInt16(0x0400), at: PCIRegister.classCode)  // PCI-to-PCI bridge
        space.set(UInt8(0x06), at: PCIRegister.classCode + 2)
        let type = PCIBridgeRegister.headerType | (isMultifunction ? PCIBridgeRegister.multifunction : 0)
        space.set(type, at: PCIRegister.headerType)
        space.set(UInt8(0), at: 0x0C, writable: .max)
        space.set(UInt32(0), at: PCIBridgeRegister.primaryBus, writable: 0x00FF_FFFF)
        // Windows whose limit is below their base are closed.
        space.set(UInt16(0x01F1), at: PCIBridgeRegister.ioBase, writable: 0xF0F0)
        space.set(UInt32(0x0000_FFF0), at: PCIBridgeRegister.memoryBase, writable: 0xFFF0_FFF0)
        space.set(UInt32(0x0001_FFF1), at: PCIBridgeRegister.prefetchableBase, writable: 0xFFF0_FFF0)
        space.set(UInt64(0), at: PCIBridgeRegister.prefetchableUpper, writable: .max)
        space.set(UInt32(0), at: PCIBridgeRegister.ioUpper, writable: .max)
        space.set(UInt8(0), at: PCIRegister.interruptLine, writable: .max)
        space.set(UInt16(0), at: PCIBridgeRegister.bridgeControl, writable: PCIBridgeRegister.bridgeControlWritable)
        _ = space.addExpressCapability(.rootPort, slotNumber: slotNumber)
        return space
    }

    // MARK: Bus numbers and windows

    /// 0 until the guest has given it a number.
    var secondaryBus: UInt8 {
        state.withLock { $0.value(UInt8.self, at: PCIBridgeRegister.secondaryBus) }
    }

    /// As a firmware does before it starts a system: a bus number, an open memory window of whole megabytes below 4 GiB.
    public func assign(bus: UInt8, memory: Range<UInt64>) {
        precondition(
            memory.lowerBound % Self.windowGranularity == 0 && memory.upperBound % Self.windowGranularity == 0
                && !memory.isEmpty && memory.upperBound <= 1 << 32)
        state.withLock { space in
            space.write(UInt64(bus) << 8 | UInt64(bus) << 16, at: PCIBridgeRegister.primaryBus, width: .double)
            let window = memory.lowerBound >> 16 | ((memory.upperBound - 1) >> 16 & 0xFFF0) << 16
            space.write(window, at: PCIBridgeRegister.memoryBase, width: .double)
            let command = PCICommand.memorySpace | PCICommand.busMaster
            space.write(UInt64(command), at: PCIRegister.command, width: .word)
        }
    }

    /// The device's way to the board, by way of this port.
    public func connection(to upstream: some PCIConnection) -> some PCIConnection {
        link.withLock { $0.upstream = upstream }
        return Downstream(port: self)
    }

    /// Lets go of the board: the machine is ending.
    public func disconnect() { link.withLock { $0 = Link() } }

    private struct Downstream: PCIConnection {
        let port: PCIRootPort

        func decode(_ regions: [PCIRegion]) { port.forward(regions) }
        func setInterruptPin(_ level: Bool) { port.upstream?.setInterruptPin(level) }
        func send(_ message: PCIMessage, vector: Int) {
            if port.isBusMaster { port.upstream?.send(message, vector: vector) }
        }
    }

    private var upstream: (any PCIConnection)? { link.withLock { $0.upstream } }

    private var isBusMaster: Bool {
        state.withLock { $0.value(UInt16.self, at: PCIRegister.command) & PCICommand.busMaster != 0 }
    }

    /// One at a time, so that of two changes the last one stays. `regions` nil: those of before.
    private func forward(_ regions: [PCIRegion]? = nil) {
        link.withLock { link in
            if let regions { link.regions = regions }
            let windows = state.withLock { PCIBridgeWindows($0) }
            link.upstream?.decode(link.regions.filter(windows.contains))
        }
    }

    // MARK: Configuration space

    public func readConfiguration(at offset: Int, width: AccessWidth) -> UInt64 {
        state.withLock { $0.read(at: offset, width: width) }
    }

    public func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {
        let (resets, moves) = state.withLock { space in
            let before = (space.value(UInt16.self, at: PCIBridgeRegister.bridgeControl), PCIBridgeWindows(space))
            space.write(value, at: offset, width: width)
            let after: UInt16 = space.value(at: PCIBridgeRegister.bridgeControl)
            return (after & ~before.0 & PCIBridgeRegister.secondaryReset != 0, PCIBridgeWindows(space) != before.1)
        }
        if moves { forward() }
        if resets { onSecondaryReset() }
    }

    public func save() -> PCIRootPortSavedState { state.withLock { PCIRootPortSavedState(space: $0.bytes) } }

    public init(
        restoring saved: PCIRootPortSavedState, slotNumber: Int, isMultifunction: Bool = false,
        child: (any PCIConfigurable)?, onSecondaryReset: @escaping @Sendable () -> Void = {}
    ) throws(SavedStateError) {
        self.child = child
        self.onSecondaryReset = onSecondaryReset
        var space = Self.initialSpace(slotNumber: slotNumber, isMultifunction: isMultifunction)
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
