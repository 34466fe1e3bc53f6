internal import CHost
internal import Glibc

/// One architectural register of `martlet_cpu`, for comparison, for copying and for people.
struct StateField: Sendable {
    let name: String
    let offset: Int
    /// In bytes: up to 8 for a number, 64 for a vector register.
    let size: Int
}

/// What two processors in lockstep must have in common.
enum ArchitecturalState {
    private typealias CPUState = martlet_cpu

    private static func field(_ name: String, _ path: PartialKeyPath<martlet_cpu>, _ size: Int = 8) -> StateField {
        StateField(name: name, offset: offset(path), size: size)
    }

    private static func offset(_ path: PartialKeyPath<martlet_cpu>) -> Int {
        guard let offset = MemoryLayout<martlet_cpu>.offset(of: path) else {
            preconditionFailure("a field of the state without an offset")
        }
        return offset
    }

    /// `names.count` registers of `size` bytes from `path` on.
    private static func row(_ names: [String], _ path: PartialKeyPath<martlet_cpu>, _ size: Int = 8) -> [StateField] {
        let start = offset(path)
        return names.enumerated().map { StateField(name: $1, offset: start + $0 * size, size: size) }
    }

    private static func numbered(_ prefix: String, _ count: Int) -> [String] { (0..<count).map { "\(prefix)\($0)" } }

    /// `status` is not among them: its unused bits mean nothing (`statusMask`).
    static let fields: [StateField] =
        general + segments + control + modelSpecific + x87 + row(numbered("zmm", 32), \.zmm, Int(MARTLET_ZMM_SIZE))
        + row(numbered("k", 8), \.opmask) + [field("xcr0", \.xcr0)] + events

    /// OF in bit 0, SF ZF AF PF CF where LAHF puts them.
    static let statusMask: UInt16 = 0xD501

    private static let general: [StateField] =
        row(
            [
                "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                "r15",
            ], \.gpr)
        + [field("rip", \.rip), field("cpl", \.cpl, 1), field("mode", \.mode, 1), field("system flags", \.rflags)]

    private static let segments: [StateField] = {
        var result: [StateField] = []
        let names = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"]
        let size = MemoryLayout<martlet_segment>.stride
        for (index, name) in names.enumerated() {
            let start = index < 6 ? offset(\.segments) + index * size : offset(index == 6 ? \.ldtr : \.tr)
            result.append(StateField(name: name + " selector", offset: start, size: 2))
            result.append(StateField(name: name + " rights", offset: start + 2, size: 2))
            result.append(StateField(name: name + " limit", offset: start + 4, size: 4))
            result.append(StateField(name: name + " base", offset: start + 8, size: 8))
        }
        result += row(["es adds", "cs adds", "ss adds", "ds adds", "fs adds", "gs adds"], \.segment_base)
        return result + [
            field("gdtr base", \.gdtr.base), field("gdtr limit", \.gdtr.limit, 2), field("idtr base", \.idtr.base),
            field("idtr limit", \.idtr.limit, 2),
        ]
    }()

    private static let control: [StateField] =
        [
            field("cr0", \.cr0), field("cr2", \.cr2), field("cr3", \.cr3), field("cr4", \.cr4), field("cr8", \.cr8),
            field("efer", \.efer),
        ] + row(numbered("dr", 8), \.debug_registers)

    private static let modelSpecific: [StateField] =
        [
            field("star", \.star), field("lstar", \.lstar), field("cstar", \.cstar), field("fmask", \.fmask),
            field("kernel gs base", \.kernel_gs_base), field("sysenter cs", \.sysenter_cs),
            field("sysenter esp", \.sysenter_esp), field("sysenter eip", \.sysenter_eip), field("pat", \.pat),
            field("misc enable", \.misc_enable), field("tsc aux", \.tsc_aux), field("mtrr default", \.mtrr_default),
            field("debug control", \.debug_control), field("speculation control", \.speculation_control),
            field("tsc offset", \.tsc_offset), field("apic base", \.apic_base),
            field("physical address mask", \.physical_address_mask),
        ] + row(numbered("fixed mtrr ", 11), \.mtrr_fixed) + row(numbered("variable mtrr ", 16), \.mtrr_variable)

    /// FXSAVE's image up to the XMM registers, which are elsewhere (SDM vol. 1 table 10-2). FIP and FDP are compared as
    /// well: both processors must keep them alike.
    private static let x87: [StateField] = {
        let start = offset(\.fx)
        var result: [StateField] = [
            StateField(name: "fcw", offset: start, size: 2), StateField(name: "fsw", offset: start + 2, size: 2),
            StateField(name: "ftw", offset: start + 4, size: 2), StateField(name: "fop", offset: start + 6, size: 2),
            StateField(name: "fip", offset: start + 8, size: 8), StateField(name: "fdp", offset: start + 16, size: 8),
            StateField(name: "mxcsr", offset: start + 24, size: 4),
        ]
        for number in 0..<8 {
            let place = start + 32 + number * 16
            result.append(StateField(name: "st\(number) fraction", offset: place, size: 8))
            result.append(StateField(name: "st\(number) exponent", offset: place + 8, size: 2))
        }
        return result
    }()

    private static let events: [StateField] = [
        field("interrupt shadow", \.interrupt_shadow, 1), field("nmi blocked", \.nmi_blocked, 1),
        field("nmi pending", \.nmi_pending, 1), field("window requested", \.window_requested, 1),
        field("pending event", \.pending_event, 1),
        field("debug traps pending", \.debug_pending, 1), field("debug shadow", \.debug_shadow, 1),
        field("port answers", \.port_answered, 2), field("device answers", \.mmio_count, 4),
        field("device asked", \.mmio_pending, 4), field("instruction count", \.instruction_count),
    ]

    /// What the guest cannot see and a comparison need not: answers on their way, the last exception for messages.
    private static let carried: [StateField] = [
        StateField(name: "", offset: offset(\.port_number), size: 8),
        StateField(name: "", offset: offset(\.port_data), size: Int(MARTLET_PORT_BATCH) * 4),
        field("", \.mmio_cursor, 4),
        StateField(
            name: "", offset: offset(\.mmio),
            size: Int(MARTLET_MMIO_FRAGMENTS) * MemoryLayout<martlet_mmio_fragment>.stride),
        field("", \.status, 2),
    ]

    /// The fields' bytes as few ranges.
    private static let compared: [(offset: Int, size: Int)] = ranges(fields)
    private static let copied: [(offset: Int, size: Int)] = ranges(fields + carried)

    private static func ranges(_ fields: [StateField]) -> [(offset: Int, size: Int)] {
        var result: [(offset: Int, size: Int)] = []
        for field in fields.sorted(by: { $0.offset < $1.offset }) {
            if let last = result.last, last.offset + last.size == field.offset {
                result[result.count - 1].size += field.size
            } else {
                result.append((field.offset, field.size))
            }
        }
        return result
    }

    static func areEqual(_ a: State, _ b: State) -> Bool {
        if (a.pointee.status ^ b.pointee.status) & statusMask != 0 { return false }
        let (left, right) = (UnsafeRawPointer(a), UnsafeRawPointer(b))
        for range in compared where memcmp(left + range.offset, right + range.offset, range.size) != 0 { return false }
        return true
    }

    /// Makes `target` what `source` is, answers included. Returns whether translations may have become others.
    static func copy(from source: State, to target: State) -> Bool {
        let (code, oldCode) = (source.segment(SegmentRegister.cs).pointee, target.segment(SegmentRegister.cs).pointee)
        let flushes =
            code.base != oldCode.base || code.limit != oldCode.limit || source.pointee.cr0 != target.pointee.cr0
            || source.pointee.cr3 != target.pointee.cr3
            || source.pointee.cr4 != target.pointee.cr4 || source.pointee.efer != target.pointee.efer
        for range in copied {
            (UnsafeMutableRawPointer(target) + range.offset).copyMemory(
                from: UnsafeRawPointer(source) + range.offset, byteCount: range.size)
        }
        if flushes { selectSpace(target, flushes: true) }
        updateBreakpoints(target)
        updateContext(target)
        return flushes
    }

    static func differs(_ field: StateField, _ a: State, _ b: State) -> Bool {
        memcmp(UnsafeRawPointer(a) + field.offset, UnsafeRawPointer(b) + field.offset, field.size) != 0
    }
}
