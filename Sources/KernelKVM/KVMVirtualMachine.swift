internal import CHost
internal import Host
internal import Hypervisor
internal import Synchronization
internal import X86

/// A VM of the host kernel.
final class KVMVirtualMachine: VirtualMachine {
    private let descriptor: KVMDescriptor
    /// Bytes of each vCPU's shared kvm_run area.
    private let runSize: Int
    /// Where each slot's size in pages is remembered: the dirty log's length follows from it.
    private let slots = Mutex<[UInt32: UInt64]>([:])

    init(descriptor: KVMDescriptor, runSize: Int) {
        self.descriptor = descriptor
        self.runSize = runSize
    }

    func setUserMemoryRegion(_ region: kvm_userspace_memory_region) throws(HypervisorError) {
        try descriptor.call("KVM_SET_USER_MEMORY_REGION", kvm_ioctl_set_user_memory_region, with: region)
        slots.withLock { $0[region.slot] = region.memory_size / 4096 }
    }

    func dirtyLog(slot: UInt32) throws(HypervisorError) -> [UInt64] {
        let pages = slots.withLock { $0[slot] } ?? 0
        guard pages > 0 else { throw HypervisorError("KVM_GET_DIRTY_LOG", errorNumber: ENOENT) }
        let words = Int((pages + 63) / 64)
        let bitmap = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: words)
        defer { bitmap.deallocate() }
        bitmap.initialize(repeating: 0)
        guard let address = bitmap.baseAddress else { return [] }
        var log = kvm_dirty_log()
        log.slot = slot
        kvm_dirty_log_set_bitmap(&log, address)
        try descriptor.call("KVM_GET_DIRTY_LOG", kvm_ioctl_get_dirty_log, with: log)
        return Array(bitmap)
    }

    func setTSSAddress(_ address: UInt32) throws(HypervisorError) {
        try descriptor.call("KVM_SET_TSS_ADDR", kvm_ioctl_set_tss_addr, value: UInt(address))
    }

    func setIdentityMapAddress(_ address: UInt64) throws(HypervisorError) {
        try descriptor.call("KVM_SET_IDENTITY_MAP_ADDR", kvm_ioctl_set_identity_map_addr, with: address)
    }

    func createIRQChip() throws(HypervisorError) {
        try descriptor.call("KVM_CREATE_IRQCHIP", kvm_ioctl_create_irqchip)
    }

    func createPIT(speakerDummy: Bool) throws(HypervisorError) {
        var configuration = kvm_pit_config()
        configuration.flags = speakerDummy ? UInt32(KVM_PIT_SPEAKER_DUMMY) : 0
        try descriptor.call("KVM_CREATE_PIT2", kvm_ioctl_create_pit2, with: configuration)
    }

    func createVirtualCPU(id: Int) throws(HypervisorError) -> any VirtualCPU {
        let cpu = try descriptor.call("KVM_CREATE_VCPU", kvm_ioctl_create_vcpu, value: UInt(bitPattern: id))
        // 0 where the kernel does not know the extension (before 5.17): then it is KVM_GET_XSAVE, and 4096 bytes.
        let size = try descriptor.call(
            "KVM_CHECK_EXTENSION", kvm_ioctl_check_extension, value: UInt(KVM_CAP_XSAVE2))
        return try KVMVirtualCPU(
            descriptor: KVMDescriptor(owning: cpu), runSize: runSize, extendedStateSize: size)
    }

    func setIRQLine(_ gsi: GSI, level: Bool) throws(HypervisorError) {
        var line = kvm_irq_level()
        kvm_irq_level_set(&line, gsi.rawValue, level ? 1 : 0)
        try descriptor.call("KVM_IRQ_LINE", kvm_ioctl_irq_line, with: line)
    }

    func signalMSI(_ message: kvm_msi) throws(HypervisorError) {
        try descriptor.call("KVM_SIGNAL_MSI", kvm_ioctl_signal_msi, with: message)
    }

    func setGSIRouting(_ routes: [GSIRoute]) throws(HypervisorError) {
        try descriptor.call("KVM_SET_GSI_ROUTING", kvm_ioctl_set_gsi_routing, bytes: Self.routingTable(routes))
    }

    /// struct kvm_irq_routing: a count, flags, and entries of 48 bytes, whose union begins 16 bytes in.
    static func routingTable(_ routes: [GSIRoute]) -> [UInt8] {
        var bytes: [UInt8] = []
        func append(_ values: [UInt32]) {
            for value in values { withUnsafeBytes(of: value.littleEndian) { bytes += $0 } }
        }
        append([UInt32(clamping: routes.count), 0])
        for route in routes {
            switch route.target {
            case .irqChip(let chip, let pin):
                append([route.gsi.rawValue, UInt32(KVM_IRQ_ROUTING_IRQCHIP), 0, 0, chip, pin, 0, 0])
            case .message(let address, let data):
                append([
                    route.gsi.rawValue, UInt32(KVM_IRQ_ROUTING_MSI), 0, 0, UInt32(truncatingIfNeeded: address),
                    UInt32(address >> 32), data, 0,
                ])
            }
            append([0, 0, 0, 0])
        }
        return bytes
    }

    func setIRQEvent(_ descriptor: Int32, gsi: GSI, isAssigned: Bool) throws(HypervisorError) {
        var irqfd = kvm_irqfd()
        irqfd.fd = UInt32(bitPattern: descriptor)
        irqfd.gsi = gsi.rawValue
        irqfd.flags = isAssigned ? 0 : kvm_irqfd_deassign
        try self.descriptor.call("KVM_IRQFD", kvm_ioctl_irqfd, with: irqfd)
    }

    // virt/kvm/eventfd.c, irqfd_wakeup: a message is delivered where the eventfd is written.
    var takesIRQEventsDirectly: Bool { true }
    var seesMemoryWrites: Bool { true }

    func setIOEvent(_ event: IOEvent, isAssigned: Bool) throws(HypervisorError) {
        var ioeventfd = kvm_ioeventfd()
        ioeventfd.addr = event.address
        ioeventfd.len = event.length
        ioeventfd.fd = event.descriptor
        ioeventfd.datamatch = event.match ?? 0
        ioeventfd.flags =
            (event.match != nil ? kvm_ioeventfd_datamatch : 0) | (event.isPort ? kvm_ioeventfd_pio : 0)
            | (isAssigned ? 0 : kvm_ioeventfd_deassign)
        try descriptor.call("KVM_IOEVENTFD", kvm_ioctl_ioeventfd, with: ioeventfd)
    }

    func irqChip(id: UInt32) throws(HypervisorError) -> kvm_irqchip {
        var chip = kvm_irqchip()
        chip.chip_id = id
        return try descriptor.get("KVM_GET_IRQCHIP", kvm_ioctl_get_irqchip, into: chip)
    }

    func setIRQChip(_ chip: kvm_irqchip) throws(HypervisorError) {
        try descriptor.call("KVM_SET_IRQCHIP", kvm_ioctl_set_irqchip, with: chip)
    }

    func pitState() throws(HypervisorError) -> kvm_pit_state2 {
        try descriptor.get("KVM_GET_PIT2", kvm_ioctl_get_pit2, into: kvm_pit_state2())
    }

    func setPITState(_ state: kvm_pit_state2) throws(HypervisorError) {
        try descriptor.call("KVM_SET_PIT2", kvm_ioctl_set_pit2, with: state)
    }

    func clock() throws(HypervisorError) -> kvm_clock_data {
        try descriptor.get("KVM_GET_CLOCK", kvm_ioctl_get_clock, into: kvm_clock_data())
    }

    func setClock(_ clock: kvm_clock_data) throws(HypervisorError) {
        try descriptor.call("KVM_SET_CLOCK", kvm_ioctl_set_clock, with: clock)
    }
}
