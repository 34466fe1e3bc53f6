internal import Foundation

/// A blocking stream socket of the file system.
final class UnixSocket: Sendable {
    let descriptor: Int32

    private init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }

    struct Failure: Error {}

    private static func open(
        _ path: String, _ body: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) throws -> UnixSocket {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        // So that no test hangs.
        var limit = timeval(tv_sec: 300, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        guard path.utf8.count < 108 else { throw Failure() }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else { throw Failure() }
        return UnixSocket(descriptor)
    }

    static func listening(at path: String) throws -> UnixSocket {
        try open(path) { bind($0, $1, $2) == 0 ? listen($0, 4) : -1 }
    }

    static func connected(to path: String) throws -> UnixSocket { try open(path) { connect($0, $1, $2) } }

    /// As soon as somebody listens there.
    static func connected(to path: String, within seconds: Double) throws -> UnixSocket {
        let end = Date(timeIntervalSinceNow: seconds)
        while true {
            do { return try connected(to: path) } catch {
                if Date() > end { throw error }
                Thread.sleep(forTimeInterval: 0.02)
            }
        }
    }

    func accepted() throws -> UnixSocket {
        let connection = accept(descriptor, nil, nil)
        guard connection >= 0 else { throw Failure() }
        _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
        return UnixSocket(connection)
    }

    func write(_ data: Data) {
        var rest = Array(data)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    func readAll() -> Data {
        var result = Data()
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { return result }
            result.append(contentsOf: buffer.prefix(count))
        }
    }

    /// One read, of what is there; empty at the end or after `seconds` without anything.
    func readSome(seconds: Int = 60) -> Data {
        var timeout = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        let count = recv(descriptor, &buffer, buffer.count, 0)
        return Data(buffer.prefix(max(count, 0)))
    }

    func readLine() -> String {
        var result: [UInt8] = []
        var byte: UInt8 = 0
        while recv(descriptor, &byte, 1, 0) == 1, byte != 0x0A { result.append(byte) }
        return String(decoding: result, as: UTF8.self)
    }
}
