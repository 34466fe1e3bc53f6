internal import CHost
public import X86

/// Where a GSI leads (struct kvm_irq_routing_entry, KVM API §4.52).
public struct GSIRoute: Equatable, Sendable {
    public enum Target: Equatable, Sendable {
        /// An input of one of the interrupt controllers: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC.
        case irqChip(UInt32, pin: UInt32)
        /// A message, as KVM_SIGNAL_MSI sends one.
        case message(address: UInt64, data: UInt32)
    }

    public var gsi: GSI
    public var target: Target

    public init(gsi: GSI, target: Target) {
        self.gsi = gsi
        self.target = target
    }

    public static let picMaster: UInt32 = 0
    public static let picSlave: UInt32 = 1
    public static let ioapic: UInt32 = 2

    /// A PC's wiring: 0–15 reach the PICs and the I/O APIC, the timer (0) there at pin 2, 16–23 the I/O APIC alone.
    public static let standard: [GSIRoute] = (0..<24).flatMap { (gsi: UInt32) -> [GSIRoute] in
        guard gsi != 2 else { return [] }
        let toIOAPIC = GSIRoute(gsi: GSI(gsi), target: .irqChip(ioapic, pin: gsi == 0 ? 2 : gsi))
        guard gsi < 16 else { return [toIOAPIC] }
        return [
            GSIRoute(gsi: GSI(gsi), target: .irqChip(gsi < 8 ? picMaster : picSlave, pin: gsi & 7)), toIOAPIC,
        ]
    }
}

/// A guest's writes that signal an eventfd (struct kvm_ioeventfd, KVM API §4.59).
public struct IOEvent: Hashable, Sendable {
    public var address: UInt64
    /// 0, 1, 2, 4 or 8 bytes; 0: a write of any width.
    public var length: UInt32
    public var isPort: Bool
    /// Only writes of this value.
    public var match: UInt64?
    public var descriptor: Int32

    public init(address: UInt64, length: UInt32, isPort: Bool = false, match: UInt64? = nil, descriptor: Int32) {
        self.address = address
        self.length = length
        self.isPort = isPort
        self.match = match
        self.descriptor = descriptor
    }
}
