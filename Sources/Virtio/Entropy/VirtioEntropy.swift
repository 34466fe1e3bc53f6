internal import DeviceModel
internal import GuestMemory
internal import Host
internal import Synchronization

/// An entropy device (Virtio 1.2 §5.4): fills what it gets with the host kernel's random numbers.
public final class VirtioEntropy: VirtioDevice {
    private let context = Mutex<VirtioContext?>(nil)

    /// A buffer may have 4 GiB; so much of it is filled, which the driver is told.
    private static let fillLimit = 64 << 10

    public init() {}

    /// Other encryption or decryption, as PCI calls what it has no better class for.
    public let kind = VirtioKind(name: "virtio-rng", identifier: 4, pciClass: 0x10_8000)
    public let features: UInt64 = 0
    public let queueSizes: [UInt16] = [64]

    public func start(_ context: VirtioContext) { self.context.withLock { $0 = context } }
    public func stop() { context.withLock { $0 = nil } }

    public func notify(_ queue: Int) -> Bool {
        guard let context = context.withLock({ $0 }), queue == 0 else { return false }
        return context.queues[0].drain { fill($0, context) }
    }

    private func fill(_ chain: DescriptorChain, _ context: VirtioContext) {
        let bytes = HostRandom.bytes(count: min(chain.writable.count, Self.fillLimit))
        do throws(GuestMemoryFault) {
            let written = try chain.writable.write(bytes, to: context.memory)
            context.queues[0].complete(chain, written: written)
        } catch {
            context.queues[0].complete(chain, written: 0)
            context.fail("queue 0: \(error)")
        }
    }
}
