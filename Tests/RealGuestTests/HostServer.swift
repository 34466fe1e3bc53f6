internal import Foundation
internal import HostProcess

/// A program of the host that runs beside a guest, and ends with its owner.
final class HostServer {
    private let process: HostProcess

    init(_ name: String, _ arguments: [String]) throws {
        process = try HostProcess(
            RealGuest.tool(name) ?? "/nonexistent/\(name)", arguments, output: .pipe, errors: .output)
    }

    /// A Python program.
    convenience init(python program: String, _ arguments: String...) throws {
        try self.init("python3", ["-u", "-c", program] + arguments)
    }

    /// Its status and what it printed, when it has ended; it is killed at the limit.
    func end(limit: Duration = .seconds(60)) async -> RealGuest.Output {
        _ = await process.waitOrKill(limit: limit)
        return RealGuest.Output(status: process.status, text: String(decoding: process.readToEnd(), as: UTF8.self))
    }

    /// TCP ports of the host's loopback that nobody has at the moment.
    static func freePorts(_ count: Int) throws -> [Int] {
        let program = """
            import socket, sys
            sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
            for one in sockets: one.bind(("127.0.0.1", 0))
            print(*(one.getsockname()[1] for one in sockets))
            """
        return try RealGuest.run("python3", "-c", program, "\(count)").text.split(whereSeparator: \.isWhitespace)
            .compactMap { Int($0) }
    }
}
