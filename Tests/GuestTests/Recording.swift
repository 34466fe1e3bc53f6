import CHost
import GuestMemory
import Hypervisor
import X86

/// All that can be seen of a finished run, as text with one fact in each line, so that a difference is a diff.
struct Recording {
    let text: String

    init(exits: [String], machine: GuestMachine, hasIRQChip: Bool) throws {
        var lines = exits
        lines += Self.describe(try machine.cpu.registers())
        lines += Self.describe(try machine.cpu.specialRegisters(), hasIRQChip: hasIRQChip)
        lines += try Self.results(of: machine.memory)
        lines += try Self.digests(of: machine.memory)
        if hasIRQChip { lines += try Self.interruptControllers(of: machine) }
        text = lines.joined(separator: "\n") + "\n"
    }

    private static func describe(_ r: kvm_regs) -> [String] {
        let named: [(String, UInt64)] = [
            ("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi),
            ("rsp", r.rsp), ("rbp", r.rbp), ("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11),
            ("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15), ("rip", r.rip), ("rflags", r.rflags),
        ]
        return named.map { "\($0.0) \(hex($0.1))" }
    }

    private static func describe(_ s: kvm_sregs, hasIRQChip: Bool) -> [String] {
        let segments: [(String, kvm_segment)] = [
            ("cs", s.cs), ("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs), ("ss", s.ss), ("tr", s.tr),
        ]
        let control: [(String, UInt64)] = [
            ("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4), ("cr8", s.cr8), ("efer", s.efer),
        ]
        return segments.map(describe)
            + ["gdt \(hex(s.gdt.base)) limit \(hex(s.gdt.limit))", "idt \(hex(s.idt.base)) limit \(hex(s.idt.limit))"]
            + control.map { "\($0.0) \(hex($0.1))" } + (hasIRQChip ? ["apic_base \(hex(s.apic_base))"] : [])
    }

    /// A segment that holds a null selector has no further meaning (SDM vol. 3A §3.4.2).
    private static func describe(_ name: String, _ segment: kvm_segment) -> String {
        guard segment.unusable == 0 else { return "\(name) \(hex(segment.selector)) unusable" }
        let attributes = [
            segment.type, segment.s, segment.dpl, segment.present, segment.avl, segment.l, segment.db, segment.g,
        ]
        return "\(name) \(hex(segment.selector)) base \(hex(segment.base)) limit \(hex(segment.limit)) "
            + "type/s/dpl/p/avl/l/db/g \(attributes.map { hex($0) }.joined(separator: "/"))"
    }

    /// The results page, lines of all zeros left out.
    private static func results(of memory: GuestMemory) throws -> [String] {
        try stride(from: UInt64(0x6000), to: 0x7000, by: 16).compactMap { address in
            let bytes = try memory.read(count: 16, at: GuestPhysicalAddress(address))
            guard bytes.contains(where: { $0 != 0 }) else { return nil }
            return "\(hex(address)): " + bytes.map { hex($0, digits: 2) }.joined(separator: " ")
        }
    }

    /// The rest of memory that our guests use; not the harness's page tables, whose accessed and dirty bits an engine
    /// may set early.
    private static func digests(of memory: GuestMemory) throws -> [String] {
        let ranges: [(UInt64, UInt64)] = [
            (0, 0x1000), (0x1000, 0x2000), (0x7000, 0x8000), (0x8000, 0x10000), (0x10000, 0x40000),
            (0x101000, 0x102000),
        ]
        return try ranges.map { start, end in
            var digest: UInt64 = 0xcbf2_9ce4_8422_2325  // FNV-1a, a word at a time
            for address in stride(from: start, to: end, by: 8) {
                digest = (digest ^ (try memory.load(UInt64.self, at: GuestPhysicalAddress(address)))) &* 0x100_0000_01b3
            }
            return "digest \(hex(start))..<\(hex(end)) \(hex(digest))"
        }
    }

    private static func interruptControllers(of machine: GuestMachine) throws -> [String] {
        var lines: [String] = []
        for id in UInt32(0)..<2 {
            var chip = try machine.machine.irqChip(id: id)
            let pic = kvm_irqchip_pic(&chip).pointee
            // Line 0 is the PIT's, whose last tick comes when it comes.
            let irr = id == 0 ? pic.irr & 0xfe : pic.irr
            lines.append(
                "pic \(id) irr \(hex(irr)) imr \(hex(pic.imr)) isr \(hex(pic.isr)) base \(hex(pic.irq_base)) "
                    + "elcr \(hex(pic.elcr)) \(hex(pic.elcr_mask))")
        }
        var chip = try machine.machine.irqChip(id: 2)
        lines += withUnsafeBytes(of: kvm_irqchip_ioapic(&chip).pointee) { bytes in
            // struct kvm_ioapic_state: base, ioregsel, id, irr, pad, and 24 redirection entries.
            (0..<24).compactMap { pin in
                let entry = bytes.loadUnaligned(fromByteOffset: 24 + pin * 8, as: UInt64.self)
                return entry == 0x10000 ? nil : "ioapic \(pin) \(hex(entry))"
            }
        }
        let apic = try machine.cpu.localAPIC()
        lines += withUnsafeBytes(of: apic) { bytes in
            stride(from: 0, to: 0x400, by: 16).compactMap { register in
                // 0x30: the number of LVT entries differs; 0x390 counts.
                let value = bytes.loadUnaligned(fromByteOffset: register, as: UInt32.self)
                return value == 0 || register == 0x30 || register == 0x390 ? nil : "apic \(hex(register)) \(hex(value))"
            }
        }
        return lines
    }
}
