internal import Host

/// What is wrong with an option's value: a sentence that says what to write instead.
public struct NetworkOptionError: Error, Equatable, Sendable, CustomStringConvertible {
    public var description: String

    public init(_ description: String) { self.description = description }
}

extension NetworkConfiguration {
    /// The value of `--net`: `user[,egress=…]`, `tap,name=…`, `tap,fd=N`, `socket,path=…,peer=…` or `none`; all but none
    /// take `mac=`, `mtu=`, `queues=`, `capture=` and the limits, user and socket `name=`, tap `vhost=`.
    public init(option text: String) throws(NetworkOptionError) {
        var pairs = try OptionPairs(text)
        switch pairs.kind {
        case "user":
            self.init(.user(try NetworkConfiguration.user(&pairs)))
            name = pairs.take("name")
        case "tap": self.init(.tap(try NetworkConfiguration.tap(&pairs)))
        case "socket":
            guard let path = pairs.take("path"), let peer = pairs.take("peer"), path != peer else {
                throw NetworkOptionError("socket needs two paths: socket,path=/run/a,peer=/run/b.")
            }
            self.init(.socket(SocketConfiguration(path: path, peer: peer)))
            name = pairs.take("name")
        case "none": self.init(.none)
        default:
            throw NetworkOptionError("There is no network '\(pairs.kind)'; the networks are: user, tap, socket, none.")
        }
        if kind != .none { try takeCommon(&pairs) }
        try pairs.finish()
    }

    private mutating func takeCommon(_ pairs: inout OptionPairs) throws(NetworkOptionError) {
        if let text = pairs.take("mac") {
            guard let mac = MACAddress(text) else {
                throw NetworkOptionError(
                    "'\(text)' is no card's address; write six bytes, the first one even: mac=02:00:5e:10:00:01.")
            }
            self.mac = mac
        }
        if let text = pairs.take("mtu") {
            let range = NetworkConfiguration.mtuRange
            guard let mtu = UInt16(text), range.contains(mtu) else {
                throw NetworkOptionError("mtu must be from \(range.lowerBound) to \(range.upperBound).")
            }
            self.mtu = mtu
        }
        if let text = pairs.take("queues") {
            let range = NetworkConfiguration.queuePairRange
            guard let count = Int(text), range.contains(count) else {
                throw NetworkOptionError("queues must be from \(range.lowerBound) to \(range.upperBound).")
            }
            queuePairs = count
        }
        capturePath = pairs.take("capture")
        for key in TrafficLimits.keys {
            guard let value = pairs.take(key) else { continue }
            do { _ = try limits.set(key[...], to: value[...]) } catch { throw NetworkOptionError(error.description) }
        }
        if limits.burst != nil, limits.bandwidth == nil {
            throw NetworkOptionError("burst= needs bandwidth=.")
        }
        if limits.operationsBurst != nil, limits.operations == nil {
            throw NetworkOptionError("operations-burst= needs operations=.")
        }
        if case .user(let user) = kind, user.hasIPv6, mtu < 1280 {
            throw NetworkOptionError("ipv6=on needs an mtu of 1280 or more.")
        }
        if let conflict = vhostConflict { throw NetworkOptionError("\(conflict).") }
    }

    private static func user(_ pairs: inout OptionPairs) throws(NetworkOptionError) -> UserConfiguration {
        var user = UserConfiguration()
        if let text = pairs.take("egress") { user.egress = try EgressPolicy(option: text) }
        switch pairs.take("ipv6") {
        case nil, "off": break
        case "on": user.hasIPv6 = true
        default: throw NetworkOptionError("ipv6 is on or off.")
        }
        return user
    }

    private static func tap(_ pairs: inout OptionPairs) throws(NetworkOptionError) -> TapConfiguration {
        guard let vhost = VhostChoice(rawValue: pairs.take("vhost") ?? VhostChoice.automatic.rawValue) else {
            throw NetworkOptionError("vhost is auto, on or off.")
        }
        return TapConfiguration(try tapSource(&pairs), vhost: vhost)
    }

    private static func tapSource(_ pairs: inout OptionPairs) throws(NetworkOptionError) -> TapConfiguration.Source {
        switch (pairs.take("name"), pairs.take("fd")) {
        case (let name?, nil):
            // The kernel's dev_valid_name().
            guard (1...15).contains(name.utf8.count), name != ".", name != "..",
                !name.contains(where: { $0 == "/" || $0 == ":" || $0.isWhitespace })
            else { throw NetworkOptionError("'\(name)' is no interface's name; write tap,name=tap0.") }
            return .name(name)
        case (nil, let number?):
            guard let descriptor = Int32(number), descriptor > 2 else {
                throw NetworkOptionError("'\(number)' is no descriptor for a network; write tap,fd=3.")
            }
            return .descriptor(descriptor)
        default: throw NetworkOptionError("tap needs one of two: tap,name=tap0 or tap,fd=3.")
        }
    }
}

/// KIND[,KEY=VALUE…]. A part without '=' continues the list before it: `egress=host,192.0.2.0/24:443`.
private struct OptionPairs {
    let kind: String
    private var values: [(key: String, value: String)] = []

    init(_ text: String) throws(NetworkOptionError) {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false)
        kind = String(parts[0])
        for part in parts.dropFirst() {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            if pair.count == 2, !pair[0].isEmpty, !pair[1].isEmpty {
                let key = String(pair[0])
                guard !values.contains(where: { $0.key == key }) else {
                    throw NetworkOptionError("'\(key)' is there twice.")
                }
                values.append((key, String(pair[1])))
            } else if pair.count == 1, !part.isEmpty, values.last?.key == "egress" {
                values[values.count - 1].value += ",\(part)"
            } else {
                throw NetworkOptionError("'\(part)' is not KEY=VALUE.")
            }
        }
    }

    mutating func take(_ key: String) -> String? {
        guard let index = values.firstIndex(where: { $0.key == key }) else { return nil }
        return values.remove(at: index).value
    }

    func finish() throws(NetworkOptionError) {
        if let rest = values.first { throw NetworkOptionError("The network '\(kind)' has no '\(rest.key)'.") }
    }
}

extension EgressPolicy {
    /// `all`, `host`, `none`, or a list of `host`, `dns` and CIDR:PORT.
    public init(option text: String) throws(NetworkOptionError) {
        switch text {
        case "all": self = .all
        case "none": self = .none
        default:
            var rules: [Rule] = []
            for part in text.split(separator: ",", omittingEmptySubsequences: false) {
                switch part {
                case "host": rules.append(.host)
                case "dns": rules.append(.resolver)
                default: rules.append(try EgressPolicy.destination(part))
                }
            }
            self = .list(rules)
        }
    }

    /// `192.0.2.0/24:443`, `[2001:db8::]/32:443`, ports `443`, `8000-8100` or `*`, then `/tcp`, `/udp` or both.
    private static func destination(_ text: Substring) throws(NetworkOptionError) -> Rule {
        let problem = NetworkOptionError(
            "'\(text)' is nothing for egress; write all, host, none, dns or 192.0.2.0/24:443[/tcp|/udp], "
                + "[2001:db8::]/32:443, with * for all ports.")
        guard let colon = text.lastIndex(of: ":") else { throw problem }
        var address = text[..<colon]
        if address.first == "[" {
            guard let end = address.firstIndex(of: "]") else { throw problem }
            address = Substring(
                String(address[address.index(after: address.startIndex)..<end]) + address[address.index(after: end)...])
        } else if address.contains(":") {
            throw problem
        }
        guard let prefix = AddressPrefix(address), let ports = EgressPorts(text[text.index(after: colon)...]) else {
            throw problem
        }
        return .destination(prefix, ports)
    }
}

extension EgressPorts {
    fileprivate init?(_ text: Substring) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count) else { return nil }
        let range: ClosedRange<UInt16>
        if parts[0] == "*" {
            range = 0...UInt16.max
        } else {
            let bounds = parts[0].split(separator: "-", omittingEmptySubsequences: false).map { portNumber($0) }
            guard (1...2).contains(bounds.count), let first = bounds[0], let last = bounds[bounds.count - 1],
                first <= last
            else { return nil }
            range = first...last
        }
        switch parts.dropFirst().first {
        case nil: self.init(range)
        case "tcp": self.init(range, allowsUDP: false)
        case "udp": self.init(range, allowsTCP: false)
        default: return nil
        }
    }
}

/// Digits only: `UInt16("+1")` is 1.
private func portNumber(_ text: Substring) -> UInt16? {
    guard let first = text.utf8.first, first >= 0x30, first <= 0x39, let number = UInt16(text), number > 0 else {
        return nil
    }
    return number
}

extension PublishedPort {
    /// The value of `--publish`: `[ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]`.
    public init(option text: String) throws(NetworkOptionError) {
        let problem = NetworkOptionError(
            "'\(text)' is no pair of ports; write 8080:80, 5353:53/udp or 0.0.0.0:8080:80.")
        let halves = text.split(separator: "/", omittingEmptySubsequences: false)
        let isUDP: Bool
        switch halves.count == 2 ? halves[1] : halves.count == 1 ? "tcp" : "" {
        case "tcp": isUDP = false
        case "udp": isUDP = true
        default: throw problem
        }
        let parts = halves[0].split(separator: ":", omittingEmptySubsequences: false)
        guard (2...3).contains(parts.count), let hostPort = portNumber(parts[parts.count - 2]),
            let guestPort = portNumber(parts[parts.count - 1])
        else { throw problem }
        self.init(hostPort: hostPort, guestPort: guestPort, isUDP: isUDP)
        guard parts.count == 3 else { return }
        guard case .v4(let address)? = IPAddress(parts[0]) else { throw problem }
        self.address = address
    }
}
