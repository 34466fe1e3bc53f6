internal import GuestMemory
internal import Host

/// All connections of a socket device. Used under one lock.
struct SocketState: Sendable {
    /// A client of the host that has not said yet where it wants to.
    struct Greeting: Sendable {
        var socket: StreamSocket
        var text: [UInt8] = []
    }

    private enum Place: Sendable {
        case greeting
        case connection(VsockPorts)
    }

    private let endpoint: SocketEndpoint
    private let poll: EventPoll
    private(set) var connections: [VsockPorts: VsockConnection] = [:]
    private var greetings: [UInt64: Greeting] = [:]
    private var places: [UInt64: Place] = [:]
    /// Those that may have something for the guest, each once.
    private var ready: [VsockPorts] = []
    private var isReady: Set<VsockPorts> = []
    /// Refusals that wait for the guest's buffers.
    private var refusals: [VsockHeader] = []
    private var nextToken: UInt64 = 16
    private var nextPort: UInt32 = 1 << 30
    private var owesTransportReset: Bool

    static let connectionLimit = 512
    static let refusalLimit = 256
    /// "CONNECT 4294967295\n" and a little more.
    private static let greetingLimit = 32
    /// Packets to the guest in one turn.
    private static let turnLimit = 512

    init(_ endpoint: SocketEndpoint, _ poll: EventPoll, owesTransportReset: Bool) {
        self.endpoint = endpoint
        self.poll = poll
        self.owesTransportReset = owesTransportReset
    }

    mutating func closeAll() {
        connections = [:]
        greetings = [:]
        places = [:]
        ready = []
        isReady = []
        refusals = []
        owesTransportReset = false
    }

    // MARK: The host's side

    private mutating func newToken(_ place: Place) -> UInt64 {
        nextToken += 1
        places[nextToken] = place
        return nextToken
    }

    /// Room for one more, perhaps of one that only waits for the guest's last word.
    private mutating func hasRoom() -> Bool {
        if connections.count + greetings.count < Self.connectionLimit { return true }
        guard
            let over = connections.first(where: { $0.value.isHungUp && $0.value.hostEnded && $0.value.owed.isEmpty })?
                .key
        else {
            return false
        }
        close(over)
        return true
    }

    /// Clients of the host; those that there is no room for are closed.
    mutating func accept() {
        for _ in 0..<16 {
            guard let socket = endpoint.listener.accept() else { return }
            guard hasRoom() else { continue }
            let token = newToken(.greeting)
            guard (try? poll.add(socket.descriptor, .readable, token: token)) != nil else {
                places[token] = nil
                continue
            }
            greetings[token] = Greeting(socket: socket)
        }
    }

    mutating func note(_ event: EventPoll.Event) {
        switch places[event.token] {
        case .greeting: greet(event.token)
        case .connection(let ports):
            guard var connection = connections[ports] else { return }
            if event.isReadable || event.isEnded || event.isHungUp { connection.isReadable = true }
            if event.isHungUp, !connection.isHungUp {
                connection.isHungUp = true
                // The guest has heard of one direction.
                if connection.hostEnded { connection.owed.insert(.shutdown) }
            }
            if event.isWritable || event.isHungUp, !connection.sendPending() { return refuse(ports) }
            connections[ports] = connection
            settle(ports)
        case nil: break
        }
    }

    /// Reads a client's line, a byte at a time: what follows it is the guest's.
    private mutating func greet(_ token: UInt64) {
        guard var greeting = greetings[token] else { return }
        while true {
            guard let byte = greeting.socket.receive(limit: 1) else {
                greetings[token] = greeting
                return
            }
            guard let byte = byte.first, greeting.text.count < Self.greetingLimit else { return drop(greeting: token) }
            if byte == 0x0A { break }
            greeting.text.append(byte)
        }
        drop(greeting: token)
        let words = String(decoding: greeting.text, as: UTF8.self).split(separator: " ")
        guard words.count == 2, words[0] == "CONNECT", let port = UInt32(words[1]) else { return }
        let ports = VsockPorts(guest: port, host: freePort(for: port))
        var connection = VsockConnection(
            socket: greeting.socket, token: newToken(.connection(ports)), phase: .requested)
        connection.owed.insert(.request)
        connections[ports] = connection
        settle(ports)
    }

    private mutating func drop(greeting token: UInt64) {
        guard let greeting = greetings.removeValue(forKey: token) else { return }
        places[token] = nil
        try? poll.remove(greeting.socket.descriptor)
    }

    private mutating func freePort(for guest: UInt32) -> UInt32 {
        repeat {
            nextPort = nextPort == .max ? 1 << 30 : nextPort + 1
        } while connections[VsockPorts(guest: guest, host: nextPort)] != nil
        return nextPort
    }

    // MARK: Connections

    /// What the change of a connection asks for: its place among those with something to send, and its events.
    private mutating func settle(_ ports: VsockPorts) {
        guard let connection = connections[ports] else { return }
        if connection.isOver { return refuse(ports) }
        if !connection.owed.isEmpty || (connection.canRead && connection.isReadable) { makeReady(ports) }
        let interest = connection.interest
        guard interest != connection.watched else { return }
        let descriptor = connection.socket.descriptor
        do throws(HostError) {
            switch (connection.watched, interest) {
            case (nil, let interest?): try poll.add(descriptor, interest, token: connection.token)
            case (_, let interest?): try poll.change(descriptor, interest, token: connection.token)
            case (_, nil): try poll.remove(descriptor)
            }
            connections[ports]?.watched = interest
        } catch {
            // A socket that cannot be watched would hang for ever.
            refuse(ports)
        }
    }

    private mutating func makeReady(_ ports: VsockPorts) {
        if isReady.insert(ports).inserted { ready.append(ports) }
    }

    private mutating func close(_ ports: VsockPorts) {
        guard let connection = connections.removeValue(forKey: ports) else { return }
        places[connection.token] = nil
        if connection.watched != nil { try? poll.remove(connection.socket.descriptor) }
    }

    /// Ends a connection, if there is one, and says so.
    private mutating func refuse(_ ports: VsockPorts) {
        close(ports)
        refusals.append(VsockHeader(.reset, to: endpoint.guestCID, ports))
    }

    // MARK: From the guest

    /// Takes the guest's packets and sends it others, as far as there are buffers. True: there is more to do.
    mutating func exchange(_ context: VirtioContext) -> Bool {
        // Before anything of a new connection, which the driver would close with the old ones.
        if owesTransportReset { _ = sendEvents(context) }
        let hasMorePackets = takePackets(context)
        let waited = refusals.count >= Self.refusalLimit
        return send(context) || hasMorePackets || (waited && refusals.count < Self.refusalLimit)
    }

    private mutating func takePackets(_ context: VirtioContext) -> Bool {
        let queue = context.queues[VsockLayout.Queue.transmit]
        for _ in 0..<max(queue.size, 1) {
            // A guest that does not take its refusals has to wait (§5.10.6.1.1 asks it to have buffers).
            guard refusals.count < Self.refusalLimit else { return false }
            guard let chain = queue.next() else { return queue.requestNotification() }
            take(chain, context)
            queue.complete(chain, written: 0)
        }
        return queue.requestNotification()
    }

    private mutating func take(_ chain: DescriptorChain, _ context: VirtioContext) {
        guard let bytes = try? chain.readable.read(from: context.memory, limit: VsockHeader.size),
            let header = VsockHeader(bytes)
        else { return context.fail("queue 1: a packet has no header") }
        // Nobody else's packets.
        guard header.sourceCID == endpoint.guestCID else { return }
        let ports = VsockPorts(guest: header.sourcePort, host: header.targetPort)
        let data = chain.readable.slice(from: VsockHeader.size, limit: Int(header.length))
        let operation = VsockOperation(rawValue: header.operation)
        guard header.targetCID == VsockLayout.hostCID, header.type == VsockLayout.streamType, let operation,
            data.count == Int(header.length)
        else {
            // §5.10.6.4: what cannot be is refused, but no refusal.
            if operation != .reset { refuse(header, ports) }
            return
        }
        guard operation != .request else { return connect(header, ports) }
        guard connections[ports] != nil else {
            if operation != .reset { refuse(ports) }
            return
        }
        connections[ports]?.noteCredit(header)
        switch operation {
        case .request: break
        case .response: respond(ports)
        case .reset: close(ports)
        case .shutdown: shutDown(header.flags, ports)
        case .data: forward(data, ports, context)
        case .creditUpdate: settle(ports)
        case .creditRequest:
            connections[ports]?.owed.insert(.creditUpdate)
            settle(ports)
        }
    }

    /// A refusal of a packet with addresses or a type that are not ours.
    private mutating func refuse(_ header: VsockHeader, _ ports: VsockPorts) {
        guard header.targetCID != VsockLayout.hostCID || header.type != VsockLayout.streamType else {
            return refuse(ports)
        }
        var refusal = VsockHeader(.reset, to: endpoint.guestCID, ports)
        refusal.sourceCID = header.targetCID
        refusal.type = header.type
        refusals.append(refusal)
    }

    private mutating func connect(_ header: VsockHeader, _ ports: VsockPorts) {
        // One that is there already is not what the guest thinks it is.
        guard connections[ports] == nil, hasRoom(), let socket = endpoint.connect(port: ports.host) else {
            return refuse(ports)
        }
        var connection = VsockConnection(socket: socket, token: newToken(.connection(ports)), phase: .connected)
        connection.noteCredit(header)
        connection.owed.insert(.response)
        connections[ports] = connection
        settle(ports)
    }

    private mutating func respond(_ ports: VsockPorts) {
        guard var connection = connections[ports], connection.phase == .requested else { return refuse(ports) }
        connection.phase = .connected
        connection.pending = Array("OK \(ports.host)\n".utf8)
        connection.preamble = connection.pending.count
        guard connection.sendPending() else { return refuse(ports) }
        connections[ports] = connection
        settle(ports)
    }

    private mutating func shutDown(_ flags: UInt32, _ ports: VsockPorts) {
        guard var connection = connections[ports] else { return }
        if flags & VsockLayout.sendsNoMore != 0, !connection.guestSendsNoMore {
            connection.guestSendsNoMore = true
            if connection.pendingCount == 0 { connection.socket.shut(.sending) }
        }
        if flags & VsockLayout.receivesNoMore != 0, !connection.guestReceivesNoMore {
            connection.guestReceivesNoMore = true
            connection.socket.shut(.receiving)
        }
        connections[ports] = connection
        settle(ports)
    }

    private mutating func forward(_ data: BufferList, _ ports: VsockPorts, _ context: VirtioContext) {
        guard var connection = connections[ports], connection.phase == .connected, !connection.guestSendsNoMore,
            // More than it was told that there is room for.
            connection.received &- connection.forwarded <= VsockConnection.bufferSize,
            data.count <= Int(VsockConnection.bufferSize - (connection.received &- connection.forwarded)),
            let segments = try? context.memory.segments(data.ranges, forWriting: false)
        else { return refuse(ports) }
        connection.received &+= UInt32(data.count)
        var done = 0
        if connection.pendingCount == 0, data.count > 0 {
            let result = TransferMemory(segments).send(to: connection.socket.descriptor)
            guard result >= 0 || StreamSocket.isBusy(result) else { return refuse(ports) }
            done = max(result, 0)
            connection.noteForwarded(done)
        }
        if done < data.count {
            guard let rest = try? data.read(from: context.memory, at: done, limit: data.count - done) else {
                return refuse(ports)
            }
            if connection.pendingStart > 0 {
                connection.pending.removeFirst(connection.pendingStart)
                connection.pendingStart = 0
            }
            // The only copy, so that appending does not make another.
            connections[ports] = nil
            connection.pending += rest
        }
        connections[ports] = connection
        settle(ports)
    }

    // MARK: To the guest

    /// True: there is more than one turn may have.
    private mutating func send(_ context: VirtioContext) -> Bool {
        let queue = context.queues[VsockLayout.Queue.receive]
        for _ in 0..<Self.turnLimit {
            guard !refusals.isEmpty || !ready.isEmpty else { return false }
            guard let chain = queue.next() else {
                // When the guest has buffers again it says so.
                if queue.requestNotification() { continue }
                return false
            }
            guard chain.writable.count >= VsockHeader.size else {
                queue.complete(chain, written: 0)
                context.fail("queue 0: a buffer has no room for a packet's header")
                return false
            }
            if let refusal = refusals.first {
                refusals.removeFirst()
                deliver(refusal, chain, context)
                continue
            }
            let ports = ready.removeFirst()
            isReady.remove(ports)
            guard let header = nextPacket(ports, chain, context) else {
                queue.putBack(chain)
                continue
            }
            deliver(header, chain, context)
        }
        return true
    }

    private func deliver(_ header: VsockHeader, _ chain: DescriptorChain, _ context: VirtioContext) {
        let queue = context.queues[VsockLayout.Queue.receive]
        do throws(GuestMemoryFault) {
            try chain.writable.write(header.bytes, to: context.memory)
            queue.complete(chain, written: VsockHeader.size + Int(header.length))
        } catch {
            queue.complete(chain, written: 0)
            context.fail("queue 0: \(error)")
        }
    }

    /// The next packet of a connection, with its data in the buffer already; nil: there is none.
    private mutating func nextPacket(
        _ ports: VsockPorts, _ chain: DescriptorChain, _ context: VirtioContext
    ) -> VsockHeader? {
        guard var connection = connections[ports] else { return nil }
        var header: VsockHeader?
        for (owed, operation) in Self.packets where header == nil && connection.owed.contains(owed) {
            connection.owed.remove(owed)
            header = VsockHeader(operation, to: endpoint.guestCID, ports)
        }
        if header?.operation == VsockOperation.shutdown.rawValue {
            header?.flags = VsockLayout.sendsNoMore | (connection.isHungUp ? VsockLayout.receivesNoMore : 0)
        }
        if header == nil, connection.canRead, connection.isReadable {
            header = readData(&connection, ports, chain, context)
        }
        header?.bufferSize = VsockConnection.bufferSize
        header?.forwarded = connection.forwarded
        if header != nil { connection.told = connection.forwarded }
        connections[ports] = connection
        settle(ports)
        return header
    }

    /// In the order in which they must go.
    private static let packets: [(VsockConnection.Owed, VsockOperation)] = [
        (.request, .request), (.response, .response), (.creditUpdate, .creditUpdate), (.creditRequest, .creditRequest),
        (.shutdown, .shutdown),
    ]

    private func readData(
        _ connection: inout VsockConnection, _ ports: VsockPorts, _ chain: DescriptorChain, _ context: VirtioContext
    ) -> VsockHeader? {
        guard connection.credit > 0 else {
            // Until the guest says that it has room; asked once for that.
            connection.isReadable = false
            if !connection.askedForCredit {
                connection.askedForCredit = true
                connection.owed.insert(.creditRequest)
            }
            return nil
        }
        let room = chain.writable.slice(from: VsockHeader.size, limit: connection.credit)
        guard room.count > 0, let segments = try? context.memory.segments(room.ranges, forWriting: true) else {
            context.fail("queue 0: a buffer has no room for data")
            return nil
        }
        let result = TransferMemory(segments).receive(from: connection.socket.descriptor)
        context.memory.noteTransfer(into: room.ranges)
        guard result > 0 else {
            connection.isReadable = false
            if !StreamSocket.isBusy(result) {
                // The end, or a broken socket: the same to the guest.
                connection.hostEnded = true
                if result < 0 { connection.isHungUp = true }
                connection.owed.insert(.shutdown)
            }
            return nil
        }
        connection.sent &+= UInt32(result)
        var header = VsockHeader(.data, to: endpoint.guestCID, ports)
        header.length = UInt32(result)
        return header
    }

    // MARK: Events

    /// After a restore the driver is told that its connections are gone (§5.10.6.7).
    mutating func sendEvents(_ context: VirtioContext) -> Bool {
        let queue = context.queues[VsockLayout.Queue.event]
        guard owesTransportReset, let chain = queue.next() else { return false }
        var bytes = [UInt8](repeating: 0, count: 4)
        bytes.store(VsockLayout.transportReset, at: 0)
        let written = (try? chain.writable.write(bytes, to: context.memory)) ?? 0
        queue.complete(chain, written: written)
        owesTransportReset = false
        return false
    }
}
