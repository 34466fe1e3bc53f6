internal import CHost
internal import Hypervisor
internal import Platform

/// Puts what a boot protocol demands of the processor into KVM's register structures.
extension BootState {
    /// `base` is the engine's power-on state: what the protocol leaves open (APIC base, cr8) stays as it is there.
    func specialRegisters(from base: kvm_sregs) -> kvm_sregs {
        var result = base
        result.cs = code.kvm
        result.ds = data.kvm
        result.es = data.kvm
        result.fs = data.kvm
        result.gs = data.kvm
        result.ss = data.kvm
        result.tr = task.kvm
        result.ldt = localTable.kvm
        result.gdt = gdt.kvm
        result.idt = idt.kvm
        result.cr0 = cr0
        result.cr2 = 0
        result.cr3 = cr3
        result.cr4 = cr4
        result.efer = efer
        return result
    }

    var generalRegisters: kvm_regs {
        var result = kvm_regs()
        result.rax = registers.rax
        result.rbx = registers.rbx
        result.rcx = registers.rcx
        result.rdx = registers.rdx
        result.rsi = registers.rsi
        result.rdi = registers.rdi
        result.rsp = registers.rsp
        result.rbp = registers.rbp
        result.rip = registers.rip
        result.rflags = registers.rflags
        return result
    }
}

extension BootSegment {
    fileprivate var kvm: kvm_segment {
        var result = kvm_segment()
        result.base = base
        result.limit = limit
        result.selector = selector
        result.type = type
        result.present = present ? 1 : 0
        result.dpl = dpl
        result.db = db ? 1 : 0
        result.s = s ? 1 : 0
        result.l = l ? 1 : 0
        result.g = g ? 1 : 0
        result.unusable = unusable ? 1 : 0
        return result
    }
}

extension BootDescriptorTable {
    fileprivate var kvm: kvm_dtable {
        var result = kvm_dtable()
        result.base = base
        result.limit = limit
        return result
    }
}
