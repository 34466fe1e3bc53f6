internal import DeviceModel
internal import Net
internal import Synchronization

/// Frames past this process: between the guest's memory and a tap, in the kernel (vhost-net).
extension VirtioNet {
    /// The kernel reads no packed rings, and gives nothing back in order.
    public var declinedFeatures: UInt64 {
        mayUseVhost ? VirtioFeature.packedRing | VirtioFeature.inOrder : 0
    }

    private var mayUseVhost: Bool { options.allowsVhost && options.queuePairs == 1 && port.vhost != nil }

    /// Gives the queues of frames to the kernel where that can be; nil: frames go on through `port`.
    func startVhost(_ context: VirtioContext) -> VhostDataPath? {
        guard let offer = port.vhost else { return nil }
        do throws(VhostRefusal) {
            guard options.allowsVhost else { throw .observedMemory }
            guard options.queuePairs == 1 else { throw .severalPairs }
            let path = VhostDataPath(offer, port, context)
            try path.start { header, frame in deliver(header, frame, context) }
            unsignalled.store(0, ordering: .sequentiallyConsistent)
            return path
        } catch {
            note(error, isRequired: offer.isRequired, context)
            return nil
        }
    }

    /// What fails in the host, and what the user asked for, is told once.
    private func note(_ refusal: VhostRefusal, isRequired: Bool, _ context: VirtioContext) {
        let isTrouble = if case .host = refusal { true } else { isRequired }
        guard isTrouble, !hasToldVhost.exchange(true, ordering: .relaxed) else { return }
        context.log.note("vhost-net is not used for \(port.name): \(refusal); frames go through this program")
    }

    public func queueWasReset(_ queue: Int) {
        guard queue < VhostDataPath.queueCount else { return }
        let path: VhostDataPath? = link.withLock { link in
            guard case .inKernel(let context, let path) = link else { return nil }
            link = .running(context)
            return path
        }
        // Until the next start: the driver may bring the queue back elsewhere.
        path?.stop()
        isStarved.store(true, ordering: .sequentiallyConsistent)
    }
}
