/// A function's configuration space: what each register holds, and what a guest may change of it (PCIe 5.0 §7.5).
public struct PCIConfigurationSpace: Sendable, Equatable {
    /// PCIe 5.0 §7.2.2: 256 bytes that both mechanisms reach, and the extended ones behind them.
    public static let size = 4096
    static let conventionalSize = 256

    public private(set) var bytes = [UInt8](repeating: 0, count: size)
    private var writable = [UInt8](repeating: 0, count: size)
    private var writeOneToClear = [UInt8](repeating: 0, count: size)
    /// Where the next capability goes: behind the type 0 or type 1 header.
    private var nextCapability = 0x40
    private var lastCapabilityPointer = PCIRegister.capabilityPointer

    public init() {}

    // MARK: Shape, by whoever builds a function

    /// A register's value, and the bits of it that a guest may write.
    public mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int, writable mask: T = 0) {
        for index in 0..<T.bitWidth / 8 {
            bytes[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
            writable[offset + index] = UInt8(truncatingIfNeeded: mask >> T(index * 8))
        }
    }

    /// Bits of a register that a guest clears by writing ones.
    public mutating func setWriteOneToClear<T: FixedWidthInteger>(_ mask: T, at offset: Int) {
        for index in 0..<T.bitWidth / 8 {
            writeOneToClear[offset + index] = UInt8(truncatingIfNeeded: mask >> T(index * 8))
        }
    }

    /// Links a capability of `size` bytes into the list and returns its offset (PCI 3.0 §6.7).
    public mutating func addCapability(_ identifier: UInt8, size: Int) -> Int {
        let offset = nextCapability
        precondition(size >= 2 && offset + size <= Self.conventionalSize)
        bytes[lastCapabilityPointer] = UInt8(offset)
        bytes[offset] = identifier
        lastCapabilityPointer = offset + 1
        nextCapability = (offset + size + 3) & ~3
        bytes[PCIRegister.status] |= UInt8(truncatingIfNeeded: PCIStatus.capabilityList)
        return offset
    }

    // MARK: Access

    public func value<T: FixedWidthInteger>(_ type: T.Type = T.self, at offset: Int) -> T {
        var value: T = 0
        for index in 0..<T.bitWidth / 8 where bytes.indices.contains(offset &+ index) {
            value |= T(truncatingIfNeeded: bytes[offset + index]) << T(index * 8)
        }
        return value
    }

    /// All ones beyond the end.
    public func read(at offset: Int, width: AccessWidth) -> UInt64 {
        guard offset >= 0, offset <= Self.size &- width.rawValue else { return width.mask }
        return value(UInt64.self, at: offset) & width.mask
    }

    /// Changes what a guest may change of the bytes that it wrote.
    public mutating func write(_ value: UInt64, at offset: Int, width: AccessWidth) {
        guard offset >= 0, offset <= Self.size &- width.rawValue else { return }
        for index in 0..<width.rawValue {
            let new = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            let place = offset + index
            let kept = bytes[place] & ~(new & writeOneToClear[place])
            bytes[place] = kept & ~writable[place] | new & writable[place]
        }
    }

    /// Sets or clears bits that the device itself drives.
    mutating func drive<T: FixedWidthInteger>(_ mask: T, _ isOn: Bool, at offset: Int) {
        let old = value(T.self, at: offset)
        let new = isOn ? old | mask : old & ~mask
        for index in 0..<T.bitWidth / 8 { bytes[offset + index] = UInt8(truncatingIfNeeded: new >> T(index * 8)) }
    }

    // MARK: Saved state

    /// Takes over what a guest can have changed from the bytes of another space of the same shape.
    public mutating func restore(_ saved: [UInt8]) -> Bool {
        guard saved.count == bytes.count else { return false }
        for index in bytes.indices {
            let mask = writable[index] | writeOneToClear[index]
            bytes[index] = bytes[index] & ~mask | saved[index] & mask
        }
        return true
    }
}

/// Offsets of the common header (PCIe 5.0 §7.5.1.1) and of the type 0 header (§7.5.1.2).
public enum PCIRegister {
    public static let vendorID = 0x00
    public static let deviceID = 0x02
    public static let command = 0x04
    public static let status = 0x06
    public static let revision = 0x08
    public static let classCode = 0x09
    public static let headerType = 0x0E
    public static let baseAddress = 0x10
    public static let subsystemVendorID = 0x2C
    public static let subsystemID = 0x2E
    public static let capabilityPointer = 0x34
    public static let interruptLine = 0x3C
    public static let interruptPin = 0x3D
}

/// §7.5.1.1.3.
public enum PCICommand {
    public static let ioSpace: UInt16 = 1 << 0
    public static let memorySpace: UInt16 = 1 << 1
    public static let busMaster: UInt16 = 1 << 2
    public static let parityError: UInt16 = 1 << 6
    public static let systemError: UInt16 = 1 << 8
    public static let interruptDisable: UInt16 = 1 << 10
    /// What PCIe functions implement of it.
    public static let writable = ioSpace | memorySpace | busMaster | parityError | systemError | interruptDisable
}

/// §7.5.1.1.4.
public enum PCIStatus {
    public static let interrupt: UInt16 = 1 << 3
    public static let capabilityList: UInt16 = 1 << 4
    public static let errors: UInt16 = 0xF900
}

/// Capability identifiers (PCI Code and ID Assignment §2).
public enum PCICapability {
    public static let messageSignalled: UInt8 = 0x05
    public static let vendorSpecific: UInt8 = 0x09
    public static let express: UInt8 = 0x10
    public static let messageSignalledExtended: UInt8 = 0x11
}

/// The PCI Express capability (§7.5.3), as far as functions of ours have registers in it.
enum PCIExpress {
    static let size = 0x3C
    static let capabilities = 0x02
    static let deviceCapabilities = 0x04
    static let deviceControl = 0x08
    static let deviceStatus = 0x0A
    static let linkCapabilities = 0x0C
    static let linkStatus = 0x12
    /// Capability version 2.
    static let version: UInt16 = 2
    static let roleBasedErrors: UInt32 = 1 << 15
    static let functionLevelReset: UInt32 = 1 << 28
    static let initiateReset: UInt16 = 1 << 15
    /// Error reporting, relaxed ordering, payload size, no-snoop, read request size.
    static let controlWritable: UInt16 = 0x7CFF & ~0x0700
    /// x1 at 2.5 GT/s, the least there is (§7.5.3.6).
    static let link: UInt32 = 0x11
}

/// What kind of PCI Express device a function says it is (§7.5.3.2).
public enum PCIExpressPort: UInt16, Sendable {
    case endpoint = 0
    case rootPort = 4
    case integratedEndpoint = 9
}

extension PCIConfigurationSpace {
    /// Adds the PCI Express capability and returns its offset.
    public mutating func addExpressCapability(_ port: PCIExpressPort, slotNumber: Int = 0) -> Int {
        let offset = addCapability(PCICapability.express, size: PCIExpress.size)
        var capabilities = PCIExpress.version | port.rawValue << 4
        var device = PCIExpress.roleBasedErrors
        if port == .rootPort { capabilities |= 1 << 8 } else { device |= PCIExpress.functionLevelReset }
        set(capabilities, at: offset + PCIExpress.capabilities)
        set(device, at: offset + PCIExpress.deviceCapabilities)
        set(UInt16(0), at: offset + PCIExpress.deviceControl, writable: PCIExpress.controlWritable)
        setWriteOneToClear(UInt16(0x0F), at: offset + PCIExpress.deviceStatus)
        // An integrated endpoint has no link (§7.5.3.6).
        if port != .integratedEndpoint {
            set(
                PCIExpress.link | UInt32(truncatingIfNeeded: slotNumber) << 24, at: offset + PCIExpress.linkCapabilities
            )
            set(UInt16(PCIExpress.link), at: offset + PCIExpress.linkStatus)
        }
        return offset
    }
}
