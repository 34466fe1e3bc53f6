internal import ArgumentParser
internal import Host
internal import Net
internal import VMM
internal import Virtio

/// `--net`, `--publish` and `--capture`: which cards a machine has, and what they are plugged into.
enum NetworkOptions {
    static func parse(_ text: String) throws -> NetworkConfiguration {
        do {
            return try NetworkConfiguration(option: text)
        } catch {
            throw ValidationError(error.description)
        }
    }

    static func parsePort(_ text: String) throws -> PublishedPort {
        do {
            return try PublishedPort(option: text)
        } catch {
            throw ValidationError(error.description)
        }
    }

    /// The cards in their order, with published ports and capture where they belong.
    static func cards(
        _ networks: [NetworkConfiguration], publish ports: [PublishedPort], capture: String?
    ) throws -> [NetworkConfiguration] {
        var cards = networks
        if cards.isEmpty, !ports.isEmpty || capture != nil { cards = [NetworkConfiguration()] }
        if !ports.isEmpty {
            let index = cards.firstIndex { if case .user = $0.kind { true } else { false } }
            guard let index, case .user(var user) = cards[index].kind else {
                throw ValidationError("--publish needs a user network: add --net user")
            }
            user.publishedPorts = ports
            cards[index].kind = .user(user)
        }
        if let capture {
            guard !capture.isEmpty else { throw ValidationError("--capture needs a file's name") }
            guard cards.count == 1, cards[0].capturePath == nil, cards[0].kind != .none else {
                throw ValidationError(
                    "--capture is for a machine with one card: write capture=FILE in the --net that you mean")
            }
            cards[0].capturePath = capture
        }
        return cards
    }

    /// Opens each network and starts its thread. `log` gets a line for each event of them.
    static func open(
        _ cards: [NetworkConfiguration], log: @escaping @Sendable (String) -> Void
    ) throws(MachineError) -> [DeviceConfiguration] {
        var devices: [DeviceConfiguration] = []
        do throws(NetworkError) {
            for card in cards {
                let backend = try card.open { log($0.description) }
                do throws(NetworkError) {
                    devices.append(.network(try NetworkPort(backend), options(card)))
                } catch {
                    backend.close()
                    throw error
                }
            }
        } catch {
            close(devices)
            throw MachineError("\(error).")
        }
        return devices
    }

    private static func options(_ card: NetworkConfiguration) -> NetworkCardOptions {
        var options = NetworkCardOptions(mac: card.chooseMAC(), queuePairs: card.queuePairs)
        if let bandwidth = card.limits.bandwidth {
            options.speed = UInt32(clamping: min(max(bandwidth / 125_000, 1), 0x7FFF_FFFF))
        }
        return options
    }

    /// What passed each card's cable and what did not, a line each.
    static func figures(_ devices: [DeviceConfiguration]) -> [String] {
        devices.compactMap { device in
            guard case .network(let port, _) = device else { return nil }
            let counts = port.statistics
            let lost: [(UInt64, String)] = [
                (counts.egress.refused, "refused"), (counts.egress.discardedMulticast, "multicast"),
                (counts.malformedFrames, "malformed"), (counts.undeliverableFrames, "undeliverable"),
                (counts.overrunFrames, "without room"), (counts.throttled, "delayed by limits"),
            ]
            // Which are not counted.
            let others = port.wasHandedOver ? "vhost-net; past it " : ""
            return "\(port.name): \(others)\(counts.sentFrames) frames sent (\(counts.sentBytes) bytes), "
                + "\(counts.receivedFrames) received (\(counts.receivedBytes) bytes)"
                + lost.filter { $0.0 > 0 }.map { ", \($0.0) \($0.1)" }.joined()
        }
    }

    /// Ends the threads of all networks and what they have open.
    static func close(_ devices: [DeviceConfiguration]) {
        for case .network(let port, _) in devices { port.close() }
    }
}
