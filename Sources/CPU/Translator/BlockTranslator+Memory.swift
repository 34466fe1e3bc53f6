internal import CHost

// Data accesses. Each has a site: a record of the page that it used last. The compare with it is off the address path;
// what it leaves over is in CHost/translated.S.

extension BlockTranslator {
    /// The guest address of the memory operand in `target`; flags are kept. Changes both scratch registers.
    mutating func computeAddress(_ i: Insn, into target: Int) {
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
        if isComplex {
            host.load(other, fromState: Int(MARTLET_SEGMENT_BASE) + Int(i.pointee.segment) * 8)
            host.lea(target, base: target, index: other, displacement: 0)
        }
    }

    /// What an access is, for its site.
    struct Access {
        var kind: UInt8
        var size: Int
        /// The guest address must be a multiple of the size (#GP).
        var isAligned = false
    }

    /// The checked memory operand of an instruction. Flags that matter are kept in the state meanwhile.
    mutating func operandAccess(_ i: Insn, _ index: Int, _ access: Access) -> HostOperand {
        if let base = Self.plainBase(i), let home = home(base) {
            return basedAccess(i, index, which: 0, home, Int(i.pointee.displacement), access)
        }
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        let retry = host.position
        computeAddress(i, into: HostRegister.scratch2)
        guard let record = siteRecord(i, access, flags: keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0, limit: access.size)
        else { return .pointer }
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .record(address(record) + UInt64(SITE_ADDEND)))
        host.operation(0x01, size: 8, reg: HostRegister.scratch2, .register(HostRegister.scratch))
        compare(record, access, span: access.size, retry: retry)
        if keepsFlags { restoreFlags() }
        return .pointer
    }

    /// The register of an operand that is nothing but base and displacement.
    static func plainBase(_ i: Insn) -> UInt8? {
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
        if !access.isAligned, let number = plan.group(index, which) {
            if let leader = plan.groups[number].record {
                loadAddend(leader)
                return operand
            }
            compareGroup(i, index, number, base, displacement - plan.offset(index, which))
            return operand
        }
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        let retry = host.position
        host.lea(HostRegister.scratch2, base: base, displacement: displacement)
        let flags = UInt8(MARTLET_SITE_ADDEND) | (keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0)
        guard let record = siteRecord(i, access, flags: flags, limit: access.size) else { return operand }
        loadAddend(address(record))
        compare(record, access, span: access.size, retry: retry)
        if keepsFlags { restoreFlags() }
        return operand
    }

    /// The first access of a group compares for all of them; `origin` is the displacement of the group's offset 0.
    private mutating func compareGroup(_ i: Insn, _ index: Int, _ number: Int, _ base: Int, _ origin: Int) {
        let group = plan.groups[number]
        let span = group.high - group.low
        let keepsFlags = flagsLive[index]
        if keepsFlags { saveFlags() }
        let retry = host.position
        host.lea(HostRegister.scratch2, base: base, displacement: origin + group.low)
        let flags = UInt8(MARTLET_SITE_GROUP) | (keepsFlags ? UInt8(MARTLET_SITE_FLAGS) : 0)
        let access = Access(kind: group.writes ? AccessKind.write : AccessKind.read, size: 1)
        guard let record = siteRecord(i, access, flags: flags, limit: span) else { return }
        plan.groups[number].record = address(record)
        compare(record, access, span: span, retry: retry)
        if keepsFlags { restoreFlags() }
        loadAddend(address(record))
    }

    private mutating func loadAddend(_ record: UInt64) {
        host.operation(0x8B, size: 8, reg: HostRegister.scratch, .record(record + UInt64(SITE_ADDEND)))
    }

    private mutating func siteRecord(
        _ i: Insn, _ access: Access, flags: UInt8, limit: Int
    ) -> UnsafeMutablePointer<martlet_site>? {
        guard let record = record() else { return nil }
        let site = record.bindMemory(to: martlet_site.self, capacity: 1)
        site.pointee.tag = options.noPage
        site.pointee.insn = i
        site.pointee.kind = access.kind | (access.isAligned ? 4 : 0)
        site.pointee.size = UInt8(access.size)
        site.pointee.flags = flags
        site.pointee.limit = UInt32(Int(pageSize) - limit)
        return site
    }

    private func address(_ site: UnsafeMutablePointer<martlet_site>) -> UInt64 { UInt64(UInt(bitPattern: site)) }

    /// Compares the guest address in `scratch2` with the site's page.
    private mutating func compare(
        _ site: UnsafeMutablePointer<martlet_site>, _ access: Access, span: Int, retry: Int
    ) {
        let record = address(site)
        let line = HostRegister.scratch2
        if access.isAligned {
            // xor line, [tag]; test line, not the multiples of the size inside a page
            host.operation(0x33, size: 8, reg: line, .record(record))
            host.operation(0xF7, size: 8, reg: 0, .register(line))
            host.word32(~(Int(pageMask) & ~(access.size - 1)))
        } else {
            // sub line, [tag]; cmp line, page size - span
            host.operation(0x2B, size: 8, reg: line, .record(record))
            host.operation(0x81, size: 8, reg: 7, .register(line))
            host.word32(Int(pageSize) - span)
        }
        let branch = host.jump(access.isAligned ? HostCondition.notZero : HostCondition.above)
        site.pointee.retry = UnsafeMutableRawPointer(bitPattern: UInt(host.origin) + UInt(retry))
        site.pointee.after = UInt8(host.position - retry)
        deferred.append(.site(record: record, branch: branch, isExclusive: access.isAligned))
    }

    mutating func emitMiss(_ record: UInt64, isExclusive: Bool) {
        let line = HostRegister.scratch2
        // The guest address again.
        host.operation(isExclusive ? 0x33 : 0x03, size: 8, reg: line, .record(record))
        host.move(HostRegister.scratch, line)
        host.leaRecord(line, record)
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
