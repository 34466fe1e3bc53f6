internal import Foundation
internal import HostProcess
internal import Testing

/// Boots of the default guest as a user does it: the release binary, its standard streams and its status. A boot takes
/// many seconds in software, so that each test asks one guest for many things, and they run one after the other.
@Suite(
    "Default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct GuestBootTests {
    private func guest(
        _ script: String, input: Data = Data(), options: [String] = [], redirection: String = ""
    ) async throws -> Martlet.Result {
        try await Martlet.run(
            ["run", "--timeout", "4m"] + options + ["--", "sh", "-c", script], input: input, redirection: redirection)
    }

    /// The value of `name=value` in what the guest printed.
    private func value(_ name: String, in result: Martlet.Result) -> String? {
        result.outputText.split(separator: "\n").first { $0.hasPrefix(name + "=") }
            .map { String($0.dropFirst(name.count + 1)) }
    }

    @Test("Arithmetic, compression, hardware and clock", arguments: ["interpreter", "translator", "lockstep"])
    func everythingInOneBoot(engine: String) async throws {
        let script = """
            echo sha256=$(printf abc | sha256sum | cut -d ' ' -f 1)
            echo md5=$(printf abc | md5sum | cut -d ' ' -f 1)
            seq 1 20000 >/tmp/numbers
            gzip -c /tmp/numbers | gunzip -c | cmp - /tmp/numbers && echo gzip=same
            echo crc=$(crc32 /tmp/numbers)
            echo float=$(awk 'BEGIN { printf "%.15f %.6e %d", 2 / 3, 1e20 / 7, 2147483647 }')
            echo sum=$(awk 'BEGIN { for (i = 1; i <= 2000; i++) s += (i % 7 - 3) / (i * i + 0.5); printf "%.15f", s }')
            echo bc=$(echo '2^200' | bc)
            echo processors=$(grep -c ^processor /proc/cpuinfo)
            echo serial=$(grep -c ttyS /proc/interrupts)
            a=$(grep -i LOC: /proc/interrupts | awk '{ print $2 }')
            sleep 1
            b=$(grep -i LOC: /proc/interrupts | awk '{ print $2 }')
            [ "$b" -gt "$a" ] && echo ticks=yes
            echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
            echo date=$(date +%s)
            echo memory=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)
            echo arguments="$0"
            echo problem >&2
            exit 42
            """
        let start = Date().timeIntervalSince1970
        let result = try await guest(script, options: ["--accel", "soft", "--engine", engine])
        #expect(result.status == 42, "\(result.errors)")
        #expect(result.errors == "problem\n")
        #expect(
            value("sha256", in: result) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        #expect(value("md5", in: result) == "900150983cd24fb0d6963f7d28e17f72")
        #expect(value("gzip", in: result) == "same")
        #expect(value("crc", in: result)?.split(separator: " ").first.map(String.init) == crc32OfNumbers())
        #expect(value("float", in: result) == "0.666666666666667 1.428571e+19 2147483647")
        var sum = 0.0
        for i in 1...2000 { sum += Double(i % 7 - 3) / (Double(i * i) + 0.5) }
        #expect(value("sum", in: result) == String(format: "%.15f", sum))
        #expect(value("bc", in: result) == "1606938044258990275541962092341162602522202993782792835301376")
        #expect(value("processors", in: result) == "1")
        #expect(value("serial", in: result).flatMap { Int($0) } ?? 0 >= 2)
        #expect(value("ticks", in: result) == "yes")
        #expect(value("clock", in: result) == "kvm-clock" || value("clock", in: result) == "tsc")
        let date = try #require(value("date", in: result).flatMap { Double($0) })
        #expect((start - 5...Date().timeIntervalSince1970 + 5).contains(date))
        let memory = try #require(value("memory", in: result).flatMap { Int($0) })
        #expect((380_000...524_288).contains(memory))
    }

    /// The CRC that Ethernet and gzip use, bit by bit: an oracle that shares nothing with the guest's.
    private func crc32OfNumbers() -> String {
        var crc = UInt32.max
        for number in 1...20000 {
            for byte in "\(number)\n".utf8 {
                crc ^= UInt32(byte)
                for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0xedb8_8320 : crc >> 1 }
            }
        }
        let text = String(~crc, radix: 16)
        return String(repeating: "0", count: 8 - text.count) + text
    }

    /// (value of --cpu, the guest's answers)
    private static let processors: [(String, [(String, String)])] = [
        (
            "default",
            [
                ("meltdown", "Not affected"), ("mds", "Not affected"), ("its", "Not affected"), ("flags", "5"),
                ("spectre", "Mitigation: Enhanced / Automatic IBRS"),
            ]
        ),
        (
            "default,+mitigations,-invpcid,-sse4_2",
            [("meltdown", "Mitigation: PTI"), ("spectre", "Mitigation: Retpolines"), ("flags", "3")]
        ),
    ]

    @Test("The processor that --cpu asks for", arguments: processors)
    func processorModel(words: String, answers: [(String, String)]) async throws {
        let script = """
            cd /sys/devices/system/cpu/vulnerabilities
            echo "meltdown=$(cat meltdown)"
            echo "mds=$(cat mds)"
            echo "spectre=$(cat spectre_v2)"
            echo "its=$(cat indirect_target_selection 2>/dev/null || echo Not affected)"
            echo "flags=$(grep ^flags /proc/cpuinfo | tr ' ' '\\n' | grep -c -x -E 'pcid|invpcid|fsgsbase|x2apic|sse4_2')"
            """
        let result = try await guest(
            script,
            options: ["--accel", "soft", "--engine", "translator", "--cpu", words, "--append", "mitigations=auto"])
        #expect(result.status == 0, "\(result.errors)")
        for (name, text) in answers {
            #expect(value(name, in: result)?.hasPrefix(text) == true, "\(result.outputText)")
        }
    }

    @Test("Standard input and output are binary clean, and output may be large")
    func binaryPipe() async throws {
        // Every byte value after every other one, so that no pair means anything to a line discipline.
        var input = Data()
        for first in 0...255 {
            for second in 0...255 { input.append(contentsOf: [UInt8(first), UInt8(second)]) }
        }
        let result = try await Martlet.run(["run", "--timeout", "4m", "--", "cat"], input: input)
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output == input)
        #expect(result.errors.isEmpty)

        let large = try await guest("head -c 1500000 /dev/zero | tr '\\0' x; cat >/dev/null; exec nosuchcommand")
        #expect(large.output == Data(repeating: 0x78, count: 1_500_000))
        #expect(large.status == 127)
        #expect(large.errors.contains("nosuchcommand"))
    }

    @Test("Guest time advances by the wall clock within 2 %")
    func wallClock() throws {
        // The guest is asked for its time twice. It answers between question and answer by our clock, however busy the
        // host is: what it has measured lies between the shortest and the longest that it can be.
        let process = try HostProcess(
            Martlet.path,
            ["run", "--timeout", "20m", "--", "sh", "-c", "while read x; do cut -d ' ' -f 1 /proc/uptime; done"],
            input: .pipe, output: .pipe)
        func ask() throws -> (guest: Double, asked: ContinuousClock.Instant, answered: ContinuousClock.Instant) {
            let asked = ContinuousClock.now
            #expect(process.write("?\n".utf8))
            let line = try #require(process.readLine())
            return (try #require(Double(line)), asked, .now)
        }
        _ = try ask()
        let first = try ask()
        Thread.sleep(forTimeInterval: 10)
        let second = try ask()
        process.closeInput()
        process.waitUntilExit()
        #expect(process.status == 0)
        let guest = second.guest - first.guest
        let (shortest, longest) = (second.asked - first.answered, second.answered - first.asked)
        // Two digits behind the point.
        #expect(guest + 0.02 > shortest / .seconds(1) * 0.98, "guest \(guest) s, host \(shortest) to \(longest)")
        #expect(guest - 0.02 < longest / .seconds(1) * 1.02, "guest \(guest) s, host \(shortest) to \(longest)")
    }

    @Test("Commands that end by a signal, and a guest that switches itself off")
    func endings() async throws {
        let killed = try await guest("kill -9 $$")
        #expect(killed.status == 137)
        let off = try await guest("poweroff -f; sleep 60")
        #expect(off.status == 0)
        #expect(off.errorLines.count == 1)
    }

    @Test("A panic is one line and a status of its own")
    func panic() async throws {
        let result = try await guest("echo c >/proc/sysrq-trigger")
        #expect(result.status == 120)
        #expect(result.output.isEmpty)
        #expect(result.errorLines.count == 1, "\(result.errors)")
        #expect(result.errors.contains("sysrq triggered crash"))
        #expect(result.errors.contains("rip 0x"))
    }

    @Test("A shell reads its commands from a pipe, restarts and switches off")
    func shell() async throws {
        let input = "uname -s; stty size; tty\nexit\n"
        let result = try await Martlet.run(
            ["run", "--verbose", "--timeout", "4m"], input: Data(input.utf8))
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.outputText.contains("Linux"))
        #expect(result.outputText.contains("24 80"))
        #expect(result.outputText.contains("/dev/ttyS0"))
        for phase in ["engine ", "set-up", "kernel entry", "first console output", "shell"] {
            #expect(result.errors.contains(phase), "\(phase)")
        }

        let restarted = try await Martlet.run(
            ["run", "--verbose", "--timeout", "4m"], input: Data("reboot -f\n".utf8))
        // The second shell finds the end of the input.
        #expect(restarted.status == 0, "\(restarted.errors)")
        #expect(restarted.errors.split(separator: "\n").count { $0.hasSuffix("] shell") } == 2, "\(restarted.errors)")

        let ended = try await Martlet.run(
            ["run", "--verbose", "--no-reboot", "--timeout", "4m"], input: Data("reboot -f\n".utf8))
        #expect(ended.status == 0)
        #expect(ended.errors.split(separator: "\n").count { $0.hasSuffix("] shell") } == 1, "\(ended.errors)")
    }

    @Test("Disks, on the software engine", arguments: ["interpreter", "translator", "lockstep"])
    func disks(engine: String) async throws { try await disks(["--accel", "soft", "--engine", engine]) }

    @Test("Disks, on /dev/kvm", .enabled(if: Martlet.hasKVM, "/dev/kvm cannot run guests here"))
    func disksOnKVM() async throws { try await disks(["--accel", "kvm"]) }

    /// What the guest wrote is in the file, and what was in the file the guest has read.
    private func disks(_ engine: [String]) async throws {
        let scratch = try Scratch()
        let pattern = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 9) })
        try (pattern + Data(count: 3 << 20)).write(to: scratch.file("a"))
        try Data(repeating: 0x5A, count: 1 << 20).write(to: scratch.file("b"))
        let script = """
            echo sizes=$(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)
            echo serial=$(cat /sys/block/vda/serial)
            echo readonly=$(cat /sys/block/vda/ro) $(cat /sys/block/vdb/ro)
            echo queues=$(ls /sys/block/vda/mq | wc -l)
            echo pci=$(cat /sys/bus/pci/devices/0000:00:01.0/vendor) $(ls /sys/bus/pci/devices | wc -l)
            echo vectors=$(grep -c virtio0 /proc/interrupts)
            dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=32 2>/dev/null
            dd if=/dev/vdb of=/dev/vda bs=4k count=1 seek=1023 2>/dev/null
            dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null || echo refused=yes
            sync
            echo random=$(head -c 16 /dev/hwrng | wc -c)
            """
        let result = try await guest(
            script,
            options: engine + [
                "--disk", "\(scratch.file("a").path),serial=MARTLET-1", "--disk",
                "\(scratch.file("b").path),readonly,format=raw", "--device", "virtio-rng",
            ])
        #expect(result.status == 0, "\(result.errors)")
        #expect(value("sizes", in: result) == "8192 2048", "\(result.outputText)")
        #expect(value("serial", in: result) == "MARTLET-1")
        #expect(value("readonly", in: result) == "0 1")
        #expect(value("pci", in: result) == "0x1af4 4")
        #expect(value("vectors", in: result) == "2")
        #expect(value("refused", in: result) == "yes")
        #expect(value("random", in: result) == "16")
        var expected = pattern + Data(count: 3 << 20)
        expected.replaceSubrange(2 << 20..<3 << 20, with: pattern)
        expected.replaceSubrange((4 << 20) - 4096..<4 << 20, with: Data(repeating: 0x5A, count: 4096))
        #expect(try Data(contentsOf: scratch.file("a")) == expected)
        #expect(try Data(contentsOf: scratch.file("b")) == Data(repeating: 0x5A, count: 1 << 20))
    }

    /// A qcow2 disk above a backing file, through a machine and back.
    @Test("A qcow2 disk")
    func qcow2Disk() async throws {
        let scratch = try Scratch()
        func image(_ arguments: String...) async throws -> Martlet.Result {
            let result = try await Martlet.run(["image"] + arguments)
            #expect(result.status == 0, "\(arguments): \(result.errors)")
            return result
        }
        func path(_ name: String) -> String { scratch.file(name).path }
        let pattern = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 11 ^ $0 >> 7) })
        try (pattern + Data(count: 7 << 20)).write(to: scratch.file("raw"))
        _ = try await image(
            "convert", "--from", "raw", "--to", "qcow2", "--compress", "zstd", path("raw"), path("base"))
        _ = try await image("create", "--backing", path("base"), "--backing-format", "qcow2", path("top.qcow2"))
        let script = """
            dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=48 2>/dev/null
            dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=3 2>/dev/null
            echo sizes=$(cat /sys/block/vda/size)
            """
        let result = try await guest(script, options: ["--disk", path("top.qcow2")])
        #expect(result.status == 0, "\(result.errors)")
        #expect(value("sizes", in: result) == "16384")
        _ = try await image("check", path("top.qcow2"))
        _ = try await image("convert", "--from", "qcow2", "--to", "raw", path("top.qcow2"), path("out"))
        var expected = pattern + Data(count: 7 << 20)
        expected.replaceSubrange(3 << 20..<4 << 20, with: pattern)
        expected.replaceSubrange(3 * 4096..<4 * 4096, with: Data(count: 4096))
        #expect(try Data(contentsOf: scratch.file("out")) == expected)
        // A name that does not say so, and no format: refused, not guessed.
        let refused = try await guest("true", options: ["--disk", path("base")])
        #expect(refused.status == 125 && refused.errors.contains("format=qcow2"), "\(refused.errors)")
    }

    @Test("A timeout is a status and one line")
    func timeout() async throws {
        let result = try await Martlet.run(["run", "--timeout", "2s", "--", "sleep", "1000"])
        #expect(result.status == 124)
        #expect(result.errorLines.count == 1)
        #expect(result.errors.contains("--timeout"))
    }

    @Test("A reader that goes away ends the machine with one line")
    func brokenPipe() async throws {
        let result = try await Martlet.run(
            ["run", "--timeout", "4m", "--", "yes"], redirection: "| head -c 10 >/dev/null")
        // The pipeline's status is head's.
        #expect(!result.wasKilled)
        #expect(result.errorLines.count == 1, "\(result.errors)")
        #expect(result.errors.contains("Broken pipe"))
    }
}
