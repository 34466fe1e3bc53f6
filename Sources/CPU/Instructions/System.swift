internal import CHost
internal import X86

// System instructions (SDM vol. 3A §2.8): control and debug registers, descriptor tables, HLT, MSRs, CPUID, TLB.

/// Privilege 0 or #GP(0). False: fault recorded.
private func requirePrivilege(_ s: State) -> Bool {
    if s.pointee.cpl == 0 { return true }
    raise(s, .generalProtection, error: 0)
    return false
}

// MARK: - Control registers

/// CR0, CR2, CR3, CR4, CR8; the others are #UD at any privilege.
private func isControlRegister(_ i: Insn) -> Bool { (0x11D >> UInt32(i.pointee.reg >> 3)) & 1 != 0 }

let movFromCRHandler: Handler = { s, i in
    guard isControlRegister(i) else { return fault(s, i, .invalidOpcode) }
    guard requirePrivilege(s) else { return stop(s, i) }
    let value: UInt64
    switch i.pointee.reg >> 3 {
    case 0: value = s.pointee.cr0
    case 2: value = s.pointee.cr2
    case 3: value = s.pointee.cr3
    case 4: value = s.pointee.cr4
    case 8: value = s.pointee.hooks.read_cr8.map { $0(s.pointee.hooks.context) } ?? s.pointee.cr8
    default: return fault(s, i, .invalidOpcode)
    }
    writeRegister(s, i.pointee.rm, value, size: i.pointee.size)
    return i + 1
}

let movToCRHandler: Handler = { s, i in
    guard isControlRegister(i) else { return fault(s, i, .invalidOpcode) }
    guard requirePrivilege(s) else { return stop(s, i) }
    let value = readRegister(s, i.pointee.rm, size: i.pointee.size)
    let done: Bool
    switch i.pointee.reg >> 3 {
    case 0: done = writeCR0(s, value)
    case 2:
        s.pointee.cr2 = value
        done = true
    case 3: done = writeCR3(s, value)
    case 4: done = writeCR4(s, value)
    case 8: done = writeCR8(s, value)
    default: return fault(s, i, .invalidOpcode)
    }
    return done ? leaveToBreakpoints(s, i) : fault(s, i, .generalProtection)
}

/// Writes CR0 with its rules (SDM vol. 3A §2.5, §4.1.2). False: #GP(0).
func writeCR0(_ s: State, _ value: UInt64) -> Bool {
    let old = s.pointee.cr0
    let new = (value & 0xFFFF_FFFF & 0xE005_003F) | Control.extensionType
    if value >> 32 != 0 { return false }
    if new & Control.paging != 0, new & Control.protectionEnable == 0 { return false }
    if new & Control.notWriteThrough != 0, new & Control.cacheDisable == 0 { return false }
    let enablesPaging = new & ~old & Control.paging != 0
    let disablesPaging = old & ~new & Control.paging != 0
    if enablesPaging, s.pointee.efer & Control.longModeEnable != 0 {
        guard s.pointee.cr4 & Control.physicalAddressExtension != 0,
            s.segment(SegmentRegister.cs).pointee.attributes & SegmentAttribute.long == 0
        else { return false }
        s.pointee.efer |= Control.longModeActive
    }
    if disablesPaging {
        if s.pointee.mode == CodeMode.bits64 || s.pointee.cr4 & Control.processContextIdentifiers != 0 { return false }
        s.pointee.efer &= ~Control.longModeActive
    }
    s.pointee.cr0 = new
    if (old ^ new) & (Control.paging | Control.writeProtect | Control.protectionEnable) != 0 {
        flushTranslations(s, keepGlobal: false)
    }
    if new & Control.protectionEnable == 0 { s.pointee.cpl = 0 }
    updateContext(s)
    return true
}

/// Bit 63 is no part of CR3: with PCIDs it asks to flush nothing (SDM vol. 3A §4.10.4.1; vol. 2, MOV).
func writeCR3(_ s: State, _ value: UInt64) -> Bool {
    let hasIdentifiers = s.pointee.cr4 & Control.processContextIdentifiers != 0
    let keeps = hasIdentifiers && value >> 63 != 0
    let new = keeps ? value & ~(1 << 63) : value
    if s.isLongMode, new & ~(s.pointee.physical_address_mask | 0xFFF) != 0 { return false }
    s.pointee.cr3 = new
    selectSpace(s, flushes: !keeps)
    return true
}

/// The CR4 bits that this processor has.
let supportedCR4: UInt64 =
    0x3 | Control.timeStampDisable | Control.debuggingExtensions | Control.pageSizeExtensions
    | Control.physicalAddressExtension | 0x40 | Control.globalPages | Control.performanceCounter
    | Control.fxsaveSupport | Control.simdExceptions | Control.userModeInstructionPrevention | Control.fsgsbase
    | Control.processContextIdentifiers | Control.smep | Control.smap | Control.extendedStateEnable

func writeCR4(_ s: State, _ value: UInt64) -> Bool {
    if value & ~s.pointee.supported_cr4 != 0 { return false }
    if s.isLongMode, value & Control.physicalAddressExtension == 0 { return false }
    let changed = s.pointee.cr4 ^ value
    let enablesIdentifiers = changed & value & Control.processContextIdentifiers != 0
    if enablesIdentifiers, !s.isLongMode || s.pointee.cr3 & 0xFFF != 0 { return false }
    s.pointee.cr4 = value
    let translationBits =
        Control.pageSizeExtensions | Control.physicalAddressExtension | Control.globalPages | Control.smep
        | Control.smap
    let disablesIdentifiers = changed & ~value & Control.processContextIdentifiers != 0
    if changed & translationBits != 0 || disablesIdentifiers { flushTranslations(s, keepGlobal: false) }
    if disablesIdentifiers { selectSpace(s, flushes: false) }
    updateBreakpoints(s)
    updateContext(s)
    return true
}

private func writeCR8(_ s: State, _ value: UInt64) -> Bool {
    if value > 15 { return false }
    s.pointee.cr8 = value
    if let hook = s.pointee.hooks.write_cr8 { hook(s.pointee.hooks.context, value) }
    return true
}

let clearTaskSwitchedHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    s.pointee.cr0 &= ~Control.taskSwitched
    updateVectorUnits(s)
    return leaveBlock(s, i)
}

/// Instructions that UMIP keeps from user mode (SDM vol. 3A §2.5, CR4.UMIP). False: #GP recorded.
private func passesUMIP(_ s: State) -> Bool {
    if s.pointee.cr4 & Control.userModeInstructionPrevention == 0 || s.pointee.cpl == 0 { return true }
    raise(s, .generalProtection, error: 0)
    return false
}

let machineStatusHandler: Handler = { s, i in
    if i.pointee.mnemonic == Mnemonic.smsw.rawValue {
        guard passesUMIP(s) else { return stop(s, i) }
        let size: UInt8 = i.pointee.flags & InsnFlag.memory != 0 ? 2 : i.pointee.size
        return writeRM(s, i, s.pointee.cr0, size: size) ? i + 1 : stop(s, i)
    }
    guard requirePrivilege(s), let value = readRM(s, i, size: 2) else { return stop(s, i) }
    // LMSW can set PE but not clear it.
    let new = (s.pointee.cr0 & ~0xE) | (value & 0xF)
    return writeCR0(s, new) ? leaveBlock(s, i) : fault(s, i, .generalProtection)
}

// MARK: - Debug registers

/// Ends the block; where breakpoints are enabled from now on, the instructions behind it run one by one.
private func leaveToBreakpoints(_ s: State, _ i: Insn) -> Insn? {
    if s.pointee.debug_armed == 0 { return leaveBlock(s, i) }
    s.pointee.rip = nextInstructionAddress(s, i)
    return nil
}

/// General detect (SDM vol. 3B §17.2.4). False: #DB recorded.
private func passesGeneralDetect(_ s: State) -> Bool {
    if martlet_debug_registers(s)[7] & DebugBits.generalDetect == 0 { return true }
    raiseDebug(s, DebugBits.registerAccess)
    return false
}

let movFromDRHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    guard let number = debugRegisterNumber(s, i) else { return fault(s, i, .invalidOpcode) }
    guard passesGeneralDetect(s) else { return stop(s, i) }
    writeRegister(s, i.pointee.rm, martlet_debug_registers(s)[number], size: i.pointee.size)
    return i + 1
}

let movToDRHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    guard let number = debugRegisterNumber(s, i) else { return fault(s, i, .invalidOpcode) }
    guard passesGeneralDetect(s) else { return stop(s, i) }
    let value = readRegister(s, i.pointee.rm, size: i.pointee.size)
    if number >= 6, value >> 32 != 0 { return fault(s, i, .generalProtection) }
    let stored: UInt64 =
        switch number {
        case 6: (value & 0xE00F) | 0xFFFF_0FF0
        case 7: (value & 0xFFFF_2BFF) | 0x400
        default: value
        }
    martlet_debug_registers(s)[number] = stored
    if number == 7 { updateBreakpoints(s) }
    return leaveToBreakpoints(s, i)
}

/// DR4 and DR5 stand for DR6 and DR7 unless CR4.DE is set.
private func debugRegisterNumber(_ s: State, _ i: Insn) -> Int? {
    let number = Int(i.pointee.reg >> 3)
    if number > 7 { return nil }
    guard number == 4 || number == 5 else { return number }
    return s.pointee.cr4 & Control.debuggingExtensions == 0 ? number + 2 : nil
}

// MARK: - Descriptor tables

let descriptorTableHandler: Handler = { s, i in
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic)
    let is64 = s.pointee.mode == CodeMode.bits64
    let baseSize = is64 ? 8 : 4
    if mnemonic == .sgdt || mnemonic == .sidt {
        guard passesUMIP(s) else { return stop(s, i) }
        let table = mnemonic == .sgdt ? s.pointee.gdtr : s.pointee.idtr
        guard let address = operandAddress(s, i, 2 + baseSize, AccessKind.write) else { return stop(s, i) }
        var image = (UInt64(table.limit) | table.base << 16, table.base >> 48)
        let done = withUnsafeBytes(of: &image) { writeBytes(s, i, address, 2 + baseSize, from: $0.baseAddress!) }
        return done ? i + 1 : stop(s, i)
    }
    guard requirePrivilege(s), let address = operandAddress(s, i, 2 + baseSize, AccessKind.read),
        let limit = load(s, address, UInt16.self)
    else { return stop(s, i) }
    guard let pointer = readPointer(s, linearSum(s, address, 2), baseSize) else { return stop(s, i) }
    var base = loadSized(pointer, baseSize)
    if !is64, i.pointee.size == 2 { base &= 0xFF_FFFF }
    if is64, !isCanonical(base) { return fault(s, i, .generalProtection) }
    let table = martlet_table_register(base: base, limit: limit)
    if mnemonic == .lgdt { s.pointee.gdtr = table } else { s.pointee.idtr = table }
    return leaveBlock(s, i)
}

let storeSystemSelectorHandler: Handler = { s, i in
    guard s.isProtected, !s.isVirtual8086 else { return fault(s, i, .invalidOpcode) }
    guard passesUMIP(s) else { return stop(s, i) }
    let isTask = i.pointee.mnemonic == Mnemonic.str.rawValue
    let selector = isTask ? s.pointee.tr.selector : s.pointee.ldtr.selector
    let size: UInt8 = i.pointee.flags & InsnFlag.memory != 0 ? 2 : i.pointee.size
    return writeRM(s, i, UInt64(selector), size: size) ? i + 1 : stop(s, i)
}

let loadSystemSelectorHandler: Handler = { s, i in
    guard s.isProtected, !s.isVirtual8086 else { return fault(s, i, .invalidOpcode) }
    guard requirePrivilege(s), let value = readRM(s, i, size: 2) else { return stop(s, i) }
    let selector = UInt16(truncatingIfNeeded: value)
    let isTask = i.pointee.mnemonic == Mnemonic.ltr.rawValue
    if selector & 0xFFFC == 0 {
        if isTask { return fault(s, i, .generalProtection) }
        s.pointee.ldtr = martlet_segment(
            selector: selector, attributes: SegmentAttribute.unusable, limit: 0, base: 0)
        return leaveBlock(s, i)
    }
    return loadSystemSegment(s, selector, isTask: isTask) ? leaveBlock(s, i) : stop(s, i)
}

private func loadSystemSegment(_ s: State, _ selector: UInt16, isTask: Bool) -> Bool {
    let error = UInt32(selector & 0xFFFC)
    guard selector & 4 == 0 else {
        raise(s, .generalProtection, error: error)
        return false
    }
    guard let descriptor = readSystemDescriptor(s, selector, .generalProtection) else { return false }
    let isRightType =
        isTask ? descriptor.type == 9 || (descriptor.type == 1 && !s.isLongMode) : descriptor.type == 2
    guard !descriptor.isCodeOrData, isRightType else {
        raise(s, .generalProtection, error: error)
        return false
    }
    guard descriptor.isPresent else {
        raise(s, .notPresent, error: error)
        return false
    }
    var segment = martlet_segment(
        selector: selector, attributes: descriptor.attributes, limit: descriptor.limit, base: descriptor.base)
    guard isTask else {
        s.pointee.ldtr = segment
        return true
    }
    // Busy.
    guard let address = descriptorAddress(s, selector),
        systemWrite(s, address &+ 5, (descriptor.low >> 40) & 0xFF | 2, 1)
    else { return false }
    segment.attributes |= 2
    s.pointee.tr = segment
    return true
}

// MARK: - Selector inspection

let inspectSelectorHandler: Handler = { s, i in
    guard s.isProtected, !s.isVirtual8086 else { return fault(s, i, .invalidOpcode) }
    guard let value = readRM(s, i, size: 2) else { return stop(s, i) }
    let selector = UInt16(truncatingIfNeeded: value)
    let descriptor = inspect(s, selector)
    // A fault on the descriptor table itself is taken; a selector that leads nowhere is an answer.
    if s.pointee.stop == UInt32(MARTLET_STOP_EXCEPTION) { return stop(s, i) }
    let mnemonic = Mnemonic(rawValue: i.pointee.mnemonic) ?? .verr
    let visible = descriptor.flatMap { isVisible(s, selector, $0, mnemonic) ? $0 : nil }
    setZero(s, visible != nil)
    if let visible {
        if mnemonic == .lar {
            let rights = (visible.low >> 32) & 0xF0_FF00
            writeRegister(s, i.pointee.reg, rights, size: i.pointee.size)
        } else if mnemonic == .lsl {
            writeRegister(s, i.pointee.reg, UInt64(visible.limit), size: i.pointee.size)
        }
    }
    return i + 1
}

/// The descriptor, or nil where there is none, with nothing recorded.
private func inspect(_ s: State, _ selector: UInt16) -> Descriptor? {
    guard selector & 0xFFFC != 0, let address = descriptorAddress(s, selector) else { return nil }
    return systemRead(s, address, 8).map { Descriptor(low: $0) }
}

/// SDM vol. 2, LAR (table 3-53), LSL, VERR, VERW.
private func isVisible(_ s: State, _ selector: UInt16, _ descriptor: Descriptor, _ mnemonic: Mnemonic) -> Bool {
    let strictest = max(s.pointee.cpl, UInt8(selector & 3))
    let privilegeFits = (descriptor.isCode && descriptor.isConforming) || strictest <= descriptor.privilege
    switch mnemonic {
    case .verr:
        return descriptor.isCodeOrData && privilegeFits && (!descriptor.isCode || descriptor.isReadableOrWritable)
    case .verw:
        return descriptor.isCodeOrData && !descriptor.isCode && descriptor.isReadableOrWritable
            && strictest <= descriptor.privilege
    default:
        if descriptor.isCodeOrData { return privilegeFits }
        let types: [UInt8] =
            mnemonic == .lar
            ? (s.isLongMode ? [2, 9, 0xB, 0xC] : [1, 2, 3, 4, 5, 9, 0xB, 0xC])
            : (s.isLongMode ? [2, 9, 0xB] : [1, 2, 3, 9, 0xB])
        return types.contains(descriptor.type) && strictest <= descriptor.privilege
    }
}

let arplHandler: Handler = { s, i in
    guard s.isProtected, !s.isVirtual8086 else { return fault(s, i, .invalidOpcode) }
    guard let value = readRM(s, i, size: 2) else { return stop(s, i) }
    let source = readRegister(s, i.pointee.reg, UInt16.self)
    let adjusts = UInt16(value & 3) < source & 3
    if adjusts, !writeRM(s, i, (value & 0xFFFC) | UInt64(source & 3), size: 2) { return stop(s, i) }
    setZero(s, adjusts)
    return i + 1
}

// MARK: - Segment registers

let movFromSegmentHandler: Handler = { s, i in
    let number = Int(i.pointee.reg >> 3) & 7
    guard number < 6 else { return fault(s, i, .invalidOpcode) }
    let size: UInt8 = i.pointee.flags & InsnFlag.memory != 0 ? 2 : i.pointee.size
    return writeRM(s, i, UInt64(s.segment(number).pointee.selector), size: size) ? i + 1 : stop(s, i)
}

let movToSegmentHandler: Handler = { s, i in
    let number = Int(i.pointee.reg >> 3) & 7
    guard number < 6, number != SegmentRegister.cs else { return fault(s, i, .invalidOpcode) }
    guard let value = readRM(s, i, size: 2), loadSegment(s, number, UInt16(truncatingIfNeeded: value)) else {
        return stop(s, i)
    }
    if number == SegmentRegister.ss { s.pointee.interrupt_shadow = 1 }
    return leaveBlock(s, i)
}

let loadFarPointerHandler: Handler = { s, i in
    let number: Int
    switch Mnemonic(rawValue: i.pointee.mnemonic) {
    case .les: number = SegmentRegister.es
    case .lds: number = SegmentRegister.ds
    case .lss: number = SegmentRegister.ss
    case .lfs: number = SegmentRegister.fs
    default: number = SegmentRegister.gs
    }
    let size = Int(i.pointee.size)
    guard let address = operandAddress(s, i, size + 2, AccessKind.read), let pointer = readPointer(s, address, size)
    else { return stop(s, i) }
    let offset = loadSized(pointer, size)
    guard let selector = load(s, linearSum(s, address, UInt64(size)), UInt16.self), loadSegment(s, number, selector)
    else { return stop(s, i) }
    writeRegister(s, i.pointee.reg, offset, size: i.pointee.size)
    return leaveBlock(s, i)
}

let swapgsHandler: Handler = { s, i in
    guard s.pointee.mode == CodeMode.bits64 else { return fault(s, i, .invalidOpcode) }
    guard requirePrivilege(s) else { return stop(s, i) }
    let base = s.segment(SegmentRegister.gs).pointee.base
    s.segment(SegmentRegister.gs).pointee.base = s.pointee.kernel_gs_base
    s.segmentBases[SegmentRegister.gs] = s.pointee.kernel_gs_base
    s.pointee.kernel_gs_base = base
    return goOn(s, i)
}

let segmentBaseHandler: Handler = { s, i in
    guard s.pointee.mode == CodeMode.bits64, s.pointee.cr4 & Control.fsgsbase != 0 else {
        return fault(s, i, .invalidOpcode)
    }
    let register = (i.pointee.modrm >> 3) & 7
    let number = register & 1 == 0 ? SegmentRegister.fs : SegmentRegister.gs
    if register < 2 {
        writeRegister(s, i.pointee.rm, s.segment(number).pointee.base, size: i.pointee.size)
        return i + 1
    }
    let value = readRegister(s, i.pointee.rm, size: i.pointee.size)
    guard isCanonical(value) else { return fault(s, i, .generalProtection) }
    s.segment(number).pointee.base = value
    s.segmentBases[number] = value
    return goOn(s, i)
}

// MARK: - Flags

let simpleFlagHandler: Handler = { s, i in
    switch Mnemonic(rawValue: i.pointee.mnemonic) {
    case .clc: s.pointee.status &= ~0x100
    case .stc: s.pointee.status |= 0x100
    case .cmc: s.pointee.status ^= 0x100
    case .cld: s.pointee.rflags &= ~RFlags.direction
    default: s.pointee.rflags |= RFlags.direction
    }
    return i + 1
}

let cliHandler: Handler = { s, i in
    guard s.pointee.cpl <= s.ioPrivilegeLevel || !s.isProtected else { return fault(s, i, .generalProtection) }
    s.pointee.rflags &= ~RFlags.interrupt
    return i + 1
}

let stiHandler: Handler = { s, i in
    guard s.pointee.cpl <= s.ioPrivilegeLevel || !s.isProtected else { return fault(s, i, .generalProtection) }
    if s.pointee.rflags & RFlags.interrupt == 0 {
        s.pointee.rflags |= RFlags.interrupt
        // With nothing to deliver the shadow is nothing, where the next look for something comes behind the next
        // instruction: not at the end of a block. Lockstep must not hang on when attention comes.
        let looksFirst =
            s.pointee.window_requested != 0 || martlet_attention(s) != 0 || (i + 1).pointee.handler == endOfBlock
        if looksFirst || s.pointee.in_lockstep != 0 { s.pointee.interrupt_shadow = 1 }
    }
    return goOn(s, i)
}

let smapHandler: Handler = { s, i in
    guard s.pointee.cr4 & Control.smap != 0 || hasFeature(s, leaf: 7, .ebx, bit: 20) else {
        return fault(s, i, .invalidOpcode)
    }
    guard s.pointee.cpl == 0 else { return fault(s, i, .invalidOpcode) }
    if i.pointee.mnemonic == Mnemonic.stac.rawValue {
        s.pointee.rflags |= RFlags.alignmentCheck
    } else {
        s.pointee.rflags &= ~RFlags.alignmentCheck
    }
    selectTable(s)
    return goOn(s, i)
}

// MARK: - Halting, time, TLB

let hltHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    s.pointee.rip = nextInstructionAddress(s, i)
    s.pointee.stop = UInt32(MARTLET_STOP_HALT)
    return nil
}

/// The host's time-stamp counter, or what lockstep gives for it.
func hostTSC(_ s: State) -> UInt64 {
    if let source = s.pointee.host_tsc { return source(s.pointee.hooks.context) }
    return alu_rdtsc()
}

/// The guest's time-stamp counter.
func readTSC(_ s: State) -> UInt64 { hostTSC(s) &+ s.pointee.tsc_offset }

let rdtscHandler: Handler = { s, i in
    if s.pointee.cr4 & Control.timeStampDisable != 0, s.pointee.cpl != 0 { return fault(s, i, .generalProtection) }
    let value = readTSC(s)
    s.setRegister(0, value & 0xFFFF_FFFF)
    s.setRegister(2, value >> 32)
    if i.pointee.mnemonic == Mnemonic.rdtscp.rawValue { s.setRegister(1, s.pointee.tsc_aux & 0xFFFF_FFFF) }
    return i + 1
}

let rdpidHandler: Handler = { s, i in
    writeRegister(s, i.pointee.rm, s.pointee.tsc_aux & 0xFFFF_FFFF, size: i.pointee.size)
    return i + 1
}

/// A number of the host's generator, or what lockstep gives for it. False: there is none now.
private func hostRandom(_ s: State, isSeed: Bool, _ value: inout UInt64) -> Bool {
    if let source = s.pointee.host_random { return source(s.pointee.hooks.context, isSeed ? 1 : 0, &value) != 0 }
    return martlet_host_random(isSeed ? 1 : 0, &value) != 0
}

/// RDRAND and RDSEED: CF says whether there was a number, the other flags are cleared.
let randomHandler: Handler = { s, i in
    var value: UInt64 = 0
    let isThere = hostRandom(s, isSeed: i.pointee.mnemonic == Mnemonic.rdseed.rawValue, &value)
    writeRegister(s, i.pointee.rm, isThere ? value : 0, size: i.pointee.size)
    s.setStatusFlags(isThere ? RFlags.carry : 0)
    return i + 1
}

let invlpgHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    let address = effectiveAddress(s, i)
    if s.pointee.mode != CodeMode.bits64 || isCanonical(address) { flushPage(s, address) }
    return leaveBlock(s, i)
}

/// INVPCID (SDM vol. 2).
let invpcidHandler: Handler = { s, i in
    guard hasFeature(s, leaf: 7, .ebx, bit: 10) else { return fault(s, i, .invalidOpcode) }
    guard requirePrivilege(s) else { return stop(s, i) }
    guard !s.isVirtual8086 else { return fault(s, i, .generalProtection) }
    let type = readRegister(s, i.pointee.reg, size: i.pointee.size)
    var descriptor: (UInt64, UInt64) = (0, 0)
    guard let operand = operandAddress(s, i, 16, AccessKind.read),
        withUnsafeMutableBytes(of: &descriptor, { readBytes(s, i, operand, 16, into: $0.baseAddress!) })
    else { return stop(s, i) }
    let (identifier, address) = descriptor
    let needsIdentifiers = type < 2 && identifier != 0 && s.pointee.cr4 & Control.processContextIdentifiers == 0
    guard type <= 3, identifier >> 12 == 0, !needsIdentifiers, type != 0 || isCanonical(address) else {
        return fault(s, i, .generalProtection)
    }
    switch type {
    case 0: flushPage(s, pcid: UInt32(identifier), address)
    case 1: flushSpace(s, pcid: UInt32(identifier))
    case 2: flushTranslations(s, keepGlobal: false)
    default: flushAllButGlobal(s)
    }
    return leaveBlock(s, i)
}

let cacheControlHandler: Handler = { s, i in requirePrivilege(s) ? leaveBlock(s, i) : stop(s, i) }

/// CLFLUSH checks its operand as a byte load would.
let clflushHandler: Handler = { s, i in readOperand(s, i, 1) != nil ? i + 1 : stop(s, i) }

let fenceHandler: Handler = { _, i in
    alu_fence()
    return i + 1
}

let nopHandler: Handler = { _, i in i + 1 }

let rdpmcHandler: Handler = { s, i in fault(s, i, .generalProtection) }

// MARK: - CPUID and MSRs

let cpuidHandler: Handler = { s, i in
    guard let owner = s.pointee.owner else { return fault(s, i, .invalidOpcode) }
    let leaf = UInt32(truncatingIfNeeded: s.register(0))
    let subleaf = UInt32(truncatingIfNeeded: s.register(1))
    let values = Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.cpuid(leaf, subleaf) }
    s.setRegister(0, UInt64(values.0))
    s.setRegister(3, UInt64(values.1))
    s.setRegister(1, UInt64(values.2))
    s.setRegister(2, UInt64(values.3))
    return i + 1
}

func hasFeature(_ s: State, leaf: UInt32, _ register: CPUIDRegister, bit: UInt32) -> Bool {
    guard let owner = s.pointee.owner else { return false }
    return Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef {
        $0.hasFeature(leaf: leaf, register, bit: bit)
    }
}

let rdmsrHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    guard let owner = s.pointee.owner,
        let value = Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef({
            $0.readGuestMSR(UInt32(truncatingIfNeeded: s.register(1)))
        })
    else { return fault(s, i, .generalProtection) }
    s.setRegister(0, value & 0xFFFF_FFFF)
    s.setRegister(2, value >> 32)
    return i + 1
}

let wrmsrHandler: Handler = { s, i in
    guard requirePrivilege(s) else { return stop(s, i) }
    let value = (s.register(2) << 32) | (s.register(0) & 0xFFFF_FFFF)
    guard let owner = s.pointee.owner,
        Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef({
            $0.writeGuestMSR(UInt32(truncatingIfNeeded: s.register(1)), value)
        })
    else { return fault(s, i, .generalProtection) }
    return leaveBlock(s, i)
}
