internal import Synchronization

/// What a PCI device does behind its function: registers in the BARs, and a reset. Called without any lock of the
/// function.
public protocol PCIDevice: AnyObject, Sendable {
    func readRegister(bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult
    func writeRegister(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult
    /// Function-level reset (PCIe 5.0 §6.6.2): as at power-on, and nothing of before touches memory any more.
    func resetFunction()
    /// A register of a vendor-specific capability that is more than a stored value. nil, false: it is none.
    func readCapability(at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace) -> UInt64?
    func writeCapability(_ value: UInt64, at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace) -> Bool
}

extension PCIDevice {
    public func readCapability(at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace) -> UInt64? { nil }
    public func writeCapability(
        _ value: UInt64, at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace
    ) -> Bool { false }
}

/// What a function is: its identity and the resources it asks for.
public struct PCIFunctionDescription: Sendable {
    public var name: String
    public var vendorID: UInt16
    public var deviceID: UInt16
    public var revision: UInt8 = 0
    /// Base class, subclass, programming interface, from the highest byte to the lowest of 24 bits.
    public var classCode: UInt32
    public var subsystemVendorID: UInt16 = 0
    public var subsystemID: UInt16 = 0
    public var bars: [PCIBaseAddress] = []
    /// nil: the function has no such messages.
    public var msix: MSIXLayout?
    public var msiVectorCount: Int?
    public var hasInterruptPin = false
    public var port: PCIExpressPort = .integratedEndpoint
    public var doorbells: [Int: [PCIDoorbell]] = [:]

    /// Where the table and the pending bits are; both on pages of their own, as drivers map them.
    public struct MSIXLayout: Sendable, Equatable {
        public var vectorCount: Int
        public var bar: Int
        public var tableOffset: UInt64
        public var pendingOffset: UInt64

        public init(vectorCount: Int, bar: Int, tableOffset: UInt64, pendingOffset: UInt64) {
            self.vectorCount = vectorCount
            self.bar = bar
            self.tableOffset = tableOffset
            self.pendingOffset = pendingOffset
        }
    }

    public init(name: String, vendorID: UInt16, deviceID: UInt16, classCode: UInt32) {
        self.name = name
        self.vendorID = vendorID
        self.deviceID = deviceID
        self.classCode = classCode
    }
}

/// A function with a type 0 header: configuration space, base addresses, MSI, MSI-X, the interrupt pin and
/// function-level reset. What it does beyond that is its `PCIDevice`'s.
public final class PCIFunction: PCIConfigurable {
    // Configuration
    public let description: PCIFunctionDescription
    private let initial: State
    private let expressOffset: Int
    private let msixOffset: Int?
    // Volatile state
    private let state: Mutex<State>
    // Glue. Lock order: `wiring` or the pin's driver, then `state`.
    private let wiring = Mutex(Wiring())
    private let pin = Mutex(false)

    private struct Wiring: Sendable {
        var device: (any PCIDevice)?
        var connection: (any PCIConnection)?
    }

    struct State: Sendable, Equatable {
        var space = PCIConfigurationSpace()
        var msix: MSIXTable?
        var msi: MSIRegisters?
        var wantsPin = false

        func command(_ bit: UInt16) -> Bool { space.value(UInt16.self, at: PCIRegister.command) & bit != 0 }
        var usesMessages: Bool { msix?.isEnabled == true || msi?.isEnabled(space) == true }
        /// §7.5.1.1.3: the pin is not used while it is disabled or messages are enabled.
        var pinLevel: Bool { wantsPin && !usesMessages && !command(PCICommand.interruptDisable) }
    }

    /// Registers of the MSI-X capability (§7.7.2).
    private enum MSIXCapability {
        static let size = 12
        static let control = 2
        static let table = 4
        static let pending = 8
        static let enable: UInt16 = 1 << 15
        static let functionMask: UInt16 = 1 << 14
    }

    /// `extend` adds the device's own capabilities.
    public init(_ description: PCIFunctionDescription, extend: (inout PCIConfigurationSpace) -> Void = { _ in }) {
        self.description = description
        var state = State()
        Self.writeHeader(description, into: &state.space)
        if let count = description.msiVectorCount { state.msi = MSIRegisters(&state.space, vectorCount: count) }
        if let layout = description.msix {
            let offset = state.space.addCapability(
                PCICapability.messageSignalledExtended, size: MSIXCapability.size)
            state.space.set(
                UInt16(layout.vectorCount - 1), at: offset + MSIXCapability.control,
                writable: MSIXCapability.enable | MSIXCapability.functionMask)
            state.space.set(UInt32(layout.tableOffset) | UInt32(layout.bar), at: offset + MSIXCapability.table)
            state.space.set(UInt32(layout.pendingOffset) | UInt32(layout.bar), at: offset + MSIXCapability.pending)
            state.msix = MSIXTable(count: layout.vectorCount)
            msixOffset = offset
        } else {
            msixOffset = nil
        }
        expressOffset = state.space.addExpressCapability(description.port)
        extend(&state.space)
        initial = state
        self.state = Mutex(state)
    }

    private static func writeHeader(_ description: PCIFunctionDescription, into space: inout PCIConfigurationSpace) {
        space.set(description.vendorID, at: PCIRegister.vendorID)
        space.set(description.deviceID, at: PCIRegister.deviceID)
        space.set(UInt16(0), at: PCIRegister.command, writable: PCICommand.writable)
        space.setWriteOneToClear(PCIStatus.errors, at: PCIRegister.status)
        space.set(description.revision, at: PCIRegister.revision)
        space.set(UInt16(truncatingIfNeeded: description.classCode), at: PCIRegister.classCode)
        space.set(UInt8(truncatingIfNeeded: description.classCode >> 16), at: PCIRegister.classCode + 2)
        space.set(description.subsystemVendorID, at: PCIRegister.subsystemVendorID)
        space.set(description.subsystemID, at: PCIRegister.subsystemID)
        space.set(UInt8(0), at: 0x0C, writable: .max)  // cache line size: kept for software (§7.5.1.1.7)
        space.set(UInt8(0), at: PCIRegister.interruptLine, writable: .max)
        space.set(UInt8(description.hasInterruptPin ? 1 : 0), at: PCIRegister.interruptPin)
        for bar in description.bars {
            let offset = PCIRegister.baseAddress + 4 * bar.index
            // Size: the bits that stay zero when all ones are written (§7.5.1.2.1).
            let mask = ~(bar.size - 1)
            space.set(UInt32(bar.flags), at: offset, writable: UInt32(truncatingIfNeeded: mask))
            if bar.kind == .memory64 { space.set(UInt32(0), at: offset + 4, writable: UInt32(mask >> 32)) }
        }
    }

    // MARK: Wiring

    /// Puts the function between its device and the board.
    public func connect(_ device: some PCIDevice, to connection: some PCIConnection) {
        wiring.withLock {
            $0.device = device
            $0.connection = connection
        }
        updateDecoders()
        updatePin()
    }

    /// Lets go of both, which hold the function: the machine is ending.
    public func disconnect() {
        wiring.withLock { $0 = Wiring() }
    }

    /// As a firmware does before it starts a system: an address in a base address register.
    public func assign(_ base: UInt64, to bar: PCIBaseAddress) {
        state.withLock { state in
            let offset = PCIRegister.baseAddress + 4 * bar.index
            state.space.write(base, at: offset, width: bar.kind == .memory64 ? .quad : .double)
        }
    }

    /// The number that drivers without ACPI take for the interrupt.
    public func assignInterruptLine(_ line: UInt8) {
        state.withLock { $0.space.write(UInt64(line), at: PCIRegister.interruptLine, width: .byte) }
    }

    // MARK: Configuration space

    public func readConfiguration(at offset: Int, width: AccessWidth) -> UInt64 {
        let space = state.withLock { $0.space }
        if offset >= 0x40, let value = device?.readCapability(at: offset, width: width, in: space) { return value }
        return space.read(at: offset, width: width)
    }

    public func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {
        let changed = state.withLock { state in
            state.space.write(value, at: offset, width: width)
            reflectMSIX(&state)
            return state
        }
        if offset >= 0x40, device?.writeCapability(value, at: offset, width: width, in: changed.space) == true {
            return
        }
        let place = offset - (expressOffset + PCIExpress.deviceControl)
        // The bit reads as zero: it is seen in what was written.
        if (0...1).contains(place) {
            let written = place == 0 ? value : value << 8
            if UInt16(truncatingIfNeeded: written) & PCIExpress.initiateReset != 0 { return reset() }
        }
        if offset < PCIRegister.baseAddress + 24 { updateDecoders() }
        updatePin()
        sendFreed()
    }

    private func reflectMSIX(_ state: inout State) {
        guard let msixOffset else { return }
        let control: UInt16 = state.space.value(at: msixOffset + MSIXCapability.control)
        state.msix?.isEnabled = control & MSIXCapability.enable != 0
        state.msix?.isFunctionMasked = control & MSIXCapability.functionMask != 0
    }

    private var device: (any PCIDevice)? { wiring.withLock { $0.device } }
    private var connection: (any PCIConnection)? { wiring.withLock { $0.connection } }

    /// Function-level reset; also what a reset of the whole machine does to a function.
    public func reset() {
        device?.resetFunction()
        state.withLock { $0 = initial }
        updateDecoders()
        updatePin()
    }

    // MARK: Base addresses

    /// What the function decodes by its registers.
    private func regions(_ state: State) -> [PCIRegion] {
        description.bars.compactMap { bar in
            let offset = PCIRegister.baseAddress + 4 * bar.index
            let isPortIO = bar.kind == .io
            guard state.command(isPortIO ? PCICommand.ioSpace : PCICommand.memorySpace) else { return nil }
            let low = UInt64(state.space.value(UInt32.self, at: offset))
            let high = bar.kind == .memory64 ? UInt64(state.space.value(UInt32.self, at: offset + 4)) : 0
            let base = (high << 32 | low) & ~(bar.size - 1)
            return PCIRegion(
                name: description.name, isPortIO: isPortIO, base: base, size: bar.size,
                device: PCIBarWindow(function: self, bar: bar.index), doorbells: description.doorbells[bar.index] ?? [])
        }
    }

    /// Computed anew under a lock of its own, so that of two vCPUs' changes the last one stays.
    private func updateDecoders() {
        wiring.withLock { wiring in
            guard let connection = wiring.connection else { return }
            connection.decode(regions(state.withLock { $0 }))
        }
    }

    fileprivate func readBar(_ bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult {
        guard let layout = description.msix, layout.bar == bar else {
            return device?.readRegister(bar: bar, offset: offset, width: width) ?? .rejected(.noSuchRegister)
        }
        let table = offset &- layout.tableOffset
        let pending = offset &- layout.pendingOffset
        let tableSize = UInt64(layout.vectorCount * MSIXTable.entrySize)
        guard table < tableSize || pending < 4096 else {
            return device?.readRegister(bar: bar, offset: offset, width: width) ?? .rejected(.noSuchRegister)
        }
        guard width == .double || width == .quad, offset % UInt64(width.rawValue) == 0 else {
            return .rejected(.wrongWidth)
        }
        return state.withLock { state in
            func register(_ delta: UInt64) -> UInt64 {
                UInt64(
                    (table < tableSize
                        ? state.msix?.readTable(table &+ delta) : state.msix?.readPending(pending &+ delta))
                        ?? 0)
            }
            return .value(width == .quad ? register(0) | register(4) << 32 : register(0))
        }
    }

    fileprivate func writeBar(_ bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard let layout = description.msix, layout.bar == bar else {
            return device?.writeRegister(bar: bar, offset: offset, width: width, value: value)
                ?? .rejected(.noSuchRegister)
        }
        let table = offset &- layout.tableOffset
        guard table < UInt64(layout.vectorCount * MSIXTable.entrySize) else {
            // The pending bits are read-only.
            if offset &- layout.pendingOffset < 4096 { return .done }
            return device?.writeRegister(bar: bar, offset: offset, width: width, value: value)
                ?? .rejected(.noSuchRegister)
        }
        guard width == .double || width == .quad, offset % UInt64(width.rawValue) == 0 else {
            return .rejected(.wrongWidth)
        }
        state.withLock { state in
            state.msix?.writeTable(table, UInt32(truncatingIfNeeded: value))
            if width == .quad { state.msix?.writeTable(table &+ 4, UInt32(truncatingIfNeeded: value >> 32)) }
        }
        sendFreed()
        return .done
    }

    // MARK: Interrupts

    /// Whether MSI-X is on: the device then signals vectors, otherwise it drives its pin.
    public var usesMessageVectors: Bool { state.withLock { $0.msix?.isEnabled == true } }

    /// Signals a vector of MSI-X or MSI; without either, or without bus mastering (§7.5.1.1.3), nothing.
    public func signal(vector: Int) {
        let message: PCIMessage? = state.withLock { state in
            guard state.command(PCICommand.busMaster) else { return nil }
            if state.msix?.isEnabled == true { return state.msix?.signal(vector) }
            guard state.msi?.isEnabled(state.space) == true else { return nil }
            return state.msi?.signal(vector, state.space)
        }
        if let message { connection?.send(message, vector: vector) }
    }

    private func sendFreed() {
        let messages = state.withLock { state in
            (state.msix?.takeFreed() ?? []) + (state.msi?.takeFreed(state.space) ?? [])
        }
        guard !messages.isEmpty, let connection else { return }
        for freed in messages { connection.send(freed.message, vector: freed.vector) }
    }

    /// The level that the device wants on its interrupt pin.
    public func setInterruptPin(_ level: Bool) {
        state.withLock { state in
            state.wantsPin = level && description.hasInterruptPin
            state.space.drive(PCIStatus.interrupt, state.wantsPin, at: PCIRegister.status)
        }
        updatePin()
    }

    private func updatePin() {
        pin.withLock { last in
            let level = state.withLock { $0.pinLevel }
            guard level != last else { return }
            last = level
            connection?.setInterruptPin(level)
        }
    }

    // MARK: Saved state

    public func save() -> PCIFunctionSavedState { state.withLock { PCIFunctionSavedState($0) } }

    /// Before `connect`.
    public func restore(_ saved: PCIFunctionSavedState) throws(SavedStateError) {
        var restored = initial
        try saved.apply(to: &restored)
        reflectMSIX(&restored)
        let result = restored
        state.withLock { $0 = result }
    }
}

/// One BAR of a function on a bus.
private final class PCIBarWindow: BusDevice {
    let function: PCIFunction
    let bar: Int

    init(function: PCIFunction, bar: Int) {
        self.function = function
        self.bar = bar
    }

    func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        function.readBar(bar, offset: offset, width: width)
    }

    func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        function.writeBar(bar, offset: offset, width: width, value: value)
    }
}
