/// What a register write asks of the rest of the machine.
enum APICEffect: Equatable {
    case none
    case send(InterruptMessage)
    case ended(LocalAPIC.EndOfInterrupt)
}

/// Registers by their offset in the MMIO page (SDM vol. 3A table 11-1); the x2APIC MSR of one is 0x800 + offset / 16.
enum APICRegister {
    static let identifier = 0x20
    static let version = 0x30
    static let taskPriority = 0x80
    static let arbitrationPriority = 0x90
    static let processorPriority = 0xa0
    static let endOfInterrupt = 0xb0
    static let remoteRead = 0xc0
    static let logicalDestination = 0xd0
    static let destinationFormat = 0xe0
    static let spurious = 0xf0
    static let inService = 0x100
    static let triggerMode = 0x180
    static let request = 0x200
    static let errorStatus = 0x280
    static let commandLow = 0x300
    static let commandHigh = 0x310
    static let localVectors = 0x320
    static let initialCount = 0x380
    static let currentCount = 0x390
    static let divideConfiguration = 0x3e0
    static let selfInterrupt = 0x3f0

    /// KVM's: an integrated APIC with six local vectors.
    static let versionValue: UInt32 = 0x0005_0014

    static func localVector(at offset: Int) -> LocalAPIC.LocalVector? {
        LocalAPIC.LocalVector(rawValue: (offset - localVectors) >> 4)
    }
}

extension LocalAPIC {
    // MARK: xAPIC: the MMIO page

    /// A read inside the page. Accesses that are not 32 bits wide and aligned to 16 bytes have no defined result; like
    /// KVM these give the addressed bytes, or 0.
    mutating func readPage(offset: Int, size: Int, at now: HostInstant) -> UInt64 {
        let within = offset & 15
        guard within + size <= 4 else { return 0 }
        guard let value = register(offset & 0xff0, at: now) else {
            report(ErrorBits.illegalRegister)
            return 0
        }
        let mask: UInt64 = size >= 4 ? 0xffff_ffff : (1 << UInt64(size * 8)) - 1
        return UInt64(value) >> UInt64(within * 8) & mask
    }

    mutating func writePage(offset: Int, size: Int, value: UInt64, at now: HostInstant) -> APICEffect {
        guard size == 4, offset & 15 == 0 else { return .none }
        let value = UInt32(truncatingIfNeeded: value)
        switch offset & 0xff0 {
        case APICRegister.identifier:
            xAPICID = UInt8(truncatingIfNeeded: value >> 24)
        case APICRegister.logicalDestination:
            xLogicalDestination = value & 0xff00_0000
        case APICRegister.destinationFormat:
            destinationFormat = value | 0x0fff_ffff
        case APICRegister.commandLow:
            command = command & 0xffff_ffff_0000_0000 | UInt64(value)
            return sendCommand()
        case APICRegister.commandHigh:
            command = command & 0xffff_ffff | UInt64(value & 0xff00_0000) << 32
        default:
            return write(offset & 0xff0, value, at: now) ?? illegalWrite()
        }
        return .none
    }

    private mutating func illegalWrite() -> APICEffect {
        report(ErrorBits.illegalRegister)
        return .none
    }

    // MARK: x2APIC: MSRs 0x800–0x8ff (SDM vol. 3A table 11-6)

    /// nil: #GP(0).
    func readMSR(_ index: UInt32, at now: HostInstant) -> UInt64? {
        guard isX2APIC, index >= 0x800, index <= 0x8ff else { return nil }
        let offset = Int(index & 0xff) << 4
        switch offset {
        case APICRegister.identifier: return UInt64(initialID)
        case APICRegister.logicalDestination: return UInt64(x2LogicalDestination)
        case APICRegister.commandLow: return command
        case APICRegister.commandHigh, APICRegister.destinationFormat, APICRegister.arbitrationPriority,
            APICRegister.endOfInterrupt, APICRegister.remoteRead:
            return nil
        default: return register(offset, at: now).map(UInt64.init)
        }
    }

    /// nil: #GP(0).
    mutating func writeMSR(_ index: UInt32, _ value: UInt64, at now: HostInstant) -> APICEffect? {
        guard isX2APIC, index >= 0x800, index <= 0x8ff else { return nil }
        let offset = Int(index & 0xff) << 4
        if offset == APICRegister.commandLow {
            guard value & 0x0000_0000_fff3_2000 == 0 else { return nil }
            command = value
            return sendCommand()
        }
        guard value >> 32 == 0 else { return nil }
        let low = UInt32(truncatingIfNeeded: value)
        switch offset {
        case APICRegister.endOfInterrupt, APICRegister.errorStatus:
            guard low == 0 else { return nil }
        case APICRegister.selfInterrupt:
            guard low < 0x100 else { return nil }
            return sendToSelf(UInt8(truncatingIfNeeded: low))
        case APICRegister.taskPriority:
            guard low < 0x100 else { return nil }
        case APICRegister.spurious:
            guard low & ~0x1ff == 0 else { return nil }
        case APICRegister.divideConfiguration:
            guard low & ~0xb == 0 else { return nil }
        case APICRegister.localVectors...0x370:
            guard let entry = APICRegister.localVector(at: offset), low & ~(entry.writable | 0x5000) == 0 else {
                return nil
            }
        default: break
        }
        return write(offset, low, at: now)
    }

    private func sendToSelf(_ vector: UInt8) -> APICEffect {
        .send(InterruptMessage(vector: vector, mode: .fixed, shorthand: .toSelf, destination: 0))
    }

    // MARK: Registers common to both

    private func register(_ offset: Int, at now: HostInstant) -> UInt32? {
        switch offset {
        case APICRegister.identifier: return UInt32(xAPICID) << 24
        case APICRegister.version: return APICRegister.versionValue
        case APICRegister.taskPriority: return UInt32(taskPriority)
        case APICRegister.processorPriority: return UInt32(processorPriority)
        case APICRegister.arbitrationPriority, APICRegister.endOfInterrupt, APICRegister.remoteRead: return 0
        case APICRegister.logicalDestination: return xLogicalDestination
        case APICRegister.destinationFormat: return destinationFormat
        case APICRegister.spurious: return spurious
        case APICRegister.inService..<APICRegister.triggerMode:
            return inService.register((offset - APICRegister.inService) >> 4)
        case APICRegister.triggerMode..<APICRegister.request:
            return triggerMode.register((offset - APICRegister.triggerMode) >> 4)
        case APICRegister.request..<APICRegister.errorStatus:
            return request.register((offset - APICRegister.request) >> 4)
        case APICRegister.errorStatus: return errorStatus
        case APICRegister.commandLow: return UInt32(truncatingIfNeeded: command)
        case APICRegister.commandHigh: return UInt32(truncatingIfNeeded: command >> 32)
        case APICRegister.localVectors...0x370:
            return APICRegister.localVector(at: offset).map { localVectors[$0.rawValue] }
        case APICRegister.initialCount: return timer.initialCount
        case APICRegister.currentCount: return timer.currentCount(at: now)
        case APICRegister.divideConfiguration: return timer.divideConfiguration
        default: return nil
        }
    }

    /// nil: no such register, or a read-only one.
    private mutating func write(_ offset: Int, _ value: UInt32, at now: HostInstant) -> APICEffect? {
        switch offset {
        case APICRegister.taskPriority: setTaskPriority(UInt8(truncatingIfNeeded: value))
        case APICRegister.endOfInterrupt: return endOfInterrupt().map(APICEffect.ended) ?? APICEffect.none
        case APICRegister.spurious: setSpurious(value)
        case APICRegister.errorStatus:
            errorStatus = collectedErrors
            collectedErrors = 0
        case APICRegister.localVectors...0x370:
            guard let entry = APICRegister.localVector(at: offset) else { return nil }
            setLocalVector(entry, value, at: now)
        case APICRegister.initialCount: timer.setInitialCount(value, at: now)
        case APICRegister.divideConfiguration: timer.setDivideConfiguration(value, at: now)
        default: return nil
        }
        return APICEffect.none
    }

    mutating func setTaskPriority(_ value: UInt8) {
        taskPriority = value
        if deliverableVector != nil { needsAttention = true }
    }

    private mutating func setSpurious(_ value: UInt32) {
        // No directed EOI and no focus checking in version 0x14.
        spurious = value & 0x1ff
        guard !isSoftwareEnabled else { return needsAttention = true }
        // SDM vol. 3A §11.4.7.2: all local vectors become masked.
        for index in localVectors.indices { localVectors[index] |= Self.maskBit }
    }

    private mutating func setLocalVector(_ entry: LocalVector, _ value: UInt32, at now: HostInstant) {
        var value = value & entry.writable
        if !isSoftwareEnabled { value |= Self.maskBit }
        // Before it is unmasked an expiry that is over must not count; the owner has advanced the timer already.
        if entry == .timer { timer.setMode(APICTimer.Mode(rawValue: value >> 17 & 3) ?? .reserved, at: now) }
        localVectors[entry.rawValue] = value
        if entry == .lint0 { needsAttention = true }
    }

    /// ICR (SDM vol. 3A §11.6.1): delivery is immediate, so the status bit never shows.
    private mutating func sendCommand() -> APICEffect {
        command &= ~(1 << 12)
        let mode = InterruptMessage.DeliveryMode(bits: command >> 8)
        let vector = UInt8(truncatingIfNeeded: command)
        if mode == .fixed || mode == .lowestPriority, vector < 16 {
            report(ErrorBits.sentIllegalVector)
            return .none
        }
        let isLevel = command & (1 << 15) != 0
        return .send(
            InterruptMessage(
                vector: vector, mode: mode, isLogical: command & (1 << 11) != 0,
                // The trigger bit counts only for INIT (SDM vol. 3A §11.6.1, "Trigger mode").
                isLevel: mode == .initialize && isLevel, isAsserted: command & (1 << 14) != 0,
                shorthand: InterruptMessage.Shorthand(bits: command >> 18),
                destination: UInt32(truncatingIfNeeded: command >> (isX2APIC ? 32 : 56)), isInterprocessor: true))
    }

    // MARK: IA32_APIC_BASE and IA32_TSC_DEADLINE

    /// False: #GP(0), for reserved bits and for the transitions that SDM vol. 3A figure 11-27 does not have.
    mutating func setBase(_ value: UInt64, physicalAddressMask: UInt64) -> Bool {
        let reserved = ~(physicalAddressMask | 0xfff) | 0x2ff
        let mode = value & (BaseBits.enable | BaseBits.x2APIC)
        guard value & reserved == 0, mode != BaseBits.x2APIC else { return false }
        if isX2APIC, mode == BaseBits.enable { return false }
        if !isHardwareEnabled, mode == BaseBits.enable | BaseBits.x2APIC { return false }
        forceBase(value)
        return true
    }

    /// As user space may: any transition.
    mutating func forceBase(_ value: UInt64) {
        let wasEnabled = isHardwareEnabled
        base = value
        if wasEnabled, !isHardwareEnabled { timer.stop() }
        if !wasEnabled, isHardwareEnabled { xAPICID = UInt8(truncatingIfNeeded: initialID) }
        needsAttention = true
    }

    /// SDM vol. 3A §11.5.4.1: 0 unless the timer is in TSC-deadline mode.
    var tscDeadline: UInt64 { timer.mode == .tscDeadline ? timer.tscDeadline : 0 }
}
