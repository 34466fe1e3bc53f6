internal import Glibc
internal import Host

/// Runs `body` with an address, by default 127.0.0.1, and a port as the C library wants them.
private func withLoopback<Result>(
    _ host: UInt32 = 0x7F00_0001, port: UInt16, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
) -> Result {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = host.bigEndian
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
}

/// A socket on the host's loopback, with time-outs so that no test hangs.
public final class LoopbackSocket: Sendable {
    public let descriptor: Int32
    public let port: UInt16

    /// Bound to a free port.
    public init(isUDP: Bool, isListening: Bool = true, address host: UInt32 = 0x7F00_0001) {
        let descriptor = newSocket(isUDP: isUDP)
        self.descriptor = descriptor
        precondition(withLoopback(host, port: 0) { bind(descriptor, $0, $1) } == 0)
        if !isUDP, isListening { listen(descriptor, 8) }
        var address = sockaddr_in()
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &address) { pointer in
            _ = pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &size) }
        }
        port = UInt16(bigEndian: address.sin_port)
        setTimeouts(descriptor)
    }

    /// Connected to a port, of the loopback unless another address is named.
    public init?(isUDP: Bool, connectedTo port: UInt16, address host: UInt32 = 0x7F00_0001) {
        descriptor = newSocket(isUDP: isUDP)
        self.port = port
        setTimeouts(descriptor)
        guard withLoopback(host, port: port, { connect(descriptor, $0, $1) }) == 0 else { return nil }
    }

    private init(accepted descriptor: Int32) {
        self.descriptor = descriptor
        port = 0
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        setTimeouts(descriptor)
    }

    public func acceptOne() -> LoopbackSocket? {
        let result = accept(descriptor, nil, nil)
        return result < 0 ? nil : LoopbackSocket(accepted: result)
    }

    public func write(_ bytes: [UInt8]) { _ = send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) }

    /// Writes all of it, as the peer takes it; false where it goes away.
    public func writeAll(_ bytes: [UInt8]) -> Bool {
        var done = 0
        while done < bytes.count {
            let result = bytes.withUnsafeBytes { all in
                let rest = UnsafeRawBufferPointer(rebasing: all[done...])
                return send(descriptor, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
            }
            guard result > 0 else { return false }
            done += result
        }
        return true
    }

    /// The peer sees the end; it may go on sending.
    public func finishWriting() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// Everything until the peer ends, or says nothing for two minutes.
    public func readAll() -> [UInt8] {
        var bytes: [UInt8] = []
        while case let part = read(upTo: 1 << 16), !part.isEmpty { bytes += part }
        return bytes
    }

    public func read(upTo count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let result = recv(descriptor, &bytes, count, 0)
        return Array(bytes.prefix(max(result, 0)))
    }

    /// One datagram to anybody.
    public func sendDatagram(_ bytes: [UInt8], to host: UInt32, port: UInt16) -> Bool {
        withLoopback(host, port: port) { sendto(descriptor, bytes, bytes.count, 0, $0, $1) } == bytes.count
    }

    /// Receives one datagram and sends it back with one more byte.
    public func echoDatagram() {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        var address = sockaddr_in()
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { peer in
                let count = recvfrom(descriptor, &bytes, bytes.count, 0, peer, &size)
                guard count >= 0 else { return }
                bytes[count] = 0x21
                _ = sendto(descriptor, bytes, count + 1, 0, peer, size)
            }
        }
    }

    deinit { close(descriptor) }
}

private func newSocket(isUDP: Bool) -> Int32 {
    let kind = isUDP ? SOCK_DGRAM : SOCK_STREAM
    return socket(AF_INET, Int32(kind.rawValue | SOCK_CLOEXEC.rawValue), 0)
}

/// Longer than a busy machine lets anybody wait who has something to say.
private func setTimeouts(_ descriptor: Int32) {
    var limit = timeval(tv_sec: 120, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
}

/// A port that was free a moment ago.
public func freePort(isUDP: Bool) -> UInt16 { LoopbackSocket(isUDP: isUDP, isListening: false).port }
