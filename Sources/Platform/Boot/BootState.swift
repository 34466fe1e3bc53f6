/// How the kernel is entered.
public enum BootProtocol: Sendable, Equatable, CustomStringConvertible {
    case linux64
    case pvh
    case multiboot

    public var description: String {
        switch self {
        case .linux64: "Linux 64-bit boot protocol"
        case .pvh: "PVH"
        case .multiboot: "multiboot"
        }
    }
}

/// The general registers at entry.
public struct BootRegisters: Sendable, Equatable {
    public var rax: UInt64 = 0
    public var rbx: UInt64 = 0
    public var rcx: UInt64 = 0
    public var rdx: UInt64 = 0
    public var rsi: UInt64 = 0
    public var rdi: UInt64 = 0
    public var rsp: UInt64 = 0
    public var rbp: UInt64 = 0
    public var rip: UInt64 = 0
    /// Bit 1 is always set; interrupts are off.
    public var rflags: UInt64 = 2

    public init() {}
}

/// A segment register with its hidden part (SDM vol. 3A §3.4.3), field by field as KVM has it.
public struct BootSegment: Sendable, Equatable {
    public var base: UInt64 = 0
    public var limit: UInt32 = 0
    public var selector: UInt16 = 0
    public var type: UInt8 = 0
    /// Set for code and data, clear for system segments.
    public var s = false
    public var dpl: UInt8 = 0
    public var present = false
    public var db = false
    public var l = false
    public var g = false
    public var unusable = false

    public init() {}

    init(selector: UInt16, type: UInt8, db: Bool = false, l: Bool = false) {
        limit = .max
        self.selector = selector
        self.type = type
        s = true
        present = true
        self.db = db
        self.l = l
        g = true
    }
}

/// GDTR or IDTR.
public struct BootDescriptorTable: Sendable, Equatable {
    public var base: UInt64
    public var limit: UInt16

    public init(base: UInt64, limit: UInt16) {
        self.base = base
        self.limit = limit
    }
}

/// What the first CPU's registers must hold when the guest starts, in terms of no engine.
public struct BootState: Sendable, Equatable {
    public var bootProtocol: BootProtocol
    public var registers = BootRegisters()
    public var code: BootSegment
    /// DS, ES, FS, GS and SS.
    public var data = BootSegment(selector: BootGDT.dataSelector, type: 0x3, db: true)
    public var task: BootSegment
    public var localTable: BootSegment
    public var gdt: BootDescriptorTable
    public var idt = BootDescriptorTable(base: 0, limit: 0)
    public var cr0: UInt64
    public var cr3: UInt64 = 0
    public var cr4: UInt64 = 0
    public var efer: UInt64 = 0

    private init(bootProtocol: BootProtocol, code: BootSegment, cr0: UInt64, gdtBase: UInt64) {
        self.bootProtocol = bootProtocol
        self.code = code
        self.cr0 = cr0
        gdt = BootDescriptorTable(base: gdtBase, limit: UInt16(BootGDT.bytes.count - 1))
        // VM entry wants a busy TSS in TR (SDM vol. 3C §26.3.1.2); nothing switches tasks with it.
        task = BootSegment()
        task.type = 0xB
        task.limit = 0x67
        task.present = true
        localTable = BootSegment()
        localTable.type = 0x2
        localTable.unusable = true
    }

    /// 32-bit protected mode without paging, flat segments.
    static func protectedMode(_ bootProtocol: BootProtocol, gdtBase: UInt64) -> BootState {
        BootState(
            bootProtocol: bootProtocol, code: BootSegment(selector: BootGDT.code32Selector, type: 0xB, db: true),
            cr0: ControlBits.protection | ControlBits.extensionType, gdtBase: gdtBase)
    }

    /// 64-bit mode with the page tables at `pageTables`, flat segments.
    static func longMode(_ bootProtocol: BootProtocol, gdtBase: UInt64, pageTables: UInt64) -> BootState {
        var state = BootState(
            bootProtocol: bootProtocol, code: BootSegment(selector: BootGDT.code64Selector, type: 0xB, l: true),
            cr0: ControlBits.protection | ControlBits.extensionType | ControlBits.paging, gdtBase: gdtBase)
        state.cr3 = pageTables
        state.cr4 = ControlBits.physicalAddressExtension
        state.efer = ControlBits.longModeEnable | ControlBits.longModeActive
        return state
    }
}

/// SDM vol. 3A §2.5 and §2.2.1.
private enum ControlBits {
    static let protection: UInt64 = 1 << 0
    static let extensionType: UInt64 = 1 << 4
    static let paging: UInt64 = 1 << 31
    static let physicalAddressExtension: UInt64 = 1 << 5
    static let longModeEnable: UInt64 = 1 << 8
    static let longModeActive: UInt64 = 1 << 10
}

/// The flat GDT: Linux wants __BOOT_CS at 0x10 and __BOOT_DS at 0x18 (Documentation/arch/x86/boot.rst, "64-bit Boot
/// Protocol").
enum BootGDT {
    static let code32Selector: UInt16 = 0x08
    static let code64Selector: UInt16 = 0x10
    static let dataSelector: UInt16 = 0x18

    static var bytes: [UInt8] {
        var bytes: [UInt8] = []
        // Null, 32-bit code, 64-bit code, data (SDM vol. 3A §3.4.5).
        for descriptor: UInt64 in [0, 0x00CF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF] {
            bytes.append(littleEndian: descriptor)
        }
        return bytes
    }
}
