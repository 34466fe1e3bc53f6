internal import Foundation
internal import Testing

/// The legacy interface, with a driver that is told to use nothing else.
@Suite(
    "Legacy drivers in the default guest", .serialized,
    .enabled(if: Martlet.hasGuest, "no release binary or no default guest: run ./scripts/test"))
struct TransitionalTests {
    @Test("A disk and a network card, by the legacy interface and by today's", arguments: [true, false])
    func devices(isLegacy: Bool) async throws {
        let scratch = try Scratch()
        let disk = scratch.file("disk")
        let pattern = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 9) })
        try pattern.write(to: disk)
        let again = """
            ip link set eth0 down
            rmmod virtio_blk virtio_net virtio_pci || exit 3
            insmod /lib/modules/virtio_pci.ko force_legacy=1 || exit 4
            insmod /lib/modules/virtio_blk.ko; insmod /lib/modules/virtio_net.ko
            ip link set eth0 up; udhcpc -i eth0 -s /etc/udhcpc -n -q -f -t 5 -T 1 -A 1 >/dev/null 2>&1
            """
        let script = """
            \(isLegacy ? again : ":")
            # Bit 32: VIRTIO_F_VERSION_1.
            for device in /sys/bus/virtio/devices/*; do printf '%s' "$(cut -c 33 $device/features)"; done; echo
            sha256sum </dev/vda | cut -d ' ' -f 1
            echo hello | dd of=/dev/vda bs=512 seek=9 conv=notrunc,fsync 2>/dev/null; sync
            ip -4 addr show eth0 | awk '/inet / { print $2 }'
            """
        let result = try await Martlet.run(
            [
                "run", "--timeout", "10m", "--accel", "soft", "--transitional", "--disk", "\(disk.path),format=raw",
                "--net", "user,egress=none", "--", "sh", "-c", script,
            ])
        try #require(result.status == 0, "\(result.errors)")
        let lines = result.outputText.split(separator: "\n").map(String.init)
        try #require(lines.count == 3, "\(result.outputText) \(result.errors)")
        #expect(lines[0] == (isLegacy ? "00" : "11"))
        #expect(lines[1].count == 64)
        #expect(lines[2].hasPrefix("10.0.2."), "\(result.outputText)")
        var expected = pattern
        expected.replaceSubrange(9 * 512..<9 * 512 + 6, with: Data("hello\n".utf8))
        let written = try Data(contentsOf: disk)
        #expect(written.prefix(9 * 512 + 6) == expected.prefix(9 * 512 + 6))
    }
}
