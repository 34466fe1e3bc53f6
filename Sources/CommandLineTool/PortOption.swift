internal import ArgumentParser
internal import Host
internal import VMM
internal import Virtio

/// `--console KIND`: what the terminal is in the machine.
enum ConsoleOption: String {
    case serial, virtio

    static func parse(_ text: String) throws -> ConsoleOption {
        guard let option = ConsoleOption(rawValue: text) else {
            throw ValidationError("The consoles are: serial, virtio.")
        }
        return option
    }
}

/// `--port NAME=unix:PATH` or `--port NAME=file:PATH`.
struct PortOption: Equatable {
    enum Target: Equatable {
        case socket, file
    }

    var name: String
    var target: Target
    var path: String

    /// One device has them all.
    static let limit = VirtioConsole.portLimit
    private static let nameLimit = 64

    static func parse(_ text: String) throws -> PortOption {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let place = parts.count == 2 ? parts[1].split(separator: ":", maxSplits: 1) : []
        let target: Target? =
            switch place.first {
            case "unix": .socket
            case "file": .file
            default: nil
            }
        guard let target, place.count == 2 else {
            throw ValidationError(
                "It is a name and a place on the host: agent=unix:/run/user/1000/agent.sock or log=file:guest.log.")
        }
        let isPlain = parts[0].utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
                || [0x2D, 0x2E, 0x5F].contains(byte)
        }
        guard isPlain, (1...nameLimit).contains(parts[0].utf8.count), parts[0].first != "." else {
            throw ValidationError(
                "The port's name, \(parts[0]), must be 1 to \(nameLimit) letters, digits, '-', '_' and '.'.")
        }
        return PortOption(name: String(parts[0]), target: target, path: String(place[1]))
    }

    /// What is wrong with several together.
    static func check(_ ports: [PortOption]) throws {
        if let name = Dictionary(grouping: ports, by: \.name).first(where: { $0.value.count > 1 })?.key {
            throw ValidationError("Two ports are called \(name): give each a name of its own")
        }
        guard ports.count <= limit else {
            throw ValidationError("A machine has at most \(limit) ports, not \(ports.count)")
        }
    }

    /// All of them, open for all restarts of the machine. `log` gets a line when a file takes nothing any more.
    static func open(
        _ ports: [PortOption], log: @escaping @Sendable (String) -> Void
    ) throws(MachineError) -> [ConsoleEndpoint] {
        var endpoints: [ConsoleEndpoint] = []
        for port in ports {
            do throws(MachineError) {
                endpoints.append(try port.open(log: log))
            } catch {
                for endpoint in endpoints { endpoint.close() }
                throw error
            }
        }
        return endpoints
    }

    private func open(log: @escaping @Sendable (String) -> Void) throws(MachineError) -> ConsoleEndpoint {
        do throws(HostError) {
            switch target {
            case .file: return try ConsoleEndpoint(name: name, appendingTo: path, onTrouble: log)
            case .socket: return try ConsoleEndpoint(name: name, listeningAt: path)
            }
        } catch {
            throw MachineError("--port \(name): \(error). \(hint(error))")
        }
    }

    private func hint(_ error: HostError) -> String {
        if target == .file { return "Give a regular file that you may write to." }
        return error.isAddressInUse
            ? "Another machine listens there; choose another name."
            : "Choose another name, of at most 107 bytes, in a folder that you may write to."
    }
}
