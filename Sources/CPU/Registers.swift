public import CHost

// The vCPU's registers in KVM's structures, and reset.

extension Processor {
    /// The guest TSC's offset before the guest adjusted it.
    var tscBase: UInt64 { tscOffsetBase }

    /// Power-on state (SDM vol. 3A table 9-1).
    public func reset() {
        let s = state
        for number in 0..<Int(MARTLET_ZERO_REGISTER) { s.setRegister(number, 0) }
        s.setRegister(2, 0x606A6)
        s.pointee.rip = 0xFFF0
        s.setFlags(2)
        for number in 0..<6 {
            s.segment(number).pointee = martlet_segment(selector: 0, attributes: 0x93, limit: 0xFFFF, base: 0)
        }
        s.segment(SegmentRegister.cs).pointee = martlet_segment(
            selector: 0xF000, attributes: 0x9B, limit: 0xFFFF, base: 0xFFFF_0000)
        s.pointee.ldtr = martlet_segment(selector: 0, attributes: 0x82, limit: 0xFFFF, base: 0)
        s.pointee.tr = martlet_segment(selector: 0, attributes: 0x8B, limit: 0xFFFF, base: 0)
        s.pointee.gdtr = martlet_table_register(base: 0, limit: 0xFFFF)
        s.pointee.idtr = martlet_table_register(base: 0, limit: 0xFFFF)
        s.pointee.cr0 = 0x6000_0010
        s.pointee.cr2 = 0
        s.pointee.cr3 = 0
        s.pointee.cr4 = 0
        s.pointee.cr8 = 0
        s.pointee.efer = 0
        s.pointee.xcr0 = 1
        s.pointee.pat = 0x0007_0406_0007_0406
        s.pointee.misc_enable = 1
        s.pointee.cpl = 0
        for number in 0..<8 { martlet_debug_registers(s)[number] = 0 }
        martlet_debug_registers(s)[6] = 0xFFFF_0FF0
        martlet_debug_registers(s)[7] = 0x400
        s.powerOnVectorState()
        clearPending()
        flushTLB()
        selectSpace(s, flushes: false)
        updateBreakpoints(s)
        updateContext(s)
    }

    private func clearPending() {
        let s = state
        s.pointee.debug_pending = 0
        s.pointee.debug_shadow = 0
        s.pointee.interrupt_shadow = 0
        s.pointee.nmi_blocked = 0
        s.pointee.nmi_pending = 0
        s.pointee.window_requested = 0
        s.pointee.pending_event = 0
        s.pointee.port_answered = 0
        s.pointee.mmio_count = 0
        s.pointee.mmio_cursor = 0
        s.pointee.mmio_pending = 0
    }

    /// KVM_GET_REGS, KVM_SET_REGS.
    public var registers: kvm_regs {
        get {
            let s = state
            return kvm_regs(
                rax: s.register(0), rbx: s.register(3), rcx: s.register(1), rdx: s.register(2), rsi: s.register(6),
                rdi: s.register(7), rsp: s.register(4), rbp: s.register(5), r8: s.register(8), r9: s.register(9),
                r10: s.register(10), r11: s.register(11), r12: s.register(12), r13: s.register(13),
                r14: s.register(14), r15: s.register(15), rip: s.pointee.rip, rflags: s.flags)
        }
        set {
            let s = state
            let values = [
                newValue.rax, newValue.rcx, newValue.rdx, newValue.rbx, newValue.rsp, newValue.rbp, newValue.rsi,
                newValue.rdi, newValue.r8, newValue.r9, newValue.r10, newValue.r11, newValue.r12, newValue.r13,
                newValue.r14, newValue.r15,
            ]
            for (number, value) in values.enumerated() { s.setRegister(number, value) }
            s.pointee.rip = newValue.rip
            s.setFlags(newValue.rflags)
            updateContext(s)
        }
    }

    /// KVM_GET_SREGS, KVM_SET_SREGS.
    public var specialRegisters: kvm_sregs {
        get {
            let s = state
            var result = kvm_sregs()
            result.es = Self.segment(s.segment(0).pointee)
            result.cs = Self.segment(s.segment(1).pointee)
            result.ss = Self.segment(s.segment(2).pointee)
            result.ds = Self.segment(s.segment(3).pointee)
            result.fs = Self.segment(s.segment(4).pointee)
            result.gs = Self.segment(s.segment(5).pointee)
            result.ldt = Self.segment(s.pointee.ldtr)
            result.tr = Self.segment(s.pointee.tr)
            result.gdt.base = s.pointee.gdtr.base
            result.gdt.limit = s.pointee.gdtr.limit
            result.idt.base = s.pointee.idtr.base
            result.idt.limit = s.pointee.idtr.limit
            result.cr0 = s.pointee.cr0
            result.cr2 = s.pointee.cr2
            result.cr3 = s.pointee.cr3
            result.cr4 = s.pointee.cr4
            result.cr8 = s.pointee.cr8
            result.efer = s.pointee.efer
            result.apic_base = s.pointee.apic_base
            return result
        }
        set {
            let s = state
            let segments = [newValue.es, newValue.cs, newValue.ss, newValue.ds, newValue.fs, newValue.gs]
            for (number, segment) in segments.enumerated() { s.segment(number).pointee = Self.segment(segment) }
            s.pointee.ldtr = Self.segment(newValue.ldt)
            s.pointee.tr = Self.segment(newValue.tr)
            s.pointee.gdtr = martlet_table_register(base: newValue.gdt.base, limit: newValue.gdt.limit)
            s.pointee.idtr = martlet_table_register(base: newValue.idt.base, limit: newValue.idt.limit)
            s.pointee.cr0 = newValue.cr0 | Control.extensionType
            s.pointee.cr2 = newValue.cr2
            s.pointee.cr3 = newValue.cr3
            s.pointee.cr4 = newValue.cr4 & s.pointee.supported_cr4
            s.pointee.cr8 = newValue.cr8 & 15
            s.pointee.efer = newValue.efer
            s.pointee.apic_base = newValue.apic_base
            s.pointee.cpl = s.isProtected ? newValue.ss.dpl & 3 : 0
            flushTLB()
            selectSpace(s, flushes: false)
            updateBreakpoints(s)
            updateContext(s)
        }
    }

    private static func segment(_ segment: martlet_segment) -> kvm_segment {
        let bits = segment.attributes
        var result = kvm_segment()
        result.base = segment.base
        result.limit = segment.limit
        result.selector = segment.selector
        result.type = UInt8(bits & 15)
        result.s = UInt8((bits >> 4) & 1)
        result.dpl = UInt8((bits >> 5) & 3)
        result.present = UInt8((bits >> 7) & 1)
        result.unusable = UInt8((bits >> 8) & 1)
        result.avl = UInt8((bits >> 12) & 1)
        result.l = UInt8((bits >> 13) & 1)
        result.db = UInt8((bits >> 14) & 1)
        result.g = UInt8((bits >> 15) & 1)
        return result
    }

    private static func segment(_ segment: kvm_segment) -> martlet_segment {
        var bits = UInt16(segment.type & 15) | UInt16(segment.s & 1) << 4 | UInt16(segment.dpl & 3) << 5
        bits |= UInt16(segment.present & 1) << 7 | UInt16(segment.avl & 1) << 12 | UInt16(segment.l & 1) << 13
        bits |= UInt16(segment.db & 1) << 14 | UInt16(segment.g & 1) << 15
        if segment.unusable != 0 || segment.present == 0 { bits |= SegmentAttribute.unusable }
        return martlet_segment(selector: segment.selector, attributes: bits, limit: segment.limit, base: segment.base)
    }
}

extension Processor {
    /// KVM_GET_FPU, KVM_SET_FPU.
    public var fpu: kvm_fpu {
        get { state.kvmFPU }
        set { state.setKVMFPU(newValue) }
    }
}
