internal import CHost

// Data accesses. Each has a site: a record of the page that it used last. The compare with it is off the address path;
// what it leaves over is in CHost/translated.S.

extension BlockTranslator {
    /// The guest address of the memory operand in `target`; flags are kept. Changes both scratch registers.
    mutating func computeAddress(_ i: Insn, into target: Int, withSegment: Bool = true) {
        if isFlat32 { return computeOffset32(i, into: target) }
        let other = target == HostRegister.scratch ? HostRegister.scratch2 : HostRegister.scratch
        let displacement = Int(i.pointee.displacement)
        let hasIndex = i.pointee.index != UInt8(MARTLET_ZERO_REGISTER * 8)
        let scale = Int(i.pointee.scale)
        let isComplex = i.pointee.flags & InsnFlag.complexAddress != 0
        if i.pointee.base == UInt8(MARTLET_PAGE_RIP_REGISTER * 8) {
            host.load(target, fromState: Int(MARTLET_PAGE_RIP))
            host.lea(target, base: target, displacement: displacement)
            if isComplex {
                host.lea(target, base: target, displacement: Int(i.pointee.page_offset) + Int(i.pointee.length))
            }
        } else if i.pointee.base == UInt8(MARTLET_ZERO_REGISTER * 8) {
            if hasIndex {
                let index = fetch(i.pointee.index, into: other)
                host.leaScaled(target, index: index, scale: scale, displacement: displacement)
            } else {
                host.moveSigned32(target, displacement)
            }
        } else {
            let base = fetch(i.pointee.base, into: target)
            let index = hasIndex ? fetch(i.pointee.index, into: other) : nil
            host.lea(target, base: base, index: index, scale: scale, displacement: displacement)
        }
        if isComplex, withSegment {
            host.load(other, fromState: Int(MARTLET_SEGMENT_BASE) + Int(i.pointee.segment) * 8)
            host.lea(target, base: target, index: other, displacement: 0)
        }
    }

    /// The same in flat 32-bit code, where only FS and GS have a base: the offset, cut to 32 bits (SDM vol. 1 §3.7.5).
    private mutating func computeOffset32(_ i: Insn, into target: Int) {
        let displacement = Int(i.pointee.displacement)
        let hasBase = i.pointee.base != UInt8(MARTLET_ZERO_REGISTER * 8)
        let hasIndex = i.pointee.index != UInt8(MARTLET_ZERO_REGISTER * 8)
        let index = hasIndex ? fetch(i.pointee.index, into: target) : nil
        if i.pointee.operation == Form.offset.rawValue {
            host.moveImmediate64(target, i.pointee.immediate & 0xFFFF_FFFF)
        } else if hasBase {
            let base = fetch(i.pointee.base, into: target)
            host.lea(
                target, base: base, index: index, scale: Int(i.pointee.scale), displacement: displacement, size: 4)
        } else if let index {
            host.leaScaled(target, index: index, scale: Int(i.pointee.scale), displacement: displacement, size: 4)
        } else {
            host.moveImmediate64(target, UInt64(UInt32(truncatingIfNeeded: displacement)))
        }
    }

    /// The linear address of the offset in `scratch2` of FS or GS, checked against the segment's limit. Returns the
    /// branch that is taken beyond it. Changes the flags and `scratch`.
    private mutating func addSegment32(_ i: Insn, size: Int) -> Int {
        let (offset, end) = (HostRegister.scratch2, HostRegister.scratch)
        let number = Int(i.pointee.segment)
        host.lea(end, base: offset, displacement: size)
        host.operation(
            0x3B, size: 8, reg: end, .state(Int(MARTLET_SEGMENT_END) + (number - SegmentRegister.fs) * 8))
        let branch = host.jump(HostCondition.above)
        host.operation(0x03, size: 4, reg: offset, .state(Int(MARTLET_SEGMENT_BASE) + number * 8))
        return branch
    }

    /// What an access is, for its site.
    struct Access {
        var kind: UInt8
        var size: Int
        /// The guest address must be a multiple of the size (#GP).
        var isAligned = false

        /// How far a group's distance is rotated before it is compared: bits that must be 0 become the highest.
        var rotation = 0

        /// How many low bits of the address must be 0.
        var alignmentBits: Int { isAligned ? size.trailingZeroBitCount : 0 }
    }

    /// The checked memory operand of an instruction. Flags that matter are kept in the state meanwhile.
    mutating func operandAccess(_ i: Insn, _ index: Int, _ access: Access) -> HostOperand {
        if let base = Self.plainBase(i), let home = home(base) {
            return basedAccess(i, index, which: 0, home, Int(i.pointee.displacement), access)
        }
        heldAddend = nil
        let keepsFlags = flagsLive[index]
        let checksSegment = isFlat32 && i.pointee.segment >= UInt8(SegmentRegister.fs)
        if keepsFlags, !Self.hops(i), options.hasBMI2, !checksSegment {
            let record = siteRecord(i, access, flags: UInt8(MARTLET_SITE_FLAGS), limit: access.size)
            if let record {
                compareKeepingFlags(record, .operand(i), span: access.size, rotation: access.alignmentBits)
            }
            return .pointer
        }
        if keepsFlags { saveFlags() }
        let retry = beginCompare()
        computeAddress(i, into: HostRegister.scratch2)
        let limit = checksSegment ? addSegment32(i, size: access.size) : nil
        guard let record = siteRecord(i, access, flags: keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0, limit: access.size)
        else { return .pointer }
        if let limit { deferred.append(.outside(record: address(record), branch: limit)) }
        if Self.hops(i) {
            compareWithTLB(record, access, nil, span: access.size, retry: retry)
            // The guest address again; then the host's.
            let (line, tag) = (HostRegister.scratch, Self.tagOffset(access))
            host.operation(access.isAligned ? 0x33 : 0x03, size: 8, reg: HostRegister.scratch2, .line(line, tag))
            host.operation(0x8B, size: 8, reg: HostRegister.scratch, .line(line, Self.addendOffset))
        } else {
            loadAddend(address(record))
        }
        host.operation(0x01, size: 8, reg: HostRegister.scratch2, .register(HostRegister.scratch))
        if !Self.hops(i) { compare(record, access, span: access.size, retry: retry) }
        record.pointee.after = UInt8(host.position - retry)
        if keepsFlags { restoreFlags() }
        return .pointer
    }

    /// A longer displacement is the address of an array, to which 32-bit code adds an offset that may well be negative; or
    /// it is negative itself, that of a kernel's data. Such sums wrap; others seldom do.
    private static let longestDisplacement = 0xFFFF

    /// Whether the accesses of an instruction look at the TLB each time.
    private static func hops(_ i: Insn) -> Bool { i.pointee.hops == UInt8(MARTLET_HOPS_YES) }

    /// Counts this entry into a block with accesses on trial. Flags stay.
    mutating func countEntry() {
        let keepsFlags = flagsLive[0]
        if keepsFlags { saveFlags() }
        host.moveImmediate64(HostRegister.scratch2, address(first))
        // sub dword [countdown], 1
        host.operation(0x83, size: 4, reg: 5, .line(HostRegister.scratch2, Int(MARTLET_INSN_COUNTDOWN)))
        host.byte(1)
        deferred.append(.trialEnded(branch: host.jump(HostCondition.zero), restoresFlags: keepsFlags))
        if keepsFlags { restoreFlags() }
    }

    /// The register of an operand that is nothing but base and displacement.
    static func plainBase(_ i: Insn) -> UInt8? {
        if isFlat32(i) {
            guard hasSimpleAddress(i), i.pointee.segment < UInt8(SegmentRegister.fs),
                i.pointee.index == UInt8(MARTLET_ZERO_REGISTER * 8), i.pointee.base < UInt8(MARTLET_ZERO_REGISTER * 8),
                abs(Int(i.pointee.displacement)) <= longestDisplacement
            else { return nil }
            return i.pointee.base
        }
        guard i.pointee.flags & InsnFlag.complexAddress == 0,
            i.pointee.index == UInt8(MARTLET_ZERO_REGISTER * 8), i.pointee.base < UInt8(MARTLET_ZERO_REGISTER * 8)
        else { return nil }
        return i.pointee.base
    }

    /// The access number `which` of an instruction, at a displacement from a host register.
    mutating func basedAccess(
        _ i: Insn, _ index: Int, which: Int, _ base: Int, _ displacement: Int, _ access: Access
    ) -> HostOperand {
        let operand = HostOperand.based(base, displacement)
        if let number = plan.group(index, which) {
            if let leader = plan.groups[number].record {
                if heldAddend != leader { loadAddend(leader) }
            } else {
                compareGroup(i, index, number, base, displacement - plan.offset(index, which))
            }
            heldAddend = plan.groups[number].record
            return operand
        }
        heldAddend = nil
        let keepsFlags = flagsLive[index]
        if keepsFlags, !Self.hops(i), options.hasBMI2 {
            let flags = UInt8(MARTLET_SITE_ADDEND | MARTLET_SITE_FLAGS)
            let record = siteRecord(i, access, flags: flags, limit: access.size)
            let source = AddressSource.based(base, displacement: displacement)
            if let record {
                compareKeepingFlags(record, source, span: access.size, rotation: access.alignmentBits)
            }
            return operand
        }
        if keepsFlags { saveFlags() }
        let retry = beginCompare()
        let flags = UInt8(MARTLET_SITE_ADDEND) | (keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0)
        guard let record = siteRecord(i, access, flags: flags, limit: access.size) else { return operand }
        if Self.hops(i) {
            compareWithTLB(record, access, (base, displacement), span: access.size, retry: retry)
            loadLineAddend()
        } else {
            host.lea(HostRegister.scratch2, base: base, displacement: displacement)
            loadAddend(address(record))
            compare(record, access, span: access.size, retry: retry)
        }
        record.pointee.after = UInt8(host.position - retry)
        if keepsFlags { restoreFlags() }
        return operand
    }

    /// The first access of a group compares for all of them; `origin` is the displacement of the group's offset 0.
    private mutating func compareGroup(_ i: Insn, _ index: Int, _ number: Int, _ base: Int, _ origin: Int) {
        let group = plan.groups[number]
        let span = group.high - group.low
        let keepsFlags = flagsLive[index]
        let access = Access(
            kind: group.writes ? AccessKind.write : AccessKind.read, size: group.alignment,
            rotation: group.alignment.trailingZeroBitCount)
        if keepsFlags, !Self.hops(i), options.hasBMI2 {
            let flags = UInt8(MARTLET_SITE_GROUP | MARTLET_SITE_FLAGS)
            guard let record = siteRecord(i, access, flags: flags, limit: span) else { return }
            note(record, number, base, origin)
            let source = AddressSource.based(base, displacement: origin + group.low)
            compareKeepingFlags(record, source, span: span, rotation: access.rotation)
            return
        }
        if keepsFlags { saveFlags() }
        let retry = beginCompare()
        let flags = UInt8(MARTLET_SITE_GROUP) | (keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0)
        guard let record = siteRecord(i, access, flags: flags, limit: span) else { return }
        note(record, number, base, origin)
        if Self.hops(i) {
            compareWithTLB(record, access, (base, origin + group.low), span: span, retry: retry)
            loadLineAddend()
            host.operation(
                0x89, size: 8, reg: HostRegister.scratch, .record(address(record) + UInt64(SITE_ADDEND)))
            if keepsFlags { restoreFlags() }
            return
        }
        host.lea(HostRegister.scratch2, base: base, displacement: origin + group.low)
        compare(record, access, span: span, retry: retry)
        if keepsFlags { restoreFlags() }
        loadAddend(address(record))
    }

    private mutating func note(_ site: UnsafeMutablePointer<martlet_site>, _ number: Int, _ base: Int, _ origin: Int) {
        plan.groups[number].record = address(site)
        // Further away it is not worth a second thought.
        let start = Int32(clamping: origin + plan.groups[number].low)
        let isNear = abs(Int(start)) < 1 << 26
        site.pointee.is_split = options.boundary == nil && isNear ? 0 : 1
        site.pointee.group_start = isNear ? start : 0
        site.pointee.group_register = UInt32(base == HostRegister.guestRSP ? 4 : base)
    }

    /// Where a compare starts: not where the entry of the block may become a jump to other code.
    private mutating func beginCompare() -> Int {
        host.emptySpace(CodeArena.redirectSize - host.position)
        return host.position
    }

    private mutating func loadLineAddend() {
        host.operation(
            0x8B, size: 8, reg: HostRegister.scratch, .line(HostRegister.scratch, Self.addendOffset))
    }

    private static let addendOffset = 2 * Int(MARTLET_TLB_PLANE_SIZE)
    private static func tagOffset(_ access: Access) -> Int {
        access.kind & AccessKind.write != 0 ? Int(MARTLET_TLB_PLANE_SIZE) : 0
    }

    /// Compares the guest address that is `based` on a register, or else in `scratch2`, with its line of the TLB, which is
    /// in `scratch` afterwards. Flags as `compare`; the address is in `scratch2` then, relative to the tag.
    private mutating func compareWithTLB(
        _ site: UnsafeMutablePointer<martlet_site>, _ access: Access, _ based: (base: Int, displacement: Int)?,
        span: Int, retry: Int
    ) {
        let line = HostRegister.scratch
        let address = HostRegister.scratch2
        let tag = HostOperand.line(line, Self.tagOffset(access))
        if let based, options.hasBMI1, !isFlat32 {
            findLine(based.base, based.displacement)
            host.lea(address, base: based.base, displacement: based.displacement)
            host.operation(access.isAligned ? 0x33 : 0x2B, size: 8, reg: address, tag)
            return finishCompare(site, access, span: span, retry: retry, line: tag)
        }
        if let based { host.lea(address, base: based.base, displacement: based.displacement) }
        if isFlat32 {
            // In long mode other lines are of addresses from 4 GiB on, which this code's do not reach.
            host.move(line, address)
            host.operation(0xC1, size: 8, reg: 5, .register(line))
            host.byte(32)
            deferred.append(.outside(record: self.address(site), branch: host.jump(HostCondition.notZero)))
        }
        host.move(line, address)
        // shr line, 9; and line, 8 bytes for each line; add line, [tlb]
        host.operation(0xC1, size: 8, reg: 5, .register(line))
        host.byte(9)
        host.operation(0x81, size: 4, reg: 4, .register(line))
        host.word32((Int(MARTLET_TLB_ENTRIES) - 1) << 3)
        host.operation(0x03, size: 8, reg: line, .state(Int(MARTLET_TLB)))
        host.operation(access.isAligned ? 0x33 : 0x2B, size: 8, reg: address, tag)
        finishCompare(site, access, span: span, retry: retry, line: tag)
    }

    /// The line of the TLB for an address, in `scratch`, in as few steps as can be from its base on: whoever follows
    /// pointers through many pages waits for them. Changes `scratch2`.
    private mutating func findLine(_ base: Int, _ displacement: Int) {
        let (line, other) = (HostRegister.scratch, HostRegister.scratch2)
        var source = base
        if displacement != 0 {
            host.lea(line, base: base, displacement: displacement)
            source = line
        }
        host.moveImmediate64(other, Self.lineNumberBits)
        host.extract(line, source, control: other)
        host.load(other, fromState: Int(MARTLET_TLB))
        host.lea(line, base: other, index: line, scale: 3, displacement: 0)
    }

    /// From bit 12 on, as many as number the lines.
    private static let lineNumberBits = UInt64(MARTLET_TLB_ENTRIES.trailingZeroBitCount) << 8 | 12

    private mutating func loadAddend(_ record: UInt64) {
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .record(record + UInt64(SITE_ADDEND)))
    }

    /// How the guest address of a compare that keeps the flags is had.
    enum AddressSource {
        case based(Int, displacement: Int)
        case operand(Insn)
    }

    /// The compare of a site without a change to the flags. RCX waits in the state: both ends of the access, relative to
    /// the tag, must be 0 above the page offset; bits that must be 0 below it are rotated there. Afterwards `scratch` has
    /// the addend, or for an operand its host address.
    private mutating func compareKeepingFlags(
        _ site: UnsafeMutablePointer<martlet_site>, _ source: AddressSource, span: Int, rotation: Int = 0
    ) {
        let (rcx, scratch, distance) = (HostRegister.rcx, HostRegister.scratch, HostRegister.scratch2)
        if options.groupsAccesses { site.pointee.flags |= UInt8(MARTLET_SITE_MAY_HOP) }
        let retry = beginCompare()
        if case .operand(let i) = source { computeAddress(i, into: distance) }
        host.operation(0x8B, size: 8, reg: scratch, .record(address(site)))
        host.operation(0xF7, size: 8, reg: 2, .register(scratch))
        switch source {
        case .based(let base, let displacement):
            host.lea(distance, base: base, index: scratch, displacement: displacement + 1)
        case .operand: host.lea(distance, base: distance, index: scratch, displacement: 1)
        }
        if rotation > 0 { host.rotateRight(distance, by: rotation) }
        host.store(rcx, toState: rcx * 8)
        host.moveImmediate64(rcx, UInt64(12 - rotation))
        host.shiftRight(scratch, distance, by: rcx)
        let last = (span - 1) >> rotation
        if last > 0 {
            host.lea(distance, base: distance, displacement: last)
            host.shiftRight(rcx, distance, by: rcx)
            host.lea(rcx, base: rcx, index: scratch, displacement: 0)
        } else {
            host.move(rcx, scratch)
        }
        let isSame = host.jumpIfRCXIsZero()
        let miss = host.jump(nil)
        host.patch8(at: isSame, to: host.position)
        host.load(rcx, fromState: rcx * 8)
        if case .operand(let i) = source { computeAddress(i, into: distance) }
        loadAddend(address(site))
        if case .operand = source { host.lea(scratch, base: scratch, index: distance, displacement: 0) }
        site.pointee.kind |= 16
        site.pointee.retry = UnsafeMutableRawPointer(bitPattern: UInt(host.origin) + UInt(retry))
        site.pointee.after = UInt8(host.position - retry)
        deferred.append(.siteWithFlags(site, branch: miss, source: source))
    }

    /// A miss with the flags in the host's.
    mutating func emitMissWithFlags(_ site: UnsafeMutablePointer<martlet_site>, _ source: AddressSource) {
        host.load(HostRegister.rcx, fromState: HostRegister.rcx * 8)
        switch source {
        case .based(let base, let displacement):
            host.lea(HostRegister.scratch, base: base, displacement: displacement)
        case .operand(let i): computeAddress(i, into: HostRegister.scratch)
        }
        host.leave(arena.number(of: site), to: arena.address(of: .missedWithFlags))
    }

    private mutating func siteRecord(
        _ i: Insn, _ access: Access, flags: UInt8, limit: Int
    ) -> UnsafeMutablePointer<martlet_site>? {
        guard let record = record() else { return nil }
        let site = record.bindMemory(to: martlet_site.self, capacity: 1)
        site.pointee.tag = options.noPage
        site.pointee.insn = i
        site.pointee.kind =
            access.kind | (access.isAligned || access.rotation > 0 ? 4 : 0) | (options.isUser ? 0 : 8)
        site.pointee.size = UInt8(access.size)
        site.pointee.flags =
            flags | (Self.hops(i) ? UInt8(MARTLET_SITE_HOPS) : 0) | (isFlat32 ? UInt8(MARTLET_SITE_FLAT32) : 0)
        site.pointee.limit = UInt16(Int(pageSize) - limit)
        return site
    }

    private func address(_ site: UnsafeMutablePointer<martlet_site>) -> UInt64 { UInt64(UInt(bitPattern: site)) }

    /// Compares the guest address in `scratch2` with the site's page.
    private mutating func compare(
        _ site: UnsafeMutablePointer<martlet_site>, _ access: Access, span: Int, retry: Int
    ) {
        let tag = HostOperand.record(address(site))
        if options.groupsAccesses { site.pointee.flags |= UInt8(MARTLET_SITE_MAY_HOP) }
        host.operation(access.isAligned ? 0x33 : 0x2B, size: 8, reg: HostRegister.scratch2, tag)
        finishCompare(site, access, span: span, retry: retry, line: nil)
    }

    /// Behind the subtraction of the site's tag or of a line's, or its exclusive or where the address must be aligned.
    private mutating func finishCompare(
        _ site: UnsafeMutablePointer<martlet_site>, _ access: Access, span: Int, retry: Int, line tag: HostOperand?
    ) {
        let distance = HostOperand.register(HostRegister.scratch2)
        if access.isAligned {
            // test distance, not the multiples of the size inside a page
            host.operation(0xF7, size: 8, reg: 0, distance)
            host.word32(~(Int(pageMask) & ~(access.size - 1)))
        } else {
            if access.rotation > 0 { rotate(HostRegister.scratch2, right: access.rotation) }
            host.operation(0x81, size: 8, reg: 7, distance)
            host.word32((Int(pageSize) - span) >> access.rotation)
        }
        let branch = host.jump(access.isAligned ? HostCondition.notZero : HostCondition.above)
        site.pointee.retry = UnsafeMutableRawPointer(bitPattern: UInt(host.origin) + UInt(retry))
        deferred.append(
            tag.map {
                .hoppingSite(
                    record: address(site), branch: branch, isExclusive: access.isAligned, rotation: access.rotation,
                    tag: $0)
            } ?? .site(site, branch: branch))
    }

    private mutating func rotate(_ register: Int, right count: Int) {
        host.operation(0xC1, size: 8, reg: 1, .register(register))
        host.byte(count)
    }

    mutating func emitMiss(_ record: UInt64, isExclusive: Bool, rotation: Int, tag: HostOperand) {
        if rotation > 0 { rotate(HostRegister.scratch2, right: 64 - rotation) }
        // The guest address again.
        host.operation(isExclusive ? 0x33 : 0x03, size: 8, reg: HostRegister.scratch2, tag)
        host.move(HostRegister.scratch, HostRegister.scratch2)
        host.leaRecord(HostRegister.scratch2, record)
        host.jumpThroughState(Int(MARTLET_SITE_MISS))
    }

    /// As a miss of an address that no site takes.
    mutating func emitOutside(_ record: UInt64) {
        host.moveImmediate64(HostRegister.scratch, 1 << 32)
        host.leaRecord(HostRegister.scratch2, record)
        host.jumpThroughState(Int(MARTLET_SITE_MISS))
    }

    /// LAHF and SETO with RAX kept in the state.
    mutating func saveFlags() {
        host.store(HostRegister.rax, toState: 0)
        host.bytes(0x9F, 0x0F, 0x90, 0xC0)
        host.operation(0x89, size: 2, reg: HostRegister.rax, .state(Int(MARTLET_STATUS)))
        host.load(HostRegister.rax, fromState: 0)
    }

    mutating func restoreFlags() {
        host.store(HostRegister.rax, toState: 0)
        host.operation(0x8B, size: 2, reg: HostRegister.rax, .state(Int(MARTLET_STATUS)))
        host.bytes(0x04, 127, 0x9E)
        host.load(HostRegister.rax, fromState: 0)
    }
}
