internal import Foundation
internal import Testing

/// More devices than bus 0 has slots: root ports in the default guest.
@Suite(
    "Many devices in the default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct ManyDevicesTests {
    /// With messages, and with interrupt pins that the ports pass on.
    @Test("Forty disks, eleven of them behind root ports", arguments: ["", "pci=nomsi"])
    func disks(append: String) async throws {
        let scratch = try Scratch()
        var options: [String] = []
        for index in 0..<40 {
            let file = scratch.file("\(index)")
            try Data(repeating: UInt8(index), count: 1 << 20).write(to: file)
            options += ["--disk", "\(file.path),format=raw,serial=number-\(index)"]
        }
        let script = """
            echo disks=$(ls -d /sys/block/vd* | wc -l)
            for disk in /sys/block/vd*; do
                name=${disk##*/}; number=$(cat $disk/serial); number=${number#number-}
                [ $(od -An -tu1 -N1 /dev/$name) = $number ] || echo wrong=$name
                case $(readlink -f $disk) in
                    */0000:00:*/0000:*:00.0/virtio*) echo behind $number ;;
                esac
                printf '%s' "$name" | dd of=/dev/$name bs=512 seek=1 conv=notrunc,fsync 2>/dev/null
            done
            echo last=$(cat /sys/block/vdan/serial)
            echo ports=$(grep -l 0x060400 /sys/bus/pci/devices/*/class | wc -l)
            echo vectors=$(grep -c 'MSI.*virtio' /proc/interrupts)
            dmesg | grep -i 'pci.*\\(fail\\|can.t assign\\|conflict\\)' | head -n 3
            """
        let result = try await Martlet.run(
            ["run", "--timeout", "4m", "--accel", "soft", "--append", append] + options + ["--", "sh", "-c", script])
        try #require(result.status == 0, "\(result.errors)")
        let lines = result.outputText.split(separator: "\n").map(String.init)
        #expect(lines.contains("disks=40") && lines.contains("ports=11"), "\(result.outputText)")
        #expect(lines.contains("last=number-39"), "the names are in the order of the options: \(result.outputText)")
        let behind = lines.filter { $0.hasPrefix("behind ") }.compactMap { Int($0.dropFirst(7)) }
        #expect(behind.sorted() == Array(29..<40), "\(result.outputText)")
        #expect(!lines.contains { $0.hasPrefix("wrong=") || $0.contains("pci") }, "\(result.outputText)")
        #expect(lines.contains("vectors=0") != append.isEmpty, "\(result.outputText)")
        for index in 0..<40 {
            let bytes = try Data(contentsOf: scratch.file("\(index)")).dropFirst(512).prefix(3)
            #expect(bytes.starts(with: Data("vd".utf8)), "disk \(index)")
        }
    }

    @Test("What a machine has no room for is one line")
    func tooMany() async throws {
        let options = (0..<249).flatMap { _ in ["--device", "virtio-rng"] }
        let result = try await Martlet.run(["run", "--accel", "soft"] + options + ["--", "true"])
        #expect(result.status == 125 && result.errorLines.count == 1, "\(result.errors)")
        #expect(result.errors.contains("248 PCI devices"), "\(result.errors)")
    }
}
