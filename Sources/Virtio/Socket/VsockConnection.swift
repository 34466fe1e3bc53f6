internal import Host

/// One stream between a port of the guest and a socket of the host.
struct VsockConnection: Sendable {
    enum Phase: Sendable {
        /// The guest was asked and has not answered.
        case requested
        case connected
    }

    /// Packets that the guest is to get.
    struct Owed: OptionSet, Sendable {
        let rawValue: UInt8
        static let request = Owed(rawValue: 1)
        static let response = Owed(rawValue: 2)
        static let creditUpdate = Owed(rawValue: 4)
        static let creditRequest = Owed(rawValue: 8)
        static let shutdown = Owed(rawValue: 16)
    }

    let socket: StreamSocket
    /// By which events name it.
    let token: UInt64
    var phase: Phase
    var owed: Owed = []

    // To the guest (§5.10.6.3): what it has room for, has taken, and was sent.
    var guestBuffer: UInt32 = 0
    var guestForwarded: UInt32 = 0
    var sent: UInt32 = 0
    /// The guest was asked for news of its room.
    var askedForCredit = false
    /// The socket may have something to read.
    var isReadable = true
    /// The host sends nothing more.
    var hostEnded = false
    /// The host's end is gone altogether.
    var isHungUp = false
    var guestReceivesNoMore = false

    // From the guest: what it has sent, what the socket has taken of it, and what it was told of that.
    var received: UInt32 = 0
    var forwarded: UInt32 = 0
    var told: UInt32 = 0
    /// What the socket has not taken yet, from `pendingStart` on.
    var pending: [UInt8] = []
    var pendingStart = 0
    /// So many of those are not the guest's.
    var preamble = 0
    var guestSendsNoMore = false

    /// What the socket is watched for; nil: it is not.
    var watched: Interest?

    /// Our room for the guest's data.
    static let bufferSize: UInt32 = 128 << 10

    init(socket: StreamSocket, token: UInt64, phase: Phase) {
        self.socket = socket
        self.token = token
        self.phase = phase
    }

    /// Bytes that the guest has room for.
    var credit: Int {
        let inFlight = sent &- guestForwarded
        return inFlight <= guestBuffer ? Int(guestBuffer - inFlight) : 0
    }

    var pendingCount: Int { pending.count - pendingStart }

    mutating func noteCredit(_ header: VsockHeader) {
        if header.forwarded != guestForwarded || header.bufferSize != guestBuffer { askedForCredit = false }
        guestBuffer = header.bufferSize
        guestForwarded = header.forwarded
    }

    /// Bytes of the guest's that the socket has taken.
    mutating func noteForwarded(_ count: Int) {
        forwarded &+= UInt32(truncatingIfNeeded: count)
        // Told before the guest has to stop for it.
        if received &- told > Self.bufferSize / 2, forwarded != told { owed.insert(.creditUpdate) }
    }

    /// Sends what waits; false where the socket is broken.
    mutating func sendPending() -> Bool {
        while pendingCount > 0 {
            let result = socket.send(pending[pendingStart...])
            if StreamSocket.isBusy(result) { return true }
            guard result > 0 else { return false }
            let ours = min(preamble, result)
            preamble -= ours
            noteForwarded(result - ours)
            pendingStart += result
        }
        pending = []
        pendingStart = 0
        if guestSendsNoMore { socket.shut(.sending) }
        return true
    }

    /// Whether data of the socket may go to the guest.
    var canRead: Bool { phase == .connected && !hostEnded && !guestReceivesNoMore }

    /// The guest wants nothing more and has everything that it sent where it belongs.
    var isOver: Bool { guestSendsNoMore && guestReceivesNoMore && pendingCount == 0 }

    /// What there is to wait for.
    var interest: Interest? {
        var interest: Interest = []
        if canRead, !isReadable, credit > 0 { interest.insert(.readable) }
        if pendingCount > 0 { interest.insert(.writable) }
        if !interest.isEmpty { return interest }
        // Only for the end of the other direction.
        return hostEnded && !isHungUp ? [] : nil
    }
}
