internal import DeviceModel

/// The addresses that a bridge passes on to its secondary bus (PCIe 5.0 §7.5.1.3.6, §7.5.1.3.8–12).
struct PCIBridgeWindows: Equatable {
    /// nil: closed.
    private var ports: ClosedRange<UInt64>?
    private var memory: [ClosedRange<UInt64>] = []

    init(_ space: PCIConfigurationSpace) {
        func word(_ offset: Int) -> UInt64 { UInt64(space.value(UInt16.self, at: offset)) }
        func double(_ offset: Int) -> UInt64 { UInt64(space.value(UInt32.self, at: offset)) }
        func window(_ base: UInt64, _ last: UInt64) -> ClosedRange<UInt64>? { base <= last ? base...last : nil }
        let command = space.value(UInt16.self, at: PCIRegister.command)
        if command & PCICommand.ioSpace != 0 {
            let registers = word(PCIBridgeRegister.ioBase)
            let upper = double(PCIBridgeRegister.ioUpper)
            ports = window(
                (registers & 0xF0) << 8 | (upper & 0xFFFF) << 16,
                (registers >> 8 & 0xF0) << 8 | upper & 0xFFFF_0000 | 0xFFF)
        }
        guard command & PCICommand.memorySpace != 0 else { return }
        func memoryWindow(_ offset: Int, _ upperBase: UInt64, _ upperLimit: UInt64) -> ClosedRange<UInt64>? {
            window(
                (word(offset) & 0xFFF0) << 16 | upperBase << 32,
                (word(offset + 2) & 0xFFF0) << 16 | 0xF_FFFF | upperLimit << 32)
        }
        memory = [
            memoryWindow(PCIBridgeRegister.memoryBase, 0, 0),
            memoryWindow(
                PCIBridgeRegister.prefetchableBase, double(PCIBridgeRegister.prefetchableUpper),
                double(PCIBridgeRegister.prefetchableUpper + 4)),
        ].compactMap(\.self)
    }

    /// A region that lies in a window only in part answers nothing.
    func contains(_ region: PCIRegion) -> Bool {
        let (last, isTooLarge) = region.base.addingReportingOverflow(region.size &- 1)
        guard !isTooLarge else { return false }
        return (region.isPortIO ? [ports].compactMap(\.self) : memory).contains {
            $0.contains(region.base) && $0.contains(last)
        }
    }
}
