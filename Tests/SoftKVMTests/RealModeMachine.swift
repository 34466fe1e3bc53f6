internal import CHost
internal import Glibc
internal import Host
internal import Hypervisor
internal import Synchronization
internal import Testing
internal import X86

@testable import SoftKVM

/// 64 KiB of RAM at 0 and a program in real mode at 0x1000; the interrupt vector table is at 0, the stack below 0x9000.
final class RealModeMachine: @unchecked Sendable {
    // SAFETY: tests look at the memory while the guest is stopped, or at bytes that it writes once.
    let mapping: HostMapping
    let machine: SoftVirtualMachine
    private(set) var cpus: [SoftVirtualCPU] = []

    static let code = 0x1000
    static let handler = 0x2000
    static let result = 0x500

    init(
        _ program: [UInt8], irqChip: Bool = false, cpus count: Int = 1, logsDirtyPages: Bool = false,
        observation: Observation = Observation()
    ) throws {
        mapping = try HostMapping(size: 0x1_0000)
        machine = SoftVirtualMachine(tscFrequency: TimestampCounter.frequency, observation: observation)
        if irqChip {
            try machine.createIRQChip()
            try machine.createPIT(speakerDummy: true)
        }
        try machine.setUserMemoryRegion(region(flags: logsDirtyPages ? UInt32(KVM_MEM_LOG_DIRTY_PAGES) : 0))
        for id in 0..<count {
            guard let cpu = try machine.createVirtualCPU(id: id) as? SoftVirtualCPU else { continue }
            try cpu.setCPUID(try SoftSystem().supportedCPUID())
            cpus.append(cpu)
        }
        load(program, at: Self.code)
        try start(cpus[0])
    }

    func region(flags: UInt32 = 0) -> kvm_userspace_memory_region {
        kvm_userspace_memory_region(
            slot: 0, flags: flags, guest_phys_addr: 0, memory_size: UInt64(mapping.size),
            userspace_addr: UInt64(UInt(bitPattern: mapping.address)))
    }

    private func start(_ cpu: SoftVirtualCPU) throws {
        var special = try cpu.specialRegisters()
        special.cs.base = 0
        special.cs.selector = 0
        try cpu.setSpecialRegisters(special)
        var registers = try cpu.registers()
        registers.rip = UInt64(Self.code)
        registers.rsp = 0x9000
        try cpu.setRegisters(registers)
    }

    func load(_ bytes: [UInt8], at address: Int) {
        for (index, byte) in bytes.enumerated() {
            mapping.address.storeBytes(of: byte, toByteOffset: address + index, as: UInt8.self)
        }
    }

    func word(_ address: Int) -> UInt16 { mapping.address.loadUnaligned(fromByteOffset: address, as: UInt16.self) }
    func quad(_ address: Int) -> UInt64 { mapping.address.loadUnaligned(fromByteOffset: address, as: UInt64.self) }

    /// Points a vector of the real-mode table at 0:`address`.
    func setVector(_ vector: UInt8, to address: Int) {
        mapping.address.storeBytes(of: UInt32(address), toByteOffset: Int(vector) * 4, as: UInt32.self)
    }

    /// `run()`, ended by `.interrupted` after a minute: no test may hang.
    func run(_ index: Int = 0, seconds: UInt64 = 60) throws -> VirtualCPUExit {
        let watchdog = try Watchdog(cpus[index], seconds: seconds)
        defer { watchdog.cancel() }
        return try cpus[index].run()
    }

    /// Runs, ended each time by a request that comes every 20 ms, until `isDone`; on a busy host a request can come before
    /// the guest has got anywhere. For up to a minute.
    func runWithRequests(until isDone: () throws -> Bool) throws {
        let cpu = cpus[0]
        let isOver = Atomic<Bool>(false)
        let requester = try HostThread(name: "requester") {
            while !isOver.load(ordering: .relaxed) {
                HostClock.sleep(nanoseconds: 20_000_000)
                cpu.requestExit()
            }
        }
        defer {
            isOver.store(true, ordering: .relaxed)
            requester.join()
        }
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        repeat {
            #expect(try run() == .interrupted)
        } while try !isDone() && HostClock.monotonicNanoseconds < end
    }
}

/// Requests an exit after so many seconds, or does nothing when cancelled.
final class Watchdog: Sendable {
    private let isCancelled = Atomic<Bool>(false)
    private let thread = Mutex<HostThread?>(nil)

    init(_ cpu: SoftVirtualCPU, seconds: UInt64) throws {
        let started = try HostThread(name: "watchdog") { [weak self] in
            let until = HostClock.monotonicNanoseconds + seconds * 1_000_000_000
            while let self, !self.isCancelled.load(ordering: .relaxed) {
                if HostClock.monotonicNanoseconds > until { return cpu.requestExit() }
                HostClock.sleep(nanoseconds: 2_000_000)
            }
        }
        thread.withLock { $0 = started }
    }

    func cancel() {
        isCancelled.store(true, ordering: .relaxed)
        thread.withLock { $0 }?.join()
    }
}
