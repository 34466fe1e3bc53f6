internal import CHost
internal import Fuzzing
internal import Testing

@testable import SoftKVM

private func instant(_ nanoseconds: UInt64) -> HostInstant { HostInstant(nanoseconds: nanoseconds, tsc: nanoseconds) }

/// Local APICs 0 … count-1, enabled; the pins of I/O APIC and PICs masked.
private func machine(cpus: Int = 1) -> InterruptFabric {
    var fabric = InterruptFabric(tscFrequency: 1_000_000_000)
    fabric.isPresent = true
    fabric.writePort(0x21, 0xff, at: instant(0))
    fabric.writePort(0xa1, 0xff, at: instant(0))
    for id in 0..<cpus {
        _ = fabric.addAPIC(id: UInt32(id), tscOffset: 0)
        fabric.writeAPICPage(id, offset: 0xf0, size: 4, value: 0x1ff, at: instant(0))
    }
    return fabric
}

extension InterruptFabric {
    fileprivate mutating func program(_ pin: Int, low: UInt32, high: UInt32 = 0) {
        writeIOAPIC(offset: 0, UInt32(0x11 + pin * 2))
        writeIOAPIC(offset: 0x10, high)
        writeIOAPIC(offset: 0, UInt32(0x10 + pin * 2))
        writeIOAPIC(offset: 0x10, low)
    }

    fileprivate mutating func endOfInterrupt(_ index: Int = 0) {
        writeAPICPage(index, offset: 0xb0, size: 4, value: 0, at: instant(0))
    }

    fileprivate mutating func command(_ index: Int, low: UInt32, high: UInt32 = 0) {
        writeAPICPage(index, offset: 0x310, size: 4, value: UInt64(high), at: instant(0))
        writeAPICPage(index, offset: 0x300, size: 4, value: UInt64(low), at: instant(0))
    }

    fileprivate mutating func initializePIC() {
        for (port, value) in [
            (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1),
        ]
            as [(UInt16, UInt8)]
        {
            writePort(port, value, at: instant(0))
        }
    }

    /// Channel 0, mode 2, 10 ms.
    fileprivate mutating func startPIT(at now: HostInstant) {
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] as [(UInt16, UInt8)] {
            writePort(port, value, at: now)
        }
    }
}

@Suite struct InterruptFabricTests {
    @Test func lineThroughThePICAsExtINT() {
        var fabric = machine()
        fabric.initializePIC()
        fabric.apics[0].needsAttention = false
        fabric.setLine(4, level: true)
        #expect(fabric.apics[0].needsAttention)
        #expect(fabric.hasInterrupt(for: 0))
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x24)
        #expect(!fabric.hasInterrupt(for: 0))
        // LINT0 masked: nobody listens.
        fabric.writeAPICPage(0, offset: 0x350, size: 4, value: 0x1_0700, at: instant(0))
        fabric.writePort(0x20, 0x20, at: instant(0))
        fabric.setLine(3, level: true)
        #expect(!fabric.hasInterrupt(for: 0))
    }

    @Test func levelLineThroughTheIOAPIC() {
        var fabric = machine()
        fabric.program(10, low: 0x8055)
        fabric.setLine(10, level: true)
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x55)
        #expect(!fabric.hasInterrupt(for: 0))
        // The device has not been served: again after the EOI.
        fabric.endOfInterrupt()
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x55)
        fabric.setLine(10, level: false)
        fabric.endOfInterrupt()
        #expect(!fabric.hasInterrupt(for: 0))
        fabric.setLine(10, level: true)
        #expect(fabric.hasInterrupt(for: 0))
    }

    /// GSI 0 is pin 2, GSI 2 is nothing; GSIs beyond the pins are ignored.
    @Test func routing() {
        var fabric = machine()
        fabric.program(2, low: 0x30)
        fabric.program(0, low: 0x31)
        fabric.setLine(0, level: true)
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x30)
        fabric.endOfInterrupt()
        fabric.setLine(2, level: true)
        fabric.setLine(24, level: true)
        fabric.setLine(.max, level: true)
        #expect(!fabric.hasInterrupt(for: 0))
    }

    @Test func unacceptedLevelInterruptIsNotLost() {
        var fabric = machine()
        fabric.writeAPICPage(0, offset: 0xf0, size: 4, value: 0xff, at: instant(0))
        fabric.program(10, low: 0x8055)
        fabric.setLine(10, level: true)
        #expect(!fabric.hasInterrupt(for: 0))
        fabric.writeAPICPage(0, offset: 0xf0, size: 4, value: 0x1ff, at: instant(0))
        fabric.program(10, low: 0x8055)
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x55)
    }

    @Test func messageSignalled() {
        var fabric = machine(cpus: 2)
        fabric.deliver(InterruptMessage(msiAddress: 0xfee0_1000, data: 0x4061), from: nil)
        #expect(!fabric.hasInterrupt(for: 0))
        #expect(fabric.acknowledgeInterrupt(for: 1) == 0x61)
    }

    // MARK: Several processors

    @Test(
        arguments: [
            (0x0000_0041, 0x0100_0000, [false, true, false]), (0x0004_0041, 0, [true, false, false]),
            (0x0008_0041, 0, [true, true, true]), (0x000c_0041, 0, [false, true, true]),
            (0x0000_0041, 0xff00_0000, [true, true, true]),
        ] as [(UInt32, UInt32, [Bool])])
    func interprocessorInterrupts(low: UInt32, high: UInt32, receivers: [Bool]) {
        var fabric = machine(cpus: 3)
        fabric.command(0, low: low, high: high)
        let received = (0..<3).map { fabric.acknowledgeInterrupt(for: $0) == 0x41 }
        #expect(received == receivers)
    }

    @Test func lowestPrioritySpreads() {
        var fabric = machine(cpus: 2)
        for id in 0..<2 { fabric.writeAPICPage(id, offset: 0xd0, size: 4, value: 1 << UInt64(24 + id), at: instant(0)) }
        fabric.program(5, low: 0x0961, high: 0x0300_0000)
        for _ in 0..<4 {
            fabric.setLine(5, level: true)
            fabric.setLine(5, level: false)
            for id in 0..<2 where fabric.acknowledgeInterrupt(for: id) != nil { fabric.endOfInterrupt(id) }
        }
        #expect(fabric.apics.map(\.arbitration) == [2, 2])
    }

    @Test func startOfAnotherProcessor() {
        var fabric = machine(cpus: 2)
        fabric.command(0, low: 0xc500, high: 0x0100_0000)
        fabric.command(0, low: 0x8500, high: 0x0100_0000)  // de-assert: nothing
        fabric.command(0, low: 0x4612, high: 0x0100_0000)
        let events = fabric.takeEvents(for: 1)
        #expect(events.isInitialized)
        #expect(events.startUpVector == 0x12)
        #expect(fabric.takeEvents(for: 1) == InterruptFabric.Events())
        #expect(!fabric.takeEvents(for: 0).isInitialized)
        fabric.command(0, low: 0x4400, high: 0x0100_0000)
        #expect(fabric.takeEvents(for: 1).hasNMI)
    }

    // MARK: PIT

    @Test func timerTicksThroughThePIC() throws {
        var fabric = machine()
        fabric.pit = PIT8254(hasSpeakerPort: true)
        fabric.initializePIC()
        fabric.startPIT(at: instant(0))
        #expect(fabric.timersChanged)
        let deadline = try #require(fabric.nextDeadline)
        fabric.advance(to: instant(deadline))
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x20)
        // Three more pass before the end of interrupt: each comes at once after the one before.
        fabric.advance(to: instant(40_050_000))
        var count = 1
        while count < 10 {
            fabric.writePort(0x20, 0x20, at: instant(40_050_000))
            guard fabric.acknowledgeInterrupt(for: 0) == 0x20 else { break }
            count += 1
        }
        #expect(count == 4)
    }

    @Test func timerTicksThroughTheIOAPIC() {
        var fabric = machine()
        fabric.pit = PIT8254(hasSpeakerPort: true)
        fabric.initializePIC()
        fabric.writePort(0x21, 0xff, at: instant(0))
        fabric.program(2, low: 0x30)
        fabric.startPIT(at: instant(0))
        fabric.advance(to: instant(20_050_000))
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x30)
        #expect(!fabric.hasInterrupt(for: 0))
        fabric.endOfInterrupt()
        #expect(fabric.acknowledgeInterrupt(for: 0) == 0x30)
        fabric.endOfInterrupt()
        #expect(!fabric.hasInterrupt(for: 0))
    }

    @Test func nextDeadlineIsTheEarliest() {
        var fabric = machine(cpus: 2)
        #expect(fabric.nextDeadline == nil)
        for (id, count) in [(0, 9_000_000), (1, 3_000_000)] as [(Int, UInt64)] {
            fabric.writeAPICPage(id, offset: 0x3e0, size: 4, value: 0xb, at: instant(0))
            fabric.writeAPICPage(id, offset: 0x320, size: 4, value: 0x40, at: instant(0))
            fabric.writeAPICPage(id, offset: 0x380, size: 4, value: count, at: instant(0))
        }
        #expect(fabric.nextDeadline == 3_000_000)
        fabric.advance(to: instant(3_000_000))
        #expect(fabric.nextDeadline == 9_000_000)
        #expect(fabric.apics[1].needsAttention)
    }

    // MARK: Hostile guests

    /// Random accesses to every register of every controller, with time going on: nothing traps, and what the vCPUs
    /// are given stays in the rules.
    @Test func randomAccesses() {
        for seed in FuzzSeeds(count: 4) { randomAccesses(seed) }
    }

    private func randomAccesses(_ seed: UInt64) {
        var random = SplitMix64(state: seed)
        var fabric = machine(cpus: 3)
        fabric.pit = PIT8254(hasSpeakerPort: true)
        var now = instant(UInt64.max / 4)
        let ports: [UInt16] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61]
        for _ in 0..<30_000 {
            let value = random.interesting()
            let index = Int(random.next() % 3)
            let port = ports[Int(random.next() % UInt64(ports.count))]
            let offset = Int(random.next() & 0xfff)
            switch random.next() % 16 {
            case 0: fabric.writePort(port, UInt8(truncatingIfNeeded: value), at: now)
            case 1: _ = fabric.readPort(port, at: now)
            case 2: fabric.writeIOAPIC(offset: 0, UInt32(truncatingIfNeeded: value))
            case 3: fabric.writeIOAPIC(offset: 0x10, UInt32(truncatingIfNeeded: value))
            case 4: _ = fabric.readIOAPIC(offset: UInt64(offset & 0xff), size: 1 << Int(value & 3))
            case 5: fabric.writeAPICPage(index, offset: offset & 0xff0, size: 4, value: value, at: now)
            case 6: fabric.writeAPICPage(index, offset: offset, size: 1 << Int(value & 3), value: value, at: now)
            case 7: _ = fabric.apics[index].readPage(offset: offset, size: 1 << Int(value & 3), at: now)
            case 8: _ = fabric.writeX2APIC(index, 0x800 + UInt32(offset & 0xff), value, at: now)
            case 9: _ = fabric.apics[index].readMSR(0x800 + UInt32(offset & 0xff), at: now)
            case 10: fabric.setLine(UInt32(truncatingIfNeeded: value & 31), level: value & 32 != 0)
            case 11: fabric.setTSCDeadline(index, value, at: now)
            case 12:
                fabric.deliver(
                    InterruptMessage(msiAddress: value, data: UInt32(truncatingIfNeeded: random.next())), from: nil)
            case 13: _ = fabric.apics[index].setBase(value & 0xfff_ffff, physicalAddressMask: 0xff_ffff_ffff)
            case 14: restoreSomething(&fabric, &random, at: now)
            default:
                now.nanoseconds &+= value >> 24
                now.tsc &+= value >> 23
                fabric.advance(to: now)
            }
            let events = fabric.takeEvents(for: index)
            let vector = fabric.acknowledgeInterrupt(for: index)
            #expect((vector != nil) == events.hasInterrupt, "seed \(seed)")
            _ = fabric.nextDeadline
        }
    }

    private func restoreSomething(_ fabric: inout InterruptFabric, _ random: inout SplitMix64, at now: HostInstant) {
        func garbage<T>(_ value: T) -> T {
            // Only for C structures without pointers.
            var value = value
            withUnsafeMutableBytes(of: &value) { bytes in
                for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: random.next()) }
            }
            return value
        }
        switch random.next() & 3 {
        case 0: fabric.restorePIC(master: PIC8259(isMaster: true, restoring: garbage(kvm_pic_state())), slave: nil)
        case 1:
            let state = garbage(kvm_ioapic_state())
            fabric.restoreIOAPIC(IOAPIC(restoring: state), lines: state.irr)
        case 2: fabric.apics[0].restore(garbage(kvm_lapic_state()), at: now)
        default:
            let state = garbage(kvm_pit_state2())
            fabric.pit = PIT8254(hasSpeakerPort: true, restoring: state, at: now.nanoseconds)
        }
    }
}

/// Reproducible random numbers (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// Often small, often with few bits, sometimes all ones.
    mutating func interesting() -> UInt64 {
        switch next() % 5 {
        case 0: next() & 0xff
        case 1: 1 << (next() & 63)
        case 2: .max
        case 3: next() & 0x000f_ffff
        default: next()
        }
    }
}
