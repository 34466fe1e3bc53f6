public import DeviceModel
public import GuestMemory
internal import Synchronization
internal import X86

/// A named file of fw_cfg's directory.
public struct FirmwareFile: Sendable {
    /// At most 55 bytes; the rest is cut.
    public var name: String
    public var bytes: [UInt8]

    public init(name: String, bytes: [UInt8]) {
        self.name = name
        self.bytes = bytes
    }
}

/// QEMU's fw_cfg: what firmware and bare-metal programs ask the machine about itself, byte by byte through ports
/// 0x510/0x511 or by DMA through 0x514.
public final class FirmwareConfiguration: SavableDevice {
    /// What there is to ask for.
    public struct Contents: Sendable {
        public var layout: PhysicalMemoryMap
        public var cpuCount: Int
        public var kernel: [UInt8]
        public var initrd: [UInt8]
        public var commandLine: String
        public var files: [FirmwareFile]

        public init(
            layout: PhysicalMemoryMap, cpuCount: Int, kernel: [UInt8] = [], initrd: [UInt8] = [],
            commandLine: String = "", files: [FirmwareFile] = []
        ) {
            self.layout = layout
            self.cpuCount = cpuCount
            self.kernel = kernel
            self.initrd = initrd
            self.commandLine = commandLine
            self.files = files
        }
    }

    // Configuration
    private let items: [UInt16: [UInt8]]
    // Glue
    private let memory: GuestMemory
    // Volatile state
    private let state: Mutex<FirmwareConfigurationState>

    public init(memory: GuestMemory, contents: Contents) {
        self.memory = memory
        items = Self.items(contents)
        state = Mutex(FirmwareConfigurationState())
    }

    public init(restoring saved: FirmwareConfigurationSavedState, memory: GuestMemory, contents: Contents) {
        self.memory = memory
        items = Self.items(contents)
        state = Mutex(FirmwareConfigurationState(saved))
    }

    public var attachments: [BusAttachment] {
        [
            BusAttachment(
                name: "fw_cfg", base: FirmwareConfigurationPort.base, size: FirmwareConfigurationPort.size,
                device: self)
        ]
    }

    public func read(offset: UInt64, width: AccessWidth) -> ReadResult {
        switch (offset, width) {
        case (FirmwareConfigurationPort.data, .byte):
            return state.withLock { state in
                guard let item = items[state.key], let position = Int(exactly: state.position), position < item.count
                else { return .value(0) }
                state.position &+= 1
                return .value(UInt64(item[position]))
            }
        case (FirmwareConfigurationPort.dmaHigh..<FirmwareConfigurationPort.size, _):
            let start = Int(offset - FirmwareConfigurationPort.dmaHigh)
            guard start % width.rawValue == 0 else { return .rejected(.unaligned) }
            let bytes = FirmwareConfigurationPort.dmaSignature[start...].prefix(width.rawValue)
            return .value(bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) })
        default: return .rejected(.wrongWidth)
        }
    }

    public func write(offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        switch (offset, width) {
        case (FirmwareConfigurationPort.selector, .word):
            state.withLock { $0.select(UInt16(truncatingIfNeeded: value)) }
        case (FirmwareConfigurationPort.data, .byte): break  // items have been read-only since QEMU 2.4
        case (FirmwareConfigurationPort.dmaHigh, .double):
            let high = UInt32(truncatingIfNeeded: value).byteSwapped
            state.withLock { $0.dmaHigh = high }
        case (FirmwareConfigurationPort.dmaLow, .double):
            let low = UInt32(truncatingIfNeeded: value).byteSwapped
            let address = state.withLock { state in
                defer { state.dmaHigh = 0 }
                return UInt64(state.dmaHigh) << 32 | UInt64(low)
            }
            runDMA(descriptor: GuestPhysicalAddress(address))
        default: return .rejected(.wrongWidth)
        }
        return .done
    }

    public func save() -> FirmwareConfigurationSavedState {
        state.withLock { FirmwareConfigurationSavedState($0) }
    }

    /// One FWCfgDmaAccess: control, length and address, big-endian, read once. A descriptor outside RAM has nowhere
    /// to put an error and is dropped.
    private func runDMA(descriptor: GuestPhysicalAddress) {
        guard let bytes = try? memory.read(count: 16, at: descriptor), let control: UInt32 = bytes.load(at: 0),
            let length: UInt32 = bytes.load(at: 4), let address: UInt64 = bytes.load(at: 8)
        else { return }
        let isDone = transfer(
            control: control.byteSwapped, length: length.byteSwapped,
            address: GuestPhysicalAddress(address.byteSwapped))
        try? memory.store((isDone ? 0 : FirmwareConfigurationDMA.error).byteSwapped, at: descriptor)
    }

    /// False: the error bit. The position moves under the lock, the bytes after it.
    private func transfer(control: UInt32, length: UInt32, address: GuestPhysicalAddress) -> Bool {
        let (item, position) = state.withLock { state in
            if control & FirmwareConfigurationDMA.select != 0 {
                state.select(UInt16(truncatingIfNeeded: control >> 16))
            }
            let position = state.position
            let moves = FirmwareConfigurationDMA.read | FirmwareConfigurationDMA.skip
            if control & moves != 0 { state.advance(by: length, limit: items[state.key]?.count ?? 0) }
            return (items[state.key] ?? [], position)
        }
        if control & FirmwareConfigurationDMA.read != 0 {
            return copy(item[min(Int(position), item.count)...], length: Int(length), to: address)
        }
        // No item can be written.
        return control & FirmwareConfigurationDMA.write == 0
    }

    /// The item's bytes and then zeros, as many as were asked for; nothing when they do not all fall into RAM.
    private func copy(_ source: ArraySlice<UInt8>, length: Int, to address: GuestPhysicalAddress) -> Bool {
        guard isRAM(address, length: length) else { return false }
        let zeros = [UInt8](repeating: 0, count: min(length, FirmwareConfigurationDMA.chunk))
        var done = 0
        do throws(GuestMemoryFault) {
            while done < length {
                var count = min(length - done, FirmwareConfigurationDMA.chunk)
                if done < source.count {
                    count = min(count, source.count - done)
                    try memory.write(source.dropFirst(done).prefix(count), at: address + UInt64(done))
                } else {
                    try memory.write(zeros.prefix(count), at: address + UInt64(done))
                }
                done += count
            }
            return true
        } catch {
            return false
        }
    }

    private func isRAM(_ address: GuestPhysicalAddress, length: Int) -> Bool {
        memory.regions.contains { region in
            let offset = address.rawValue &- region.base.rawValue
            return !region.isReadOnly && offset < region.size && UInt64(length) <= region.size - offset
        }
    }
}

struct FirmwareConfigurationState: Sendable {
    var key: UInt16 = 0
    var position: UInt32 = 0
    var dmaHigh: UInt32 = 0

    mutating func select(_ key: UInt16) {
        // Bit 14 asked for writing, which is no more; bit 15 is for architecture-specific keys.
        self.key = key & ~0x4000
        position = 0
    }

    mutating func advance(by count: UInt32, limit: Int) {
        position = UInt32(min(UInt64(position) + UInt64(count), UInt64(limit)))
    }
}
