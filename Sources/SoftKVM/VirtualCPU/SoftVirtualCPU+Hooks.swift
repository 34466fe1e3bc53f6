internal import CHost
internal import CPU
internal import Synchronization

/// What the processor asks of the engine around it: the interrupt controllers' ports and pages, and the MSRs that are
/// theirs. Called on the vCPU's thread from inside `Processor.run()`, with `execution` held.
extension SoftVirtualCPU {
    func installHooks() {
        // SAFETY: the context is used only inside Processor.run() and the MSR calls below, which this object makes.
        state.pointee.hooks.context = Unmanaged.passUnretained(self).toOpaque()
        state.pointee.hooks.mmio = { context, address, size, isWrite, value in
            SoftVirtualCPU.with(context) { cpu in
                cpu.accessMemory(address, size: Int(size), isWrite: isWrite != 0, &value.pointee)
            }
        }
        state.pointee.hooks.port = { context, port, size, isWrite, value in
            SoftVirtualCPU.with(context) { $0.accessPort(port, size: Int(size), isWrite: isWrite != 0, &value.pointee) }
        }
        state.pointee.hooks.read_msr = { context, index, value in
            SoftVirtualCPU.with(context) { cpu in
                guard let result = cpu.readEngineRegister(index) else { return false }
                value.pointee = result
                return true
            }
        }
        state.pointee.hooks.write_msr = { context, index, value in
            SoftVirtualCPU.with(context) { $0.writeEngineRegister(index, value, fromGuest: true) ?? false }
        }
        state.pointee.hooks.read_cr8 = { context in
            guard let context else { return 0 }
            return Unmanaged<SoftVirtualCPU>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.taskPriorityRegister }
        }
        state.pointee.hooks.write_cr8 = { context, value in
            guard let context else { return }
            Unmanaged<SoftVirtualCPU>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.taskPriorityRegister = value }
        }
    }

    /// The hooks' convention: 0 for handled.
    private static func with(_ context: UnsafeMutableRawPointer?, _ body: (SoftVirtualCPU) -> Bool) -> Int32 {
        guard let context else { return 1 }
        return Unmanaged<SoftVirtualCPU>.fromOpaque(context)._withUnsafeGuaranteedRef { cpu in
            let before = martlet_set_activity(cpu.state, UInt32(MARTLET_AT_DEVICE))
            defer { martlet_set_activity(cpu.state, before) }
            return body(cpu) ? 0 : 1
        }
    }

    /// False: user space's.
    private func accessMemory(_ address: UInt64, size: Int, isWrite: Bool, _ value: inout UInt64) -> Bool {
        let inPage = address &- apicPage
        if inPage < 4096 {
            counters.engineMemoryMappedAccesses &+= 1
            accessAPIC(Int(inPage), size: size, isWrite: isWrite, &value)
            return true
        }
        let inIOAPIC = address &- IOAPIC.baseAddress
        guard hasIRQChip, inIOAPIC < IOAPIC.length else {
            guard isWrite, ioEvents.signal(address, size: size, value: value, isPort: false, in: machine.ioEvents)
            else {
                return false
            }
            counters.engineMemoryMappedAccesses &+= 1
            return true
        }
        counters.engineMemoryMappedAccesses &+= 1
        if isWrite {
            let value = UInt32(truncatingIfNeeded: value)
            machine.withFabric { $0.writeIOAPIC(offset: inIOAPIC, value) }
        } else {
            value = machine.withFabric { $0.readIOAPIC(offset: inIOAPIC, size: size) }
        }
        return true
    }

    private func accessAPIC(_ offset: Int, size: Int, isWrite: Bool, _ value: inout UInt64) {
        let now = TimestampCounter.now
        let index = index
        if isWrite {
            let value = value
            machine.withFabric { $0.writeAPICPage(index, offset: offset, size: size, value: value, at: now) }
        } else {
            value = machine.withFabric { fabric in
                fabric.advance(to: now)
                return fabric.apics[index].readPage(offset: offset, size: size, at: now)
            }
        }
    }

    /// Like KVM's devices these take the lowest byte of any width.
    private func accessPort(_ port: UInt16, size: Int, isWrite: Bool, _ value: inout UInt32) -> Bool {
        // Everything of ours is below 0x62, 0xa0 or 0x4d0: most ports are turned away without the lock.
        guard hasIRQChip, port < 0x62 || port & 0xfffe == 0xa0 || port & 0xfffe == 0x4d0 else {
            return isWrite
                && ioEvents.signal(UInt64(port), size: size, value: UInt64(value), isPort: true, in: machine.ioEvents)
        }
        let now = TimestampCounter.now
        let written = UInt8(truncatingIfNeeded: value)
        let read: UInt8? = machine.withFabric { fabric in
            guard fabric.containsPort(port) else { return nil }
            guard isWrite else {
                fabric.advance(to: now)
                return fabric.readPort(port, at: now)
            }
            fabric.advance(to: now)
            fabric.writePort(port, written, at: now)
            return 0
        }
        guard let read else { return false }
        counters.enginePortAccesses &+= 1
        if !isWrite { value = UInt32(read) }
        return true
    }

    /// CR8 is bits 7–4 of the task priority (SDM vol. 3A §11.8.6).
    private var taskPriorityRegister: UInt64 {
        get {
            guard hasIRQChip else { return state.pointee.cr8 }
            let index = index
            return machine.withFabric { UInt64($0.apics[index].taskPriority >> 4) }
        }
        set {
            state.pointee.cr8 = newValue & 15
            let index = index
            let priority = UInt8(truncatingIfNeeded: (newValue & 15) << 4)
            if hasIRQChip { machine.withFabric { $0.apics[index].setTaskPriority(priority) } }
        }
    }

    /// Copies what others read directly: IA32_APIC_BASE, the APIC's page, CR8.
    func reflectAPIC() {
        let index = index
        let (base, page, priority) = machine.withFabric { fabric in
            (fabric.apics[index].base, fabric.apics[index].page, fabric.apics[index].taskPriority)
        }
        state.pointee.apic_base = base
        if hasIRQChip { state.pointee.cr8 = UInt64(priority >> 4) }
        apicPage = hasIRQChip ? page ?? Self.noPage : Self.noPage
    }
}

extension VirtualCPUCore {
    /// The vCPU descriptor is gone: nobody runs the processor any more, and nothing may call back.
    func removeHooks() {
        execution.withLock { _ in
            state.pointee.hooks = martlet_cpu_hooks()
            state.pointee.trace = martlet_trace()
        }
    }
}
