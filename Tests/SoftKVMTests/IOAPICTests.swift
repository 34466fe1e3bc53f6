internal import CHost
internal import Testing

@testable import SoftKVM

extension IOAPIC {
    fileprivate mutating func program(_ pin: Int, low: UInt32, high: UInt32 = 0) -> IOAPICEffect {
        _ = write(offset: 0, UInt32(0x11 + pin * 2))
        _ = write(offset: 0x10, high)
        _ = write(offset: 0, UInt32(0x10 + pin * 2))
        return write(offset: 0x10, low)
    }
}

@Suite struct IOAPICTests {
    @Test func registers() {
        var ioapic = IOAPIC()
        _ = ioapic.write(offset: 0, 1)
        #expect(ioapic.read(offset: 0x10) == 0x0017_0011)
        _ = ioapic.write(offset: 0, 0)
        _ = ioapic.write(offset: 0x10, 0xffff_ffff)
        #expect(ioapic.read(offset: 0x10) == 0x0f00_0000)
        _ = ioapic.write(offset: 0, 0x10)
        #expect(ioapic.read(offset: 0x10) == 0x0001_0000)
        // Delivery status and remote IRR are read-only.
        _ = ioapic.write(offset: 0x10, 0xffff_ffff)
        #expect(ioapic.read(offset: 0x10) == 0x0001_afff)
        _ = ioapic.write(offset: 0, 0x40)
        #expect(ioapic.read(offset: 0x10) == 0)
    }

    @Test func message() {
        var ioapic = IOAPIC()
        _ = ioapic.program(4, low: 0x8931, high: 0x0300_0000)
        #expect(
            ioapic.message(for: 4)
                == InterruptMessage(vector: 0x31, mode: .lowestPriority, isLogical: true, isLevel: true, destination: 3)
        )
    }

    @Test func edgeDeliversOncePerEdge() {
        var ioapic = IOAPIC()
        _ = ioapic.program(4, low: 0x31)
        #expect(ioapic.setLine(4, level: true) == true)
        ioapic.wasDelivered(4, accepted: true)
        #expect(ioapic.setLine(4, level: true) == false)
        #expect(ioapic.setLine(4, level: false) == false)
        #expect(ioapic.setLine(4, level: true) == true)
        #expect(!ioapic.entries[4].remoteIRR)
    }

    @Test func levelWaitsForEndOfInterrupt() {
        var ioapic = IOAPIC()
        _ = ioapic.program(9, low: 0x8041)
        #expect(ioapic.setLine(9, level: true) == true)
        ioapic.wasDelivered(9, accepted: true)
        #expect(ioapic.entries[9].remoteIRR)
        #expect(ioapic.setLine(9, level: true) == false)
        #expect(ioapic.endOfInterrupt(vector: 0x42) == 0)
        // Still high: once more. Then low: no more.
        #expect(ioapic.endOfInterrupt(vector: 0x41) == 1 << 9)
        ioapic.wasDelivered(9, accepted: true)
        _ = ioapic.setLine(9, level: false)
        #expect(ioapic.endOfInterrupt(vector: 0x41) == 0)
        #expect(!ioapic.entries[9].remoteIRR)
    }

    @Test func maskedLevelIsDeliveredWhenUnmasked() {
        var ioapic = IOAPIC()
        #expect(ioapic.program(9, low: 0x1_8041) == IOAPICEffect())
        #expect(ioapic.setLine(9, level: true) == false)
        #expect(ioapic.program(9, low: 0x8041) == IOAPICEffect(pin: 9, unmasked: 9))
        // A masked edge is lost, as on the hardware.
        var other = IOAPIC()
        #expect(other.setLine(3, level: true) == false)
        #expect(other.program(3, low: 0x33) == IOAPICEffect(pin: nil, unmasked: 3))
    }

    @Test func switchingToEdgeClearsRemoteIRR() {
        var ioapic = IOAPIC()
        _ = ioapic.program(9, low: 0x8041)
        _ = ioapic.setLine(9, level: true)
        ioapic.wasDelivered(9, accepted: true)
        _ = ioapic.program(9, low: 0x1_0041)
        #expect(!ioapic.entries[9].remoteIRR)
        #expect(ioapic.program(9, low: 0x8041).pin == 9)
    }

    @Test func savedStateRoundTrip() {
        var ioapic = IOAPIC()
        _ = ioapic.program(9, low: 0x8041, high: 0x0100_0000)
        _ = ioapic.program(1, low: 0x0031)
        _ = ioapic.setLine(9, level: true)
        ioapic.wasDelivered(9, accepted: true)
        _ = ioapic.setLine(1, level: true)
        ioapic.wasDelivered(1, accepted: true)
        let state = ioapic.savedState
        #expect(state.irr == 1 << 9)
        #expect(state.base_address == 0xfec0_0000)
        let restored = IOAPIC(restoring: state)
        #expect(restored.entries == ioapic.entries)
        #expect(restored.selectedRegister == ioapic.selectedRegister)
    }
}
