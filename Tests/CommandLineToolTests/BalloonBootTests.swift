internal import Foundation
internal import HostProcess
internal import Testing

/// Memory that the default guest gives back, as the host sees it: the resident size of Martlet's process.
@Suite(
    "Balloons of the default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct BalloonBootTests {
    /// A machine in the background whose command tells by its output where it is.
    private final class Running {
        let process: HostProcess
        private let scratch: Scratch

        init(_ arguments: [String]) throws {
            scratch = try Scratch()
            process = try HostProcess(
                Martlet.path, arguments, output: .file(scratch.file("out").path),
                errors: .file(scratch.file("err").path))
        }

        var output: String { (try? String(contentsOf: scratch.file("out"), encoding: .utf8)) ?? "" }
        var errors: String { (try? String(contentsOf: scratch.file("err"), encoding: .utf8)) ?? "" }

        /// In MiB (proc(5): VmRSS of /proc/PID/status).
        var residentSize: Int { size("VmRSS:") }
        /// The most that it ever was.
        var peakSize: Int { size("VmHWM:") }

        private func size(_ key: String) -> Int {
            let status = try? String(contentsOfFile: "/proc/\(process.number)/status", encoding: .utf8)
            let line = status?.split(separator: "\n").first { $0.hasPrefix(key) }
            return (line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) >> 10
        }

        /// Whether it becomes true within `seconds`, while the machine runs.
        func eventually(_ seconds: Int, _ condition: () -> Bool) async -> Bool {
            let end = ContinuousClock.now + .seconds(seconds)
            while ContinuousClock.now < end, process.isRunning {
                if condition() { return true }
                try? await Task.sleep(for: .milliseconds(50))
            }
            #expect(process.isRunning, "\(output) \(errors)")
            return process.isRunning && condition()
        }

        func end() async {
            process.signal(SIGTERM)
            _ = await process.waitOrKill(limit: .seconds(20))
        }
    }

    /// 300 MiB of a file in memory, and time to look at what is left when it is gone.
    private static let script = """
        mkdir /tmp/m; mount -t tmpfs -o size=400m tmpfs /tmp/m
        dd if=/dev/zero of=/tmp/m/file bs=1M count=300 2>/dev/null
        echo state=filled; sleep 4
        rm /tmp/m/file; echo state=deleted
        sleep 3000
        """

    @Test("Pages that the guest does not use any more leave the process", arguments: [true, false])
    func reporting(isOn: Bool) async throws {
        let machine = try Running(
            [
                "run", "--timeout", "60m", "--accel", "soft", "--memory", "512M", "--verbose", "--balloon",
                isOn ? "free-page-reporting" : "target=0", "--", "sh", "-c", Self.script,
            ])
        try #require(
            await machine.eventually(60) { machine.output.contains("state=filled") },
            "does the guest's kernel have virtio_balloon? \(machine.output) \(machine.errors)")
        let full = machine.peakSize
        #expect(full > 300)
        #expect(await machine.eventually(30) { machine.output.contains("state=deleted") })
        // The guest's kernel collects free pages for two seconds (mm/page_reporting.c).
        let isReturned = await machine.eventually(isOn ? 60 : 6) { machine.residentSize < full - 250 }
        #expect(isReturned == isOn, "\(full) MiB before, \(machine.residentSize) MiB now")
        await machine.end()
        let line = machine.errors.split(separator: "\n").first { $0.contains("balloon: ") } ?? ""
        #expect(line.contains("MiB of memory") && line.contains("available"), "\(machine.errors)")
        #expect(line.contains(", 0 MiB of free pages returned") != isOn, "\(line)")
    }

    @Test("An inflated balloon's pages leave the process")
    func inflate() async throws {
        // The memory is filled and freed first: pages that were never touched take nothing of the host.
        let script = """
            rmmod virtio_balloon || exit 3
            \(Self.script.replacing("sleep 3000", with: "sleep 3; insmod /lib/modules/virtio_balloon.ko; sleep 3000"))
            """
        let machine = try Running(
            [
                "run", "--timeout", "60m", "--accel", "soft", "--memory", "512M", "--verbose", "--balloon",
                "target=300M", "--", "sh", "-c", script,
            ])
        try #require(
            await machine.eventually(60) { machine.output.contains("state=deleted") },
            "\(machine.output) \(machine.errors)")
        let full = machine.peakSize
        #expect(full > 300)
        let isReturned = await machine.eventually(60) { machine.residentSize < full - 180 }
        #expect(isReturned, "\(full) MiB before, \(machine.residentSize) MiB now")
        // It stays so: the host does not make huge pages out of what is left.
        try await Task.sleep(for: .seconds(15))
        #expect(machine.residentSize < full - 180, "\(full) MiB before, \(machine.residentSize) MiB now")
        await machine.end()
        #expect(machine.errors.contains("balloon: 300 of 300 MiB taken"), "\(machine.errors)")
    }
}
