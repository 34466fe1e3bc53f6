internal import DeviceModel
internal import Disk
internal import FileShare
internal import Fuzzing
internal import Glibc
internal import GuestMemory
internal import Host
internal import HostNetwork
internal import Net
internal import Platform
internal import SoftKVM
internal import Testing
internal import Virtio

@testable internal import VMM

/// A small kernel that reads ports and writes memory without end (Multiboot 0.6.96 §3.1, with its own addresses).
struct BusyKernel: BootFile {
    private static let base: UInt32 = 0x10_0000
    private static let code: [UInt8] = [
        0xBC, 0x00, 0x00, 0x18, 0x00,  // mov $0x180000, %esp
        0x69, 0xDB, 0x0D, 0x66, 0x19, 0x00,  // 1: imul $1664525, %ebx, %ebx
        0x81, 0xC3, 0x5F, 0xF3, 0x6E, 0x3C,  // add $1013904223, %ebx
        0x89, 0xDA, 0xC1, 0xEA, 0x10,  // mov %ebx, %edx; shr $16, %edx
        0x81, 0xE2, 0xFF, 0x1F, 0x00, 0x00, 0xEC,  // and $0x1fff, %edx; in %dx, %al
        0x88, 0x82, 0x00, 0x00, 0x19, 0x00,  // mov %al, 0x190000(%edx)
        0x53, 0x5B, 0xEB, 0xDE,  // push %ebx; pop %ebx; jmp 1b
    ]
    private let bytes: [UInt8]

    init() {
        let start = Self.base + 32
        let end = start + UInt32(Self.code.count)
        let words: [UInt32] = [0x1BAD_B002, 0x1_0000, 0 &- 0x1BAE_B002, Self.base, Self.base, end, end, start]
        bytes = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) } } + Self.code
    }

    var name: String { "busy" }
    var size: UInt64 { UInt64(bytes.count) }

    func read(count: Int, at offset: UInt64) throws(BootFileError) -> [UInt8] {
        guard count >= 0, offset <= size, UInt64(count) <= size - offset else { throw BootFileError("it ended") }
        return Array(bytes[Int(offset)..<Int(offset) + count])
    }
}

/// A machine with one of each device, and what stays of them at the host.
private final class StateFuzzRig {
    private let directory: String
    private let disks: [ImageDisk]
    private let port: NetworkPort
    private let sockets: SocketEndpoint
    private let consolePort: ConsoleEndpoint
    let configuration: MachineConfiguration

    init() throws {
        var template = Array("/tmp/martlet-state-XXXXXX".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        try DiskImage.createRaw(directory + "/raw", size: 1 << 20)
        try DiskImage.createQCOW2(directory + "/qcow2", size: 1 << 20, QCOW2Options())
        disks = [
            ImageDisk(try DiskImage.open(directory + "/raw", .raw, .init(isWritable: true))),
            ImageDisk(try DiskImage.open(directory + "/qcow2", .qcow2, .init(isWritable: true))),
        ]
        port = try NetworkPort(NetworkConfiguration(.none).open(log: { _ in }))
        sockets = try SocketEndpoint(path: directory + "/s", guestCID: 3)
        consolePort = try ConsoleEndpoint(name: "agent", listeningAt: directory + "/p")
        var devices: [DeviceConfiguration] = disks.map { .disk($0, BlockConfigurationOptions()) }
        devices += [
            .network(port, NetworkCardOptions(mac: MACAddress(random: [1, 2, 3, 4, 5]))), .entropy,
            .fileSystem(try FileShare(path: directory), tag: "t"), .socket(sockets), .console, .ports([consolePort]),
            .balloon(BalloonControl(targetPages: 16)),
        ]
        // So many that the last ones are behind root ports.
        devices += Array(repeating: .entropy, count: 24)
        configuration = MachineConfiguration(
            memorySize: 4 << 20, kernel: BusyKernel(), serial: .defaultGuest, devices: devices, isTransitional: true)
    }

    deinit {
        consolePort.close()
        sockets.close()
        port.close()
        for disk in disks { try? disk.close() }
        for name in ["raw", "qcow2"] { unlink(directory + "/" + name) }
        rmdir(directory)
    }
}

/// Whole machines from saved states that were meddled with: refused, or the machine runs, can be told to stand still and
/// to end, and leaves the process alive.
@Suite("Hostile saved states of machines", .serialized)
struct StateFuzzTests {
    private func damage(_ state: inout MachineSavedState, _ random: inout SeededGenerator) throws {
        func changed(_ bytes: [UInt8]) -> [UInt8] { Damage.done(to: bytes, behind: 4, using: &random) }
        switch Int.random(in: 0..<8, using: &random) {
        case 0...2: state.processor = try ProcessorSavedState(encoded: changed(state.processor.encoded()))
        case 3: state.controllers = try ControllerSavedState(encoded: changed(state.controllers.encoded()))
        case 4:
            guard let place = state.board.devices.keys.sorted().randomElement(using: &random) else { return }
            state.board.devices[place] = changed(state.board.devices[place] ?? [])
        case 5:
            guard
                let index = state.pci.ports.indices.filter({ state.pci.ports[$0] != nil })
                    .randomElement(using: &random)
            else { return }
            state.pci.ports[index] = changed(state.pci.ports[index] ?? [])
        default:
            let index = Int.random(in: 0..<state.pci.devices.count, using: &random)
            state.pci.devices[index] = changed(state.pci.devices[index])
        }
    }

    /// The state of a machine that has run a little.
    private func savedState(
        _ rig: StateFuzzRig, on system: SoftSystem, _ activity: EventNotifier
    ) throws -> MachineSavedState {
        let machine = try Machine(rig.configuration, on: system, activity: activity)
        try machine.start()
        HostClock.sleep(nanoseconds: 20_000_000)
        #expect(try machine.standStill())
        let saved = try machine.save()
        machine.end(with: .stopped)
        machine.waitForEnd()
        return saved
    }

    private func entries(_ directory: String) -> Int {
        guard let stream = opendir(directory) else { return 0 }
        defer { closedir(stream) }
        var count = 0
        while readdir(stream) != nil { count += 1 }
        return count
    }

    @Test("A machine that cannot be restored leaves no descriptors and no threads behind")
    func leftovers() async {
        // In a process of its own, because both are counted by process.
        await #expect(processExitsWith: .success) { try StateFuzzTests().countLeftovers() }
    }

    private func countLeftovers() throws {
        let rig = try StateFuzzRig()
        let system = SoftSystem()
        let activity = try EventNotifier()
        let saved = try savedState(rig, on: system, activity)
        let before = (entries("/proc/self/fd"), entries("/proc/self/task"))
        var attempts = 0
        func attempt(_ damage: (inout MachineSavedState) -> Void) {
            var state = saved
            damage(&state)
            attempts += 1
            #expect(throws: MachineError.self) {
                try Machine(restoring: state, rig.configuration, on: system, activity: activity)
            }
        }
        // Whatever was made before the one that fails, in whatever order.
        for index in saved.pci.devices.indices {
            attempt { $0.pci.devices[index].removeLast() }
            if saved.pci.ports[index] != nil { attempt { $0.pci.ports[index]?.removeLast() } }
        }
        for place in saved.board.devices.keys { attempt { $0.board.devices[place]?.removeLast() } }
        attempt { $0.controllers.timer.removeLast() }
        attempt { $0.memory.removeLast() }
        #expect(attempts > 40)
        // Threads end in a moment; the test library has some of its own.
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        var after = (entries("/proc/self/fd"), entries("/proc/self/task"))
        while after.0 >= before.0 + 5 || after.1 >= before.1 + 10, HostClock.monotonicNanoseconds < end {
            HostClock.sleep(nanoseconds: 10_000_000)
            after = (entries("/proc/self/fd"), entries("/proc/self/task"))
        }
        #expect(after.0 < before.0 + 5 && after.1 < before.1 + 10, "\(before), then \(after)")
    }

    @Test(
        "Refused, or it runs and ends", .timeLimit(.minutes(30)), arguments: [SoftwareEngine.interpreter, .translator])
    func machines(engine: SoftwareEngine) throws {
        let rig = try StateFuzzRig()
        let system = SoftSystem(engine: engine)
        let activity = try EventNotifier()
        let saved = try savedState(rig, on: system, activity)
        var (built, ran) = (0, 0)
        func attempt(_ seed: UInt64) throws {
            var random = SeededGenerator(seed: seed)
            var state = saved
            do {
                for _ in 0...Int.random(in: 0..<2, using: &random) { try damage(&state, &random) }
            } catch is SavedStateError {
                return
            }
            let machine: Machine
            do throws(MachineError) {
                machine = try Machine(restoring: state, rig.configuration, on: system, activity: activity)
            } catch {
                #expect(!error.description.isEmpty)
                return
            }
            built += 1
            let begin = HostClock.monotonicNanoseconds
            try machine.start()
            HostClock.sleep(nanoseconds: UInt64.random(in: 0..<4_000_000, using: &random))
            if try machine.standStill() {
                ran += 1
                let again = try machine.save()
                #expect(try ProcessorSavedState(encoded: again.processor.encoded()) == again.processor, "seed \(seed)")
                try machine.resume()
            }
            machine.end(with: .stopped)
            machine.waitForEnd()
            #expect(machine.result != nil, "seed \(seed)")
            let seconds = (HostClock.monotonicNanoseconds - begin) / 1_000_000_000
            #expect(seconds < 20, "seed \(seed): it took \(seconds) s to stop")
        }
        var last: UInt64 = 0
        for seed in FuzzSeeds(seconds: 3) {
            try attempt(seed)
            last = seed
        }
        // On a busy host these were few, and most states may be refused.
        let end = HostClock.monotonicNanoseconds + 60_000_000_000
        while ran == 0, HostClock.monotonicNanoseconds < end {
            last &+= 1
            try attempt(last)
        }
        #expect(built > 0 && ran > 0)
    }
}
