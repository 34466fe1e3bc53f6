internal import CHost
internal import GuestMemory
internal import Hypervisor
internal import SoftKVM

/// What a vCPU was at in one power-on of a machine, and where its kernel's page tables were at the end.
struct ProfiledRun: Sendable {
    var profile: GuestProfile
    var cr3: UInt64
    var isLongMode: Bool

    /// On the vCPU's thread. Nil: it is not profiled.
    init?(_ cpu: any VirtualCPU) {
        guard let profile = (cpu as? SoftVirtualCPU)?.takeProfile() else { return nil }
        self.profile = profile
        let special = try? cpu.specialRegisters()
        cr3 = special?.cr3 ?? 0
        // EFER.LMA: the tables have four levels.
        isLongMode = (special?.efer ?? 0) & 1 << 10 != 0
    }

    /// The functions of the guest's kernel by what it has of them itself.
    func kernelSymbols(in memory: GuestMemory) -> SymbolTable {
        guard isLongMode else { return SymbolTable() }
        return SymbolTable(KernelSymbols(memory: memory, cr3: cr3).find() ?? [])
    }
}
