internal import CHost

// Address translation in software: the guest's page tables (SDM vol. 3A ch. 4: 32-bit, PAE and 4-level paging), then the
// slot table from guest-physical to host memory.

/// Page-table entry bits (SDM vol. 3A §4.5.4).
enum PageBits {
    static let present: UInt64 = 1 << 0
    static let writable: UInt64 = 1 << 1
    static let user: UInt64 = 1 << 2
    static let accessed: UInt64 = 1 << 5
    static let dirty: UInt64 = 1 << 6
    static let large: UInt64 = 1 << 7
    static let global: UInt64 = 1 << 8
    static let noExecute: UInt64 = 1 << 63
    static let frame: UInt64 = 0x000F_FFFF_FFFF_F000
}

/// Error-code bits of #PF (SDM vol. 3A §4.7).
enum PageFaultBits {
    static let protection: UInt32 = 1
    static let write: UInt32 = 2
    static let user: UInt32 = 4
    static let reserved: UInt32 = 8
    static let fetch: UInt32 = 16
}

/// What an access needs from a translation.
struct AccessRequest {
    var isWrite = false
    var isFetch = false
    var isUser = false
    /// A supervisor access that SMAP keeps off user pages.
    var avoidsUserPages = false
}

/// A finished walk.
struct Translation {
    var guestPhysical: UInt64
    var isWritable: Bool
    var isUser: Bool
    var isGlobal: Bool
    var isDirty: Bool
    /// Bits of the address that are the offset in the page.
    var pageShift: UInt64 = 12
}

/// The slot that holds a guest-physical address.
@inline(__always) func findSlot(_ s: State, _ address: UInt64) -> UnsafeMutablePointer<martlet_slot>? {
    let count = Int(s.pointee.slot_count)
    var index = 0
    while index < count {
        let slot = s.slotTable + index
        if address &- slot.pointee.guest_physical < slot.pointee.size { return slot }
        index &+= 1
    }
    return nil
}

private func raisePageFault(_ s: State, _ address: UInt64, _ request: AccessRequest, _ code: UInt32) {
    var error = code
    if request.isWrite { error |= PageFaultBits.write }
    if request.isUser { error |= PageFaultBits.user }
    if request.isFetch, s.pointee.efer & Control.noExecute != 0 || s.pointee.cr4 & Control.smep != 0 {
        error |= PageFaultBits.fetch
    }
    s.pointee.exception_cr2 = address
    flushFaultingPage(s, address)
    raise(s, .pageFault, error: error)
}

/// Walks the guest's tables for a linear address. Nil: #PF recorded. Sets accessed and dirty bits.
func translate(_ s: State, _ address: UInt64, _ request: AccessRequest) -> Translation? {
    guard s.pointee.cr0 & Control.paging != 0 else {
        return Translation(
            guestPhysical: address & 0xFFFF_FFFF, isWritable: true, isUser: true, isGlobal: false, isDirty: true)
    }
    let before = martlet_set_activity(s, UInt32(MARTLET_AT_PAGE_WALK))
    defer { martlet_set_activity(s, before) }
    if s.pointee.cr4 & Control.physicalAddressExtension == 0 { return walk32(s, address, request) }
    return walk64(s, address, request)
}

/// The host address of a page-table entry. Nil where the table is not in RAM.
private func entryPointer(_ s: State, _ guestPhysical: UInt64) -> UnsafeMutableRawPointer? {
    guard let slot = findSlot(s, guestPhysical), let host = slot.pointee.host else { return nil }
    return UnsafeMutableRawPointer(host) + Int(guestPhysical &- slot.pointee.guest_physical)
}

/// Whether accessed and dirty bits can be set in the entry at a guest-physical address: not in read-only memory, which
/// the host may have mapped so. What holds them is then dirty itself.
private func noteEntryWrite(_ s: State, _ guestPhysical: UInt64) -> Bool {
    guard let slot = findSlot(s, guestPhysical), slot.pointee.flags & slotReadOnly == 0 else { return false }
    markDirty(s, slot, guestPhysical)
    noteCodeWrite(s, guestPhysical, 1)
    return true
}

/// Sets bits of an 8-byte entry unless another vCPU changed it meanwhile. False: walk again.
private func setBits64(
    _ s: State, _ address: UInt64, _ pointer: UnsafeMutableRawPointer, _ old: UInt64, _ bits: UInt64
) -> Bool {
    if old & bits == bits || !noteEntryWrite(s, address) { return true }
    return martlet_compare_exchange64(pointer.assumingMemoryBound(to: UInt64.self), old, old | bits) != 0
}

private func setBits32(
    _ s: State, _ address: UInt64, _ pointer: UnsafeMutableRawPointer, _ old: UInt32, _ bits: UInt32
) -> Bool {
    if old & bits == bits || !noteEntryWrite(s, address) { return true }
    return martlet_compare_exchange32(pointer.assumingMemoryBound(to: UInt32.self), old, old | bits) != 0
}

/// Rights accumulated over the levels.
private struct Rights {
    var writable = true
    var user = true
    var noExecute = false

    /// Whether the access is allowed (SDM vol. 3A §4.6.1).
    func allows(_ s: State, _ request: AccessRequest) -> Bool {
        if request.isUser {
            if !user { return false }
            if request.isWrite, !writable { return false }
        } else {
            if user {
                if request.isFetch, s.pointee.cr4 & Control.smep != 0 { return false }
                if !request.isFetch, request.avoidsUserPages { return false }
            }
            if request.isWrite, !writable, s.pointee.cr0 & Control.writeProtect != 0 { return false }
        }
        return !(request.isFetch && noExecute)
    }
}

/// PAE and 4-level paging.
private func walk64(_ s: State, _ address: UInt64, _ request: AccessRequest) -> Translation? {
    let isLong = s.isLongMode
    let noExecuteEnabled = s.pointee.efer & Control.noExecute != 0
    let reservedAlways: UInt64 =
        (PageBits.frame & ~s.pointee.physical_address_mask) | (noExecuteEnabled ? 0 : PageBits.noExecute)
    var table = isLong ? s.pointee.cr3 & PageBits.frame : s.pointee.cr3 & 0xFFFF_FFE0
    var level = isLong ? 3 : 2
    var rights = Rights()
    while true {
        let shift = UInt64(12 + 9 * level)
        let indexMask: UInt64 = (!isLong && level == 2) ? 3 : 511
        let entryAddress = table &+ ((address >> shift) & indexMask) &* 8
        guard let pointer = entryPointer(s, entryAddress) else {
            // A table outside RAM reads as all ones on a PC: reserved bits are set.
            raisePageFault(s, address, request, PageFaultBits.protection | PageFaultBits.reserved)
            return nil
        }
        let entry = pointer.load(as: UInt64.self)
        guard entry & PageBits.present != 0 else {
            raisePageFault(s, address, request, 0)
            return nil
        }
        let isDirectoryPointer = !isLong && level == 2
        let isLeaf = level == 0 || (entry & PageBits.large != 0 && (level == 1 || (level == 2 && isLong)))
        var reserved = reservedAlways
        if isDirectoryPointer { reserved |= 0x1E6 }
        if level == 3 { reserved |= PageBits.large }
        if isLeaf, level > 0 { reserved |= ((1 << shift) - 1) & PageBits.frame & ~(1 << 12) }
        guard entry & reserved == 0 else {
            raisePageFault(s, address, request, PageFaultBits.protection | PageFaultBits.reserved)
            return nil
        }
        if !isDirectoryPointer {
            rights.writable = rights.writable && entry & PageBits.writable != 0
            rights.user = rights.user && entry & PageBits.user != 0
            rights.noExecute = rights.noExecute || entry & PageBits.noExecute != 0
        }
        if isLeaf {
            guard rights.allows(s, request) else {
                raisePageFault(s, address, request, PageFaultBits.protection)
                return nil
            }
            let bits = PageBits.accessed | (request.isWrite ? PageBits.dirty : 0)
            guard setBits64(s, entryAddress, pointer, entry, bits) else { return walk64(s, address, request) }
            let offsetMask: UInt64 = (1 << shift) - 1
            return Translation(
                guestPhysical: (entry & PageBits.frame & ~offsetMask) | (address & offsetMask),
                isWritable: rights.writable, isUser: rights.user,
                isGlobal: entry & PageBits.global != 0 && s.pointee.cr4 & Control.globalPages != 0,
                isDirty: (entry | bits) & PageBits.dirty != 0, pageShift: shift)
        }
        if !isDirectoryPointer, !setBits64(s, entryAddress, pointer, entry, PageBits.accessed) {
            return walk64(s, address, request)
        }
        table = entry & PageBits.frame
        level -= 1
    }
}

/// 32-bit paging with 4 KiB and 4 MiB pages (PSE-36 included; SDM vol. 3A §4.3).
private func walk32(_ s: State, _ address: UInt64, _ request: AccessRequest) -> Translation? {
    var rights = Rights()
    let directoryAddress = (s.pointee.cr3 & 0xFFFF_F000) &+ ((address >> 22) & 1023) &* 4
    guard let directory = entryPointer(s, directoryAddress) else {
        raisePageFault(s, address, request, 0)
        return nil
    }
    let directoryEntry = directory.load(as: UInt32.self)
    guard directoryEntry & 1 != 0 else {
        raisePageFault(s, address, request, 0)
        return nil
    }
    rights.writable = directoryEntry & 2 != 0
    rights.user = directoryEntry & 4 != 0
    let isLarge = directoryEntry & 0x80 != 0 && s.pointee.cr4 & Control.pageSizeExtensions != 0
    var pointer = directory
    var entry = directoryEntry
    var entryAddress = directoryAddress
    if !isLarge {
        guard setBits32(s, directoryAddress, directory, directoryEntry, 0x20) else {
            return walk32(s, address, request)
        }
        let tableAddress = UInt64(directoryEntry & 0xFFFF_F000) &+ ((address >> 12) & 1023) &* 4
        guard let table = entryPointer(s, tableAddress) else {
            raisePageFault(s, address, request, 0)
            return nil
        }
        pointer = table
        entryAddress = tableAddress
        entry = table.load(as: UInt32.self)
        guard entry & 1 != 0 else {
            raisePageFault(s, address, request, 0)
            return nil
        }
        rights.writable = rights.writable && entry & 2 != 0
        rights.user = rights.user && entry & 4 != 0
    } else if directoryEntry & (1 << 21) != 0 {
        raisePageFault(s, address, request, PageFaultBits.protection | PageFaultBits.reserved)
        return nil
    }
    guard rights.allows(s, request) else {
        raisePageFault(s, address, request, PageFaultBits.protection)
        return nil
    }
    let bits: UInt32 = 0x20 | (request.isWrite ? 0x40 : 0)
    guard setBits32(s, entryAddress, pointer, entry, bits) else { return walk32(s, address, request) }
    var physical = UInt64(entry & 0xFFFF_F000) | (address & 0xFFF)
    if isLarge {
        let high = UInt64((entry >> 13) & 0xFF) << 32
        physical = high | UInt64(entry & 0xFFC0_0000) | (address & 0x3F_FFFF)
    }
    return Translation(
        guestPhysical: physical, isWritable: rights.writable, isUser: rights.user,
        isGlobal: entry & 0x100 != 0 && s.pointee.cr4 & Control.globalPages != 0,
        isDirty: (entry | bits) & 0x40 != 0, pageShift: isLarge ? 22 : 12)
}

/// What the current privilege asks of data pages.
func currentRequest(_ s: State) -> AccessRequest {
    let isUser = s.pointee.cpl == 3
    return AccessRequest(
        isUser: isUser,
        avoidsUserPages: !isUser && s.pointee.cr4 & Control.smap != 0
            && s.pointee.rflags & RFlags.alignmentCheck == 0)
}

/// Translates for data at the current privilege, fills the TLB where the page is plain RAM. Nil: fault recorded.
func resolveData(_ s: State, _ address: UInt64, _ kind: UInt8) -> PageTarget? {
    var request = currentRequest(s)
    request.isWrite = kind & AccessKind.write != 0
    return resolve(s, address, request)
}

/// Translates for the processor's own supervisor accesses (descriptor tables, TSS), whatever the privilege.
func resolveSystem(_ s: State, _ address: UInt64, _ kind: UInt8) -> PageTarget? {
    let avoids = s.pointee.cr4 & Control.smap != 0
    let request = AccessRequest(isWrite: kind & AccessKind.write != 0, avoidsUserPages: avoids)
    return resolve(s, address, request)
}

private func resolve(_ s: State, _ address: UInt64, _ request: AccessRequest) -> PageTarget? {
    if let target = knownTarget(s, address, request) { return target }
    s.pointee.tlb_misses &+= 1
    guard let translation = translate(s, address, request) else { return nil }
    let physical = translation.guestPhysical
    guard let slot = findSlot(s, physical), let base = slot.pointee.host else {
        return PageTarget(guestPhysical: physical, host: nil)
    }
    let isReadOnly = slot.pointee.flags & slotReadOnly != 0
    if request.isWrite, isReadOnly { return PageTarget(guestPhysical: physical, host: nil) }
    let host = UnsafeMutableRawPointer(base) + Int(physical &- slot.pointee.guest_physical)
    if request.isWrite { markDirty(s, slot, physical) }
    fillLine(s, TLBTable.serving(request), address, translation, slot, host, wrote: request.isWrite)
    return PageTarget(guestPhysical: physical, host: host)
}

/// What a line already says. An access that takes the slow path for another reason (it crosses pages, the page holds
/// code) must not look at the page tables again: what the guest sees then hangs on its accesses alone, and not on how
/// they are executed.
@inline(__always) private func knownTarget(_ s: State, _ address: UInt64, _ request: AccessRequest) -> PageTarget? {
    let index = tlbIndex(address)
    let line = TLBLine(martlet_tlb_table(s.pointee.space.unsafelyUnwrapped, UInt32(TLBTable.serving(request))), index)
    let page = address & ~pageMask
    guard line.readTag == page else { return nil }
    let physical = line.flags & ~pageMask
    if request.isWrite, line.writeTag != page {
        guard line.flags & UInt64(MARTLET_TLB_CODE) != 0 else { return nil }
        allowWrites(s, line, physical)
    }
    return PageTarget(guestPhysical: physical | (address & pageMask), host: hostPointer(line, address))
}

/// Stores through a line need not look for code any more, once the page has none.
private func allowWrites(_ s: State, _ line: TLBLine, _ physical: UInt64) {
    guard let slot = findSlot(s, physical) else { return }
    let code = s.pointee.page_code.unsafelyUnwrapped + pageIndex(slot, physical)
    guard code.pointee.granules == 0 else { return }
    code.pointee.writable_epoch = s.pointee.tlb_epoch
    line.writeTag = line.readTag
    line.flags &= ~UInt64(MARTLET_TLB_CODE)
}

let slotReadOnly: UInt32 = 2
let slotLogsDirty: UInt32 = 1
/// Not KVM's: `Processor.writtenPages` is kept.
let slotNotesWrites: UInt32 = 1 << 31

/// Number of a guest-physical page in the per-page tables.
@inline(__always) func pageIndex(_ slot: UnsafeMutablePointer<martlet_slot>, _ physical: UInt64) -> Int {
    Int(slot.pointee.page_index &+ ((physical &- slot.pointee.guest_physical) >> 12))
}

private func fillLine(
    _ s: State, _ table: Int, _ address: UInt64, _ translation: Translation,
    _ slot: UnsafeMutablePointer<martlet_slot>, _ host: UnsafeMutableRawPointer, wrote: Bool
) {
    let page = address & ~pageMask
    let index = tlbIndex(address)
    let space = s.pointee.space.unsafelyUnwrapped
    let line = TLBLine(martlet_tlb_table(space, UInt32(table)), index)
    let code = s.pointee.page_code.unsafelyUnwrapped + pageIndex(slot, translation.guestPhysical)
    // A store goes straight to memory only where it has nothing to tell: the page is dirty already, holds no decoded
    // code, and (SDM vol. 3A §4.6.1) may be written at this privilege.
    let mayWrite =
        (translation.isWritable || (table != TLBTable.user && s.pointee.cr0 & Control.writeProtect == 0))
        && translation.isDirty && slot.pointee.flags & slotReadOnly == 0
        && (wrote || slot.pointee.flags & (slotLogsDirty | slotNotesWrites) == 0)
    let hasCode = code.pointee.granules != 0
    if mayWrite, !hasCode { code.pointee.writable_epoch = s.pointee.tlb_epoch }
    // Sites outlive the line of their page, but which there are hangs on how the guest is executed.
    if s.pointee.in_lockstep != 0, line.readTag != page { forgetSites(s, page: line.readTag) }
    line.readTag = page
    line.writeTag = mayWrite && !hasCode ? page : impossibleTag(index)
    line.addend = UInt64(UInt(bitPattern: host)) &- address
    let isRestricted = translation.isUser && table != TLBTable.user && s.pointee.cr4 & Control.smap != 0
    line.flags =
        (translation.guestPhysical & ~pageMask) | (translation.isGlobal ? UInt64(MARTLET_TLB_GLOBAL) : 0)
        | (isRestricted ? UInt64(MARTLET_TLB_NOT_IN_SITES) : 0) | (mayWrite && hasCode ? UInt64(MARTLET_TLB_CODE) : 0)
    noteFilled(s, space, table: table, address, translation)
}

private func markDirty(_ s: State, _ slot: UnsafeMutablePointer<martlet_slot>, _ physical: UInt64) {
    guard slot.pointee.flags & (slotLogsDirty | slotNotesWrites) != 0, let owner = s.pointee.owner else { return }
    Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.markDirty(pageIndex(slot, physical)) }
}

/// A store to a page with decoded code: drops that code when it is really hit.
@inline(__always) func noteCodeWrite(_ s: State, _ physical: UInt64, _ size: Int) {
    guard let slot = findSlot(s, physical) else { return }
    let index = pageIndex(slot, physical)
    let code = s.pointee.page_code.unsafelyUnwrapped + index
    if code.pointee.granules == 0 { return }
    let first = (physical & pageMask) >> 6
    let last = min((physical & pageMask) &+ UInt64(size - 1), pageMask) >> 6
    let mask = (UInt64.max << first) & (UInt64.max >> (63 &- last))
    if code.pointee.granules & mask != 0, let owner = s.pointee.owner {
        Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.invalidateCode(page: index) }
    }
}

// MARK: - Fetch

/// Where the instructions of the page at `address` are. Nil: fault recorded.
func fetchPage(_ s: State, _ address: UInt64) -> UnsafeMutablePointer<martlet_fetch_entry>? {
    let isUser = s.pointee.cpl == 3
    let page = address & ~pageMask
    let index = Int(truncatingIfNeeded: (address >> 12) & UInt64(MARTLET_FETCH_ENTRIES - 1))
    let space = s.pointee.space.unsafelyUnwrapped
    let entry = martlet_fetch_table(space, isUser ? 1 : 0) + index
    if entry.pointee.tag == page { return entry }
    s.pointee.counters.fetch_misses &+= 1
    guard let translation = translate(s, page, AccessRequest(isFetch: true, isUser: isUser)) else {
        s.pointee.exception_cr2 = address
        return nil
    }
    // Jump entries outlive the entry of their page, but which there are hangs on how the guest is executed.
    if s.pointee.in_lockstep != 0, entry.pointee.tag != .max { bumpAllGenerations(s) }
    noteFetched(s, space, page, isUser: isUser, translation)
    entry.pointee.tag = page
    entry.pointee.guest_physical = translation.guestPhysical & ~pageMask
    if let slot = findSlot(s, translation.guestPhysical), let host = slot.pointee.host {
        entry.pointee.host = host + Int(entry.pointee.guest_physical &- slot.pointee.guest_physical)
        entry.pointee.page_index = UInt64(pageIndex(slot, translation.guestPhysical))
    } else {
        entry.pointee.host = nil
    }
    return entry
}
