/// The PC's 8254 and port 0x61. Channel 0 interrupts; ticks that the guest could not take are delivered again when it
/// acknowledges the last one, which is KVM's default policy.
struct PIT8254: Equatable, Sendable {
    /// Shorter periods of a guest would only load the host; KVM's min_timer_period_us.
    static let minimumPeriod = PITChannel.ticks(inNanoseconds: 200_000) + 1

    var channels = [PITChannel(gate: true), PITChannel(gate: true), PITChannel(gate: false)]
    let hasSpeakerPort: Bool
    var isSpeakerOn = false
    /// The HPET has taken over channel 0's interrupt.
    var isReplacedByHPET = false

    /// Ticks of channel 0 since its load that were counted.
    var countedTicks: UInt64 = 0
    /// Ticks not yet acknowledged, with the one in flight.
    var pendingTicks: UInt64 = 0
    var isAcknowledged = true

    init(hasSpeakerPort: Bool) { self.hasSpeakerPort = hasSpeakerPort }

    func contains(_ port: UInt16) -> Bool { port & 0xfffc == 0x40 || (port == 0x61 && hasSpeakerPort) }

    // MARK: Channel 0's interrupt

    private var periodInTicks: UInt64? {
        let channel = channels[0]
        guard channel.isRunning, !isReplacedByHPET else { return nil }
        switch channel.mode {
        case 0, 4: return UInt64(channel.count)
        case 2, 3: return max(UInt64(channel.count), Self.minimumPeriod)
        default: return nil
        }
    }

    private var isPeriodic: Bool { channels[0].mode == 2 || channels[0].mode == 3 }

    /// Counts ticks up to `now`. True: raise and lower GSI 0.
    mutating func advance(to now: UInt64) -> Bool {
        guard let period = periodInTicks else { return false }
        var ticks = channels[0].elapsedTicks(at: now) / period
        if !isPeriodic { ticks = min(ticks, 1) }
        guard ticks > countedTicks else { return false }
        pendingTicks = pendingTicks.saturatingAdd(ticks - countedTicks)
        countedTicks = ticks
        guard isAcknowledged else { return false }
        isAcknowledged = false
        return true
    }

    /// The guest ended an interrupt of GSI 0. True: another tick waits, raise and lower GSI 0 again.
    mutating func acknowledge() -> Bool {
        pendingTicks = pendingTicks.saturatingSubtract(1)
        isAcknowledged = pendingTicks == 0
        return !isAcknowledged
    }

    /// The guest unmasked the line or loaded a count: what was missed before is of no interest.
    mutating func forgetMissedTicks() {
        pendingTicks = 0
        isAcknowledged = true
    }

    /// When `advance` will next return true by itself. Ticks during an unacknowledged one are counted when it ends.
    var nextDeadline: UInt64? {
        guard isAcknowledged, let period = periodInTicks else { return nil }
        guard isPeriodic || countedTicks == 0 else { return nil }
        let (ticks, overflow) = period.multipliedReportingOverflow(by: countedTicks &+ 1)
        return overflow ? nil : channels[0].loadTime.saturatingAdd(PITChannel.nanoseconds(forTicks: ticks))
    }

    private mutating func channelZeroChanged() {
        countedTicks = 0
        forgetMissedTicks()
    }

    // MARK: Registers

    mutating func write(port: UInt16, _ value: UInt8, at now: UInt64) {
        switch port {
        case 0x40...0x42:
            let index = Int(port - 0x40)
            if channels[index].write(value, at: now), index == 0 { channelZeroChanged() }
        case 0x43: writeControl(value, at: now)
        case 0x61 where hasSpeakerPort:
            isSpeakerOn = value & 2 != 0
            channels[2].setGate(value & 1 != 0, at: now)
        default: break
        }
    }

    private mutating func writeControl(_ value: UInt8, at now: UInt64) {
        let index = Int(value >> 6)
        if index == 3 {
            // Read-back command (8254, "Read-back command"): the latch bits are active low.
            for channel in 0..<3 where value & (2 << UInt8(channel)) != 0 {
                if value & 0x20 == 0 { channels[channel].latchCount(at: now) }
                if value & 0x10 == 0 { channels[channel].latchStatus(at: now) }
            }
        } else if let access = PITChannel.Access(rawValue: value >> 4 & 3) {
            channels[index].control(access: access, mode: value >> 1 & 7, isBCD: value & 1 != 0)
            if index == 0 { channelZeroChanged() }
        } else {
            channels[index].latchCount(at: now)
        }
    }

    mutating func read(port: UInt16, at now: UInt64) -> UInt8 {
        switch port {
        case 0x40...0x42: return channels[Int(port - 0x40)].read(at: now)
        case 0x61 where hasSpeakerPort:
            // Bit 4 is the DRAM refresh's flip-flop, about 15 µs long; bit 5 channel 2's output.
            return (channels[2].gate ? 1 : 0) | (isSpeakerOn ? 2 : 0) | (now >> 14 & 1 != 0 ? 0x10 : 0)
                | (channels[2].output(at: now) ? 0x20 : 0)
        default: return 0
        }
    }
}
