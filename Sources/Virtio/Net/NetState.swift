internal import Net

/// What changes while a network device runs.
struct NetState: Sendable {
    /// The address that the guest uses.
    var mac: MACAddress
    var filter = ReceiveFilter()
    /// Of the pairs of queues that there are, the ones that the driver uses.
    var activePairs = 1
    /// Feature bits: what the guest takes undone now.
    var guestOffloads: UInt64 = 0
    /// The guest is asked to say where it is now.
    var mustAnnounce = false

    init(mac: MACAddress) { self.mac = mac }
}

/// Which pair of queues a flow uses: the one on which its frames came from the guest (automatic receive steering,
/// Virtio 1.2 §5.1.6.5.5).
struct FlowSteering: Sendable {
    private var pairs = [UInt8](repeating: 0, count: 256)

    /// How much of a frame tells its flow.
    static let headerSize = 54

    mutating func note(_ frame: [UInt8], pair: Int) {
        if let flow = Self.flow(frame, isReversed: true) { pairs[flow] = UInt8(truncatingIfNeeded: pair) }
    }

    func pair(of frame: [UInt8], active: Int) -> Int {
        guard let flow = Self.flow(frame, isReversed: false) else { return 0 }
        let pair = Int(pairs[flow])
        return pair < active ? pair : 0
    }

    /// A number from addresses and ports, the same for both directions of a flow when one of them is reversed. Only a
    /// hint: what a guest makes collide shares a queue.
    private static func flow(_ frame: [UInt8], isReversed: Bool) -> Int? {
        guard frame.count >= headerSize else { return nil }
        let addresses: Range<Int>
        let ports: Int
        switch UInt16(frame[12]) << 8 | UInt16(frame[13]) {
        case 0x0800:
            addresses = 26..<34
            ports = 14 + Int(frame[14] & 0xF) * 4
        case 0x86DD:
            addresses = 22..<54
            ports = 54
        default: return nil
        }
        let half = addresses.count / 2
        var (source, destination): (UInt32, UInt32) = (0, 0)
        for index in 0..<half {
            source = source &* 31 &+ UInt32(frame[addresses.lowerBound + index])
            destination = destination &* 31 &+ UInt32(frame[addresses.lowerBound + half + index])
        }
        if ports + 4 <= frame.count {
            source = source &* 31 &+ (UInt32(frame[ports]) << 8 | UInt32(frame[ports + 1]))
            destination = destination &* 31 &+ (UInt32(frame[ports + 2]) << 8 | UInt32(frame[ports + 3]))
        }
        if isReversed { swap(&source, &destination) }
        let mixed = (source &* 0x9E37_79B1) ^ (destination &* 0x85EB_CA6B)
        return Int(mixed >> 24)
    }
}
