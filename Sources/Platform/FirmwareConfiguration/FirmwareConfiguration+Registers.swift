/// The fw_cfg device's ports and keys (QEMU docs/specs/fw_cfg).
enum FirmwareConfigurationPort {
    static let base: UInt64 = 0x510
    static let size: UInt64 = 12
    static let selector: UInt64 = 0
    static let data: UInt64 = 1
    /// Big-endian halves of the DMA descriptor's address; writing the low half starts the transfer.
    static let dmaHigh: UInt64 = 4
    static let dmaLow: UInt64 = 8
    /// What the DMA ports read as, in this byte order.
    static let dmaSignature = Array("QEMU CFG".utf8)
}

enum FirmwareConfigurationKey {
    static let signature: UInt16 = 0x00
    static let id: UInt16 = 0x01
    static let ramSize: UInt16 = 0x03
    static let cpuCount: UInt16 = 0x05
    static let kernelSize: UInt16 = 0x08
    static let initrdSize: UInt16 = 0x0B
    static let maximumCPUs: UInt16 = 0x0F
    static let kernelData: UInt16 = 0x11
    static let initrdData: UInt16 = 0x12
    static let commandLineSize: UInt16 = 0x14
    static let commandLineData: UInt16 = 0x15
    static let fileDirectory: UInt16 = 0x19
    static let firstFile: UInt16 = 0x20
}

/// The item `id`: which interfaces there are.
enum FirmwareConfigurationFeature {
    static let traditional: UInt32 = 1
    static let dma: UInt32 = 2
}

/// The control field of FWCfgDmaAccess.
enum FirmwareConfigurationDMA {
    static let error: UInt32 = 1
    static let read: UInt32 = 2
    static let skip: UInt32 = 4
    static let select: UInt32 = 8
    static let write: UInt32 = 16
    /// Bytes handed to guest memory at once.
    static let chunk = 65536
}
