/// Everything that turns lines, messages and time into vectors: PIC pair, I/O APIC, PIT and the local APICs, wired as
/// on a PC. A plain value without clocks or locks; `MachineCore` holds the one that a VM has, behind a lock.
struct InterruptFabric: Sendable {
    /// KVM_CREATE_IRQCHIP was done.
    var isPresent = false
    var pic = PICPair()
    var ioapic = IOAPIC()
    var pit: PIT8254?
    /// By vCPU index.
    var apics: [LocalAPIC] = []
    let tscFrequency: UInt64
    /// GSIs that are messages; the wiring of the others is fixed.
    var messageRoutes: [UInt32: InterruptMessage] = [:]

    /// Timers may have moved since the owner last asked for `nextDeadline`.
    var timersChanged = false

    init(tscFrequency: UInt64) { self.tscFrequency = tscFrequency }

    mutating func addAPIC(id: UInt32, tscOffset: UInt64) -> Int {
        var apic = LocalAPIC(initialID: id, tscFrequency: tscFrequency)
        apic.timer.tscOffset = tscOffset
        apics.append(apic)
        return apics.count - 1
    }

    // MARK: Lines and messages

    /// KVM_IRQ_LINE. GSI 0–15 reach PIC and I/O APIC; GSI 0 is the I/O APIC's pin 2, as the ACPI tables of a PC say
    /// (interrupt source override), and GSI 2, the PIC's cascade, goes nowhere.
    mutating func setLine(_ gsi: UInt32, level: Bool) {
        if level, gsi >= UInt32(IOAPIC.pinCount) {
            if isPresent, let message = messageRoutes[gsi] { deliver(message, from: nil) }
            return
        }
        guard isPresent, gsi < UInt32(IOAPIC.pinCount), gsi != 2 else { return }
        if gsi < 16 {
            pic.setLine(Int(gsi), level: level)
            picChanged()
        }
        let pin = gsi == 0 ? 2 : Int(gsi)
        if ioapic.setLine(pin, level: level) { service(pin) }
    }

    /// An edge of a GSI: its line goes up and down, or its message is sent.
    mutating func pulse(_ gsi: UInt32) {
        if let message = messageRoutes[gsi] {
            if isPresent { deliver(message, from: nil) }
        } else {
            setLine(gsi, level: true)
            setLine(gsi, level: false)
        }
    }

    /// The vCPUs that listen to the PIC look at it.
    private mutating func picChanged() {
        guard pic.output else { return }
        for index in apics.indices where apics[index].acceptsPIC { apics[index].needsAttention = true }
    }

    private mutating func service(_ pin: Int) {
        let accepted = deliver(ioapic.message(for: pin), from: nil)
        ioapic.wasDelivered(pin, accepted: accepted)
    }

    /// Sends a message to the local APICs it addresses. False: none took it.
    @discardableResult
    mutating func deliver(_ message: InterruptMessage, from source: Int?) -> Bool {
        if message.mode == .lowestPriority, message.shorthand == .none {
            guard let index = lowestPriority(for: message) else { return false }
            apics[index].arbitration &+= 1
            return apics[index].receive(message)
        }
        var accepted = false
        for index in apics.indices where isAddressed(index, by: message, from: source) {
            if apics[index].receive(message) { accepted = true }
        }
        return accepted
    }

    private func isAddressed(_ index: Int, by message: InterruptMessage, from source: Int?) -> Bool {
        switch message.shorthand {
        case .none: apics[index].isHardwareEnabled && apics[index].matches(message)
        case .toSelf: index == source
        case .all: true
        case .others: index != source
        }
    }

    /// Among equals the one that was chosen least often, so that interrupts spread.
    private func lowestPriority(for message: InterruptMessage) -> Int? {
        apics.indices.filter { apics[$0].isEnabled && apics[$0].matches(message) }
            .min { apics[$0].arbitration < apics[$1].arbitration }
    }

    // MARK: Time

    /// Lets PIT and APIC timers expire.
    mutating func advance(to now: HostInstant) {
        for index in apics.indices {
            let before = apics[index].timer.expiry
            apics[index].advance(to: now)
            if apics[index].timer.expiry != before { timersChanged = true }
        }
        if pit?.advance(to: now.nanoseconds) == true {
            timersChanged = true
            pulseTimerLine()
        }
    }

    private mutating func pulseTimerLine() {
        setLine(0, level: true)
        setLine(0, level: false)
        // The old NMI watchdog: LINT0 as NMI sees each tick.
        for index in apics.indices where apics[index].localVectors[LocalAPIC.LocalVector.lint0.rawValue] >> 8 & 7 == 4 {
            apics[index].raise(.lint0)
        }
    }

    /// The guest ended an interrupt of GSI 0.
    private mutating func timerLineEnded() {
        timersChanged = true
        if pit?.acknowledge() == true { pulseTimerLine() }
    }

    /// When `advance` has to be called next, at the latest.
    var nextDeadline: UInt64? {
        var next = pit?.nextDeadline ?? .max
        for apic in apics { next = min(next, apic.nextDeadline ?? .max) }
        return next == .max ? nil : next
    }

    // MARK: What a vCPU takes

    /// What one look at the fabric tells a vCPU.
    struct Events: Equatable, Sendable {
        var isInitialized = false
        var startUpVector: UInt8?
        var hasNMI = false
        var hasInterrupt = false
        /// When a timer will next do something; `UInt64.max`: never.
        var nextDeadline = UInt64.max
    }

    /// Takes INIT (done to the APIC at once), SIPI and NMI.
    mutating func takeEvents(for index: Int) -> Events {
        var events = Events()
        guard apics.indices.contains(index) else { return events }
        if apics[index].isInitializationPending {
            let startUp = apics[index].startUpVector
            apics[index].resetByINIT()
            apics[index].startUpVector = startUp
            events.isInitialized = true
            timersChanged = true
        }
        events.startUpVector = apics[index].startUpVector
        apics[index].startUpVector = nil
        events.hasNMI = apics[index].isNMIPending
        apics[index].isNMIPending = false
        apics[index].needsAttention = false
        events.hasInterrupt = hasInterrupt(for: index)
        events.nextDeadline = nextDeadline ?? .max
        return events
    }

    func hasInterrupt(for index: Int) -> Bool {
        guard isPresent, apics.indices.contains(index) else { return false }
        return (apics[index].acceptsPIC && pic.output) || apics[index].deliverableVector != nil
    }

    /// The vector that the vCPU takes now; the PIC's first, as KVM does.
    mutating func acknowledgeInterrupt(for index: Int) -> UInt8? {
        guard isPresent, apics.indices.contains(index) else { return nil }
        if apics[index].acceptsPIC, pic.output {
            let vector = pic.acknowledge()
            if pic.takeTimerEnd() { timerLineEnded() }
            return vector
        }
        return apics[index].acknowledge()
    }

    // MARK: Registers

    func containsPort(_ port: UInt16) -> Bool { PICPair.contains(port) || pit?.contains(port) == true }

    mutating func writePort(_ port: UInt16, _ value: UInt8, at now: HostInstant) {
        guard PICPair.contains(port) else {
            pit?.write(port: port, value, at: now.nanoseconds)
            return timersChanged = true
        }
        let wasMasked = pic.master.mask & 1 != 0
        pic.write(port: port, value)
        if wasMasked, pic.master.mask & 1 == 0 { timerLineUnmasked() }
        if pic.takeTimerEnd() { timerLineEnded() }
        picChanged()
    }

    mutating func readPort(_ port: UInt16, at now: HostInstant) -> UInt8 {
        guard PICPair.contains(port) else { return pit?.read(port: port, at: now.nanoseconds) ?? 0xff }
        let value = pic.read(port: port)
        if pic.takeTimerEnd() { timerLineEnded() }
        picChanged()
        return value
    }

    private mutating func timerLineUnmasked() {
        pit?.forgetMissedTicks()
        timersChanged = true
    }

    mutating func readIOAPIC(offset: UInt64, size: Int) -> UInt64 {
        let shift = (offset & 3) * 8
        let mask: UInt64 = size >= 4 ? 0xffff_ffff : (1 << UInt64(size * 8)) - 1
        return UInt64(ioapic.read(offset: offset)) >> shift & mask
    }

    mutating func writeIOAPIC(offset: UInt64, _ value: UInt32) {
        let effect = ioapic.write(offset: offset, value)
        if effect.unmasked == 2 { timerLineUnmasked() }
        if let pin = effect.pin { service(pin) }
    }

    mutating func writeAPICPage(_ index: Int, offset: Int, size: Int, value: UInt64, at now: HostInstant) {
        apics[index].advance(to: now)
        perform(apics[index].writePage(offset: offset, size: size, value: value, at: now), for: index)
        timersChanged = timersChanged || offset >= APICRegister.spurious
    }

    /// False: #GP(0).
    mutating func writeX2APIC(_ index: Int, _ msr: UInt32, _ value: UInt64, at now: HostInstant) -> Bool {
        apics[index].advance(to: now)
        guard let effect = apics[index].writeMSR(msr, value, at: now) else { return false }
        perform(effect, for: index)
        timersChanged = timersChanged || msr > 0x80b
        return true
    }

    private mutating func perform(_ effect: APICEffect, for index: Int) {
        switch effect {
        case .none: break
        case .send(let message): deliver(message, from: index)
        case .ended(let interrupt): broadcast(interrupt)
        }
    }

    private mutating func broadcast(_ ended: LocalAPIC.EndOfInterrupt) {
        if ended.isLevel {
            var again = ioapic.endOfInterrupt(vector: ended.vector)
            while again != 0 {
                let pin = again.trailingZeroBitCount
                again &= again &- 1
                service(pin)
            }
        }
        if pit != nil, ioapic.uses(ended.vector, onPin: 2) { timerLineEnded() }
    }

    mutating func setTSCDeadline(_ index: Int, _ deadline: UInt64, at now: HostInstant) {
        apics[index].timer.setTSCDeadline(deadline, at: now)
        apics[index].advance(to: now)
        timersChanged = true
    }

    // MARK: Saved state

    /// KVM_SET_IRQCHIP for the I/O APIC: lines that were high and undelivered are raised again.
    mutating func restoreIOAPIC(_ restored: IOAPIC, lines: UInt32) {
        ioapic = restored
        for pin in 0..<IOAPIC.pinCount where lines & (1 << UInt32(pin)) != 0 {
            if ioapic.setLine(pin, level: true) { service(pin) }
        }
    }

    mutating func restorePIC(master: PIC8259?, slave: PIC8259?) {
        if let master { pic.master = master }
        if let slave { pic.slave = slave }
        picChanged()
    }
}
