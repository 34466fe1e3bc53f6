/// The PC's two 8259As: the slave's INT is the master's line 2.
struct PICPair: Equatable, Sendable {
    var master = PIC8259(isMaster: true)
    var slave = PIC8259(isMaster: false)

    /// The ports: master, slave, and their edge/level control registers (82371AB §6.2).
    static func contains(_ port: UInt16) -> Bool {
        switch port {
        case 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1: true
        default: false
        }
    }

    /// INT to the processor's LINT0.
    var output: Bool { master.pendingLine != nil }

    mutating func setLine(_ line: Int, level: Bool) {
        if line < 8 { master.setLine(line, level: level) } else { slave.setLine(line - 8, level: level) }
        cascade()
    }

    private mutating func cascade() {
        master.setLine(2, level: slave.pendingLine != nil)
    }

    /// An INTA cycle: the vector. Without a request it is the spurious one, line 7, which is not put in service.
    mutating func acknowledge() -> UInt8 {
        guard let line = master.pendingLine else { return master.vectorBase | 7 }
        master.acknowledge(line)
        guard line == 2 else { return master.vectorBase | line }
        defer { cascadeAfterAcknowledge() }
        guard let slaveLine = slave.pendingLine else { return slave.vectorBase | 7 }
        slave.acknowledge(slaveLine)
        return slave.vectorBase | slaveLine
    }

    /// The slave drops INT with its acknowledge, so that another request of its own is a new edge for the master.
    private mutating func cascadeAfterAcknowledge() {
        master.setLine(2, level: false)
        cascade()
    }

    mutating func write(port: UInt16, _ value: UInt8) {
        switch port {
        case 0x20: master.writeCommand(value)
        case 0x21: master.writeData(value)
        case 0xa0: slave.writeCommand(value)
        case 0xa1: slave.writeData(value)
        case 0x4d0: master.edgeLevel = value & master.edgeLevelWritable
        case 0x4d1: slave.edgeLevel = value & slave.edgeLevelWritable
        default: break
        }
        // An end of interrupt on the slave can uncover a request that the master has not seen an edge of yet.
        if port == 0xa0, slave.pendingLine != nil { master.setLine(2, level: false) }
        cascade()
    }

    mutating func read(port: UInt16) -> UInt8 {
        switch port {
        case 0x20: return master.read(isData: false)
        case 0x21: return master.read(isData: true)
        case 0xa0, 0xa1:
            let value = slave.read(isData: port == 0xa1)
            cascade()
            return value
        case 0x4d0: return master.edgeLevel
        case 0x4d1: return slave.edgeLevel
        default: return 0xff
        }
    }

    /// Whether line 0 (the PIT) finished its service since the last call.
    mutating func takeTimerEnd() -> Bool {
        defer { (master.ended, slave.ended) = (0, 0) }
        return master.ended & 1 != 0
    }
}
