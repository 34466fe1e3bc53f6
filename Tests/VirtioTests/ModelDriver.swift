import DeviceModel
import Fuzzing
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Virtio

/// The board as one function sees it: remembers what comes.
final class RecordingConnection: PCIConnection {
    private struct State: Sendable {
        var messages: [PCIMessage] = []
        var pin = false
        var regions: [PCIRegion] = []
    }

    private let state = Mutex(State())

    func decode(_ regions: [PCIRegion]) { state.withLock { $0.regions = regions } }
    func setInterruptPin(_ level: Bool) { state.withLock { $0.pin = level } }
    func send(_ message: PCIMessage, vector: Int) {
        state.withLock { $0.messages.append(message) }
        bell.ring(1)
    }
    /// Rings with each message.
    let bell = FutexWord()

    var pin: Bool { state.withLock { $0.pin } }
    var regions: [PCIRegion] { state.withLock { $0.regions } }
    func takeMessages() -> [PCIMessage] {
        state.withLock { state in
            defer { state.messages = [] }
            return state.messages
        }
    }

    /// Those, and what comes until there are `count` of them, for up to a minute: a device that works on a thread of its
    /// own fills the ring before it interrupts.
    func waitForMessages(_ count: Int) -> [PCIMessage] {
        var messages = takeMessages()
        let limit = HostClock.monotonicNanoseconds + 60_000_000_000
        while messages.count < count, HostClock.monotonicNanoseconds < limit {
            HostClock.sleep(nanoseconds: 50_000)
            messages += takeMessages()
        }
        return messages
    }
}

/// How a driver lays out its queues and what it uses of them.
struct DriverStyle: Sendable, CustomStringConvertible {
    var isPacked = false
    var usesIndirect = false
    var hasEventIndex = false
    var isInOrder = false

    var features: UInt64 {
        VirtioFeature.version1 | VirtioFeature.ringReset | (isPacked ? VirtioFeature.packedRing : 0)
            | (usesIndirect ? VirtioFeature.indirectDescriptors : 0) | (hasEventIndex ? VirtioFeature.eventIndex : 0)
            | (isInOrder ? VirtioFeature.inOrder : 0)
    }

    var description: String {
        (isPacked ? "packed" : "split") + (usesIndirect ? " indirect" : "") + (hasEventIndex ? " event index" : "")
            + (isInOrder ? " in order" : "")
    }

    static let all: [DriverStyle] = (0..<16).map {
        DriverStyle(
            isPacked: $0 & 1 != 0, usesIndirect: $0 & 2 != 0, hasEventIndex: $0 & 4 != 0, isInOrder: $0 & 8 != 0)
    }
}

/// A driver written from the specification's driver sections, in the test's memory.
final class ModelDriver {
    static let memorySize = 4 << 20
    let memory: GuestMemory
    let transport: VirtioPCIDevice
    let connection = RecordingConnection()
    let style: DriverStyle
    private(set) var queues: [ModelQueue] = []
    /// What the device works with, for as long.
    var attachments: [AnyObject] = []

    static func makeMemory() throws -> GuestMemory {
        GuestMemory(regions: [
            MemoryRegion(base: GuestPhysicalAddress(0), mapping: try HostMapping(size: memorySize))
        ])
    }

    init(
        _ device: any VirtioDevice, style: DriverStyle = DriverStyle(), memory: GuestMemory? = nil,
        doorbellThread: DoorbellThread? = nil, log: DeviceLog? = nil
    ) throws {
        let memory = try memory ?? Self.makeMemory()
        self.memory = memory
        self.style = style
        transport = try VirtioPCIDevice(device, memory: memory, log: log, doorbellThread: doorbellThread)
        transport.function.connect(transport, to: connection)
        transport.function.writeConfiguration(
            UInt64(PCICommand.memorySpace | PCICommand.busMaster), at: PCIRegister.command, width: .word)
    }

    /// A driver that goes on where `other` was, with a device that was restored.
    init(continuing other: ModelDriver, with transport: VirtioPCIDevice) {
        memory = other.memory
        style = other.style
        self.transport = transport
        queues = other.queues
        transport.function.connect(transport, to: connection)
    }

    /// Without this, function and transport keep each other, and the device's files.
    deinit { transport.shutDown() }

    // MARK: Registers

    func read(_ register: UInt64, _ width: AccessWidth) -> UInt64 {
        guard case .value(let value) = transport.readRegister(bar: 0, offset: register, width: width) else {
            return .max
        }
        return value
    }

    func write(_ register: UInt64, _ width: AccessWidth, _ value: UInt64) {
        _ = transport.writeRegister(bar: 0, offset: register, width: width, value: value)
    }

    var status: UInt8 { UInt8(truncatingIfNeeded: read(VirtioCommonRegister.status, .byte)) }
    var needsReset: Bool { status & VirtioStatus.needsReset != 0 }

    func setStatus(_ status: UInt8) { write(VirtioCommonRegister.status, .byte, UInt64(status)) }

    var deviceFeatures: UInt64 {
        write(VirtioCommonRegister.deviceFeatureSelect, .double, 0)
        let low = read(VirtioCommonRegister.deviceFeature, .double)
        write(VirtioCommonRegister.deviceFeatureSelect, .double, 1)
        return low | read(VirtioCommonRegister.deviceFeature, .double) << 32
    }

    func setFeatures(_ features: UInt64) {
        for half in 0..<UInt64(2) {
            write(VirtioCommonRegister.driverFeatureSelect, .double, half)
            write(VirtioCommonRegister.driverFeature, .double, features >> (32 * half) & 0xFFFF_FFFF)
        }
    }

    // MARK: Start

    /// The steps of §3.1.1, with every queue of the device; false where the device refuses the features.
    @discardableResult
    func start(features: UInt64 = 0, queueSize: UInt16 = 16, interrupts: Bool = true) -> Bool {
        setStatus(0)
        setStatus(VirtioStatus.acknowledge)
        setStatus(VirtioStatus.acknowledge | VirtioStatus.driver)
        setFeatures(style.features | features)
        setStatus(VirtioStatus.acknowledge | VirtioStatus.driver | VirtioStatus.featuresOK)
        guard status & VirtioStatus.featuresOK != 0 else { return false }
        queues = []
        for index in 0..<Int(read(VirtioCommonRegister.queueCount, .word)) {
            let base = UInt64(0x10000 + index * 0x40000)
            queues.append(ModelQueue(index: index, base: base, size: queueSize, style: style, memory: memory))
            enable(index)
        }
        setStatus(
            VirtioStatus.acknowledge | VirtioStatus.driver | VirtioStatus.featuresOK | VirtioStatus.driverOK)
        return true
    }

    func enable(_ index: Int) {
        let queue = queues[index]
        enable(index, size: queue.size, [queue.descriptors, queue.driverArea, queue.deviceArea])
    }

    private func enable(_ index: Int, size: UInt16, _ addresses: [UInt64]) {
        write(VirtioCommonRegister.queueSelect, .word, UInt64(index))
        write(VirtioCommonRegister.queueSize, .word, UInt64(size))
        let registers = [
            VirtioCommonRegister.queueDescriptors, VirtioCommonRegister.queueDriver, VirtioCommonRegister.queueDevice,
        ]
        for (register, address) in zip(registers, addresses) {
            write(register, .double, address & 0xFFFF_FFFF)
            write(register + 4, .double, address >> 32)
        }
        write(VirtioCommonRegister.queueEnable, .word, 1)
    }

    /// As `enable`, with one of descriptors, driver area and device area elsewhere.
    func enable(_ index: Int, part: Int, at address: UInt64) {
        let queue = queues[index]
        var addresses = [queue.descriptors, queue.driverArea, queue.deviceArea]
        addresses[part] = address
        enable(index, size: queue.size, addresses)
    }

    /// Resets a queue and brings it back, empty (§2.6.1).
    func resetQueue(_ index: Int) {
        write(VirtioCommonRegister.queueSelect, .word, UInt64(index))
        write(VirtioCommonRegister.queueReset, .word, 1)
        guard queues.indices.contains(index) else { return }
        let old = queues[index]
        queues[index] = ModelQueue(
            index: index, base: old.descriptors, size: old.size, style: style, memory: memory)
        enable(index)
    }

    /// From now on interrupts are messages: 0 for the configuration, 1 for queue 0, and so on.
    func enableVectors() throws {
        let function = transport.function
        var capability = Int(function.readConfiguration(at: 0x34, width: .byte))
        while capability != 0, function.readConfiguration(at: capability, width: .byte) != 0x11 {
            capability = Int(function.readConfiguration(at: capability + 1, width: .byte))
        }
        try #require(capability != 0)
        function.writeConfiguration(0x8000, at: capability + 2, width: .word)
        let table = try #require(connection.regions.last)
        for vector in 0...UInt64(queues.count) {
            _ = table.device.write(offset: vector * 16, width: .quad, value: 0xFEE0_0000)
            _ = table.device.write(offset: vector * 16 + 8, width: .quad, value: vector)
        }
        write(VirtioCommonRegister.configurationVector, .word, 0)
        for queue in queues.indices {
            write(VirtioCommonRegister.queueSelect, .word, UInt64(queue))
            write(VirtioCommonRegister.queueVector, .word, UInt64(queue + 1))
        }
    }

    func notify(_ index: Int = 0) { write(VirtioPCILayout.notify + UInt64(index) * 4, .word, UInt64(index)) }

    /// Submits one buffer, notifies, and waits until the device has used it.
    func request(_ parts: [ModelQueue.Part], queue: Int = 0) throws -> ModelQueue.Used? {
        try queues[queue].submit(parts)
        notify(queue)
        return waitForUsed(queue, count: 1).first
    }

    func waitForUsed(_ index: Int = 0, count: Int) -> [ModelQueue.Used] {
        var used: [ModelQueue.Used] = []
        let limit = HostClock.monotonicNanoseconds + 60_000_000_000
        while used.count < count, HostClock.monotonicNanoseconds < limit, !needsReset {
            used += (try? queues[index].collect()) ?? []
            if used.count < count { HostClock.sleep(nanoseconds: 50_000) }
        }
        return used
    }
}

/// The driver's side of one queue (§2.7, §2.8).
final class ModelQueue {
    enum Part {
        case readable([UInt8])
        case writable(Int)
    }

    struct Used: Equatable {
        var token: Int
        var written: UInt32
        var bytes: [UInt8]
    }

    private struct Buffer {
        var token: Int
        var writable: [(address: UInt64, count: Int)]
        var entries: UInt16
    }

    let index: Int
    let size: UInt16
    let descriptors: UInt64
    let driverArea: UInt64
    let deviceArea: UInt64
    private let style: DriverStyle
    private let memory: GuestMemory
    private let data: UInt64
    private var nextData: UInt64 = 0
    /// Whole sectors start at a page, as O_DIRECT wants it.
    var alignsSectors = false
    private var nextToken = 0
    private var free: [UInt16]
    private var outstanding: [UInt16: Buffer] = [:]
    // Split
    private var availableIndex: UInt16 = 0
    private var usedIndex: UInt16 = 0
    // Packed
    private var nextAvailable = PackedRing.Position()
    private var nextUsed = PackedRing.Position()
    private var freeEntries: UInt16

    init(
        index: Int, base: UInt64, size: UInt16, style: DriverStyle, memory: GuestMemory,
        addresses: QueueAddresses? = nil
    ) {
        self.index = index
        self.size = size
        self.style = style
        self.memory = memory
        descriptors = addresses?.descriptors ?? base
        driverArea = addresses?.driver ?? base + 0x4000
        deviceArea = addresses?.device ?? base + 0x6000
        data = base + 0x10000
        free = Array((0..<size).reversed())
        freeEntries = size
        for offset in stride(from: UInt64(0), to: 0x8000, by: 8) {
            try? memory.store(UInt64(0), at: GuestPhysicalAddress(base + offset))
        }
    }

    var freeCount: Int { style.isPacked ? min(Int(freeEntries), free.count) : free.count }

    private func allocate(_ count: Int) -> UInt64 {
        // 128 KiB of data for each queue, used in turn.
        if alignsSectors, count % 512 == 0 { nextData = (nextData + 4095) & ~4095 }
        if nextData + UInt64(count) > 0x28000 { nextData = 0 }
        defer { nextData += UInt64(count + 15) & ~15 }
        return data + nextData
    }

    private func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, _ address: UInt64) throws {
        try memory.store(value, at: GuestPhysicalAddress(address))
    }

    private func load<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, _ address: UInt64) throws -> T {
        try memory.load(T.self, at: GuestPhysicalAddress(address))
    }

    /// Makes a buffer available; false when there is no room.
    @discardableResult
    func submit(_ parts: [Part]) throws -> Bool {
        var placed: [(address: UInt64, count: Int, isWritable: Bool)] = []
        for part in parts {
            switch part {
            case .readable(let bytes):
                let address = allocate(bytes.count)
                try memory.write(bytes, at: GuestPhysicalAddress(address))
                placed.append((address, bytes.count, false))
            case .writable(let count):
                let address = allocate(count)
                try memory.write([UInt8](repeating: 0xEE, count: count), at: GuestPhysicalAddress(address))
                placed.append((address, count, true))
            }
        }
        let entries = style.usesIndirect ? 1 : placed.count
        guard freeCount >= entries else { return false }
        let token = nextToken
        nextToken += 1
        let writable = placed.filter(\.isWritable).map { ($0.address, $0.count) }
        var table: UInt64 = 0
        if style.usesIndirect {
            table = allocate(16 * placed.count)
            for (index, part) in placed.enumerated() {
                let isLast = index == placed.count - 1
                let flags: UInt16 = (part.isWritable ? 2 : 0) | (isLast || style.isPacked ? 0 : 1)
                try storeDescriptor(
                    table + UInt64(index * 16), part.address, part.count,
                    style.isPacked ? 0 : flags, style.isPacked ? flags : UInt16(index + 1))
            }
            placed = [(table, 16 * placed.count, false)]
        }
        if style.isPacked {
            try submitPacked(placed, token, writable)
        } else {
            try submitSplit(placed, token, writable)
        }
        return true
    }

    private func storeDescriptor(
        _ place: UInt64, _ address: UInt64, _ count: Int, _ third: UInt16, _ fourth: UInt16
    ) throws {
        try store(address, place)
        try store(UInt32(count), place + 8)
        try store(third, place + 12)
        try store(fourth, place + 14)
    }

    private var indirectFlag: UInt16 { style.usesIndirect ? 4 : 0 }

    private func submitSplit(
        _ parts: [(address: UInt64, count: Int, isWritable: Bool)], _ token: Int, _ writable: [(UInt64, Int)]
    ) throws {
        let numbers = parts.map { _ in free.removeLast() }
        for (index, part) in parts.enumerated() {
            let isLast = index == parts.count - 1
            let flags = (part.isWritable ? 2 : 0) | (isLast ? 0 : 1) | indirectFlag
            try storeDescriptor(
                descriptors + UInt64(numbers[index]) * 16, part.address, part.count, flags,
                isLast ? 0 : numbers[index + 1])
        }
        outstanding[numbers[0]] = Buffer(token: token, writable: writable, entries: UInt16(parts.count))
        chains[numbers[0]] = numbers
        try store(numbers[0], driverArea + 4 + 2 * UInt64(availableIndex % size))
        availableIndex &+= 1
        // Wanting an interrupt for the next buffer.
        try store(usedIndex, driverArea + 4 + 2 * UInt64(size))
        try store(availableIndex, driverArea + 2)
    }

    private var chains: [UInt16: [UInt16]] = [:]

    private func submitPacked(
        _ parts: [(address: UInt64, count: Int, isWritable: Bool)], _ token: Int, _ writable: [(UInt64, Int)]
    ) throws {
        let identifier = free.removeLast()
        outstanding[identifier] = Buffer(token: token, writable: writable, entries: UInt16(parts.count))
        freeEntries -= UInt16(parts.count)
        let first = nextAvailable
        var firstFlags: UInt16 = 0
        for (index, part) in parts.enumerated() {
            let isLast = index == parts.count - 1
            let wrap: UInt16 = nextAvailable.wrap ? 1 << 7 : 1 << 15
            let flags = (part.isWritable ? 2 : 0) | (isLast ? 0 : 1) | indirectFlag | wrap
            let place = descriptors + UInt64(nextAvailable.index) * 16
            try store(part.address, place)
            try store(UInt32(part.count), place + 8)
            try store(identifier, place + 12)
            if index == 0 { firstFlags = flags } else { try store(flags, place + 14) }
            nextAvailable.advance(by: 1, size: size)
        }
        try store(nextUsed.bits, driverArea)
        try store(UInt16(style.hasEventIndex ? 2 : 0), driverArea + 2)
        // The first entry last: with it the whole chain is available.
        try store(firstFlags, descriptors + UInt64(first.index) * 16 + 14)
    }

    /// What the device has used since the last call.
    func collect() throws -> [Used] {
        var result: [Used] = []
        while let (identifier, written) = try style.isPacked ? nextPacked() : nextSplit() {
            guard let buffer = outstanding.removeValue(forKey: identifier) else {
                throw QueueFault.notOutstanding(identifier)
            }
            if style.isPacked {
                nextUsed.advance(by: buffer.entries, size: size)
                freeEntries += buffer.entries
                free.append(identifier)
            } else {
                free += chains.removeValue(forKey: identifier) ?? []
            }
            var bytes: [UInt8] = []
            for (address, count) in buffer.writable {
                bytes += try memory.read(count: count, at: GuestPhysicalAddress(address))
            }
            result.append(Used(token: buffer.token, written: written, bytes: bytes))
        }
        return result
    }

    private func nextSplit() throws -> (UInt16, UInt32)? {
        guard try load(UInt16.self, deviceArea + 2) != usedIndex else { return nil }
        let entry = deviceArea + 4 + 8 * UInt64(usedIndex % size)
        usedIndex &+= 1
        return (UInt16(truncatingIfNeeded: try load(UInt32.self, entry)), try load(UInt32.self, entry + 4))
    }

    private func nextPacked() throws -> (UInt16, UInt32)? {
        let place = descriptors + UInt64(nextUsed.index) * 16
        let flags = try load(UInt16.self, place + 14)
        guard (flags & 1 << 7 != 0) == nextUsed.wrap, (flags & 1 << 15 != 0) == nextUsed.wrap else { return nil }
        return (try load(UInt16.self, place + 12), try load(UInt32.self, place + 8))
    }
}

/// Answers each buffer with its readable bytes in reverse; holds buffers back when told to, and then answers them in
/// another order.
final class EchoDevice: VirtioDevice {
    private struct State: Sendable {
        var context: VirtioContext?
        var held: [(Int, DescriptorChain)] = []
        var holds = false
        var starts = 0
        var resets = 0
    }

    private let state = Mutex(State())
    let queueSizes: [UInt16]
    let kind = VirtioKind(name: "echo", identifier: 0x3F, pciClass: 0xFF_0000)
    let features: UInt64 = 1
    let configuration: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]

    init(queueCount: Int = 1) { queueSizes = Array(repeating: 64, count: queueCount) }

    var holds: Bool {
        get { state.withLock { $0.holds } }
        set { state.withLock { $0.holds = newValue } }
    }
    var counts: (starts: Int, resets: Int) { state.withLock { ($0.starts, $0.resets) } }
    var context: VirtioContext? { state.withLock { $0.context } }

    func start(_ context: VirtioContext) {
        state.withLock {
            $0.context = context
            $0.starts += 1
        }
    }

    /// Held buffers are untouched: they go back to the ring, the last one first.
    func stop() {
        let held = state.withLock { state in
            defer { state.held = [] }
            return state.held
        }
        guard let context else { return }
        for (queue, chain) in held.reversed() { context.queues[queue].putBack(chain) }
        state.withLock { $0.context = nil }
    }

    func queueWasReset(_ queue: Int) { state.withLock { $0.held.removeAll { $0.0 == queue } } }
    func reset() { state.withLock { $0.resets += 1 } }

    func notify(_ queue: Int) -> Bool {
        guard let context else { return false }
        return context.queues[queue].drain { chain in
            if holds {
                state.withLock { $0.held.append((queue, chain)) }
            } else {
                answer(queue, chain, context)
            }
        }
    }

    private func answer(_ queue: Int, _ chain: DescriptorChain, _ context: VirtioContext) {
        do {
            let bytes = try chain.readable.read(from: context.memory, limit: 1 << 16)
            let written = try chain.writable.write(bytes.reversed(), to: context.memory)
            context.queues[queue].complete(chain, written: written)
        } catch {
            context.fail("\(error)")
        }
    }

    /// Answers what was held, in an order that `generator` chooses.
    func release(using generator: inout SeededGenerator) {
        let held = state.withLock { state in
            defer { state.held = [] }
            return state.held
        }
        guard let context else { return }
        for (queue, chain) in held.shuffled(using: &generator) { answer(queue, chain, context) }
    }
}
