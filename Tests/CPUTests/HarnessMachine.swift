internal import CHost
internal import Glibc
import Testing

@testable import CPU

/// Selectors of the test machine's GDT: where Linux has its user segments, so that selectors compare with the host's.
enum Selector {
    static let kernelCode64: UInt16 = 0x08
    static let kernelData: UInt16 = 0x10
    static let kernelCode32: UInt16 = 0x18
    static let userCode32: UInt16 = 0x23
    static let userData: UInt16 = 0x2B
    static let userCode64: UInt16 = 0x33
    static let task: UInt16 = 0x40
    static let code16: UInt16 = 0x50
    static let data16: UInt16 = 0x58
    /// Free for a test: 8-byte descriptors at 0x60, 0x68, … 0xF8.
    static let free: UInt16 = 0x60
}

/// Where the test machine keeps things in guest-physical memory.
enum Place {
    static let gdt: UInt64 = 0x1000
    static let idt: UInt64 = 0x2000
    static let task: UInt64 = 0x3000
    /// One HLT for each vector, 16 bytes apart.
    static let handlers: UInt64 = 0x4000
    static let kernelStack: UInt64 = 0x8000
    static let tables: UInt64 = 0x1_0000
    static let code: UInt64 = 0x4_0000
    static let data: UInt64 = 0x5_0000
    static let userStack: UInt64 = 0x6_0000
}

/// What a run came to when it ended in an exception handler's HLT.
struct Trapped: Equatable {
    var vector: UInt8
    var error: UInt64?
    var rip: UInt64
    var cs: UInt64
    var flags: UInt64
    var rsp: UInt64
}

/// Memory with inaccessible pages around it: what leaves a slot ends the process at once, also by a few pages, as the
/// rest of a repetition would.
final class GuardedMemory {
    let bytes: UnsafeMutableRawPointer
    let size: Int
    private static let guardSize = 1 << 20

    init(size: Int) {
        self.size = size
        let whole = mmap(nil, size + 2 * Self.guardSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        precondition(whole != MAP_FAILED, "no memory for a test machine")
        bytes = whole! + Self.guardSize
        precondition(mprotect(bytes, size, PROT_READ | PROT_WRITE) == 0)
    }

    deinit { munmap(bytes - Self.guardSize, size + 2 * Self.guardSize) }
}

/// A processor with RAM from guest-physical 0, and the tables that a test needs in each mode.
final class TestMachine {
    let processor = Processor(apicID: 0)
    let ram: GuardedMemory
    private var extraSlots: [martlet_slot] = []
    var state: State { processor.state }

    /// `isAlone`: the test reaches into the processor, which another one in lockstep would not notice.
    init(size: Int = 1 << 20, isAlone: Bool = false) {
        ram = GuardedMemory(size: size)
        // The whole suite runs twice more (scripts/test): with every block translated at its first entry, and so in lockstep.
        if getenv("MARTLET_TEST_TRANSLATOR") != nil { processor.execution = .translator(threshold: 1) }
        if let mode = getenv("MARTLET_TEST_LOCKSTEP"), !isAlone {
            processor.execution = .lockstep(threshold: 1, exactFlags: String(cString: mode) == "exact")
        }
        processor.setSlots([slot])
    }

    private var slot: martlet_slot {
        martlet_slot(
            guest_physical: 0, size: UInt64(ram.size), host: ram.bytes.assumingMemoryBound(to: UInt8.self),
            page_index: 0, identifier: 0, flags: 0)
    }

    func addSlots(_ slots: [martlet_slot]) {
        extraSlots = slots
        forgetCode()
    }

    /// After test code was changed behind the processor's back.
    func forgetCode() { processor.setSlots([slot] + extraSlots) }

    // MARK: Memory

    func write(_ bytes: [UInt8], at address: UInt64) {
        defer { processor.lockstep?.noteHostWrite(address, count: UInt64(bytes.count)) }
        bytes.withUnsafeBytes { (ram.bytes + Int(address)).copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
    }

    func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) {
        defer { processor.lockstep?.noteHostWrite(address, count: UInt64(MemoryLayout<T>.size)) }
        (ram.bytes + Int(address)).storeBytes(of: value, as: T.self)
    }

    func load<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, as type: T.Type = T.self) -> T {
        (ram.bytes + Int(address)).loadUnaligned(as: T.self)
    }

    // MARK: Tables

    /// A code or data descriptor. `rights` is the access byte, `flags` G D/B L AVL.
    static func descriptor(base: UInt32 = 0, limit: UInt32 = 0xF_FFFF, rights: UInt8, flags: UInt8) -> UInt64 {
        UInt64(limit & 0xFFFF) | UInt64(base & 0xFF_FFFF) << 16 | UInt64(rights) << 40
            | UInt64((limit >> 16) & 15) << 48 | UInt64(flags & 15) << 52 | UInt64(base >> 24) << 56
    }

    func setDescriptor(_ selector: UInt16, _ value: UInt64) { store(value, at: Place.gdt + UInt64(selector & 0xFFF8)) }

    private func fillGDT() {
        setDescriptor(0, 0)
        setDescriptor(Selector.kernelCode64, Self.descriptor(rights: 0x9B, flags: 0xA))
        setDescriptor(Selector.kernelData, Self.descriptor(rights: 0x93, flags: 0xC))
        setDescriptor(Selector.kernelCode32, Self.descriptor(rights: 0x9B, flags: 0xC))
        setDescriptor(Selector.userCode32, Self.descriptor(rights: 0xFB, flags: 0xC))
        setDescriptor(Selector.userData, Self.descriptor(rights: 0xF3, flags: 0xC))
        setDescriptor(Selector.userCode64, Self.descriptor(rights: 0xFB, flags: 0xA))
        setDescriptor(Selector.code16, Self.descriptor(limit: 0xFFFF, rights: 0x9B, flags: 0))
        setDescriptor(Selector.data16, Self.descriptor(limit: 0xFFFF, rights: 0x93, flags: 0))
        setDescriptor(
            Selector.task, Self.descriptor(base: UInt32(Place.task), limit: 0x2FFF, rights: 0x8B, flags: 0))
        store(UInt64(0), at: Place.gdt + UInt64(Selector.task) + 8)
    }

    func setGate(
        _ vector: UInt8, handler: UInt64, selector: UInt16, rights: UInt8, isLong: Bool, stackTable: UInt8 = 0
    ) {
        let low =
            (handler & 0xFFFF) | UInt64(selector) << 16 | UInt64(stackTable & 7) << 32 | UInt64(rights) << 40
            | ((handler >> 16) & 0xFFFF) << 48
        let step: UInt64 = isLong ? 16 : 8
        store(low, at: Place.idt + UInt64(vector) * step)
        if isLong { store(handler >> 32, at: Place.idt + UInt64(vector) * step + 8) }
    }

    private func fillIDT(isLong: Bool) {
        for vector in UInt8(0)...255 {
            let handler = Place.handlers + UInt64(vector) * 16
            store(UInt8(0xF4), at: handler)
            // INT3, INTO and the vectors from 0x80 may be called by programs.
            let rights: UInt8 = vector == 3 || vector == 4 || vector >= 0x80 ? 0xEE : 0x8E
            setGate(
                vector, handler: handler, selector: isLong ? Selector.kernelCode64 : Selector.kernelCode32,
                rights: rights, isLong: isLong)
        }
    }

    private func fillTask(isLong: Bool) {
        for offset in stride(from: UInt64(0), to: 104, by: 8) { store(UInt64(0), at: Place.task + offset) }
        if isLong {
            store(Place.kernelStack, at: Place.task + 4)
        } else {
            store(UInt32(Place.kernelStack), at: Place.task + 4)
            store(UInt32(Selector.kernelData), at: Place.task + 8)
        }
        // No I/O bitmap.
        store(UInt16(0xFFFF), at: Place.task + 102)
    }

    /// Identity 2 MiB pages; user pages from `userFrom` on.
    private func fillTables(userFrom: UInt64) {
        for page in UInt64(0)..<6 {
            for offset in stride(from: UInt64(0), to: 4096, by: 8) {
                store(UInt64(0), at: Place.tables + page * 4096 + offset)
            }
        }
        store(Place.tables + 0x1007, at: Place.tables)
        store(Place.tables + 0x2007, at: Place.tables + 0x1000)
        for index in UInt64(0)..<512 {
            let address = index << 21
            store(address | (address >= userFrom ? 0x87 : 0x83), at: Place.tables + 0x2000 + index * 8)
        }
    }

    // MARK: Modes

    private func segment(_ selector: UInt16) -> martlet_segment {
        let value = load(Place.gdt + UInt64(selector & 0xFFF8), as: UInt64.self)
        return Descriptor(low: value).segment(selector)
    }

    private static let null = martlet_segment(
        selector: 0, attributes: SegmentAttribute.unusable, limit: 0, base: 0)

    /// 64-bit mode with paging (identity, user from `userFrom`) at privilege 0.
    func enterLong(userFrom: UInt64 = 0) {
        fillGDT()
        fillIDT(isLong: true)
        fillTask(isLong: true)
        fillTables(userFrom: userFrom)
        let s = state
        processor.reset()
        s.pointee.cr0 = 0x8005_0033
        s.pointee.cr3 = Place.tables
        s.pointee.cr4 = 0x620
        s.pointee.efer = 0xD01
        setSystemRegisters(isLong: true)
        setPrivilege(0)
    }

    /// 32-bit protected mode, flat segments, no paging, privilege 0.
    func enterProtected() {
        fillGDT()
        fillIDT(isLong: false)
        fillTask(isLong: false)
        let s = state
        processor.reset()
        s.pointee.cr0 = 0x0005_0033
        s.pointee.cr4 = 0x600
        s.pointee.efer = 0
        setSystemRegisters(isLong: false)
        setPrivilege(0)
    }

    private func setSystemRegisters(isLong: Bool) {
        let s = state
        s.pointee.gdtr = martlet_table_register(base: Place.gdt, limit: 0xFF)
        s.pointee.idtr = martlet_table_register(base: Place.idt, limit: isLong ? 0xFFF : 0x7FF)
        s.pointee.tr = martlet_segment(
            selector: Selector.task, attributes: 0x8B, limit: 0x2FFF, base: Place.task)
        s.pointee.ldtr = Self.null
        processor.flushTLB()
    }

    /// Code, stack and data segments of a privilege, in the code size asked for (64 bits by default in long mode).
    func setPrivilege(_ cpl: UInt8, is32: Bool = false) {
        let s = state
        let isLong = s.isLongMode && !is32
        let code =
            cpl == 3
            ? (isLong ? Selector.userCode64 : Selector.userCode32)
            : (isLong ? Selector.kernelCode64 : Selector.kernelCode32)
        let data = cpl == 3 ? Selector.userData : Selector.kernelData
        s.segment(SegmentRegister.ss).pointee = segment(data)
        let other = isLong && cpl == 3 ? Self.null : segment(data)
        for number in [SegmentRegister.ds, SegmentRegister.es] { s.segment(number).pointee = other }
        for number in [SegmentRegister.fs, SegmentRegister.gs] { s.segment(number).pointee = Self.null }
        setCodeSegment(s, segment(code), cpl: cpl)
    }

    // MARK: Running

    /// The exception that ended a run in its handler's HLT, from the frame on the kernel stack. Nil: it did not.
    func trapped(after stop: Stop) -> Trapped? {
        let rip = state.pointee.rip
        guard stop == .halt, rip > Place.handlers, rip <= Place.handlers + 4096 else { return nil }
        let vector = UInt8((rip - 1 - Place.handlers) / 16)
        let hasError = vector == 8 || (10...14).contains(vector) || vector == 17
        let size: UInt64 = state.isLongMode ? 8 : 4
        var position = state.register(4)
        func next() -> UInt64 {
            defer { position += size }
            return size == 8 ? load(position) : UInt64(load(position, as: UInt32.self))
        }
        guard position <= UInt64(ram.size) - 64 else { return nil }
        let error = hasError ? next() : nil
        let (at, cs, flags) = (next(), next(), next())
        let isInner = size == 8 || cs & 3 != 0
        return Trapped(
            vector: vector, error: error, rip: at, cs: cs, flags: flags, rsp: isInner ? next() : state.register(4) + 12)
    }

    /// Runs until an exception is in its handler. Nil: something else happened.
    func run() -> Trapped? { trapped(after: runProcessor()) }

    /// A run that must not end in a difference between two processors in lockstep.
    func runProcessor() -> Stop {
        let stop = processor.run()
        if case .difference = stop { Issue.record("\(processor.lockstepReport ?? "a difference without a report")") }
        return stop
    }
}

func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

/// A small generator with a seed, so that every failure can be had again.
struct Dice {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

    /// xorshift64* (Vigna).
    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_F491_4F6C_DD1D
    }

    mutating func below(_ bound: Int) -> Int { Int(next() >> 33) % bound }
    mutating func chance(_ one: Int) -> Bool { below(one) == 0 }
    mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }
    mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: next() >> 40) }

    private static let edges: [UInt64] = [
        0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
        0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, .max, .max - 1, 0x0123_4567_89AB_CDEF,
    ]

    /// A number where instructions differ from each other.
    mutating func operand() -> UInt64 {
        switch below(5) {
        case 0, 1: pick(Self.edges)
        case 2: pick(Self.edges) &+ pick(Self.edges)
        case 3: next() >> UInt64(below(64))
        default: next()
        }
    }
}
