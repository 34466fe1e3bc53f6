import CHost
import GuestMemory
import Host
import Hypervisor
import Testing
import X86

/// Two megabytes of RAM, one vCPU and no devices: enough to run one of our guests on any engine and to write down what
/// happened. Addresses are those of Guests/guest.inc.
final class GuestMachine {
    static let ramSize = 2 << 20
    static let descriptorTable: UInt64 = 0x1000
    static let pageTables: UInt64 = 0x2000
    static let loadAddress: UInt64 = 0x8000
    static let exitPort = IOPort(0xf4)
    static let actionPort = IOPort(0xf5)
    /// Far above what a guest of ours takes on the slowest engine of a busy host.
    static let timeLimitNanoseconds: UInt64 = 60_000_000_000
    static let exitLimit = 1000

    let memory: GuestMemory
    let machine: any VirtualMachine
    let cpu: any VirtualCPU
    private let hasIRQChip: Bool
    private(set) var exits: [String] = []
    private var readCount: UInt64 = 0

    /// Fails where an engine cannot be set up as `program` needs it.
    init(system: any HypervisorSystem, program: GuestProgram) throws {
        memory = GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: Self.ramSize))
        ])
        hasIRQChip = program.hasIRQChip
        machine = try system.createVirtualMachine()
        try machine.setTSSAddress(0xfffb_d000)
        try machine.setIdentityMapAddress(0xfffb_c000)
        if hasIRQChip {
            try machine.createIRQChip()
            try machine.createPIT(speakerDummy: true)
        }
        var region = kvm_userspace_memory_region()
        region.memory_size = UInt64(Self.ramSize)
        region.userspace_addr = memory.regions[0].hostAddress
        try machine.setUserMemoryRegion(region)
        cpu = try machine.createVirtualCPU(id: 0)
        try cpu.setCPUID(GuestCPUID.entries)
        try memory.write(try program.image(), at: GuestPhysicalAddress(Self.loadAddress))
        try enter(try #require(program.mode))
    }

    // MARK: Running

    /// Runs the program to its end and describes all that can be seen of it.
    func run() throws -> String {
        let watchdog = try Watchdog(stopping: cpu, afterNanoseconds: Self.timeLimitNanoseconds)
        defer { watchdog.cancel() }
        while try step(try cpu.run()) {
            if exits.count == Self.exitLimit {
                exits.append("too many exits")
                break
            }
        }
        if let report = cpu.finalReport() { exits.append(report) }
        return try Recording(exits: exits, machine: self, hasIRQChip: hasIRQChip).text
    }

    /// Writes one exit down and answers it; false at the end.
    private func step(_ exit: VirtualCPUExit) throws -> Bool {
        switch exit {
        case .io(let port, let size, let count, let isWrite):
            let values = (0..<count).map { access(size: size, index: $0, isWrite: isWrite) }
            exits.append(
                "\(isWrite ? "out" : "in") 0x\(hex(port.rawValue)) size \(size): \(values.joined(separator: " "))")
            guard isWrite else { return true }
            if port == Self.exitPort { return try finish() }
            if port == Self.actionPort { try perform(UInt8(truncatingIfNeeded: cpu.exitData(0))) }
            return true
        case .mmio(let address, let size, let isWrite):
            exits.append("\(isWrite ? "write" : "read") \(address): \(access(size: size, index: 0, isWrite: isWrite))")
            return true
        case .interruptWindowOpen:
            exits.append("interrupt window")
            cpu.setInterruptWindowRequested(false)
            try cpu.injectInterrupt(vector: 0x40)
            return true
        case .interrupted:
            exits.append("time limit reached")
            return false
        default:
            exits.append("\(exit)")
            return false
        }
    }

    /// The data of one access: what was written, or what is now given to the guest: bytes that all differ.
    private func access(size: Int, index: Int, isWrite: Bool) -> String {
        if !isWrite {
            readCount += 1
            cpu.setExitData(0x8877_6655_4433_2211 &+ readCount &* 0x0101_0101_0101_0101, at: index)
        }
        let mask = size >= 8 ? UInt64.max : (1 << UInt64(size * 8)) - 1
        return hex(cpu.exitData(index) & mask, digits: size * 2)
    }

    /// Enters the engine once more without running the guest: only then is the last access complete (KVM API §5,
    /// "the corresponding operations are complete only after userspace has re-entered the kernel").
    private func finish() throws -> Bool {
        cpu.requestExit()
        let exit = try cpu.run()
        if exit != .interrupted { exits.append("instead of an interruption: \(exit)") }
        return false
    }

    /// The guest's wishes: ACTION_PORT in guest.inc.
    private func perform(_ action: UInt8) throws {
        switch action {
        case 0x10...0x1f: try machine.setIRQLine(GSI(UInt32(action) - 0x10), level: true)
        case 0x20...0x2f: try machine.setIRQLine(GSI(UInt32(action) - 0x20), level: false)
        case 0x30:
            var message = kvm_msi()
            message.address_lo = 0xfee0_0000
            message.data = 0x46
            try machine.signalMSI(message)
        case 0x31: cpu.setInterruptWindowRequested(true)
        default: exits.append("unknown action")
        }
    }

    // MARK: Modes

    private func enter(_ mode: ProcessorMode) throws {
        try writeTables()
        var special = try cpu.specialRegisters()
        var registers = kvm_regs()
        registers.rip = Self.loadAddress
        registers.rsp = Self.loadAddress
        registers.rflags = 2
        if mode == .real16 {
            special.cs.base = 0
            special.cs.selector = 0
        } else {
            try enterProtectedMode(&special, isLong: mode == .long64)
        }
        try cpu.setSpecialRegisters(special)
        try cpu.setRegisters(registers)
    }

    private func enterProtectedMode(_ special: inout kvm_sregs, isLong: Bool) throws {
        special.gdt.base = Self.descriptorTable
        special.gdt.limit = 0x3f
        special.cr0 = 0x31
        let data = segment(selector: 0x10, type: 3)
        (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data)
        special.cs = segment(selector: isLong ? 0x18 : 0x08, type: 11)
        guard isLong else { return }
        special.cs.l = 1
        special.cs.db = 0
        special.cr0 = 0x8000_0031
        special.cr3 = Self.pageTables
        special.cr4 = 0x20
        special.efer = 0x500
    }

    /// A flat segment of ring 0, accessed (SDM vol. 3A §3.4.5).
    private func segment(selector: UInt16, type: UInt8) -> kvm_segment {
        var segment = kvm_segment()
        segment.selector = selector
        segment.limit = 0xffff_ffff
        segment.type = type
        segment.present = 1
        segment.s = 1
        segment.db = 1
        segment.g = 1
        return segment
    }

    private func writeTables() throws {
        let descriptors: [UInt64] = [
            0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0, 0,
        ]
        for (index, descriptor) in descriptors.enumerated() {
            try memory.store(descriptor, at: GuestPhysicalAddress(Self.descriptorTable + UInt64(index) * 8))
        }
        try memory.store(UInt64(0x3003), at: GuestPhysicalAddress(0x2000))
        try memory.store(UInt64(0x4003), at: GuestPhysicalAddress(0x3000))
        for index in 0..<UInt64(512) {
            try memory.store(index << 21 | 0x83, at: GuestPhysicalAddress(0x4000 + index * 8))
        }
    }
}

/// A processor that is the same on every host: our guests see only this.
enum GuestCPUID {
    static let entries: [kvm_cpuid_entry2] = [
        entry(0, 0, 0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),  // GenuineIntel
        // SSE3, CMPXCHG16B, PCID, x2APIC, TSC deadline, hypervisor; FPU to SSE2 without MCE and MCA
        entry(1, 0, 0x0003_06c1, 0x0001_0800, 0x8122_2001, 0x0783_fb7f & ~0x4080),
        entry(4, 0, 0x0000_0121, 0x01c0_003f, 0x0000_003f, 0, isIndexed: true),
        entry(4, 1, 0x0000_0122, 0x01c0_003f, 0x0000_003f, 0, isIndexed: true),
        entry(7, 0, 0, 1 << 10, 0, 0, isIndexed: true),  // INVPCID
        entry(0x4000_0000, 0, 0x4000_0000, 0x7472_614d, 0x5474_656c, 0x7473_6574),  // MartletTest
        entry(0x8000_0000, 0, 0x8000_0008, 0, 0, 0),
        entry(0x8000_0001, 0, 0, 0, 1, 0x2010_0800),  // LAHF; SYSCALL, NX, long mode
        entry(0x8000_0008, 0, 0x3028, 0, 0, 0),
    ]

    private static func entry(
        _ leaf: UInt32, _ index: UInt32, _ eax: UInt32, _ ebx: UInt32, _ ecx: UInt32, _ edx: UInt32,
        isIndexed: Bool = false
    ) -> kvm_cpuid_entry2 {
        var entry = kvm_cpuid_entry2()
        entry.function = leaf
        entry.index = index
        entry.flags = isIndexed ? 1 : 0  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        entry.eax = eax
        entry.ebx = ebx
        entry.ecx = ecx
        entry.edx = edx
        return entry
    }
}

/// Ends a run that takes too long. `requestExit` works on any engine, a signal only on the kernel's.
final class Watchdog: Sendable {
    private let cancellation: EventNotifier
    private let thread: HostThread

    init(stopping cpu: any VirtualCPU, afterNanoseconds limit: UInt64) throws {
        let cancellation = try EventNotifier()
        // SAFETY: the contract lets any thread call requestExit, and the thread is joined before the vCPU can go.
        nonisolated(unsafe) let cpu = cpu
        thread = try HostThread(name: "watchdog") {
            var poll = DescriptorPoll()
            poll.set(cancellation.descriptor, .readable)
            let ready = try? poll.wait(timeoutNanoseconds: limit)
            if ready?.isEmpty != false { cpu.requestExit() }
        }
        self.cancellation = cancellation
    }

    func cancel() {
        cancellation.signal()
        thread.join()
    }
}

func hex(_ value: some BinaryInteger, digits: Int = 0) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
}
