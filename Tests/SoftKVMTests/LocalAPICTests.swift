internal import CHost
internal import Testing

@testable import SoftKVM

private func instant(_ nanoseconds: UInt64) -> HostInstant {
    // 2 GHz.
    HostInstant(nanoseconds: nanoseconds, tsc: nanoseconds * 2)
}

private let start = instant(1_000_000)

extension LocalAPIC {
    @discardableResult
    fileprivate mutating func write(_ offset: Int, _ value: UInt32, at now: HostInstant = start) -> APICEffect {
        writePage(offset: offset, size: 4, value: UInt64(value), at: now)
    }

    fileprivate mutating func read(_ offset: Int, at now: HostInstant = start) -> UInt32 {
        UInt32(truncatingIfNeeded: readPage(offset: offset, size: 4, at: now))
    }

    fileprivate mutating func receiveFixed(_ vector: UInt8, isLevel: Bool = false) -> Bool {
        receive(InterruptMessage(vector: vector, mode: .fixed, isLevel: isLevel, destination: 0))
    }
}

private func enabledAPIC(id: UInt32 = 0) -> LocalAPIC {
    var apic = LocalAPIC(initialID: id, tscFrequency: 2_000_000_000)
    apic.write(0xf0, 0x1ff)
    return apic
}

private func x2APIC(id: UInt32 = 0) -> LocalAPIC {
    var apic = enabledAPIC(id: id)
    let isAccepted = apic.setBase(apic.base | 0x400, physicalAddressMask: 0xff_ffff_ffff)
    precondition(isAccepted)
    return apic
}

@Suite struct LocalAPICTests {
    @Test(
        arguments: [
            (0x20, 0x0300_0000), (0x30, 0x0005_0014), (0x80, 0), (0xe0, 0xffff_ffff), (0xf0, 0xff), (0x320, 0x1_0000),
            (0x350, 0x1_0000), (0x360, 0x1_0000), (0x370, 0x1_0000), (0x380, 0), (0x390, 0),
        ] as [(Int, UInt32)])
    func resetValues(offset: Int, value: UInt32) {
        var apic = LocalAPIC(initialID: 3, tscFrequency: 1)
        #expect(apic.read(offset) == value)
    }

    @Test func bootstrapStartsWithVirtualWire() {
        #expect(LocalAPIC(initialID: 0, tscFrequency: 1).base == 0xfee0_0900)
        #expect(LocalAPIC(initialID: 0, tscFrequency: 1).acceptsPIC)
        #expect(LocalAPIC(initialID: 1, tscFrequency: 1).base == 0xfee0_0800)
        #expect(!LocalAPIC(initialID: 1, tscFrequency: 1).acceptsPIC)
    }

    // MARK: Priorities

    @Test func softwareDisabledTakesNothing() {
        var apic = LocalAPIC(initialID: 0, tscFrequency: 1)
        #expect(apic.receiveFixed(0x40) == false)
        apic.write(0xf0, 0x1ff)
        #expect(apic.receiveFixed(0x40) == true)
        #expect(apic.deliverableVector == 0x40)
    }

    @Test func highestVectorFirst() {
        var apic = enabledAPIC()
        for vector in [0x40, 0x51, 0x50, 0x32] as [UInt8] { _ = apic.receiveFixed(vector) }
        #expect(apic.acknowledge() == 0x51)
        // Same class as the one in service: waits.
        #expect(apic.deliverableVector == nil)
        #expect(apic.read(0xa0) == 0x50)
        _ = apic.receiveFixed(0x60)
        #expect(apic.acknowledge() == 0x60)
        #expect(apic.write(0xb0, 0) == .ended(.init(vector: 0x60, isLevel: false)))
        #expect(apic.write(0xb0, 0) == .ended(.init(vector: 0x51, isLevel: false)))
        #expect(apic.acknowledge() == 0x50)
    }

    @Test(
        arguments: [
            (0x40, 0x41, false), (0x4f, 0x41, false), (0x3f, 0x41, true), (0x50, 0x41, false), (0xf0, 0xff, false),
        ]
            as [(UInt32, UInt8, Bool)])
    func taskPriorityHoldsBack(priority: UInt32, vector: UInt8, isDeliverable: Bool) {
        var apic = enabledAPIC()
        apic.write(0x80, priority)
        _ = apic.receiveFixed(vector)
        #expect((apic.deliverableVector != nil) == isDeliverable)
        apic.needsAttention = false
        apic.write(0x80, 0)
        #expect(apic.deliverableVector == vector)
        #expect(apic.needsAttention)
    }

    @Test func triggerModeFollowsTheInterrupt() {
        var apic = enabledAPIC()
        _ = apic.receiveFixed(0x45, isLevel: true)
        #expect(apic.read(0x180 + 0x20) == 1 << 5)
        _ = apic.acknowledge()
        #expect(apic.read(0x100 + 0x20) == 1 << 5)
        #expect(apic.write(0xb0, 0) == .ended(.init(vector: 0x45, isLevel: true)))
        #expect(apic.write(0xb0, 0) == APICEffect.none)
    }

    @Test func reservedVectorsAreErrors() {
        var apic = enabledAPIC()
        apic.write(0x370, 0xfe)
        #expect(apic.receiveFixed(5) == false)
        #expect(apic.deliverableVector == 0xfe)
        #expect(apic.read(0x280) == 0)
        apic.write(0x280, 0)
        #expect(apic.read(0x280) == 0x40)
        apic.write(0x300, 0x0000_0005)
        apic.write(0x280, 0)
        #expect(apic.read(0x280) == 0x20)
        _ = apic.read(0x2f0)
        apic.write(0x280, 0)
        #expect(apic.read(0x280) == 0x80)
    }

    // MARK: Timer

    @Test(
        arguments: [
            (0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1),
        ]
            as [(UInt32, UInt64)])
    func divideConfiguration(bits: UInt32, divisor: UInt64) {
        var apic = enabledAPIC()
        apic.write(0x320, 0x40)
        apic.write(0x3e0, bits)
        apic.write(0x380, 1_000)
        #expect(apic.nextDeadline == start.nanoseconds + 1_000 * divisor)
        #expect(apic.read(0x390, at: instant(start.nanoseconds + 400 * divisor)) == 600)
    }

    @Test func oneShot() {
        var apic = enabledAPIC()
        apic.write(0x3e0, 0xb)
        apic.write(0x320, 0x40)
        apic.write(0x380, 500_000)
        apic.advance(to: instant(1_499_999))
        #expect(apic.deliverableVector == nil)
        apic.advance(to: instant(1_500_000))
        #expect(apic.acknowledge() == 0x40)
        #expect(apic.nextDeadline == nil)
        #expect(apic.read(0x390, at: instant(1_500_000)) == 0)
        apic.advance(to: instant(9_000_000))
        #expect(apic.deliverableVector == nil)
    }

    @Test func periodic() {
        var apic = enabledAPIC()
        apic.write(0x3e0, 0xb)
        apic.write(0x320, 0x2_0040)
        apic.write(0x380, 1_000_000)
        for tick in 1...5 as ClosedRange<UInt64> {
            #expect(apic.nextDeadline == start.nanoseconds + tick * 1_000_000)
            apic.advance(to: instant(start.nanoseconds + tick * 1_000_000 + 7))
            #expect(apic.acknowledge() == 0x40)
            apic.write(0xb0, 0)
        }
        // A long absence is one interrupt, and the phase stays.
        apic.advance(to: instant(start.nanoseconds + 50_500_000))
        #expect(apic.acknowledge() == 0x40)
        #expect(apic.nextDeadline == start.nanoseconds + 51_000_000)
        #expect(apic.read(0x390, at: instant(start.nanoseconds + 50_500_000)) == 500_000)
        apic.write(0x380, 0)
        #expect(apic.nextDeadline == nil)
    }

    @Test func maskedTimerRunsUnseen() {
        var apic = enabledAPIC()
        apic.write(0x3e0, 0xb)
        apic.write(0x320, 0x1_0040)
        apic.write(0x380, 1_000)
        #expect(apic.nextDeadline == nil)
        #expect(apic.read(0x390, at: instant(start.nanoseconds + 400)) == 600)
        apic.advance(to: instant(start.nanoseconds + 2_000))
        #expect(apic.deliverableVector == nil)
    }

    @Test func tscDeadline() {
        var apic = enabledAPIC()
        apic.timer.setTSCOffset(0 &- 1_000_000, at: start)
        apic.timer.setTSCDeadline(5, at: start)
        #expect(apic.tscDeadline == 0)  // not in that mode
        apic.write(0x320, 0x4_0040)
        // Guest TSC is 1 000 000 now; 1 ms later it is 3 000 000.
        apic.timer.setTSCDeadline(3_000_000, at: start)
        #expect(apic.tscDeadline == 3_000_000)
        #expect(apic.nextDeadline == 2_000_000)
        apic.write(0x380, 1_000)
        #expect(apic.read(0x380) == 0)
        apic.advance(to: HostInstant(nanoseconds: 2_000_000, tsc: 3_999_998))
        #expect(apic.deliverableVector == nil)
        #expect(apic.nextDeadline == 2_000_001)
        apic.advance(to: HostInstant(nanoseconds: 2_000_001, tsc: 4_000_000))
        #expect(apic.acknowledge() == 0x40)
        #expect(apic.tscDeadline == 0)
        #expect(apic.nextDeadline == nil)
    }

    @Test func tscDeadlineInThePastFiresAtOnce() {
        var apic = enabledAPIC()
        apic.write(0x320, 0x4_0040)
        apic.timer.setTSCDeadline(1, at: start)
        apic.advance(to: start)
        #expect(apic.deliverableVector == 0x40)
        // Leaving the mode disarms.
        apic.timer.setTSCDeadline(.max, at: start)
        apic.write(0x320, 0x0_0040)
        #expect(apic.nextDeadline == nil)
        #expect(apic.timer.tscDeadline == 0)
    }

    // MARK: ICR

    @Test(
        arguments: [
            (0x0000_0041, 0x0200_0000, InterruptMessage(vector: 0x41, mode: .fixed, isAsserted: false, destination: 2)),
            (0x0000_4841, 0x0200_0000, InterruptMessage(vector: 0x41, mode: .fixed, isLogical: true, destination: 2)),
            (0x0004_4041, 0, InterruptMessage(vector: 0x41, mode: .fixed, shorthand: .toSelf, destination: 0)),
            (0x000c_4400, 0, InterruptMessage(vector: 0, mode: .nmi, shorthand: .others, destination: 0)),
            (0x0000_c500, 0x0100_0000, InterruptMessage(vector: 0, mode: .initialize, isLevel: true, destination: 1)),
            (0x0000_4608, 0x0100_0000, InterruptMessage(vector: 8, mode: .startUp, destination: 1)),
        ] as [(UInt32, UInt32, InterruptMessage)])
    func commands(low: UInt32, high: UInt32, message: InterruptMessage) {
        var apic = enabledAPIC()
        apic.write(0x310, high)
        var expected = message
        expected.isInterprocessor = true
        #expect(apic.write(0x300, low) == .send(expected))
        #expect(apic.read(0x300) == low)
    }

    // MARK: Destinations

    struct Match: Sendable {
        var destination: UInt32
        var isLogical: Bool
        var logicalDestination: UInt32
        var format: UInt32
        var matches: Bool
    }

    @Test(arguments: [
        Match(destination: 3, isLogical: false, logicalDestination: 0, format: .max, matches: true),
        Match(destination: 4, isLogical: false, logicalDestination: 0, format: .max, matches: false),
        Match(destination: 0xff, isLogical: false, logicalDestination: 0, format: .max, matches: true),
        Match(destination: 0x06, isLogical: true, logicalDestination: 0x0400_0000, format: .max, matches: true),
        Match(destination: 0x08, isLogical: true, logicalDestination: 0x0400_0000, format: .max, matches: false),
        Match(destination: 0x24, isLogical: true, logicalDestination: 0x2400_0000, format: 0x0fff_ffff, matches: true),
        Match(destination: 0x34, isLogical: true, logicalDestination: 0x2400_0000, format: 0x0fff_ffff, matches: false),
        Match(destination: 0xff, isLogical: true, logicalDestination: 0, format: .max, matches: true),
    ])
    func destinations(_ match: Match) {
        var apic = enabledAPIC(id: 3)
        apic.write(0xd0, match.logicalDestination)
        apic.write(0xe0, match.format)
        let message = InterruptMessage(
            vector: 0x40, mode: .fixed, isLogical: match.isLogical, destination: match.destination)
        #expect(apic.matches(message) == match.matches)
    }

    // MARK: x2APIC

    @Test func x2APICRegisters() {
        var apic = x2APIC(id: 0x23)
        #expect(apic.page == nil)
        #expect(apic.readMSR(0x802, at: start) == 0x23)
        #expect(apic.readMSR(0x803, at: start) == 0x0005_0014)
        #expect(apic.readMSR(0x80d, at: start) == 0x0002_0008)
        #expect(apic.writeMSR(0x83f, 0x44, at: start) != nil)
        #expect(
            apic.writeMSR(0x830, 0x0000_0005_0000_4041, at: start)
                == .send(InterruptMessage(vector: 0x41, mode: .fixed, destination: 5, isInterprocessor: true)))
        #expect(apic.readMSR(0x830, at: start) == 0x0000_0005_0000_4041)
        for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x8ff, 0x7ff, 0x809] as [UInt32] {
            #expect(apic.readMSR(msr, at: start) == nil)
        }
        for (msr, value) in [
            (0x80b, 1), (0x808, 0x100), (0x802, 0), (0x80d, 0), (0x80e, 0), (0x80f, 0x1000), (0x828, 1), (0x839, 0),
            (0x838, 1 << 32), (0x83e, 4), (0x830, 1 << 13), (0x832, 1 << 19),
        ] as [(UInt32, UInt64)] {
            #expect(apic.writeMSR(msr, value, at: start) == nil)
        }
        #expect(apic.writeMSR(0x80b, 0, at: start) == APICEffect.none)
    }

    @Test(
        arguments: [
            (0x23, false, true), (0x0002_0008, true, true), (0x0002_0004, true, false), (0x0001_0008, true, false),
            (0xffff_ffff, false, true), (0xff, false, false),
        ] as [(UInt32, Bool, Bool)])
    func x2APICDestinations(destination: UInt32, isLogical: Bool, matches: Bool) {
        let message = InterruptMessage(
            vector: 0x40, mode: .fixed, isLogical: isLogical, destination: destination, isInterprocessor: true)
        #expect(x2APIC(id: 0x23).matches(message) == matches)
    }

    /// SDM vol. 3A figure 11-27.
    @Test(
        arguments: [
            (0x800, 0xc00, true), (0x800, 0x000, true), (0x800, 0x400, false), (0xc00, 0x800, false),
            (0xc00, 0x000, true),
            (0x000, 0xc00, false), (0x000, 0x800, true), (0x800, 0x801, false), (0x800, 1 << 45 | 0x800, false),
        ] as [(UInt64, UInt64, Bool)])
    func baseTransitions(from: UInt64, to: UInt64, isAccepted: Bool) {
        var apic = LocalAPIC(initialID: 0, tscFrequency: 1)
        apic.forceBase(0xfee0_0000 | from)
        #expect(apic.setBase(0xfee0_0000 | to, physicalAddressMask: 0xff_ffff_ffff) == isAccepted)
    }

    // MARK: Saved state

    @Test func savedStateRoundTrip() {
        var apic = enabledAPIC(id: 5)
        apic.write(0x80, 0x20)
        apic.write(0xd0, 0x0400_0000)
        apic.write(0x320, 0x2_0040)
        apic.write(0x350, 0x0_8731)
        apic.write(0x3e0, 0xb)
        apic.write(0x380, 1_000_000)
        apic.write(0x310, 0x0300_0000)
        _ = apic.receiveFixed(0x93, isLevel: true)
        _ = apic.acknowledge()
        _ = apic.receiveFixed(0x31)
        let later = instant(start.nanoseconds + 250_000)
        let state = apic.savedState(at: later)
        func register(_ offset: Int) -> UInt32 {
            withUnsafeBytes(of: state.regs) { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
        }
        #expect(register(0x20) == 0x0500_0000)
        #expect(register(0x390) == 750_000)
        #expect(register(0x100 + 0x40) == 1 << 0x13)
        #expect(register(0xa0) == 0x90)

        var restored = LocalAPIC(initialID: 5, tscFrequency: 2_000_000_000)
        let elsewhere = instant(77_000_000)
        restored.restore(state, at: elsewhere)
        #expect(restored.nextDeadline == 77_750_000)
        // Apart from what depends on the moment the two are the same.
        restored.timer.expiry = apic.timer.expiry
        restored.needsAttention = apic.needsAttention
        #expect(restored == apic)
    }

    @Test func initKeepsBaseAndID() {
        var apic = enabledAPIC(id: 2)
        apic.write(0x20, 0x0700_0000)
        apic.write(0x320, 0x40)
        apic.write(0x380, 1_000_000)
        _ = apic.receiveFixed(0x55)
        apic.resetByINIT()
        #expect(apic.read(0x20) == 0x0700_0000)
        #expect(apic.deliverableVector == nil)
        #expect(apic.nextDeadline == nil)
        #expect(apic.read(0xf0) == 0xff)
    }
}
