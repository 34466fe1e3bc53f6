internal import CHost
internal import Glibc

/// Memory for translated code: one memfd, mapped once for writing and once for executing (W^X), and behind the
/// executable mapping the records of its data accesses and indirect branches, within reach of RIP-relative addresses.
/// Bounded; filled from the start, emptied as a whole.
final class CodeArena {
    static let size = 24 << 20
    static let recordCapacity = 200_000
    private static let linkCapacity = 320_000
    private static let recordBytes = (recordCapacity * MemoryLayout<martlet_site>.stride + 4095) & ~4095

    private var writable: UnsafeMutableRawPointer?
    private var executable: UnsafeMutableRawPointer?
    private var records: UnsafeMutableRawPointer?
    private let links: UnsafeMutablePointer<martlet_link>
    private(set) var used = 0
    private(set) var usedRecords = 0
    private var usedLinks = 0

    init() {
        links = EngineMemory.map(Self.linkCapacity, of: martlet_link.self)
        var data: UnsafeMutableRawPointer?
        var code: UnsafeMutableRawPointer?
        var near: UnsafeMutableRawPointer?
        if martlet_map_code_and_data(Self.size, Self.recordBytes, &data, &code, &near) == 0 {
            writable = data
            executable = code
            records = near
            poisonFreeRecords()
        }
    }

    deinit {
        EngineMemory.unmap(links, Self.linkCapacity)
        if let writable, let executable, let records {
            martlet_unmap_code(Self.size, writable, executable)
            host_unpoison(records, Self.recordBytes)
            munmap(records, Self.recordBytes)
        }
    }

    /// Where code is, and where records are.
    var codeRange: martlet_range { Self.range(executable, Self.size) }
    var recordRange: martlet_range { Self.range(records, Self.recordBytes) }

    private static func range(_ start: UnsafeMutableRawPointer?, _ size: Int) -> martlet_range {
        start.map { martlet_range(start: UInt64(UInt(bitPattern: $0)), size: UInt64(size)) } ?? martlet_range()
    }

    /// Makes perf(1) see code that it can find names for; to be called before there is any. Where the host does not let
    /// us, all is as it was, and perf has no names.
    func becomeVisibleToPerf() {
        guard used == 0, let place = executable else { return }
        if martlet_map_code_for_perf(Self.size, &writable, place) > 0 { executable = nil }
    }

    /// False where the host maps no executable memory: everything is interpreted then.
    var isAvailable: Bool { executable != nil }

    /// At the arena's start: ways out of translated code that are near enough for short jumps.
    enum Exit: Int, CaseIterable {
        /// A site's number on the stack, in `scratch2` how far the address is from its tag.
        case missed
        /// A site's number on the stack, the guest address in `scratch`, the guest's flags in the host's.
        case missedWithFlags
        /// A link's number on the stack.
        case resolve
        /// A block's first instruction in `scratch2`.
        case trialEnded

        fileprivate static let size = 16

        fileprivate func write(_ host: inout HostAssembler) {
            let (target, register): (@convention(c) () -> Void, Int) =
                switch self {
                case .missed: (martlet_number_missed, HostRegister.scratch)
                case .missedWithFlags: (martlet_number_missed_flags, HostRegister.scratch2)
                case .resolve: (martlet_resolve_translated, HostRegister.scratch)
                case .trialEnded: (martlet_trial_ended, HostRegister.scratch)
                }
            host.moveImmediate64(register, UInt64(UInt(bitPattern: unsafeBitCast(target, to: Int.self))))
            host.jump(throughRegister: register)
        }
    }

    func address(of exit: Exit) -> UInt64 { UInt64(UInt(bitPattern: executable)) + UInt64(exit.rawValue * Exit.size) }

    private func writeExits() {
        for exit in Exit.allCases {
            guard var host = assemblerAtEnd else { return }
            exit.write(&host)
            used += Exit.size
        }
    }

    /// An assembler at where the next code goes. Nil without memory.
    var assembler: HostAssembler? {
        if used == 0 { writeExits() }
        return assemblerAtEnd
    }

    private var assemblerAtEnd: HostAssembler? {
        guard let writable, let executable else { return nil }
        return HostAssembler(
            base: (writable + used).assumingMemoryBound(to: UInt8.self), capacity: Self.size - used,
            origin: UInt64(UInt(bitPattern: executable + used)))
    }

    /// Keeps `count` bytes written by `assembler` and returns where they execute.
    func keep(_ count: Int) -> UnsafeMutableRawPointer {
        let start = executable.unsafelyUnwrapped + used
        used = (used + count + 15) & ~15
        return start
    }

    /// A zeroed record. Nil: none left.
    func record() -> UnsafeMutableRawPointer? {
        guard let records, usedRecords < Self.recordCapacity else { return nil }
        let record = records + usedRecords * MemoryLayout<martlet_site>.stride
        usedRecords += 1
        host_unpoison(record, MemoryLayout<martlet_site>.stride)
        return record
    }

    /// The number of a record.
    func number(of site: UnsafeMutablePointer<martlet_site>) -> Int {
        records.map { (UnsafeMutableRawPointer(site) - $0) / MemoryLayout<martlet_site>.stride } ?? 0
    }

    /// Where records are.
    var recordStart: UnsafeMutableRawPointer? { records }

    /// A number for a branch whose distance is at the executable address `place`; nil: it is never to be changed.
    func link(of insn: Insn, place: UInt64?, offset: Int) -> Int? {
        guard usedLinks < Self.linkCapacity else { return nil }
        defer { usedLinks += 1 }
        let distance = place.map { UInt32(truncatingIfNeeded: $0 &- UInt64(UInt(bitPattern: executable))) }
        links[usedLinks] = martlet_link(
            insn: insn, place: distance ?? .max, offset: Int32(truncatingIfNeeded: offset))
        return usedLinks
    }

    subscript(link number: Int) -> martlet_link { links[number] }

    private func poisonFreeRecords() {
        guard let records else { return }
        let used = usedRecords * MemoryLayout<martlet_site>.stride
        host_poison(records + used, Self.recordBytes - used)
    }

    /// Makes a branch lead to `code`.
    func resolve(_ link: martlet_link, to code: UnsafeMutableRawPointer) {
        if link.place != .max, let executable { self.link(executable + Int(link.place), to: code) }
    }

    /// Makes the branch whose distance is at the executable address `place` lead to `code`.
    private func link(_ place: UnsafeMutableRawPointer, to code: UnsafeMutableRawPointer) {
        guard let writable, let executable, place >= executable, place < executable + (Self.size - 4) else { return }
        let distance = Int32(truncatingIfNeeded: code - (place + 4))
        (writable + (place - executable)).storeBytes(of: distance, as: Int32.self)
        martlet_serialize()
    }

    /// Bytes at the entry of a block that `redirect` overwrites.
    static let redirectSize = 5

    /// Makes what enters the code at `old` enter `new`.
    func redirect(_ old: UnsafeMutableRawPointer, to new: UnsafeMutableRawPointer) {
        guard let writable, let executable, old >= executable, old < executable + (Self.size - Self.redirectSize) else {
            return
        }
        (writable + (old - executable)).storeBytes(of: 0xE9, as: UInt8.self)
        link(old + 1, to: new)
    }

    /// Bytes of memory that it takes now.
    var residentSize: Int {
        guard let executable, let records else { return 0 }
        return host_resident_size(executable, Self.size) + host_resident_size(records, Self.recordBytes)
            + host_resident_size(links, Self.linkCapacity * MemoryLayout<martlet_link>.stride)
    }

    func reset() {
        if let records {
            records.initializeMemory(
                as: UInt8.self, repeating: 0, count: usedRecords * MemoryLayout<martlet_site>.stride)
        }
        used = 0
        usedRecords = 0
        usedLinks = 0
        poisonFreeRecords()
    }
}
