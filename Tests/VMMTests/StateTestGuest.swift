internal import Disk
internal import Glibc
internal import Host
internal import HostNetwork
internal import Hypervisor
internal import Net
internal import Platform
internal import Virtio

@testable internal import VMM

/// The default guest in a machine of this process, with what its command prints.
final class StateTestGuest {
    private static let directory =
        (getenv("XDG_CACHE_HOME").map { String(cString: $0) }
            ?? (getenv("HOME").map { String(cString: $0) } ?? "/root") + "/.cache") + "/martlet/guest"
    static let isPresent = exists(directory + "/vmlinuz") && exists(directory + "/initramfs.cpio")

    /// A program for it (Guests/guest-tool.c).
    static let tool = ".build/guests/guest-tool"

    private var configuration: MachineConfiguration
    private let makeDevices: () throws -> [DeviceConfiguration]
    private let system: any HypervisorSystem
    private let activity: EventNotifier
    private(set) var machine: Machine
    /// When its first machine was not there yet, and for how long it has stood still between its machines.
    private let birth = HostClock.monotonicNanoseconds
    private var stoodStill: UInt64 = 0
    /// The command's standard output.
    private(set) var output = ""
    private(set) var console = ""

    /// `script` runs in the guest's shell; when it ends the guest switches itself off. `devices` are asked for again for
    /// each machine that takes the place of another.
    init(
        _ script: String, append: String = "", devices: @autoclosure @escaping () throws -> [DeviceConfiguration] = [],
        on system: any HypervisorSystem
    ) throws {
        let initramfs = try HostFile(path: Self.directory + "/initramfs.cpio", role: "initramfs")
        let command = GuestCommand(arguments: ["sh", "-c", script])
        configuration = MachineConfiguration(
            memorySize: 256 << 20, kernel: try HostFile(path: Self.directory + "/vmlinuz", role: "kernel"),
            modules: [BootModule(file: JoinedFile(initramfs, followedBy: command.archive))],
            commandLine: "console=ttyS0 panic=-1 cryptomgr.notests nokaslr mitigations=off tsc=reliable "
                + "no_timer_check i8042.noaux i8042.nokbd rdinit=/init " + append,
            serial: .defaultGuest, devices: try devices())
        makeDevices = devices
        self.system = system
        activity = try EventNotifier()
        machine = try Machine(configuration, on: system, activity: activity)
        try machine.start()
    }

    /// More seconds cannot have passed for the guest.
    var longestLife: Double { Double(HostClock.monotonicNanoseconds - birth - stoodStill) / 1e9 }

    private func take() {
        output += String(decoding: machine.serial[2].take(), as: UTF8.self)
        console += String(decoding: machine.serial[0].take(), as: UTF8.self)
        _ = machine.serial[1].take()
        _ = machine.serial[3].take()
    }

    /// A line of the command's standard input (scripts/guest/init), as far as the machine goes on.
    func give(line: String) {
        var rest = ControlChannel.frame(Array("\(line)\n".utf8))[...]
        _ = waits(seconds: 120) {
            rest = rest.dropFirst(machine.serial[1].send(rest))
            return rest.isEmpty
        }
    }

    /// Until the output has `text`; false when the time is up or the machine has ended.
    func wait(for text: String, seconds: UInt64 = 120) -> Bool {
        let limit = HostClock.monotonicNanoseconds + seconds * 1_000_000_000
        while HostClock.monotonicNanoseconds < limit {
            take()
            if output.contains(text) { return true }
            if machine.result != nil { break }
            HostClock.sleep(nanoseconds: 2_000_000)
        }
        take()
        return output.contains(text)
    }

    /// Until something is so; false when the time is up or the machine has ended.
    func waits(seconds: UInt64, until isSo: () -> Bool) -> Bool {
        let limit = HostClock.monotonicNanoseconds + seconds * 1_000_000_000
        while !isSo(), machine.result == nil, HostClock.monotonicNanoseconds < limit { carry(milliseconds: 2) }
        return isSo()
    }

    /// For so long, as a session does it.
    func carry(milliseconds: UInt64) {
        let limit = HostClock.monotonicNanoseconds + milliseconds * 1_000_000
        while HostClock.monotonicNanoseconds < limit {
            take()
            HostClock.sleep(nanoseconds: 1_000_000)
        }
    }

    /// How the machine ended; nil when the time is up.
    func end(seconds: UInt64 = 180) -> MachineOutcome? {
        let limit = HostClock.monotonicNanoseconds + seconds * 1_000_000_000
        while machine.result == nil, HostClock.monotonicNanoseconds < limit { carry(milliseconds: 5) }
        take()
        let outcome = machine.result?.outcome
        stop()
        return outcome
    }

    func stop() {
        machine.end(with: .stopped)
        machine.waitForEnd()
    }

    /// The machine ends, and another one goes on in its place after `pause`. False: it has ended by itself.
    func replaceMachine(pause: UInt64) throws -> Bool {
        guard try machine.standStill() else { return false }
        let stopped = HostClock.monotonicNanoseconds
        let state = try machine.save()
        take()
        stop()
        take()
        HostClock.sleep(nanoseconds: pause)
        configuration.devices = try makeDevices()
        stoodStill += HostClock.monotonicNanoseconds - stopped
        machine = try Machine(restoring: state, configuration, on: system, activity: activity)
        try machine.start()
        return true
    }
}
