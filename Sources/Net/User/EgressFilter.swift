internal import Host

/// Holds every frame of the guest against the policy before libslirp sees it. libslirp gets exactly the bytes that were
/// examined. One thread's own.
struct EgressFilter {
    enum Action: Equatable {
        case forward
        /// The last fragment of a datagram that may pass: forward this, the whole of it.
        case forwardWhole([UInt8])
        /// Not forwarded; the guest gets this instead.
        case reply([UInt8])
        case drop
    }

    let policy: EgressPolicy
    let hasIPv6: Bool
    private(set) var statistics = EgressStatistics()
    private(set) var malformed: UInt64 = 0
    private var inbound: InboundFlows
    private var fragments = FragmentAssembler()
    /// A guest can be refused a million times a second: ten lines at once, then one a second.
    private var logLines = TokenBucket(rate: 1, burst: 10)
    private var unloggedRefusals: UInt64 = 0
    private let log: (RefusedDestination, UInt64) -> Void

    init(
        _ policy: EgressPolicy, hasIPv6: Bool, publishedUDPPorts: Set<UInt16>,
        log: @escaping (RefusedDestination, UInt64) -> Void
    ) {
        self.policy = policy
        self.hasIPv6 = hasIPv6
        inbound = InboundFlows(publishedUDPPorts: publishedUDPPorts)
        self.log = log
    }

    /// Decides over a frame from the guest.
    mutating func examine(_ frame: [UInt8]) -> Action {
        switch ParsedFrame(frame) {
        case .arp: return .forward
        case .packet(let packet) where packet.isFragment: return assemble(frame, packet)
        case .packet(let packet): return packet.isIPv4 ? examineIPv4(frame, packet) : examineIPv6(frame, packet)
        case .other:
            // libslirp speaks NC-SI too (DSP0222), which is nothing for a guest.
            statistics.refusedOther &+= 1
            return .drop
        case .malformed:
            malformed &+= 1
            return .drop
        }
    }

    private mutating func assemble(_ frame: [UInt8], _ packet: ParsedPacket) -> Action {
        switch fragments.add(frame, packet, nowNanoseconds: HostClock.monotonicNanoseconds) {
        case .incomplete: return .drop
        case .invalid:
            malformed &+= 1
            return .drop
        case .complete(let whole):
            // What is assembled is no fragment: this ends here.
            guard case .packet(let packet) = ParsedFrame(whole), !packet.isFragment else {
                malformed &+= 1
                return .drop
            }
            let action = examineIPv4(whole, packet)
            return action == .forward ? .forwardWhole(whole) : action
        }
    }

    /// Notes what libslirp sends to the guest: a connection from outside may be answered.
    mutating func noteInbound(_ frame: [UInt8]) {
        if case .packet(let packet) = ParsedFrame(frame) { inbound.note(frame, packet) }
    }

    private mutating func examineIPv4(_ frame: [UInt8], _ packet: ParsedPacket) -> Action {
        let layout = UserNetworkLayout.ipv4
        if isLeaseRequest(packet, layout) { return .forward }
        if packet.destination.isMulticast || packet.destination.isBroadcast
            || packet.destination == .v4(0x0A00_02FF)
        {
            statistics.discardedMulticast &+= 1
            return .drop
        }
        if let answer = answerName(frame, packet, layout) { return answer }
        return decide(frame, packet, layout)
    }

    private mutating func examineIPv6(_ frame: [UInt8], _ packet: ParsedPacket) -> Action {
        guard hasIPv6 else {
            // There is no router: the guest's kernel knows what it means when nobody answers.
            statistics.discardedMulticast &+= packet.destination.isMulticast ? 1 : 0
            statistics.refusedOther &+= packet.destination.isMulticast ? 0 : 1
            return .drop
        }
        let layout = UserNetworkLayout.ipv6
        if isNeighborDiscovery(frame, packet) { return .forward }
        if packet.destination.isMulticast {
            statistics.discardedMulticast &+= 1
            return .drop
        }
        if let answer = answerName(frame, packet, layout) { return answer }
        return decide(frame, packet, layout)
    }

    /// DHCP (RFC 2131 §4.1), which no policy forbids.
    private func isLeaseRequest(_ packet: ParsedPacket, _ layout: UserNetworkLayout) -> Bool {
        guard packet.protocolNumber == IPProtocol.udp, let ports = packet.ports else { return false }
        return ports.destination == 67 && (packet.destination.isBroadcast || packet.destination == layout.host)
    }

    /// Types 133 to 136 stay on the link by their hop limit of 255 (RFC 4861 §4).
    private func isNeighborDiscovery(_ frame: [UInt8], _ packet: ParsedPacket) -> Bool {
        packet.protocolNumber == IPProtocol.icmp6 && (133...136).contains(frame[packet.transport])
    }

    private mutating func answerName(
        _ frame: [UInt8], _ packet: ParsedPacket, _ layout: UserNetworkLayout
    ) -> Action? {
        guard packet.protocolNumber == IPProtocol.udp, packet.destination == layout.nameserver,
            packet.ports?.destination == 53, policy != .none
        else { return nil }
        let service = NameService(policy: policy, hasIPv6: hasIPv6)
        switch service.decide(Array(frame[(packet.transport + 8)..<packet.end])) {
        case .ask: return policy.allowsResolver ? nil : .drop
        case .answer(let payload):
            statistics.answeredNames &+= 1
            let reply = PacketBuilder.datagram(answering: frame, packet, payload: payload)
            return reply.map { .reply($0) } ?? .drop
        case .ignore:
            malformed &+= 1
            return .drop
        }
    }

    private mutating func decide(_ frame: [UInt8], _ packet: ParsedPacket, _ layout: UserNetworkLayout) -> Action {
        if inbound.contains(packet) { return .forward }
        let destination = packet.destination
        guard !destination.isMartian else { return refuse(frame, packet, layout) }
        let isAllowed =
            switch packet.protocolNumber {
            case IPProtocol.tcp, IPProtocol.udp:
                policy.allows(
                    destination, port: packet.ports?.destination ?? 0, protocolNumber: packet.protocolNumber,
                    in: layout)
            case IPProtocol.icmp: allowsICMP(frame[packet.transport], request: 8, destination, layout)
            case IPProtocol.icmp6: allowsICMP(frame[packet.transport], request: 128, destination, layout)
            default: false
            }
        return isAllowed ? .forward : refuse(frame, packet, layout)
    }

    private func allowsICMP(
        _ type: UInt8, request: UInt8, _ destination: IPAddress, _ layout: UserNetworkLayout
    ) -> Bool {
        type == request && policy.allowsAll(of: destination, in: layout)
    }

    private mutating func refuse(_ frame: [UInt8], _ packet: ParsedPacket, _ layout: UserNetworkLayout) -> Action {
        let kind: RefusedDestination.Kind
        var reply: [UInt8]?
        switch packet.protocolNumber {
        case IPProtocol.tcp:
            kind = .tcp
            statistics.refusedTCP &+= 1
            reply = PacketBuilder.reset(answering: frame, packet)
        case IPProtocol.udp:
            kind = .udp
            statistics.refusedUDP &+= 1
        case IPProtocol.icmp, IPProtocol.icmp6:
            let isRequest = frame[packet.transport] == (packet.isIPv4 ? 8 : 128)
            // An error about an answer, or an answer: nobody waits for it, and no error follows an error
            // (RFC 1122 §3.2.2).
            guard isRequest else { return .drop }
            kind = .icmp
            statistics.refusedICMP &+= 1
        default:
            kind = .other
            statistics.refusedOther &+= 1
        }
        if packet.protocolNumber != IPProtocol.tcp {
            reply = PacketBuilder.prohibited(answering: frame, packet, gateway: layout.host)
        }
        report(
            RefusedDestination(
                kind, packet.destination,
                number: packet.ports?.destination ?? UInt16(packet.protocolNumber)))
        return reply.map { .reply($0) } ?? .drop
    }

    private mutating func report(_ destination: RefusedDestination) {
        guard logLines.take(1, nowNanoseconds: HostClock.monotonicNanoseconds) == 0 else {
            unloggedRefusals &+= 1
            return
        }
        log(destination, unloggedRefusals)
        unloggedRefusals = 0
    }
}

/// Connections that began outside, through a published port. Bounded: two generations, of which the older one goes when
/// the younger one is full; what is in use moves up.
struct InboundFlows {
    private struct Flow: Hashable {
        let protocolNumber: UInt8
        let guest: IPAddress
        let guestPort: UInt16
        let outside: IPAddress
        let outsidePort: UInt16
    }

    private static let generationSize = 4096
    private let publishedUDPPorts: Set<UInt16>
    private var recent: Set<Flow> = []
    private var older: Set<Flow> = []

    init(publishedUDPPorts: Set<UInt16>) { self.publishedUDPPorts = publishedUDPPorts }

    /// A packet to the guest: the SYN of a connection, or a datagram to a published port.
    mutating func note(_ frame: [UInt8], _ packet: ParsedPacket) {
        guard let ports = packet.ports, packet.source != UserNetworkLayout.ipv4.nameserver,
            packet.source != UserNetworkLayout.ipv6.nameserver
        else { return }
        switch packet.protocolNumber {
        case IPProtocol.tcp:
            guard frame[packet.transport + 13] & (TCPFlag.syn | TCPFlag.ack) == TCPFlag.syn else { return }
        case IPProtocol.udp: guard publishedUDPPorts.contains(ports.destination) else { return }
        default: return
        }
        insert(
            Flow(
                protocolNumber: packet.protocolNumber, guest: packet.destination, guestPort: ports.destination,
                outside: packet.source, outsidePort: ports.source))
    }

    /// Whether a packet from the guest answers one of them.
    mutating func contains(_ packet: ParsedPacket) -> Bool {
        guard let ports = packet.ports else { return false }
        let flow = Flow(
            protocolNumber: packet.protocolNumber, guest: packet.source, guestPort: ports.source,
            outside: packet.destination, outsidePort: ports.destination)
        if recent.contains(flow) { return true }
        guard older.contains(flow) else { return false }
        insert(flow)
        return true
    }

    private mutating func insert(_ flow: Flow) {
        if recent.count >= InboundFlows.generationSize {
            older = recent
            recent = []
        }
        recent.insert(flow)
    }
}
