internal import Foundation
internal import Testing

@Suite(
    "Debian", .serialized,
    .enabled(if: RealGuest.hasDebian, "no Debian image: run scripts/debian-image (needs mmdebstrap and a mirror)"),
    .enabled(if: RealGuest.hasTools, "qemu-img or e2fsprogs are missing"))
struct DebianTests {
    /// An overlay on the image of the cache, with a manifest of its own.
    private func overlay(_ scratch: Scratch) throws -> String {
        let path = scratch.path("debian.qcow2")
        let made = try RealGuest.run(
            RealGuest.martlet, "image", "create", "--format", "qcow2", "--backing", RealGuest.debian,
            "--backing-format", "qcow2", path)
        try #require(made.status == 0, "\(made.text)")
        var manifest = try String(contentsOfFile: RealGuest.debian + ".json", encoding: .utf8)
        for name in ["kernel", "initrd"] {
            manifest = manifest.replacingOccurrences(
                of: "\"debian.qcow2.\(name)\"", with: "\"\(RealGuest.debian).\(name)\"")
        }
        try manifest.write(toFile: path + ".json", atomically: true, encoding: .utf8)
        return path
    }

    private func expectSound(_ image: String, offset: Int, scratch: Scratch, mayReplay: Bool) throws {
        try RealGuest.expectSoundImage(image, image)
        let raw = scratch.path("check.raw")
        let converted = try RealGuest.run("qemu-img", "convert", "-O", "raw", image, raw)
        try #require(converted.status == 0, "\(converted.text)")
        var target = raw
        // A file of its own: e2fsck takes an offset, and forgets it when it opens the file again behind the journal.
        if offset > 0 {
            target = scratch.path("partition.raw")
            let copied = try RealGuest.run(
                "dd", "if=\(raw)", "of=\(target)", "bs=1M", "skip=\(offset >> 20)", "conv=sparse", "status=none")
            try #require(copied.status == 0, "\(copied.text)")
        }
        // The journal first, as a start would do; then nothing may be left to say.
        if mayReplay {
            let replayed = try RealGuest.run("e2fsck", "-p", target)
            #expect(replayed.status <= 1, "\(replayed.text)")
        }
        let checked = try RealGuest.run("e2fsck", "-f", "-n", target)
        #expect(checked.status == 0, "\(checked.text)")
        for path in Set([raw, target]) { try FileManager.default.removeItem(atPath: path) }
    }

    private static let rootOffset = 128 << 20

    @Test("Boots to its login, works on a second disk, and switches itself off", .timeLimit(.minutes(10)))
    func bootsAndWorks() async throws {
        let scratch = try Scratch()
        let image = try overlay(scratch)
        let disk = scratch.path("second.qcow2")
        #expect(try RealGuest.run("qemu-img", "create", "-f", "qcow2", disk, "1G").status == 0)
        let console = try SerialConsole(["--accel", "soft", image, "--disk", disk])
        try await console.logIn()

        let failed = try await console.run("systemctl is-system-running --wait; systemctl --failed --no-legend --plain")
        #expect(failed.text == "running\n", "\(failed.text)")
        let time = try await console.run("systemd-analyze time")
        #expect(time.text.contains("Startup finished"), "\(time.text)")
        #expect(try await console.run("id -un && sudo -n id -un").text == "debian\nroot\n")
        #expect(try await console.run("cat /etc/apt/sources.list.d/*.sources").text.contains("deb.debian.org"))

        try await expectFileSystem("mkfs.xfs -q -f", check: "xfs_repair -n", console)
        try await expectFileSystem("mkfs.btrfs -q -f", check: "btrfs check", console)
        let made = try await console.run("sudo mkfs.ext4 -q -F /dev/vdb && sudo mount /dev/vdb /mnt")
        #expect(made.status == 0, "\(made.text)")
        let fio = try await console.run(
            "sudo fio --name=v --directory=/mnt --size=24M --rw=randwrite --bsrange=512-64k --ioengine=psync "
                + "--direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal >/tmp/fio; echo $?",
            limit: .seconds(240))
        #expect(fio.text == "0\n", "\(fio.text)")
        let unmounted = try await console.run("sudo umount /mnt && sudo e2fsck -f -n /dev/vdb")
        #expect(unmounted.status == 0, "\(unmounted.text)")

        try console.type("sudo poweroff\n")
        #expect(try await console.end() == 0, "\(console.transcript)")
        try expectSound(image, offset: Self.rootOffset, scratch: scratch, mayReplay: false)
        try expectSound(disk, offset: 0, scratch: scratch, mayReplay: false)
    }

    /// Files that are written, read again after the cache has forgotten them, and found sound by the format's own judge.
    private func expectFileSystem(_ make: String, check: String, _ console: SerialConsole) async throws {
        let used = try await console.run(
            "sudo \(make) /dev/vdb && sudo mount /dev/vdb /mnt && sudo cp -r /usr/lib/systemd /mnt/ && sync && "
                + "echo 3 | sudo tee /proc/sys/vm/drop_caches >/dev/null && diff -r /usr/lib/systemd /mnt/systemd && "
                + "sudo umount /mnt")
        #expect(used.status == 0, "\(make): \(used.text)")
        let checked = try await console.run("sudo \(check) /dev/vdb")
        #expect(checked.status == 0, "\(check): \(checked.text)")
    }

    @Test("The machine is killed in the middle of writing: both file systems are sound", .timeLimit(.minutes(10)))
    func killedWhileWriting() async throws {
        let scratch = try Scratch()
        let image = try overlay(scratch)
        let disk = scratch.path("second.qcow2")
        #expect(try RealGuest.run("qemu-img", "create", "-f", "qcow2", disk, "1G").status == 0)
        let console = try SerialConsole(["--accel", "soft", image, "--disk", disk])
        try await console.logIn()
        let made = try await console.run("sudo mkfs.ext4 -q /dev/vdb && sudo mount /dev/vdb /mnt && sync")
        #expect(made.status == 0, "\(made.text)")
        try console.type(
            "sudo fio --name=w --directory=/mnt --size=64M --rw=randwrite --bs=4k --fsync=4 --time_based --runtime=600 "
                + "--ioengine=psync >/dev/null 2>&1 & echo star''ted\n")
        try await console.wait(for: "started")
        try await Task.sleep(for: .seconds(6))
        console.kill()
        try expectSound(disk, offset: 0, scratch: scratch, mayReplay: true)
        try expectSound(image, offset: Self.rootOffset, scratch: scratch, mayReplay: true)
    }
}
