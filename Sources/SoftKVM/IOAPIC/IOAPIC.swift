/// An 82093AA I/O APIC as KVM has it: 24 pins, version 0x11, polarity ignored (a line that is raised is active).
struct IOAPIC: Equatable, Sendable {
    static let pinCount = 24
    static let baseAddress: UInt64 = 0xfec0_0000
    static let length: UInt64 = 0x100

    var selectedRegister: UInt8 = 0
    var identifier: UInt8 = 0
    /// Lines that are high, for edge detection and for level pins.
    var lines: UInt32 = 0
    /// Edges that were delivered: not to be replayed by a restore.
    var delivered: UInt32 = 0
    var entries = [RedirectionEntry](repeating: RedirectionEntry(), count: pinCount)

    /// One entry of the redirection table (82093AA §3.2.4).
    struct RedirectionEntry: Equatable, Sendable {
        var bits: UInt64 = 1 << 16

        static let deliveryStatus: UInt64 = 1 << 12
        static let remoteIRRBit: UInt64 = 1 << 14
        static let writable: UInt64 = 0xff00_0000_0001_afff

        var vector: UInt8 { UInt8(truncatingIfNeeded: bits) }
        var isLevel: Bool { bits & (1 << 15) != 0 }
        var isMasked: Bool { bits & (1 << 16) != 0 }
        var remoteIRR: Bool {
            get { bits & Self.remoteIRRBit != 0 }
            set { bits = newValue ? bits | Self.remoteIRRBit : bits & ~Self.remoteIRRBit }
        }

        var message: InterruptMessage {
            InterruptMessage(
                vector: vector, mode: .init(bits: bits >> 8), isLogical: bits & (1 << 11) != 0, isLevel: isLevel,
                destination: UInt32(truncatingIfNeeded: bits >> 56))
        }
    }

    /// A new level on a pin. True: the pin has something to deliver (`message(for:)`).
    mutating func setLine(_ pin: Int, level: Bool) -> Bool {
        guard pin >= 0, pin < Self.pinCount else { return false }
        let bit = UInt32(1) << UInt32(pin)
        guard level else {
            lines &= ~bit
            return false
        }
        let wasHigh = lines & bit != 0
        lines |= bit
        if !entries[pin].isLevel {
            delivered &= ~bit
            return !wasHigh && !entries[pin].isMasked
        }
        return canDeliver(pin)
    }

    /// A level pin that is high, unmasked and not in service.
    private func canDeliver(_ pin: Int) -> Bool {
        let entry = entries[pin]
        return entry.isLevel && lines & (1 << UInt32(pin)) != 0 && !entry.isMasked && !entry.remoteIRR
    }

    func message(for pin: Int) -> InterruptMessage { entries[pin].message }

    /// A local APIC took (or refused) the pin's message.
    mutating func wasDelivered(_ pin: Int, accepted: Bool) {
        if entries[pin].isLevel { entries[pin].remoteIRR = accepted } else { delivered |= 1 << UInt32(pin) }
    }

    /// An EOI broadcast: the pins with that vector become deliverable again. Returns those that still have a request.
    mutating func endOfInterrupt(vector: UInt8) -> UInt32 {
        var again: UInt32 = 0
        for pin in 0..<Self.pinCount where entries[pin].vector == vector && entries[pin].isLevel {
            entries[pin].remoteIRR = false
            if canDeliver(pin) { again |= 1 << UInt32(pin) }
        }
        return again
    }

    /// Whether the interrupt of `vector` came from `pin`.
    func uses(_ vector: UInt8, onPin pin: Int) -> Bool { !entries[pin].isMasked && entries[pin].vector == vector }
}

/// What a register write asks of the owner.
struct IOAPICEffect: Equatable {
    /// A pin that has something to deliver now.
    var pin: Int?
    /// A pin that was unmasked.
    var unmasked: Int?
}

extension IOAPIC {
    func read(offset: UInt64) -> UInt32 {
        switch offset & 0xf0 {
        case 0x00: UInt32(selectedRegister)
        case 0x10: readSelected()
        default: 0
        }
    }

    private func readSelected() -> UInt32 {
        switch selectedRegister {
        case 0, 2: return UInt32(identifier) << 24
        case 1: return 0x0017_0011
        case 0x10..<0x40:
            let bits = entries[Int(selectedRegister - 0x10) >> 1].bits
            return UInt32(truncatingIfNeeded: selectedRegister & 1 == 0 ? bits : bits >> 32)
        default: return 0
        }
    }

    mutating func write(offset: UInt64, _ value: UInt32) -> IOAPICEffect {
        switch offset & 0xf0 {
        case 0x00: selectedRegister = UInt8(truncatingIfNeeded: value)
        case 0x10: return writeSelected(value)
        default: break
        }
        return IOAPICEffect()
    }

    private mutating func writeSelected(_ value: UInt32) -> IOAPICEffect {
        switch selectedRegister {
        case 0:
            identifier = UInt8(truncatingIfNeeded: value >> 24) & 0xf
            return IOAPICEffect()
        case 0x10..<0x40:
            return writeEntry(Int(selectedRegister - 0x10) >> 1, isHigh: selectedRegister & 1 != 0, value)
        default:
            return IOAPICEffect()
        }
    }

    private mutating func writeEntry(_ pin: Int, isHigh: Bool, _ value: UInt32) -> IOAPICEffect {
        let old = entries[pin]
        let bits =
            isHigh
            ? old.bits & 0xffff_ffff | UInt64(value) << 32
            : old.bits & 0xffff_ffff_0000_0000 | UInt64(value)
        entries[pin].bits = bits & RedirectionEntry.writable | old.bits & ~RedirectionEntry.writable
        // Switching a pin to edge is how systems without a directed EOI clear a stuck remote IRR.
        if !entries[pin].isLevel { entries[pin].remoteIRR = false }
        return IOAPICEffect(
            pin: canDeliver(pin) ? pin : nil, unmasked: old.isMasked && !entries[pin].isMasked ? pin : nil)
    }
}
