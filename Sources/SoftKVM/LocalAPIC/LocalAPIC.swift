/// One vCPU's local APIC (SDM vol. 3A ch. 11), xAPIC and x2APIC. It knows no other APIC: what a register write asks of
/// the rest of the machine is its return value.
struct LocalAPIC: Equatable, Sendable {
    static let defaultBase: UInt64 = 0xfee0_0000

    /// IA32_APIC_BASE (SDM vol. 3A §11.4.3, §11.12.1).
    enum BaseBits {
        static let bootstrap: UInt64 = 1 << 8
        static let x2APIC: UInt64 = 1 << 10
        static let enable: UInt64 = 1 << 11
        static let addressMask: UInt64 = 0x000f_ffff_ffff_f000
    }

    /// The local vector table, in the order of the registers from 0x320 on.
    enum LocalVector: Int, CaseIterable {
        case timer = 0
        case thermal = 1
        case performance = 2
        case lint0 = 3
        case lint1 = 4
        case error = 5

        /// What a guest can write (figure 11-8).
        var writable: UInt32 {
            switch self {
            case .timer: 0x0007_00ff
            case .thermal, .performance: 0x0001_07ff
            case .lint0, .lint1: 0x0001_a7ff
            case .error: 0x0001_00ff
            }
        }
    }

    static let maskBit: UInt32 = 1 << 16

    /// The vCPU's number, which is its ID after reset and in x2APIC mode.
    let initialID: UInt32
    var base: UInt64
    var xAPICID: UInt8
    var taskPriority: UInt8 = 0
    var xLogicalDestination: UInt32 = 0
    var destinationFormat: UInt32 = 0xffff_ffff
    var spurious: UInt32 = 0xff
    var inService = VectorSet()
    var triggerMode = VectorSet()
    var request = VectorSet()
    var errorStatus: UInt32 = 0
    /// Errors since the last write of ESR, which makes them readable.
    var collectedErrors: UInt32 = 0
    var command: UInt64 = 0
    var localVectors = [UInt32](repeating: maskBit, count: LocalVector.allCases.count)
    var timer: APICTimer

    /// Taken by the vCPU's run loop.
    var isNMIPending = false
    var isInitializationPending = false
    var startUpVector: UInt8?
    /// Something changed that the vCPU's run loop should look at.
    var needsAttention = false
    /// How often the APIC won a lowest-priority arbitration.
    var arbitration: UInt64 = 0

    init(initialID: UInt32, tscFrequency: UInt64) {
        self.initialID = initialID
        base = Self.defaultBase | BaseBits.enable | (initialID == 0 ? BaseBits.bootstrap : 0)
        xAPICID = UInt8(truncatingIfNeeded: initialID)
        timer = APICTimer(tscFrequency: tscFrequency)
        if isBootstrap { localVectors[LocalVector.lint0.rawValue] = 0x700 }
    }

    /// The state after INIT: everything but IA32_APIC_BASE and the ID (SDM vol. 3A §11.4.7.3).
    mutating func resetByINIT() {
        var fresh = LocalAPIC(initialID: initialID, tscFrequency: timer.tscFrequency)
        fresh.base = base
        fresh.xAPICID = xAPICID
        fresh.timer.tscOffset = timer.tscOffset
        fresh.arbitration = arbitration
        self = fresh
    }

    var isBootstrap: Bool { base & BaseBits.bootstrap != 0 }
    var isHardwareEnabled: Bool { base & BaseBits.enable != 0 }
    var isX2APIC: Bool { base & (BaseBits.enable | BaseBits.x2APIC) == BaseBits.enable | BaseBits.x2APIC }
    var isSoftwareEnabled: Bool { spurious & (1 << 8) != 0 }
    var isEnabled: Bool { isHardwareEnabled && isSoftwareEnabled }
    /// The ID that messages are matched against.
    var identifier: UInt32 { isX2APIC ? initialID : UInt32(xAPICID) }

    /// The MMIO page, where there is one.
    var page: UInt64? { isHardwareEnabled && !isX2APIC ? base & BaseBits.addressMask : nil }

    /// SDM vol. 3A §11.12.10.2: derived from the ID, read-only.
    var x2LogicalDestination: UInt32 { (initialID >> 4) << 16 | 1 << (initialID & 15) }

    // MARK: Priorities (SDM vol. 3A §11.8.3)

    var processorPriority: UInt8 {
        let inServiceClass = (inService.highest ?? 0) & 0xf0
        return taskPriority & 0xf0 >= inServiceClass ? taskPriority : inServiceClass
    }

    /// The vector that would be dispensed to the processor now.
    var deliverableVector: UInt8? {
        guard isEnabled, let vector = request.highest, vector & 0xf0 > processorPriority & 0xf0 else { return nil }
        return vector
    }

    /// Whether the PIC's INT reaches the processor: through LINT0 as ExtINT, or past an APIC that is off.
    var acceptsPIC: Bool {
        guard isHardwareEnabled else { return true }
        return localVectors[LocalVector.lint0.rawValue] & (Self.maskBit | 0x700) == 0x700
    }

    /// Moves the deliverable vector from IRR to ISR.
    mutating func acknowledge() -> UInt8? {
        guard let vector = deliverableVector else { return nil }
        request[vector] = false
        inService[vector] = true
        return vector
    }

    /// What ended: a level-triggered interrupt goes to the I/O APICs too (SDM vol. 3A §11.8.5).
    struct EndOfInterrupt: Equatable, Sendable {
        var vector: UInt8
        var isLevel: Bool
    }

    mutating func endOfInterrupt() -> EndOfInterrupt? {
        guard let vector = inService.highest else { return nil }
        inService[vector] = false
        if deliverableVector != nil { needsAttention = true }
        return EndOfInterrupt(vector: vector, isLevel: triggerMode[vector])
    }

    // MARK: Accepting interrupts

    private mutating func accept(_ vector: UInt8, isLevel: Bool) -> Bool {
        guard isEnabled else { return false }
        // Vectors 0–15 are reserved (SDM vol. 3A §11.5.2, §11.8.2).
        guard vector >= 16 else {
            report(ErrorBits.receivedIllegalVector)
            return false
        }
        triggerMode[vector] = isLevel
        request[vector] = true
        needsAttention = true
        return true
    }

    /// A message that is addressed to this APIC. False: not accepted.
    mutating func receive(_ message: InterruptMessage) -> Bool {
        switch message.mode {
        case .fixed, .lowestPriority:
            return message.isAsserted || !message.isLevel ? accept(message.vector, isLevel: message.isLevel) : false
        case .nmi:
            isNMIPending = true
        case .initialize:
            // An INIT level de-assert only synchronizes arbitration IDs, on processors that had some.
            guard message.isAsserted || !message.isLevel else { return true }
            isInitializationPending = true
            startUpVector = nil
        case .startUp:
            startUpVector = message.vector
        case .smi, .remoteRead, .external:
            return false
        }
        needsAttention = true
        return true
    }

    /// A source inside the processor: the timer, LINT pins, errors (SDM vol. 3A §11.5.1).
    mutating func raise(_ source: LocalVector) {
        let entry = localVectors[source.rawValue]
        guard isHardwareEnabled, entry & Self.maskBit == 0 else { return }
        switch source {
        case .timer, .error:
            _ = accept(UInt8(truncatingIfNeeded: entry), isLevel: false)
        case .thermal, .performance, .lint0, .lint1:
            let mode = InterruptMessage.DeliveryMode(bits: UInt64(entry >> 8))
            guard mode == .fixed || mode == .nmi else { return }
            // Only LINT0 in fixed mode can be level-triggered.
            let isLevel = source == .lint0 && mode == .fixed && entry & (1 << 15) != 0
            _ = receive(
                InterruptMessage(
                    vector: UInt8(truncatingIfNeeded: entry), mode: mode, isLevel: isLevel, destination: identifier))
        }
    }

    /// ESR (SDM vol. 3A figure 11-9).
    enum ErrorBits {
        static let sentIllegalVector: UInt32 = 1 << 5
        static let receivedIllegalVector: UInt32 = 1 << 6
        static let illegalRegister: UInt32 = 1 << 7
    }

    mutating func report(_ error: UInt32) {
        let isNew = collectedErrors & error == 0
        collectedErrors |= error
        let entry = localVectors[LocalVector.error.rawValue]
        // An error entry with an illegal vector must not report itself for ever.
        if isNew, entry & Self.maskBit == 0, entry & 0xff >= 16 { raise(.error) }
    }

    // MARK: Addresses (SDM vol. 3A §11.6.2)

    func matches(_ message: InterruptMessage) -> Bool {
        let destination = message.destination
        if isX2APIC {
            if destination == 0xffff_ffff || (!message.isInterprocessor && destination == 0xff) { return true }
            guard message.isLogical else { return destination == initialID }
            let own = x2LogicalDestination
            return destination >> 16 == own >> 16 && destination & own & 0xffff != 0
        }
        if destination == 0xff || destination == 0xffff_ffff { return true }
        guard message.isLogical else { return destination == UInt32(xAPICID) }
        let own = xLogicalDestination >> 24
        // Flat model, or cluster model.
        if destinationFormat >> 28 == 0xf { return own & destination & 0xff != 0 }
        return own >> 4 == destination >> 4 & 0xf && own & destination & 0xf != 0
    }

    // MARK: Time

    mutating func advance(to now: HostInstant) {
        if timer.advance(to: now) { raise(.timer) }
    }

    /// When the timer will next interrupt; one that is masked expires unseen.
    var nextDeadline: UInt64? {
        localVectors[LocalVector.timer.rawValue] & Self.maskBit == 0 && isEnabled ? timer.expiry : nil
    }
}
