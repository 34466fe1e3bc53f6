public import CHost
internal import Glibc

/// Why `Processor.run()` returned.
public enum Stop: Sendable {
    /// The attention word was set.
    case attention
    /// A port access that no hook handled; see `martlet_cpu.port_*`.
    case portIO
    /// A memory-mapped access that no hook handled; see `martlet_cpu.mmio`.
    case mmio
    /// HLT; rip is behind it.
    case halt
    /// Triple fault.
    case shutdown
    /// An interrupt window was asked for and is open.
    case window
    /// Lockstep: the two processors differ; `lockstepReport` says how. The machine cannot go on.
    case difference
}

/// How a processor executes guest code.
public enum Execution: Sendable, Equatable {
    /// Every instruction by its handler.
    case interpreter
    /// 64-bit blocks, and 32-bit ones with flat segments, that were entered `threshold` times by translated code, the rest
    /// by the interpreter. `exactFlags`: status flags are kept over every address check, also where the guest overwrites
    /// them unread, so that they are right in the frame of every fault and interrupt (docs/decisions/0009).
    case translator(threshold: Int32, exactFlags: Bool = false)
    /// As `translator`, with the interpreter behind it on memory of its own, compared unit by unit (CPU/Lockstep).
    case lockstep(threshold: Int32, exactFlags: Bool = false)

    /// Entries before a block is translated. Nil: it never is.
    var threshold: Int32? {
        switch self {
        case .interpreter: nil
        case .translator(let threshold, _), .lockstep(let threshold, _): threshold
        }
    }

    var exactFlags: Bool {
        switch self {
        case .interpreter: true
        case .translator(_, let exact), .lockstep(_, let exact): exact
        }
    }
}

/// One software vCPU: architectural state, decoded code and the interpreter's loop. Owned by one thread at a time.
public final class Processor {
    public let state: State
    private let siteLists: UnsafeMutablePointer<UnsafeMutableRawPointer?>
    private let siteNumbers: UnsafeMutablePointer<UInt32>
    let cache = CodeCache()
    let tables = OpcodeTables.shared
    let stubs: StubCache
    let arena = CodeArena()
    /// How code is executed; to be set before the first `run()`.
    public var execution = Execution.interpreter {
        didSet {
            if case .lockstep = execution { lockstep = Lockstep(primary: self) } else { lockstep = nil }
        }
    }
    var lockstep: Lockstep?
    /// Who samples this processor, if anybody does.
    public internal(set) var profile: ProfileRecorder?
    /// Translated code found no more room; everything is dropped before the next block is decoded.
    var arenaIsFull = false
    private let crossings = CrossingInstructions()
    private let jumps = JumpCache()
    private var pageCodeCount = 0
    private var dirtyPages: [UInt64] = []
    private(set) var writtenPages: [UInt64] = []
    var cpuidEntries: [kvm_cpuid_entry2] = []
    /// The TSC offset at power-on; IA32_TSC_ADJUST is what the guest has added since.
    public var tscOffsetBase: UInt64 = 0

    /// Longest block, in instructions.
    private static let longestBlock = 48

    /// A processor in the power-on state (SDM vol. 3A table 9-1).
    public init(apicID: Int) {
        state = EngineMemory.map(1, of: martlet_cpu.self)
        stubs = StubCache()
        siteLists = EngineMemory.map(Self.siteListCapacity, of: UnsafeMutableRawPointer?.self)
        state.pointee.local_sites = siteLists
        state.pointee.global_sites = siteLists + CodeArena.recordCapacity
        siteNumbers = EngineMemory.map(Self.siteListCapacity, of: UInt32.self)
        state.pointee.local_site_numbers = siteNumbers
        state.pointee.global_site_numbers = siteNumbers + CodeArena.recordCapacity
        state.pointee.records = arena.recordStart
        state.pointee.owner = Unmanaged.passUnretained(self).toOpaque()
        state.pointee.apic_base = 0xFEE0_0900
        state.pointee.physical_address_mask = 0xFF_FFFF_FFFF
        initializeTLB(state)
        installTranslator(state)
        setCPUID(Processor.supportedCPUID())
        reset()
    }

    deinit {
        releasePageCode()
        EngineMemory.unmap(siteLists, Self.siteListCapacity)
        EngineMemory.unmap(siteNumbers, Self.siteListCapacity)
        EngineMemory.unmap(state, 1)
    }

    /// Two lists that each have room for every site.
    private static let siteListCapacity = 2 * CodeArena.recordCapacity

    /// Bytes of memory that the state, the lists of sites and the map of code pages take now.
    var residentTables: Int {
        let lists = Self.siteListCapacity * MemoryLayout<UnsafeMutableRawPointer?>.stride
        let numbers = Self.siteListCapacity * MemoryLayout<UInt32>.stride
        let pages = max(1, pageCodeCount) * MemoryLayout<martlet_page_code>.stride
        return host_resident_size(state, MemoryLayout<martlet_cpu>.stride)
            + host_resident_size(siteLists, lists) + host_resident_size(siteNumbers, numbers)
            + (state.pointee.page_code.map { host_resident_size($0, pages) } ?? 0)
    }

    private func releasePageCode() {
        if let table = state.pointee.page_code { EngineMemory.unmap(table, pageCodeCount) }
        state.pointee.page_code = nil
    }

    /// Replaces the memory slots; everything derived from the old ones is dropped.
    public func setSlots(_ slots: [martlet_slot]) {
        precondition(slots.count <= Int(MARTLET_MAX_SLOTS), "too many memory slots")
        releasePageCode()
        var pages: UInt64 = 0
        for (index, slot) in slots.enumerated() {
            state.slotTable[index] = slot
            state.slotTable[index].page_index = pages
            pages += slot.size >> 12
        }
        state.pointee.slot_count = UInt32(slots.count)
        cache.setLimit(guestMemory: pages << 12)
        pageCodeCount = Int(pages)
        state.pointee.page_code = EngineMemory.map(pageCodeCount, of: martlet_page_code.self)
        dirtyPages =
            slots.contains { $0.flags & slotLogsDirty != 0 } ? Array(repeating: 0, count: Int(pages + 63) / 64) : []
        writtenPages = []
        cache.reset()
        jumps.forgetKeys()
        flushTLB()
        lockstep?.forgetMemory()
    }

    public func flushTLB() {
        flushTranslations(state, keepGlobal: false)
        lockstep?.flushShadow()
    }

    /// The host wrote to guest memory: what was decoded from there is dropped. On the processor's own thread (also from
    /// inside a hook), or while it is stopped.
    public func noteMemoryWritten(at address: UInt64, count: UInt64) {
        dropCode(address, count: count)
        lockstep?.noteHostWrite(address, count: count)
    }

    /// Whether `noteMemoryWritten` may have something to do; from any thread, while the slots do not change. Code that
    /// the guest executed before it asked a device for these bytes is seen; a guest that executes bytes while a device
    /// writes them may keep the old ones.
    public func mayHoldCode(at address: UInt64, count: UInt64) -> Bool {
        guard lockstep == nil else { return true }
        var place = address & ~pageMask
        while place < address &+ count {
            if let slot = findSlot(state, place), let pages = state.pointee.page_code,
                martlet_page_granules(pages + pageIndex(slot, place)) != 0
            {
                return true
            }
            place = place &+ pageSize
            if place == 0 { break }
        }
        return false
    }

    func dropCode(_ address: UInt64, count: UInt64) {
        var place = address
        var rest = count
        while rest > 0 {
            let size = min(rest, pageSize &- (place & pageMask))
            noteCodeWrite(state, place, Int(size))
            place = place &+ size
            rest -= size
        }
    }

    // MARK: Lockstep

    /// The first difference that lockstep found.
    public var lockstepReport: String? { lockstep?.difference?.text }

    /// Lockstep: compares all of guest memory, which takes long. False: there is a difference.
    public func checkLockstep() -> Bool { lockstep?.compareAll() ?? true }

    /// From now on `writtenPages` has a bit for each page that the guest writes.
    func noteWrites() {
        var pages: UInt64 = 0
        for index in 0..<Int(state.pointee.slot_count) {
            state.slotTable[index].flags |= slotNotesWrites
            pages += state.slotTable[index].size >> 12
        }
        writtenPages = Array(repeating: 0, count: Int(pages + 63) / 64)
        flushTranslations(state, keepGlobal: false)
    }

    /// Forgets what was written, so that it is noted anew.
    func forgetWrites() {
        for index in writtenPages.indices { writtenPages[index] = 0 }
        flushTranslations(state, keepGlobal: false)
    }

    // MARK: Dirty log

    func markDirty(_ page: Int) {
        if page >> 6 < dirtyPages.count { dirtyPages[page >> 6] |= 1 << UInt64(page & 63) }
        if page >> 6 < writtenPages.count { writtenPages[page >> 6] |= 1 << UInt64(page & 63) }
    }

    /// The pages of a slot written since the last call, one bit each, or nil for an unknown slot.
    public func dirtyLog(slot identifier: UInt32) -> [UInt64]? {
        guard
            let slot = (0..<Int(state.pointee.slot_count)).map({ state.slotTable[$0] })
                .first(where: { $0.identifier == identifier && $0.flags & slotLogsDirty != 0 })
        else { return nil }
        let count = Int(slot.size >> 12)
        var bitmap = [UInt64](repeating: 0, count: (count + 63) / 64)
        for page in 0..<count {
            let number = Int(slot.page_index) + page
            let bit: UInt64 = 1 << UInt64(number & 63)
            if dirtyPages[number >> 6] & bit != 0 {
                bitmap[page >> 6] |= 1 << UInt64(page & 63)
                dirtyPages[number >> 6] &= ~bit
            }
        }
        flushTLB()
        return bitmap
    }

    // MARK: Code

    /// Drops the decoded code of a page that is being written.
    @inline(never) func invalidateCode(page: Int) {
        state.pointee.invalidated_pages &+= 1
        // Indirect branches and returns may lead there.
        bumpAllGenerations(state)
        cache.drop(
            page: state.pointee.page_code! + page,
            stale: unsafeBitCast(staleHandler, to: UnsafeMutableRawPointer.self))
    }

    private func dropAllCode() {
        state.pointee.cache_flushes &+= 1
        state.pointee.invalidated_pages &+= 1
        // The TLB stays: it must not hang on how much code there is.
        cache.forEachBlock { guestPhysical in
            guard let slot = findSlot(state, guestPhysical), let table = state.pointee.page_code else { return }
            table[pageIndex(slot, guestPhysical)].granules = 0
            table[pageIndex(slot, guestPhysical)].first_block = 0
        }
        cache.reset()
        stubs.reset()
        crossings.reset()
        jumps.forgetKeys()
        forgetSites(state, keepGlobal: false)
        arena.reset()
        profile?.forgetTranslated()
        arenaIsFull = false
        bumpAllGenerations(state)
    }

    /// The first instruction at rip, decoded now if need be. Nil: an exception was recorded (rip unchanged).
    @inline(never) func lookup() -> Insn? {
        let s = state
        let rip = s.pointee.rip
        guard let linear = fetchAddress(s, rip), let page = fetchPage(s, linear) else { return nil }
        let offset = UInt16(linear & pageMask)
        s.setRegister(Int(MARTLET_PAGE_RIP_REGISTER), rip &- UInt64(offset))
        guard page.pointee.host != nil else {
            raise(s, .invalidOpcode)
            return nil
        }
        let key = codeKey(page.pointee.guest_physical | UInt64(offset))
        s.pointee.counters.block_lookups &+= 1
        if let found = jumps.target(s, rip, key) ?? cache.find(key) {
            jumps.remember(s, rip, found, key)
            return found
        }
        let started = alu_rdtsc()
        let before = martlet_set_activity(s, UInt32(MARTLET_AT_DECODER))
        let block = decodeBlock(page: page.pointee, offset: offset, linear: linear, key: key)
        martlet_set_activity(s, before)
        guard let decoded = block else { return nil }
        s.pointee.counters.decoding_cycles &+= alu_rdtsc() &- started
        jumps.remember(s, rip, decoded, decoded.pointee.flags & InsnFlag.uncached == 0 ? key : .max)
        return decoded
    }

    /// Code is found by guest-physical address, code size (with flat segments or not) and privilege.
    private func codeKey(_ guestPhysical: UInt64) -> UInt64 {
        CodeCache.key(guestPhysical, mode: state.codeMode, isUser: state.pointee.cpl == 3)
    }

    /// The decoded block at an offset of the page that rip is on, if there is one.
    func decodedBlock(atPageOffset offset: Int) -> Insn? {
        let address = state.register(Int(MARTLET_PAGE_RIP_REGISTER))
        let index = Int(truncatingIfNeeded: (address >> 12) & UInt64(MARTLET_FETCH_ENTRIES - 1))
        let space = state.pointee.space.unsafelyUnwrapped
        let page = martlet_fetch_table(space, state.pointee.cpl == 3 ? 1 : 0) + index
        guard page.pointee.tag == address else { return nil }
        return cache.find(codeKey(page.pointee.guest_physical | UInt64(offset)))
    }

    /// Decodes from `offset` of a page to the end of the block. Nil: an exception was recorded.
    private func decodeBlock(page: martlet_fetch_entry, offset: UInt16, linear: UInt64, key: UInt64) -> Insn? {
        let s = state
        guard !arenaIsFull, let place = cache.reserve(Self.longestBlock + 1) else {
            dropAllCode()
            return lookup()
        }
        var count = 0
        var position = Int(offset)
        var ended = false
        while count < Self.longestBlock, position < Int(pageSize), !ended {
            let i = place + count
            var decoder = Decoder(
                bytes: UnsafePointer(page.host! + position), available: min(15, Int(pageSize) - position),
                mode: s.pointee.mode, tables: tables)
            let result = decoder.decode(into: i)
            if result == .needsMore {
                if count == 0 { return decodeCrossing(page: page, offset: offset, linear: linear) }
                break
            }
            i.pointee.page_offset = UInt16(position)
            guard bindDecoded(i, result) else {
                dropAllCode()
                return lookup()
            }
            i.pointee.position = UInt8(count)
            position += Int(i.pointee.length)
            ended = result != .done || decoder.entry.flags & OpcodeEntry.endsBlock != 0
            count += 1
        }
        s.pointee.counters.decoded_blocks &+= 1
        s.pointee.decoded_instructions &+= UInt64(count)
        watchForTranslation(place, count)
        if s.pointee.trace.kinds & UInt32(MARTLET_TRACE_BLOCKS) != 0 {
            traceDecoded(place, count, guestPhysical: CodeCache.guestPhysical(key))
        }
        place[count] = martlet_insn()
        place[count].page_offset = UInt16(position)
        place[count].handler = endOfBlock
        place[count].interpreted = endOfBlock
        count += 1
        registerCode(page: page, from: Int(offset), to: min(position, Int(pageSize)), key: key, count: count)
        return place
    }

    private func registerCode(page: martlet_fetch_entry, from: Int, to: Int, key: UInt64, count: Int) {
        watchCode(page, from: from, to: to)
        cache.add(key: key, count: count, to: state.pointee.page_code! + Int(page.page_index))
    }

    /// From now on a store to these bytes of a page drops what was decoded of it.
    private func watchCode(_ page: martlet_fetch_entry, from: Int, to: Int) {
        let code = state.pointee.page_code! + Int(page.page_index)
        let first = UInt64(from >> 6)
        let last = UInt64((max(to, from + 1) - 1) >> 6)
        if code.pointee.granules == 0 { protectCodePage(state, code, host: UInt64(UInt(bitPattern: page.host!))) }
        code.pointee.granules |= (UInt64.max << first) & (UInt64.max >> (63 - last))
    }

    /// Sets the handler of a decoded (or undecodable) instruction. False: no room for stubs.
    private func bindDecoded(_ i: Insn, _ result: DecodeResult) -> Bool {
        defer { i.pointee.interpreted = i.pointee.handler }
        i.pointee.host_code = nil
        i.pointee.hops = 0
        i.pointee.is_flat32 = state.pointee.is_flat32
        switch result {
        case .done:
            foldRIP(i)
            return bind(i, stubs: stubs)
        case .invalid, .needsMore:
            i.pointee.mnemonic = Mnemonic.invalid.rawValue
            i.pointee.handler = unsafeBitCast(invalidOpcodeHandler, to: UnsafeMutableRawPointer.self)
        case .tooLong:
            i.pointee.mnemonic = Mnemonic.invalid.rawValue
            i.pointee.handler = unsafeBitCast(tooLongHandler, to: UnsafeMutableRawPointer.self)
        }
        return true
    }

    /// RIP-relative operands become relative to the page: one constant for every place the page is mapped at.
    private func foldRIP(_ i: Insn) {
        guard i.pointee.base == UInt8(MARTLET_PAGE_RIP_REGISTER * 8),
            i.pointee.flags & InsnFlag.complexAddress == 0
        else { return }
        let next = Int32(i.pointee.page_offset) + Int32(i.pointee.length)
        let (sum, overflow) = i.pointee.displacement.addingReportingOverflow(next)
        if overflow {
            i.pointee.flags |= InsnFlag.complexAddress
        } else {
            i.pointee.displacement = sum
        }
    }

    /// An instruction whose bytes are on two pages, both of which must be fetchable. Its bytes are looked at again when
    /// either page was written or is mapped anew: both end the fetch generation that the jump cache remembers it under.
    private func decodeCrossing(page: martlet_fetch_entry, offset: UInt16, linear: UInt64) -> Insn? {
        let s = state
        let firstCount = Int(pageSize) - Int(offset)
        var buffer: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        let nextAddress = linearSum(s, linear, UInt64(firstCount))
        guard let host = page.host, let second = fetchPage(s, nextAddress) else { return nil }
        let secondHost = second.pointee.host
        withUnsafeMutableBytes(of: &buffer) { bytes in
            bytes.baseAddress!.copyMemory(from: host + Int(offset), byteCount: firstCount)
            if let secondHost {
                (bytes.baseAddress! + firstCount).copyMemory(from: secondHost, byteCount: 15 - firstCount)
            } else {
                memset(bytes.baseAddress! + firstCount, 0xFF, 15 - firstCount)
            }
        }
        watchCode(page, from: Int(offset), to: Int(pageSize))
        if secondHost != nil { watchCode(second.pointee, from: 0, to: 15 - firstCount) }
        let key = CrossingInstructions.Key(low: buffer.0, high: buffer.1, offset: offset, mode: s.pointee.mode)
        if let known = crossings.find(key) { return known }
        guard let scratch = crossings.reserve() else {
            dropAllCode()
            return lookup()
        }
        let result = withUnsafeMutableBytes(of: &buffer) { bytes -> DecodeResult in
            var decoder = Decoder(
                bytes: bytes.baseAddress!.assumingMemoryBound(to: UInt8.self), available: 15, mode: s.pointee.mode,
                tables: tables)
            return decoder.decode(into: scratch)
        }
        scratch.pointee.page_offset = offset
        guard bindDecoded(scratch, result) else {
            dropAllCode()
            return lookup()
        }
        crossings.keep(key, at: scratch)
        scratch.pointee.flags |= InsnFlag.uncached
        scratch[1] = martlet_insn()
        scratch[1].page_offset = offset &+ UInt16(scratch.pointee.length)
        scratch[1].handler = endOfBlock
        scratch[1].interpreted = endOfBlock
        s.pointee.counters.decoded_blocks &+= 1
        s.pointee.decoded_instructions &+= 1
        return scratch
    }
}

/// The linear address to fetch from at `rip`, checked (SDM vol. 3A §5.3). Nil: fault recorded.
func fetchAddress(_ s: State, _ rip: UInt64) -> UInt64? {
    if s.pointee.mode == CodeMode.bits64 {
        if isCanonical(rip) { return rip }
        raise(s, .generalProtection, error: 0)
        return nil
    }
    let cs = s.segment(SegmentRegister.cs).pointee
    guard rip <= UInt64(cs.limit) else {
        raise(s, .generalProtection, error: 0)
        return nil
    }
    return (cs.base &+ rip) & 0xFFFF_FFFF
}

/// The next block at rip, by the jump cache where possible. Nil: attention, or an exception was recorded.
@inline(__always) func nextBlock(_ s: State) -> Insn? {
    if martlet_attention(s) != 0 {
        s.pointee.stop = UInt32(MARTLET_STOP_ATTENTION)
        return nil
    }
    return findBlock(s)
}

@inline(__always) func findBlock(_ s: State) -> Insn? {
    let rip = s.pointee.rip
    let entry = s.jumpTable + jumpIndex(s, rip)
    if entry.pointee.rip == rip, entry.pointee.key == s.pointee.fetch_key {
        s.setRegister(Int(MARTLET_PAGE_RIP_REGISTER), entry.pointee.page_rip)
        return entry.pointee.target
    }
    return lookupSlow(s)
}

@inline(never) func lookupSlow(_ s: State) -> Insn? {
    guard let owner = s.pointee.owner else { return nil }
    return Unmanaged<Processor>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.lookup() }
}

// MARK: - Handlers that are no instructions

/// The end of a block that no branch ended: goes on behind it.
let endOfBlockHandler: Handler = { s, i in
    s.pointee.rip = instructionAddress(s, i)
    s.pointee.instruction_count &-= 1
    return nextBlock(s)
}

/// `endOfBlockHandler`, as an instruction carries it.
var endOfBlock: UnsafeMutableRawPointer { unsafeBitCast(endOfBlockHandler, to: UnsafeMutableRawPointer.self) }

/// What an instruction becomes when its page was written: goes to what is there now.
let staleHandler: Handler = { s, i in
    s.pointee.rip = instructionAddress(s, i)
    s.pointee.instruction_count &-= 1
    if martlet_attention(s) != 0 {
        s.pointee.stop = UInt32(MARTLET_STOP_ATTENTION)
        return nil
    }
    // Not by the jump cache, whose entry may be what led here.
    return lookupSlow(s)
}

let invalidOpcodeHandler: Handler = { s, i in fault(s, i, .invalidOpcode) }
let tooLongHandler: Handler = { s, i in fault(s, i, .generalProtection) }
