public import DeviceModel
public import GuestMemory
public import Host
internal import Synchronization

/// A virtio device as a PCI function (Virtio 1.2 §4.1); a transitional one has the legacy interface, too.
///
/// Locks, outermost first: `control` (status changes, one at a time), then `state`. Neither is held while the function
/// or the engine is called; `state` not while the device is.
public final class VirtioPCIDevice: PCIDevice {
    // Configuration
    public let device: any VirtioDevice
    private let offered: UInt64
    private let bar: Int
    let maximumSizes: [UInt16]
    private let capabilityOffset: Int
    // Glue
    public let function: PCIFunction
    let queues: [Virtqueue]
    private let memory: GuestMemory
    private let doorbells: QueueDoorbells
    private let gate = ActivityGate()
    private let log: DeviceLog
    private let relay: Relay
    // Volatile state
    let control = Mutex<Void>(())
    let state: Mutex<VirtioPCIState>
    private let pin = Mutex<Void>(())
    /// Under `control`: nothing starts between `pause` and `resume`.
    let isPaused = Atomic<Bool>(false)

    /// What queues call; they are made before their transport is.
    private final class Relay: Sendable {
        private struct Target: Sendable {
            weak var transport: VirtioPCIDevice?
        }

        private let target = Mutex(Target())
        var transport: VirtioPCIDevice? {
            get { target.withLock { $0.transport } }
            set { target.withLock { $0.transport = newValue } }
        }
    }

    /// With `doorbellThread` the notification registers are offered to the engine as ioeventfds.
    public convenience init(
        _ device: any VirtioDevice, memory: GuestMemory, log: DeviceLog? = nil,
        doorbellThread: DoorbellThread? = nil, port: PCIExpressPort = .integratedEndpoint,
        isTransitional: Bool = false
    ) throws(HostError) {
        try self.init(
            device, state: VirtioPCIState(queueSizes: device.queueSizes), memory: memory, log: log,
            doorbellThread: doorbellThread, port: port, isTransitional: isTransitional)
    }

    private init(
        _ device: any VirtioDevice, state: VirtioPCIState, memory: GuestMemory, log: DeviceLog?,
        doorbellThread: DoorbellThread?, port: PCIExpressPort, isTransitional: Bool
    ) throws(HostError) {
        precondition((1...VirtioPCILayout.queueLimit).contains(device.queueSizes.count))
        self.device = device
        self.memory = memory
        self.log = log ?? DeviceLog(name: device.kind.name)
        offered = (device.features | VirtioFeature.offered) & ~device.declinedFeatures
        let isTransitional = isTransitional && VirtioLegacyLayout.deviceID(of: device.kind.identifier) != nil
        let bar = isTransitional ? VirtioPCILayout.transitionalBar : VirtioPCILayout.bar
        self.bar = bar
        maximumSizes = device.queueSizes
        self.state = Mutex(state)
        let relay = Relay()
        self.relay = relay
        queues = device.queueSizes.indices.map { index in
            Virtqueue(
                index: index, memory: memory, onInterrupt: { relay.transport?.interrupt(queue: index) },
                onFault: { relay.transport?.fail("queue \(index): \($0)") })
        }
        doorbells = try QueueDoorbells(count: device.queueSizes.count, thread: doorbellThread) {
            relay.transport?.notify($0)
        }
        var accessOffset = 0
        function = PCIFunction(Self.describe(device, bar: bar, doorbells: doorbells.notifiers, port: port)) { space in
            accessOffset = Self.addCapabilities(
                to: &space, bar: bar, hasConfiguration: !device.configuration.isEmpty)
        }
        capabilityOffset = accessOffset
        relay.transport = self
        try doorbells.listen()
    }

    private static func describe(
        _ device: any VirtioDevice, bar: Int, doorbells: [EventNotifier], port: PCIExpressPort
    ) -> PCIFunctionDescription {
        let kind = device.kind
        var description = PCIFunctionDescription(
            name: kind.name, vendorID: VirtioPCILayout.vendorID,
            deviceID: VirtioPCILayout.firstDeviceID &+ kind.identifier, classCode: kind.pciClass)
        description.revision = VirtioPCILayout.revision
        description.subsystemVendorID = VirtioPCILayout.vendorID
        // §4.1.2.1: at least 0x40, so that no legacy driver takes it for its own.
        description.subsystemID = VirtioPCILayout.firstDeviceID &+ kind.identifier
        description.bars = [
            PCIBaseAddress(index: bar, kind: .memory64, size: VirtioPCILayout.barSize),
            PCIBaseAddress(index: VirtioPCILayout.msixBar, kind: .memory32, size: VirtioPCILayout.msixBarSize),
        ]
        // One for each queue and one for the configuration.
        description.msix = .init(
            vectorCount: device.queueSizes.count + 1, bar: VirtioPCILayout.msixBar, tableOffset: 0,
            pendingOffset: VirtioPCILayout.msixPending)
        description.hasInterruptPin = true
        description.port = port
        description.doorbells[bar] = doorbells.enumerated().map { index, notifier in
            PCIDoorbell(
                offset: VirtioPCILayout.notify + UInt64(index) * UInt64(VirtioPCILayout.notifyMultiplier), width: .word,
                notifier: notifier)
        }
        if bar != VirtioPCILayout.bar, let legacyID = VirtioLegacyLayout.deviceID(of: kind.identifier) {
            description.deviceID = legacyID
            description.revision = VirtioLegacyLayout.revision
            // What legacy drivers tell the device type by.
            description.subsystemID = kind.identifier
            description.bars.append(
                PCIBaseAddress(index: VirtioLegacyLayout.bar, kind: .io, size: VirtioLegacyLayout.barSize))
            description.doorbells[VirtioLegacyLayout.bar] = doorbells.enumerated().map { index, notifier in
                PCIDoorbell(
                    offset: VirtioLegacyRegister.queueNotify, width: .word, match: UInt64(index), notifier: notifier)
            }
        }
        return description
    }

    /// §4.1.4; returns the offset of the access capability.
    private static func addCapabilities(
        to space: inout PCIConfigurationSpace, bar: Int, hasConfiguration: Bool
    ) -> Int {
        var accessOffset = 0
        for type in VirtioPCICapability.allCases where type != .device || hasConfiguration {
            let place: (offset: UInt64, length: UInt64) =
                switch type {
                case .common: (VirtioPCILayout.common, VirtioCommonRegister.size)
                case .notify: (VirtioPCILayout.notify, VirtioPCILayout.structureSize)
                case .interruptStatus: (VirtioPCILayout.interruptStatus, 1)
                case .device: (VirtioPCILayout.device, VirtioPCILayout.structureSize)
                case .access: (0, 0)
                }
            let size = type == .notify || type == .access ? 20 : 16
            let offset = space.addCapability(PCICapability.vendorSpecific, size: size)
            space.set(UInt8(size), at: offset + 2)
            space.set(type.rawValue, at: offset + 3)
            let isAccess = type == .access
            space.set(UInt8(bar), at: offset + 4, writable: isAccess ? 0xFF : 0)
            space.set(UInt32(place.offset), at: offset + 8, writable: isAccess ? .max : 0)
            space.set(UInt32(place.length), at: offset + 12, writable: isAccess ? .max : 0)
            if type == .notify { space.set(VirtioPCILayout.notifyMultiplier, at: offset + 16) }
            if isAccess { accessOffset = offset }
        }
        return accessOffset
    }

    // MARK: Registers

    public func readRegister(bar: Int, offset: UInt64, width: AccessWidth) -> ReadResult {
        guard bar == self.bar else {
            return bar == VirtioLegacyLayout.bar ? readLegacy(offset, width) : .rejected(.noSuchRegister)
        }
        let place = offset % VirtioPCILayout.structureSize
        switch offset &- place {
        case VirtioPCILayout.common:
            guard let value = readCommon(place, width) else { return .rejected(.wrongWidth) }
            return .value(value)
        case VirtioPCILayout.interruptStatus where place == 0: return .value(UInt64(takeInterruptStatus()))
        case VirtioPCILayout.device: return .value(readConfiguration(place, width))
        default: return .rejected(.noSuchRegister)
        }
    }

    public func writeRegister(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> WriteResult {
        guard bar == self.bar else {
            return bar == VirtioLegacyLayout.bar ? writeLegacy(offset, width, value) : .rejected(.noSuchRegister)
        }
        let place = offset % VirtioPCILayout.structureSize
        switch offset &- place {
        case VirtioPCILayout.common: return writeCommon(place, width, value) ? .done : .rejected(.wrongWidth)
        case VirtioPCILayout.device:
            let features = state.withLock { $0.driverFeatures }
            for index in 0..<width.rawValue {
                device.writeConfiguration(
                    UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), at: Int(place) + index, features: features)
            }
            return .done
        case VirtioPCILayout.notify:
            // The queue is told by the address; what was written repeats it (§4.1.5.2).
            notify(Int(place / UInt64(VirtioPCILayout.notifyMultiplier)))
            return .done
        default: return .rejected(.noSuchRegister)
        }
    }

    func readConfiguration(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        let bytes = device.configuration
        var value: UInt64 = 0
        for index in 0..<width.rawValue where bytes.indices.contains(Int(offset) + index) {
            value |= UInt64(bytes[Int(offset) + index]) << UInt64(index * 8)
        }
        return value
    }

    /// Reading it clears it (§4.1.4.5).
    func takeInterruptStatus() -> UInt8 {
        let value = state.withLock { state in
            defer { state.interruptStatus = 0 }
            return state.interruptStatus
        }
        updatePin()
        return value
    }

    /// Fields have their own width; those of 64 bits are two of 32 (§4.1.3.1).
    private func readCommon(_ offset: UInt64, _ width: AccessWidth) -> UInt64? {
        let state = state.withLock { $0 }
        let queue = state.selected.map { state.queues[$0] }
        switch (offset, width) {
        case (VirtioCommonRegister.deviceFeatureSelect, .double): return UInt64(state.deviceFeatureSelect)
        case (VirtioCommonRegister.deviceFeature, .double):
            return UInt64(VirtioPCIState.half(offered, state.deviceFeatureSelect))
        case (VirtioCommonRegister.driverFeatureSelect, .double): return UInt64(state.driverFeatureSelect)
        case (VirtioCommonRegister.driverFeature, .double):
            return UInt64(VirtioPCIState.half(state.driverFeatures, state.driverFeatureSelect))
        case (VirtioCommonRegister.configurationVector, .word): return UInt64(state.configurationVector)
        case (VirtioCommonRegister.queueCount, .word): return UInt64(queues.count)
        case (VirtioCommonRegister.status, .byte): return UInt64(state.status)
        case (VirtioCommonRegister.configurationGeneration, .byte): return UInt64(state.configurationGeneration)
        case (VirtioCommonRegister.queueSelect, .word): return UInt64(state.queueSelect)
        // 0: there is no such queue (§4.1.4.3).
        case (VirtioCommonRegister.queueSize, .word): return UInt64(queue?.size ?? 0)
        case (VirtioCommonRegister.queueVector, .word): return UInt64(queue?.vector ?? virtioNoVector)
        case (VirtioCommonRegister.queueEnable, .word): return queue?.isEnabled == true ? 1 : 0
        case (VirtioCommonRegister.queueNotifyOffset, .word): return UInt64(state.queueSelect)
        case (VirtioCommonRegister.queueNotifyData, .word): return UInt64(state.queueSelect)
        // A reset is over when the write that asks for it is.
        case (VirtioCommonRegister.queueReset, .word): return 0
        case (VirtioCommonRegister.queueDescriptors..<VirtioCommonRegister.queueNotifyData, .double)
        where offset % 4 == 0:
            guard let queue else { return 0 }
            let address: UInt64 =
                switch offset & ~7 {
                case VirtioCommonRegister.queueDescriptors: queue.addresses.descriptors
                case VirtioCommonRegister.queueDriver: queue.addresses.driver
                default: queue.addresses.device
                }
            return offset & 4 == 0 ? address & 0xFFFF_FFFF : address >> 32
        default: return nil
        }
    }

    private func writeCommon(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) -> Bool {
        switch (offset, width) {
        case (VirtioCommonRegister.status, .byte): setStatus(UInt8(truncatingIfNeeded: value))
        case (VirtioCommonRegister.queueEnable, .word): if value == 1 { enableQueue() }
        case (VirtioCommonRegister.queueReset, .word): if value == 1 { resetQueue() }
        case (VirtioCommonRegister.queueDescriptors..<VirtioCommonRegister.queueNotifyData, .quad) where offset % 8 == 0:
            state.withLock { state in
                setAddress(offset, UInt32(truncatingIfNeeded: value), &state)
                setAddress(offset + 4, UInt32(truncatingIfNeeded: value >> 32), &state)
            }
        default: return state.withLock { writeRegister(offset, width, value, &$0) }
        }
        return true
    }

    private func writeRegister(
        _ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ state: inout VirtioPCIState
    ) -> Bool {
        let word = UInt16(truncatingIfNeeded: value)
        let double = UInt32(truncatingIfNeeded: value)
        switch (offset, width) {
        case (VirtioCommonRegister.deviceFeatureSelect, .double): state.deviceFeatureSelect = double
        case (VirtioCommonRegister.driverFeatureSelect, .double): state.driverFeatureSelect = double
        case (VirtioCommonRegister.driverFeature, .double):
            // Final once the device has said that they are (§2.2.2).
            if !state.areFeaturesFixed, !state.isLegacy { state.setDriverFeatures(double) }
        case (VirtioCommonRegister.configurationVector, .word): state.configurationVector = vector(word)
        case (VirtioCommonRegister.queueSelect, .word): state.queueSelect = word
        case (VirtioCommonRegister.queueVector, .word):
            if let index = state.selected { state.queues[index].vector = vector(word) }
        case (VirtioCommonRegister.queueSize, .word):
            if let index = state.selected, !state.queues[index].isEnabled,
                state.isValid(size: word, maximum: maximumSizes[index])
            {
                state.queues[index].size = word
            }
        case (VirtioCommonRegister.queueDescriptors..<VirtioCommonRegister.queueNotifyData, .double)
        where offset % 4 == 0:
            setAddress(offset, double, &state)
        default: return false
        }
        return true
    }

    /// A vector that the function does not have reads back as none (§4.1.5.1.2.1).
    func vector(_ value: UInt16) -> UInt16 { Int(value) <= queues.count ? value : virtioNoVector }

    private func setAddress(_ offset: UInt64, _ value: UInt32, _ state: inout VirtioPCIState) {
        guard let index = state.selected, !state.queues[index].isEnabled else { return }
        func set(_ address: inout UInt64) {
            address =
                offset & 4 == 0 ? address & ~0xFFFF_FFFF | UInt64(value) : address & 0xFFFF_FFFF | UInt64(value) << 32
        }
        switch offset & ~7 {
        case VirtioCommonRegister.queueDescriptors: set(&state.queues[index].addresses.descriptors)
        case VirtioCommonRegister.queueDriver: set(&state.queues[index].addresses.driver)
        default: set(&state.queues[index].addresses.device)
        }
    }

    // MARK: Access through configuration space (§4.1.4.9)

    private enum AccessCapability {
        static let bar = 4
        static let offset = 8
        static let length = 12
        static let data = 16
    }

    /// What the access capability's data register stands for.
    private func accessTarget(_ offset: Int, _ space: PCIConfigurationSpace) -> (UInt64, AccessWidth)? {
        guard offset == capabilityOffset + AccessCapability.data,
            space.value(UInt8.self, at: capabilityOffset + AccessCapability.bar) == UInt8(bar)
        else { return nil }
        let length: UInt32 = space.value(at: capabilityOffset + AccessCapability.length)
        let target = UInt64(space.value(UInt32.self, at: capabilityOffset + AccessCapability.offset))
        guard let width = AccessWidth(rawValue: Int(length)), width != .quad, target % UInt64(length) == 0,
            target < VirtioPCILayout.barSize
        else { return nil }
        return (target, width)
    }

    public func readCapability(at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace) -> UInt64? {
        guard let (target, targetWidth) = accessTarget(offset, space),
            case .value(let value) = readRegister(bar: bar, offset: target, width: targetWidth)
        else { return nil }
        return value & targetWidth.mask & width.mask
    }

    public func writeCapability(
        _ value: UInt64, at offset: Int, width: AccessWidth, in space: PCIConfigurationSpace
    ) -> Bool {
        guard let (target, targetWidth) = accessTarget(offset, space) else { return false }
        _ = writeRegister(
            bar: bar, offset: target, width: targetWidth, value: value & targetWidth.mask)
        return true
    }

    // MARK: Status (§3.1)

    private func setStatus(_ value: UInt8) {
        control.withLock { _ in
            guard value != 0 else { return reset() }
            let (starts, features) = state.withLock { state in
                guard !state.isLegacy else { return (false, state.driverFeatures) }
                let before = state.status
                var status = (before | value) & (VirtioStatus.all & ~VirtioStatus.needsReset)
                if before & VirtioStatus.featuresOK == 0, status & VirtioStatus.featuresOK != 0,
                    !canAccept(state.driverFeatures)
                {
                    status &= ~VirtioStatus.featuresOK
                }
                // Without the features there is no running (§3.1.1 step 6).
                if status & VirtioStatus.featuresOK == 0 { status &= ~VirtioStatus.driverOK }
                state.status = status | before & VirtioStatus.needsReset
                return (
                    before & VirtioStatus.driverOK == 0 && status & VirtioStatus.driverOK != 0, state.driverFeatures
                )
            }
            guard starts else { return }
            start(features)
            // What is there already may have been made available before anybody listened to notifications (§3.1.1).
            for index in queues.indices { notify(index) }
        }
    }

    /// Whether drivers from before Virtio 1.0 find theirs.
    var legacyFeatureIsOffered: Bool { bar != VirtioPCILayout.bar }

    /// A driver that does not know VERSION_1 speaks the legacy interface, and not here (§6.1).
    private func canAccept(_ features: UInt64) -> Bool {
        features & ~offered == 0 && features & VirtioFeature.version1 != 0 && device.accepts(features: features)
    }

    func start(_ features: UInt64) {
        let current = state.withLock { $0 }
        let isInOrder = current.has(VirtioFeature.inOrder)
        for (index, queue) in queues.enumerated() {
            if let ring = current.ring(index) { queue.start(ring, isInOrder: isInOrder) }
        }
        startDevice(features)
    }

    private func startDevice(_ features: UInt64) {
        device.start(
            VirtioContext(
                features: features, queues: queues, memory: memory, gate: gate, log: log,
                onConfigurationChange: { [relay] in relay.transport?.noteConfigurationChange() },
                onRepeat: { [relay] in relay.transport?.ring($0) },
                onFailure: { [relay] in relay.transport?.fail($0) }, events: doorbells))
        gate.open()
    }

    /// Power-on state, and nothing of before goes on.
    func reset() {
        stopDevice()
        for queue in queues { queue.stop() }
        device.reset()
        state.withLock { state in
            let generation = state.configurationGeneration
            state = VirtioPCIState(queueSizes: maximumSizes)
            state.configurationGeneration = generation
        }
        updatePin()
    }

    private func stopDevice() {
        gate.closeAndWait()
        device.stop()
    }

    public func resetFunction() { control.withLock { _ in reset() } }

    // MARK: Queues

    private func enableQueue() {
        control.withLock { _ in
            let (index, ring, isInOrder): (Int?, Virtqueue.Ring?, Bool) = state.withLock { state in
                guard let index = state.selected, !state.queues[index].isEnabled else { return (nil, nil, false) }
                state.queues[index].isEnabled = true
                return (index, state.isDriverReady ? state.ring(index) : nil, state.has(VirtioFeature.inOrder))
            }
            // Before DRIVER_OK it starts with the device; afterwards it was reset and comes back (§2.6.1).
            if let index, let ring { queues[index].start(ring, isInOrder: isInOrder) }
        }
    }

    /// VIRTIO_F_RING_RESET (§2.6.1).
    private func resetQueue() {
        control.withLock { _ in
            let (index, isRunning): (Int?, Bool) = state.withLock { state in
                guard state.has(VirtioFeature.ringReset), let index = state.selected else { return (nil, false) }
                let vector = state.queues[index].vector
                state.queues[index] = VirtioQueueRegisters(size: maximumSizes[index], vector: vector)
                return (index, state.isDriverReady)
            }
            if let index { stop(queue: index, isRunning: isRunning) }
        }
    }

    /// With `control` locked.
    func stop(queue index: Int, isRunning: Bool) {
        guard isRunning else { return queues[index].stop() }
        // What is going on in any queue ends first: the device's workers do not say whose they are.
        gate.closeAndWait()
        queues[index].stop()
        device.queueWasReset(index)
        gate.open()
        // What was notified meanwhile was not heard.
        for other in queues.indices where other != index { notify(other) }
    }

    /// The driver has made buffers available.
    func notify(_ index: Int) {
        guard queues.indices.contains(index), gate.enter() || (startEarly() && gate.enter()) else { return }
        defer { gate.leave() }
        guard queues[index].isEnabled, device.notify(index) else { return }
        // Others have their turn first. Without doorbells the vCPU that would fill the queue waits for us.
        if doorbells.ring(index) { return }
        for _ in 0..<Self.repetitionLimit where !device.notify(index) { return }
        log.note("queue \(index) is filled faster than it can be emptied")
    }

    /// As if the driver had notified.
    private func ring(_ index: Int) {
        if !doorbells.ring(index) { notify(index) }
    }

    private static let repetitionLimit = 64

    // MARK: To the driver

    private func interrupt(queue index: Int) {
        let vector = state.withLock { $0.queues[index].vector }
        signal(vector, VirtioInterruptStatus.queue)
    }

    private func noteConfigurationChange() {
        let vector: UInt16? = state.withLock { state in
            state.configurationGeneration &+= 1
            return state.isDriverReady ? state.configurationVector : nil
        }
        if let vector { signal(vector, VirtioInterruptStatus.configuration) }
    }

    private func signal(_ vector: UInt16, _ cause: UInt8) {
        if function.usesMessageVectors {
            if vector != virtioNoVector { function.signal(vector: Int(vector)) }
            return
        }
        state.withLock { $0.interruptStatus |= cause }
        updatePin()
    }

    /// Under a lock of its own, so that the level that stays is that of the last change.
    private func updatePin() {
        pin.withLock { _ in function.setInterruptPin(state.withLock { $0.interruptStatus != 0 }) }
    }

    /// DEVICE_NEEDS_RESET (§2.1.1): the driver is broken, or we cannot go on with it.
    func fail(_ reason: String) {
        log.note("\(reason); the device waits for a reset by its driver")
        for queue in queues { queue.silence() }
        let vector: UInt16? = state.withLock { state in
            let isNew = state.status & VirtioStatus.needsReset == 0
            state.status |= VirtioStatus.needsReset
            return isNew && state.isDriverReady ? state.configurationVector : nil
        }
        if let vector { signal(vector, VirtioInterruptStatus.configuration) }
    }

    // MARK: Saved state

    /// Stops the device between two requests: nothing of it changes guest memory until `resume`.
    public func pause() {
        control.withLock { _ in
            isPaused.store(true, ordering: .relaxed)
            stopDevice()
        }
    }

    /// Goes on after `pause` or a restore.
    public func resume() {
        control.withLock { _ in
            isPaused.store(false, ordering: .relaxed)
            let current = state.withLock { $0 }
            guard current.isDriverReady else { return }
            startDevice(current.driverFeatures)
        }
        for index in queues.indices { notify(index) }
    }

    /// The end: the device lets go of everything.
    public func shutDown() {
        pause()
        function.disconnect()
    }

    /// Between `pause` and `resume`.
    public func save() -> VirtioPCISavedState {
        VirtioPCISavedState(
            kind: device.kind.identifier, function: function.save(), state: state.withLock { $0 },
            rings: queues.map(\.ring), device: device.saveState())
    }

    /// `device` is one restored from `saved.device`; `resume` starts it.
    public convenience init(
        restoring saved: VirtioPCISavedState, _ device: any VirtioDevice, memory: GuestMemory, log: DeviceLog? = nil,
        doorbellThread: DoorbellThread? = nil, port: PCIExpressPort = .integratedEndpoint,
        isTransitional: Bool = false
    ) throws {
        let state = try saved.state(for: device, isTransitional: isTransitional)
        try self.init(
            device, state: state, memory: memory, log: log, doorbellThread: doorbellThread, port: port,
            isTransitional: isTransitional)
        try function.restore(saved.function)
        for (index, queue) in queues.enumerated() {
            if let ring = try saved.ring(index, in: state) {
                queue.start(ring, isInOrder: state.has(VirtioFeature.inOrder))
                if state.status & VirtioStatus.needsReset != 0 { queue.silence() }
            }
        }
    }
}
