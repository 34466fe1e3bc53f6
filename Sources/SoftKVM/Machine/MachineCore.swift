internal import CHost
internal import CPU
internal import Host
internal import Synchronization

/// What the vCPUs, the timer thread and the VM descriptor of one machine share.
final class MachineCore: Sendable {
    /// The interrupt controllers with the vCPUs that they address, and when the timer thread will look at them.
    private struct Wiring: Sendable {
        var fabric: InterruptFabric
        var cpus: [VirtualCPUCore] = []
        var timerThreadDeadline = UInt64.max
    }

    private let wiring: Mutex<Wiring>
    private let clock: Mutex<ParavirtualClock>
    /// Host TSC at the creation: guest TSCs start at 0 then.
    let firstTSC: UInt64
    let alarm = Alarm()
    let ioEvents = IOEventTable()

    init(tscFrequency: UInt64, at now: HostInstant) {
        firstTSC = now.tsc
        wiring = Mutex(Wiring(fabric: InterruptFabric(tscFrequency: tscFrequency)))
        clock = Mutex(ParavirtualClock(startingAt: now, tscFrequency: tscFrequency))
    }

    // MARK: Interrupt controllers

    /// Changes or reads the interrupt controllers, then tells the vCPUs and the timer thread what concerns them.
    @discardableResult
    func withFabric<Result: Sendable>(_ body: (inout InterruptFabric) -> Result) -> Result {
        var mustRing = false
        let result = wiring.withLock { wiring in
            let result = body(&wiring.fabric)
            for index in wiring.fabric.apics.indices where wiring.fabric.apics[index].needsAttention {
                wiring.fabric.apics[index].needsAttention = false
                wiring.cpus[index].raiseAttention()
            }
            if wiring.fabric.timersChanged {
                wiring.fabric.timersChanged = false
                let next = wiring.fabric.nextDeadline ?? .max
                // A deadline that moved away costs one early look, one that moved closer must wake the thread.
                if next < wiring.timerThreadDeadline {
                    wiring.timerThreadDeadline = next
                    mustRing = true
                }
            }
            return result
        }
        if mustRing { alarm.ring() }
        return result
    }

    /// Adds a vCPU. nil: there is one with this number.
    func add(_ cpu: VirtualCPUCore) -> Int? {
        wiring.withLock { wiring in
            guard !wiring.cpus.contains(where: { $0.id == cpu.id }) else { return nil }
            wiring.cpus.append(cpu)
            return wiring.fabric.addAPIC(id: UInt32(truncatingIfNeeded: cpu.id), tscOffset: 0 &- firstTSC)
        }
    }

    var cpus: [VirtualCPUCore] { wiring.withLock { $0.cpus } }

    /// The timer thread: makes timers expire while vCPUs run guest code.
    func runTimers() {
        while let bell = alarm.nextBell() {
            let now = TimestampCounter.now
            withFabric { $0.advance(to: now) }
            let deadline = wiring.withLock { wiring in
                wiring.timerThreadDeadline = wiring.fabric.nextDeadline ?? .max
                return wiring.timerThreadDeadline
            }
            alarm.sleep(since: bell, untilMonotonicNanoseconds: deadline)
        }
    }

    // MARK: Clock

    func withClock<Result: Sendable>(_ body: (inout ParavirtualClock) -> Result) -> Result {
        clock.withLock { clock in body(&clock) }
    }

    /// KVM_SET_CLOCK: every guest's copy is written again before it runs on.
    func setClock(_ nanoseconds: UInt64) {
        withClock { $0.set(nanoseconds, at: TimestampCounter.now) }
        for cpu in cpus {
            cpu.clockIsStale.store(true, ordering: .sequentiallyConsistent)
            cpu.raiseAttention()
        }
    }
}
