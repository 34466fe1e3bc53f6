internal import DeviceModel
internal import GuestMemory

/// A whole machine between two instructions, in memory. Another machine of the same configuration is built from it, as
/// often as one likes.
struct MachineSavedState: Sendable {
    var processor: ProcessorSavedState
    var controllers: ControllerSavedState
    /// The board's devices by their places.
    var board: BoardSavedState
    var pci: PCIBoardSavedState
    /// Copies of the memory regions.
    var memory: [MemoryRegion]
    /// What the firmware's answers are made from again.
    var commandLine: String
    var bootProtocol: String
    var entryPoint: UInt64
}

/// The devices of a board: each one's place, and its state as its `DeviceSavedState` encodes it.
struct BoardSavedState: Equatable, Sendable {
    var devices: [String: [UInt8]] = [:]

    mutating func add(_ place: String, _ state: some DeviceSavedState) { devices[place] = state.encoded() }

    func state<State: DeviceSavedState>(at place: String) throws(SavedStateError) -> State {
        guard let bytes = devices[place] else { throw .truncated(identifier: place) }
        return try State(encoded: bytes)
    }
}
