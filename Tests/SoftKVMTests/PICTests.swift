internal import CHost
internal import Testing

@testable import SoftKVM

/// A pair as a PC's firmware leaves it: vectors 0x20 and 0x28, everything unmasked.
private func initializedPair(icw4: UInt8 = 0x01, masks: (UInt8, UInt8) = (0, 0)) -> PICPair {
    var pair = PICPair()
    for (port, value) in [
        (0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, icw4), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 0x02), (0xa1, icw4),
        (0x21, masks.0), (0xa1, masks.1),
    ] as [(UInt16, UInt8)] {
        pair.write(port: port, value)
    }
    return pair
}

@Suite struct PICTests {
    @Test(arguments: [(0, 0x20), (1, 0x21), (7, 0x27), (8, 0x28), (15, 0x2f)] as [(Int, UInt8)])
    func initializationGivesVectors(line: Int, vector: UInt8) {
        var pair = initializedPair()
        #expect(!pair.output)
        pair.setLine(line, level: true)
        #expect(pair.output)
        #expect(pair.acknowledge() == vector)
        #expect(!pair.output)
    }

    @Test func lowerLinesComeFirst() {
        var pair = initializedPair()
        for line in [5, 14, 1, 9] { pair.setLine(line, level: true) }
        var vectors: [UInt8] = []
        while pair.output {
            let vector = pair.acknowledge()
            vectors.append(vector)
            if vector >= 0x28 { pair.write(port: 0xa0, 0x20) }
            pair.write(port: 0x20, 0x20)
        }
        #expect(vectors == [0x21, 0x29, 0x2e, 0x25])
    }

    @Test func inServiceBlocksLowerPriority() {
        var pair = initializedPair()
        pair.setLine(3, level: true)
        #expect(pair.acknowledge() == 0x23)
        pair.setLine(4, level: true)
        #expect(!pair.output)
        pair.setLine(1, level: true)
        #expect(pair.output)
        #expect(pair.acknowledge() == 0x21)
        pair.write(port: 0x20, 0x20)  // ends 1
        #expect(!pair.output)
        pair.write(port: 0x20, 0x63)  // specific: ends 3
        #expect(pair.acknowledge() == 0x24)
    }

    @Test func edgesNeedToFall() {
        var pair = initializedPair()
        pair.setLine(1, level: true)
        _ = pair.acknowledge()
        pair.write(port: 0x20, 0x20)
        pair.setLine(1, level: true)
        #expect(!pair.output)
        pair.setLine(1, level: false)
        pair.setLine(1, level: true)
        #expect(pair.output)
    }

    @Test func levelsRequestWhileHigh() {
        var pair = initializedPair()
        pair.write(port: 0x4d0, 0xff)
        pair.write(port: 0x4d1, 0xff)
        #expect(pair.read(port: 0x4d0) == 0xf8)
        #expect(pair.read(port: 0x4d1) == 0xde)
        pair.setLine(10, level: true)
        #expect(pair.acknowledge() == 0x2a)
        pair.write(port: 0xa0, 0x20)
        pair.write(port: 0x20, 0x20)
        #expect(pair.output)
        pair.setLine(10, level: false)
        // The slave's request is gone, the master has latched the cascade's edge: a spurious one of the slave.
        #expect(pair.output)
        #expect(pair.acknowledge() == 0x2f)
    }

    @Test func spuriousInterruptIsNotInService() {
        var pair = initializedPair()
        #expect(pair.acknowledge() == 0x27)
        pair.write(port: 0x20, 0x0b)
        #expect(pair.read(port: 0x20) == 0)
    }

    @Test func masksAndStatusReads() {
        var pair = initializedPair(masks: (0xfb, 0xff))
        pair.setLine(1, level: true)
        #expect(!pair.output)
        #expect(pair.read(port: 0x21) == 0xfb)
        #expect(pair.read(port: 0x20) == 0x02)
        pair.write(port: 0x21, 0)
        #expect(pair.output)
        _ = pair.acknowledge()
        #expect(pair.read(port: 0x20) == 0)
        pair.write(port: 0x20, 0x0b)
        #expect(pair.read(port: 0x20) == 0x02)
    }

    @Test func automaticEndOfInterrupt() {
        var pair = initializedPair(icw4: 0x03)
        pair.setLine(0, level: true)
        #expect(pair.acknowledge() == 0x20)
        pair.write(port: 0x20, 0x0b)
        #expect(pair.read(port: 0x20) == 0)
        #expect(pair.takeTimerEnd() == true)
        #expect(pair.takeTimerEnd() == false)
    }

    @Test func rotationMovesPriority() {
        var pair = initializedPair()
        pair.setLine(3, level: true)
        _ = pair.acknowledge()
        pair.write(port: 0x20, 0xa0)  // rotate on non-specific EOI: 3 becomes the lowest
        pair.setLine(3, level: false)
        pair.setLine(3, level: true)
        pair.setLine(5, level: true)
        #expect(pair.acknowledge() == 0x25)
        pair.write(port: 0x20, 0x20)
        pair.write(port: 0x20, 0xc2)  // set priority: 2 lowest, 3 highest
        #expect(pair.acknowledge() == 0x23)
    }

    @Test func specialMaskLetsLowerLinesIn() {
        var pair = initializedPair()
        pair.setLine(1, level: true)
        _ = pair.acknowledge()
        pair.setLine(4, level: true)
        pair.write(port: 0x21, 0x02)
        #expect(!pair.output)
        pair.write(port: 0x20, 0x68)
        #expect(pair.acknowledge() == 0x24)
    }

    @Test func pollAcknowledges() {
        var pair = initializedPair()
        pair.setLine(6, level: true)
        pair.write(port: 0x20, 0x0c)
        #expect(pair.read(port: 0x20) == 0x86)
        pair.write(port: 0x20, 0x0b)
        #expect(pair.read(port: 0x20) == 0x40)
        pair.write(port: 0x20, 0x0c)
        #expect(pair.read(port: 0x20) == 0)
    }

    @Test func slaveRaisesMasterAgainAfterItsEnd() {
        var pair = initializedPair()
        pair.setLine(8, level: true)
        pair.setLine(12, level: true)
        #expect(pair.acknowledge() == 0x28)
        #expect(!pair.output)
        pair.write(port: 0xa0, 0x20)
        pair.write(port: 0x20, 0x20)
        #expect(pair.output)
        #expect(pair.acknowledge() == 0x2c)
    }

    @Test func savedStateRoundTrip() {
        var pair = initializedPair(icw4: 0x13, masks: (0x12, 0x34))
        pair.write(port: 0x4d0, 0x38)
        pair.setLine(7, level: true)
        pair.setLine(5, level: true)
        pair.write(port: 0x20, 0x0b)
        #expect(PIC8259(isMaster: true, restoring: pair.master.savedState) == pair.master)
        #expect(PIC8259(isMaster: false, restoring: pair.slave.savedState) == pair.slave)
        #expect(pair.master.savedState.irq_base == 0x20)
        #expect(pair.master.savedState.imr == 0x12)
    }
}
