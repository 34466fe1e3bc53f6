internal import CHost

/// struct kvm_lapic_state: the APIC page's registers at their offsets. The ID register has the ID in its upper byte in
/// x2APIC mode too (KVM API §4.57, without KVM_CAP_X2APIC_API).
extension LocalAPIC {
    func savedState(at now: HostInstant) -> kvm_lapic_state {
        var state = kvm_lapic_state()
        withUnsafeMutableBytes(of: &state.regs) { page in
            func store(_ offset: Int, _ value: UInt32) {
                page.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
            }
            store(APICRegister.identifier, identifier << 24)
            store(APICRegister.version, APICRegister.versionValue)
            store(APICRegister.taskPriority, UInt32(taskPriority))
            store(APICRegister.processorPriority, UInt32(processorPriority))
            store(APICRegister.logicalDestination, isX2APIC ? x2LogicalDestination : xLogicalDestination)
            store(APICRegister.destinationFormat, destinationFormat)
            store(APICRegister.spurious, spurious)
            for index in 0..<8 {
                store(APICRegister.inService + index * 16, inService.register(index))
                store(APICRegister.triggerMode + index * 16, triggerMode.register(index))
                store(APICRegister.request + index * 16, request.register(index))
            }
            store(APICRegister.errorStatus, errorStatus)
            store(APICRegister.commandLow, UInt32(truncatingIfNeeded: command))
            store(APICRegister.commandHigh, UInt32(truncatingIfNeeded: command >> 32))
            for (index, entry) in localVectors.enumerated() {
                store(APICRegister.localVectors + index * 16, entry)
            }
            store(APICRegister.initialCount, timer.initialCount)
            store(APICRegister.currentCount, timer.currentCount(at: now))
            store(APICRegister.divideConfiguration, timer.divideConfiguration)
        }
        return state
    }

    /// Everything but IA32_APIC_BASE and IA32_TSC_DEADLINE, which travel as MSRs.
    mutating func restore(_ state: kvm_lapic_state, at now: HostInstant) {
        var registers = [UInt32](repeating: 0, count: 64)
        withUnsafeBytes(of: state.regs) { page in
            for index in registers.indices {
                registers[index] = page.loadUnaligned(fromByteOffset: index * 16, as: UInt32.self)
            }
        }
        func register(_ offset: Int) -> UInt32 { registers[offset >> 4 & 63] }
        if !isX2APIC {
            xAPICID = UInt8(truncatingIfNeeded: register(APICRegister.identifier) >> 24)
            xLogicalDestination = register(APICRegister.logicalDestination) & 0xff00_0000
        }
        taskPriority = UInt8(truncatingIfNeeded: register(APICRegister.taskPriority))
        destinationFormat = register(APICRegister.destinationFormat) | 0x0fff_ffff
        spurious = register(APICRegister.spurious) & 0x1ff
        for index in 0..<8 {
            inService.setRegister(index, register(APICRegister.inService + index * 16))
            triggerMode.setRegister(index, register(APICRegister.triggerMode + index * 16))
            request.setRegister(index, register(APICRegister.request + index * 16))
        }
        errorStatus = register(APICRegister.errorStatus)
        collectedErrors = 0
        command = UInt64(register(APICRegister.commandHigh)) << 32 | UInt64(register(APICRegister.commandLow))
        for entry in LocalVector.allCases {
            localVectors[entry.rawValue] = register(APICRegister.localVectors + entry.rawValue * 16) & entry.writable
        }
        restoreTimer(
            count: register(APICRegister.currentCount), initial: register(APICRegister.initialCount),
            divide: register(APICRegister.divideConfiguration), at: now)
        needsAttention = true
    }

    private mutating func restoreTimer(count: UInt32, initial: UInt32, divide: UInt32, at now: HostInstant) {
        let mode = APICTimer.Mode(rawValue: localVectors[LocalVector.timer.rawValue] >> 17 & 3) ?? .reserved
        let deadline = timer.mode == mode ? timer.tscDeadline : 0
        timer.stop()
        timer.mode = mode
        timer.divideConfiguration = divide & 0xb
        timer.setInitialCount(initial, at: now)
        timer.resume(atCount: count, now: now)
        timer.setTSCDeadline(deadline, at: now)
    }
}
