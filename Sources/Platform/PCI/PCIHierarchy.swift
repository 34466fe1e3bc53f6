public import DeviceModel

/// The functions of the machine by their addresses: those on bus 0, and behind each root port the one on its secondary
/// bus. Built once; bus numbers are the guest's to give.
public final class PCIHierarchy: Sendable {
    /// Of bus 0.
    private let functions: [PCIAddress: any PCIConfigurable]
    private let ports: [PCIRootPort]

    /// All on bus 0, where slot 0 is the host bridge's. A slot with further functions has function 0, which says so.
    public init(_ functions: [PCIAddress: any PCIConfigurable] = [:]) {
        var all = functions
        all[PCIAddress(device: 0)] = PCIHostFunction()
        self.functions = all
        ports = functions.sorted { ($0.key.device, $0.key.function) < ($1.key.device, $1.key.function) }
            .compactMap { $0.value as? PCIRootPort }
    }

    /// nil: nobody answers, and a read gives all ones (PCIe 5.0 §7.2.1 by way of §2.3.2).
    func function(at address: PCIAddress) -> (any PCIConfigurable)? {
        if address.bus == 0 { return functions[address] }
        // A link has one device at its other end (§7.3.1), and ours have one function.
        guard address.device == 0, address.function == 0 else { return nil }
        return ports.first { $0.secondaryBus == address.bus }?.child
    }

    func read(_ address: PCIAddress, at offset: Int, width: AccessWidth) -> UInt64 {
        guard let function = function(at: address) else { return width.mask }
        return function.readConfiguration(at: offset, width: width) & width.mask
    }

    func write(_ value: UInt64, _ address: PCIAddress, at offset: Int, width: AccessWidth) {
        function(at: address)?.writeConfiguration(value, at: offset, width: width)
    }
}

/// Function 0:0.0: the Q35 MCH that guests know as a PC's host bridge; nothing of it can be changed.
private final class PCIHostFunction: PCIConfigurable {
    private let space: PCIConfigurationSpace

    init() {
        var space = PCIConfigurationSpace()
        space.set(PCIHostBridgeHeader.vendorAndDevice, at: PCIRegister.vendorID)
        space.set(PCIHostBridgeHeader.classAndRevision, at: PCIRegister.revision)
        self.space = space
    }

    func readConfiguration(at offset: Int, width: AccessWidth) -> UInt64 { space.read(at: offset, width: width) }
    func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {}
}

/// Configuration space in memory (PCIe 5.0 §7.2.2): bits 27–20 of the address are the bus, 19–15 the device, 14–12 the
/// function, 11–0 the register.
public final class PCIExpressWindow: BusDevice {
    private let hierarchy: PCIHierarchy

    public init(_ hierarchy: PCIHierarchy) { self.hierarchy = hierarchy }

    private func split(_ offset: UInt64) -> (PCIAddress, Int) {
        let address = PCIAddress(
            bus: UInt8(truncatingIfNeeded: offset >> 20), device: UInt8(truncatingIfNeeded: offset >> 15 & 31),
            function: UInt8(truncatingIfNeeded: offset >> 12 & 7))
        return (address, Int(offset & 0xFFF))
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        let (address, register) = split(offset)
        guard register % width.rawValue == 0 else { return .rejected(.unaligned) }
        guard width == .quad else { return .value(hierarchy.read(address, at: register, width: width)) }
        let low = hierarchy.read(address, at: register, width: .double)
        return .value(low | hierarchy.read(address, at: register + 4, width: .double) << 32)
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        let (address, register) = split(offset)
        guard register % width.rawValue == 0 else { return .rejected(.unaligned) }
        guard width == .quad else {
            hierarchy.write(value, address, at: register, width: width)
            return .done
        }
        hierarchy.write(value & 0xFFFF_FFFF, address, at: register, width: .double)
        hierarchy.write(value >> 32, address, at: register + 4, width: .double)
        return .done
    }
}
