internal import CHost
internal import DeviceModel
internal import Host
internal import Hypervisor
internal import Platform
internal import SoftKVM
internal import Synchronization
internal import X86

/// Lets other threads ask a vCPU out of its run loop.
private final class ExitRequester: Sendable {
    private struct Target: @unchecked Sendable {
        // Only `requestExit()` is called through it, which the contract allows from any thread.
        var cpu: (any VirtualCPU)?
    }

    private let target = Mutex(Target(cpu: nil))

    func publish(_ cpu: any VirtualCPU) {
        let target = Target(cpu: cpu)
        self.target.withLock { $0 = target }
    }

    func withdraw() { target.withLock { $0.cpu = nil } }

    func requestExit() { target.withLock { $0.cpu?.requestExit() } }
}

/// Where a vCPU begins.
enum ProcessorStart: Sendable {
    case boot(BootState)
    case saved(ProcessorSavedState)

    func apply(to cpu: any VirtualCPU) throws(HypervisorError) {
        switch self {
        case .boot(let state):
            try cpu.setSpecialRegisters(state.specialRegisters(from: cpu.specialRegisters()))
            try cpu.setRegisters(state.generalRegisters)
        case .saved(let state): try state.apply(to: cpu)
        }
    }
}

/// A vCPU on its host thread: creates it, loads its start state, runs it, and takes its exits to the buses.
final class VirtualCPUThread: Sendable {
    private let requester = ExitRequester()
    private let gate = PauseGate()
    private let events: MachineEvents
    private let thread: HostThread

    /// A vCPU with a saved state stands still until `resume`: `pause` says when it has its state.
    init(
        machine: any VirtualMachine, cpuid: [kvm_cpuid_entry2], start: ProcessorStart, board: Board,
        events: MachineEvents
    ) throws(HostError) {
        self.events = events
        if case .saved = start { gate.close() }
        let (requester, gate) = (requester, gate)
        let leaves = CPUIDLeaves(entries: cpuid)
        thread = try HostThread(name: "vcpu 0") {
            Self.body(
                machine, leaves: leaves, start: start, board: board, events: events, requester: requester, gate: gate)
        }
    }

    /// Ends the run soon; the machine's outcome says `.stopped` unless something else came first.
    func stop() {
        events.end(with: .stopped)
        requester.requestExit()
        gate.open()
    }

    func join() { thread.join() }

    /// Returns when the vCPU stands between two instructions: true. False: it has ended.
    func pause() -> Bool {
        gate.close()
        requester.requestExit()
        return gate.waitUntilParked()
    }

    /// What a paused vCPU is asked; nil when it has ended.
    func perform<Result: Sendable>(_ body: @escaping @Sendable (any VirtualCPU) -> Result) -> Result? {
        gate.perform(body)
    }

    func resume() { gate.open() }

    /// KVM wants every ioctl of a vCPU from the thread that created it (KVM API §2).
    private static func body(
        _ machine: any VirtualMachine, leaves: CPUIDLeaves, start: ProcessorStart, board: Board, events: MachineEvents,
        requester: ExitRequester, gate: PauseGate
    ) {
        defer { gate.end() }
        var trace: ProcessorTrace?
        var profile: ProfiledRun?
        do throws(HypervisorError) {
            let cpu = try machine.createVirtualCPU(id: 0)
            try cpu.setCPUID(leaves.entries)
            try start.apply(to: cpu)
            requester.publish(cpu)
            defer { requester.withdraw() }
            // Who asked for a pause or the end before there was a vCPU to be kicked.
            if gate.isPauseWanted || events.mustEnd { cpu.requestExit() }
            do throws(HypervisorError) {
                try runLoop(cpu, board: board, events: events, gate: gate)
            } catch {
                events.end(with: .engineFailure(error.description))
            }
            if let report = cpu.finalReport() { events.end(with: .enginesDiffer(report: report)) }
            trace = try? self.trace(of: cpu)
            profile = ProfiledRun(cpu)
        } catch {
            events.end(with: .engineFailure(error.description))
        }
        events.finish(trace: trace, profile: profile)
    }

    private static func runLoop(
        _ cpu: any VirtualCPU, board: Board, events: MachineEvents, gate: PauseGate
    ) throws(HypervisorError) {
        var ports = BusReader(board.ports)
        var memoryMapped = BusReader(board.memoryMapped)
        while !events.mustEnd {
            switch try cpu.run() {
            case .io(let port, let size, let count, let isWrite):
                access(cpu, ports.current(), at: UInt64(port.rawValue), size: size, count: count, isWrite: isWrite)
            case .mmio(let address, let size, let isWrite):
                access(cpu, memoryMapped.current(), at: address.rawValue, size: size, count: 1, isWrite: isWrite)
            case .interrupted:
                // Only here is every access of before answered.
                if gate.isPauseWanted { gate.park(cpu) }
            case .interruptWindowOpen, .debug:
                break
            case .shutdown:
                events.end(with: .tripleFault)
            case .halt:
                events.end(with: .engineFailure("the engine left a halted processor to us"))
            case .failEntry(let reason):
                events.end(
                    with: .engineFailure("the host's processor refused the guest's state (reason \(hex(reason)))"))
            case .internalError(let suberror, let instruction):
                events.end(with: .engineFailure(describe(suberror: suberror, instruction: instruction)))
            case .systemEvent(let type):
                // KVM_SYSTEM_EVENT_SHUTDOWN, _RESET, _CRASH (KVM API §5, KVM_EXIT_SYSTEM_EVENT).
                events.end(with: type == 1 ? .poweredOff : type == 2 ? .reset : .panicked(reason: "the guest crashed"))
            case .difference(let report):
                events.end(with: .enginesDiffer(report: report))
            case .other(let reason):
                events.end(with: .engineFailure("the engine stopped for an unexpected reason (exit \(reason))"))
            }
        }
    }

    private static func access(
        _ cpu: any VirtualCPU, _ bus: Bus, at address: UInt64, size: Int, count: Int, isWrite: Bool
    ) {
        for index in 0..<max(count, 0) {
            if isWrite {
                write(cpu.exitData(index), to: bus, at: address, size: size)
            } else {
                cpu.setExitData(read(from: bus, at: address, size: size), at: index)
            }
        }
    }

    /// Sizes other than 1, 2, 4 and 8 come from accesses that cross a page: byte by byte, as the bus would see them.
    private static func read(from bus: Bus, at address: UInt64, size: Int) -> UInt64 {
        if let width = AccessWidth(rawValue: size) { return bus.read(at: address, width: width) }
        var value: UInt64 = 0
        for byte in 0..<UInt64(clamping: min(size, 8)) {
            value |= bus.read(at: address &+ byte, width: .byte) << (byte &* 8)
        }
        return value
    }

    private static func write(_ value: UInt64, to bus: Bus, at address: UInt64, size: Int) {
        if let width = AccessWidth(rawValue: size) {
            bus.write(at: address, width: width, value: value)
            return
        }
        for byte in 0..<UInt64(clamping: min(size, 8)) {
            bus.write(at: address &+ byte, width: .byte, value: value >> (byte &* 8))
        }
    }

    private static func describe(suberror: UInt32, instruction: [UInt8]) -> String {
        // KVM_INTERNAL_ERROR_EMULATION.
        guard suberror == 1 else { return "the engine reported an internal error (suberror \(suberror))" }
        let bytes = instruction.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined(separator: " ")
        return "the engine cannot execute an instruction of the guest" + (bytes.isEmpty ? "" : " (bytes \(bytes))")
    }

    private static func trace(of cpu: any VirtualCPU) throws(HypervisorError) -> ProcessorTrace {
        ProcessorTrace(
            rip: try cpu.registers().rip, cr2: try cpu.specialRegisters().cr2, lastException: cpu.lastException,
            instructionCount: cpu.instructionCount, statistics: (cpu as? SoftVirtualCPU)?.statistics)
    }
}

/// The leaves on their way to the vCPU's thread.
private struct CPUIDLeaves: @unchecked Sendable {
    // Plain values of a C structure that Swift does not know to be Sendable; never changed.
    let entries: [kvm_cpuid_entry2]
}
