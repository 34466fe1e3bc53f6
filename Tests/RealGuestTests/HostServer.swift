internal import Foundation

/// A program of the host that runs beside a guest, and ends with its owner.
final class HostServer {
    private let process = Process()
    private let output = Pipe()

    init(_ name: String, _ arguments: [String]) throws {
        process.executableURL = URL(filePath: RealGuest.tool(name) ?? "/nonexistent/\(name)")
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        try process.run()
    }

    /// A Python program.
    convenience init(python program: String, _ arguments: String...) throws {
        try self.init("python3", ["-u", "-c", program] + arguments)
    }

    /// Its status and what it printed, when it has ended; it is killed at the limit.
    func end(limit: Duration = .seconds(60)) async throws -> RealGuest.Output {
        let end = ContinuousClock.now + limit
        while process.isRunning, ContinuousClock.now < end { try await Task.sleep(for: .milliseconds(20)) }
        stop()
        let text = String(decoding: try output.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
        return RealGuest.Output(status: process.terminationStatus, text: text)
    }

    private func stop() {
        guard process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    deinit { stop() }

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
