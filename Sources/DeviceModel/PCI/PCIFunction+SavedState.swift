/// A PCI function's saved state, version 1: its configuration space and what is beside it of MSI-X and MSI.
public struct PCIFunctionSavedState: DeviceSavedState {
    public static let identifier = "pci-function"
    public static let version: UInt32 = 1

    var space: [UInt8]
    var vectors: [MSIXTable.Entry]
    var pendingMSI: UInt32
    var wantsPin: Bool

    init(_ state: PCIFunction.State) {
        space = state.space.bytes
        vectors = state.msix?.entries ?? []
        pendingMSI = state.msi?.pending ?? 0
        wantsPin = state.wantsPin
    }

    public func encode(into encoder: inout StateEncoder) {
        encoder.write(space)
        encoder.write(UInt16(clamping: vectors.count))
        for entry in vectors {
            encoder.write(entry.address)
            encoder.write(entry.data)
            encoder.write(entry.isMasked)
            encoder.write(entry.isPending)
        }
        encoder.write(pendingMSI)
        encoder.write(wantsPin)
    }

    public init(from decoder: inout StateDecoder) throws(SavedStateError) {
        space = try decoder.readBytes("space", limit: PCIConfigurationSpace.size)
        vectors = []
        for _ in 0..<(try decoder.read(UInt16.self)) {
            var entry = MSIXTable.Entry()
            entry.address = try decoder.read()
            entry.data = try decoder.read()
            entry.isMasked = try decoder.readBool("isMasked")
            entry.isPending = try decoder.readBool("isPending")
            vectors.append(entry)
        }
        pendingMSI = try decoder.read()
        wantsPin = try decoder.readBool("wantsPin")
    }

    /// Onto a function of the same kind as the one that was saved.
    func apply(to state: inout PCIFunction.State) throws(SavedStateError) {
        guard state.space.restore(space) else { throw .invalid(identifier: Self.identifier, field: "space") }
        guard vectors.count == state.msix?.entries.count ?? 0 else {
            throw .invalid(identifier: Self.identifier, field: "vectors")
        }
        state.msix?.entries = vectors
        state.msi?.pending = pendingMSI
        state.wantsPin = wantsPin
        state.space.drive(PCIStatus.interrupt, wantsPin, at: PCIRegister.status)
    }
}
