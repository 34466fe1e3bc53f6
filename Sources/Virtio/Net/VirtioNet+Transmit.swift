internal import GuestMemory
internal import Net
internal import Synchronization

extension VirtioNet {
    /// Sends what is there, up to `batchLimit` frames. True: there may be more. Without a notification wish where the back
    /// end is full: it goes on with `canSend`.
    func transmit(_ index: Int, _ context: VirtioContext) -> Bool {
        transmission.withLock { _ in
            let queue = context.queues[index]
            var used: [UsedBuffer] = []
            defer { queue.complete(used, interrupts: true) }
            while used.count < Self.batchLimit {
                if isBlocked.load(ordering: .sequentiallyConsistent) { return false }
                guard let chain = queue.next() else {
                    if queue.requestNotification() { continue }
                    return false
                }
                guard send(chain, index, context) else {
                    queue.putBack(chain)
                    // `canSend` may have come already.
                    continue
                }
                used.append(UsedBuffer(chain, written: 0))
            }
            return true
        }
    }

    /// False: the back end is full.
    private func send(_ chain: DescriptorChain, _ index: Int, _ context: VirtioContext) -> Bool {
        do throws(GuestMemoryFault) {
            let headerSize = Self.headerSize(context.features)
            let head = try chain.readable.read(from: context.memory, limit: headerSize)
            let padding = [UInt8](repeating: 0, count: VirtualNetworkHeader.size - headerSize)
            guard let header = VirtualNetworkHeader(head + padding) else {
                context.fail("queue \(index): a frame has no header")
                return true
            }
            let frame = chain.readable.slice(from: headerSize)
            let segments = try context.memory.segments(frame.ranges, forWriting: false)
            if options.queuePairs > 1 { try noteFlow(frame, pair: index / 2, context) }
            isBlocked.store(true, ordering: .sequentiallyConsistent)
            guard port.send(allowed(header, context), FramePieces(segments)) != .full else { return false }
            isBlocked.store(false, ordering: .sequentiallyConsistent)
        } catch {
            context.fail("queue \(index): \(error)")
        }
        return true
    }

    /// Without what the driver has not agreed on (§5.1.6.2.1).
    private func allowed(_ header: VirtualNetworkHeader, _ context: VirtioContext) -> VirtualNetworkHeader {
        var header = header
        header.bufferCount = 0
        header.flags &= context.has(NetFeature.checksum) ? VirtualNetworkHeader.Flag.needsChecksum : 0
        let isAllowed =
            switch header.segmentation & ~VirtualNetworkHeader.Segmentation.ecn {
            case VirtualNetworkHeader.Segmentation.tcp4: context.has(NetFeature.hostTCP4)
            case VirtualNetworkHeader.Segmentation.tcp6: context.has(NetFeature.hostTCP6)
            case VirtualNetworkHeader.Segmentation.udp: context.has(NetFeature.hostUDP)
            // The back end drops what is no kind of segmentation.
            default: true
            }
        if !isAllowed {
            header.segmentation = VirtualNetworkHeader.Segmentation.none
            header.segmentSize = 0
        } else if !context.has(NetFeature.hostECN) {
            header.segmentation &= ~VirtualNetworkHeader.Segmentation.ecn
        }
        return header
    }

    /// A second look at the guest's memory, which decides only over the queue of the answers.
    private func noteFlow(_ frame: BufferList, pair: Int, _ context: VirtioContext) throws(GuestMemoryFault) {
        let head = try frame.read(from: context.memory, limit: FlowSteering.headerSize)
        steering.withLock { $0.note(head, pair: pair) }
    }

    public func canSend() {
        isBlocked.store(false, ordering: .sequentiallyConsistent)
        guard let context = enter() else { return }
        let control = controlQueue(context.features)
        for index in stride(from: 1, to: control, by: 2) { context.repeatNotification(of: index) }
        context.gate.leave()
    }
}
