internal import CHost

// The software TLB as a processor with process-context identifiers has it (SDM vol. 3A §4.10): each PCID that is in use
// has tables of its own, so that a load of CR3 that need not flush is an exchange of pointers. Global pages are filled
// into every address space by itself. What goes is always at least what the manual says; more never does harm.

typealias Space = UnsafeMutablePointer<martlet_address_space>

/// The tables of an address space: by what the access may touch.
enum TLBTable {
    static let user = Int(MARTLET_TLB_USER)
    static let supervisor = Int(MARTLET_TLB_SUPERVISOR)
    static let supervisorWithUser = Int(MARTLET_TLB_SUPERVISOR_WITH_USER)
    static let count = Int(MARTLET_TLB_TABLES)

    static func serving(_ request: AccessRequest) -> Int {
        request.isUser ? user : (request.avoidsUserPages ? supervisor : supervisorWithUser)
    }
}

extension UnsafeMutablePointer<martlet_line_set> {
    @inline(__always) private var words: UnsafeMutablePointer<UInt64> { martlet_line_words(self) }

    @inline(__always) func insert(_ index: Int) {
        words[index >> 6] |= 1 &<< UInt64(index & 63)
        pointee.summary |= 1 &<< UInt64(index >> 6)
    }

    /// The members of words `first`… in order.
    @inline(__always) func forEach(words range: Range<Int> = 0..<64, _ body: (Int) -> Void) {
        var summary = pointee.summary & (.max &<< UInt64(range.lowerBound))
        while summary != 0 {
            let number = summary.trailingZeroBitCount
            guard number < range.upperBound else { return }
            summary &= summary &- 1
            var word = words[number]
            while word != 0 {
                body(number << 6 | word.trailingZeroBitCount)
                word &= word &- 1
            }
        }
    }

    @inline(__always) func removeAll() {
        var summary = pointee.summary
        while summary != 0 {
            words[summary.trailingZeroBitCount] = 0
            summary &= summary &- 1
        }
        pointee.summary = 0
    }
}

// MARK: - Lines

@inline(__always) func tlbIndex(_ address: UInt64) -> Int {
    Int(truncatingIfNeeded: (address >> 12) & UInt64(MARTLET_TLB_ENTRIES - 1))
}

/// A tag that line `index` is never asked for: an address of the neighbouring line.
@inline(__always) func impossibleTag(_ index: Int) -> UInt64 { UInt64(index ^ 1) << 12 }

@inline(__always) private func clearLine(_ line: TLBLine, _ index: Int) {
    line.readTag = impossibleTag(index)
    line.writeTag = impossibleTag(index)
    line.flags = 0
}

/// Notes a filled line, for the flushes that have to find it.
func noteFilled(_ s: State, _ space: Space, table: Int, _ address: UInt64, _ translation: Translation) {
    martlet_lines(space, UInt32(table), translation.isGlobal ? 1 : 0).insert(tlbIndex(address))
    if translation.pageShift > 12 { noteLargePage(space, address, shift: translation.pageShift) }
    if translation.isGlobal, address >> 63 == 0 { s.pointee.has_low_globals = 1 }
}

// MARK: - Large pages: their lines are of 4 KiB, but one INVLPG takes them all (SDM vol. 3A §4.10.2.3)

func noteLargePage(_ space: Space, _ address: UInt64, shift: UInt64) {
    let bits = martlet_large_pages(space)
    let number = Int(truncatingIfNeeded: (address >> 21) & 511)
    let isHuge = shift > 21
    if isHuge {
        for index in 0..<8 { bits[index] = .max }
    } else {
        bits[number >> 6] |= 1 &<< UInt64(number & 63)
    }
    let regions = martlet_large_regions(space)
    let region = (address >> 30) << 1
    let count = Int(space.pointee.large_region_count)
    for index in 0..<min(count, Int(MARTLET_LARGE_REGIONS)) where regions[index] & ~1 == region {
        if isHuge { regions[index] |= 1 }
        return
    }
    if count < Int(MARTLET_LARGE_REGIONS) { regions[count] = region | (isHuge ? 1 : 0) }
    space.pointee.large_region_count = UInt32(min(count + 1, Int(MARTLET_LARGE_REGIONS) + 1))
}

/// How many address bits the page around an address may have for offset, as far as lines know: 12, 21 or 30.
private func largestPageShift(_ space: Space, _ address: UInt64) -> UInt64 {
    let number = Int(truncatingIfNeeded: (address >> 21) & 511)
    guard martlet_large_pages(space)[number >> 6] & (1 &<< UInt64(number & 63)) != 0 else { return 12 }
    let count = Int(space.pointee.large_region_count)
    if count > Int(MARTLET_LARGE_REGIONS) { return 30 }
    let regions = martlet_large_regions(space)
    for index in 0..<count where regions[index] >> 1 == address >> 30 { return regions[index] & 1 != 0 ? 30 : 21 }
    return 12
}

/// Behind a flush of what is not global only large pages of the upper half are left.
private func forgetLargePages(_ s: State, _ space: Space, keepGlobal: Bool) {
    let bits = martlet_large_pages(space)
    var kept = 0
    if keepGlobal {
        if s.pointee.has_low_globals != 0 || space.pointee.large_region_count > UInt32(MARTLET_LARGE_REGIONS) { return }
        let regions = martlet_large_regions(space)
        for index in 0..<Int(space.pointee.large_region_count) where regions[index] >> 34 != 0 {
            regions[kept] = regions[index]
            kept += 1
        }
    }
    space.pointee.large_region_count = UInt32(kept)
    if kept == 0 { for index in 0..<8 { bits[index] = 0 } }
}

// MARK: - Generations

func nextGeneration(_ s: State) -> UInt64 {
    s.pointee.generation_count &+= 1
    return s.pointee.generation_count
}

/// What jump entries and links of the current address space, privilege, code size and flatness have to carry.
func updateFetchKey(_ s: State) {
    let space = s.pointee.space.unsafelyUnwrapped
    let isUser = s.pointee.cpl == 3
    var generation = isUser ? space.pointee.user_generation : space.pointee.supervisor_generation
    if generation == 0 { generation = s.pointee.shared_generation }
    s.pointee.fetch_key = generation << 8 | UInt64(s.codeMode) | (isUser ? 4 : 0)
    s.pointee.jump_salt = isUser ? space.pointee.jump_salt : 0
    forgetOldReturns(s, isUser: isUser)
}

/// Makes the jump entries and cross-page links of the current address space stale.
func bumpGeneration(_ s: State) {
    let space = s.pointee.space.unsafelyUnwrapped
    space.pointee.user_generation = nextGeneration(s)
    bumpSupervisorGeneration(s, space)
    updateFetchKey(s)
}

/// Makes the jump entries and links of every address space stale: code is gone.
func bumpAllGenerations(_ s: State) {
    forEachSpace(s) {
        $0.pointee.user_generation = nextGeneration(s)
        if $0.pointee.supervisor_generation != 0 { $0.pointee.supervisor_generation = nextGeneration(s) }
    }
    s.pointee.shared_generation = nextGeneration(s)
    updateFetchKey(s)
}

private func bumpSupervisorGeneration(_ s: State, _ space: Space) {
    if space.pointee.supervisor_generation != 0 { space.pointee.supervisor_generation = nextGeneration(s) }
    s.pointee.shared_generation = nextGeneration(s)
}

/// Notes that instructions come from a page, before anything remembers where they are.
func noteFetched(_ s: State, _ space: Space, _ page: UInt64, isUser: Bool, _ translation: Translation) {
    let index = Int(truncatingIfNeeded: (page >> 12) & UInt64(MARTLET_FETCH_ENTRIES - 1))
    let bit: UInt64 = 1 &<< UInt64(index & 63)
    martlet_fetch_filled(space, isUser ? 1 : 0)[index >> 6] |= bit
    if translation.isGlobal {
        martlet_fetch_local(space, isUser ? 1 : 0)[index >> 6] &= ~bit
    } else {
        martlet_fetch_local(space, isUser ? 1 : 0)[index >> 6] |= bit
    }
    if translation.pageShift > 12 { noteLargePage(space, page, shift: translation.pageShift) }
    if translation.isGlobal, page >> 63 == 0 { s.pointee.has_low_globals = 1 }
    if page >> 63 != 0 {
        martlet_upper_fetched(s)[upperFetchWord(page)] |= 1 &<< ((page >> 12) & 63)
    } else if isUser {
        martlet_fetched(space)[lowerFetchWord(page)] |= 1 &<< ((page >> 12) & 63)
    } else {
        s.pointee.has_low_fetches = 1
    }
    if !isUser, !translation.isGlobal, space.pointee.supervisor_generation == 0 {
        space.pointee.supervisor_generation = nextGeneration(s)
        updateFetchKey(s)
    }
}

/// Forgets where the instructions of a page are; jump entries only where the page may have some.
private func forgetFetches(_ s: State, _ space: Space, _ page: UInt64) {
    let bit: UInt64 = 1 &<< ((page >> 12) & 63)
    let isUpper = page >> 63 != 0
    let words =
        isUpper ? martlet_upper_fetched(s) + upperFetchWord(page) : martlet_fetched(space) + lowerFetchWord(page)
    let mayHaveFetched = words.pointee & bit != 0
    let bySupervisor = isUpper ? mayHaveFetched : s.pointee.has_low_fetches != 0
    guard mayHaveFetched || bySupervisor else { return }
    let index = Int(truncatingIfNeeded: (page >> 12) & UInt64(MARTLET_FETCH_ENTRIES - 1))
    for user in 0..<2 {
        let entry = martlet_fetch_table(space, UInt32(user)) + index
        if entry.pointee.tag == page { entry.pointee.tag = .max }
    }
    if mayHaveFetched { space.pointee.user_generation = nextGeneration(s) }
    if bySupervisor { bumpSupervisorGeneration(s, space) }
}

@inline(__always) private func lowerFetchWord(_ page: UInt64) -> Int { Int(truncatingIfNeeded: (page >> 18) & 63) }
@inline(__always) private func upperFetchWord(_ page: UInt64) -> Int {
    Int(truncatingIfNeeded: (page >> 18) & 511)
}

// MARK: - Flushing

/// Empties all tables at creation: memory of zeros is empty but for line 0, whose tag would be that of page 0.
func initializeTLB(_ s: State) {
    s.pointee.tlb_epoch = 1
    clearLine(TLBLine(martlet_no_lines(s), 0), 0)
    s.pointee.space = martlet_space(s, 0)
    takeSpace(s, martlet_space(s, 0), pcid: 0)
    s.pointee.shared_generation = nextGeneration(s)
    updateFetchKey(s)
}

/// Empties an address space for a PCID; what it knows of global pages stays.
private func takeSpace(_ s: State, _ space: Space, pcid: UInt32) {
    if space.pointee.is_used == 0 {
        space.pointee.is_used = 1
        for table in 0..<TLBTable.count { clearLine(TLBLine(martlet_tlb_table(space, UInt32(table)), 0), 0) }
        for user in 0..<2 { martlet_fetch_table(space, UInt32(user)).pointee.tag = .max }
    }
    space.pointee.pcid = pcid
    // Any multiples that differ in their low bits do.
    space.pointee.jump_salt = UInt32(truncatingIfNeeded: space - martlet_space(s, 0)) &* 0x2A5
    flush(s, space, keepGlobal: true)
}

private func flush(_ s: State, _ space: Space, keepGlobal: Bool) {
    if space == s.pointee.space { forgetSites(s, keepGlobal: keepGlobal) }
    for table in 0..<TLBTable.count {
        let lines = martlet_tlb_table(space, UInt32(table))
        let local = martlet_lines(space, UInt32(table), 0)
        local.forEach { index in
            let line = TLBLine(lines, index)
            if !keepGlobal || line.flags & UInt64(MARTLET_TLB_GLOBAL) == 0 { clearLine(line, index) }
        }
        local.removeAll()
        if keepGlobal { continue }
        let global = martlet_lines(space, UInt32(table), 1)
        global.forEach { index in clearLine(TLBLine(lines, index), index) }
        global.removeAll()
    }
    flushFetches(space, isUser: true, keepGlobal: false)
    flushFetches(space, isUser: false, keepGlobal: keepGlobal)
    martlet_fetched(space).update(repeating: 0, count: 64)
    forgetLargePages(s, space, keepGlobal: keepGlobal)
    space.pointee.user_generation = nextGeneration(s)
    // Jump entries of the shared generation lead through global pages alone.
    space.pointee.supervisor_generation = 0
}

private func flushFetches(_ space: Space, isUser: Bool, keepGlobal: Bool) {
    let table = martlet_fetch_table(space, isUser ? 1 : 0)
    let filled = martlet_fetch_filled(space, isUser ? 1 : 0)
    let local = martlet_fetch_local(space, isUser ? 1 : 0)
    for number in 0..<Int(MARTLET_FETCH_ENTRIES) / 64 {
        var word = keepGlobal ? local[number] : filled[number]
        filled[number] &= ~word
        local[number] = 0
        while word != 0 {
            table[number << 6 | word.trailingZeroBitCount].tag = .max
            word &= word &- 1
        }
    }
}

/// Drops translations of the current PCID; with `keepGlobal`, those of global pages stay (SDM vol. 3A §4.10.4.1). Without
/// it those of every PCID go.
func flushTranslations(_ s: State, keepGlobal: Bool) {
    s.pointee.space_flushes &+= 1
    if keepGlobal {
        flush(s, s.pointee.space.unsafelyUnwrapped, keepGlobal: true)
    } else {
        forEachSpace(s) { flush(s, $0, keepGlobal: false) }
        martlet_upper_fetched(s).update(repeating: 0, count: 512)
        s.pointee.has_low_fetches = 0
        s.pointee.has_low_globals = 0
        s.pointee.shared_generation = nextGeneration(s)
        s.pointee.tlb_epoch &+= 1
    }
    updateFetchKey(s)
}

/// INVPCID type 3: every PCID, global pages stay.
func flushAllButGlobal(_ s: State) {
    forEachSpace(s) { flush(s, $0, keepGlobal: true) }
    updateFetchKey(s)
}

/// INVPCID type 1: one PCID, global pages stay.
func flushSpace(_ s: State, pcid: UInt32) {
    forEachSpace(s) { if $0.pointee.pcid == pcid { flush(s, $0, keepGlobal: true) } }
    updateFetchKey(s)
}

@inline(__always) private func forEachSpace(_ s: State, _ body: (Space) -> Void) {
    for number in 0..<Int(MARTLET_ADDRESS_SPACES) {
        let space = martlet_space(s, UInt32(number))
        if space.pointee.is_used != 0 { body(space) }
    }
}

/// INVLPG (SDM vol. 3A §4.10.4.1): a page of the current PCID, and where it is global of all.
func flushPage(_ s: State, _ address: UInt64) {
    let current = s.pointee.space.unsafelyUnwrapped
    flushPage(s, current, address)
    if address >> 63 != 0 || s.pointee.has_low_globals != 0 {
        forEachSpace(s) { if $0 != current { flushPage(s, $0, address) } }
    }
    updateFetchKey(s)
}

/// INVPCID type 0: a page of one PCID.
func flushPage(_ s: State, pcid: UInt32, _ address: UInt64) {
    forEachSpace(s) { if $0.pointee.pcid == pcid { flushPage(s, $0, address) } }
    updateFetchKey(s)
}

/// A page fault takes what is cached of its page along (SDM vol. 3A §4.10.4.1).
func flushFaultingPage(_ s: State, _ address: UInt64) {
    flushPage(s, s.pointee.space.unsafelyUnwrapped, address)
    updateFetchKey(s)
}

private func flushPage(_ s: State, _ space: Space, _ address: UInt64) {
    let shift = largestPageShift(space, address)
    if shift > 12 { return flushLargePage(s, space, address, shift: shift) }
    let page = address & ~pageMask
    let index = tlbIndex(address)
    for table in 0..<TLBTable.count {
        let line = TLBLine(martlet_tlb_table(space, UInt32(table)), index)
        if line.readTag == page || line.writeTag == page { clearLine(line, index) }
    }
    forgetSites(s, page: page)
    forgetFetches(s, space, page)
}

/// All lines that may be pieces of one large page.
@inline(never) private func flushLargePage(_ s: State, _ space: Space, _ address: UInt64, shift: UInt64) {
    let first = tlbIndex(address) >> 6 & ~7
    let words = shift == 21 ? first..<first + 8 : 0..<64
    for table in 0..<TLBTable.count {
        let lines = martlet_tlb_table(space, UInt32(table))
        func clear(_ index: Int) {
            // A tag that no access matches is below 16 MiB; to clear such a line once more does no harm.
            let line = TLBLine(lines, index)
            if line.readTag >> shift == address >> shift || line.writeTag >> shift == address >> shift {
                clearLine(line, index)
            }
        }
        martlet_lines(space, UInt32(table), 0).forEach(words: words, clear)
        martlet_lines(space, UInt32(table), 1).forEach(words: words, clear)
    }
    forgetSites(s, keepGlobal: false)
    flushFetches(space, isUser: true, keepGlobal: false)
    flushFetches(space, isUser: false, keepGlobal: false)
    space.pointee.user_generation = nextGeneration(s)
    if address >> 63 != 0 || s.pointee.has_low_fetches != 0 { bumpSupervisorGeneration(s, space) }
}

/// A page now holds decoded code: stores to it must take the slow path.
func protectCodePage(_ s: State, _ code: UnsafeMutablePointer<martlet_page_code>, host: UInt64) {
    // Most code was never written through a line that is still there.
    guard code.pointee.writable_epoch == s.pointee.tlb_epoch else { return }
    code.pointee.writable_epoch = 0
    forgetSites(s, keepGlobal: false)
    forEachSpace(s) { space in
        for table in 0..<TLBTable.count {
            let lines = martlet_tlb_table(space, UInt32(table))
            func protect(_ index: Int) {
                let line = TLBLine(lines, index)
                if line.addend &+ line.readTag == host, line.writeTag == line.readTag {
                    line.writeTag = impossibleTag(index)
                    line.flags |= UInt64(MARTLET_TLB_CODE)
                }
            }
            martlet_lines(space, UInt32(table), 0).forEach(protect)
            martlet_lines(space, UInt32(table), 1).forEach(protect)
        }
    }
}

// MARK: - CR3

/// Makes the PCID of CR3 the current one. `flushes`: what is cached of it goes, global pages stay.
func selectSpace(_ s: State, flushes: Bool) {
    let pcid = s.pointee.cr4 & Control.processContextIdentifiers != 0 ? UInt32(s.pointee.cr3 & 0xFFF) : 0
    let (space, isKnown) = findSpace(s, pcid)
    if !isKnown {
        takeSpace(s, space, pcid: pcid)
    } else if flushes {
        s.pointee.space_flushes &+= 1
        flush(s, space, keepGlobal: true)
    } else {
        s.pointee.space_switches &+= 1
    }
    if s.pointee.space != space { forgetSites(s, keepGlobal: true) }
    s.pointee.space_clock &+= 1
    space.pointee.last_used = s.pointee.space_clock
    s.pointee.space = space
    selectTable(s)
    // In lockstep what is fetched anew must not hang on which jump entries there are.
    if s.pointee.in_lockstep != 0 { bumpAllGenerations(s) }
    updateFetchKey(s)
}

/// The address space of a PCID, or the one to take for it: a free one, or the one that was used least recently.
private func findSpace(_ s: State, _ pcid: UInt32) -> (Space, isKnown: Bool) {
    var oldest = martlet_space(s, 0)
    for number in 0..<Int(MARTLET_ADDRESS_SPACES) {
        let space = martlet_space(s, UInt32(number))
        if space.pointee.is_used == 0 {
            // They are taken in order: behind a free one are only free ones.
            return (space, false)
        }
        if space.pointee.pcid == pcid { return (space, true) }
        if space.pointee.last_used < oldest.pointee.last_used { oldest = space }
    }
    return (oldest, false)
}

/// The table that accesses at the current privilege go through.
func selectTable(_ s: State) {
    s.pointee.tlb = martlet_tlb_table(
        s.pointee.space.unsafelyUnwrapped, UInt32(TLBTable.serving(currentRequest(s))))
}
