/// One 8259A (Intel 231468-003), edge or level per line through the PIIX's ELCR. The pair's wiring is `PICPair`.
struct PIC8259: Equatable, Sendable {
    /// Which ELCR bits exist: lines 0–2, 8 and 13 are always edge-triggered (82371AB §6.2.5).
    let edgeLevelWritable: UInt8
    let isMaster: Bool

    /// The input lines as last seen, for edge detection.
    var lines: UInt8 = 0
    var request: UInt8 = 0
    var mask: UInt8 = 0
    var inService: UInt8 = 0
    /// The line of the highest priority; rotation changes it.
    var topLine: UInt8 = 0
    var vectorBase: UInt8 = 0
    var readsInService = false
    var isPolled = false
    var specialMask = false
    /// The next initialization command word: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.
    var initializationStep: UInt8 = 0
    var autoEOI = false
    var rotatesOnAutoEOI = false
    var specialFullyNested = false
    var wantsICW4 = false
    var edgeLevel: UInt8 = 0

    /// Lines whose service ended since the owner last looked (KVM's acknowledge notifiers).
    var ended: UInt8 = 0

    init(isMaster: Bool) {
        self.isMaster = isMaster
        edgeLevelWritable = isMaster ? 0xf8 : 0xde
    }

    mutating func setLine(_ line: Int, level: Bool) {
        let bit = UInt8(1) << UInt8(truncatingIfNeeded: line & 7)
        if level {
            // A level-triggered input requests for as long as it is high, an edge-triggered one once.
            if edgeLevel & bit != 0 || lines & bit == 0 { request |= bit }
            lines |= bit
        } else {
            if edgeLevel & bit != 0 { request &= ~bit }
            lines &= ~bit
        }
    }

    /// The highest-priority line of `lines`, where `topLine` comes first.
    private func highest(of lines: UInt8) -> (line: UInt8, priority: UInt8)? {
        guard lines != 0 else { return nil }
        for priority in UInt8(0)..<8 {
            let line = (priority &+ topLine) & 7
            if lines & (1 << line) != 0 { return (line, priority) }
        }
        return nil
    }

    /// The line that INT is raised for: unmasked, and above everything in service.
    var pendingLine: UInt8? {
        guard let candidate = highest(of: request & ~mask) else { return nil }
        var blocking = inService
        // Special mask mode: a masked line in service blocks nobody (8259A, "Special mask mode").
        if specialMask { blocking &= ~mask }
        // Special fully nested mode: the slave in service does not block the slave's higher lines.
        if specialFullyNested, isMaster { blocking &= ~4 }
        if let current = highest(of: blocking), current.priority <= candidate.priority { return nil }
        return candidate.line
    }

    /// The second INTA pulse for `line`.
    mutating func acknowledge(_ line: UInt8) {
        let bit = UInt8(1) << (line & 7)
        if edgeLevel & bit == 0 { request &= ~bit }
        if autoEOI {
            if rotatesOnAutoEOI { topLine = (line &+ 1) & 7 }
            ended |= bit
        } else {
            inService |= bit
        }
    }

    private mutating func end(_ line: UInt8, rotates: Bool) {
        let bit = UInt8(1) << (line & 7)
        if inService & bit != 0 { ended |= bit }
        inService &= ~bit
        if rotates { topLine = (line &+ 1) & 7 }
    }

    fileprivate mutating func endHighest(rotates: Bool) {
        // In special mask mode a masked line stays in service (8259A, "End of interrupt").
        if let current = highest(of: specialMask ? inService & ~mask : inService) {
            end(current.line, rotates: rotates)
        }
    }

    fileprivate mutating func endSpecific(_ line: UInt8, rotates: Bool) { end(line, rotates: rotates) }
}

/// The register interface: A0 = 0 (command) and A0 = 1 (data).
extension PIC8259 {
    mutating func writeCommand(_ value: UInt8) {
        if value & 0x10 != 0 {
            initialize(wantsICW4: value & 1 != 0)
        } else if value & 0x08 != 0 {
            // OCW3
            if value & 0x04 != 0 { isPolled = true }
            if value & 0x02 != 0 { readsInService = value & 1 != 0 }
            if value & 0x40 != 0 { specialMask = value & 0x20 != 0 }
        } else {
            operate(command: value >> 5, line: value & 7)
        }
    }

    /// ICW1: what initialization clears (8259A, "Initialization command words").
    private mutating func initialize(wantsICW4: Bool) {
        self.wantsICW4 = wantsICW4
        lines = 0
        request &= edgeLevel
        ended |= inService
        inService = 0
        mask = 0
        topLine = 0
        specialMask = false
        readsInService = false
        isPolled = false
        rotatesOnAutoEOI = false
        if !wantsICW4 {
            specialFullyNested = false
            autoEOI = false
        }
        initializationStep = 1
    }

    /// OCW2.
    private mutating func operate(command: UInt8, line: UInt8) {
        switch command {
        case 0, 4: rotatesOnAutoEOI = command == 4
        case 1, 5: endHighest(rotates: command == 5)
        case 3, 7: endSpecific(line, rotates: command == 7)
        case 6: topLine = (line &+ 1) & 7
        default: break
        }
    }

    mutating func writeData(_ value: UInt8) {
        switch initializationStep {
        case 1:
            vectorBase = value & 0xf8
            initializationStep = 2
        case 2:
            // ICW3 describes the cascade, which is fixed on a PC.
            initializationStep = wantsICW4 ? 3 : 0
        case 3:
            specialFullyNested = value & 0x10 != 0
            autoEOI = value & 0x02 != 0
            initializationStep = 0
        default:
            mask = value
        }
    }

    mutating func read(isData: Bool) -> UInt8 {
        if isPolled {
            isPolled = false
            guard let line = pendingLine else { return 0 }
            acknowledge(line)
            return 0x80 | line
        }
        if isData { return mask }
        return readsInService ? inService : request
    }
}
