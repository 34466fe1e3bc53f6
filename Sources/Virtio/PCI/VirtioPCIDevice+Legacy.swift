internal import DeviceModel
internal import Synchronization

/// What drivers from before Virtio 1.0 find (Virtio 1.2 §4.1.4.10). The first write of a status or a queue's address
/// through it makes the device theirs, until a reset.
extension VirtioPCIDevice {
    /// Nothing above bit 31 exists for them. Any layout of requests is taken (§6.3).
    var legacyFeatures: UInt64 {
        (device.features & 0xFFFF_FFFF) | VirtioFeature.indirectDescriptors | VirtioFeature.eventIndex
            | VirtioFeature.anyLayout
    }

    private var configurationBase: UInt64 {
        function.usesMessageVectors
            ? VirtioLegacyRegister.configurationWithVectors : VirtioLegacyRegister.configurationVector
    }

    func readLegacy(_ offset: UInt64, _ width: AccessWidth) -> ReadResult {
        if offset >= configurationBase { return .value(readConfiguration(offset - configurationBase, width)) }
        if offset == VirtioLegacyRegister.interruptStatus, width == .byte {
            return .value(UInt64(takeInterruptStatus()))
        }
        return state.withLock { state in
            let queue = state.selected.map { state.queues[$0] }
            switch (offset, width) {
            case (VirtioLegacyRegister.deviceFeatures, .double): return .value(legacyFeatures)
            case (VirtioLegacyRegister.driverFeatures, .double): return .value(state.driverFeatures & 0xFFFF_FFFF)
            case (VirtioLegacyRegister.queueAddress, .double):
                let isSet = queue?.isEnabled ?? false
                return .value(isSet ? (queue?.addresses.descriptors ?? 0) / VirtioLegacyLayout.pageSize : 0)
            case (VirtioLegacyRegister.queueSize, .word):
                return .value(UInt64(state.selected.map { maximumSizes[$0] } ?? 0))
            case (VirtioLegacyRegister.queueSelect, .word): return .value(UInt64(state.queueSelect))
            case (VirtioLegacyRegister.queueNotify, .word): return .value(0)
            case (VirtioLegacyRegister.status, .byte): return .value(UInt64(state.status))
            case (VirtioLegacyRegister.configurationVector, .word): return .value(UInt64(state.configurationVector))
            case (VirtioLegacyRegister.queueVector, .word): return .value(UInt64(queue?.vector ?? virtioNoVector))
            default: return .rejected(.wrongWidth)
            }
        }
    }

    func writeLegacy(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) -> WriteResult {
        if offset >= configurationBase {
            let features = state.withLock { $0.driverFeatures }
            for index in 0..<width.rawValue {
                device.writeConfiguration(
                    UInt8(truncatingIfNeeded: value >> UInt64(index * 8)),
                    at: Int(offset - configurationBase) + index, features: features)
            }
            return .done
        }
        switch (offset, width) {
        case (VirtioLegacyRegister.driverFeatures, .double):
            state.withLock { state in
                if !state.isDriverReady, state.becomeLegacy() { state.driverFeatures = value & legacyFeatures }
            }
        case (VirtioLegacyRegister.queueAddress, .double): setLegacyQueue(page: UInt32(truncatingIfNeeded: value))
        case (VirtioLegacyRegister.queueSelect, .word):
            state.withLock { $0.queueSelect = UInt16(truncatingIfNeeded: value) }
        case (VirtioLegacyRegister.queueNotify, .word): notify(Int(value & 0xFFFF))
        case (VirtioLegacyRegister.status, .byte): setLegacyStatus(UInt8(truncatingIfNeeded: value))
        case (VirtioLegacyRegister.configurationVector, .word):
            state.withLock { $0.configurationVector = vector(UInt16(truncatingIfNeeded: value)) }
        case (VirtioLegacyRegister.queueVector, .word):
            state.withLock { state in
                if let index = state.selected { state.queues[index].vector = vector(UInt16(truncatingIfNeeded: value)) }
            }
        default: return .rejected(.wrongWidth)
        }
        return .done
    }

    private func setLegacyStatus(_ value: UInt8) {
        control.withLock { _ in
            guard value != 0 else { return reset() }
            let starts = state.withLock { state in
                guard state.becomeLegacy() else { return false }
                let wasReady = state.isDriverReady
                // There is no FEATURES_OK: what the driver has written by now is what it wants.
                state.status |= value & VirtioStatus.all & ~(VirtioStatus.featuresOK | VirtioStatus.needsReset)
                return !wasReady && state.isDriverReady
            }
            if starts { startLegacy() }
        }
        for index in queues.indices { notify(index) }
    }

    /// Old drivers use their queues before they say that they are ready (§3.1.2): the first notification says it too.
    func startEarly() -> Bool {
        guard legacyFeatureIsOffered else { return false }
        return control.withLock { _ in
            let starts = state.withLock { state in
                guard state.isLegacy, !state.isDriverReady, !isPaused.load(ordering: .relaxed),
                    state.status & VirtioStatus.driver != 0,
                    state.queues.contains(where: \.isEnabled)
                else { return false }
                state.isStartedEarly = true
                return true
            }
            if starts { startLegacy() }
            return starts
        }
    }

    /// A choice that makes no sense cannot be refused: the device does nothing until it is reset.
    private func startLegacy() {
        // Others may have been written to the registers of today.
        let features = state.withLock { state in
            state.driverFeatures &= legacyFeatures
            return state.driverFeatures
        }
        guard device.accepts(features: features) else {
            return fail("the driver chose features that do not go together")
        }
        start(features)
    }

    private func setLegacyQueue(page: UInt32) {
        control.withLock { _ in
            let (index, wasEnabled, isRunning): (Int?, Bool, Bool) = state.withLock { state in
                guard let index = state.selected, state.becomeLegacy() else { return (nil, false, false) }
                let wasEnabled = state.queues[index].isEnabled
                if page != 0, wasEnabled { return (nil, false, false) }
                state.queues[index].size = maximumSizes[index]
                state.queues[index].isEnabled = page != 0
                state.queues[index].addresses = VirtioLegacyLayout.addresses(page: page, size: maximumSizes[index])
                return (index, wasEnabled, state.isDriverReady)
            }
            guard let index else { return }
            if page != 0 {
                if isRunning, let ring = state.withLock({ $0.ring(index) }) {
                    queues[index].start(ring, isInOrder: false)
                }
            } else if wasEnabled {
                stop(queue: index, isRunning: isRunning)
            }
        }
    }
}
