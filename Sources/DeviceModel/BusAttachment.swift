/// Where one register block of a device sits on a bus.
public struct BusAttachment: Sendable {
    public var name: String
    public var base: UInt64
    public var size: UInt64
    public var device: any BusDevice

    public init(name: String, base: UInt64, size: UInt64, device: any BusDevice) {
        self.name = name
        self.base = base
        self.size = size
        self.device = device
    }
}

/// A device of the board that says where a PC has it: whoever assembles the machine attaches all of `attachments`.
public protocol BoardDevice: BusDevice {
    var attachments: [BusAttachment] { get }
}

extension Bus {
    public mutating func attach(_ attachment: BusAttachment) throws(BusConflict) {
        try attach(attachment.device, named: attachment.name, at: attachment.base, size: attachment.size)
    }
}

/// Part of a device's registers at another place on the bus, as the i8042 has its data port at 0x60 and its command
/// port at 0x64 with somebody else's port between them.
public final class BusWindow: BusDevice {
    private let device: any BusDevice
    private let start: UInt64

    /// Offset 0 of the window is offset `start` of `device`.
    public init(_ device: any BusDevice, startingAt start: UInt64) {
        self.device = device
        self.start = start
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        device.read(offset: offset &+ start, width: width)
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        device.write(offset: offset &+ start, width: width, value: value)
    }
}
