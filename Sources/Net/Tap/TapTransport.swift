internal import CHost
internal import Glibc
internal import Host
internal import Synchronization

/// `--net tap`: a device of the host's kernel, made by whoever may, used by us.
public struct TapConfiguration: Equatable, Sendable {
    public enum Source: Equatable, Sendable {
        case name(String)
        /// An open descriptor, which becomes the back end's own.
        case descriptor(Int32)
    }

    public var source: Source
    public var vhost: VhostChoice

    public init(_ source: Source, vhost: VhostChoice = .automatic) {
        self.source = source
        self.vhost = vhost
    }

    public static func name(_ name: String) -> TapConfiguration { TapConfiguration(.name(name)) }
    public static func descriptor(_ number: Int32) -> TapConfiguration { TapConfiguration(.descriptor(number)) }
}

/// `tap`: frames straight from and to a tap device, each with a virtio-net header, so that the kernel does the work that
/// the guest left undone (tun(4), Documentation/networking/tuntap.rst).
final class TapTransport: Transport, Sendable {
    private static let framesPerTurn = 64

    /// linux/if_tun.h: what the kernel may leave undone in frames that it hands out.
    private enum KernelOffload {
        static let checksum: UInt32 = 0x01
        static let tcp4: UInt32 = 0x02
        static let tcp6: UInt32 = 0x04
        static let ecn: UInt32 = 0x08
        static let udp4: UInt32 = 0x20
        static let udp6: UInt32 = 0x40
    }

    let name: String
    let nativeOffloads: Offloads
    let vhost: VhostOffer?
    private let device: FileDescriptor
    private let pending = Mutex<[UInt8]?>(nil)
    private let pollIndex = Mutex(-1)
    private let hasFailed = Mutex(false)
    private let log: NetworkLog

    convenience init(
        _ configuration: TapConfiguration, log: @escaping NetworkLog
    ) throws(NetworkError) {
        var interface = ""
        let device = try TapTransport.open(configuration.source, name: &interface)
        let result = host_tap_set_header_size(device.rawValue, Int32(VirtualNetworkHeader.size))
        guard result >= 0 else { throw TapTransport.unusable(interface, result) }
        let offer = try TapTransport.offer(configuration.vhost, device.borrowed, name: interface)
        let offloads = TapTransport.probeOffloads(device.borrowed)
        self.init(device, name: "tap \(interface)", nativeOffloads: offloads, vhost: offer, log: log)
    }

    /// On a device that is set up already: non-blocking, and its frames have a header.
    init(
        _ device: consuming FileDescriptor, name: String, nativeOffloads: Offloads, vhost: VhostOffer?,
        log: @escaping NetworkLog
    ) {
        self.name = name
        self.nativeOffloads = nativeOffloads
        self.vhost = vhost
        self.device = device
        self.log = log
    }

    private static func offer(
        _ choice: VhostChoice, _ device: BorrowedDescriptor, name: String
    ) throws(NetworkError) -> VhostOffer? {
        guard choice != .never else { return nil }
        let isRequired = choice == .required
        do throws(HostError) {
            // Whether it can be had; each start of the card opens its own.
            _ = try VhostNet()
        } catch {
            if isRequired { throw .vhostUnavailable(name: name, reason: error.reason) }
            return nil
        }
        return VhostOffer(tap: device, isRequired: isRequired) { () throws(HostError) in try VhostNet() }
    }

    private static func open(
        _ source: TapConfiguration.Source, name interfaceName: inout String
    ) throws(NetworkError) -> FileDescriptor {
        var interface = [CChar](repeating: 0, count: Int(HOST_INTERFACE_NAME_SIZE))
        defer {
            interfaceName = String(
                decoding: interface.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        switch source {
        case .name(let name):
            let result = unsafe interface.withUnsafeMutableBufferPointer { buffer in
                unsafe buffer.baseAddress.map { unsafe host_tap_open(name, $0) } ?? Int(-EINVAL)
            }
            guard result >= 0 else { throw unusable(name, result) }
            return FileDescriptor(owning: Int32(truncatingIfNeeded: result))
        case .descriptor(let number):
            var flags: UInt32 = 0
            let result = unsafe interface.withUnsafeMutableBufferPointer { buffer in
                unsafe buffer.baseAddress.map { unsafe host_tap_inquire(number, $0, &flags) } ?? Int(-EINVAL)
            }
            guard result >= 0 else { throw unusable("descriptor \(number)", result) }
            guard flags & host_tap_header_flag() != 0 else { throw .tapWithoutHeader(name: "\(number)") }
            let device = FileDescriptor(owning: number)
            do { try device.borrowed.setNonBlocking(true) } catch { throw .host(error) }
            return device
        }
    }

    private static func unusable(_ name: String, _ result: Int) -> NetworkError {
        let error = HostError("", errorNumber: Int32(truncatingIfNeeded: -result))
        return .tapUnusable(name: name, reason: error.reason)
    }

    /// What the kernel takes from us it also can give: ask for the most, then for nothing, which the guest agrees to.
    private static func probeOffloads(_ device: BorrowedDescriptor) -> Offloads {
        defer { _ = host_tap_set_offloads(device.rawValue, 0) }
        let candidates: [Offloads] = [.transmit, [.checksum, .tcp4, .tcp6, .ecn], .checksum]
        return candidates.first { host_tap_set_offloads(device.rawValue, kernelFlags($0)) >= 0 } ?? []
    }

    private static func kernelFlags(_ offloads: Offloads) -> UInt32 {
        let pairs: [(Offloads, UInt32)] = [
            (.checksum, KernelOffload.checksum), (.tcp4, KernelOffload.tcp4), (.tcp6, KernelOffload.tcp6),
            (.ecn, KernelOffload.ecn), (.udp, KernelOffload.udp4 | KernelOffload.udp6),
        ]
        return pairs.reduce(0) { offloads.contains($1.0) ? $0 | $1.1 : $0 }
    }

    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) {
        let wanted = offloads.intersection(nativeOffloads)
        let result = host_tap_set_offloads(device.rawValue, TapTransport.kernelFlags(wanted))
        guard result >= 0 else { throw TapTransport.unusable(name, result) }
    }

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome {
        guard header.segmentation == VirtualNetworkHeader.Segmentation.none || canSegment(header) else {
            return sendInSoftware(header, pieces)
        }
        return write(header, pieces)
    }

    private func canSegment(_ header: VirtualNetworkHeader) -> Bool {
        switch header.segmentation & ~VirtualNetworkHeader.Segmentation.ecn {
        case VirtualNetworkHeader.Segmentation.tcp4: nativeOffloads.contains(.tcp4)
        case VirtualNetworkHeader.Segmentation.tcp6: nativeOffloads.contains(.tcp6)
        case VirtualNetworkHeader.Segmentation.udp: nativeOffloads.contains(.udp)
        default: false
        }
    }

    /// For kernels before 6.2, which do not take UDP segmentation.
    private func sendInSoftware(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome {
        guard let frames = try? SoftwareOffload.frames(of: pieces.gathered(), header) else { return .malformed }
        for (index, frame) in frames.enumerated() {
            let outcome = unsafe frame.withUnsafeBytes { unsafe write(VirtualNetworkHeader(), FramePieces([$0])) }
            if outcome != .sent { return index == 0 ? outcome : .sent }
        }
        return .sent
    }

    private func write(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> TransportOutcome {
        let headerBytes = header.bytes
        let result = unsafe headerBytes.withUnsafeBytes { headerBuffer in
            // SAFETY: the header's bytes and the caller's buffers, all mapped during the call; the kernel only reads.
            let vectors = unsafe ([headerBuffer] + pieces.buffers).map { buffer in
                unsafe iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress), iov_len: buffer.count)
            }
            return unsafe vectors.withUnsafeBufferPointer { list in
                unsafe list.baseAddress.map {
                    unsafe host_writev(device.rawValue, $0, Int32(clamping: list.count))
                } ?? 0
            }
        }
        switch Int32(truncatingIfNeeded: result) {
        case 0...: return .sent
        case -EAGAIN, -ENOBUFS: return .full
        // The kernel found the header impossible.
        case -EINVAL: return .malformed
        // EIO: the interface is down. It may come up again.
        default: return .undeliverable
        }
    }

    func prepare(_ poll: inout PollSet, sink: ReceiveSink, isBlocked: Bool) -> UInt64? {
        let isOpen = sink.isOpen && !hasFailed.withLock { $0 }
        if isOpen, pending.withLock({ $0 != nil }) { return 0 }
        let events = (isOpen ? Int16(POLLIN) : 0) | (isBlocked ? Int16(POLLOUT) : 0)
        let index = events == 0 ? -1 : poll.add(device.rawValue, events)
        pollIndex.withLock { $0 = index }
        return nil
    }

    func advance(_ poll: PollSet, sink: ReceiveSink) {
        for _ in 0..<TapTransport.framesPerTurn {
            guard sink.isOpen, let frame = pending.withLock({ $0 }) ?? receive(sink) else { return }
            guard let header = VirtualNetworkHeader(frame) else { continue }
            let bytes = unsafe frame.span.bytes
            let isDelivered = sink.deliver(header, bytes.extracting(VirtualNetworkHeader.size..<bytes.byteCount))
            pending.withLock { $0 = isDelivered ? nil : frame }
            guard isDelivered else { return }
        }
    }

    /// Header and frame.
    private func receive(_ sink: ReceiveSink) -> [UInt8]? {
        var result = 0
        let limit = VirtualNetworkHeader.size + FrameSize.maximum
        let frame = unsafe [UInt8](unsafeUninitializedCapacity: limit) { buffer, initialized in
            // SAFETY: as many bytes as the buffer has, and those that were read are counted.
            result = unsafe buffer.baseAddress.map { unsafe host_read(device.rawValue, $0, limit) } ?? 0
            initialized = max(result, 0)
        }
        if result >= VirtualNetworkHeader.size + FrameSize.minimum { return frame }
        if result < 0, result != Int(-EAGAIN), result != Int(-EINTR), result != Int(-EIO) { fail(result, sink) }
        return nil
    }

    /// The device was deleted: said once, and not polled again, or the thread would spin.
    private func fail(_ result: Int, _ sink: ReceiveSink) {
        let isFirst = hasFailed.withLock { hasFailed in
            defer { hasFailed = true }
            return !hasFailed
        }
        let error = HostError("", errorNumber: Int32(truncatingIfNeeded: -result))
        guard isFirst else { return }
        log(.linkFailed(network: name, reason: error.reason))
        sink.loseLink()
    }

    func canSend(_ poll: PollSet) -> Bool {
        let index = pollIndex.withLock { $0 }
        return poll.events(at: index) & Int16(POLLOUT | POLLERR | POLLHUP) != 0
    }

    func takePending() -> [UInt8]? {
        pending.withLock { pending in
            defer { pending = nil }
            return pending
        }
    }

    func add(to statistics: inout NetworkStatistics) {}
    func close() {}
}
