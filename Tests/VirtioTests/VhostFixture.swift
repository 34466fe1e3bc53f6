import DeviceModel
import Glibc
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Net
@testable import Virtio

/// A cable whose one end is a tap to the code under test: its messages are header and frame.
final class Wire: Sendable {
    let tap: Int32
    private let far: Int32

    init() {
        var ends: [Int32] = [0, 0]
        let type = Int32(SOCK_SEQPACKET.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
        precondition(socketpair(AF_UNIX, type, 0, &ends) == 0)
        (tap, far) = (ends[0], ends[1])
    }

    deinit { Glibc.close(far) }

    /// The bytes of all messages that wait at the tap (unix(7), SIOCINQ).
    var unread: Int {
        var count: Int32 = 0
        return ioctl(tap, UInt(FIONREAD), &count) == 0 ? Int(count) : -1
    }

    /// False: the cable is full.
    func send(_ frame: [UInt8]) -> Bool {
        let bytes = [UInt8](repeating: 0, count: VirtualNetworkHeader.size) + frame
        return write(far, bytes, bytes.count) == bytes.count
    }

    /// The next frame that came out, without its header.
    func receive() -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: 70_000)
        let count = read(far, &bytes, bytes.count)
        return count > VirtualNetworkHeader.size ? Array(bytes[VirtualNetworkHeader.size..<count]) : nil
    }
}

/// What a card says of vhost-net.
final class VhostLog: Sendable {
    private let all: Lines
    let log: DeviceLog

    private final class Lines: Sendable {
        let lines = Mutex<[String]>([])
    }

    init() {
        let lines = Lines()
        all = lines
        log = DeviceLog(name: "card") { line in lines.lines.withLock { $0.append(line) } }
    }

    func clear() { all.lines.withLock { $0 = [] } }

    var lines: [String] { all.lines.withLock { $0.filter { $0.contains("vhost-net") } } }
}

/// A card on a tap that may be the kernel's, and its driver, which notifies only where it is asked to.
class VhostCard {
    let port: NetworkPort
    let thread: DoorbellThread
    let log = VhostLog()
    private(set) var card: VirtioNet
    private(set) var driver: ModelDriver
    /// The available index of each queue when it was last looked at.
    private var announced: [UInt16] = []
    private var arrived: [[UInt8]] = []
    private var pieces: [[UInt8]] = []
    /// Whether a frame may lie in several buffers.
    private var merges = false

    static let mac = MACAddress(rawValue: 0x0200_0000_0015)

    init(
        _ port: NetworkPort, style: DriverStyle, memory: GuestMemory? = nil, allowsVhost: Bool = true,
        queuePairs: Int = 1, hasDoorbells: Bool = true
    ) throws {
        self.port = port
        thread = try DoorbellThread()
        var options = Self.options(allowsVhost)
        options.queuePairs = queuePairs
        card = VirtioNet(port, options: options)
        driver = try ModelDriver(
            card, style: style, memory: memory, doorbellThread: hasDoorbells ? thread : nil, log: log.log)
    }

    func start(_ features: UInt64 = NetFeature.mergeableBuffers) throws {
        try #require(driver.start(features: features | NetFeature.controlQueue))
        announced = driver.queues.map { _ in 0 }
        pieces = []
        merges = features & NetFeature.mergeableBuffers != 0
    }

    private static func options(_ allowsVhost: Bool) -> NetworkCardOptions {
        var options = NetworkCardOptions(mac: mac)
        options.allowsVhost = allowsVhost
        return options
    }

    var usesVhost: Bool {
        if case .inKernel = card.link.withLock({ $0 }) { return true }
        return false
    }

    /// A frame each way, through whichever path is the card's now.
    func expectTraffic(_ number: Int, _ location: SourceLocation = #_sourceLocation) throws {}

    func end() {
        driver.transport.shutDown()
        card.unplug()
        thread.stop()
        port.close()
    }

    /// Stops, saves as bytes, and goes on with a card that was made of them.
    func move(allowsVhost: Bool, meanwhile: () throws -> Void = {}) throws {
        driver.transport.pause()
        #expect(!usesVhost)
        let saved = try VirtioPCISavedState(encoded: driver.transport.save().encoded())
        let state = try VirtioNetSavedState(encoded: saved.device)
        try meanwhile()
        card = try VirtioNet(restoring: state, port, options: Self.options(allowsVhost))
        let transport = try VirtioPCIDevice(
            restoring: saved, card, memory: driver.memory, log: log.log, doorbellThread: thread)
        driver = ModelDriver(continuing: driver, with: transport)
        driver.transport.resume()
    }

    /// Resets one queue and brings it back, empty (Virtio 1.2 §2.6.1).
    func resetQueue(_ index: Int) throws {
        driver.resetQueue(index)
        if announced.indices.contains(index) { announced[index] = 0 }
    }

    // MARK: The driver's side

    private func load(_ address: UInt64) throws -> UInt16 {
        try driver.memory.loadAcquire(at: GuestPhysicalAddress(address))
    }

    /// Rings a queue's doorbell as an engine does, where the device has asked for that (Virtio 1.2 §2.7.10).
    func notifyIfWanted(_ index: Int) throws {
        let queue = driver.queues[index]
        let new = try load(queue.driverArea + 2)
        let old = announced[index]
        announced[index] = new
        guard new != old else { return }
        if driver.style.hasEventIndex {
            let event = try load(queue.deviceArea + 4 + 8 * UInt64(queue.size))
            guard new &- event &- 1 < new &- old else { return }
        } else if try load(queue.deviceArea) & 1 != 0 {
            return
        }
        try ringDoorbell(index)
    }

    func ringDoorbell(_ index: Int) throws {
        let doorbells = driver.connection.regions.flatMap(\.doorbells)
        try #require(doorbells.count > index)
        var one: UInt64 = 1
        #expect(write(doorbells[index].notifier.eventDescriptor, &one, 8) == 8)
    }

    /// False: the ring has no room.
    func send(_ frame: [UInt8]) throws -> Bool {
        _ = try driver.queues[1].collect()
        let bytes = VirtualNetworkHeader().bytes + frame
        let parts: [ModelQueue.Part] = [.readable(Array(bytes.prefix(20))), .readable(Array(bytes.dropFirst(20)))]
        guard driver.queues[1].freeCount >= 2, try driver.queues[1].submit(parts) else { return false }
        try notifyIfWanted(1)
        return true
    }

    func refill(_ size: Int) throws {
        var isNew = false
        while driver.queues[0].freeCount > 0 {
            try driver.queues[0].submit([.writable(size)])
            isNew = true
        }
        if isNew { try notifyIfWanted(0) }
    }

    /// The frames that have arrived since the last call, put together as their headers say. Where buffers are not merged
    /// their number is no driver's business: Linux 6.1 leaves there what the buffer held.
    func received() throws -> [[UInt8]] {
        pieces += try driver.queues[0].collect().map { Array($0.bytes.prefix(Int($0.written))) }
        while let first = pieces.first {
            let header = try #require(VirtualNetworkHeader(first))
            let count = merges ? max(Int(header.bufferCount), 1) : 1
            guard pieces.count >= count else { break }
            let whole = pieces.prefix(count).flatMap { $0 }
            pieces.removeFirst(count)
            arrived.append(Array(whole.dropFirst(VirtualNetworkHeader.size)))
        }
        defer { arrived = [] }
        return arrived
    }

}

/// What a card does on either path, and on the way between them.
extension VhostCard {
    /// Resets of the device, and one of a queue: from that on all comes through this process, until the device starts
    /// anew.
    func expectResets(of queue: Int) throws {
        for round in 0..<3 {
            try expectTraffic(round)
            driver.setStatus(0)
            #expect(!usesVhost)
            try start()
            #expect(usesVhost)
        }
        try expectTraffic(10)
        try resetQueue(queue)
        #expect(!usesVhost)
        try expectTraffic(20)
        try expectTraffic(22)
        driver.transport.pause()
        driver.transport.resume()
        #expect(usesVhost)
        try expectTraffic(30)
    }

    /// A buffer outside of the guest's memory; `offer` has a frame come for it. Then a reset.
    func expectFailure(of queue: Int, offer: () throws -> Void) throws {
        let ring = driver.queues[queue]
        try driver.memory.store(UInt64(1) << 40, at: GuestPhysicalAddress(ring.descriptors))
        try driver.memory.store(UInt32(2000), at: GuestPhysicalAddress(ring.descriptors + 8))
        try driver.memory.store(UInt32(queue == 0 ? 2 : 0), at: GuestPhysicalAddress(ring.descriptors + 12))
        try driver.memory.store(UInt16(1), at: GuestPhysicalAddress(ring.driverArea + 2))
        try ringDoorbell(queue)
        try offer()
        #expect(eventually { driver.needsReset ? true : nil } == true)
        driver.setStatus(0)
        try start()
        #expect(usesVhost)
    }

    /// What the process has open and how many threads, for a test to compare: other tests run meanwhile and have some.
    struct Belongings: Equatable {
        let descriptors = Self.count("/proc/self/fd")
        let threads = Self.count("/proc/self/task")

        private static func count(_ directory: String) -> Int {
            guard let stream = opendir(directory) else { return 0 }
            defer { closedir(stream) }
            var count = 0
            while readdir(stream) != nil { count += 1 }
            return count
        }

        /// Fewer than so many more. Threads end in a moment, and what other tests have goes with them.
        func expectKept(within limits: (descriptors: Int, threads: Int) = (100, 50)) {
            var now = Belongings()
            let isKept = eventually(seconds: 120) { () -> Bool? in
                now = Belongings()
                let areFew =
                    now.descriptors < descriptors + limits.descriptors && now.threads < threads + limits.threads
                return areFew ? true : nil
            }
            #expect(isKept == true, "\(self), then \(now)")
        }
    }
}

/// Such a card on a cable in the test's hands, and a model of vhost-net.
final class VhostFixture: VhostCard {
    let wire = Wire()
    let maker = VhostModel.Maker()

    init(
        style: DriverStyle = DriverStyle(), features: UInt64 = NetFeature.mergeableBuffers,
        memory: GuestMemory? = nil, isRequired: Bool = false, allowsVhost: Bool = true, startsDriver: Bool = true,
        queuePairs: Int = 1, nativeOffloads: Offloads = .transmit, hasDoorbells: Bool = true
    ) throws {
        let (maker, wire) = (maker, wire)
        let offer = VhostOffer(tap: BorrowedDescriptor(wire.tap), isRequired: isRequired) { () throws(HostError) in
            try maker.open()
        }
        let transport = TapTransport(
            FileDescriptor(owning: wire.tap), name: "tap test", nativeOffloads: nativeOffloads, vhost: offer
        ) { _ in }
        let port = try NetworkPort(try BackendLoop(transport, mtu: 1500, limits: TrafficLimits(), capture: nil))
        try super.init(
            port, style: style, memory: memory, allowsVhost: allowsVhost, queuePairs: queuePairs,
            hasDoorbells: hasDoorbells)
        if startsDriver { try start(features) }
    }

    override var usesVhost: Bool {
        let isActive = maker.active != nil
        #expect(!isActive || super.usesVhost)
        return isActive
    }

    /// What the model found wrong is an issue.
    override func end() {
        super.end()
        #expect(maker.record.withLock { $0.violations } == [])
    }

    override func expectTraffic(_ number: Int, _ location: SourceLocation = #_sourceLocation) throws {
        let (out, back) = (CardFixture.frame(number, 300), CardFixture.frame(number + 1, 900))
        try refill(1526)
        #expect(try send(out), sourceLocation: location)
        #expect(wire.send(back), sourceLocation: location)
        #expect(eventually { wire.receive() } == out, sourceLocation: location)
        #expect(try eventually { try received().first } == back, sourceLocation: location)
    }
}

/// The first result that is not nil, within a time that only a busy host needs.
func eventually<Result>(seconds: UInt64 = 60, _ body: () throws -> Result?) rethrows -> Result? {
    let end = HostClock.monotonicNanoseconds + seconds * 1_000_000_000
    repeat {
        if let result = try body() { return result }
        HostClock.sleep(nanoseconds: 50_000)
    } while HostClock.monotonicNanoseconds < end
    return nil
}
