public import Host
internal import Synchronization

/// The host's end of a console's named port: a file that gets what the guest writes, or a Unix socket with one client
/// at a time. It outlives restarts of a machine.
public final class ConsoleEndpoint: Sendable {
    /// What the guest finds it by under /dev/virtio-ports.
    public let name: String
    private let kind: Kind
    private let onTrouble: @Sendable (String) -> Void

    private enum Kind: Sendable {
        case file(ConsoleFile)
        case socket(ConsoleSocket)
    }

    /// The guest's bytes go behind what is in the file at `path`, which is made if there is none. Fails with EINVAL where
    /// it is no regular file.
    public init(
        name: String, appendingTo path: String, onTrouble: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(HostError) {
        self.name = name
        self.onTrouble = onTrouble
        kind = .file(try ConsoleFile(path: path))
    }

    /// Begins to listen at `path` (mode 0600); a socket there that nobody listens on is replaced. Clients beyond the first
    /// wait until it has gone.
    public init(name: String, listeningAt path: String) throws(HostError) {
        self.name = name
        onTrouble = { _ in }
        kind = .socket(try ConsoleSocket(path: path))
    }

    /// The endpoint is from now on the host's end of that port, until `unplug`.
    public func plug(into console: VirtioConsole, port: Int) {
        if case .socket(let socket) = kind { socket.plug(into: console, port: port) }
    }

    public func unplug() {
        if case .socket(let socket) = kind { socket.unplug() }
    }

    /// The end: the socket's name goes, and its client.
    public func close() {
        if case .socket(let socket) = kind { socket.close() }
    }

    /// How many of the guest's bytes were taken.
    func write(_ bytes: [UInt8]) -> Int {
        switch kind {
        case .socket(let socket): return socket.write(bytes)
        case .file(let file):
            if let error = file.append(bytes) { onTrouble("port \(name): \(error); what the guest writes is lost") }
            return bytes.count
        }
    }

    func inputSpaceAvailable() {
        if case .socket(let socket) = kind { socket.wake() }
    }
}

/// All named ports of one console.
public final class ConsoleEndpoints: ConsoleSink {
    private let endpoints: [ConsoleEndpoint]

    public init(_ endpoints: [ConsoleEndpoint]) { self.endpoints = endpoints }

    public func write(_ bytes: [UInt8], port: Int) -> Int { endpoints[port].write(bytes) }
    public func inputSpaceAvailable(port: Int) { endpoints[port].inputSpaceAvailable() }
}

/// A file that grows.
private final class ConsoleFile: Sendable {
    private let descriptor: FileDescriptor
    private let hasFailed = Mutex(false)

    init(path: String) throws(HostError) {
        let descriptor = try FileDescriptor.open(path, .append)
        try descriptor.requireRegularFile(path)
        self.descriptor = descriptor
    }

    /// The first trouble after a success.
    func append(_ bytes: [UInt8]) -> HostError? {
        hasFailed.withLock { hasFailed in
            do throws(HostError) {
                try descriptor.write(bytes)
                hasFailed = false
                return nil
            } catch {
                defer { hasFailed = true }
                return hasFailed ? nil : error
            }
        }
    }
}
