internal import CHost

/// struct kvm_ioapic_state.
extension IOAPIC {
    /// Where the redirection table, an array of unions that Swift cannot import, is in the structure: behind
    /// base_address, ioregsel, id, irr and pad.
    private static let tableOffset = 24

    var savedState: kvm_ioapic_state {
        var state = kvm_ioapic_state()
        state.base_address = Self.baseAddress
        state.ioregsel = UInt32(selectedRegister)
        state.id = UInt32(identifier)
        state.irr = lines & ~delivered
        withUnsafeMutableBytes(of: &state) { bytes in
            for (pin, entry) in entries.enumerated() {
                bytes.storeBytes(of: entry.bits, toByteOffset: Self.tableOffset + pin * 8, as: UInt64.self)
            }
        }
        return state
    }

    /// The lines come back through `setLine`, so that what was pending is delivered (as KVM_SET_IRQCHIP does).
    init(restoring state: kvm_ioapic_state) {
        selectedRegister = UInt8(truncatingIfNeeded: state.ioregsel)
        identifier = UInt8(truncatingIfNeeded: state.id) & 0xf
        withUnsafeBytes(of: state) { bytes in
            for pin in 0..<Self.pinCount {
                entries[pin].bits =
                    bytes.loadUnaligned(fromByteOffset: Self.tableOffset + pin * 8, as: UInt64.self)
                    & (RedirectionEntry.writable | RedirectionEntry.remoteIRRBit)
            }
        }
    }
}
