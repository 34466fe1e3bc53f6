/// Configuration mechanism #1 (PCI Local Bus Specification 3.0 §3.2.2.3.2).
enum PCIConfigurationAddress {
    static let enable: UInt32 = 0x8000_0000
    /// Bits 1:0 and 30:24 are reserved and read as 0.
    static let writable: UInt32 = 0x80FF_FFFC
}

/// Port 0xCF9 (ICH9 datasheet §13.7.5): bit 1 chooses a hard reset, bit 2 resets when it rises.
enum ResetControl {
    static let hardReset: UInt8 = 0x02
    static let resetCPU: UInt8 = 0x04
    static let writable: UInt8 = 0x0E
    /// What FADT tells the guest to write.
    static let fullReset: UInt8 = 0x06
}

/// Function 0:0.0's header, of the Q35 MCH that guests know as a PC's host bridge (PCI 3.0 §6.1).
enum PCIHostBridgeHeader {
    static let vendorAndDevice: UInt32 = 0x29C0_8086
    /// Class 06 (bridge), subclass 00 (host), programming interface 0, revision 0.
    static let classAndRevision: UInt32 = 0x0600_0000
}
