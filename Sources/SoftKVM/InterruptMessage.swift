/// What goes over the system bus (or the old APIC bus) to the local APICs (SDM vol. 3A §11.6.1, §11.11).
struct InterruptMessage: Equatable, Sendable {
    enum DeliveryMode: UInt8 {
        case fixed = 0
        case lowestPriority = 1
        case smi = 2
        case remoteRead = 3
        case nmi = 4
        case initialize = 5
        case startUp = 6
        case external = 7

        /// From three bits of a register.
        init(bits: UInt64) { self = Self(rawValue: UInt8(truncatingIfNeeded: bits & 7)) ?? .fixed }
    }

    enum Shorthand: UInt8 {
        case none = 0
        case toSelf = 1
        case all = 2
        case others = 3

        init(bits: UInt64) { self = Self(rawValue: UInt8(truncatingIfNeeded: bits & 3)) ?? .none }
    }

    var vector: UInt8
    var mode: DeliveryMode
    var isLogical = false
    var isLevel = false
    var isAsserted = true
    var shorthand = Shorthand.none
    var destination: UInt32
    /// From another local APIC, where an 8-bit broadcast does not reach APICs in x2APIC mode.
    var isInterprocessor = false
}

extension InterruptMessage {
    /// A message-signalled interrupt (SDM vol. 3A §11.11; bits 63–40 of the address extend the destination as in KVM).
    init(msiAddress: UInt64, data: UInt32) {
        self.init(
            vector: UInt8(truncatingIfNeeded: data), mode: DeliveryMode(bits: UInt64(data >> 8)),
            isLogical: msiAddress & 4 != 0, isLevel: data & (1 << 15) != 0,
            isAsserted: data & (1 << 15) == 0 || data & (1 << 14) != 0,
            destination: UInt32(truncatingIfNeeded: (msiAddress >> 12) & 0xff)
                | UInt32(truncatingIfNeeded: msiAddress >> 32) & 0xffff_ff00)
    }
}
