internal import CHost

/// Two processors on the same guest: the primary translates and has the devices, the shadow interprets on memory of its
/// own. They are compared unit by unit.
///
/// A unit is what the primary does until it comes back to its outer loop: most units end at the first place where
/// attention counts, some only when `UnitEnder` says so, so that chained code is tried as well. The shadow then completes
/// as many instructions and must stop for the same reason. What comes from outside (devices, MSRs of the engine, the
/// time) is recorded at the primary and replayed; what the host changes between two runs is taken over.
final class Lockstep {
    unowned let primary: Processor
    let shadow: Processor
    let memory = LockstepMemory()
    private let record: LockstepRecord
    private var follower = LockstepFollower()
    private var ender: UnitEnder?
    private var hasMemory = false
    private var units: UInt64 = 0
    private var dice: UInt64 = 0x9E37_79B9_7F4A_7C15
    /// The instruction count up to which RAM is known to be equal.
    private var memoryCheckedAt: UInt64 = 0
    private(set) var difference: LockstepDifference?
    /// How often the two had other status flags, all of them dead (docs/quirks.md).
    private(set) var toleratedFlags: UInt64 = 0
    /// Of the unit that is being run.
    private var unit = LockstepUnit()

    /// One unit in so many is long.
    private static let longUnitOneIn: UInt64 = 8
    /// RAM is compared after so many units.
    private static let unitsBetweenMemoryChecks: UInt64 = 1024

    init(primary: Processor) {
        self.primary = primary
        shadow = Processor(apicID: 0)
        shadow.setCPUID(primary.cpuidEntries)
        record = LockstepRecord(primary: primary, shadow: shadow, memory: memory)
        primary.state.pointee.in_lockstep = 1
        primary.state.pointee.counts_instructions = 1
        shadow.state.pointee.in_lockstep = 1
    }

    deinit { follower.deallocate() }

    // MARK: What the host changes

    /// The slots are others, or what is in them may be.
    func forgetMemory() { hasMemory = false }

    func flushShadow() { shadow.flushTLB() }

    /// The host wrote to the guest's memory, on this thread or with the processor stopped.
    func noteHostWrite(_ address: UInt64, count: UInt64) {
        if hasMemory { record.noteHostWrite(address, count: count) }
    }

    /// Takes over what was changed from outside since the last unit.
    private func adoptOutside() {
        if !hasMemory {
            primary.noteWrites()
            shadow.setSlots(memory.copySlots(of: primary))
            shadow.noteWrites()
            hasMemory = true
        }
        shadow.tscOffsetBase = primary.tscOffsetBase
        if ArchitecturalState.copy(from: primary.state, to: shadow.state) { primary.flushTLB() }
    }

    // MARK: Running

    func run() -> Stop {
        if difference != nil { return .difference }
        adoptOutside()
        record.begin()
        defer {
            record.end()
            ender?.end()
            martlet_forget_end_of_unit(primary.state)
        }
        let stop = runUnits()
        // All that the guest did so far was the same, or this is no way to stop.
        return difference == nil ? stop : .difference
    }

    private func runUnits() -> Stop {
        let (s, t) = (primary.state, shadow.state)
        if s.pointee.pending_event != 0 {
            s.pointee.pending_event = 0
            t.pointee.pending_event = 0
            return .shutdown
        }
        while true {
            beginUnit()
            if primary.canAcceptNMI {
                let isAlive = primary.deliverNMI()
                guard shadow.deliverNMI() == isAlive else { return differ(.outcome) }
                guard isAlive else { return .shutdown }
            }
            if s.pointee.window_requested != 0, primary.canAcceptInterrupt { return .window }
            if primary.needsSingleStep {
                if primary.hasAttentionBetweenBreakpoints { return .attention }
                primary.singleStep()
                shadow.singleStep()
            } else {
                // As ever, real attention comes before the next instruction.
                if martlet_attention(s) == 1 { return .attention }
                runPrimary(s)
                followPrimary(s, t)
            }
            guard compare() else { return .difference }
            if let stop = endUnit(s, t) { return stop }
        }
    }

    private func beginUnit() {
        units &+= 1
        record.nextUnit()
        unit = LockstepUnit(
            rip: primary.state.pointee.rip, firstCount: primary.state.pointee.instruction_count,
            checkedCount: memoryCheckedAt)
        primary.state.pointee.stop = UInt32(MARTLET_STOP_NONE)
        shadow.state.pointee.stop = UInt32(MARTLET_STOP_NONE)
    }

    private func rollsLongUnit() -> Bool {
        dice ^= dice << 13
        dice ^= dice >> 7
        dice ^= dice << 17
        return dice % Self.longUnitOneIn == 0
    }

    private func runPrimary(_ s: State) {
        if rollsLongUnit() {
            if ender == nil { ender = UnitEnder(s) }
            if ender?.isRunning == true {
                ender?.begin()
                dispatch(s)
                ender?.end()
                martlet_forget_end_of_unit(s)
                return
            }
        }
        // Not by the jump cache: its entry may be of a dropped block, whose place-holder goes on only without attention.
        guard let first = primary.lookup() else { return }
        martlet_end_unit(s)
        dispatch(s, from: first)
        martlet_forget_end_of_unit(s)
    }

    private func followPrimary(_ s: State, _ t: State) {
        if s.pointee.stop == UInt32(MARTLET_STOP_ATTENTION) { s.pointee.stop = UInt32(MARTLET_STOP_NONE) }
        let attempts: Bool
        switch s.pointee.stop {
        case UInt32(MARTLET_STOP_NONE), UInt32(MARTLET_STOP_HALT): attempts = false
        default: attempts = true
        }
        follower.run(t, to: s.pointee.instruction_count, attempts: attempts)
        if t.pointee.stop == UInt32(MARTLET_STOP_ATTENTION) { t.pointee.stop = UInt32(MARTLET_STOP_NONE) }
    }

    /// What the outer loop does behind the inner one.
    private func endUnit(_ s: State, _ t: State) -> Stop? {
        if units % Self.unitsBetweenMemoryChecks == 0, !compareMemory() { return .difference }
        switch s.pointee.stop {
        case UInt32(MARTLET_STOP_EXCEPTION):
            let isAlive = primary.deliverException()
            guard shadow.deliverException() == isAlive else { return differ(.outcome) }
            guard compare() else { return .difference }
            return isAlive ? nil : .shutdown
        case UInt32(MARTLET_STOP_PORT): return .portIO
        case UInt32(MARTLET_STOP_MMIO): return .mmio
        case UInt32(MARTLET_STOP_HALT): return .halt
        case UInt32(MARTLET_STOP_SHUTDOWN): return .shutdown
        default: return martlet_attention(s) == 1 ? .attention : nil
        }
    }

    func deliverInterrupt(_ vector: UInt8) {
        guard difference == nil else { return }
        adoptOutside()
        record.begin()
        beginUnit()
        primary.injectInterrupt(vector)
        shadow.injectInterrupt(vector)
        _ = compare()
        record.end()
    }

    // MARK: Comparing

    private func differ(_ kind: LockstepDifference.Kind) -> Stop {
        if difference == nil {
            unit.lastCount = primary.state.pointee.instruction_count
            unit.lastInstructions = follower.lastInstructions
            difference = LockstepDifference(kind, unit, primary: primary, shadow: shadow, memory: memory)
        }
        return .difference
    }

    /// Registers, and why both stopped. False: they differ.
    private func compare() -> Bool {
        let (s, t) = (primary.state, shadow.state)
        if let mismatch = record.mismatch {
            _ = differ(.outside(mismatch))
            return false
        }
        guard s.pointee.stop == t.pointee.stop, requestsAreEqual(s, t) else {
            _ = differ(.stop)
            return false
        }
        tolerateDeadFlags(s, t)
        guard ArchitecturalState.areEqual(s, t) else {
            _ = differ(.registers)
            return false
        }
        return true
    }

    /// What is asked of the outer loop or of user space.
    private func requestsAreEqual(_ s: State, _ t: State) -> Bool {
        switch s.pointee.stop {
        case UInt32(MARTLET_STOP_EXCEPTION):
            let isPageFault = s.pointee.exception_vector == UInt32(ExceptionVector.pageFault.rawValue)
            return s.pointee.exception_vector == t.pointee.exception_vector
                && s.pointee.exception_error == t.pointee.exception_error
                && s.pointee.exception_has_error == t.pointee.exception_has_error
                && (!isPageFault || s.pointee.exception_cr2 == t.pointee.exception_cr2)
        case UInt32(MARTLET_STOP_PORT):
            return s.pointee.port_number == t.pointee.port_number && s.pointee.port_size == t.pointee.port_size
                && s.pointee.port_is_write == t.pointee.port_is_write
                && s.pointee.port_count == t.pointee.port_count
                && (s.pointee.port_is_write == 0 || martlet_port_data(s)[0] == martlet_port_data(t)[0])
        case UInt32(MARTLET_STOP_MMIO):
            let index = Int(s.pointee.mmio_count)
            guard index < Int(MARTLET_MMIO_FRAGMENTS) else { return false }
            let (x, y) = (s.mmioFragments[index], t.mmioFragments[index])
            return x.address == y.address && x.size == y.size && x.is_write == y.is_write
                && (x.is_write == 0 || x.value == y.value)
        default: return true
        }
    }

    /// Translated code may hold other status flags than the guest where the guest overwrites them before it reads them.
    /// The shadow takes those, so that what a fault or an interrupt pushes is the same in both (docs/quirks.md).
    private func tolerateDeadFlags(_ s: State, _ t: State) {
        guard (s.pointee.status ^ t.pointee.status) & ArchitecturalState.statusMask != 0,
            s.pointee.rip == t.pointee.rip, follower.statusIsDead(shadow)
        else { return }
        toleratedFlags &+= 1
        t.pointee.status = s.pointee.status
    }

    /// Pages written since the last check. False: they differ.
    private func compareMemory() -> Bool {
        if let address = memory.firstDifference(primary.writtenPages, shadow.writtenPages) {
            _ = differ(.memory(address))
            return false
        }
        memoryCheckedAt = primary.state.pointee.instruction_count
        primary.forgetWrites()
        shadow.forgetWrites()
        return true
    }

    /// All of RAM, for the end of a run. False: they differ.
    func compareAll() -> Bool {
        guard difference == nil else { return false }
        guard hasMemory, let address = memory.firstDifference() else { return true }
        _ = differ(.memory(address))
        return false
    }
}
