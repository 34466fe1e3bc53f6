internal import CHost

/// struct kvm_pit_state2. As with KVM the counters start anew from their counts when they are restored.
extension PIT8254 {
    var savedState: kvm_pit_state2 {
        var state = kvm_pit_state2()
        state.channels.0 = channels[0].savedState
        state.channels.1 = channels[1].savedState
        state.channels.2 = channels[2].savedState
        state.flags =
            (isReplacedByHPET ? UInt32(KVM_PIT_FLAGS_HPET_LEGACY) : 0)
            | (isSpeakerOn ? UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) : 0)
        return state
    }

    init(hasSpeakerPort: Bool, restoring state: kvm_pit_state2, at now: UInt64) {
        self.init(hasSpeakerPort: hasSpeakerPort)
        channels[0] = PITChannel(restoring: state.channels.0, gate: true, at: now)
        channels[1] = PITChannel(restoring: state.channels.1, gate: true, at: now)
        channels[2] = PITChannel(restoring: state.channels.2, gate: state.channels.2.gate != 0, at: now)
        isReplacedByHPET = state.flags & UInt32(KVM_PIT_FLAGS_HPET_LEGACY) != 0
        isSpeakerOn = state.flags & UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) != 0
    }
}

extension PITChannel {
    var savedState: kvm_pit_channel_state {
        kvm_pit_channel_state(
            count: count, latched_count: latchedCount, count_latched: latchedBytes,
            status_latched: latchedStatus == nil ? 0 : 1, status: latchedStatus ?? 0, read_state: readState.rawValue,
            write_state: writeState.rawValue, write_latch: writeLatch, rw_mode: access.rawValue, mode: mode,
            bcd: isBCD ? 1 : 0, gate: gate ? 1 : 0,
            // KVM has no "not loaded": a channel that never counted has load time 0.
            count_load_time: isRunning ? Int64(truncatingIfNeeded: max(1, loadTime)) : 0)
    }

    init(restoring state: kvm_pit_channel_state, gate: Bool, at now: UInt64) {
        self.init(gate: gate)
        count = min(max(1, state.count), 65536)
        mode = state.mode & 7 > 5 ? state.mode & 3 : state.mode & 7
        isBCD = state.bcd != 0
        access = Access(rawValue: state.rw_mode) ?? .word
        readState = ByteState(rawValue: state.read_state) ?? ByteState(starting: access)
        writeState = ByteState(rawValue: state.write_state) ?? ByteState(starting: access)
        writeLatch = state.write_latch
        latchedCount = state.latched_count
        latchedBytes = state.count_latched & 3
        latchedStatus = state.status_latched != 0 ? state.status : nil
        isRunning = state.count_load_time != 0
        isLoaded = isRunning
        loadTime = now
        if !gate, isRunning { suspendedAt = now }
    }
}
