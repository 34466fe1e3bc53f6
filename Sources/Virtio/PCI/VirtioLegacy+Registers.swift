/// The legacy interface (Virtio 1.2 §4.1.4.10): ports in the first BAR, in the guest's byte order, which is ours.
enum VirtioLegacyLayout {
    static let bar = 0
    /// The registers and the largest configuration that a device with this interface has.
    static let barSize: UInt64 = 128
    /// §4.1.2.1: network, block, … from 0x1000 on, which is not the order of the device types' numbers.
    static func deviceID(of kind: UInt16) -> UInt16? {
        switch kind {
        case 1: 0x1000
        case 2: 0x1001
        default: nil
        }
    }
    static let revision: UInt8 = 0
    /// §2.7.2: what an address of a queue counts, and what the used ring is aligned to.
    static let pageSize: UInt64 = 4096

    /// Where the rings of a queue are (§2.7.2): one behind the other, the used ring on a page of its own.
    static func addresses(page: UInt32, size: UInt16) -> QueueAddresses {
        let base = UInt64(page) * pageSize
        let available = base + 16 * UInt64(size)
        let used = (available + 2 * (3 + UInt64(size)) + pageSize - 1) & ~(pageSize - 1)
        return QueueAddresses(descriptors: base, driver: available, device: used)
    }
}

enum VirtioLegacyRegister {
    static let deviceFeatures: UInt64 = 0x00
    static let driverFeatures: UInt64 = 0x04
    static let queueAddress: UInt64 = 0x08
    static let queueSize: UInt64 = 0x0C
    static let queueSelect: UInt64 = 0x0E
    static let queueNotify: UInt64 = 0x10
    static let status: UInt64 = 0x12
    static let interruptStatus: UInt64 = 0x13
    /// Only while MSI-X is enabled; otherwise the configuration begins here.
    static let configurationVector: UInt64 = 0x14
    static let queueVector: UInt64 = 0x16
    static let configurationWithVectors: UInt64 = 0x18
}
