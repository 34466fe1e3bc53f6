import DeviceModel
import Host
import Net
import Synchronization
import Testing
import X86

@testable import Virtio

/// A back end in the test's hands: keeps what is sent, takes only so much, and delivers what it is told to.
final class CardBackend: NetworkBackend {
    struct Frame: Equatable {
        var header: VirtualNetworkHeader
        var bytes: [UInt8]

        init(_ bytes: [UInt8], _ header: VirtualNetworkHeader = VirtualNetworkHeader()) {
            self.bytes = bytes
            self.header = header
        }
    }

    private struct State {
        var receiver: (any FrameReceiver)?
        var sent: [Frame] = []
        var room = Int.max
        var refusals = 0
        var waiting: [Frame] = []
        var isFull = false
        var offloads: Offloads = []
    }

    private let state = Mutex(State())
    /// One delivery at a time, as the one thread of a back end has it.
    private let delivery = Mutex<Void>(())
    let mtu: UInt16
    let hasLink: Bool

    init(mtu: UInt16 = 1500, hasLink: Bool = true) {
        self.mtu = mtu
        self.hasLink = hasLink
    }

    var name: String { "test" }
    var nativeOffloads: Offloads { .transmit }
    var statistics: NetworkStatistics {
        var result = NetworkStatistics()
        result.sentFrames = UInt64(state.withLock { $0.sent.count })
        return result
    }

    func start(_ receiver: any FrameReceiver) throws(NetworkError) { state.withLock { $0.receiver = receiver } }
    func setReceiveOffloads(_ offloads: Offloads) throws(NetworkError) { state.withLock { $0.offloads = offloads } }
    func close() { state.withLock { $0.receiver = nil } }

    func send(_ header: VirtualNetworkHeader, _ pieces: FramePieces) -> SendOutcome {
        let bytes = pieces.copied
        return state.withLock { state in
            guard state.room > 0 else {
                state.refusals += 1
                return .full
            }
            state.room -= 1
            state.sent.append(Frame(bytes, header))
            return .sent
        }
    }

    // MARK: For the test

    var offloads: Offloads { state.withLock { $0.offloads } }
    var refusals: Int { state.withLock { $0.refusals } }
    var waiting: Int { state.withLock { $0.waiting.count } }

    func takeSent() -> [Frame] {
        state.withLock { state in
            defer { state.sent = [] }
            return state.sent
        }
    }

    /// So many frames more, and the card is told.
    func setRoom(_ room: Int) {
        state.withLock { $0.room = room }
        if room > 0 { state.withLock { $0.receiver }?.canSend() }
    }

    func limit(_ room: Int) { state.withLock { $0.room = room } }

    /// Frames that come together.
    func deliver(_ frames: [Frame]) {
        state.withLock { $0.waiting += frames }
        pump()
    }

    func resumeReceiving() {
        state.withLock { $0.isFull = false }
        // From within a delivery: it goes on anyway.
        _ = delivery.withLockIfAvailable { _ in pumpAlone() }
    }

    private func pump() { delivery.withLock { _ in pumpAlone() } }

    private func pumpAlone() {
        var hasDelivered = false
        while let (frame, receiver) = next() {
            if receiver.receive(frame.header, frame.bytes.span.bytes) {
                state.withLock { state in
                    state.waiting.removeFirst()
                    state.isFull = false
                }
                hasDelivered = true
            } else if state.withLock({ $0.isFull }) {
                break
            }
        }
        if hasDelivered { state.withLock { $0.receiver }?.batchHasEnded() }
    }

    private func next() -> (Frame, any FrameReceiver)? {
        state.withLock { state in
            guard !state.isFull, let frame = state.waiting.first, let receiver = state.receiver else { return nil }
            state.isFull = true
            return (frame, receiver)
        }
    }
}

/// A card in a port of such a back end, and its driver.
struct CardFixture {
    let backend: CardBackend
    let port: NetworkPort
    let card: VirtioNet
    let driver: ModelDriver

    static let mac = MACAddress(rawValue: 0x0200_0000_0015)
    static let other: [UInt8] = [2, 0, 0, 0, 0, 0x99]

    init(
        style: DriverStyle = DriverStyle(), features: UInt64 = NetFeature.mergeableBuffers, queuePairs: Int = 1,
        backend: CardBackend = CardBackend()
    ) throws {
        self.backend = backend
        port = try NetworkPort(backend)
        card = VirtioNet(port, options: NetworkCardOptions(mac: Self.mac, queuePairs: queuePairs))
        driver = try ModelDriver(card, style: style)
        try #require(driver.start(features: features))
    }

    /// A frame for the card, of `count` bytes that tell its number.
    static func frame(_ number: Int, _ count: Int, to destination: [UInt8] = mac.bytes) -> [UInt8] {
        let body = (0..<max(count - 14, 0)).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ number &* 7 &+ $0 >> 8) }
        return Array((destination + other + [0x88, 0xB5] + body).prefix(count))
    }

    func send(_ frames: [CardBackend.Frame], queue: Int = 1) throws {
        for frame in frames {
            try #require(try driver.queues[queue].submit([.readable(frame.header.bytes + frame.bytes)]))
        }
        driver.notify(queue)
    }

    /// Gives the card so many buffers.
    func refill(_ sizes: [Int], queue: Int = 0) throws {
        for size in sizes { try #require(try driver.queues[queue].submit([.writable(size)])) }
        driver.notify(queue)
    }

    /// The frames in the buffers that the card has used, put together as their headers say.
    func received(queue: Int = 0) throws -> [CardBackend.Frame] {
        var frames: [CardBackend.Frame] = []
        var used = try driver.queues[queue].collect()[...]
        while let first = used.popFirst() {
            var bytes = Array(first.bytes.prefix(Int(first.written)))
            let header = try #require(VirtualNetworkHeader(bytes))
            for _ in 1..<max(Int(header.bufferCount), 1) {
                let next = used.removeFirst()
                bytes += next.bytes.prefix(Int(next.written))
            }
            frames.append(CardBackend.Frame(Array(bytes.dropFirst(VirtualNetworkHeader.size)), header))
        }
        return frames
    }

    /// Sends a command; the answer, nil where there is none.
    func command(_ bytes: [UInt8]) throws -> UInt8? {
        try driver.request([.readable(bytes), .writable(1)], queue: driver.queues.count - 1)?.bytes.first
    }

    /// From now on `takeInterrupts` counts them by queue.
    func enableVectors() throws {
        try driver.enableVectors()
    }

    /// How many messages came: vector 0 is the configuration's, vector 1 that of queue 0.
    func takeInterrupts() -> [UInt32: Int] {
        driver.connection.takeMessages().reduce(into: [:]) { $0[$1.data, default: 0] += 1 }
    }
}
