internal import DeviceModel
internal import GuestMemory
public import Net
internal import Synchronization
internal import X86

extension VirtioNet {
    public func receive(_ header: VirtualNetworkHeader, _ frame: borrowing RawSpan) -> Bool {
        switch link.withLock({ $0 }) {
        case .down: return true
        case .paused: return false
        case .inKernel: return wait()
        case .running(let context):
            guard context.gate.enter() else { return wait() }
            defer { context.gate.leave() }
            return deliver(header, frame, context)
        }
    }

    /// The next notification of a receive queue asks for the frame again.
    private func wait() -> Bool {
        isStarved.store(true, ordering: .sequentiallyConsistent)
        return false
    }

    func deliver(
        _ header: VirtualNetworkHeader, _ frame: borrowing RawSpan, _ context: VirtioContext
    ) -> Bool {
        let (mac, filter, active, offloads) = state.withLock {
            ($0.mac, $0.filter, $0.activePairs, $0.guestOffloads)
        }
        // Undone work that the guest did not agree to: on its way when the driver changed its mind.
        guard filter.accepts(frame, mac: mac), let header = Self.allowed(header, offloads) else { return true }
        var queue = context.queues[0]
        if active > 1 {
            let steered = context.queues[2 * steer(frame, active: active)]
            if steered.isEnabled { queue = steered }
        }
        return fill(queue, header, frame, context)
    }

    private func steer(_ frame: borrowing RawSpan, active: Int) -> Int {
        let count = min(frame.byteCount, FlowSteering.headerSize)
        let head = unsafe frame.extracting(0..<count).withUnsafeBytes { unsafe Array($0) }
        return steering.withLock { $0.pair(of: head, active: active) }
    }

    /// §5.1.6.4.1: only what was negotiated. Nil: it cannot be delivered without.
    private static func allowed(_ header: VirtualNetworkHeader, _ offloads: UInt64) -> VirtualNetworkHeader? {
        var header = header
        guard offloads & NetFeature.guestChecksum != 0 else {
            if header.asksForWork { return nil }
            header.flags = 0
            return header
        }
        let isAllowed =
            switch header.segmentation & ~VirtualNetworkHeader.Segmentation.ecn {
            case VirtualNetworkHeader.Segmentation.none: true
            case VirtualNetworkHeader.Segmentation.tcp4: offloads & NetFeature.guestTCP4 != 0
            case VirtualNetworkHeader.Segmentation.tcp6: offloads & NetFeature.guestTCP6 != 0
            case VirtualNetworkHeader.Segmentation.udp:
                offloads & NetFeature.guestUDP4 != 0 && offloads & NetFeature.guestUDP6 != 0
            default: false
            }
        let hasMarks = header.segmentation & VirtualNetworkHeader.Segmentation.ecn != 0
        return isAllowed && (!hasMarks || offloads & NetFeature.guestECN != 0) ? header : nil
    }

    /// Writes the frame into one buffer or, if the driver merges them, into several.
    private func fill(
        _ queue: Virtqueue, _ header: VirtualNetworkHeader, _ frame: borrowing RawSpan, _ context: VirtioContext
    ) -> Bool {
        let size = Self.headerSize(context.features) + frame.byteCount
        let merges = context.has(NetFeature.mergeableBuffers)
        switch take(size, queue, merges: merges, context) {
        case .none: return wait()
        case .broken: return true
        case .tooSmall:
            context.log.note(
                "queue \(queue.index): a frame of \(frame.byteCount) bytes is dropped, the guest's buffers are too "
                    + "small for it")
            return true
        case .buffers(let chains):
            var header = header
            header.bufferCount = UInt16(clamping: chains.count)
            var used: [UsedBuffer] = []
            var done = 0
            var isBroken = false
            for chain in chains {
                let written = isBroken ? 0 : write(header, frame, from: done, to: chain, context)
                if written == nil { isBroken = true }
                used.append(UsedBuffer(chain, written: written ?? 0))
                done += written ?? 0
            }
            if isBroken { context.fail("queue \(queue.index): a receive buffer is not RAM") }
            // All at once: the driver counts on the rest when it sees the first (§5.1.6.4).
            queue.complete(used, interrupts: false)
            unsignalled.bitwiseOr(1 << UInt64(queue.index), ordering: .sequentiallyConsistent)
            return true
        }
    }

    private enum Room {
        case buffers([DescriptorChain])
        /// The driver has to give more, and notifies then.
        case none
        /// It never will be enough.
        case tooSmall
        case broken
    }

    private func take(_ size: Int, _ queue: Virtqueue, merges: Bool, _ context: VirtioContext) -> Room {
        var chains: [DescriptorChain] = []
        var room = 0
        var entries = 0
        func putBack() {
            for chain in chains.reversed() { queue.putBack(chain) }
            chains = []
            room = 0
            entries = 0
        }
        while room < size {
            guard let chain = queue.next() else {
                // A ring that is full of buffers and has no room for a frame will never have it.
                if entries > 0, entries >= queue.size {
                    putBack()
                    return .tooSmall
                }
                isStarved.store(true, ordering: .sequentiallyConsistent)
                // Behind those that were taken: what is there does not do.
                if queue.requestNotification() { continue }
                putBack()
                return .none
            }
            chains.append(chain)
            guard chain.writable.count >= Self.headerSize(context.features) else {
                for chain in chains { queue.complete(chain, written: 0) }
                context.fail("queue \(queue.index): a receive buffer has no room for a header")
                return .broken
            }
            room += chain.writable.count
            entries += Int(chain.ringEntries)
            if !merges, room < size {
                putBack()
                return .tooSmall
            }
        }
        return .buffers(chains)
    }

    /// The part of header and frame that begins at `offset` of both together, as much as the buffer takes. Nil: it is no
    /// memory.
    private func write(
        _ header: VirtualNetworkHeader, _ frame: borrowing RawSpan, from offset: Int, to chain: DescriptorChain,
        _ context: VirtioContext
    ) -> Int? {
        do throws(GuestMemoryFault) {
            let headerSize = Self.headerSize(context.features)
            var target = chain.writable
            var written = 0
            if offset == 0 {
                written = try target.write(Array(header.bytes.prefix(headerSize)), to: context.memory)
                target = target.slice(from: written)
            }
            var position = offset + written - headerSize
            for range in target.ranges where position < frame.byteCount {
                let count = min(range.count, frame.byteCount - position)
                try context.memory.write(frame.extracting(position..<position + count), at: range.base)
                position += count
                written += count
            }
            return written
        } catch {
            return nil
        }
    }

    public func batchHasEnded() {
        let queues = unsignalled.exchange(0, ordering: .sequentiallyConsistent)
        guard queues != 0, let context = enter() else { return }
        for queue in context.queues where queues >> UInt64(queue.index) & 1 != 0 { queue.interruptIfWanted() }
        context.gate.leave()
    }
}
