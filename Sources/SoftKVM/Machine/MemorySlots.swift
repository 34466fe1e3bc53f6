internal import CHost
internal import Glibc
internal import Hypervisor

/// The VM's memory slots by number (KVM API §4.35), checked as KVM does.
struct MemorySlots: Sendable {
    private var regions: [UInt32: kvm_userspace_memory_region] = [:]

    /// Adds, replaces or (size 0) deletes a slot.
    mutating func set(_ region: kvm_userspace_memory_region) throws(HypervisorError) {
        func failure(_ number: Int32, _ detail: String) -> HypervisorError {
            HypervisorError("KVM_SET_USER_MEMORY_REGION", errorNumber: number, detail: detail)
        }
        guard (region.guest_phys_addr | region.memory_size | region.userspace_addr) & 0xfff == 0 else {
            throw failure(EINVAL, "slot \(region.slot) is not page-aligned")
        }
        guard region.flags & ~UInt32(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) == 0 else {
            throw failure(EINVAL, "slot \(region.slot) has unknown flags")
        }
        guard region.memory_size != 0 else {
            guard regions.removeValue(forKey: region.slot) != nil else {
                throw failure(EINVAL, "slot \(region.slot) does not exist")
            }
            return
        }
        let (end, overflow) = region.guest_phys_addr.addingReportingOverflow(region.memory_size)
        guard !overflow, end <= 1 << 52, region.userspace_addr != 0,
            // The end of a process's half of the address space.
            region.userspace_addr < 1 << 47, region.memory_size <= 1 << 47 - region.userspace_addr
        else { throw failure(EINVAL, "slot \(region.slot) wraps around or has no memory") }
        if let old = regions[region.slot] {
            let isSame = old.memory_size == region.memory_size && old.userspace_addr == region.userspace_addr
            guard isSame, (old.flags ^ region.flags) & UInt32(KVM_MEM_READONLY) == 0 else {
                throw failure(EINVAL, "slot \(region.slot) exists with other memory; delete it first")
            }
        }
        for (number, other) in regions where number != region.slot {
            let isApart =
                end <= other.guest_phys_addr || other.guest_phys_addr + other.memory_size <= region.guest_phys_addr
            guard isApart else { throw failure(EEXIST, "slots \(number) and \(region.slot) overlap") }
        }
        guard regions[region.slot] != nil || regions.count < Int(MARTLET_MAX_SLOTS) else {
            throw failure(EINVAL, "more than \(MARTLET_MAX_SLOTS) slots")
        }
        regions[region.slot] = region
    }

    /// In the engine's form, by address.
    var engineSlots: [martlet_slot] {
        regions.values.sorted { $0.guest_phys_addr < $1.guest_phys_addr }.map { region in
            martlet_slot(
                guest_physical: region.guest_phys_addr, size: region.memory_size,
                host: UnsafeMutablePointer(bitPattern: UInt(region.userspace_addr)), page_index: 0,
                identifier: region.slot, flags: region.flags)
        }
    }
}
