/// A guest-physical address: an offset into the machine's 52-bit physical address space (SDM vol. 3A §4.1.4).
public struct GuestPhysicalAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt64

    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// Wraps at 2^64: guest values never trap.
    @inlinable public static func + (address: Self, offset: UInt64) -> Self { Self(address.rawValue &+ offset) }

    public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// A port number of the 64 KiB I/O space (SDM vol. 1 §19.3).
public struct IOPort: Hashable, Comparable, Sendable {
    public var rawValue: UInt16

    @inlinable public init(_ rawValue: UInt16) { self.rawValue = rawValue }

    @inlinable public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// A global system interrupt: KVM's number for an interrupt line (ACPI 6.5 §5.2.13).
public struct GSI: Hashable, Sendable {
    public var rawValue: UInt32

    @inlinable public init(_ rawValue: UInt32) { self.rawValue = rawValue }
}
