internal import CHost
internal import CPU
internal import Host
internal import Synchronization

/// MSRs of the engine around the processor: the local APIC's and kvmclock's.
enum EngineRegister {
    /// The processor's own, which user space writes in another way than a guest.
    static let tsc: UInt32 = 0x10
    static let tscAdjust: UInt32 = 0x3b
    static let apicBase: UInt32 = 0x1b
    static let tscDeadline: UInt32 = 0x6e0
    static let x2APIC: ClosedRange<UInt32> = 0x800...0x8ff
    /// Documentation/virt/kvm/x86/msr.rst; the first pair are the old numbers.
    static let wallClockOld: UInt32 = 0x11
    static let systemTimeOld: UInt32 = 0x12
    static let wallClock: UInt32 = 0x4b56_4d00
    static let systemTime: UInt32 = 0x4b56_4d01

    static func contains(_ index: UInt32) -> Bool {
        switch index {
        case apicBase, tscDeadline, x2APIC, wallClockOld, systemTimeOld, wallClock, systemTime: true
        default: false
        }
    }
}

extension SoftVirtualCPU {
    /// nil: no such register, #GP(0).
    func readEngineRegister(_ msr: UInt32) -> UInt64? {
        counters.engineRegisterAccesses &+= 1
        let index = index
        switch msr {
        case EngineRegister.apicBase: return state.pointee.apic_base
        case EngineRegister.tscDeadline:
            let now = TimestampCounter.now
            return machine.withFabric { fabric in
                fabric.advance(to: now)
                return fabric.apics[index].tscDeadline
            }
        case EngineRegister.x2APIC:
            guard hasIRQChip else { return nil }
            let now = TimestampCounter.now
            return machine.withFabric { fabric in
                fabric.advance(to: now)
                return fabric.apics[index].readMSR(msr, at: now)
            }
        case EngineRegister.wallClock, EngineRegister.wallClockOld: return guestClock.wallClockRegister
        case EngineRegister.systemTime, EngineRegister.systemTimeOld: return guestClock.systemTimeRegister
        default: return nil
        }
    }

    /// False: #GP(0). nil: not a register of the engine.
    func writeEngineRegister(_ msr: UInt32, _ value: UInt64, fromGuest: Bool) -> Bool? {
        counters.engineRegisterAccesses &+= 1
        switch msr {
        case EngineRegister.apicBase: return setAPICBase(value, fromGuest: fromGuest)
        case EngineRegister.tscDeadline: setTSCDeadline(value)
        case EngineRegister.x2APIC:
            guard hasIRQChip else { return false }
            let (index, now) = (index, TimestampCounter.now)
            return machine.withFabric { $0.writeX2APIC(index, msr, value, at: now) }
        case EngineRegister.wallClock, EngineRegister.wallClockOld:
            guestClock.wallClockRegister = value
            writeWallClock()
        case EngineRegister.systemTime, EngineRegister.systemTimeOld:
            guestClock.systemTimeRegister = value
            // The guest reads its clock behind the WRMSR. User space may load the memory after the registers.
            if fromGuest { writeGuestClock() } else { core.clockIsStale.store(true, ordering: .sequentiallyConsistent) }
            mustLook = true
        default: return nil
        }
        return true
    }

    private func setAPICBase(_ value: UInt64, fromGuest: Bool) -> Bool {
        // Reserved without the feature (SDM vol. 3A §11.12.1).
        if fromGuest, value & (1 << 10) != 0, !processor.hasX2APIC { return false }
        let (index, mask) = (index, state.pointee.physical_address_mask)
        let isAccepted = machine.withFabric { fabric in
            defer { fabric.timersChanged = true }
            if fromGuest { return fabric.apics[index].setBase(value, physicalAddressMask: mask) }
            fabric.apics[index].forceBase(value)
            return true
        }
        reflectAPIC()
        return isAccepted
    }

    private func setTSCDeadline(_ value: UInt64) {
        guard hasIRQChip else { return }
        let (index, now, offset) = (index, TimestampCounter.now, state.pointee.tsc_offset)
        machine.withFabric { fabric in
            fabric.apics[index].timer.setTSCOffset(offset, at: now)
            fabric.setTSCDeadline(index, value, at: now)
        }
    }

    // MARK: kvmclock

    /// Writes the vCPU's pvclock_vcpu_time_info: version odd, the rest, version even (msr.rst).
    func writeGuestClock() {
        guard let address = guestClock.timeInfoAddress else { return }
        let version = guestClock.nextVersion()
        let offset = state.pointee.tsc_offset
        let info = machine.withClock { $0.timeInfo(version: version, tscOffset: offset) }
        core.writeGuest([UInt8](littleEndian: version &- 1), at: address)
        core.writeGuest(info.dropFirst(4), at: address &+ 4)
        core.writeGuest(info.prefix(4), at: address)
    }

    private func writeWallClock() {
        let address = guestClock.wallClockRegister
        guard address != 0 else { return }
        let version = guestClock.nextVersion()
        let now = TimestampCounter.now
        let clock = machine.withClock { $0.nanoseconds(atHostTSC: now.tsc) }
        let page = ParavirtualClock.wallClock(version: version, realtime: HostClock.realtimeNanoseconds, clock: clock)
        core.writeGuest([UInt8](littleEndian: version &- 1), at: address)
        core.writeGuest(page.dropFirst(4), at: address &+ 4)
        core.writeGuest(page.prefix(4), at: address)
    }
}

/// What the guest said about its clock.
struct GuestClock: Equatable, Sendable {
    var wallClockRegister: UInt64 = 0
    /// The address of the time info, bit 0: enabled.
    var systemTimeRegister: UInt64 = 0
    private var version: UInt32 = 0
    private var tscOffset: UInt64 = 0

    var timeInfoAddress: UInt64? { systemTimeRegister & 1 != 0 ? systemTimeRegister & ~1 : nil }

    /// True: the guest has moved its TSC since the last call, its page is wrong.
    mutating func noteTSCOffset(_ offset: UInt64) -> Bool {
        defer { tscOffset = offset }
        return offset != tscOffset
    }

    /// The next even version.
    mutating func nextVersion() -> UInt32 {
        version &+= 2
        return version
    }
}

extension [UInt8] {
    fileprivate init(littleEndian value: UInt32) {
        self = (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) }
    }
}

extension VirtualCPUCore {
    /// Writes to guest RAM on the vCPU's thread. What is not in one writable slot is dropped, as KVM does.
    func writeGuest(_ bytes: some Collection<UInt8>, at address: UInt64) {
        let count = UInt64(bytes.count)
        for number in 0..<Int(state.pointee.slot_count) {
            let slot = martlet_slots(state)[number]
            let offset = address &- slot.guest_physical
            guard offset < slot.size, count <= slot.size - offset, let host = slot.host else { continue }
            guard slot.flags & UInt32(KVM_MEM_READONLY) == 0 else { return }
            // SAFETY: the range was just checked against the slot, whose memory outlives the VM (the contract).
            for (index, byte) in bytes.enumerated() { (host + Int(offset) + index).pointee = byte }
            processor.noteMemoryWritten(at: address, count: count)
            engineWrites.insert(address >> 12)
            engineWrites.insert((address &+ count &- 1) >> 12)
            return
        }
    }

    /// The processor's dirty log of a slot, with what the engine wrote itself.
    func takeDirtyLog(slot identifier: UInt32) -> [UInt64]? {
        withStoppedProcessor { processor in
            guard var log = processor.dirtyLog(slot: identifier) else { return nil }
            for number in 0..<Int(state.pointee.slot_count) {
                let slot = martlet_slots(state)[number]
                guard slot.identifier == identifier else { continue }
                for page in engineWrites {
                    let bit = page &- slot.guest_physical >> 12
                    guard bit < slot.size >> 12, Int(bit >> 6) < log.count else { continue }
                    log[Int(bit >> 6)] |= 1 << (bit & 63)
                    engineWrites.remove(page)
                }
            }
            return log
        }
    }
}
