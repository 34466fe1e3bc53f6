internal import DeviceModel

/// Where the structures are in the first BAR (Virtio 1.2 §4.1.4); a page each, as drivers map them.
enum VirtioPCILayout {
    static let vendorID: UInt16 = 0x1AF4
    /// §4.1.2: 0x1040 and the device type.
    static let firstDeviceID: UInt16 = 0x1040
    /// §4.1.2.1: from 1 for a device without the legacy interface.
    static let revision: UInt8 = 1
    static let bar = 0
    /// A transitional device has the legacy interface in its first BAR.
    static let transitionalBar = 4
    static let barSize: UInt64 = 0x4000
    static let common: UInt64 = 0x0000
    static let interruptStatus: UInt64 = 0x1000
    static let device: UInt64 = 0x2000
    static let notify: UInt64 = 0x3000
    static let structureSize: UInt64 = 0x1000
    static let notifyMultiplier: UInt32 = 4
    static let msixBar = 2
    static let msixBarSize: UInt64 = 0x2000
    static let msixPending: UInt64 = 0x1000
    /// Queue numbers that have a place in the notification page.
    static let queueLimit = 64
}

/// cfg_type of struct virtio_pci_cap (§4.1.4).
enum VirtioPCICapability: UInt8, CaseIterable {
    case common = 1
    case notify = 2
    case interruptStatus = 3
    case device = 4
    case access = 5
}

/// struct virtio_pci_common_cfg (§4.1.4.3) by offset.
enum VirtioCommonRegister {
    static let deviceFeatureSelect: UInt64 = 0x00
    static let deviceFeature: UInt64 = 0x04
    static let driverFeatureSelect: UInt64 = 0x08
    static let driverFeature: UInt64 = 0x0C
    static let configurationVector: UInt64 = 0x10
    static let queueCount: UInt64 = 0x12
    static let status: UInt64 = 0x14
    static let configurationGeneration: UInt64 = 0x15
    static let queueSelect: UInt64 = 0x16
    static let queueSize: UInt64 = 0x18
    static let queueVector: UInt64 = 0x1A
    static let queueEnable: UInt64 = 0x1C
    static let queueNotifyOffset: UInt64 = 0x1E
    static let queueDescriptors: UInt64 = 0x20
    static let queueDriver: UInt64 = 0x28
    static let queueDevice: UInt64 = 0x30
    static let queueNotifyData: UInt64 = 0x38
    static let queueReset: UInt64 = 0x3A
    static let size: UInt64 = 0x3C
}

/// The device status field (§2.1).
enum VirtioStatus {
    static let acknowledge: UInt8 = 1
    static let driver: UInt8 = 2
    static let driverOK: UInt8 = 4
    static let featuresOK: UInt8 = 8
    static let needsReset: UInt8 = 64
    static let failed: UInt8 = 128
    static let all: UInt8 = 0xCF
}

/// The ISR status (§4.1.4.5).
enum VirtioInterruptStatus {
    static let queue: UInt8 = 1
    static let configuration: UInt8 = 2
}

/// No vector (§4.1.5.1.2).
let virtioNoVector: UInt16 = 0xFFFF
