internal import CSlirp
internal import Glibc
internal import Host
internal import Synchronization

/// libslirp keeps a list of all its instances without a lock of its own.
private let slirpInstances = Mutex(0)

/// One libslirp instance: a TCP/IP stack that ends the guest's connections and makes them the host's. Made on any thread,
/// then used by one.
@safe final class SlirpStack {
    private var instance: OpaquePointer?
    private let mtu: UInt16
    private let hasIPv6: Bool
    /// Frames for the guest that libslirp produced, in order.
    private let output: ([UInt8]) -> Void
    private var poll = PollSet()
    /// By the address that libslirp knows them by.
    private var timers: [UInt: Timer] = [:]
    /// Trouble that the guest made, which libslirp would print.
    private(set) var guestErrors: UInt64 = 0
    /// libslirp keeps the address: it must outlive the instance, and not move.
    private let callbacks: UnsafeMutablePointer<SlirpCb>

    @safe private struct Timer {
        let identifier: SlirpTimerId
        let argument: UnsafeMutableRawPointer?
        var deadlineMilliseconds: Int64?
    }

    init(_ configuration: UserConfiguration, mtu: UInt16, output: @escaping ([UInt8]) -> Void) throws(NetworkError) {
        self.output = output
        self.mtu = mtu
        hasIPv6 = configuration.hasIPv6
        unsafe callbacks = .allocate(capacity: 1)
        unsafe callbacks.initialize(to: slirpCallbacks)
        var settings = unsafe SlirpStack.settings(configuration, mtu: mtu)
        // SAFETY: this object outlives the instance, which close() ends; the settings are copied by the call.
        let address = slirpInstances.withLock { count in
            count += 1
            return unsafe UInt(bitPattern: slirp_new(&settings, callbacks, Unmanaged.passUnretained(self).toOpaque()))
        }
        unsafe instance = OpaquePointer(bitPattern: address)
        guard unsafe instance != nil else { throw .userNetwork }
        for port in configuration.publishedPorts { try publish(port) }
    }

    deinit {
        close()
        unsafe callbacks.deallocate()
    }

    private static func settings(_ configuration: UserConfiguration, mtu: UInt16) -> SlirpConfig {
        var settings = unsafe SlirpConfig()
        unsafe settings.version = 4
        // libslirp's own restriction forbids the answers to published datagrams too.
        let isIsolated = configuration.egress == .none && configuration.publishedPorts.isEmpty
        unsafe settings.restricted = isIsolated ? 1 : 0
        unsafe settings.in_enabled = true
        unsafe settings.vnetwork = address4(UserNetworkLayout.ipv4.prefix.address)
        unsafe settings.vnetmask = address4(.v4(0xFFFF_FF00))
        unsafe settings.vhost = address4(UserNetworkLayout.ipv4.host)
        unsafe settings.vdhcp_start = address4(UserNetworkLayout.ipv4.guest)
        unsafe settings.vnameserver = address4(UserNetworkLayout.ipv4.nameserver)
        unsafe settings.in6_enabled = configuration.hasIPv6
        unsafe settings.vprefix_addr6 = address6(UserNetworkLayout.ipv6.prefix.address)
        unsafe settings.vprefix_len = 64
        unsafe settings.vhost6 = address6(UserNetworkLayout.ipv6.host)
        unsafe settings.vnameserver6 = address6(UserNetworkLayout.ipv6.nameserver)
        unsafe settings.if_mtu = Int(mtu)
        unsafe settings.if_mru = Int(mtu)
        // The filter lets no query through then; this is for the day on which it has a hole.
        unsafe settings.disable_dns = !configuration.egress.allowsResolver
        return unsafe settings
    }

    private func publish(_ port: PublishedPort) throws(NetworkError) {
        guard let instance = unsafe instance, case .v4(let guest) = UserNetworkLayout.ipv4.guest else { return }
        let result = unsafe slirp_publish(
            instance, port.isUDP ? 1 : 0, port.address, Int32(port.hostPort), guest, Int32(port.guestPort))
        guard result < 0 else { return }
        let error = HostError("", errorNumber: Int32(truncatingIfNeeded: -result))
        throw .portTaken(port, reason: error.reason)
    }

    /// A frame from the guest. Shorter than an Ethernet header there is none (EgressFilter).
    func input(_ frame: [UInt8]) {
        guard let instance = unsafe instance else { return }
        unsafe frame.withUnsafeBufferPointer { buffer in
            guard let base = buffer.baseAddress else { return }
            unsafe slirp_input(instance, base, Int32(truncatingIfNeeded: buffer.count))
        }
    }

    /// Adds libslirp's sockets and returns after how many milliseconds it wants to be called.
    func prepare(_ poll: inout PollSet) -> UInt32 {
        guard let instance = unsafe instance else { return .max }
        var timeout = UInt32.max
        self.poll = poll
        unsafe slirp_pollfds_fill(
            instance, &timeout,
            { descriptor, events, opaque in
                guard let stack = unsafe SlirpStack.from(opaque) else { return -1 }
                return Int32(stack.poll.add(descriptor, SlirpStack.hostEvents(events)))
            }, Unmanaged.passUnretained(self).toOpaque())
        poll = self.poll
        self.poll = PollSet()
        for timer in timers.values {
            guard let deadline = timer.deadlineMilliseconds else { continue }
            timeout = min(timeout, UInt32(clamping: max(deadline - SlirpStack.milliseconds, 0)))
        }
        return timeout
    }

    /// What happened to the sockets that `prepare` added.
    func advance(_ poll: PollSet) {
        guard let instance = unsafe instance else { return }
        self.poll = poll
        unsafe slirp_pollfds_poll(
            instance, 0,
            { index, opaque in
                guard let stack = unsafe SlirpStack.from(opaque) else { return 0 }
                return SlirpStack.slirpEvents(stack.poll.events(at: Int(index)))
            }, Unmanaged.passUnretained(self).toOpaque())
        self.poll = PollSet()
        fireTimers()
    }

    private func fireTimers() {
        let now = SlirpStack.milliseconds
        for (key, timer) in timers {
            guard let instance = unsafe instance, let deadline = timer.deadlineMilliseconds, deadline <= now
            else { continue }
            timers[key]?.deadlineMilliseconds = nil
            unsafe slirp_handle_timer(instance, timer.identifier, timer.argument)
        }
    }

    /// Ends the instance and all its connections.
    func close() {
        guard let instance = unsafe instance else { return }
        unsafe self.instance = nil
        slirpInstances.withLock { count in
            unsafe slirp_cleanup(instance)
            count -= 1
        }
    }

    // MARK: What libslirp calls

    fileprivate static func from(_ opaque: UnsafeMutableRawPointer?) -> SlirpStack? {
        // SAFETY: the object that was given to slirp_new; it outlives the instance.
        unsafe opaque.map { unsafe Unmanaged<SlirpStack>.fromOpaque($0).takeUnretainedValue() }
    }

    fileprivate func emit(_ frame: UnsafeRawBufferPointer) { output(unsafe Array(frame)) }

    fileprivate func countGuestError() { guestErrors &+= 1 }

    fileprivate func makeTimer(
        _ identifier: SlirpTimerId, _ argument: UnsafeMutableRawPointer?
    ) -> UnsafeMutableRawPointer {
        // Only its address counts: the timer's name for libslirp.
        let key = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)
        unsafe timers[UInt(bitPattern: key)] = Timer(identifier: identifier, argument: argument)
        return unsafe key
    }

    fileprivate func arm(_ key: UnsafeMutableRawPointer?, milliseconds: Int64) {
        timers[UInt(bitPattern: key)]?.deadlineMilliseconds = milliseconds
    }

    fileprivate func removeTimer(_ key: UnsafeMutableRawPointer?) {
        guard let key = unsafe key, timers.removeValue(forKey: UInt(bitPattern: key)) != nil else { return }
        unsafe key.deallocate()
    }

    private static var milliseconds: Int64 { Int64(clamping: HostClock.monotonicNanoseconds / 1_000_000) }

    private static let eventPairs: [(slirp: Int32, host: Int16)] = [
        (Int32(SLIRP_POLL_IN), Int16(POLLIN)), (Int32(SLIRP_POLL_OUT), Int16(POLLOUT)),
        (Int32(SLIRP_POLL_PRI), Int16(POLLPRI)), (Int32(SLIRP_POLL_ERR), Int16(POLLERR)),
        (Int32(SLIRP_POLL_HUP), Int16(POLLHUP)),
    ]

    private static func hostEvents(_ events: Int32) -> Int16 {
        eventPairs.reduce(0) { events & $1.slirp != 0 ? $0 | $1.host : $0 }
    }

    private static func slirpEvents(_ events: Int16) -> Int32 {
        eventPairs.reduce(0) { events & $1.host != 0 ? $0 | $1.slirp : $0 }
    }

    private static func address4(_ address: IPAddress) -> in_addr {
        guard case .v4(let value) = address else { return in_addr() }
        return in_addr(s_addr: value.bigEndian)
    }

    private static func address6(_ address: IPAddress) -> in6_addr {
        guard case .v6(let value) = address else { return in6_addr() }
        // SAFETY: both are sixteen bytes without invalid patterns.
        return unsafe unsafeBitCast(value.bigEndian, to: in6_addr.self)
    }
}

/// The functions that libslirp calls, always on the thread that called it.
private var slirpCallbacks: SlirpCb {
    var callbacks = SlirpCb()
    unsafe callbacks.send_packet = { bytes, count, opaque in
        guard let bytes = unsafe bytes, let stack = unsafe SlirpStack.from(opaque) else { return -1 }
        unsafe stack.emit(UnsafeRawBufferPointer(start: bytes, count: count))
        return count
    }
    unsafe callbacks.guest_error = { _, opaque in unsafe SlirpStack.from(opaque)?.countGuestError() }
    unsafe callbacks.clock_get_ns = { _ in Int64(clamping: HostClock.monotonicNanoseconds) }
    unsafe callbacks.timer_new_opaque = { identifier, argument, opaque in
        unsafe SlirpStack.from(opaque)?.makeTimer(identifier, argument)
    }
    unsafe callbacks.timer_free = { timer, opaque in unsafe SlirpStack.from(opaque)?.removeTimer(timer) }
    unsafe callbacks.timer_mod = { timer, time, opaque in
        unsafe SlirpStack.from(opaque)?.arm(timer, milliseconds: time)
    }
    // The set of descriptors is made anew before each wait, and nobody but the waiting thread calls libslirp.
    unsafe callbacks.register_poll_fd = { _, _ in }
    unsafe callbacks.unregister_poll_fd = { _, _ in }
    unsafe callbacks.notify = { _ in }
    return callbacks
}
