/// Where a function is: bus 0–255, device 0–31, function 0–7.
public struct PCIAddress: Hashable, Sendable, CustomStringConvertible {
    public var bus: UInt8
    public var device: UInt8
    public var function: UInt8

    public init(bus: UInt8 = 0, device: UInt8, function: UInt8 = 0) {
        self.bus = bus
        self.device = device & 31
        self.function = function & 7
    }

    public var description: String {
        func hex(_ value: UInt8) -> String { (value < 16 ? "0" : "") + String(value, radix: 16) }
        return "\(hex(bus)):\(hex(device)).\(function)"
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (PCIe 5.0 §6.1.4).
public struct PCIMessage: Hashable, Sendable {
    public var address: UInt64
    public var data: UInt32

    public init(address: UInt64, data: UInt32) {
        self.address = address
        self.data = data
    }
}

/// One base address register, or a pair of them (PCIe 5.0 §7.5.1.2.1).
public struct PCIBaseAddress: Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        case io
        case memory32
        /// Takes the register behind it too.
        case memory64
    }

    /// 0–5.
    public var index: Int
    public var kind: Kind
    /// A power of two: from 16 bytes of memory, from 4 ports, at most 256 of them (§7.5.1.2.1).
    public var size: UInt64
    public var isPrefetchable: Bool

    public init(index: Int, kind: Kind, size: UInt64, isPrefetchable: Bool = false) {
        precondition(index >= 0 && index + (kind == .memory64 ? 1 : 0) < 6)
        precondition(size & (size &- 1) == 0 && size >= (kind == .io ? 4 : 16))
        precondition(kind == .io ? size <= 256 : kind == .memory64 || size <= 1 << 31)
        self.index = index
        self.kind = kind
        self.size = size
        self.isPrefetchable = isPrefetchable
    }

    /// The bits that say what the register is; a guest cannot change them.
    var flags: UInt64 {
        switch kind {
        case .io: 1
        case .memory32: isPrefetchable ? 8 : 0
        case .memory64: isPrefetchable ? 0xC : 4
        }
    }
}

/// A part of a function's registers whose writes can reach their device as an event, without its vCPU leaving the engine
/// (KVM_IOEVENTFD).
public struct PCIDoorbell: Sendable {
    public var offset: UInt64
    public var width: AccessWidth
    /// Only writes of this value.
    public var match: UInt64?
    public var notifier: any DoorbellNotifier

    public init(offset: UInt64, width: AccessWidth, match: UInt64? = nil, notifier: any DoorbellNotifier) {
        self.offset = offset
        self.width = width
        self.match = match
        self.notifier = notifier
    }
}

/// The eventfd behind a doorbell.
public protocol DoorbellNotifier: AnyObject, Sendable {
    var eventDescriptor: Int32 { get }
}

/// Addresses that a function decodes at the moment.
public struct PCIRegion: Sendable {
    public var name: String
    public var isPortIO: Bool
    public var base: UInt64
    public var size: UInt64
    public var device: any BusDevice
    public var doorbells: [PCIDoorbell]
}

/// What the board is to one function: its address decoders, its interrupt pin and the way of its messages. Called
/// without any lock of the function's device.
public protocol PCIConnection: Sendable {
    /// From now on the function decodes these regions and no others. What does not lie in a window of the host bridge,
    /// or overlaps something that was there before, answers nothing.
    func decode(_ regions: [PCIRegion])
    func setInterruptPin(_ level: Bool)
    /// `vector` is which of the function's it is: the next message of the same vector is most often the same.
    func send(_ message: PCIMessage, vector: Int)
}

/// Anything at a PCI address that answers configuration accesses.
public protocol PCIConfigurable: AnyObject, Sendable {
    /// `offset` is below 4096 and the access does not cross a four-byte boundary.
    func readConfiguration(at offset: Int, width: AccessWidth) -> UInt64
    func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth)
}
