internal import Foundation
internal import Testing

/// The machine is killed again and again while its guest writes to ext4 on a qcow2 disk: what the guest was told to be
/// on the disk is there, and both formats are sound. In the default guest, which starts in a second.
@Suite(
    "Power cuts", .serialized,
    .enabled(if: RealGuest.hasDefaultGuest, "no release binary or no default guest: run ./scripts/test"),
    .enabled(if: RealGuest.hasTools, "qemu-img or e2fsprogs are missing"))
struct PowerCutTests {
    private static let rounds = RealGuest.isLong ? 200 : 20

    /// One record is one block of 512 bytes.
    private static func record(_ index: Int, round: Int) -> String {
        "record \(index) of round \(round)".padding(toLength: 511, withPad: " ", startingAt: 0) + "\n"
    }

    /// Each record is told only when dd's fsync has returned. Others write at the same time.
    private static func writer(round: Int) -> String {
        """
        mount -t ext4 /dev/vda /mnt || exit 9
        (while :; do dd if=/dev/zero of=/mnt/noise bs=48k count=3 conv=fsync; rm /mnt/noise; done) 2>/dev/null &
        i=0
        while :; do
            printf '%-511s\\n' "record $i of round \(round)" |
                dd of=/mnt/log-\(round) bs=512 seek=$i conv=notrunc,fsync 2>/dev/null || exit 8
            echo "<$i>"
            i=$((i + 1))
        done
        """
    }

    private func emptyDisk(_ scratch: Scratch) throws -> String {
        let raw = scratch.path("disk.raw")
        let disk = scratch.path("disk.qcow2")
        _ = FileManager.default.createFile(atPath: raw, contents: nil)
        try FileHandle(forWritingTo: URL(filePath: raw)).truncate(atOffset: 128 << 20)
        #expect(try RealGuest.run("mkfs.ext4", "-q", "-F", raw).status == 0)
        #expect(
            try RealGuest.run(RealGuest.martlet, "image", "convert", "--from", "raw", "--to", "qcow2", raw, disk).status
                == 0)
        return disk
    }

    /// Records of the round that the guest has reported.
    private func writeAndKill(_ disk: String, round: Int) async throws -> Int {
        let console = try SerialConsole(
            ["--accel", "soft", "--disk", disk, "--", "sh", "-c", Self.writer(round: round)])
        // Another moment each time: after few and after many records, and anywhere between two.
        let first = 1 + round * 7 % 19
        try await console.wait(for: "<\(first)>\n", limit: .seconds(120))
        try await Task.sleep(for: .microseconds(round * 104_729 % 90_000))
        console.kill()
        _ = try await console.end()
        let reported = try console.rest().matches(of: /<([0-9]+)>\n/).compactMap { Int($0.output.1) }.last
        return (reported ?? first) + 1
    }

    private func expectRecords(_ count: Int, round: Int, _ disk: String, _ scratch: Scratch) throws {
        try RealGuest.expectSoundImage(disk, "round \(round)")
        let raw = scratch.path("check.raw")
        let log = scratch.path("log")
        #expect(try RealGuest.run("qemu-img", "convert", "-O", "raw", disk, raw).status == 0)
        // The journal, as the next start would; then there is nothing to repair.
        let replayed = try RealGuest.run("e2fsck", "-p", raw)
        #expect(replayed.status <= 1, "round \(round): \(replayed.text)")
        let checked = try RealGuest.run("e2fsck", "-f", "-n", raw)
        #expect(checked.status == 0, "round \(round): \(checked.text)")
        _ = try RealGuest.run("debugfs", "-R", "dump /log-\(round) \(log)", raw)
        let bytes = try Data(contentsOf: URL(filePath: log))
        let expected = Data((0..<count).map { Self.record($0, round: round) }.joined().utf8)
        #expect(
            bytes.prefix(expected.count) == expected,
            "round \(round): of \(count) records that were reported, \(bytes.count / 512) are there")
    }

    @Test("Each reported record survives, whenever the machine is killed", .timeLimit(.minutes(30)))
    func reportedRecordsSurvive() async throws {
        let scratch = try Scratch()
        let disk = try emptyDisk(scratch)
        // On one disk all the time: a later start finds what the earlier end has left.
        for round in 0..<Self.rounds {
            let count = try await writeAndKill(disk, round: round)
            try expectRecords(count, round: round, disk, scratch)
        }
    }
}
