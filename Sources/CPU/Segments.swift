internal import CHost

// Segment registers and descriptors (SDM vol. 3A ch. 3, ch. 5).

/// Reads 1–8 bytes of a system structure at supervisor privilege. Nil: fault recorded.
func systemRead(_ s: State, _ address: UInt64, _ size: Int) -> UInt64? {
    var value: UInt64 = 0
    for index in 0..<size {
        let linear = s.isLongMode ? address &+ UInt64(index) : (address &+ UInt64(index)) & 0xFFFF_FFFF
        if s.isLongMode, !isCanonical(linear) {
            raise(s, .generalProtection, error: 0)
            return nil
        }
        // One translation a page: within one, read all at once.
        if index == 0, (linear & pageMask) &+ UInt64(size) <= pageSize {
            let line = systemLine(s, linear)
            if line.readTag == linear & ~pageMask {
                return loadPieces(hostPointer(line, linear), size)
            }
            guard let target = resolveSystem(s, linear, AccessKind.read) else { return nil }
            return target.host.map { loadPieces($0, size) } ?? .max
        }
        guard let target = resolveSystem(s, linear, AccessKind.read) else { return nil }
        let byte = target.host?.load(as: UInt8.self) ?? 0xFF
        value |= UInt64(byte) << UInt64(index * 8)
    }
    return value
}

/// The line of an address in the TLB table of the processor's own accesses.
@inline(__always) private func systemLine(_ s: State, _ address: UInt64) -> TLBLine {
    let table = s.pointee.cr4 & Control.smap != 0 ? TLBTable.supervisor : TLBTable.supervisorWithUser
    return TLBLine(martlet_tlb_table(s.pointee.space.unsafelyUnwrapped, UInt32(table)), tlbIndex(address))
}

private func loadPieces(_ pointer: UnsafeMutableRawPointer, _ size: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<size { value |= UInt64(pointer.load(fromByteOffset: index, as: UInt8.self)) << UInt64(index * 8) }
    return value
}

/// Writes 1–8 bytes of a system structure at supervisor privilege. False: fault recorded.
func systemWrite(_ s: State, _ address: UInt64, _ value: UInt64, _ size: Int) -> Bool {
    let line = systemLine(s, address)
    if size == 8, address &- line.writeTag <= pageSize &- 8 {
        hostPointer(line, address).storeBytes(of: value, as: UInt64.self)
        return true
    }
    for index in 0..<size {
        let linear = s.isLongMode ? address &+ UInt64(index) : (address &+ UInt64(index)) & 0xFFFF_FFFF
        if s.isLongMode, !isCanonical(linear) {
            raise(s, .generalProtection, error: 0)
            return false
        }
        guard resolveSystem(s, linear, AccessKind.write) != nil else { return false }
    }
    for index in 0..<size {
        let linear = s.isLongMode ? address &+ UInt64(index) : (address &+ UInt64(index)) & 0xFFFF_FFFF
        guard let target = resolveSystem(s, linear, AccessKind.write) else { return false }
        guard let host = target.host else { continue }
        noteCodeWrite(s, target.guestPhysical, 1)
        host.storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), as: UInt8.self)
    }
    return true
}

/// A segment or system descriptor.
struct Descriptor {
    var low: UInt64
    /// Bits 64–127 of a 16-byte system descriptor in long mode.
    var high: UInt64 = 0

    var attributes: UInt16 { UInt16(truncatingIfNeeded: low >> 40) & SegmentAttribute.fromDescriptor }
    var isPresent: Bool { attributes & SegmentAttribute.present != 0 }
    var isCodeOrData: Bool { attributes & SegmentAttribute.codeOrData != 0 }
    var isCode: Bool { isCodeOrData && attributes & SegmentAttribute.code != 0 }
    var isConforming: Bool { attributes & SegmentAttribute.expandDownOrConforming != 0 }
    var isReadableOrWritable: Bool { attributes & SegmentAttribute.writableOrReadable != 0 }
    var privilege: UInt8 { UInt8((attributes >> 5) & 3) }
    var type: UInt8 { UInt8(attributes & 15) }
    var isLong: Bool { attributes & SegmentAttribute.long != 0 }
    var isBig: Bool { attributes & SegmentAttribute.big != 0 }

    var base: UInt64 {
        ((low >> 16) & 0xFF_FFFF) | ((low >> 32) & 0xFF00_0000) | (high << 32)
    }

    /// In bytes, granularity applied.
    var limit: UInt32 {
        let raw = UInt32(truncatingIfNeeded: (low & 0xFFFF) | ((low >> 32) & 0xF_0000))
        return attributes & SegmentAttribute.granularity != 0 ? (raw << 12) | 0xFFF : raw
    }

    // Gates (SDM vol. 3A figures 5-8, 6-2, 6-8).
    var gateSelector: UInt16 { UInt16(truncatingIfNeeded: low >> 16) }
    var gateOffset: UInt64 { (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000) | (high << 32) }
    var gateParameterCount: UInt8 { UInt8((low >> 32) & 31) }
    var interruptStackTable: UInt8 { UInt8((low >> 32) & 7) }

    func segment(_ selector: UInt16) -> martlet_segment {
        martlet_segment(
            selector: selector, attributes: attributes | SegmentAttribute.accessed, limit: limit,
            base: isCodeOrData ? base & 0xFFFF_FFFF : base)
    }
}

/// The linear address of a selector's descriptor, or nil when it is beyond its table.
func descriptorAddress(_ s: State, _ selector: UInt16) -> UInt64? {
    let index = UInt64(selector & 0xFFF8)
    if selector & 4 != 0 {
        let table = s.pointee.ldtr
        guard table.attributes & SegmentAttribute.unusable == 0, index &+ 7 <= UInt64(table.limit) else { return nil }
        return table.base &+ index
    }
    guard index &+ 7 <= UInt64(s.pointee.gdtr.limit) else { return nil }
    return s.pointee.gdtr.base &+ index
}

/// Reads a descriptor; beyond the table is `vector` with the selector as error code. Nil: fault recorded.
func readDescriptor(_ s: State, _ selector: UInt16, _ vector: ExceptionVector) -> Descriptor? {
    guard let address = descriptorAddress(s, selector) else {
        raise(s, vector, error: UInt32(selector & 0xFFFC))
        return nil
    }
    guard let low = systemRead(s, address, 8) else { return nil }
    return Descriptor(low: low)
}

/// The upper half of a 16-byte system descriptor. Nil: fault recorded.
func readSystemDescriptor(_ s: State, _ selector: UInt16, _ vector: ExceptionVector) -> Descriptor? {
    guard var descriptor = readDescriptor(s, selector, vector) else { return nil }
    if s.isLongMode, !descriptor.isCodeOrData {
        guard let address = descriptorAddress(s, selector), descriptorAddress(s, selector &+ 8) != nil else {
            raise(s, vector, error: UInt32(selector & 0xFFFC))
            return nil
        }
        guard let high = systemRead(s, address &+ 8, 8) else { return nil }
        descriptor.high = high & 0xFFFF_FFFF
    }
    return descriptor
}

/// Sets a descriptor's accessed bit in memory. False: fault recorded.
func markAccessed(_ s: State, _ selector: UInt16, _ descriptor: Descriptor) -> Bool {
    guard descriptor.attributes & SegmentAttribute.accessed == 0, let address = descriptorAddress(s, selector) else {
        return true
    }
    return systemWrite(s, address &+ 5, (descriptor.low >> 40) & 0xFF | 1, 1)
}

/// Loads a data or stack segment register (SDM vol. 2, MOV; vol. 3A §5.5–5.7). False: fault recorded.
func loadSegment(_ s: State, _ number: Int, _ selector: UInt16) -> Bool {
    if !s.isProtected || s.isVirtual8086 {
        loadRealSegment(s, number, selector)
        return true
    }
    if selector & 0xFFFC == 0 { return loadNullSegment(s, number, selector) }
    guard let descriptor = readDescriptor(s, selector, .generalProtection) else { return false }
    let error = UInt32(selector & 0xFFFC)
    let requested = UInt8(selector & 3)
    let cpl = s.pointee.cpl
    if number == SegmentRegister.ss {
        let isWritableData = descriptor.isCodeOrData && !descriptor.isCode && descriptor.isReadableOrWritable
        guard isWritableData, requested == cpl, descriptor.privilege == cpl else {
            raise(s, .generalProtection, error: error)
            return false
        }
        guard descriptor.isPresent else {
            raise(s, .stack, error: error)
            return false
        }
    } else {
        let isReadable = descriptor.isCodeOrData && (!descriptor.isCode || descriptor.isReadableOrWritable)
        let isChecked = !(descriptor.isCode && descriptor.isConforming)
        guard isReadable, !isChecked || (requested <= descriptor.privilege && cpl <= descriptor.privilege) else {
            raise(s, .generalProtection, error: error)
            return false
        }
        guard descriptor.isPresent else {
            raise(s, .notPresent, error: error)
            return false
        }
    }
    guard markAccessed(s, selector, descriptor) else { return false }
    setSegment(s, number, descriptor.segment(selector))
    return true
}

func loadRealSegment(_ s: State, _ number: Int, _ selector: UInt16) {
    var segment = s.segment(number).pointee
    segment.selector = selector
    segment.base = UInt64(selector) << 4
    if s.isVirtual8086 {
        segment.limit = 0xFFFF
        segment.attributes = 0xF3
    } else if number != SegmentRegister.cs {
        // Real mode keeps the limit of protected mode ("unreal mode"); the rights are those of a writable segment.
        segment.attributes = (segment.attributes & SegmentAttribute.big) | 0x93
    }
    setSegment(s, number, segment)
}

private func loadNullSegment(_ s: State, _ number: Int, _ selector: UInt16) -> Bool {
    if number == SegmentRegister.ss {
        // 64-bit mode takes a null SS below privilege 3 (SDM vol. 3A §5.4.1.1).
        let allowed = s.pointee.mode == CodeMode.bits64 && s.pointee.cpl < 3 && UInt8(selector & 3) == s.pointee.cpl
        guard allowed else {
            raise(s, .generalProtection, error: 0)
            return false
        }
    }
    var segment = martlet_segment(selector: selector, attributes: SegmentAttribute.unusable, limit: 0, base: 0)
    // Loading a null selector leaves FS and GS bases on AMD, clears them on Intel; the latter.
    if number == SegmentRegister.ss { segment.attributes |= UInt16(s.pointee.cpl) << 5 }
    setSegment(s, number, segment)
    return true
}

/// Stores a segment register and what is derived from it.
func setSegment(_ s: State, _ number: Int, _ segment: martlet_segment) {
    s.segment(number).pointee = segment
    updateSegmentBase(s, number)
    let wasFlat = s.pointee.is_flat32
    updateFlatness(s)
    if s.pointee.is_flat32 != wasFlat { updateFetchKey(s) }
}

/// Whether data may be read and written at every offset below the limit, as far as this segment says.
private func isPlainData(_ segment: martlet_segment) -> Bool {
    let rights =
        SegmentAttribute.unusable | SegmentAttribute.code | SegmentAttribute.expandDownOrConforming
        | SegmentAttribute.writableOrReadable
    return segment.attributes & rights == SegmentAttribute.writableOrReadable
}

private func isFlatData(_ segment: martlet_segment) -> Bool {
    isPlainData(segment) && segment.base == 0 && segment.limit == .max
}

/// Recomputes what translated 32-bit code relies on: that in ES, CS, SS and DS an offset is a linear address that needs no
/// check, and how far FS and GS reach (SDM vol. 3A §3.2.1, §5.3).
private func updateFlatness(_ s: State) {
    s.pointee.is_flat32 = 0
    guard s.pointee.mode == CodeMode.bits32, s.isProtected, !s.isVirtual8086 else { return }
    let (fs, gs) = (s.segment(SegmentRegister.fs).pointee, s.segment(SegmentRegister.gs).pointee)
    s.pointee.segment_end.0 = isPlainData(fs) ? UInt64(fs.limit) + 1 : 0
    s.pointee.segment_end.1 = isPlainData(gs) ? UInt64(gs.limit) + 1 : 0
    let cs = s.segment(SegmentRegister.cs).pointee
    let ss = s.segment(SegmentRegister.ss).pointee
    guard cs.base == 0, cs.limit == .max, isFlatData(ss), ss.attributes & SegmentAttribute.big != 0,
        isFlatData(s.segment(SegmentRegister.ds).pointee), isFlatData(s.segment(SegmentRegister.es).pointee)
    else { return }
    s.pointee.is_flat32 = 1
}

private func updateSegmentBase(_ s: State, _ number: Int) {
    let is64 = s.pointee.mode == CodeMode.bits64
    s.segmentBases[number] = is64 && number < SegmentRegister.fs ? 0 : s.segment(number).pointee.base
}

/// Recomputes everything that hangs on CPL, code size, paging and SMAP: to be called after any of them changed.
func updateContext(_ s: State) {
    let cs = s.segment(SegmentRegister.cs).pointee
    if s.isLongMode, cs.attributes & SegmentAttribute.long != 0 {
        s.pointee.mode = CodeMode.bits64
    } else {
        s.pointee.mode = cs.attributes & SegmentAttribute.big != 0 ? CodeMode.bits32 : CodeMode.bits16
    }
    for number in 0..<6 { updateSegmentBase(s, number) }
    updateFlatness(s)
    selectTable(s)
    updateVectorUnits(s)
    updateFetchKey(s)
}

/// Recomputes which register files can be used: to be called after CR0, CR4, XCR0 or EFLAGS.VM changed.
func updateVectorUnits(_ s: State) {
    let cr0 = s.pointee.cr0
    let cr4 = s.pointee.cr4
    var units = 0
    if cr0 & (Control.emulation | Control.taskSwitched) == 0 {
        units = cr4 & Control.fxsaveSupport == 0 ? Int(MARTLET_UNIT_X87) : Int(MARTLET_UNIT_X87 | MARTLET_UNIT_SSE)
    }
    if cr0 & Control.protectionEnable != 0, !s.isVirtual8086 {
        units |= Int(MARTLET_UNIT_VEX)
        let enabled = cr0 & Control.taskSwitched == 0 && cr4 & Control.extendedStateEnable != 0 ? s.pointee.xcr0 : 0
        let wide = StateComponent.sse | StateComponent.avx
        if enabled & wide == wide {
            units |= Int(MARTLET_UNIT_AVX)
            if enabled & StateComponent.avx512 == StateComponent.avx512 { units |= Int(MARTLET_UNIT_AVX512) }
        }
    }
    s.pointee.vector_units = UInt32(units)
}

/// Sets CS for a new privilege.
func setCodeSegment(_ s: State, _ segment: martlet_segment, cpl: UInt8) {
    let old = s.segment(SegmentRegister.cs).pointee
    let wasLong = s.pointee.mode == CodeMode.bits64
    s.segment(SegmentRegister.cs).pointee = segment
    s.pointee.cpl = cpl
    updateContext(s)
    // Outside 64-bit mode jump entries go by offset in the segment.
    if !wasLong || s.pointee.mode != CodeMode.bits64, old.base != segment.base || old.limit != segment.limit {
        bumpGeneration(s)
    }
}
