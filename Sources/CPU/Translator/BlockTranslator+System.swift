internal import CHost

// Short privileged instructions of every kernel entry (SDM vol. 2): they change the state as their handlers do. At any
// privilege but 0, and where they would have to keep the flags, the interpreter takes them.

extension BlockTranslator {
    mutating func privileged(_ i: Insn, _ mnemonic: Mnemonic, _ index: Int) -> Bool {
        if options.isUser && mnemonic != .cld || flagsLive[index] { return false }
        if mnemonic == .cld {
            clearFlag(RFlags.direction)
            return true
        }
        // Privileges 1 and 2 share their code with 0.
        host.operation(0x80, size: 1, reg: 7, .state(StateOffset.cpl))
        host.byte(0)
        let branch = host.jump(HostCondition.notZero)
        switch mnemonic {
        case .cli: clearFlag(RFlags.interrupt)
        case .swapgs: swapGS()
        default:
            let target = home(i.pointee.rm) ?? HostRegister.scratch
            host.load(target, fromState: Self.controlRegister(i) ?? 0)
            keep(target, i.pointee.rm)
        }
        deferred.append(.interpret(insn: i, branches: [branch], back: host.position, restoresFlags: false))
        vectorLevel = 0
        return true
    }

    /// Where a control register is in the state. CR8 is the interrupt controller's.
    static func controlRegister(_ i: Insn) -> Int? {
        guard i.pointee.size == 8, i.pointee.flags & InsnFlag.lock == 0 else { return nil }
        return switch i.pointee.reg >> 3 {
        case 0: StateOffset.cr0
        case 2: StateOffset.cr2
        case 3: StateOffset.cr3
        case 4: StateOffset.cr4
        default: nil
        }
    }

    private mutating func clearFlag(_ flag: UInt64) {
        host.operation(0x81, size: 4, reg: 4, .state(Int(MARTLET_RFLAGS)))
        host.word32(Int(Int32(truncatingIfNeeded: ~flag)))
    }

    private mutating func swapGS() {
        let (old, new) = (HostRegister.scratch, HostRegister.scratch2)
        host.load(old, fromState: StateOffset.gsBase)
        host.load(new, fromState: StateOffset.kernelGSBase)
        host.store(new, toState: StateOffset.gsBase)
        host.store(new, toState: Int(MARTLET_SEGMENT_BASE) + SegmentRegister.gs * 8)
        host.store(old, toState: StateOffset.kernelGSBase)
    }
}

/// Byte offsets into the state of what only these instructions touch.
private enum StateOffset {
    static let cpl = offset(\.cpl)
    static let cr0 = offset(\.cr0)
    static let cr2 = offset(\.cr2)
    static let cr3 = offset(\.cr3)
    static let cr4 = offset(\.cr4)
    static let kernelGSBase = offset(\.kernel_gs_base)
    static let gsBase = offset(\.segments.5.base)

    private static func offset(_ field: PartialKeyPath<martlet_cpu>) -> Int {
        guard let offset = MemoryLayout<martlet_cpu>.offset(of: field) else {
            preconditionFailure("the state is a C struct: its fields have offsets")
        }
        return offset
    }
}
